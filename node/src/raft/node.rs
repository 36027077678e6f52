//! The handle of this voter, for all who are not Raft.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use openraft::ReadPolicy;
use openraft::async_runtime::watch::WatchReceiver;
use openraft::errors::ClientWriteError;
use openraft::raft::ClientWriteResult;
use tokio::sync::{Notify, mpsc, oneshot, watch};
use tokio::time::{Instant, sleep, timeout};
use tonic::Status;

use quorate_client::network::Port;
use quorate_log::Operations;
use quorate_metadata::ids::{ClusterId, ControllerEpoch, ControllerId, DirectoryId};
use quorate_metadata::image::LEVEL_LOWEST;
use quorate_proto::raft as proto;

use super::identity::LocalVoter;
use super::leadership::{LeaderInfo, Leadership, epoch};
use super::network::{ENTRY_BYTES_MAX, Link};
use super::replacement::{Replaced, Replacement};
use super::replay::Progress;
use super::status::{self, QuorumStatus};
use super::store::Store;
use super::thread::{self, Setup, Started};
use super::types::{Applied, LogId, NodeId, Reply, Types, controller_id, node_id};
use super::{Outcome, ProposeError, Raft, RaftConfig, RaftError, ReadError, Replica, check_quorum};
use crate::machine::Workers;

/// Between two tries to have a read confirmed while the leader changes.
const READ_RETRY_INTERVAL: Duration = Duration::from_millis(10);
const TRANSFER_TIMEOUT: Duration = Duration::from_secs(2);
const SNAPSHOT_TIMEOUT: Duration = Duration::from_secs(60);
/// Asking again while one is being written does nothing.
const SNAPSHOT_RETRY_INTERVAL: Duration = Duration::from_millis(20);

/// Cheap to clone. Raft stops when it is told to, or when the last clone is dropped.
#[derive(Clone)]
pub struct RaftNode {
    shared: Arc<Shared>,
}

struct Shared {
    started: Running,
    local: LocalVoter,
    silence_max: Duration,
    stopped: watch::Receiver<Option<String>>,
    shutdown: watch::Sender<bool>,
    finished: watch::Receiver<()>,
}

struct Running {
    raft: Raft,
    runtime: tokio::runtime::Handle,
    peers: super::network::Peers,
    proposals: mpsc::UnboundedSender<Proposal>,
    office: Mutex<Option<mpsc::Receiver<Leadership>>>,
    leader: watch::Receiver<Option<LeaderInfo>>,
    progress: Progress,
    written: Arc<Notify>,
    operations: Operations,
}

impl RaftNode {
    /// Opens the store, checks whose disk it is, and starts Raft on a thread of its own with its server on `port`.
    /// Returns when this voter is part of a cluster: at once on a restart, else when the cluster has formed.
    pub async fn start(
        config: RaftConfig,
        store: Arc<dyn Store>,
        port: Port,
        replica: Box<dyn Replica>,
    ) -> Result<Self, RaftError> {
        check(&config)?;
        let silence_max = Duration::from_millis(config.election_max_ms);
        let local =
            LocalVoter::load(store.clone(), config.node, config.data.clone(), config.cluster, config.auto_format)?;
        let (shutdown, shutdown_receiver) = watch::channel(false);
        let (stopped_sender, stopped) = watch::channel(None);
        let (started_sender, started) = oneshot::channel();
        let (finished_sender, finished) = watch::channel(());
        let workers = config.workers;
        let setup = Setup {
            config,
            store,
            local: local.clone(),
            port,
            replica,
            shutdown: shutdown_receiver,
            stopped: stopped_sender,
            started: started_sender,
            finished: finished_sender,
        };
        match workers {
            Workers::Tasks => drop(tokio::spawn(thread::run_here(setup))),
            Workers::Threads => {
                let thread = std::thread::Builder::new().name("raft".into()).spawn(move || thread::run(setup));
                drop(thread.map_err(RaftError::io("start the raft thread"))?);
            }
        }
        let started = match started.await {
            Ok(Ok(started)) => started,
            Ok(Err(error)) => {
                until_dropped(finished).await;
                return Err(error);
            }
            Err(_) => return Err(RaftError::Stopped("the raft thread panicked".into())),
        };
        Ok(Self {
            shared: Arc::new(Shared { started: started.into(), local, silence_max, stopped, shutdown, finished }),
        })
    }

    /// Queues a payload, in the order of the calls, and returns at once. The receiver resolves when the payload was
    /// replayed *here*, or failed. It is written under the claimed epoch or not at all.
    pub fn propose(
        &self,
        claimed: ControllerEpoch,
        payload: Bytes,
    ) -> oneshot::Receiver<Result<Outcome, ProposeError>> {
        let (promise, outcome) = Promise::new();
        if payload.len() > ENTRY_BYTES_MAX {
            promise.keep(Err(ProposeError::TooLarge { bytes: payload.len() }));
            return outcome;
        }
        let Ok(term) = u64::try_from(claimed.get()) else {
            promise.keep(Err(ProposeError::NotLeader));
            return outcome;
        };
        if self.shared.stopped.borrow().is_some() {
            promise.keep(Err(ProposeError::Stopped));
            return outcome;
        }
        // Bounded by the controller, which keeps few batches in flight.
        if let Err(unsent) = self.shared.started.proposals.send(Proposal { term, payload, promise }) {
            unsent.0.promise.keep(Err(ProposeError::Stopped));
        }
        outcome
    }

    /// Claims and resignations, strictly alternating. For one listener: panics when taken twice.
    pub fn leadership(&self) -> mpsc::Receiver<Leadership> {
        let office = self.shared.started.office.lock().expect("no holder panics").take();
        office.expect("leadership is taken once, by the controller")
    }

    /// When it returns, everything committed before the call is visible in the replica here, on a leader or not.
    pub async fn read_barrier(&self, deadline: Duration) -> Result<(), ReadError> {
        let node = self.clone();
        // On Raft's own runtime: its connections and timers live there.
        let barrier = self.shared.started.runtime.spawn(async move { node.barrier(deadline).await });
        barrier.await.unwrap_or(Err(ReadError::Stopped))
    }

    async fn barrier(&self, deadline: Duration) -> Result<(), ReadError> {
        let until = Instant::now() + deadline;
        let mut last = String::from("no leader is known");
        loop {
            match tokio::time::timeout_at(until, self.read_index()).await {
                Ok(Ok(index)) => return self.applied(index, until).await,
                Ok(Err(error)) => last = error,
                Err(_) => return Err(ReadError::Unavailable(last)),
            }
            if Instant::now() + READ_RETRY_INTERVAL >= until {
                return Err(ReadError::Unavailable(last));
            }
            sleep(READ_RETRY_INTERVAL).await;
        }
    }

    /// Resolves well when a majority has heard, after this call, that this node leads under the claimed epoch: nothing
    /// of a later one was committed when it was called. Openraft waits for about an election timeout at most.
    pub fn confirm(&self, claimed: ControllerEpoch) -> oneshot::Receiver<Result<(), ReadError>> {
        let (sender, confirmed) = oneshot::channel();
        let node = self.clone();
        self.shared.started.runtime.spawn(async move {
            let result = match node.read_as_leader().await {
                Ok(read) if epoch(read.committed_leader_id().term) == claimed => Ok(()),
                Ok(read) => Err(ReadError::Unavailable(format!("it leads anew, from entry {read}"))),
                Err(why) => Err(ReadError::Unavailable(why)),
            };
            // Who asked may have resigned meanwhile.
            let _ = sender.send(result);
        });
        confirmed
    }

    /// Not from one that hears nobody: to ask is to send heartbeats, which would keep it in an office that the others
    /// have to fill again (see `check_quorum`).
    async fn read_as_leader(&self) -> Result<LogId, String> {
        if self.is_deaf() {
            return Err("no majority answers this leader".to_owned());
        }
        let read = self.shared.started.raft.get_read_log_id(ReadPolicy::ReadIndex).await;
        read.map(|(read, _)| *read.log_id()).map_err(|error| error.to_string())
    }

    /// What the leader, once confirmed by a majority, says must be replayed.
    async fn read_index(&self) -> Result<u64, String> {
        let raft = &self.shared.started.raft;
        let (leader, node) = {
            let metrics = raft.server_metrics();
            let metrics = metrics.borrow_watched();
            let leader = metrics.current_leader.ok_or("no leader is known")?;
            (leader, metrics.membership_config.get_node(&leader).cloned().ok_or("the leader's address is not known")?)
        };
        if leader == node_id(self.shared.local.node) {
            return Ok(self.read_as_leader().await?.index);
        }
        let peers = &self.shared.started.peers;
        let text = |status: Status| status.message().to_owned();
        let mut client = peers.client(leader, &node.raft, Link::Liveness).map_err(text)?;
        let request = peers.request(leader, &node, proto::ReadIndexRequest {});
        let patience = self.shared.silence_max;
        let response = timeout(patience, client.read_index(request)).await.map_err(|_| "the leader does not answer")?;
        Ok(response.map_err(text)?.into_inner().index)
    }

    async fn applied(&self, index: u64, until: Instant) -> Result<(), ReadError> {
        let mut applied = self.shared.started.progress.applied.clone();
        let reached = applied.wait_for(|applied| applied.is_some_and(|applied| applied.index >= index));
        match tokio::time::timeout_at(until, reached).await {
            Ok(Ok(_)) => Ok(()),
            Ok(Err(_)) => Err(ReadError::Stopped),
            Err(_) => Err(ReadError::Unavailable(format!("log entry {index} is not replayed here yet"))),
        }
    }

    /// The active controller as known here.
    pub fn leader(&self) -> Option<LeaderInfo> {
        self.shared.started.leader.borrow().clone()
    }

    pub fn leader_changes(&self) -> watch::Receiver<Option<LeaderInfo>> {
        self.shared.started.leader.clone()
    }

    pub fn status(&self) -> QuorumStatus {
        let metrics = self.shared.started.raft.metrics();
        let applied = *self.shared.started.progress.applied.borrow();
        status::of(&metrics.borrow_watched(), applied, &self.shared.started.peers, self.shared.silence_max)
    }

    /// The controllers that have a vote, as known here.
    pub fn voters(&self) -> BTreeSet<ControllerId> {
        let metrics = self.shared.started.raft.server_metrics();
        metrics.borrow_watched().membership_config.voter_ids().map(controller_id).collect()
    }

    /// The highest `metadata.version` that all voters supported when the cluster was formed.
    pub fn level_when_formed(&self) -> i16 {
        let metrics = self.shared.started.raft.server_metrics();
        let metrics = metrics.borrow_watched();
        let lowest = metrics.membership_config.nodes().map(|(_, node)| node.level_max).min().unwrap_or_default();
        i16::try_from(lowest).unwrap_or(LEVEL_LOWEST).max(LEVEL_LOWEST)
    }

    /// Whether a majority has confirmed this node's leadership within so long. False on a follower.
    pub fn quorum_acked_within(&self, limit: Duration) -> bool {
        let metrics = self.shared.started.raft.metrics();
        status::quorum_acked_within(&metrics.borrow_watched(), limit)
    }

    /// Whether this is a leader that no majority has answered for long: it may have been deposed.
    pub fn is_deaf(&self) -> bool {
        check_quorum::is_deaf(&self.shared.started.raft, self.shared.silence_max)
    }

    /// Hands over to `to`, or to whoever has most of the log. Returns when this node leads no more.
    pub async fn transfer_leadership(&self, to: Option<ControllerId>) -> Result<(), RaftError> {
        let raft = &self.shared.started.raft;
        let ours = node_id(self.shared.local.node);
        let successor = self.successor(ours, to.map(node_id))?;
        let stopped = |fatal: openraft::errors::Fatal<Types>| RaftError::Stopped(fatal.to_string());
        raft.trigger().transfer_leader(successor).await.map_err(stopped)?;
        let mut metrics = raft.server_metrics();
        let handed_over = async {
            while metrics.borrow_and_update().current_leader == Some(ours) {
                if metrics.changed().await.is_err() {
                    return;
                }
            }
        };
        timeout(TRANSFER_TIMEOUT, handed_over)
            .await
            .map_err(|_| RaftError::TransferTimedOut(TRANSFER_TIMEOUT.as_millis()))
    }

    /// Makes the disk that answers at the voter's address the disk of the voter. Returns when it votes.
    pub async fn replace_voter(&self, voter: ControllerId, deadline: Duration) -> Result<Replaced, RaftError> {
        let started = &self.shared.started;
        let (raft, peers, silence_max) = (started.raft.clone(), started.peers.clone(), self.shared.silence_max);
        let replacement = Replacement { raft, peers, voter, silence_max };
        // On Raft's own runtime: its connections and timers live there.
        let replaced = started.runtime.spawn(async move { timeout(deadline, replacement.run()).await });
        match replaced.await {
            Ok(Ok(replaced)) => replaced,
            Ok(Err(_)) => Err(RaftError::ReplacementTimedOut(deadline.as_millis())),
            Err(ended) => Err(RaftError::Stopped(ended.to_string())),
        }
    }

    /// Whether this node takes part in elections. One that does not still votes.
    pub fn campaign(&self, campaigns: bool) {
        self.shared.started.raft.runtime_config().elect(campaigns);
    }

    /// Whether this node leads, as far as it knows.
    pub fn leads(&self) -> bool {
        let metrics = self.shared.started.raft.server_metrics();
        metrics.borrow_watched().current_leader == Some(node_id(self.shared.local.node))
    }

    /// One that has answered just now: to any other the hand-over would be waited for in vain.
    fn successor(&self, ours: NodeId, to: Option<NodeId>) -> Result<NodeId, RaftError> {
        let metrics = self.shared.started.raft.metrics();
        let metrics = metrics.borrow_watched();
        let replication = metrics.replication.as_ref().ok_or(RaftError::NotLeader)?;
        let voters = metrics.membership_config.voter_ids().filter(|voter| *voter != ours);
        let silence_max = self.shared.silence_max;
        let answers = |voter: &NodeId| status::has_answered_within(&metrics, *voter, silence_max);
        // Whom the caller names is tried in any case: a leader of a moment ago has heard from nobody yet.
        let candidates = voters.filter(|voter| to.map_or_else(|| answers(voter), |to| to == *voter));
        candidates.max_by_key(|voter| replication.get(voter).copied().flatten()).ok_or(RaftError::NoSuccessor)
    }

    /// Writes a snapshot of what is replayed now, and returns when it is there.
    pub async fn trigger_snapshot(&self) -> Result<(), RaftError> {
        let raft = &self.shared.started.raft;
        let applied = *self.shared.started.progress.applied.borrow();
        let written = async {
            while raft.metrics().borrow_watched().snapshot < applied {
                // One that was under way when it was asked for is too old: ask again until the right one is there.
                raft.trigger().snapshot().await.map_err(|fatal| RaftError::Stopped(fatal.to_string()))?;
                sleep(SNAPSHOT_RETRY_INTERVAL).await;
            }
            self.shared.started.written.notify_one();
            Ok(())
        };
        timeout(SNAPSHOT_TIMEOUT, written)
            .await
            .unwrap_or(Err(RaftError::SnapshotTimedOut(SNAPSHOT_TIMEOUT.as_millis())))
    }

    /// Becomes Some, with the reason, when Raft has stopped by itself.
    pub fn stopped(&self) -> watch::Receiver<Option<String>> {
        self.shared.stopped.clone()
    }

    /// What the disk of the log is being asked for now.
    pub fn disk_operations(&self) -> &Operations {
        &self.shared.started.operations
    }

    /// Ends Raft and returns when its disk is closed.
    pub async fn shutdown(&self) {
        self.shared.shutdown.send_replace(true);
        until_dropped(self.shared.finished.clone()).await;
    }

    pub fn cluster(&self) -> ClusterId {
        self.shared.local.cluster().expect("a voter that has started is part of a cluster")
    }

    pub fn directory(&self) -> DirectoryId {
        self.shared.local.directory
    }
}

fn check(config: &RaftConfig) -> Result<(), RaftError> {
    let invalid = |reason: String| Err(RaftError::InvalidConfig(reason));
    if let Some(voter) = config.voters.iter().find(|voter| voter.id.get() < 0) {
        return invalid(format!("node id {} is negative", voter.id));
    }
    if !config.voters.iter().any(|voter| voter.id == config.node) {
        return invalid(format!("node {} is not among the configured voters", config.node));
    }
    let mut ids: Vec<_> = config.voters.iter().map(|voter| voter.id).collect();
    ids.sort_unstable();
    match ids.windows(2).find(|pair| pair[0] == pair[1]) {
        Some(pair) => invalid(format!("voter {} is configured twice", pair[0])),
        None => Ok(()),
    }
}

impl From<Started> for Running {
    fn from(started: Started) -> Self {
        let Started { raft, runtime, peers, proposals, office, leader, progress, written, operations } = started;
        let office = Mutex::new(Some(office));
        Self { raft, runtime, peers, proposals, office, leader, progress, written, operations }
    }
}

/// The thread drops its end last: then the disk is free again.
async fn until_dropped(mut finished: watch::Receiver<()>) {
    while finished.changed().await.is_ok() {}
}

/// A payload on its way into the log.
pub struct Proposal {
    pub term: u64,
    pub payload: Bytes,
    pub promise: Promise,
}

/// Somebody waits for an outcome. A promise that is dropped tells that the outcome is not known.
pub struct Promise {
    waiter: Option<oneshot::Sender<Result<Outcome, ProposeError>>>,
}

impl Promise {
    fn new() -> (Self, oneshot::Receiver<Result<Outcome, ProposeError>>) {
        let (waiter, outcome) = oneshot::channel();
        (Self { waiter: Some(waiter) }, outcome)
    }

    fn keep(mut self, outcome: Result<Outcome, ProposeError>) {
        self.send(outcome);
    }

    fn send(&mut self, outcome: Result<Outcome, ProposeError>) {
        if let Some(waiter) = self.waiter.take() {
            // A proposer that has gone away no longer cares.
            let _ = waiter.send(outcome);
        }
    }

    pub fn into_reply(self) -> Reply<ClientWriteResult<Types>> {
        Reply(Box::new(move |result| self.keep(outcome_of(result))))
    }
}

impl Drop for Promise {
    fn drop(&mut self) {
        self.send(Err(ProposeError::Unknown("raft dropped the proposal".into())));
    }
}

fn outcome_of(result: ClientWriteResult<Types>) -> Result<Outcome, ProposeError> {
    match result {
        Ok(response) => applied_outcome(response.data),
        // Refused before it was written, also when the leader's lease has lapsed.
        Err(ClientWriteError::ForwardToLeader(_)) => Err(ProposeError::NotLeader),
        Err(error @ ClientWriteError::LogEntryDiscarded(_)) => Err(ProposeError::Unknown(error.to_string())),
        Err(error @ (ClientWriteError::ChangeMembershipError(_) | ClientWriteError::PreconditionFailed(_))) => {
            Err(ProposeError::Unknown(error.to_string()))
        }
    }
}

fn applied_outcome(applied: Applied) -> Result<Outcome, ProposeError> {
    applied.outcome().ok_or_else(|| ProposeError::Unknown("an entry of raft's own took its place".into()))
}
