//! Three voters in one process, on real sockets and real disks.

use std::collections::BTreeMap;
use std::io::{self, Read, Write};
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use quorate_metadata::ids::{ClusterId, ControllerEpoch, ControllerId, Offset};
use quorate_node::raft::{
    self, DialMap, FrozenReplica, Leadership, MemoryStore, Outcome, ProposeError, RaftConfig, RaftError, RaftNode,
    Replica, ReplicaError, RocksStore, Store, VoterAddress, VoterState,
};
use tempfile::TempDir;
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep, timeout};

const PATIENCE: Duration = Duration::from_secs(20);

/// Keeps every payload, and which of them have been published.
#[derive(Default)]
struct Journal {
    replayed: Vec<Bytes>,
    published: Arc<Mutex<Vec<Bytes>>>,
    installed: Arc<Mutex<u32>>,
}

impl Replica for Journal {
    fn replay(&mut self, _: ControllerEpoch, payload: &Bytes) -> Result<Outcome, ReplicaError> {
        match &payload[..] {
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

struct Frozen(Vec<Bytes>);

impl FrozenReplica for Frozen {
    fn write_to(&self, out: &mut dyn Write) -> io::Result<()> {
        self.0.iter().try_for_each(|line| out.write_all(line).and_then(|()| out.write_all(b"\n")))
    }
}

struct Voter {
    raft: RaftNode,
    leadership: mpsc::Receiver<Leadership>,
    published: Arc<Mutex<Vec<Bytes>>>,
    installed: Arc<Mutex<u32>>,
}

struct Cluster {
    root: TempDir,
    voters: Vec<VoterAddress>,
    running: BTreeMap<i32, Voter>,
    snapshot_log_bytes: u64,
    log_entries_kept: u64,
    fast_election: bool,
}

impl Cluster {
    fn new(size: i32) -> Self {
        // The listeners are dropped here and bound again at the start of each voter.
        let voters = (1..=size).map(|id| {
            let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
            VoterAddress { id: ControllerId::new(id), raft: format!("127.0.0.1:{port}"), api: format!("api-{id}") }
        });
        let (voters, root) = (voters.collect(), tempfile::tempdir().unwrap());
        Self {
            root,
            voters,
            running: BTreeMap::new(),
            snapshot_log_bytes: 1 << 30,
            log_entries_kept: 1000,
            fast_election: true,
        }
    }

    async fn formed(size: i32) -> Self {
        let mut cluster = Self::new(size);
        cluster.start_all().await;
        cluster
    }

    async fn start_all(&mut self) {
        let ids: Vec<i32> = self.voters.iter().map(|voter| voter.id.get()).collect();
        let started = futures::future::join_all(ids.iter().map(|id| start(self.config(*id), self.address(*id)))).await;
        for (id, voter) in ids.into_iter().zip(started) {
            self.running.insert(id, voter.unwrap());
        }
    }

    fn data(&self, id: i32) -> PathBuf {
        self.root.path().join(format!("node-{id}"))
    }

    fn address(&self, id: i32) -> String {
        self.voters.iter().find(|voter| voter.id.get() == id).unwrap().raft.clone()
    }

    fn config(&self, id: i32) -> RaftConfig {
        RaftConfig {
            node: ControllerId::new(id),
            voters: self.voters.clone(),
            data: self.data(id),
            cluster: None,
            dial: DialMap::none(),
            auto_format: true,
            heartbeat_ms: 50,
            election_min_ms: 150,
            election_max_ms: 300,
            fast_election: self.fast_election,
            snapshot_log_bytes: self.snapshot_log_bytes,
            log_entries_kept: self.log_entries_kept,
        }
    }

    async fn restart(&mut self, id: i32) {
        let voter = start(self.config(id), self.address(id)).await.unwrap();
        self.running.insert(id, voter);
    }

    async fn stop(&mut self, id: i32) {
        self.running.remove(&id).unwrap().raft.shutdown().await;
    }

    async fn stop_all(&mut self) {
        for id in self.running.keys().copied().collect::<Vec<_>>() {
            self.stop(id).await;
        }
    }

    /// The leader that all running voters agree on, and its epoch.
    async fn leader(&self) -> (i32, ControllerEpoch) {
        let agreed = || {
            let mut views = self.running.values().map(|voter| voter.raft.leader());
            let first = views.next()??;
            let known = self.running.contains_key(&first.id.get());
            (known && views.all(|view| view.as_ref() == Some(&first))).then_some((first.id.get(), first.epoch))
        };
        wait(|| agreed().is_some(), "one leader").await;
        agreed().unwrap()
    }

    /// Proposes through whoever leads until it is replayed there.
    async fn write(&self, payload: &str) -> Offset {
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

    fn lines(&self, id: i32) -> Vec<Bytes> {
        self.running[&id].published.lock().unwrap().clone()
    }

    async fn wait_equal(&self, count: usize) {
        let equal = || self.running.keys().all(|id| self.lines(*id).len() == count);
        wait(equal, "all voters replayed everything").await;
        let first = self.lines(*self.running.keys().next().unwrap());
        assert!(self.running.keys().all(|id| self.lines(*id) == first));
    }
}

async fn start(config: RaftConfig, address: String) -> Result<Voter, RaftError> {
    let store = RocksStore::new(&config.data);
    start_on(store, config, address).await
}

async fn start_on(store: impl Store, config: RaftConfig, address: String) -> Result<Voter, RaftError> {
    let journal = Journal::default();
    let (published, installed) = (journal.published.clone(), journal.installed.clone());
    let listener = listen(&address).await;
    let raft = timeout(PATIENCE, RaftNode::start(config, store, listener, Box::new(journal)))
        .await
        .expect("started in time")?;
    let leadership = raft.leadership();
    Ok(Voter { raft, leadership, published, installed })
}

async fn listen(address: &str) -> TcpListener {
    let until = Instant::now() + PATIENCE;
    loop {
        match TcpListener::bind(address) {
            Ok(listener) => return listener,
            Err(error) => assert!(Instant::now() < until, "{address}: {error}"),
        }
        sleep(Duration::from_millis(10)).await;
    }
}

async fn propose(raft: &RaftNode, epoch: ControllerEpoch, payload: &str) -> Result<Outcome, ProposeError> {
    timeout(PATIENCE, raft.propose(epoch, Bytes::copy_from_slice(payload.as_bytes()))).await.expect("answered").unwrap()
}

async fn wait(condition: impl Fn() -> bool, why: &str) {
    let until = Instant::now() + PATIENCE;
    while !condition() {
        assert!(Instant::now() < until, "waited in vain for: {why}");
        sleep(Duration::from_millis(2)).await;
    }
}

#[tokio::test]
async fn three_voters_elect_one_leader_and_replay_the_same() {
    let cluster = Cluster::formed(3).await;
    for number in 0..20 {
        cluster.write(&format!("line {number}")).await;
    }
    cluster.wait_equal(20).await;
    let ids: Vec<ClusterId> = cluster.running.values().map(|voter| voter.raft.cluster()).collect();
    assert!(ids.iter().all(|id| *id == ids[0]));
}

#[tokio::test]
async fn one_voter_alone_is_a_cluster() {
    let mut cluster = Cluster::formed(1).await;
    assert_eq!(cluster.write("alone").await, Offset::new(1));
    cluster.stop(1).await;
    cluster.restart(1).await;
    cluster.write("again").await;
    assert_eq!(cluster.lines(1), ["alone", "again"]);
}

#[tokio::test]
async fn proposals_keep_their_order_and_need_the_claimed_epoch() {
    let cluster = Cluster::formed(3).await;
    let (leader, epoch) = cluster.leader().await;
    let raft = &cluster.running[&leader].raft;
    cluster.write("first").await;
    let outcomes: Vec<_> = (0..100).map(|number| raft.propose(epoch, format!("{number:03}").into())).collect();
    for (number, outcome) in outcomes.into_iter().enumerate() {
        let next_offset = Offset::new(i64::try_from(number).unwrap() + 2);
        assert_eq!(outcome.await.unwrap(), Ok(Outcome::Replayed { next_offset }));
    }
    let lines = cluster.lines(leader);
    assert!(lines.is_sorted_by_key(|line| (line != "first", line.clone())));
    assert_eq!(propose(raft, epoch, "stale").await, Ok(Outcome::WrongEpoch));
    let old = ControllerEpoch::new(epoch.get() - 1);
    assert_eq!(propose(raft, old, "late").await, Err(ProposeError::NotLeader));
    let follower = cluster.running.keys().find(|id| **id != leader).unwrap();
    assert_eq!(propose(&cluster.running[follower].raft, epoch, "elsewhere").await, Err(ProposeError::NotLeader));
    let huge = raft.propose(epoch, vec![0; 5 << 20].into()).await.unwrap();
    assert_eq!(huge, Err(ProposeError::TooLarge { bytes: 5 << 20 }));
}

#[tokio::test]
async fn a_barrier_on_any_voter_shows_what_was_acknowledged_before() {
    let cluster = Cluster::formed(3).await;
    for number in 0..50 {
        let line = format!("line {number}");
        cluster.write(&line).await;
        for (id, voter) in &cluster.running {
            voter.raft.read_barrier(PATIENCE).await.unwrap();
            assert!(cluster.lines(*id).contains(&Bytes::from(line.clone())), "voter {id} lacks {line}");
        }
    }
}

#[tokio::test]
async fn without_a_majority_nothing_is_read_or_written_and_all_resumes_with_it() {
    let mut cluster = Cluster::formed(3).await;
    cluster.write("before").await;
    let (leader, epoch) = cluster.leader().await;
    for id in cluster.running.keys().copied().filter(|id| *id != leader).collect::<Vec<_>>() {
        cluster.stop(id).await;
    }
    let raft = cluster.running[&leader].raft.clone();
    assert!(raft.read_barrier(Duration::from_millis(500)).await.is_err());
    let pending = raft.propose(epoch, "during".into());
    let silent = timeout(Duration::from_millis(500), pending).await;
    assert!(!matches!(silent, Ok(Ok(Ok(Outcome::Replayed { .. })))), "{silent:?}");
    let stopped: Vec<i32> = (1..=3).filter(|id| *id != leader).collect();
    cluster.restart(stopped[0]).await;
    cluster.write("after").await;
    raft.read_barrier(PATIENCE).await.unwrap();
}

#[tokio::test]
async fn a_restarted_voter_replays_its_log_and_catches_up() {
    let mut cluster = Cluster::formed(3).await;
    for number in 0..10 {
        cluster.write(&format!("line {number}")).await;
    }
    let (leader, _) = cluster.leader().await;
    let follower = (1..=3).find(|id| *id != leader).unwrap();
    cluster.stop(follower).await;
    for number in 10..20 {
        cluster.write(&format!("line {number}")).await;
    }
    cluster.restart(follower).await;
    cluster.wait_equal(20).await;
    assert_eq!(*cluster.running[&follower].installed.lock().unwrap(), 0);
    cluster.stop_all().await;
    cluster.start_all().await;
    cluster.write("line 20").await;
    cluster.wait_equal(21).await;
}

#[tokio::test]
async fn a_voter_that_the_log_was_trimmed_past_catches_up_by_snapshot() {
    let mut cluster = Cluster::new(3);
    (cluster.snapshot_log_bytes, cluster.log_entries_kept) = (4 << 20, 5);
    cluster.start_all().await;
    cluster.write("first").await;
    let (leader, _) = cluster.leader().await;
    let follower = (1..=3).find(|id| *id != leader).unwrap();
    cluster.stop(follower).await;
    // Three megabytes a line: two of them make a snapshot due, and the whole takes several chunks.
    for number in 0..4 {
        cluster.write(&format!("{number}{}", "x".repeat(3 << 20))).await;
    }
    let (leader, _) = cluster.leader().await;
    let raft = cluster.running[&leader].raft.clone();
    wait(|| raft.status().snapshot > 0, "a snapshot by size").await;
    for number in 0..10 {
        cluster.write(&format!("line {number}")).await;
    }
    raft.trigger_snapshot().await.unwrap();
    let (leader, _) = cluster.leader().await;
    let first = || raft::dump_log(&cluster.data(leader)).unwrap().next().unwrap().unwrap().index;
    wait(|| first() > 10, "the log is trimmed").await;
    cluster.restart(follower).await;
    cluster.write("last").await;
    cluster.wait_equal(16).await;
    assert_eq!(*cluster.running[&follower].installed.lock().unwrap(), 1);
    // The received snapshot is the one it starts from.
    cluster.stop(follower).await;
    cluster.restart(follower).await;
    cluster.wait_equal(16).await;
}

#[tokio::test]
async fn leadership_moves_on_request_and_is_told_alternating() {
    let mut cluster = Cluster::formed(3).await;
    cluster.write("before").await;
    let (leader, epoch) = cluster.leader().await;
    let next = (1..=3).find(|id| *id != leader).unwrap();
    cluster.running[&leader].raft.transfer_leadership(Some(ControllerId::new(next))).await.unwrap();
    wait(|| cluster.running[&next].raft.leader().is_some_and(|info| info.id.get() == next), "the chosen successor")
        .await;
    let old = &mut cluster.running.get_mut(&leader).unwrap().leadership;
    assert_eq!(timeout(PATIENCE, old.recv()).await.unwrap(), Some(Leadership::Claimed { epoch }));
    assert_eq!(timeout(PATIENCE, old.recv()).await.unwrap(), Some(Leadership::Resigned));
    let new = &mut cluster.running.get_mut(&next).unwrap().leadership;
    assert!(
        matches!(timeout(PATIENCE, new.recv()).await.unwrap(), Some(Leadership::Claimed { epoch: newer }) if newer > epoch)
    );
    cluster.write("after").await;
    cluster.wait_equal(2).await;
}

#[tokio::test]
async fn a_stopped_leader_is_replaced_long_before_its_lease_ends() {
    let mut cluster = Cluster::formed(3).await;
    cluster.write("before").await;
    cluster.wait_equal(1).await;
    let (leader, epoch) = cluster.leader().await;
    cluster.stop(leader).await;
    let stopped = Instant::now();
    let (_, newer) = cluster.leader().await;
    println!("new leader after {:?}", stopped.elapsed());
    assert!(newer > epoch);
    cluster.write("after").await;
}

#[tokio::test]
async fn a_wiped_disk_under_an_old_id_is_refused_by_name() {
    let mut cluster = Cluster::formed(3).await;
    cluster.write("before").await;
    for id in [1, 3] {
        cluster.stop(id).await;
        std::fs::remove_dir_all(cluster.data(id)).unwrap();
        let refused = start(cluster.config(id), cluster.address(id)).await.err().expect("refused");
        assert!(matches!(&refused, RaftError::InvalidVoterKey { node, .. } if node.get() == id), "{refused}");
        assert!(refused.to_string().contains(&format!("node {id} is a voter with directory")), "{refused}");
        if id == 1 {
            break;
        }
    }
    // The two others go on without it.
    cluster.write("after").await;
}

#[tokio::test]
async fn a_node_of_another_cluster_is_refused() {
    let mut cluster = Cluster::formed(3).await;
    cluster.write("before").await;
    cluster.stop(3).await;
    std::fs::remove_dir_all(cluster.data(3)).unwrap();
    let mut config = cluster.config(3);
    config.cluster = Some(ClusterId::from_bytes([9; 16]));
    let refused = start(config, cluster.address(3)).await.err().expect("refused").to_string();
    assert!(refused.contains("INCONSISTENT_CLUSTER_ID"), "{refused}");
    let mut config = cluster.config(1);
    cluster.stop(1).await;
    config.cluster = Some(ClusterId::from_bytes([9; 16]));
    let refused = start(config, cluster.address(1)).await.err().expect("refused");
    assert!(matches!(refused, RaftError::InconsistentClusterId(_)), "{refused}");
}

#[tokio::test]
async fn an_unformatted_disk_needs_leave_and_a_disk_has_one_process() {
    let cluster = Cluster::formed(1).await;
    let mut strict = cluster.config(1);
    (strict.auto_format, strict.data) = (false, cluster.root.path().join("empty"));
    let refused = start(strict, "127.0.0.1:0".into()).await.err().expect("refused");
    assert!(matches!(refused, RaftError::NotFormatted { .. }), "{refused}");
    assert!(!cluster.root.path().join("empty").exists());
    let locked = start(cluster.config(1), "127.0.0.1:0".into()).await.err().expect("refused");
    assert!(matches!(locked, RaftError::DataLocked { .. }), "{locked}");
}

#[tokio::test]
async fn a_second_node_with_a_taken_id_is_refused() {
    let cluster = Cluster::formed(3).await;
    cluster.write("before").await;
    let mut twin = cluster.config(2);
    twin.data = cluster.root.path().join("twin");
    let refused = start(twin, "127.0.0.1:0".into()).await.err().expect("refused");
    assert!(matches!(refused, RaftError::InvalidVoterKey { .. }), "{refused}");
    cluster.write("after").await;
}

#[tokio::test]
async fn voters_wait_for_each_other_before_they_form_a_cluster() {
    let mut cluster = Cluster::new(3);
    let early = |id| timeout(Duration::from_secs(1), start(cluster.config(id), cluster.address(id)));
    let (first, second) = tokio::join!(early(1), early(2));
    assert!(first.is_err() && second.is_err(), "two of three must not form a cluster");
    cluster.start_all().await;
    cluster.write("all").await;
}

#[tokio::test]
async fn what_cannot_be_replayed_stops_the_voter_with_the_reason() {
    let cluster = Cluster::formed(1).await;
    let (_, epoch) = cluster.leader().await;
    let raft = &cluster.running[&1].raft;
    assert!(propose(raft, epoch, "poison").await.is_err());
    let mut stopped = raft.stopped();
    let reason = timeout(PATIENCE, stopped.wait_for(Option::is_some)).await.unwrap().unwrap().clone().unwrap();
    assert!(reason.contains("poisoned"), "{reason}");
    assert_eq!(propose(raft, epoch, "late").await, Err(ProposeError::Stopped));
}

#[tokio::test]
async fn a_moved_dial_map_moves_the_connections() {
    let mut cluster = Cluster::new(3);
    let map = cluster.root.path().join("dial.toml");
    std::fs::write(&map, "").unwrap();
    let starts = (1..=3).map(|id| {
        let mut config = cluster.config(id);
        // Only voter 1 looks through the map.
        if id == 1 {
            config.dial = DialMap::file(&map).unwrap();
        }
        start(config, cluster.address(id))
    });
    for (id, voter) in (1..).zip(futures::future::join_all(starts).await) {
        cluster.running.insert(id, voter.unwrap());
    }
    cluster.write("before").await;
    make_leader(&cluster, 1).await;
    let (_, epoch) = cluster.leader().await;
    write_map(&map, 3, "127.0.0.1:1");
    cluster.write("without 3").await;
    let raft = cluster.running[&1].raft.clone();
    let state = || raft.status().voters.iter().find(|voter| voter.id.get() == 3).map(|voter| voter.state);
    wait(|| state() == Some(VoterState::Unreachable), "voter 3 unreachable from the leader").await;
    write_map(&map, 3, &cluster.address(3));
    cluster.write("with 3").await;
    cluster.wait_equal(3).await;
    // A stream that breaks while the leader's port answers is no reason to elect. Voter 3 had none from the leader for
    // longer than its election timeout, but no voter listens to it while the leader is well.
    assert_eq!(cluster.leader().await, (1, epoch));
}

async fn make_leader(cluster: &Cluster, id: i32) {
    let (leader, _) = cluster.leader().await;
    if leader != id {
        cluster.running[&leader].raft.transfer_leadership(Some(ControllerId::new(id))).await.unwrap();
    }
    wait(
        || cluster.running.values().all(|voter| voter.raft.leader().is_some_and(|info| info.id.get() == id)),
        "leader",
    )
    .await;
}

fn write_map(path: &Path, peer: i32, address: &str) {
    std::fs::write(path, format!("[peers]\n{peer} = {{ raft = \"{address}\" }}\n")).unwrap();
}

#[tokio::test]
async fn a_data_directory_can_be_read_while_and_after_the_node_runs() {
    let mut cluster = Cluster::formed(1).await;
    cluster.write("one").await;
    cluster.write("two").await;
    cluster.running[&1].raft.trigger_snapshot().await.unwrap();
    let data = cluster.data(1);
    let payloads = || {
        let entries = raft::dump_log(&data).unwrap().map(|entry| entry.unwrap());
        entries.filter(|entry| entry.kind == raft::EntryKind::Normal).map(|entry| entry.payload).collect::<Vec<_>>()
    };
    assert_eq!(payloads(), ["one", "two"]);
    cluster.stop(1).await;
    assert_eq!(payloads(), ["one", "two"]);
    let vote = raft::dump_vote(&data).unwrap().unwrap();
    assert!(vote.leads && vote.voted_for.get() == 1);
    let mut content = String::new();
    raft::dump_snapshot(&data).unwrap().unwrap().content.read_to_string(&mut content).unwrap();
    assert_eq!(content, "one\ntwo\n");
}

#[tokio::test]
async fn a_power_cut_of_all_voters_loses_nothing_acknowledged() {
    let mut cluster = Cluster::new(3);
    let stores = [(); 3].map(|()| MemoryStore::new());
    let mut written = 0;
    for cut in 0..3 {
        let starts =
            (1..).zip(&stores).map(|(id, store)| start_on(store.clone(), cluster.config(id), cluster.address(id)));
        for (id, voter) in (1..).zip(futures::future::join_all(starts).await) {
            cluster.running.insert(id, voter.unwrap());
        }
        for number in 0..10 {
            cluster.write(&format!("line {cut}.{number}")).await;
            written += 1;
        }
        cluster.wait_equal(written).await;
        stores.iter().for_each(|store| store.crash(cut));
        cluster.stop_all().await;
    }
}

#[tokio::test]
async fn a_broken_disk_stops_its_voter_and_the_others_go_on() {
    let mut cluster = Cluster::new(3);
    let stores = [(); 3].map(|()| MemoryStore::new());
    let starts = (1..).zip(&stores).map(|(id, store)| start_on(store.clone(), cluster.config(id), cluster.address(id)));
    for (id, voter) in (1..).zip(futures::future::join_all(starts).await) {
        cluster.running.insert(id, voter.unwrap());
    }
    cluster.write("before").await;
    let (leader, epoch) = cluster.leader().await;
    stores[usize::try_from(leader - 1).unwrap()].break_disk();
    let broken = cluster.running.remove(&leader).unwrap();
    // One entry at least must be written for the disk to be found out.
    assert!(propose(&broken.raft, epoch, "lost?").await.is_err());
    let mut stopped = broken.raft.stopped();
    let reason = timeout(PATIENCE, stopped.wait_for(Option::is_some)).await.unwrap().unwrap().clone().unwrap();
    assert!(reason.contains("os error 5"), "{reason}");
    cluster.write("after").await;
}
