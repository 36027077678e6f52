//! The cluster under test: real `quorate-node` processes, each with its own folder, started and broken from outside.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::Duration;

use anyhow::{Context, bail, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tokio::time::{Instant, sleep};

use crate::disk::{self, Cut, Disk, Mode};
use crate::link::{Links, Member};
use crate::ports::free_port;

/// Raft's library says of every peer that is down, many times a second, that it is down.
const LOG_LEVEL: &str = "info,openraft=error";

/// SIGTERM hands leaderships over first.
const STOP_PATIENCE: Duration = Duration::from_secs(30);

/// What a cluster is made of.
#[derive(Debug, Clone)]
pub struct Layout {
    /// Where `quorate-node` is.
    pub binaries: PathBuf,
    /// Everything of the run goes there.
    pub folder: PathBuf,
    pub nodes: i32,
    /// `KEY=VALUE` of every node's configuration.
    pub settings: Vec<String>,
}

/// What is wrong with the node, apart from its links.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Down,
    Up,
    Paused,
}

struct Node {
    member: Member,
    folder: PathBuf,
    child: Option<Child>,
    state: State,
    /// The process that runs registers its broker after this metadata offset.
    since: i64,
    /// None where there is no shim.
    disk: Option<Disk>,
}

/// The nodes, and the links between them. Dropping it kills them all.
pub struct Db {
    layout: Layout,
    nodes: BTreeMap<i32, Node>,
    pub links: Links,
    /// Why disks cannot be broken, where they cannot.
    pub no_shim: Option<String>,
}

impl Db {
    /// Writes the configurations. Starts nothing yet.
    pub fn prepare(layout: Layout) -> anyhow::Result<Self> {
        let binary = layout.binaries.join("quorate-node");
        ensure!(binary.exists(), "{} is missing: build it first: cargo build --bins", binary.display());
        let address = || format!("127.0.0.1:{}", free_port());
        let members: Vec<Member> =
            (1..=layout.nodes).map(|id| Member { id, raft: address(), api: address() }).collect();
        let links = Links::between(&members);
        fs::create_dir_all(&layout.folder)?;
        let shim = disk::compile_shim(&layout.folder);
        let mut nodes = BTreeMap::new();
        for member in &members {
            let folder = layout.folder.join(format!("node-{}", member.id));
            fs::create_dir_all(&folder).with_context(|| format!("cannot make {}", folder.display()))?;
            let dial_map = folder.join("dial.toml");
            fs::write(&dial_map, &links.dial_maps()[&member.id])?;
            fs::write(folder.join("node.toml"), configuration(member, &members, &folder))?;
            let disk = match &shim {
                Ok(shim) => Some(Disk::prepare(shim, &folder, &folder.join("data"))?),
                Err(_) => None,
            };
            let node = Node { member: member.clone(), folder, child: None, state: State::Down, since: -1, disk };
            nodes.insert(member.id, node);
        }
        Ok(Self { layout, nodes, links, no_shim: shim.err() })
    }

    pub fn ids(&self) -> Vec<i32> {
        self.nodes.keys().copied().collect()
    }

    /// Running and not paused.
    pub fn up(&self) -> BTreeSet<i32> {
        self.nodes.iter().filter(|(_, node)| node.state == State::Up).map(|(id, _)| *id).collect()
    }

    pub fn api(&self, id: i32) -> &str {
        &self.nodes[&id].member.api
    }

    pub fn apis(&self) -> Vec<String> {
        self.nodes.values().map(|node| node.member.api.clone()).collect()
    }

    pub fn data(&self, id: i32) -> PathBuf {
        self.nodes[&id].folder.join("data")
    }

    pub fn log(&self, id: i32) -> PathBuf {
        self.nodes[&id].folder.join("log")
    }

    fn node(&mut self, id: i32) -> &mut Node {
        self.nodes.get_mut(&id).expect("targets are nodes of this cluster")
    }

    /// Starts a node that is down, at a time when the metadata have reached this offset.
    pub fn start(&mut self, id: i32, offset: i64) -> anyhow::Result<()> {
        let binary = self.layout.binaries.join("quorate-node");
        let settings = self.layout.settings.clone();
        let node = self.node(id);
        if node.state != State::Down {
            return Ok(());
        }
        let out = File::options().create(true).append(true).open(node.folder.join("log"))?;
        let mut command = Command::new(&binary);
        command.arg("run").arg("--config").arg(node.folder.join("node.toml"));
        for setting in settings {
            command.arg("--set").arg(setting);
        }
        // The node takes its configuration from there as well.
        for (name, _) in std::env::vars().filter(|(name, _)| name.starts_with("QUORATE_")) {
            command.env_remove(name);
        }
        if let Some(disk) = &node.disk {
            command.envs(disk.environment());
        }
        command.stdin(Stdio::null()).stderr(out.try_clone()?).stdout(out);
        node.child = Some(command.spawn().with_context(|| format!("cannot start {}", binary.display()))?);
        (node.state, node.since) = (State::Up, offset);
        Ok(())
    }

    /// The metadata offset when the process of this node was started: an older registration is of an earlier one.
    pub fn since(&self, id: i32) -> i64 {
        self.nodes[&id].since
    }

    /// SIGKILL. Returns when the process is gone.
    pub fn kill(&mut self, id: i32) -> anyhow::Result<()> {
        let node = self.node(id);
        if let Some(mut child) = node.child.take() {
            child.kill()?;
            child.wait()?;
        }
        node.state = State::Down;
        Ok(())
    }

    /// The disk of this node behaves like this from now on.
    pub fn break_disk(&self, id: i32, mode: Mode) -> anyhow::Result<()> {
        if let Some(disk) = &self.nodes[&id].disk {
            disk.set(mode).with_context(|| format!("cannot set the disk of node {id}"))?;
        }
        Ok(())
    }

    /// Takes from a node that is down what was not synced.
    pub fn cut_power(&mut self, id: i32) -> anyhow::Result<Cut> {
        let node = self.node(id);
        ensure!(node.state == State::Down, "node {id} still runs");
        let disk = node.disk.as_ref().context("there is no shim")?;
        disk.cut_power().with_context(|| format!("cannot cut the files of node {id}"))
    }

    pub fn is_down(&self, id: i32) -> bool {
        self.nodes[&id].state == State::Down
    }

    /// SIGTERM, and waits until the process has ended.
    pub async fn stop(&mut self, id: i32) -> anyhow::Result<ExitStatus> {
        let node = self.node(id);
        let Some(mut child) = node.child.take() else { bail!("node {id} is not running") };
        signal(&child, Signal::SIGCONT)?;
        signal(&child, Signal::SIGTERM)?;
        node.state = State::Down;
        let deadline = Instant::now() + STOP_PATIENCE;
        loop {
            if let Some(status) = child.try_wait()? {
                return Ok(status);
            }
            if Instant::now() > deadline {
                child.kill()?;
                child.wait()?;
                bail!("node {id} did not stop within {STOP_PATIENCE:?} of SIGTERM");
            }
            sleep(Duration::from_millis(10)).await;
        }
    }

    /// SIGSTOP: it stands still, its connections stay open.
    pub fn pause(&mut self, id: i32) -> anyhow::Result<()> {
        let node = self.node(id);
        if let (State::Up, Some(child)) = (node.state, &node.child) {
            signal(child, Signal::SIGSTOP)?;
            node.state = State::Paused;
        }
        Ok(())
    }

    pub fn resume(&mut self, id: i32) -> anyhow::Result<()> {
        let node = self.node(id);
        if let (State::Paused, Some(child)) = (node.state, &node.child) {
            signal(child, Signal::SIGCONT)?;
            node.state = State::Up;
        }
        Ok(())
    }

    /// The nodes that have ended although nobody has killed or stopped them, with the last lines of their logs. They
    /// count as down from then on.
    pub fn ended(&mut self) -> anyhow::Result<Vec<(i32, ExitStatus, String)>> {
        let mut ended = Vec::new();
        for (id, node) in &mut self.nodes {
            if let Some(child) = &mut node.child
                && let Some(status) = child.try_wait()?
            {
                node.child = None;
                node.state = State::Down;
                ended.push((*id, status, last_lines(&node.folder.join("log"))));
            }
        }
        Ok(ended)
    }
}

impl Drop for Db {
    fn drop(&mut self) {
        for node in self.nodes.values_mut() {
            if let Some(mut child) = node.child.take() {
                // It may have ended already, which is as well.
                let _ = child.kill();
                let _ = child.wait();
            }
        }
    }
}

fn signal(child: &Child, signal: Signal) -> anyhow::Result<()> {
    let pid = i32::try_from(child.id()).context("pids fit")?;
    kill(Pid::from_raw(pid), signal).with_context(|| format!("cannot send {signal} to process {pid}"))
}

fn configuration(member: &Member, members: &[Member], folder: &Path) -> String {
    let voter = |voter: &Member| format!("\"{}@{}/{}\"", voter.id, voter.raft, voter.api);
    let voters: Vec<String> = members.iter().map(voter).collect();
    format!(
        "node_id = {}\nroles = [\"controller\", \"broker\"]\ndata_dir = {:?}\nvoters = [{}]\napi_listen = \"{}\"\n\
         raft_listen = \"{}\"\nhttp_listen = \"\"\nlog_level = \"{LOG_LEVEL}\"\ndial_map = {:?}\n",
        member.id,
        folder.join("data"),
        voters.join(", "),
        member.api,
        member.raft,
        folder.join("dial.toml"),
    )
}

/// Enough to see why a process ended.
fn last_lines(log: &Path) -> String {
    const LINES: usize = 8;
    let text = fs::read(log).unwrap_or_default();
    let text = String::from_utf8_lossy(&text);
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(LINES)..].join("\n")
}
