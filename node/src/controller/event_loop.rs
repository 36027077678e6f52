//! The single owner of the draft: it waits for what happens, and moves the records that plans decide on to the log.
//!
//! Every turn is bounded. What is more than that goes on in a later turn (plans in steps, sweeps of tasks), or is planned
//! beside the loop (`large_plan`). The watchdog ends the leadership of a loop that does not turn all the same.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use quorate_client::world;
use quorate_metadata::ids::{BrokerEpoch, BrokerId, ControllerEpoch, Offset};
use quorate_metadata::image::Ledger;
use quorate_metadata::limits::CHANGES_PER_STEP_MAX;
use quorate_metadata::liveness::Removal;
use quorate_metadata::mutant::Mutant;
use quorate_metadata::plan::elections::Cursor;
use quorate_metadata::record::ControllerRegistration;
use quorate_metadata::rng::Rng;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tokio::time::{Instant, interval};
use tracing::warn;

use super::batcher::{Group, Stamp};
use super::handle::ControllerHandle;
use super::inflight::{InFlight, LostClaim};
use super::large_plan::{LargePlans, Prepared, RECORDS_ON_LOOP_MAX, not_controller};
use super::liveness::SessionTable;
use super::operation::{Operation, RemovalTarget};
use super::probe::Probed;
use super::pulse::Pulse;
use super::queue::{QUEUE_MAX, QueueReceiver, queue};
use super::slow::Activity;
use super::tasks::TaskTable;
use super::under_way::UnderWay;
use crate::machine::Workers;
use crate::metrics::Metrics;
use crate::raft::{DialMap, Leadership, RaftNode};
use crate::replica::MetadataView;

/// Operations planned into one batch before the loop looks up again.
const OPERATIONS_PER_BATCH_MAX: usize = 1_024;

/// Records from which on an operation counts as one that changes much.
pub(super) const MANY_RECORDS: usize = 100;

/// Operations of several steps, or that wait for their turn, before the loop takes no more from the queue. Fencings are
/// not among them: there are at most as many as brokers.
const TURNS_WAITING_MAX: usize = QUEUE_MAX;

/// How long one turn may plan. The bounds by number say little about time: a plan without records may have looked through
/// thousands of partitions.
const TURN_MAX: Duration = Duration::from_millis(25);

/// How often the loop looks at sessions and due tasks.
pub(super) const TICK: Duration = Duration::from_millis(50);

/// Turns that a controller makes under `Mutant::HeldLoop`: some seconds of a few clients.
const TURNS_UNTIL_HELD: u64 = 2_000;

/// How long one attempt to settle what is in flight may take before the leadership is looked at again.
const RECLAIM_BARRIER: Duration = Duration::from_secs(1);

pub struct ControllerConfig {
    pub registration: ControllerRegistration,
    pub session_timeout: Duration,
    pub dial: DialMap,
    /// The seed of placement and topic ids.
    pub seed: u64,
    /// Where large plans are made.
    pub workers: Workers,
}

/// Where operations come from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Source {
    Queue,
    /// What goes on in turns.
    Turns,
    /// The controller itself, or what was deferred: it is planned at once.
    Own,
}

impl Source {
    /// Records that one turn plans, and how long it may plan them.
    fn turn_max(self) -> Option<(usize, Duration)> {
        match self {
            Self::Queue => Some((RECORDS_ON_LOOP_MAX, TURN_MAX)),
            Self::Turns => Some((CHANGES_PER_STEP_MAX, TURN_MAX)),
            Self::Own => None,
        }
    }
}

/// A heartbeat stream that ended without a goodbye of the broker.
#[derive(Debug, Clone, Copy)]
pub struct StreamLost {
    pub broker: BrokerId,
    pub epoch: BrokerEpoch,
}

/// What exists only while this node is the active controller.
pub(super) struct Claim {
    pub epoch: ControllerEpoch,
    /// What will be true once everything in flight is replayed.
    pub draft: Ledger,
    pub in_flight: InFlight,
    pub tasks: TaskTable,
    pub under_way: UnderWay,
    pub large: LargePlans,
    /// Brokers whose stream is gone, and that no probe has found dead yet.
    pub suspects: BTreeSet<BrokerId>,
    /// Brokers that are unfenced, and whose leaderless partitions are still to be looked at, from the cursor on.
    pub returned: BTreeMap<BrokerId, Option<Cursor>>,
    /// A digest is to be written as soon as nothing is in flight.
    pub digest_due: bool,
    /// Where the log was after the last digest: nothing new, no new digest.
    pub digested_at: Option<Offset>,
}

impl Claim {
    fn can_step(&self) -> bool {
        self.under_way.step_count() > 0 && !self.in_flight.is_full_of_steps() && !self.large.is_proposing()
    }

    fn can_end_large(&self) -> bool {
        self.under_way.has_after_large() && !self.large.is_busy()
    }

    fn can_run_deferred(&self) -> bool {
        self.under_way.has_deferred() && !self.large.is_proposing()
    }

    /// A plan that is made between two steps is stale when it comes.
    fn can_start_large(&self) -> bool {
        self.under_way.step_count() == 0 && self.large.can_start()
    }

    /// Whether the queue waits: so that a large plan is made once, though not for one that waits for steps; and while as much
    /// as there may be waits outside of the queue.
    fn blocks_queue(&self) -> bool {
        let is_full = self.under_way.others_count() >= TURNS_WAITING_MAX;
        is_full || self.large.has_active_plan() || self.can_start_large()
    }

    /// Whether a fencing of this broker, as it is registered now, is under way.
    pub fn is_fencing(&self, broker: BrokerId) -> bool {
        let known = self.draft.working().broker(broker);
        known.is_some_and(|known| self.under_way.fences(RemovalTarget { broker, epoch: known.epoch }))
    }

    /// Whether the removal of this broker from ISRs, as it is registered now, is under way, or has led to what it was for.
    pub fn keeps_removal(&self, broker: BrokerId, removal: Removal) -> bool {
        let Some(known) = self.draft.working().broker(broker) else { return true };
        let is_done = match removal {
            Removal::Fencing => known.fenced,
            Removal::ControlledShutdown | Removal::DirectoryFailure => !known.is_active(),
        };
        is_done || self.under_way.removes(RemovalTarget { broker, epoch: known.epoch })
    }

    /// Whether the controller's own tasks may run: not beside a large plan, which they would make stale, nor while a broker
    /// leaves ISRs, since an election could bring it back as a leader.
    pub fn can_run_tasks(&self) -> bool {
        !self.large.is_busy() && !self.under_way.has_removals()
    }
}

pub struct EventLoop {
    pub(super) config: ControllerConfig,
    pub(super) raft: RaftNode,
    pub(super) view: MetadataView,
    pub(super) sessions: Arc<SessionTable>,
    pub(super) metrics: Arc<Metrics>,
    pub(super) claim: Option<Claim>,
    pub(super) pulse: Arc<Pulse>,
    /// The watchdog takes the claim back as well.
    claim_sender: Arc<watch::Sender<Option<ControllerEpoch>>>,
    pub(super) operations: QueueReceiver,
    streams_lost: mpsc::UnboundedReceiver<StreamLost>,
    pub(super) probes: JoinSet<Probed>,
    pub(super) prepared: JoinSet<Prepared>,
    reclaims: JoinSet<Option<ControllerEpoch>>,
    pub(super) rng: Rng,
    pub(super) last_tick: Instant,
}

impl EventLoop {
    pub fn new(
        config: ControllerConfig,
        raft: RaftNode,
        view: MetadataView,
        metrics: Arc<Metrics>,
    ) -> (Self, ControllerHandle) {
        let (sender, operations) = queue();
        let (claim_sender, claim) = watch::channel(None);
        // Bounded by the number of heartbeat streams: each reports its end once.
        let (lost_sender, streams_lost) = mpsc::unbounded_channel();
        let sessions = Arc::new(SessionTable::new(config.session_timeout, lost_sender));
        let pulse = Arc::new(Pulse::new());
        let handle = ControllerHandle::new(sender, claim, sessions.clone(), pulse.clone());
        let rng = Rng::new(config.seed);
        let event_loop = Self {
            config,
            raft,
            view,
            sessions,
            metrics,
            claim: None,
            pulse,
            claim_sender: Arc::new(claim_sender),
            operations,
            streams_lost,
            probes: JoinSet::new(),
            prepared: JoinSet::new(),
            reclaims: JoinSet::new(),
            rng,
            last_tick: Instant::now(),
        };
        (event_loop, handle)
    }

    pub fn pulse(&self) -> Arc<Pulse> {
        self.pulse.clone()
    }

    /// Where others see whether this node is the active controller.
    pub fn published_claim(&self) -> Arc<watch::Sender<Option<ControllerEpoch>>> {
        self.claim_sender.clone()
    }

    /// Runs until `stop` says so or leadership can no longer be followed.
    pub async fn run(mut self, mut stop: watch::Receiver<bool>) {
        let mut leadership = self.raft.leadership();
        let mut ticks = interval(TICK);
        loop {
            self.pulse.turn();
            if self.is_held() {
                std::future::pending::<()>().await;
            }
            tokio::select! {
                biased;
                _ = stop.wait_for(|stop| *stop) => break,
                change = leadership.recv() => match change {
                    Some(Leadership::Claimed { epoch }) => self.on_claimed(epoch),
                    Some(Leadership::Resigned) => self.resign("another controller was elected"),
                    None => break,
                },
                outcome = Self::next_settled(&mut self.claim) => self.on_settled(outcome),
                Some(Ok(probed)) = self.probes.join_next() => self.on_probed(probed),
                Some(Ok(Some(epoch))) = self.reclaims.join_next() => self.on_reclaim(epoch),
                Some(lost) = self.streams_lost.recv() => self.on_stream_lost(lost),
                Some(Ok(prepared)) = self.prepared.join_next() => self.on_prepared(prepared),
                _ = ticks.tick() => self.on_tick(),
                () = std::future::ready(()), if self.can_go_on() => self.go_on(),
                Some(first) = self.operations.recv(), if self.has_room() => self.run_operations(first),
            }
            // Timers and probes share this thread, and a loop that never waits, be it for a full queue, gives them no turn.
            tokio::task::yield_now().await;
        }
        self.resign("the node is stopping");
    }

    /// Raft may report a leadership again that a reclaim has already taken up.
    fn on_claimed(&mut self, epoch: ControllerEpoch) {
        if self.claim.as_ref().is_some_and(|claim| claim.epoch == epoch) {
            return;
        }
        self.resign("a later epoch is claimed");
        self.activate(epoch);
    }

    /// Whether operations from the queue may be planned.
    fn has_room(&self) -> bool {
        self.claim.as_ref().is_none_or(|claim| !claim.in_flight.is_full() && !claim.digest_due && !claim.blocks_queue())
    }

    async fn next_settled(claim: &mut Option<Claim>) -> Result<Option<Duration>, LostClaim> {
        match claim {
            Some(claim) => claim.in_flight.next_settled().await,
            None => std::future::pending().await,
        }
    }

    fn on_settled(&mut self, outcome: Result<Option<Duration>, LostClaim>) {
        self.count_in_flight();
        match outcome {
            Ok(took) => {
                took.into_iter().for_each(|took| self.pulse.slow.observe(Activity::Commit, took));
                self.commit_due_digest();
            }
            Err(lost) => {
                warn!(%lost, "claim lost");
                self.resign("a proposal was not confirmed");
                self.reclaim_later();
            }
        }
    }

    pub(super) fn count_in_flight(&self) {
        let bytes = self.claim.as_ref().map_or(0, |claim| claim.in_flight.bytes());
        self.metrics.in_flight_bytes.set(bytes as i64);
        self.metrics.queued_bytes.set(self.operations.bytes().total() as i64);
    }

    /// The claim was lost, but perhaps not the leadership: claims again once everything proposed so far is settled.
    pub(super) fn reclaim_later(&mut self) {
        let raft = self.raft.clone();
        let node = self.config.registration.controller;
        self.reclaims.spawn(async move {
            while let Some(leader) = raft.leader().filter(|leader| leader.id == node) {
                if raft.read_barrier(RECLAIM_BARRIER).await.is_ok() {
                    return Some(leader.epoch);
                }
            }
            None
        });
    }

    fn on_reclaim(&mut self, epoch: ControllerEpoch) {
        let node = self.config.registration.controller;
        let still = self.raft.leader().is_some_and(|leader| leader.id == node && leader.epoch == epoch);
        if self.claim.is_none() && still {
            self.activate(epoch);
        }
    }

    /// Whether there is work that does not wait for anything.
    fn can_go_on(&self) -> bool {
        self.claim.as_ref().is_some_and(|claim| {
            let has_work = claim.large.has_batches()
                || claim.can_step()
                || claim.can_end_large()
                || claim.can_run_deferred()
                || claim.can_start_large()
                || (claim.tasks.has_unfinished() && claim.can_run_tasks());
            has_work && !claim.in_flight.is_full() && !claim.digest_due
        })
    }

    /// One piece of the work that is under way, and then one group of operations: neither holds up the other.
    fn go_on(&mut self) {
        let Some(claim) = &mut self.claim else { return };
        if claim.can_end_large() {
            claim.under_way.end_large();
        }
        if claim.large.has_batches() {
            self.propose_next_batch();
        } else if claim.can_run_deferred() {
            let deferred = claim.under_way.take_deferred();
            self.run_all(deferred);
        } else if claim.can_step() {
            self.run_steps();
        } else if claim.can_start_large()
            && let Some(operation) = claim.large.start(Instant::now())
        {
            self.prepare(operation);
        } else {
            self.run_unfinished_tasks();
        }
        if self.has_room()
            && let Some(first) = self.operations.try_recv()
        {
            self.run_operations(first);
        }
    }

    /// Plans what waits into one batch, up to a number of operations and of records.
    fn run_operations(&mut self, first: Operation) {
        let (mut first, mut left) = (Some(first), OPERATIONS_PER_BATCH_MAX);
        self.run_each(Source::Queue, |event_loop| {
            left = left.checked_sub(1)?;
            first.take().or_else(|| event_loop.operations.try_recv())
        });
        if let Some(operation) = first {
            self.operations.bytes().remove(operation.origin, operation.weight.bytes);
            operation.refuse(not_controller());
        }
    }

    pub(super) fn run_all(&mut self, operations: Vec<Operation>) {
        let mut operations = operations.into_iter();
        self.run_each(Source::Own, |_| operations.next());
        operations.for_each(|operation| operation.refuse(not_controller()));
    }

    /// The next steps, as many as have the records of a large one: brokers with few partitions are fenced together.
    fn run_steps(&mut self) {
        let mut left = self.claim.as_ref().map_or(0, |claim| claim.under_way.step_count());
        self.run_each(Source::Turns, |event_loop| {
            left = left.checked_sub(1)?;
            event_loop.claim.as_mut()?.under_way.pop_step()
        });
    }

    /// Plans one operation after the other, as many as one turn may, and proposes what they come to. The bytes of what is
    /// set aside stay counted in the queue.
    fn run_each(&mut self, source: Source, mut next: impl FnMut(&mut Self) -> Option<Operation>) {
        let started = Instant::now();
        let Some(claim) = &self.claim else { return };
        let from = claim.draft.working().next_offset;
        let end = source.turn_max().map(|(records, time)| (from.advance(records), started + time));
        let mut group = Group::new(Stamp { epoch: claim.epoch, timestamp_ms: world::wall_ms() });
        let mut is_first = true;
        let has_room = |claim: &Claim, is_first: bool| {
            // The thread may have waited for the processor for longer than a turn: the first one is planned all the same.
            end.is_none_or(|(offset, time)| {
                claim.draft.working().next_offset < offset && (is_first || Instant::now() < time)
            })
        };
        while let Some(claim) = &self.claim
            && has_room(claim, std::mem::take(&mut is_first))
            && let Some(operation) = next(self)
        {
            let (origin, bytes) = (operation.origin, operation.weight.bytes);
            // Its caller was told that the outcome is unknown, and not done is one of the outcomes.
            if !operation.is_abandoned() {
                let is_queued = source == Source::Queue;
                let due = if is_queued { self.set_aside(operation, &group) } else { Some(operation) };
                let Some(operation) = due else { continue };
                self.plan(operation, &mut group);
            }
            if source != Source::Own {
                self.operations.bytes().remove(origin, bytes);
            }
        }
        self.propose(group);
        self.metrics.event_loop_busy.observe(started.elapsed().as_secs_f64());
    }

    /// The watchdog has taken it back while the loop stood still, and the leadership was not lost all the same.
    pub(super) fn publish_claim_again(&self) {
        let claimed = self.claim.as_ref().map(|claim| claim.epoch);
        self.claim_sender.send_if_modified(|published| std::mem::replace(published, claimed) != claimed);
    }

    pub(super) fn publish_claim(&self, epoch: Option<ControllerEpoch>) {
        self.claim_sender.send_replace(epoch);
    }
}

impl EventLoop {
    /// For tests: the event loop waits for ever.
    fn is_held(&self) -> bool {
        fail::fail_point!("controller.loop", |_| true);
        let is_mutant = Mutant::HeldLoop.is_on() && self.claim.is_some() && self.pulse.turns() > TURNS_UNTIL_HELD;
        is_mutant || self.pulse.is_on_hold()
    }
}

#[cfg(test)]
mod tests;
