//! A voter that fails at a named point stops with that reason, and starts again with all it acknowledged. One whose replay
//! waits goes on with consensus.
#![cfg(feature = "failpoints")]
#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;
use std::io::{self, Read, Write};
use std::net::TcpListener;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use fail::FailScenario;
use futures::future::join_all;
use quorate_client::network::Port;
use quorate_metadata::ids::{ControllerEpoch, ControllerId, Offset};
use quorate_node::machine::Workers;
use quorate_node::raft::{
    DialMap, FrozenReplica, LeaderInfo, Leadership, MemoryStore, Outcome, ProposeError, RaftConfig, RaftNode, Replica,
    ReplicaError, RocksStore, VoterAddress,
};
use tokio::time::{Instant, sleep, timeout};

const PATIENCE: Duration = Duration::from_secs(20);

struct Count(i64);

impl Replica for Count {
    fn replay(&mut self, _: ControllerEpoch, _: &Bytes) -> Result<Outcome, ReplicaError> {
        self.0 += 1;
        Ok(Outcome::Replayed { next_offset: Offset::new(self.0) })
    }

    fn publish(&mut self) {}

    fn freeze(&self) -> Box<dyn FrozenReplica> {
        Box::new(Count(self.0))
    }

    fn install(&mut self, content: &mut dyn Read) -> Result<(), ReplicaError> {
        let mut bytes = [0; 8];
        content.read_exact(&mut bytes).map_err(|error| ReplicaError(error.to_string()))?;
        self.0 = i64::from_le_bytes(bytes);
        Ok(())
    }
}

impl FrozenReplica for Count {
    fn write_to(&self, out: &mut dyn Write) -> io::Result<()> {
        out.write_all(&self.0.to_le_bytes())
    }
}

fn listen(id: i32) -> (TcpListener, VoterAddress) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let raft = listener.local_addr().unwrap().to_string();
    (listener, VoterAddress { id: ControllerId::new(id), raft, api: String::new() })
}

fn config(node: i32, voters: Vec<VoterAddress>, data: &Path) -> RaftConfig {
    RaftConfig {
        node: ControllerId::new(node),
        voters,
        data: data.to_owned(),
        cluster: None,
        dial: DialMap::none(),
        auto_format: true,
        heartbeat_ms: 50,
        election_min_ms: 150,
        election_max_ms: 300,
        fast_election: true,
        snapshot_log_bytes: 1 << 30,
        log_entries_kept: 1000,
        workers: Workers::Threads,
        level_max: 1,
    }
}

async fn start(data: &Path) -> RaftNode {
    let (listener, voter) = listen(1);
    let (config, store) = (config(1, vec![voter], data), Arc::new(RocksStore::new(data)));
    RaftNode::start(config, store, Port::Socket(listener), Box::new(Count(0))).await.unwrap()
}

/// Three voters whose disks are in memory.
struct Three {
    voters: Vec<VoterAddress>,
    stores: [MemoryStore; 3],
    running: BTreeMap<i32, RaftNode>,
}

impl Three {
    async fn start() -> Self {
        let (listeners, voters): (Vec<_>, Vec<_>) = (1..=3).map(listen).unzip();
        let stores = [(); 3].map(|()| MemoryStore::new());
        let mut three = Self { voters, stores, running: BTreeMap::new() };
        let starts = (1..).zip(listeners).map(|(id, listener)| three.start_one(id, listener));
        let started = join_all(starts).await;
        three.running = (1..).zip(started).collect();
        wait(|| three.leaders().iter().all(Option::is_some), "a leader that all know").await;
        three
    }

    async fn start_one(&self, id: i32, listener: TcpListener) -> RaftNode {
        let mut config = config(id, self.voters.clone(), Path::new(""));
        // Long enough for a machine with other work.
        (config.election_min_ms, config.election_max_ms, config.log_entries_kept) = (400, 800, 5);
        let store = self.stores[usize::try_from(id - 1).unwrap()].clone();
        RaftNode::start(config, Arc::new(store), Port::Socket(listener), Box::new(Count(0))).await.unwrap()
    }

    async fn restart(&mut self, id: i32) {
        let listener = TcpListener::bind(&self.voters[usize::try_from(id - 1).unwrap()].raft).unwrap();
        let raft = self.start_one(id, listener).await;
        self.running.insert(id, raft);
    }

    async fn stop(&mut self, id: i32) {
        self.running.remove(&id).unwrap().shutdown().await;
    }

    fn leaders(&self) -> Vec<Option<LeaderInfo>> {
        self.running.values().map(RaftNode::leader).collect()
    }

    async fn shutdown(self) {
        join_all(self.running.values().map(RaftNode::shutdown)).await;
    }
}

async fn wait(mut condition: impl FnMut() -> bool, why: &str) {
    let until = Instant::now() + PATIENCE;
    while !condition() {
        assert!(Instant::now() < until, "waited in vain for: {why}");
        sleep(Duration::from_millis(1)).await;
    }
}

async fn claim(raft: &RaftNode) -> ControllerEpoch {
    match timeout(PATIENCE, raft.leadership().recv()).await.expect("a claim in time") {
        Some(Leadership::Claimed { epoch }) => epoch,
        other => panic!("{other:?}"),
    }
}

async fn write(raft: &RaftNode, epoch: ControllerEpoch) -> Result<Outcome, ProposeError> {
    timeout(PATIENCE, raft.propose(epoch, Bytes::from_static(b"x"))).await.expect("an answer in time").unwrap()
}

async fn reason(raft: &RaftNode) -> String {
    let mut stopped = raft.stopped();
    let reason = timeout(PATIENCE, stopped.wait_for(Option::is_some)).await.expect("stopped in time").unwrap().clone();
    reason.unwrap()
}

#[tokio::test]
async fn each_point_stops_the_voter_with_its_name_and_nothing_acknowledged_is_lost() {
    // Failpoints are of the process: one test at a time.
    let _scenario = FailScenario::setup();
    let data = tempfile::tempdir().unwrap();
    let mut acknowledged = 0;
    for point in ["raft.append", "raft.flush", "raft.apply", "raft.snapshot"] {
        let raft = start(data.path()).await;
        let epoch = claim(&raft).await;
        let Ok(Outcome::Replayed { next_offset }) = write(&raft, epoch).await else { panic!("{point}: not written") };
        assert!(next_offset.get() > acknowledged, "{point}: {next_offset} after {acknowledged}");
        acknowledged = next_offset.get();
        fail::cfg(point, "return").unwrap();
        if point == "raft.snapshot" {
            assert!(raft.trigger_snapshot().await.is_err());
        } else {
            assert!(write(&raft, epoch).await.is_err(), "{point}");
        }
        let reason = reason(&raft).await;
        assert!(reason.contains(point), "{point}: {reason}");
        fail::remove(point);
        raft.shutdown().await;
    }
    // Nobody is elected whose vote is not on the disk.
    fail::cfg("raft.vote", "return").unwrap();
    let raft = start(data.path()).await;
    let reason = reason(&raft).await;
    assert!(reason.contains("raft.vote"), "{reason}");
    fail::remove("raft.vote");
    raft.shutdown().await;
}

/// More than openraft queues for a state machine by default.
const RUNS: usize = 1_100;

/// All three voters replay nothing for several election timeouts.
#[tokio::test]
async fn replay_that_waits_costs_no_leadership_and_no_commit() {
    let _scenario = FailScenario::setup();
    let three = Three::start().await;
    let known = three.leaders()[0].clone().unwrap();
    let raft = &three.running[&known.id.get()];
    let mut leadership = raft.leadership();
    let claimed = timeout(PATIENCE, leadership.recv()).await.expect("a claim in time");
    assert_eq!(claimed, Some(Leadership::Claimed { epoch: known.epoch }));

    fail::cfg("raft.replay", "pause").unwrap();
    let mut outcomes = Vec::new();
    for _ in 0..RUNS {
        let committed = raft.status().committed;
        outcomes.push(raft.propose(known.epoch, Bytes::from_static(b"x")));
        wait(|| raft.status().committed > committed, "a commit without replay").await;
    }
    let until = Instant::now() + Duration::from_millis(3 * 800);
    while Instant::now() < until {
        let confirmed = timeout(PATIENCE, raft.confirm(known.epoch)).await.expect("a majority answers in time");
        assert_eq!(confirmed.unwrap(), Ok(()));
    }
    assert!(outcomes[0].try_recv().is_err(), "a reply before the replay");
    assert_eq!(three.leaders(), vec![Some(known.clone()); 3]);
    assert!(leadership.try_recv().is_err(), "the leader has resigned");

    fail::remove("raft.replay");
    for (number, outcome) in (1..).zip(outcomes) {
        let outcome = timeout(PATIENCE, outcome).await.expect("an answer in time").unwrap();
        assert_eq!(outcome, Ok(Outcome::Replayed { next_offset: Offset::new(number) }));
    }
    three.shutdown().await;
}

#[tokio::test]
async fn a_follower_that_installs_a_snapshot_still_counts_for_the_majority() {
    let _scenario = FailScenario::setup();
    let mut three = Three::start().await;
    let known = three.leaders()[0].clone().unwrap();
    let raft = three.running[&known.id.get()].clone();
    let followers: Vec<i32> = (1..=3).filter(|id| *id != known.id.get()).collect();
    three.stop(followers[0]).await;
    for _ in 0..20 {
        write(&raft, known.epoch).await.unwrap();
    }
    let leader = usize::try_from(known.id.get() - 1).unwrap();
    // While a request to the follower is on its way, its entries are not purged: the next snapshot tries again.
    while three.stores[leader].logged(0).first <= 1 {
        write(&raft, known.epoch).await.unwrap();
        raft.trigger_snapshot().await.unwrap();
    }

    fail::cfg("raft.install", "pause").unwrap();
    three.restart(followers[0]).await;
    let installing = three.running[&followers[0]].clone();
    wait(|| installing.status().snapshot > 0, "the snapshot is received").await;
    three.stop(followers[1]).await;
    write(&raft, known.epoch).await.unwrap();
    assert!(installing.status().applied < installing.status().snapshot, "it is not installed yet");

    fail::remove("raft.install");
    wait(|| installing.status().applied == raft.status().applied, "the snapshot and what follows it are replayed")
        .await;
    three.shutdown().await;
}
