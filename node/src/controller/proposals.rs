//! Moves what is planned to the log: in groups, in steps, or batch by batch of a large plan.

use quorate_client::world;
use quorate_metadata::mutant::Mutant;
use quorate_metadata::rng::Rng;
use quorate_metadata::{ApiError, ErrorName, Record};
use tokio::time::Instant;
use tracing::{error, info, warn};

use super::batcher::{self, Group, Planned, PreparedBatch, Stamp};
use super::event_loop::{Claim, EventLoop, MANY_RECORDS};
use super::handle::held_the_controller;
use super::inflight::Parked;
use super::large_plan::{self, Overdue, Prepared, RECORDS_ON_LOOP_MAX, does_not_replay, not_controller};
use super::operation::{INTERNAL, Operation, Progress, RemovalTarget, Weight};
use crate::machine::Workers;
use crate::raft::RaftNode;

impl EventLoop {
    pub(super) fn plan(&mut self, mut operation: Operation, group: &mut Group) {
        let Some(claim) = &mut self.claim else { return operation.refuse(not_controller()) };
        let is_first_step = operation.removal().is_none();
        if let Some(target) = operation.target.filter(|target| is_first_step && claim.under_way.removes(*target)) {
            return operation.refuse(removal_under_way(target));
        }
        if claim.large.is_proposing() {
            return claim.under_way.defer(operation);
        }
        if operation.number == INTERNAL {
            operation.number = self.pulse.next_number();
        }
        if operation.weight.records > RECORDS_ON_LOOP_MAX {
            return claim.large.push(operation);
        }
        self.pulse.begin(operation.name, operation.number);
        hold(operation.name);
        let planned = batcher::plan(&mut operation, &claim.draft, claim.epoch, &mut self.rng);
        if !self.pulse.end() {
            // The watchdog has answered its caller.
            return warn!(operation = operation.name, "a plan that held the controller is dropped");
        }
        match planned {
            Planned::Answered(reply) => group.parked.push(Parked { sender: operation.reply, reply }),
            Planned::Step(_) if operation.plan_only => claim.large.push(operation),
            Planned::Step(records) => self.stage_step(operation, records, group),
            Planned::Records { batches, reply } => self.stage(operation, batches, reply, group),
        }
    }

    /// Sets an operation aside that changes much and is not the only one, so that small operations behind many of them need
    /// not wait for them all.
    pub(super) fn set_aside(&mut self, operation: Operation, group: &Group) -> Option<Operation> {
        let Some(Claim { draft, under_way, large, in_flight, .. }) = &mut self.claim else { return Some(operation) };
        let changes_much = operation.weight.estimated_records(draft.working()) > MANY_RECORDS && !operation.plan_only;
        if !changes_much || operation.weight.records > RECORDS_ON_LOOP_MAX {
            return Some(operation);
        }
        if large.is_busy() {
            under_way.push_after_large(operation);
        } else if under_way.step_count() > 0 || group.has_step || in_flight.has_step() {
            under_way.push_step(operation);
        } else {
            return Some(operation);
        }
        None
    }

    /// Replays the records on the draft; what does not replay, or breaks an invariant, never reaches the log.
    fn stage(&mut self, mut operation: Operation, mut batches: Vec<Vec<Record>>, reply: Vec<u8>, group: &mut Group) {
        self.note(&batches);
        operation.progress.add(batches.iter().map(Vec::len).sum());
        log_mass_change(&operation);
        let claim = self.claim.as_mut().expect("only a claimed controller stages");
        if batches.len() == 1 && group.has_room_for(&batches[0]) {
            group.has_step |= operation.removal().is_some() || batches[0].len() > MANY_RECORDS;
            let records = batches.pop().expect("there is one");
            match batcher::replay(&claim.draft, group.stamp, records) {
                Ok((draft, records)) => {
                    let before = std::mem::replace(&mut claim.draft, draft);
                    group.add(before, records, Some(Parked { sender: operation.reply, reply: Ok(reply) }));
                }
                Err(broken) => {
                    let name = operation.name;
                    operation.refuse(does_not_replay(name, &broken));
                }
            }
            return;
        }
        // It travels alone, in as many batches as it needs, after what is grouped so far.
        self.propose_and_renew(group);
        let Some(claim) = &mut self.claim else { return operation.refuse(not_controller()) };
        match batcher::prepare(&claim.draft, group.stamp, batches) {
            Ok(batches) => claim.large.propose(operation, reply, batches),
            Err(broken) => {
                let name = operation.name;
                operation.refuse(does_not_replay(name, &broken));
            }
        }
        self.propose_next_batch();
    }

    /// A step is a batch of its own, and its operation goes on after it.
    fn stage_step(&mut self, mut operation: Operation, records: Vec<Record>, group: &mut Group) {
        operation.progress.add(records.len());
        if !group.has_room_for(&records) {
            self.propose_and_renew(group);
        }
        let Some(claim) = &mut self.claim else { return operation.refuse(not_controller()) };
        match batcher::replay(&claim.draft, group.stamp, records) {
            Ok((draft, records)) => {
                let before = std::mem::replace(&mut claim.draft, draft);
                group.add(before, records, None);
                group.has_step = true;
                if let Some((target, removal)) = operation.removal() {
                    if claim.is_fencing(target.broker) {
                        self.sessions.begin_removal(target.broker, removal);
                    } else {
                        // The mark is of this operation, which may have been a fencing until this step.
                        self.sessions.replace_removal(target.broker, removal);
                    }
                }
                // Its request is no longer counted in the queue.
                claim.under_way.push_step(Operation { weight: Weight::default(), ..operation });
            }
            Err(broken) => {
                let name = operation.name;
                operation.refuse(does_not_replay(name, &broken));
            }
        }
    }

    /// What the controller itself has to follow up.
    fn note(&mut self, batches: &[Vec<Record>]) {
        let Some(claim) = &mut self.claim else { return };
        let unfenced = |record: &Record| match record {
            Record::UnfenceBroker { broker, .. } => Some(*broker),
            _ => None,
        };
        for broker in batches.iter().flatten().filter_map(unfenced) {
            self.sessions.end_removal(broker);
            if claim.draft.working().index.leaderless_on(broker, None).next().is_some() {
                claim.returned.insert(broker, None);
            }
        }
    }

    fn propose_and_renew(&mut self, group: &mut Group) {
        let renewed = Group::new(group.stamp);
        self.propose(std::mem::replace(group, renewed));
    }

    pub(super) fn propose(&mut self, mut group: Group) {
        // Without a claim everything has been refused already.
        let Some(claim) = &mut self.claim else { return };
        let Some(before) = group.take_before() else {
            return park_until_confirmed(&self.raft, claim, group.parked);
        };
        self.metrics.records_planned.inc_by(group.records.len() as u64);
        let base = before.working().next_offset;
        match batcher::encode(base, group.stamp, group.records) {
            Ok(payload) => {
                let draft = claim.draft.clone();
                let batch = PreparedBatch { payload, next_offset: draft.working().next_offset, draft: Some(draft) };
                self.send(batch, group.parked);
                if group.has_step
                    && let Some(claim) = &mut self.claim
                {
                    claim.in_flight.mark_step();
                }
            }
            Err(too_large) => {
                error!(too_large, "batch refused before the log");
                claim.draft = before;
                group.parked.into_iter().for_each(|parked| parked.refuse(ErrorName::RecordListTooLarge, &too_large));
            }
        }
    }

    pub(super) fn propose_next_batch(&mut self) {
        let Some(claim) = &mut self.claim else { return };
        let Some((batch, parked)) = claim.large.next_batch() else { return };
        let part = self.pulse.next_number();
        let unprepared = claim.large.next_part(part, Instant::now());
        self.send(batch, parked.into_iter().collect());
        if let Some(unprepared) = unprepared {
            self.work(move || large_plan::prepare_part(part, unprepared));
        }
    }

    /// Proposes a batch that leads from the draft to its own.
    fn send(&mut self, batch: PreparedBatch, mut parked: Vec<Parked>) {
        let claim = self.claim.as_mut().expect("only a claimed controller sends");
        let PreparedBatch { payload, next_offset, draft } = batch;
        let bytes = payload.len();
        if let Some(draft) = draft {
            self.view.drafts.push(claim.epoch, draft.clone());
            claim.draft = draft;
        } else {
            claim.draft.skip_to(next_offset);
        }
        let replayed = self.raft.propose(claim.epoch, payload);
        if Mutant::AckBeforeCommit.is_on() {
            parked.drain(..).for_each(Parked::release);
        }
        claim.in_flight.push(next_offset, bytes, replayed, parked);
        self.metrics.batches_proposed.inc();
        self.count_in_flight();
    }

    pub(super) fn prepare(&mut self, operation: Operation) {
        let claim = self.claim.as_ref().expect("only a claimed controller prepares");
        let stamp = Stamp { epoch: claim.epoch, timestamp_ms: world::wall_ms() };
        let (draft, rng) = (claim.draft.clone(), Rng::new(self.rng.next_u64()));
        self.work(move || large_plan::prepare(operation, draft, stamp, rng));
    }

    /// Has something prepared beside the event loop.
    fn work(&mut self, work: impl FnOnce() -> Prepared + Send + 'static) {
        match self.config.workers {
            Workers::Threads => {
                self.prepared.spawn_blocking(work);
            }
            Workers::Tasks => {
                self.prepared.spawn(async move { work() });
            }
        }
    }

    pub(super) fn on_prepared(&mut self, prepared: Prepared) {
        let Some(claim) = self.claim.as_mut().filter(|claim| claim.epoch == prepared.epoch()) else {
            return prepared.refuse();
        };
        match claim.large.accept(prepared, &claim.draft) {
            large_plan::Accepted::Answer(operation, reply) => {
                park_until_confirmed(&self.raft, claim, vec![Parked { sender: operation.reply, reply }]);
            }
            large_plan::Accepted::InSteps(operation) => {
                claim.under_way.push_step(Operation { weight: Weight::default(), ..operation });
            }
            large_plan::Accepted::Broken(operation, broken) => {
                let refusal = does_not_replay(operation.name, &broken);
                self.end_transaction(operation, refusal, "its plan does not replay");
            }
            large_plan::Accepted::Propose if claim.in_flight.is_full() || claim.digest_due => {}
            large_plan::Accepted::Propose => self.propose_next_batch(),
            large_plan::Accepted::Nothing => {}
        }
    }

    /// Others need not wait for a plan that is not made in time.
    pub(super) fn give_up_overdue_plan(&mut self, now: Instant) {
        let Some(overdue) = self.claim.as_mut().and_then(|claim| claim.large.give_up_overdue(now)) else { return };
        self.metrics.event_loop_held.inc();
        match overdue {
            Overdue::Plan { name, number } => {
                error!(operation = name, "plan given up: it was not made in time");
                self.pulse.refuse(number);
            }
            Overdue::Part(operation) => {
                error!(operation = operation.name, "plan given up: a part of it was not made in time");
                let refusal = held_the_controller(operation.name);
                self.end_transaction(operation, refusal, "its plan was given up");
            }
        }
    }

    /// Ends an operation whose last batch does not come.
    fn end_transaction(&mut self, operation: Operation, refusal: ApiError, why: &'static str) {
        operation.refuse(refusal);
        self.abort_open_transaction(why);
    }

    /// Makes room for an operation that does not wait: a large plan gives way, and leaves no transaction open.
    pub(super) fn interrupt_large_plan(&mut self) {
        let Some(claim) = &mut self.claim else { return };
        if claim.large.interrupt() {
            self.abort_open_transaction("interrupted by a fencing");
        }
    }
}

/// One line for all steps of what changes much, with its counts.
fn log_mass_change(operation: &Operation) {
    let Progress { steps, records } = operation.progress;
    match operation.removal() {
        Some((RemovalTarget { broker, epoch }, removal)) => {
            info!(%broker, broker_epoch = %epoch, steps, records, ?removal, "removal from ISRs planned");
        }
        None if steps > 1 => info!(operation = operation.name, steps, records, "planned in steps"),
        None => {}
    }
}

fn removal_under_way(target: RemovalTarget) -> ApiError {
    let RemovalTarget { broker, epoch } = target;
    let message = format!("broker {broker} at epoch {epoch} is being taken out of ISRs already; nothing was done");
    ApiError::new(ErrorName::Throttled, message)
}

/// A controller that was deposed, and does not know it yet, would answer from a draft that others have left behind.
fn park_until_confirmed(raft: &RaftNode, claim: &mut Claim, mut parked: Vec<Parked>) {
    // For most of the controller's own operations nothing waits.
    parked.retain(|parked| !parked.sender.is_closed());
    if !parked.is_empty() {
        claim.in_flight.push_without_records(raft.confirm(claim.epoch), parked);
    }
}

/// For tests: the plan of an operation that they ask for holds the loop.
fn hold(_operation: &str) {
    fail::fail_point!("controller.plan", _operation == "unregister-broker", |_| ());
}
