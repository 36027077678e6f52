//! One node's files and process.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::wait;
use jepsen_lite::ports::free_port;

/// The folder with the binaries, where it is not the one above the test's own.
const BIN_VARIABLE: &str = "QUORATE_BIN";

/// The node binary: beside the folder that the test itself was built into.
pub fn binary() -> PathBuf {
    let folder = std::env::var_os(BIN_VARIABLE).map_or_else(built_beside, PathBuf::from);
    let path = folder.join("quorate-node");
    assert!(path.exists(), "{} is missing: build it first: cargo build --bins", path.display());
    path
}

fn built_beside() -> PathBuf {
    let test = std::env::current_exe().expect("a running test has a path");
    // target/<profile>/deps/<test>
    test.ancestors().nth(2).expect("cargo puts tests two folders deep").to_owned()
}

/// A running `quorate-node`. Dropping it kills it.
pub struct Run {
    child: Child,
    log: PathBuf,
    log_start: usize,
}

impl Run {
    /// What it prints is appended to `log`.
    pub fn start(arguments: &[String], environment: &[(String, String)], log: &Path) -> Self {
        let out = File::options().create(true).append(true).open(log).expect("the test's folder can be written");
        let errors = out.try_clone().expect("a file handle can be duplicated");
        let log_start = read(log).len();
        let mut command = Command::new(binary());
        command.args(arguments).stdin(Stdio::null()).stdout(out).stderr(errors);
        // The node takes its configuration from there as well.
        for (name, _) in std::env::vars().filter(|(name, _)| name.starts_with("QUORATE_")) {
            command.env_remove(name);
        }
        command.envs(environment.iter().cloned());
        let child = command.spawn().expect("the binary can be started");
        Self { child, log: log.to_owned(), log_start }
    }

    /// What this run has printed so far.
    pub fn printed(&self) -> String {
        read(&self.log).split_off(self.log_start)
    }

    pub fn has_ended(&mut self) -> Option<ExitStatus> {
        self.child.try_wait().expect("a child can be waited for")
    }

    /// Waits until it ends by itself.
    pub async fn ended(&mut self, why: &str) -> ExitStatus {
        wait(why, async || self.has_ended()).await
    }

    /// Waits until it ends by itself with a failure; what it printed.
    pub async fn refused(mut self, why: &str) -> String {
        let status = self.ended(why).await;
        let printed = self.printed();
        assert!(!status.success(), "should be refused, but ended well: {why}\n{printed}");
        assert!(status.code().is_some(), "ended by a signal instead of a refusal: {status}\n{printed}");
        printed
    }

    pub fn signal(&self, signal: Signal) {
        let pid = i32::try_from(self.child.id()).expect("pids are positive and fit");
        kill(Pid::from_raw(pid), signal).expect("our own child, not yet waited for, can be signalled");
    }

    /// SIGKILL, also to one that is paused; returns when the process is gone.
    pub fn kill(&mut self) {
        // It may have ended already, which is as well.
        let _ = self.child.kill();
        self.child.wait().expect("a child can be waited for");
    }
}

impl Drop for Run {
    fn drop(&mut self) {
        self.kill();
    }
}

/// The whole file; what a killed process may have cut in the middle of a character is shown as such.
pub fn read(log: &Path) -> String {
    String::from_utf8_lossy(&fs::read(log).unwrap_or_default()).into_owned()
}

/// A member of a cluster, running or not.
pub(crate) struct Node {
    pub folder: PathBuf,
    /// Part of the quorum, rather than a broker only.
    pub is_voter: bool,
    pub api: String,
    pub raft: String,
    pub http: String,
    /// On top of its configuration file: `KEY=VALUE`.
    pub settings: Vec<String>,
    /// On top of the test's own.
    pub environment: Vec<(String, String)>,
    pub run: Option<Run>,
    pub paused: bool,
}

impl Node {
    pub fn new(folder: PathBuf, is_voter: bool, settings: &[(&str, &str)]) -> Self {
        fs::create_dir_all(&folder).expect("the test's folder can be written");
        let address = || format!("127.0.0.1:{}", free_port());
        let settings = settings.iter().map(|(key, value)| format!("{key}={value}")).collect();
        let (api, raft, http) = (address(), address(), address());
        Self { folder, is_voter, api, raft, http, settings, environment: Vec::new(), run: None, paused: false }
    }

    pub fn data(&self) -> PathBuf {
        self.folder.join("data")
    }

    pub fn log(&self) -> PathBuf {
        self.folder.join("log")
    }

    /// The command line that runs it, with further settings.
    pub fn arguments(&self, more: &[(&str, &str)]) -> Vec<String> {
        let config = self.folder.join("node.toml").display().to_string();
        let more = more.iter().map(|(key, value)| format!("{key}={value}"));
        let settings = self.settings.iter().cloned().chain(more).flat_map(|setting| ["--set".to_owned(), setting]);
        ["run".to_owned(), "--config".to_owned(), config].into_iter().chain(settings).collect()
    }

    pub fn is_up(&self) -> bool {
        self.run.is_some() && !self.paused
    }
}
