//! A cluster and the verbs.

use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;
use std::process::ExitStatus;

use nix::sys::signal::Signal;
use quorate_client::{AdminClient, Options};
use tempfile::TempDir;
use tokio::sync::{Mutex, MutexGuard};

use crate::PATIENCE;
use crate::call::{Admin, Broker, admin, broker};
use crate::node::{Node, Run, read};

/// One cluster at a time: two of them on two cores would disturb each other.
static TURN: Mutex<()> = Mutex::const_new(());

/// Lines of each node's log that a failing test prints.
const LINES_SHOWN: usize = 60;

/// Raft's library says of every peer that is down, many times a second, that it is down.
const LOG_LEVEL: &str = "info,openraft=error";

/// See `main.rs` of the node.
const LEVEL_MAX_VARIABLE: &str = "QUORATE_TEST_METADATA_VERSION_MAX";

/// Nodes 1 to n, each a process with its own folder. Dropping it kills them all; if the test has failed, their logs
/// are printed.
pub struct Cluster {
    pub(crate) nodes: BTreeMap<i32, Node>,
    folder: TempDir,
    /// Without it, another cluster of the same test has the turn.
    _turn: Option<MutexGuard<'static, ()>>,
}

impl Cluster {
    /// Running, with a controller and every broker unfenced.
    pub async fn start(count: i32) -> Self {
        Self::start_with(count, &[]).await
    }

    pub async fn start_with(count: i32, settings: &[(&str, &str)]) -> Self {
        let mut cluster = Self::prepare(count, settings).await;
        cluster.restart_all();
        cluster.ready().await;
        cluster
    }

    /// Configured, and not yet started.
    pub async fn prepare(count: i32, settings: &[(&str, &str)]) -> Self {
        let turn = TURN.lock().await;
        Self::configured(Some(turn), count, settings)
    }

    /// Another cluster in the turn of this one, running.
    pub async fn start_beside(&self, count: i32) -> Self {
        let mut cluster = Self::configured(None, count, &[]);
        cluster.restart_all();
        cluster.ready().await;
        cluster
    }

    fn configured(turn: Option<MutexGuard<'static, ()>>, count: i32, settings: &[(&str, &str)]) -> Self {
        let folder = TempDir::with_prefix("quorate-test-").expect("a temporary folder can be made");
        let node = |id: i32| Node::new(folder.path().join(id.to_string()), true, settings);
        let nodes = (1..=count).map(|id| (id, node(id))).collect();
        let cluster = Self { nodes, folder, _turn: turn };
        cluster.nodes.keys().for_each(|id| cluster.write_config(*id));
        cluster
    }

    /// Adds a node that is a broker only, and does not start it.
    pub fn add_broker(&mut self, id: i32) {
        let node = Node::new(self.folder.path().join(id.to_string()), false, &[]);
        assert!(self.nodes.insert(id, node).is_none(), "node {id} exists");
        self.write_config(id);
    }

    /// As the configuration names them.
    pub fn voters(&self) -> impl Iterator<Item = String> {
        let voters = self.nodes.iter().filter(|(_, node)| node.is_voter);
        voters.map(|(id, node)| format!("{id}@{}/{}", node.raft, node.api))
    }

    fn write_config(&self, id: i32) {
        let node = self.node(id);
        let voters: Vec<String> = self.voters().map(|voter| format!("\"{voter}\"")).collect();
        let roles = if node.is_voter { "[\"controller\", \"broker\"]" } else { "[\"broker\"]" };
        let text = format!(
            "node_id = {id}\nroles = {roles}\ndata_dir = {:?}\nvoters = [{}]\napi_listen = \"{}\"\n\
             raft_listen = \"{}\"\nhttp_listen = \"{}\"\nlog_level = \"{LOG_LEVEL}\"\n",
            node.data(),
            voters.join(", "),
            node.api,
            node.raft,
            node.http,
        );
        fs::write(node.folder.join("node.toml"), text).expect("the test's folder can be written");
    }

    /// kill -9: gone from one instant to the next.
    pub fn kill(&mut self, id: i32) {
        let node = self.node_mut(id);
        node.run.take().unwrap_or_else(|| panic!("node {id} is not running")).kill();
        node.paused = false;
    }

    /// SIGTERM: leaderships and the controller's office are handed over first.
    pub async fn stop(&mut self, id: i32) -> ExitStatus {
        let node = self.node_mut(id);
        let mut run = node.run.take().unwrap_or_else(|| panic!("node {id} is not running"));
        run.signal(Signal::SIGTERM);
        run.ended(&format!("node {id} to stop after SIGTERM")).await
    }

    /// Waits until a node ends by itself, with a failure; what it printed.
    pub async fn ends(&mut self, id: i32, why: &str) -> String {
        self.node_mut(id).run.take().unwrap_or_else(|| panic!("node {id} is not running")).refused(why).await
    }

    /// SIGSTOP: it stands still, its connections stay open.
    pub fn pause(&mut self, id: i32) {
        self.run(id).signal(Signal::SIGSTOP);
        self.node_mut(id).paused = true;
    }

    /// SIGCONT.
    pub fn resume(&mut self, id: i32) {
        self.run(id).signal(Signal::SIGCONT);
        self.node_mut(id).paused = false;
    }

    /// Starts a node that is not running.
    pub fn restart(&mut self, id: i32) {
        let run = self.run_again(id, &[]);
        let node = self.node_mut(id);
        assert!(node.run.replace(run).is_none(), "node {id} was running");
    }

    /// Starts a node's command line once more, with further settings, as a process of its own.
    pub fn run_again(&self, id: i32, more: &[(&str, &str)]) -> Run {
        let node = self.node(id);
        Run::start(&node.arguments(more), &node.environment, &node.log())
    }

    /// Removes the data of a node that is not running: what a lost disk is like.
    pub fn wipe(&mut self, id: i32) {
        let node = self.node(id);
        assert!(node.run.is_none(), "node {id} is running");
        fs::remove_dir_all(node.data()).expect("the test's folder can be written");
    }

    pub fn kill_all(&mut self) {
        self.running().into_iter().for_each(|id| self.kill(id));
    }

    /// Starts every node that is not running.
    pub fn restart_all(&mut self) {
        let down: Vec<i32> = self.nodes.iter().filter(|(_, node)| node.run.is_none()).map(|(id, _)| *id).collect();
        down.into_iter().for_each(|id| self.restart(id));
    }

    /// A further setting, from its next start on.
    pub fn set(&mut self, id: i32, key: &str, value: &str) {
        self.node_mut(id).settings.push(format!("{key}={value}"));
    }

    /// Each node runs on a machine of its own, which `boot` starts again.
    pub async fn start_on_own_machines(count: i32) -> Self {
        let mut cluster = Self::prepare(count, &[]).await;
        for id in cluster.ids() {
            cluster.boot(id, "first");
            let file = cluster.boot_id_file(id);
            cluster.set(id, "boot_id_file", file.to_str().expect("paths of tests are texts"));
        }
        cluster.restart_all();
        cluster.ready().await;
        cluster
    }

    /// The machine of this node is started again, unless this is its boot already. The node is down.
    pub fn boot(&self, id: i32, boot_id: &str) {
        fs::write(self.boot_id_file(id), boot_id).expect("the test's folder can be written");
    }

    fn boot_id_file(&self, id: i32) -> PathBuf {
        self.file(&format!("boot-id-{id}"))
    }

    /// Sets a variable of the environment of a node's next processes.
    pub fn set_variable(&mut self, id: i32, name: &str, value: &str) {
        self.node_mut(id).environment.push((name.to_owned(), value.to_owned()));
    }

    /// From its next start on, the node passes for a release that supports `metadata.version` up to this level; with
    /// `None`, for the one that it is.
    pub fn set_level_max(&mut self, id: i32, level: Option<i16>) {
        self.node_mut(id).environment.retain(|(name, _)| name != LEVEL_MAX_VARIABLE);
        if let Some(level) = level {
            self.set_variable(id, LEVEL_MAX_VARIABLE, &level.to_string());
        }
    }

    /// The nodes that run and are not paused.
    pub fn running(&self) -> Vec<i32> {
        self.nodes.iter().filter(|(_, node)| node.is_up()).map(|(id, _)| *id).collect()
    }

    /// The nodes that run, but for this one.
    pub fn others(&self, id: i32) -> Vec<i32> {
        self.running().into_iter().filter(|other| *other != id).collect()
    }

    pub fn ids(&self) -> Vec<i32> {
        self.nodes.keys().copied().collect()
    }

    pub fn api(&self, id: i32) -> &str {
        &self.node(id).api
    }

    pub(crate) fn http_address(&self, id: i32) -> &str {
        &self.node(id).http
    }

    pub fn raft(&self, id: i32) -> &str {
        &self.node(id).raft
    }

    pub fn data(&self, id: i32) -> PathBuf {
        self.node(id).data()
    }

    /// What the node's current run has printed so far.
    pub fn printed(&self, id: i32) -> String {
        self.run(id).printed()
    }

    /// What all runs of the node have printed.
    pub fn log(&self, id: i32) -> String {
        read(&self.node(id).log())
    }

    /// A file of the test's own, beside the nodes' folders.
    pub fn file(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// A client that knows all nodes and retries.
    pub fn client(&self) -> AdminClient {
        self.client_of(&self.ids())
    }

    /// A client that knows these nodes.
    pub fn client_of(&self, ids: &[i32]) -> AdminClient {
        self.client_with(ids, Options { timeout: PATIENCE / 2, ..Options::default() })
    }

    pub(crate) fn client_with(&self, ids: &[i32], options: Options) -> AdminClient {
        let addresses: Vec<&str> = ids.iter().map(|id| self.api(*id)).collect();
        AdminClient::connect(&addresses, options).expect("the addresses are well formed")
    }

    /// One node's admin service, without retries.
    pub fn admin(&self, id: i32) -> Admin {
        admin(self.api(id))
    }

    /// One node's service for brokers, without retries.
    pub fn broker(&self, id: i32) -> Broker {
        broker(self.api(id))
    }

    pub(crate) fn node(&self, id: i32) -> &Node {
        self.nodes.get(&id).unwrap_or_else(|| panic!("there is no node {id}"))
    }

    fn node_mut(&mut self, id: i32) -> &mut Node {
        self.nodes.get_mut(&id).unwrap_or_else(|| panic!("there is no node {id}"))
    }

    fn run(&self, id: i32) -> &Run {
        self.node(id).run.as_ref().unwrap_or_else(|| panic!("node {id} is not running"))
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        for (id, node) in &mut self.nodes {
            node.run = None;
            if std::thread::panicking() {
                let log = read(&node.log());
                let lines: Vec<&str> = log.lines().collect();
                let shown = &lines[lines.len().saturating_sub(LINES_SHOWN)..];
                eprintln!("---- the last lines of node {id}:\n{}", shown.join("\n"));
            }
        }
    }
}
