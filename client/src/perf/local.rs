//! A cluster of processes on this machine, as `scripts/cluster` keeps it: pid files to kill by, a script to start by.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use quorate_proto::admin::{ClusterStatusReply, DescribeQuorumReply};
use rand::RngExt;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::{Instant, sleep, timeout};

use super::{LocalArgs, PerfError};
use crate::{AdminClient, Freshness, world};

/// A cluster that is not whole again after this long has a problem that a measurement must not hide.
const WHOLE_TIMEOUT: Duration = Duration::from_secs(90);

/// A controlled shutdown has its own deadline, which is shorter.
const END_TIMEOUT: Duration = Duration::from_secs(60);

/// The folder where `scripts/cluster` keeps a cluster unless it is given another.
const DEFAULT_DIR: &str = ".quorate";

/// What a process of ours has in its command line. Pid files outlive processes, and pids are used again.
const PROGRAM: &str = "quorate-node";

/// `scripts/cluster` puts the HTTP port of node N at its base port + 200 + N.
const HTTP_PORT_OFFSET: u16 = 200;

/// An answer of `/readyz` that takes longer is none.
const READY_TIMEOUT: Duration = Duration::from_secs(2);

#[derive(Debug, Clone)]
pub struct LocalCluster {
    dir: PathBuf,
    script: PathBuf,
    bootstrap: Vec<String>,
    base: u16,
}

impl LocalCluster {
    pub fn open(arguments: &LocalArgs) -> Result<Self, PerfError> {
        let dir = arguments.dir.clone().unwrap_or_else(|| PathBuf::from(DEFAULT_DIR));
        let settings = dir.join("cluster.env");
        let text = std::fs::read_to_string(&settings).map_err(|source| failed("cannot read", &settings, source))?;
        let lacks = |what: &str| PerfError::cluster(format!("{} has no {what}", settings.display()));
        let bootstrap = bootstrap(&text).ok_or_else(|| lacks("BOOTSTRAP"))?;
        let base = setting(&text, "BASE").and_then(|base| base.parse().ok()).ok_or_else(|| lacks("BASE"))?;
        Ok(Self { dir, script: arguments.cluster_script.clone(), bootstrap, base })
    }

    /// How to reach it.
    pub fn bootstrap(&self) -> &[String] {
        &self.bootstrap
    }

    /// The ids of its nodes, running or not.
    pub(super) fn nodes(&self) -> Vec<i32> {
        let entries = std::fs::read_dir(self.dir.join("nodes")).into_iter().flatten().flatten();
        let mut nodes: Vec<i32> = entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok()).collect();
        nodes.sort_unstable();
        nodes
    }

    /// The pid of a node that runs.
    pub(super) fn running(&self, node: i32) -> Option<i32> {
        self.pid(node).ok().map(Pid::as_raw)
    }

    /// Sends the signal to the node's process, if it is one, and tells its pid.
    pub(super) fn signal(&self, node: i32, signal: Signal) -> Result<Pid, PerfError> {
        let pid = self.pid(node)?;
        kill(pid, signal).map_err(|error| PerfError::cluster(format!("cannot signal node {node}: {error}")))?;
        Ok(pid)
    }

    fn pid(&self, node: i32) -> Result<Pid, PerfError> {
        let pid = self.last_pid(node)?;
        if pid.as_raw() > 1 && is_node(pid.as_raw()) {
            Ok(pid)
        } else {
            Err(PerfError::cluster(format!("process {pid} of node {node} is not a {PROGRAM} that runs")))
        }
    }

    /// Of the node's last process, whether or not it runs.
    fn last_pid(&self, node: i32) -> Result<Pid, PerfError> {
        let file = self.dir.join("nodes").join(node.to_string()).join("pid");
        let text = std::fs::read_to_string(&file).map_err(|source| failed("cannot read", &file, source))?;
        let pid =
            text.trim().parse().map_err(|_| PerfError::cluster(format!("{} does not hold a pid", file.display())))?;
        Ok(Pid::from_raw(pid))
    }

    /// Starts the node again after its process has ended.
    pub(super) async fn restart(&self, node: i32, before: Pid) -> Result<(), PerfError> {
        self.ended(node, before).await?;
        self.start(node).await
    }

    /// Waits until the process has ended, and holds no port or file any more.
    pub(super) async fn ended(&self, node: i32, before: Pid) -> Result<(), PerfError> {
        let deadline = Instant::now() + END_TIMEOUT;
        while !has_ended(before.as_raw(), PROGRAM) {
            if Instant::now() > deadline {
                return Err(PerfError::cluster(format!("node {node} did not end within {END_TIMEOUT:?}")));
            }
            sleep(Duration::from_millis(20)).await;
        }
        Ok(())
    }

    /// Starts a node whose last process has ended, or is ending. Returns when the script does: it waits for the node for
    /// some seconds.
    pub(super) async fn start(&self, node: i32) -> Result<(), PerfError> {
        self.ended(node, self.last_pid(node)?).await?;
        let mut command = Command::new(&self.script);
        command.arg("start").arg(node.to_string()).arg("--dir").arg(&self.dir).stdin(Stdio::null());
        command.stdout(Stdio::null());
        let failed = |source| failed("cannot run", &self.script, source);
        let mut child = command.spawn().map_err(failed)?;
        let status = loop {
            if let Some(status) = child.try_wait().map_err(failed)? {
                break status;
            }
            sleep(Duration::from_millis(10)).await;
        };
        if status.success() {
            Ok(())
        } else {
            Err(PerfError::cluster(format!("{} start {node}: {status}", self.script.display())))
        }
    }

    /// Whether the node says that it is ready: there is an active controller, and it has what is committed.
    pub(super) async fn is_ready(&self, node: i32) -> bool {
        let port = |node: u16| self.base.checked_add(HTTP_PORT_OFFSET)?.checked_add(node);
        let Some(port) = u16::try_from(node).ok().and_then(port) else { return false };
        // Refused, reset or too late: not ready.
        matches!(timeout(READY_TIMEOUT, ask_ready(port)).await, Ok(Ok(true)))
    }
}

async fn ask_ready(port: u16) -> std::io::Result<bool> {
    let mut stream = TcpStream::connect(("127.0.0.1", port)).await?;
    stream.write_all(b"GET /readyz HTTP/1.0\r\n\r\n").await?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).await?;
    let status_line = answer.split(|byte| *byte == b'\r').next().unwrap_or_default();
    Ok(status_line.windows(5).any(|part| part == b" 200 "))
}

fn failed(what: &str, path: &Path, source: std::io::Error) -> PerfError {
    PerfError::Io { what: format!("{what} {}", path.display()), source }
}

/// Whether a process of this pid runs, and is a node.
fn is_node(pid: i32) -> bool {
    // A process that ended while we looked has no command line; a zombie's is empty.
    let line = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    String::from_utf8_lossy(&line).contains(PROGRAM)
}

/// Whether the process of this pid, a `program`, has let go of all that it had open. One that was killed has no command line
/// from when its memory goes, and its ports until later; it keeps its name until it is reaped.
fn has_ended(pid: i32, program: &str) -> bool {
    let Ok(stat) = std::fs::read_to_string(format!("/proc/{pid}/stat")) else { return true };
    let threads = std::fs::read_dir(format!("/proc/{pid}/task")).map_or(0, Iterator::count);
    is_of_ended(&stat, threads, program)
}

/// As `has_ended`, by `/proc/PID/stat` and the number of threads. The first thread of a process waits as a zombie for the
/// others, which still hold everything.
fn is_of_ended(stat: &str, threads: usize, program: &str) -> bool {
    let Some((name, state)) = stat.split_once('(').and_then(|(_, rest)| rest.rsplit_once(')')) else { return true };
    let is_zombie = state.trim_start().starts_with(['Z', 'X']);
    // The kernel keeps 15 bytes of a name. Another name is another process: pids are used again.
    name != &program[..program.len().min(15)] || (is_zombie && threads <= 1)
}

/// `NAME=value` among the settings.
fn setting<'a>(settings: &'a str, name: &str) -> Option<&'a str> {
    let value = |line: &'a str| line.trim_start_matches("export ").strip_prefix(name)?.strip_prefix('=');
    settings.lines().find_map(value).map(|value| value.trim_matches(['"', '\'']))
}

/// `BOOTSTRAP=a:1,b:2` among the settings.
fn bootstrap(settings: &str) -> Option<Vec<String>> {
    let value = setting(settings, "BOOTSTRAP")?;
    let addresses: Vec<String> = value.split(',').filter(|address| !address.is_empty()).map(str::to_owned).collect();
    if addresses.is_empty() { None } else { Some(addresses) }
}

/// Waits until every voter can be reached and every broker is unfenced.
pub(super) async fn whole(client: &AdminClient) -> Result<DescribeQuorumReply, PerfError> {
    let deadline = Instant::now() + WHOLE_TIMEOUT;
    loop {
        // While it is not whole, it may well not answer: only the deadline ends the wait.
        let missing = match client.cluster_status(Freshness::Linearizable).await {
            Ok(status) if status.voters_unreachable == 0 && status.brokers_fenced == 0 => {
                let quorum = client.describe_quorum(Freshness::Linearizable).await?;
                if quorum.voters.iter().all(|voter| voter.state != "unreachable") {
                    return Ok(quorum);
                }
                "a voter is unreachable".to_owned()
            }
            Ok(status) => status.reasons.join(", "),
            Err(error) => error.to_string(),
        };
        if Instant::now() > deadline {
            return Err(PerfError::cluster(format!("the cluster is not whole after {WHOLE_TIMEOUT:?}: {missing}")));
        }
        sleep(Duration::from_millis(50)).await;
    }
}

/// Waits until the status of the cluster is as wanted.
pub(super) async fn await_status(
    client: &AdminClient,
    patience: Duration,
    what: &str,
    is_wanted: impl Fn(&ClusterStatusReply) -> bool,
) -> Result<ClusterStatusReply, PerfError> {
    let deadline = Instant::now() + patience;
    loop {
        let missing = match client.cluster_status(Freshness::Linearizable).await {
            Ok(status) if is_wanted(&status) => return Ok(status),
            Ok(status) => status.reasons.join(", "),
            Err(error) => error.to_string(),
        };
        if Instant::now() > deadline {
            return Err(PerfError::cluster(format!("{what}: not within {patience:?}: {missing}")));
        }
        sleep(Duration::from_millis(50)).await;
    }
}

/// Every broker is unfenced, and every replica in sync.
pub(super) fn is_in_sync(status: &ClusterStatusReply) -> bool {
    status.brokers_fenced == 0 && status.leaderless == 0 && status.under_replicated == 0
}

/// So that what is killed next is not always killed at the same point of its heartbeat interval.
pub(super) async fn random_phase() {
    sleep(Duration::from_millis(world::chance().random_range(0..300))).await;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_bootstrap_line_is_found_among_the_settings() {
        let settings = "BASE=7000\nexport BOOTSTRAP='127.0.0.1:7001,127.0.0.1:7002'\n";
        assert_eq!(bootstrap(settings), Some(vec!["127.0.0.1:7001".to_owned(), "127.0.0.1:7002".to_owned()]));
        assert_eq!(bootstrap("BOOTSTRAP=\n"), None);
        assert_eq!(setting(settings, "BASE"), Some("7000"));
        assert_eq!(setting(settings, "BIN"), None);
    }

    #[test]
    fn a_process_has_ended_when_no_thread_of_it_is_left() {
        let ended = |stat: &str, threads| is_of_ended(stat, threads, PROGRAM);
        assert!(!ended("7 (quorate-node) S 1 7", 9));
        assert!(!ended("7 (quorate-node) R 1 7", 1), "its memory is gone, its ports are not");
        assert!(!ended("7 (quorate-node) Z 1 7", 3), "its first thread alone has ended");
        assert!(ended("7 (quorate-node) Z 1 7", 1), "nothing is left but to be reaped");
        assert!(ended("7 (a (b) c) S 1 7", 4), "another process has the pid now");
        assert!(ended("7 (quorate) S 1 7", 4), "of another program, although its name begins alike");
        assert!(ended("", 0));
    }

    #[test]
    fn a_child_that_was_killed_and_reaped_has_ended() {
        let mut child = Command::new("sleep").arg("1000").spawn().unwrap();
        let pid = i32::try_from(child.id()).unwrap();
        // The kernel names a process a moment after it has let the parent go on.
        while std::fs::read_to_string(format!("/proc/{pid}/comm")).unwrap().trim() != "sleep" {
            std::thread::yield_now();
        }
        assert!(!has_ended(pid, "sleep"));
        child.kill().unwrap();
        child.wait().unwrap();
        assert!(has_ended(pid, "sleep"));
    }

    #[test]
    fn a_process_of_another_program_is_no_node() {
        assert!(!is_node(1));
        assert!(!is_node(i32::MAX));
    }
}
