//! The cluster under test: real `quorate-node` processes, each with its own folder, started and broken from outside.

mod configuration;
#[cfg(test)]
pub mod fixture;
mod surroundings;

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::{OsStr, OsString};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::time::Duration;

use anyhow::{Context, bail, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tokio::time::{Instant, sleep};

use crate::clock::{self, Clock};
use crate::crowd::{self, Crowd};
use crate::disk::{self, Cut, Disk, Mode};
use crate::link::Member;
use crate::memory::Limiter;
use crate::nemesis::Fault;
use crate::network::{Layer, Network};
use crate::stderr::Stderr;
pub use configuration::without_settings;
use configuration::{boot, configuration};

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
    pub layer: Layer,
    /// Whether clocks will be set: what that takes has a price.
    pub sets_clocks: bool,
    /// Whether memory will be limited: then each node runs in a control group.
    pub limits_memory: bool,
    /// The most connections that say nothing to a node: if any, nodes may have few descriptors.
    pub silent_sockets: u64,
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
    /// Where it says what it counts.
    http: String,
    folder: PathBuf,
    child: Option<Child>,
    state: State,
    /// The process that runs registers its broker after this metadata offset.
    since: i64,
    /// None where there is no shim.
    disk: Option<Disk>,
    /// None where clocks cannot be set, or will not be.
    clock: Option<Clock>,
    /// What it is limited to.
    memory: Option<u64>,
    /// Of its process, if it has one.
    stderr: Stderr,
    crowd: Option<Crowd>,
}

impl Node {
    /// What is preloaded into its process, and what that needs to know.
    fn environment(&self) -> Vec<(&'static str, OsString)> {
        let libraries = self.disk.iter().map(Disk::shim).chain(self.clock.iter().map(Clock::library));
        let preloaded: Vec<&OsStr> = libraries.map(Path::as_os_str).collect();
        let mut variables = vec![("LD_PRELOAD", preloaded.join(OsStr::new(":")))];
        variables.extend(self.disk.iter().flat_map(Disk::environment));
        variables.extend(self.clock.iter().flat_map(Clock::environment));
        variables
    }
}

/// The nodes, and the links between them. Dropping it kills them all.
pub struct Db {
    layout: Layout,
    nodes: BTreeMap<i32, Node>,
    pub network: Network,
    /// Or why memory cannot be limited.
    limiter: Result<Limiter, String>,
    /// Why disks cannot be broken, where they cannot.
    pub no_shim: Option<String>,
    /// Why clocks cannot be set, where they cannot.
    pub no_clock: Option<String>,
    /// Why descriptors cannot be used up, where they cannot.
    no_crowd: Option<String>,
}

impl Db {
    /// Writes the configurations. Starts nothing yet.
    pub fn prepare(layout: Layout) -> anyhow::Result<Self> {
        let binary = layout.binaries.join("quorate-node");
        ensure!(binary.exists(), "{} is missing: build it first: cargo build --bins", binary.display());
        let members: Vec<Member> = (1..=layout.nodes).map(|id| layout.layer.member(id)).collect();
        let network = Network::between(layout.layer, &members)?;
        fs::create_dir_all(&layout.folder)?;
        let shim = disk::compile_shim(&layout.folder);
        let library = match layout.sets_clocks {
            true => clock::find_library(),
            false => Err("no clock was to be set when the nodes were started".to_owned()),
        };
        let mut nodes = BTreeMap::new();
        for member in &members {
            let folder = layout.folder.join(format!("node-{}", member.id));
            fs::create_dir_all(&folder).with_context(|| format!("cannot make {}", folder.display()))?;
            let dial_map = network.dial_maps().map(|maps| &maps[&member.id]);
            let http = layout.layer.http(member.id);
            boot(&folder)?;
            fs::write(folder.join("node.toml"), configuration(member, &members, &folder, &http, dial_map)?)?;
            let disk = match &shim {
                Ok(shim) => Some(Disk::prepare(shim, &folder, &folder.join("data"))?),
                Err(_) => None,
            };
            let clock = library.as_ref().ok().map(|library| Clock::prepare(library, &folder)).transpose()?;
            let (member, state) = (member.clone(), State::Down);
            let (stderr, crowd) = (Stderr::File, None);
            let node =
                Node { member, http, folder, child: None, state, since: -1, disk, clock, memory: None, stderr, crowd };
            nodes.insert(node.member.id, node);
        }
        let limiter = match layout.limits_memory {
            true => Limiter::find(),
            false => Err("no memory was to be limited when the nodes were started".to_owned()),
        };
        let no_crowd = match layout.silent_sockets {
            0 => Some("no descriptors were to be used up when the nodes were started".to_owned()),
            sockets => crowd::make_room(sockets).err(),
        };
        let db = Self { layout, nodes, network, limiter, no_shim: shim.err(), no_clock: library.err(), no_crowd };
        // Voters on loopback do that themselves.
        if db.network.is_open() {
            db.format()?;
        }
        Ok(db)
    }

    pub fn binary(&self) -> PathBuf {
        self.layout.binaries.join("quorate-node")
    }

    /// Why that cannot be done here, if it cannot.
    pub fn cannot(&self, fault: &Fault) -> Option<String> {
        match fault {
            fault if fault.needs_shim() => self.no_shim.clone(),
            fault if fault.needs_clock() => self.no_clock.clone(),
            fault if fault.needs_limits() => self.limiter.as_ref().err().cloned(),
            fault if fault.sockets() > 0 => self.no_crowd.clone(),
            Fault::SwapStderr { stderr, .. } => stderr.cannot(),
            fault => fault.condition().and_then(|condition| self.network.cannot(condition)),
        }
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
        let (binary, settings) = (self.binary(), self.layout.settings.clone());
        let mut command = match self.no_crowd {
            Some(_) => self.network.command(id, &binary),
            None => crowd::limited(self.network.command(id, Path::new("sh")), crowd::NODE_DESCRIPTORS, &binary),
        };
        let node = self.nodes.get_mut(&id).expect("targets are nodes of this cluster");
        if node.state != State::Down {
            return Ok(());
        }
        let log = node.folder.join("log");
        command.arg("run").arg("--config").arg(node.folder.join("node.toml"));
        for setting in settings {
            command.arg("--set").arg(setting);
        }
        without_settings(&mut command);
        command.envs(node.environment());
        command.stdin(Stdio::null()).stdout(Stderr::File.open(&log)?);
        command.stderr(node.stderr.open(&log).context("cannot give a node its stderr")?);
        let child = node.child.insert(command.spawn().with_context(|| format!("cannot start {}", binary.display()))?);
        (node.state, node.since) = (State::Up, offset);
        self.limiter.as_ref().map_or(Ok(()), |limiter| limiter.enter(id, child.id()))
    }

    /// Where the metadata log ended, as far as anybody was told, when the process of this node was started: an older
    /// registration is of an earlier one.
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

    /// The clock of this node is wrong by so much from now on.
    pub fn set_clock(&self, id: i32, offset_ms: i64) -> anyhow::Result<()> {
        if let Some(clock) = &self.nodes[&id].clock {
            clock.set(offset_ms).with_context(|| format!("cannot set the clock of node {id}"))?;
        }
        Ok(())
    }

    /// How much memory this node may have from now on.
    pub fn limit_memory(&mut self, id: i32, mebibytes: Option<u64>) -> anyhow::Result<()> {
        let node = self.nodes.get_mut(&id).expect("targets are nodes of this cluster");
        if let Ok(limiter) = &self.limiter
            && node.memory != mebibytes
        {
            limiter.limit(id, mebibytes)?;
            node.memory = mebibytes;
        }
        Ok(())
    }

    /// How many processes of this node were killed because they had no memory left.
    pub fn kills_for_memory(&self, id: i32) -> anyhow::Result<u64> {
        self.limiter.as_ref().map_or(Ok(0), |limiter| limiter.kills(id))
    }

    /// What a node that is down says of its metadata `log` or its `vote`.
    pub fn inspect(&self, id: i32, what: &str) -> anyhow::Result<Output> {
        ensure!(self.is_down(id), "node {id} still runs");
        let mut command = Command::new(self.binary());
        command.arg("inspect").arg("--data").arg(self.data(id)).arg(what).output().context("cannot start quorate-node")
    }

    pub fn folder(&self, id: i32) -> &Path {
        &self.nodes[&id].folder
    }

    /// Takes from a node that is down what was not synced.
    pub fn cut_power(&mut self, id: i32) -> anyhow::Result<Cut> {
        let node = self.node(id);
        ensure!(node.state == State::Down, "node {id} still runs");
        let disk = node.disk.as_ref().context("there is no shim")?;
        let cut = disk.cut_power().with_context(|| format!("cannot cut the files of node {id}"))?;
        boot(&node.folder)?;
        Ok(cut)
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

pub fn signal(child: &Child, signal: Signal) -> anyhow::Result<()> {
    let pid = i32::try_from(child.id()).context("pids fit")?;
    kill(Pid::from_raw(pid), signal).with_context(|| format!("cannot send {signal} to process {pid}"))
}

/// Enough to see why a process ended.
fn last_lines(log: &Path) -> String {
    const LINES: usize = 8;
    let text = fs::read(log).unwrap_or_default();
    let text = String::from_utf8_lossy(&text);
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(LINES)..].join("\n")
}
