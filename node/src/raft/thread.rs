//! Consensus runs on a thread of its own with a current-thread runtime: lowest latency, the largest batches, and no API
//! load between a leader and its heartbeats. Nothing else runs there: replay has a thread (see `replay`), the flusher has
//! one, and reads of files go to the runtime's blocking threads. All that belongs to Raft starts here and ends here.

use std::sync::Arc;
use std::time::Duration;

use openraft::async_runtime::watch::WatchReceiver;
use openraft::{Config, SnapshotPolicy};
use quorate_client::network::Port;
use quorate_log::Operations;
use tokio::runtime::Handle;
use tokio::sync::{Notify, mpsc, oneshot, watch};
use tokio::task::JoinSet;

use super::bootstrap::Greeter;
use super::check_quorum;
use super::election::FastElection;
use super::floor::{self, Floor};
use super::identity::LocalVoter;
use super::leadership::{self, LeaderInfo, Leadership};
use super::network::{FirstCalls, Network, Peers, Service};
use super::node::Proposal;
use super::replay::{Progress, Replay};
use super::state_machine::StateMachine;
use super::store::{LogStore, Opened, Snapshots, Store};
use super::trimming::Trimming;
use super::types::{CommittedLeader, Payload, node_id};
use super::{Raft, RaftConfig, RaftError, Replica};

/// Entries in one append. The byte cap usually comes first.
const APPEND_ENTRIES_MAX: u64 = 1024;
/// A snapshot of a large cluster over a slow link.
const SNAPSHOT_TIMEOUT: Duration = Duration::from_secs(120);
/// Reports of broken streams; more than voters is enough.
const BROKEN_MAX: usize = 16;
/// Claims and resignations that the controller has not taken yet.
const OFFICE_MAX: usize = 16;
/// Runs of entries that wait to be replayed, some hundred bytes each: only their ends are queued, the entries stay in the
/// log. A full queue stops consensus, so it must last for a replay that takes long: at 2 000 commits a second half a minute.
/// A leader has few, since its controller proposes nothing while eight batches are not replayed.
const RUNS_MAX: u64 = 1 << 16;
/// Blocking work that may still run when the thread ends: a snapshot being written, which is dropped unfinished.
const BLOCKING_GRACE: Duration = Duration::from_secs(1);

/// What the thread is started with.
pub struct Setup {
    pub config: RaftConfig,
    pub store: Arc<dyn Store>,
    pub local: LocalVoter,
    pub port: Port,
    pub replica: Box<dyn Replica>,
    pub shutdown: watch::Receiver<bool>,
    pub stopped: watch::Sender<Option<String>>,
    pub started: oneshot::Sender<Result<Started, RaftError>>,
    /// Dropped when everything, the database too, is closed.
    pub finished: watch::Sender<()>,
}

/// What the handle works with.
pub struct Started {
    pub raft: Raft,
    pub runtime: Handle,
    pub peers: Peers,
    pub proposals: mpsc::UnboundedSender<Proposal>,
    pub office: mpsc::Receiver<Leadership>,
    pub leader: watch::Receiver<Option<LeaderInfo>>,
    pub progress: Progress,
    /// To be notified of a snapshot that was written on request, so that the log is trimmed behind it.
    pub written: Arc<Notify>,
    /// What the disk of the log is being asked for now.
    pub operations: Operations,
}

/// The body of the thread.
pub fn run(setup: Setup) {
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => return refuse(setup.started, RaftError::io("start the raft runtime")(error)),
    };
    let (flushed, finished) = runtime.block_on(serve(setup));
    // Dropping the runtime drops every task, and with them the last handles of the log.
    runtime.shutdown_timeout(BLOCKING_GRACE);
    if let Some(flushed) = flushed {
        // The flusher drops its end without a word.
        let _ = flushed.blocking_recv();
    }
    drop(finished);
}

/// The same on the runtime that this is called on.
pub async fn run_here(setup: Setup) {
    let (flushed, finished) = serve(setup).await;
    if let Some(flushed) = flushed {
        // The flusher drops its end without a word.
        let _ = flushed.await;
    }
    drop(finished);
}

/// Until Raft has ended; then what resolves when the last write is on the disk, and what to drop after it.
async fn serve(setup: Setup) -> (Option<oneshot::Receiver<()>>, watch::Sender<()>) {
    let Setup { config, store, local, port, replica, shutdown, stopped, started, finished } = setup;
    let (storage, flushed) = match Storage::open(&*store, &local) {
        Ok(opened) => opened,
        Err(error) => {
            refuse(started, error);
            return (None, finished);
        }
    };
    let loaded_end = storage.loaded_end;
    if let Err(error) = storage.begin_generation(&local).await {
        refuse(started, error);
        drop(storage);
        return (Some(flushed), finished);
    }
    let replay = Replay::start(replica, config.workers, finished.clone());
    let core = async { Core::start(&config, storage, local, replay?).await };
    match core.await {
        Ok(mut core) => {
            core.spawn_all(&config, port, loaded_end);
            core.run(started, shutdown, stopped).await;
        }
        Err(error) => refuse(started, error),
    }
    (Some(flushed), finished)
}

fn refuse(started: oneshot::Sender<Result<Started, RaftError>>, error: RaftError) {
    // Whoever started the node may have given up.
    let _ = started.send(Err(error));
}

/// What is kept on the disk, opened.
struct Storage {
    log: LogStore,
    snapshots: Snapshots,
    /// The floor of this start.
    floor: Floor,
    /// The first index after the log as it was found.
    loaded_end: u64,
}

impl Storage {
    /// Refuses a disk that holds less than it must. With what resolves when the last write is on the disk and the database
    /// is closed.
    fn open(store: &dyn Store, local: &LocalVoter) -> Result<(Self, oneshot::Receiver<()>), RaftError> {
        let Opened { disk, snapshots } = store.open()?;
        let loaded = disk.load().map_err(RaftError::io("read the log"))?;
        let newest = snapshots.latest().map_err(RaftError::io("read the newest snapshot"))?;
        let snapshot_end = newest.and_then(|snapshot| snapshot.meta.last_log_id).map_or(0, |last| last.index + 1);
        local.floor().check(local.data(), &loaded, snapshot_end)?;
        let floor = local.floor().next(&loaded);
        let loaded_end = floor::end(&loaded, snapshot_end);
        let (log, flushed) = LogStore::start(disk, loaded);
        Ok((Self { log, snapshots, floor, loaded_end }, flushed))
    }

    /// Before anything else is written: from now on an older copy of the raft log is known as such.
    async fn begin_generation(&self, local: &LocalVoter) -> Result<(), RaftError> {
        self.log.set_generation(self.floor.generation).await.map_err(RaftError::io("write the log"))?;
        local.raise_floor(|_| self.floor)
    }
}

struct Core {
    raft: Raft,
    local: LocalVoter,
    log: LogStore,
    peers: Peers,
    snapshots: Snapshots,
    progress: Progress,
    grown: Arc<Notify>,
    written: Arc<Notify>,
    doubted: Arc<Notify>,
    joined: watch::Sender<bool>,
    tasks: JoinSet<End>,
}

/// How a task ended that was meant to run for ever.
enum End {
    /// With everything else.
    Silent,
    Refused(RaftError),
    Failed(String),
}

impl Core {
    async fn start(
        config: &RaftConfig,
        storage: Storage,
        local: LocalVoter,
        replay: Replay,
    ) -> Result<Self, RaftError> {
        let Storage { log, snapshots, .. } = storage;
        let peers = Peers::new(local.clone(), config.dial.clone(), &config.voters);
        let (grown, progress) = (Arc::new(Notify::new()), replay.progress());
        let state_machine =
            StateMachine::new(replay, snapshots.clone(), local.clone(), config.snapshot_log_bytes, grown.clone());
        let network = Network::new(peers.clone(), snapshots.clone());
        let raft_config = Arc::new(openraft_config(config)?);
        let raft = Raft::new(node_id(config.node), raft_config, network, log.clone(), state_machine)
            .await
            .map_err(|fatal| RaftError::Stopped(fatal.to_string()))?;
        peers.raft_started(&raft);
        let (written, doubted, joined) = (Arc::new(Notify::new()), Arc::new(Notify::new()), watch::Sender::new(false));
        let tasks = JoinSet::new();
        Ok(Self { raft, local, log, peers, snapshots, progress, grown, written, doubted, joined, tasks })
    }

    fn spawn_all(&mut self, config: &RaftConfig, port: Port, loaded_end: u64) {
        let (broken_sender, broken) = mpsc::channel(BROKEN_MAX);
        let outlogged = Arc::new(Notify::new());
        let (refused, refusal) = mpsc::channel(1);
        self.tasks.spawn(refused_by_call(refusal));
        let service = Service {
            local: self.local.clone(),
            raft: self.raft.clone(),
            snapshots: self.snapshots.clone(),
            broken: broken_sender,
            outlogged: outlogged.clone(),
            doubted: self.doubted.clone(),
            first_calls: FirstCalls { loaded_end, checked: Arc::default() },
            refused,
            log: self.log.clone(),
            configured: Arc::new(config.voters.iter().map(|voter| node_id(voter.id)).collect()),
            level_max: config.level_max,
        };
        self.tasks.spawn(async {
            End::Failed(service.serve(port).await.err().unwrap_or_else(|| "the raft port closed".into()))
        });
        let greeter = Greeter {
            local: self.local.clone(),
            voters: config.voters.clone(),
            peers: self.peers.clone(),
            raft: self.raft.clone(),
            level_max: config.level_max,
            doubted: self.doubted.clone(),
            joined: self.joined.clone(),
        };
        self.tasks.spawn(async { End::Refused(greeter.run().await) });
        if config.fast_election {
            let election = FastElection { raft: self.raft.clone(), peers: self.peers.clone(), broken, outlogged };
            self.tasks.spawn(silently(election.run()));
        }
        let timeout = Duration::from_millis(config.election_max_ms);
        self.tasks.spawn(silently(check_quorum::run(self.raft.clone(), timeout)));
        self.tasks.spawn(silently(self.peers.clone().follow_dial_map()));
        let trimming = Trimming {
            raft: self.raft.clone(),
            log: self.log.clone(),
            local: self.local.clone(),
            snapshots: self.snapshots.clone(),
            entries_kept: config.log_entries_kept,
            grown: self.grown.clone(),
            written: self.written.clone(),
        };
        self.tasks.spawn(silently(trimming.run()));
        self.tasks.spawn(failed(self.raft.clone(), self.log.failure(), self.progress.failure.clone()));
    }

    /// Until told to stop, or until something gives up.
    async fn run(
        &mut self,
        started: oneshot::Sender<Result<Started, RaftError>>,
        mut shutdown: watch::Receiver<bool>,
        stopped: watch::Sender<Option<String>>,
    ) {
        let mut joined = self.joined.subscribe();
        let refused = tokio::select! {
            _ = joined.wait_for(|joined| *joined) => None,
            error = next_end(&mut self.tasks) => Some(error),
            // Either asked to stop or forgotten.
            _ = shutdown.wait_for(|stop| *stop) => Some(RaftError::Stopped("it was told to".into())),
        };
        if let Some(error) = refused {
            refuse(started, error);
            return self.stop().await;
        }
        // Whoever started the node may have given up; then the shutdown channel has closed.
        let _ = started.send(Ok(self.serve_handle()));
        tokio::select! {
            error = next_end(&mut self.tasks) => {
                tracing::error!(%error, "raft stops");
                stopped.send_replace(Some(error.to_string()));
            }
            _ = shutdown.wait_for(|stop| *stop) => {}
        }
        self.stop().await;
    }

    fn serve_handle(&mut self) -> Started {
        let (proposals, queue) = mpsc::unbounded_channel();
        let (office_sender, office) = mpsc::channel(OFFICE_MAX);
        let (leader_sender, leader) =
            watch::channel(leadership::leader_info(&self.raft.server_metrics().borrow_watched(), &self.peers));
        self.tasks.spawn(silently(propose(self.raft.clone(), queue)));
        let applied = self.progress.applied.clone();
        self.tasks.spawn(silently(leadership::follow_office(self.raft.clone(), applied, office_sender)));
        self.tasks.spawn(silently(leadership::follow_leader(self.raft.clone(), self.peers.clone(), leader_sender)));
        let (raft, peers, runtime) = (self.raft.clone(), self.peers.clone(), Handle::current());
        let (progress, written, operations) = (self.progress.clone(), self.written.clone(), self.log.operations());
        Started { raft, runtime, peers, proposals, office, leader, progress, written, operations }
    }

    async fn stop(&mut self) {
        if let Err(error) = self.raft.shutdown().await {
            tracing::warn!(%error, "raft did not end cleanly");
        }
        self.tasks.shutdown().await;
    }
}

async fn refused_by_call(mut refusal: mpsc::Receiver<RaftError>) -> End {
    match refusal.recv().await {
        Some(error) => End::Refused(error),
        None => End::Silent,
    }
}

async fn silently(task: impl Future<Output = ()>) -> End {
    task.await;
    End::Silent
}

async fn next_end(tasks: &mut JoinSet<End>) -> RaftError {
    while let Some(end) = tasks.join_next().await {
        match end {
            Ok(End::Silent) => {}
            Ok(End::Refused(error)) => return error,
            Ok(End::Failed(reason)) => return RaftError::Stopped(reason),
            Err(error) => return RaftError::Stopped(format!("a raft task failed: {error}")),
        }
    }
    RaftError::Stopped("all raft tasks ended".into())
}

/// The reason of the disk or of replay, where it is one of them: Raft only says that it could not go on.
async fn failed(
    raft: Raft,
    mut disk: watch::Receiver<Option<String>>,
    mut replay: watch::Receiver<Option<String>>,
) -> End {
    let mut metrics = raft.metrics();
    loop {
        if let Some(reason) = disk.borrow_and_update().clone() {
            return End::Failed(reason);
        }
        if let Some(reason) = replay.borrow_and_update().clone() {
            return End::Failed(reason);
        }
        if let Err(fatal) = metrics.borrow_and_update().running_state.clone() {
            return End::Failed(fatal.to_string());
        }
        tokio::select! {
            biased;
            changed = disk.changed() => if changed.is_err() { return End::Silent },
            // Where it ends without a reason, Raft has the reason.
            Ok(()) = replay.changed() => {}
            changed = metrics.changed() => if changed.is_err() { return End::Silent },
        }
    }
}

/// Hands proposals to Raft in the order in which they were made.
async fn propose(raft: Raft, mut queue: mpsc::UnboundedReceiver<Proposal>) {
    while let Some(proposal) = queue.recv().await {
        let leader = CommittedLeader { term: proposal.term };
        let write = raft.write(Payload(proposal.payload)).responder(proposal.promise.into_reply()).with_leader(leader);
        if let Err(fatal) = write.await {
            tracing::warn!(%fatal, "raft takes no more proposals");
            return;
        }
    }
}

fn openraft_config(config: &RaftConfig) -> Result<Config, RaftError> {
    let kept = config.log_entries_kept;
    let settings = Config {
        cluster_name: "quorate".into(),
        heartbeat_interval: config.heartbeat_ms,
        election_timeout_min: config.election_min_ms,
        election_timeout_max: config.election_max_ms,
        install_snapshot_timeout: u64::try_from(SNAPSHOT_TIMEOUT.as_millis()).expect("two minutes fit"),
        max_payload_entries: APPEND_ENTRIES_MAX,
        api_batch_linger_ms: 0,
        state_machine_channel_size: Some(RUNS_MAX),
        // Bytes of log decide here, not entries: see the state machine.
        snapshot_policy: SnapshotPolicy::Never,
        // Nor does openraft trim the log: see `trimming`.
        max_in_snapshot_log_to_keep: u64::MAX,
        purge_batch_size: 1,
        // A follower is sent a snapshot when the log it needs is gone, not for being slow.
        replication_lag_threshold: kept.saturating_mul(4).saturating_add(1_000_000),
        enable_pre_vote: Some(true),
        // The committed index is saved lazily, so a restarted leader must be elected again.
        enable_leader_restore: Some(false),
        // A voter whose log went back has lost its disk, and must not be served as if it had not.
        allow_log_reversion: Some(false),
        ..Config::default()
    };
    settings.validate().map_err(|error| RaftError::InvalidConfig(error.to_string()))
}
