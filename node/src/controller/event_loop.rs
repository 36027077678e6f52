//! The single owner of the draft. It decides nothing itself: plans decide, and it moves their records to the log.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use quorate_client::world;
use quorate_metadata::ids::{BrokerEpoch, BrokerId, ControllerEpoch, Offset};
use quorate_metadata::image::{Ledger, RequestOutcome};
use quorate_metadata::mutant::Mutant;
use quorate_metadata::plan::checkpoint;
use quorate_metadata::record::ControllerRegistration;
use quorate_metadata::rng::Rng;
use quorate_metadata::{ApiError, Batch, ErrorName, MetadataImage, Record};
use quorate_proto::batch;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tokio::time::{Instant, interval};
use tracing::{debug, error, info, warn};

use super::handle::ControllerHandle;
use super::inflight::{InFlight, LostClaim, Parked};
use super::liveness::SessionTable;
use super::operation::{Operation, Position, RequestId};
use super::probe::{Evidence, Probed, probe};
use super::tasks::TaskTable;
use crate::metrics::Metrics;
use crate::raft::{DialMap, Leadership, RaftNode};
use crate::replica::MetadataView;

/// Operations that wait. A full queue is answered with THROTTLED at once.
const QUEUE_MAX: usize = 4_096;

/// Operations planned into one batch before the loop looks up again.
const OPERATIONS_PER_BATCH_MAX: usize = 1_024;

/// How often the loop looks at sessions and due tasks.
const TICK: Duration = Duration::from_millis(50);

/// An answer is remembered in the log, beside a batch of `BATCH_BYTES_MAX`, in an entry of 4 MiB.
const REMEMBERED_REPLY_BYTES_MAX: usize = 2 * 1024 * 1024;

/// How long one attempt to settle what is in flight may take before the office is looked at again.
const RECLAIM_BARRIER: Duration = Duration::from_secs(1);

pub struct ControllerConfig {
    pub registration: ControllerRegistration,
    pub session_timeout: Duration,
    pub dial: DialMap,
    /// The seed of placement and topic ids.
    pub seed: u64,
}

/// A heartbeat stream that ended without the broker having said goodbye.
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
    /// Brokers whose stream is gone and whom a probe has not yet found.
    pub suspects: BTreeSet<BrokerId>,
    /// A digest is to be written as soon as nothing is in flight.
    pub digest_due: bool,
    /// Where the log was after the last digest: nothing new, no new digest.
    pub digested_at: Option<Offset>,
}

pub struct EventLoop {
    pub(super) config: ControllerConfig,
    pub(super) raft: RaftNode,
    pub(super) view: MetadataView,
    pub(super) sessions: Arc<SessionTable>,
    pub(super) metrics: Arc<Metrics>,
    pub(super) claim: Option<Claim>,
    claim_sender: watch::Sender<Option<ControllerEpoch>>,
    operations: mpsc::Receiver<Operation>,
    streams_lost: mpsc::UnboundedReceiver<StreamLost>,
    pub(super) probes: JoinSet<Probed>,
    reclaims: JoinSet<Option<ControllerEpoch>>,
    rng: Rng,
    last_tick: Instant,
}

impl EventLoop {
    pub fn new(
        config: ControllerConfig,
        raft: RaftNode,
        view: MetadataView,
        metrics: Arc<Metrics>,
    ) -> (Self, ControllerHandle) {
        let (sender, operations) = mpsc::channel(QUEUE_MAX);
        let (claim_sender, claim) = watch::channel(None);
        // Bounded by the number of heartbeat streams: each reports its end once.
        let (lost_sender, streams_lost) = mpsc::unbounded_channel();
        let sessions = Arc::new(SessionTable::new(config.session_timeout, lost_sender));
        let handle = ControllerHandle::new(sender, claim, sessions.clone());
        let rng = Rng::new(config.seed);
        let event_loop = Self {
            config,
            raft,
            view,
            sessions,
            metrics,
            claim: None,
            claim_sender,
            operations,
            streams_lost,
            probes: JoinSet::new(),
            reclaims: JoinSet::new(),
            rng,
            last_tick: Instant::now(),
        };
        (event_loop, handle)
    }

    /// Runs until `stop` says so or leadership can no longer be followed.
    pub async fn run(mut self, mut stop: watch::Receiver<bool>) {
        let mut leadership = self.raft.leadership();
        let mut ticks = interval(TICK);
        loop {
            tokio::select! {
                biased;
                _ = stop.wait_for(|stop| *stop) => break,
                change = leadership.recv() => match change {
                    Some(Leadership::Claimed { epoch }) => self.activate(epoch),
                    Some(Leadership::Resigned) => self.resign("another controller was elected"),
                    None => break,
                },
                outcome = Self::next_settled(&mut self.claim) => self.on_settled(outcome),
                Some(Ok(probed)) = self.probes.join_next() => self.on_probed(probed),
                Some(Ok(Some(epoch))) = self.reclaims.join_next() => self.on_reclaim(epoch),
                Some(lost) = self.streams_lost.recv() => self.on_stream_lost(lost),
                _ = ticks.tick() => self.on_tick(),
                Some(first) = self.operations.recv(), if self.has_room() => self.run_operations(first),
            }
        }
        self.resign("the node is stopping");
    }

    fn has_room(&self) -> bool {
        self.claim.as_ref().is_none_or(|claim| !claim.in_flight.is_full() && !claim.digest_due)
    }

    async fn next_settled(claim: &mut Option<Claim>) -> Result<(), LostClaim> {
        match claim {
            Some(claim) => claim.in_flight.next_settled().await,
            None => std::future::pending().await,
        }
    }

    fn on_settled(&mut self, outcome: Result<(), LostClaim>) {
        let Err(lost) = outcome else { return self.commit_due_digest() };
        warn!(%lost, "claim lost");
        self.resign("a proposal was not confirmed");
        self.reclaim_later();
    }

    /// The claim was lost, but maybe not the office: claims again once everything proposed so far is settled.
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

    /// Plans everything that waits into one batch.
    fn run_operations(&mut self, first: Operation) {
        let mut waiting = vec![first];
        while waiting.len() < OPERATIONS_PER_BATCH_MAX
            && let Ok(next) = self.operations.try_recv()
        {
            waiting.push(next);
        }
        self.run_all(waiting);
    }

    pub(super) fn run_all(&mut self, operations: Vec<Operation>) {
        let started = Instant::now();
        let mut group = Group::at(world::wall_ms());
        for operation in operations {
            // A client that gave up waiting was told that the outcome is unknown, and not done is one of the outcomes.
            // Without a request id it may be one of our own, for which nobody waits.
            if operation.reply.is_closed() && operation.request.is_some() {
                continue;
            }
            self.plan(operation, &mut group);
        }
        self.propose(group);
        self.metrics.event_loop_busy.observe(started.elapsed().as_secs_f64());
    }

    fn plan(&mut self, operation: Operation, group: &mut Group) {
        let Some(claim) = &mut self.claim else { return refuse(operation) };
        if let Some(answered) = answered_before(claim.draft.working(), &operation) {
            return group.parked.push(Parked { sender: operation.reply, reply: answered });
        }
        let plan = match (operation.plan)(claim.draft.working(), &mut self.rng) {
            Ok(plan) => plan,
            Err(error) => return group.parked.push(Parked { sender: operation.reply, reply: Err(error) }),
        };
        if let Some(reason) = plan.waiting_on {
            debug!(operation = operation.name, reason = reason.as_str(), "nothing to propose");
        }
        let base = claim.draft.working().next_offset;
        let epoch = claim.epoch;
        if operation.plan_only || plan.records.is_empty() {
            let position = Position { controller_epoch: epoch, offset: base };
            let reply = Ok((plan.response)(&position, &plan.records));
            return group.parked.push(Parked { sender: operation.reply, reply });
        }
        self.metrics.records_planned.inc_by(plan.records.len() as u64);
        let mut batches = checkpoint::into_batches(plan.records, operation.atomic, operation.name);
        let count = batches.iter().map(Vec::len).sum::<usize>() + usize::from(operation.request.is_some());
        let reply = (plan.response)(&Position { controller_epoch: epoch, offset: base.advance(count) }, &[]);
        if let Some(request) = operation.request {
            if reply.len() > REMEMBERED_REPLY_BYTES_MAX {
                let reply = Err(too_large_to_remember(operation.name, reply.len()));
                return group.parked.push(Parked { sender: operation.reply, reply });
            }
            remember(&mut batches, request, reply.clone());
        }
        self.stage(operation.name, batches, Parked { sender: operation.reply, reply: Ok(reply) }, group);
    }

    /// Replays the records on the draft; what does not replay, or breaks an invariant, never reaches the log.
    fn stage(&mut self, name: &'static str, batches: Vec<Vec<Record>>, parked: Parked, group: &mut Group) {
        let claim = self.claim.as_mut().expect("only a claimed controller stages");
        let mut draft = claim.draft.clone();
        let mut replayed = Vec::with_capacity(batches.len());
        for records in batches {
            let base = draft.working().next_offset;
            match try_replay(&draft, claim.epoch, group.timestamp_ms, records) {
                Ok((next, records)) => {
                    draft = next;
                    replayed.push((base, records));
                }
                Err(broken) => return refuse_poison(name, &broken, parked.sender),
            }
        }
        let (base, records) = replayed.pop().expect("a plan with records has a batch");
        if replayed.is_empty() && group.has_room_for(&records) {
            claim.draft = draft;
            return group.add(records, parked);
        }
        // It travels alone, in as many batches as it needs, after what is grouped so far.
        let timestamp_ms = group.timestamp_ms;
        self.propose(std::mem::replace(group, Group::at(timestamp_ms)));
        self.claim.as_mut().expect("proposing keeps the claim").draft = draft;
        for (base, records) in replayed {
            self.send(base, timestamp_ms, records, Vec::new());
        }
        self.send(base, timestamp_ms, records, vec![parked]);
    }

    fn propose(&mut self, group: Group) {
        // Without a claim everything has been refused already.
        let Some(claim) = &mut self.claim else { return };
        if group.records.is_empty() {
            return park_until_confirmed(&self.raft, claim, group.parked);
        }
        let end = claim.draft.working().next_offset;
        let base = Offset::new(end.get() - group.records.len() as i64);
        self.send(base, group.timestamp_ms, group.records, group.parked);
    }

    /// The time is that of the replay on the draft: it is part of what was replayed.
    fn send(&mut self, base: Offset, timestamp_ms: i64, records: Vec<Record>, mut parked: Vec<Parked>) {
        let claim = self.claim.as_mut().expect("only a claimed controller sends");
        let next_offset = base.advance(records.len());
        let batch = Batch { controller_epoch: claim.epoch, timestamp_ms, records };
        let replayed = self.raft.propose(claim.epoch, batch::encode(base, &batch));
        if Mutant::AckBeforeCommit.is_on() {
            parked.drain(..).for_each(Parked::release);
        }
        claim.in_flight.push(next_offset, replayed, parked);
        self.metrics.batches_proposed.inc();
    }

    pub(super) fn publish_claim(&self, epoch: Option<ControllerEpoch>) {
        self.claim_sender.send_replace(epoch);
    }

    fn on_stream_lost(&mut self, lost: StreamLost) {
        let Some(claim) = &mut self.claim else { return };
        if claim.draft.working().broker(lost.broker).is_some_and(|known| known.epoch == lost.epoch && !known.fenced) {
            info!(broker = %lost.broker, "heartbeat stream lost");
            claim.suspects.insert(lost.broker);
            self.probe(lost.broker);
        }
    }

    /// Starts a probe of one broker; its result comes back to the loop.
    pub(super) fn probe(&mut self, broker: BrokerId) {
        let Some(claim) = &self.claim else { return };
        let Some(registration) = claim.draft.working().broker(broker).cloned() else { return };
        let dial = self.config.dial.clone();
        self.probes.spawn(async move { probe(&registration, &dial).await });
    }

    fn on_probed(&mut self, probed: Probed) {
        let Some(claim) = &mut self.claim else { return };
        let current = claim.draft.working().broker(probed.broker).is_some_and(|known| known.epoch == probed.epoch);
        // Whoever listens, or cannot be asked, stays a suspect until its stream is back: the next probe may tell more.
        if probed.evidence == Evidence::Refused && current && !self.sessions.has_stream(probed.broker) {
            claim.suspects.remove(&probed.broker);
            self.fence(probed.broker, "process gone: its host refused the connection");
        }
    }

    pub(super) fn fence(&mut self, broker: BrokerId, why: &str) {
        warn!(%broker, why, silence_ms = self.sessions.silence(broker).map(|s| s.as_millis() as u64), "fencing");
        self.metrics.brokers_fenced.inc();
        let fence = move |image: &MetadataImage, _: &mut Rng| quorate_metadata::plan::brokers::fence(image, broker);
        self.run_all(vec![Operation::internal("fence", fence)]);
    }

    fn on_tick(&mut self) {
        let now = Instant::now();
        let late = now.duration_since(self.last_tick).saturating_sub(TICK * 4);
        self.last_tick = now;
        if !late.is_zero() {
            // The loop, or the whole process, stood still: nobody's silence counts for that time.
            warn!(late_ms = late.as_millis() as u64, "stalled; all sessions extended");
            self.sessions.extend_all(late);
        }
        self.run_due_tasks(now);
    }
}

/// Operations planned so far, to be proposed as one batch.
struct Group {
    timestamp_ms: i64,
    records: Vec<Record>,
    bytes: usize,
    parked: Vec<Parked>,
}

impl Group {
    fn at(timestamp_ms: i64) -> Self {
        Self { timestamp_ms, records: Vec::new(), bytes: 0, parked: Vec::new() }
    }

    fn has_room_for(&self, records: &[Record]) -> bool {
        self.records.is_empty() || self.bytes + size(records) <= quorate_metadata::limits::BATCH_BYTES_MAX
    }

    fn add(&mut self, records: Vec<Record>, parked: Parked) {
        self.bytes += size(&records);
        self.records.extend(records);
        self.parked.push(parked);
    }
}

fn size(records: &[Record]) -> usize {
    records.iter().map(Record::approximate_bytes).sum()
}

fn try_replay(
    draft: &Ledger,
    epoch: ControllerEpoch,
    timestamp_ms: i64,
    records: Vec<Record>,
) -> Result<(Ledger, Vec<Record>), String> {
    let mut next = draft.clone();
    let batch = Batch { controller_epoch: epoch, timestamp_ms, records };
    next.replay(&batch).map_err(|error| error.to_string())?;
    match next.working().verify_changed(&batch).first() {
        Some(violation) => Err(violation.to_string()),
        None => Ok((next, batch.records)),
    }
}

/// A controller that was deposed, and does not know it yet, would answer from a draft that others have left behind.
fn park_until_confirmed(raft: &RaftNode, claim: &mut Claim, mut parked: Vec<Parked>) {
    // For most of the controller's own operations nobody waits.
    parked.retain(|parked| !parked.sender.is_closed());
    if !parked.is_empty() {
        claim.in_flight.push_without_records(raft.confirm(claim.epoch), parked);
    }
}

fn too_large_to_remember(operation: &str, bytes: usize) -> ApiError {
    let message = format!(
        "the answer to {operation} has {bytes} bytes, and {REMEMBERED_REPLY_BYTES_MAX} can be remembered for a retry; \
         ask for fewer items at once"
    );
    ApiError::new(ErrorName::RecordListTooLarge, message)
}

/// Adds the answer to the last batch, inside the transaction if there is one.
fn remember(batches: &mut [Vec<Record>], request: RequestId, reply: Vec<u8>) {
    let last = batches.last_mut().expect("a plan with records has a batch");
    let at = last.len() - usize::from(last.last() == Some(&Record::EndTransaction));
    let RequestId { client, request } = request;
    last.insert(at, Record::RequestApplied { client, request, reply, offset: None, forgotten_up_to: None });
}

/// A retry of what this client was already answered gets the same answer.
fn answered_before(image: &MetadataImage, operation: &Operation) -> Option<Result<Vec<u8>, ApiError>> {
    let request = operation.request?;
    match image.requests.look_up(request.client, request.request) {
        RequestOutcome::New => None,
        RequestOutcome::Applied { reply, .. } => Some(Ok(reply.to_vec())),
        RequestOutcome::Expired => Some(Err(ApiError::new(
            ErrorName::RequestExpired,
            format!("request {} is older than what is remembered of this client", request.request),
        ))),
    }
}

fn refuse(operation: Operation) {
    let error = ApiError::new(ErrorName::NotController, "this node is not the active controller");
    // The caller may have given up meanwhile.
    let _ = operation.reply.send(Err(error));
}

/// A plan that does not replay is a defect of ours: it is refused here, loudly, and harms nobody else.
fn refuse_poison(name: &str, broken: &str, sender: tokio::sync::oneshot::Sender<super::Reply>) {
    error!(operation = name, broken, "plan refused: it does not replay");
    let message = format!("the plan for {name} would break the metadata ({broken}); nothing was changed");
    // The caller may have given up meanwhile.
    let _ = sender.send(Err(ApiError::new(ErrorName::UnknownServerError, message)));
}
