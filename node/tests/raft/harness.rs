//! Voters in this process, on real sockets.

use std::collections::BTreeMap;
use std::io::{self, Read, Write};
use std::net::TcpListener;
use std::ops::RangeInclusive;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use quorate_client::network::Port;
use quorate_metadata::ids::{ControllerEpoch, ControllerId, Offset};
use quorate_node::machine::Workers;
use quorate_node::raft::{
    DialMap, FrozenReplica, Leadership, Outcome, ProposeError, RaftConfig, RaftError, RaftNode, Replica, ReplicaError,
    RocksStore, Store, VoterAddress,
};
use tempfile::TempDir;
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep, timeout};

pub const PATIENCE: Duration = Duration::from_secs(20);

/// Keeps every payload, and which of them have been published.
#[derive(Default)]
pub struct Journal {
    refuses: bool,
    replayed: Vec<Bytes>,
    published: Arc<Mutex<Vec<Bytes>>>,
    installed: Arc<Mutex<u32>>,
}

impl Journal {
    /// Replays nothing.
    pub fn refusing() -> Self {
        Self { refuses: true, ..Self::default() }
    }
}

impl Replica for Journal {
    fn replay(&mut self, _: ControllerEpoch, payload: &Bytes) -> Result<Outcome, ReplicaError> {
        match &payload[..] {
            _ if self.refuses => return Err(ReplicaError("refused by the test".into())),
            b"poison" => return Err(ReplicaError("poisoned".into())),
            b"stale" => return Ok(Outcome::WrongEpoch),
            _ => self.replayed.push(payload.clone()),
        }
        Ok(Outcome::Replayed { next_offset: Offset::new(i64::try_from(self.replayed.len()).unwrap()) })
    }

    fn publish(&mut self) {
        let mut published = self.published.lock().unwrap();
        let known = published.len().min(self.replayed.len());
        published.extend_from_slice(&self.replayed[known..]);
    }

    fn freeze(&self) -> Box<dyn FrozenReplica> {
        Box::new(Frozen(self.replayed.clone()))
    }

    fn install(&mut self, content: &mut dyn Read) -> Result<(), ReplicaError> {
        let mut text = String::new();
        content.read_to_string(&mut text).map_err(|error| ReplicaError(error.to_string()))?;
        self.replayed = text.lines().map(|line| Bytes::copy_from_slice(line.as_bytes())).collect();
        self.published.lock().unwrap().clone_from(&self.replayed);
        *self.installed.lock().unwrap() += 1;
        Ok(())
    }
}

pub struct Frozen(Vec<Bytes>);

impl FrozenReplica for Frozen {
    fn write_to(&self, out: &mut dyn Write) -> io::Result<()> {
        self.0.iter().try_for_each(|line| out.write_all(line).and_then(|()| out.write_all(b"\n")))
    }
}

pub struct Voter {
    pub raft: RaftNode,
    pub leadership: mpsc::Receiver<Leadership>,
    pub published: Arc<Mutex<Vec<Bytes>>>,
    pub installed: Arc<Mutex<u32>>,
}

pub struct Cluster {
    pub root: TempDir,
    pub voters: Vec<VoterAddress>,
    pub running: BTreeMap<i32, Voter>,
    pub snapshot_log_bytes: u64,
    pub log_entries_kept: u64,
    pub fast_election: bool,
    pub election_ms: RangeInclusive<u64>,
}

impl Cluster {
    pub fn new(size: i32) -> Self {
        // All are held until each has its port, and bound again at the start of each voter.
        let held: Vec<TcpListener> = (0..size).map(|_| TcpListener::bind("127.0.0.1:0").unwrap()).collect();
        let voters = (1..).zip(&held).map(|(id, listener)| {
            let raft = listener.local_addr().unwrap().to_string();
            VoterAddress { id: ControllerId::new(id), raft, api: format!("api-{id}") }
        });
        let (voters, root) = (voters.collect(), tempfile::tempdir().unwrap());
        Self {
            root,
            voters,
            running: BTreeMap::new(),
            snapshot_log_bytes: 1 << 30,
            log_entries_kept: 1000,
            fast_election: true,
            election_ms: 150..=300,
        }
    }

    /// For tests in which nobody is to lose his office: a disk or a process that stands still for a second costs none.
    pub fn calm(size: i32) -> Self {
        let mut cluster = Self::new(size);
        cluster.election_ms = 1_000..=2_000;
        cluster
    }

    pub async fn formed(size: i32) -> Self {
        let mut cluster = Self::new(size);
        cluster.start_all().await;
        cluster
    }

    /// All have replayed the line `before`, and one of the followers has stopped.
    pub async fn with_stopped_follower() -> (Self, i32) {
        let mut cluster = Self::calm(3);
        cluster.start_all().await;
        cluster.write("before").await;
        cluster.wait_equal(1).await;
        let (leader, _) = cluster.leader().await;
        let follower = (1..=3).find(|id| *id != leader).unwrap();
        cluster.stop(follower).await;
        (cluster, follower)
    }

    pub async fn start_all(&mut self) {
        let ids: Vec<i32> = self.voters.iter().map(|voter| voter.id.get()).collect();
        let started = futures::future::join_all(ids.iter().map(|id| start(self.config(*id), self.address(*id)))).await;
        for (id, voter) in ids.into_iter().zip(started) {
            self.running.insert(id, voter.unwrap());
        }
    }

    pub fn data(&self, id: i32) -> PathBuf {
        self.root.path().join(format!("node-{id}"))
    }

    pub fn address(&self, id: i32) -> String {
        self.voters.iter().find(|voter| voter.id.get() == id).unwrap().raft.clone()
    }

    pub fn config(&self, id: i32) -> RaftConfig {
        RaftConfig {
            node: ControllerId::new(id),
            voters: self.voters.clone(),
            data: self.data(id),
            cluster: None,
            dial: DialMap::none(),
            auto_format: true,
            heartbeat_ms: 50,
            election_min_ms: *self.election_ms.start(),
            election_max_ms: *self.election_ms.end(),
            fast_election: self.fast_election,
            snapshot_log_bytes: self.snapshot_log_bytes,
            log_entries_kept: self.log_entries_kept,
            workers: Workers::Threads,
            level_max: 1,
        }
    }

    pub async fn restart(&mut self, id: i32) {
        let voter = start(self.config(id), self.address(id)).await.unwrap();
        self.running.insert(id, voter);
    }

    pub async fn stop(&mut self, id: i32) {
        self.running.remove(&id).unwrap().raft.shutdown().await;
    }

    pub async fn stop_all(&mut self) {
        for id in self.running.keys().copied().collect::<Vec<_>>() {
            self.stop(id).await;
        }
    }

    /// The leader that all running voters agree on, and its epoch.
    pub async fn leader(&self) -> (i32, ControllerEpoch) {
        let agreed = || {
            let mut views = self.running.values().map(|voter| voter.raft.leader());
            let first = views.next()??;
            let known = self.running.contains_key(&first.id.get());
            (known && views.all(|view| view.as_ref() == Some(&first))).then_some((first.id.get(), first.epoch))
        };
        let mut found = None;
        let is_agreed = || {
            found = agreed();
            found.is_some()
        };
        wait(is_agreed, "one leader").await;
        found.unwrap()
    }

    /// Proposes through whoever leads until it is replayed there.
    pub async fn write(&self, payload: &str) -> Offset {
        let until = Instant::now() + PATIENCE;
        loop {
            let (leader, epoch) = self.leader().await;
            match propose(&self.running[&leader].raft, epoch, payload).await {
                Ok(Outcome::Replayed { next_offset }) => return next_offset,
                other => assert!(Instant::now() < until, "{payload} was not written: {other:?}"),
            }
            sleep(Duration::from_millis(5)).await;
        }
    }

    pub fn lines(&self, id: i32) -> Vec<Bytes> {
        self.running[&id].published.lock().unwrap().clone()
    }

    pub async fn wait_equal(&self, count: usize) {
        let equal = || self.running.keys().all(|id| self.lines(*id).len() == count);
        wait(equal, "all voters replayed everything").await;
        let first = self.lines(*self.running.keys().next().unwrap());
        assert!(self.running.keys().all(|id| self.lines(*id) == first));
    }
}

/// A process that ends while its databases are closing may abort in their code.
impl Drop for Cluster {
    fn drop(&mut self) {
        let running = std::mem::take(&mut self.running);
        let shutdowns = async move {
            for voter in running.values() {
                voter.raft.shutdown().await;
            }
        };
        // A thread of its own: this one is inside a runtime.
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        std::thread::spawn(move || runtime.block_on(shutdowns)).join().unwrap();
    }
}

pub async fn start(config: RaftConfig, address: String) -> Result<Voter, RaftError> {
    let store = RocksStore::new(&config.data);
    start_on(store, config, address).await
}

pub async fn start_on(store: impl Store, config: RaftConfig, address: String) -> Result<Voter, RaftError> {
    let journal = Journal::default();
    let (published, installed) = (journal.published.clone(), journal.installed.clone());
    let raft = start_replica(store, config, address, Box::new(journal)).await?;
    let leadership = raft.leadership();
    Ok(Voter { raft, leadership, published, installed })
}

pub async fn start_replica(
    store: impl Store,
    config: RaftConfig,
    address: String,
    replica: Box<dyn Replica>,
) -> Result<RaftNode, RaftError> {
    let port = Port::Socket(listen(&address).await);
    timeout(PATIENCE, RaftNode::start(config, Arc::new(store), port, replica)).await.expect("started in time")
}

pub async fn listen(address: &str) -> TcpListener {
    let until = Instant::now() + PATIENCE;
    loop {
        match TcpListener::bind(address) {
            Ok(listener) => return listener,
            Err(error) => assert!(Instant::now() < until, "{address}: {error}"),
        }
        sleep(Duration::from_millis(10)).await;
    }
}

pub async fn propose(raft: &RaftNode, epoch: ControllerEpoch, payload: &str) -> Result<Outcome, ProposeError> {
    timeout(PATIENCE, raft.propose(epoch, Bytes::copy_from_slice(payload.as_bytes()))).await.expect("answered").unwrap()
}

pub async fn wait(mut condition: impl FnMut() -> bool, why: &str) {
    let until = Instant::now() + PATIENCE;
    while !condition() {
        assert!(Instant::now() < until, "waited in vain for: {why}");
        sleep(Duration::from_millis(2)).await;
    }
}
