//! Operations that change much: planned beside the event loop, on a clone of the draft, and proposed batch by batch as
//! room appears. The batches of a transaction are prepared in parts, each while the one before it is proposed.
//!
//! While one is prepared or proposed, other operations wait in their queue, so that it is made once. Fencing does not
//! wait: the plan is dropped when it comes, and a transaction that was begun is aborted; after the steps of the fencing the
//! operation is planned again.

use std::collections::VecDeque;
use std::time::Duration;

use quorate_metadata::ids::{ControllerEpoch, Offset};
use quorate_metadata::image::Ledger;
use quorate_metadata::rng::Rng;
use quorate_metadata::{ApiError, ErrorName, Record};
use tokio::time::Instant;
use tracing::{error, info};

use super::batcher::{self, Part, Planned, PreparedBatch, Stamp, Unprepared};
use super::inflight::Parked;
use super::operation::{Operation, Position};

/// An operation that may lead to more records is planned beside the event loop. As many partitions are planned, replayed
/// and encoded in some ten milliseconds.
pub const RECORDS_ON_LOOP_MAX: usize = 2_000;

/// What preparing a plan may take: a second, for a busy machine, and several times what a record costs.
fn time_to_prepare(records: usize) -> Duration {
    const BASE: Duration = Duration::from_secs(1);
    const PER_RECORD: Duration = Duration::from_micros(50);
    BASE + PER_RECORD * u32::try_from(records).unwrap_or(u32::MAX)
}

/// Batches of a part: enough to keep the log busy while the next part is prepared, and as many bytes as may be in flight.
const BATCHES_PER_PART: usize = 8;

/// Records of a part, for the time that it may take: more than there are of any kind.
const RECORDS_PER_PART: usize = 100_000;

/// Operations that wait to be planned beside the event loop: as many of the largest requests as the queue holds by bytes.
const WAITING_MAX: usize = 8;

/// The large operation in hand, and those that wait for it.
#[derive(Default)]
pub struct LargePlans {
    waiting: VecDeque<Operation>,
    stage: Option<Stage>,
    /// A plan that is still being made, and before which another one is proposed: it is stale when it comes.
    displaced: Option<Making>,
}

/// A plan that is being made elsewhere.
#[derive(Clone, Copy)]
struct Making {
    name: &'static str,
    number: u64,
    until: Instant,
}

enum Stage {
    Preparing(Making),
    Proposing(Box<Proposing>),
}

/// A plan on its way into the log.
struct Proposing {
    operation: Operation,
    reply: Vec<u8>,
    batches: VecDeque<PreparedBatch>,
    rest: Rest,
}

/// What comes after the batches that are prepared.
enum Rest {
    Nothing,
    ToPrepare(Box<Unprepared>),
    /// It is being prepared elsewhere, as this part.
    Awaited {
        part: u64,
        until: Instant,
    },
}

/// What comes back to the event loop.
pub enum Prepared {
    Plan(PreparedPlan),
    Part(PreparedPart),
}

pub struct PreparedPlan {
    /// The claim and the offset that it was made for.
    epoch: ControllerEpoch,
    base: Offset,
    operation: Operation,
    outcome: Outcome,
}

pub struct PreparedPart {
    epoch: ControllerEpoch,
    part: u64,
    outcome: Result<Part, String>,
}

enum Outcome {
    Answered(Result<Vec<u8>, ApiError>),
    /// It is planned in steps, each of which the event loop can plan.
    InSteps,
    Batches {
        reply: Vec<u8>,
        batches: VecDeque<PreparedBatch>,
        rest: Option<Box<Unprepared>>,
    },
}

/// What the event loop does with a plan that has come back.
pub enum Accepted {
    /// The reply waits until the leadership is confirmed.
    Answer(Operation, Result<Vec<u8>, ApiError>),
    /// There are batches to propose.
    Propose,
    /// The event loop plans it in steps.
    InSteps(Operation),
    /// A part of it does not replay. What is proposed of it is a transaction without an end.
    Broken(Operation, String),
    /// It is to be prepared again, since something was planned meanwhile; or it came too late.
    Nothing,
}

impl LargePlans {
    /// Queues an operation, unless as many wait as may: they are no longer in the bounded queue.
    pub fn push(&mut self, operation: Operation) {
        if self.waiting.len() < WAITING_MAX {
            return self.waiting.push_back(operation);
        }
        let message = format!("{WAITING_MAX} large operations wait already; nothing was done");
        operation.refuse(ApiError::new(ErrorName::Throttled, message));
    }

    /// Whether a plan is being made or proposed.
    pub fn has_active_plan(&self) -> bool {
        self.stage.is_some()
    }

    /// Whether a plan is being made or proposed, or waits.
    pub fn is_busy(&self) -> bool {
        self.has_active_plan() || !self.waiting.is_empty()
    }

    /// The next operation to prepare, if none is in hand.
    pub fn start(&mut self, now: Instant) -> Option<Operation> {
        if !self.can_start() {
            return None;
        }
        let operation = self.take_waiting()?;
        let Operation { name, number, weight, .. } = operation;
        self.stage = Some(Stage::Preparing(Making { name, number, until: now + time_to_prepare(weight.records) }));
        Some(operation)
    }

    /// The next operation whose caller still waits.
    fn take_waiting(&mut self) -> Option<Operation> {
        while let Some(operation) = self.waiting.pop_front() {
            if !operation.is_abandoned() {
                return Some(operation);
            }
        }
        None
    }

    /// Gives up a plan that is not made in time, so that others need not wait for it.
    pub fn give_up_overdue(&mut self, now: Instant) -> Option<Overdue> {
        if let Some(Making { name, number, .. }) = self.displaced.take_if(|displaced| displaced.until <= now) {
            return Some(Overdue::Plan { name, number });
        }
        let is_overdue = match &self.stage {
            Some(Stage::Preparing(making)) => making.until <= now,
            Some(Stage::Proposing(proposing)) => matches!(proposing.rest, Rest::Awaited { until, .. } if until <= now),
            None => false,
        };
        match self.stage.take_if(|_| is_overdue)? {
            Stage::Preparing(Making { name, number, .. }) => Some(Overdue::Plan { name, number }),
            Stage::Proposing(proposing) => Some(Overdue::Part(proposing.operation)),
        }
    }

    pub fn can_start(&self) -> bool {
        self.stage.is_none() && self.displaced.is_none() && !self.waiting.is_empty()
    }

    /// Whether a plan is on its way into the log, so that nothing else may be planned.
    pub fn is_proposing(&self) -> bool {
        matches!(&self.stage, Some(Stage::Proposing(_)))
    }

    /// Whether there is a batch to propose.
    pub fn has_batches(&self) -> bool {
        matches!(&self.stage, Some(Stage::Proposing(proposing)) if !proposing.batches.is_empty())
    }

    /// Takes in what was prepared under this claim.
    pub fn accept(&mut self, prepared: Prepared, draft: &Ledger) -> Accepted {
        match prepared {
            Prepared::Plan(plan) => self.accept_plan(plan, draft),
            Prepared::Part(part) => self.accept_part(part),
        }
    }

    fn accept_plan(&mut self, prepared: PreparedPlan, draft: &Ledger) -> Accepted {
        let PreparedPlan { base, operation, outcome, .. } = prepared;
        let is_awaited = matches!(self.stage, Some(Stage::Preparing(making)) if making.number == operation.number);
        if self.displaced.take_if(|displaced| displaced.number == operation.number).is_some() {
            info!(operation = operation.name, "displaced: it is planned again");
            self.waiting.push_front(operation);
            return Accepted::Nothing;
        }
        if !is_awaited {
            // It was given up, or prepared for a claim before this one.
            operation.refuse(not_controller());
            return Accepted::Nothing;
        }
        self.stage = None;
        if base != draft.working().next_offset {
            info!(operation = operation.name, "plan is stale: it is made again");
            self.waiting.push_front(operation);
            return Accepted::Nothing;
        }
        match outcome {
            Outcome::Answered(reply) => Accepted::Answer(operation, reply),
            Outcome::InSteps => Accepted::InSteps(operation),
            Outcome::Batches { reply, batches, rest } => {
                let rest = rest.map_or(Rest::Nothing, Rest::ToPrepare);
                self.stage = Some(Stage::Proposing(Box::new(Proposing { operation, reply, batches, rest })));
                Accepted::Propose
            }
        }
    }

    fn accept_part(&mut self, prepared: PreparedPart) -> Accepted {
        let PreparedPart { part, outcome, .. } = prepared;
        let is_awaited = |stage: &mut Stage| match stage {
            Stage::Proposing(proposing) => {
                matches!(proposing.rest, Rest::Awaited { part: awaited, .. } if awaited == part)
            }
            Stage::Preparing(_) => false,
        };
        // The plan may have given way, or have been given up.
        let Some(Stage::Proposing(mut proposing)) = self.stage.take_if(is_awaited) else { return Accepted::Nothing };
        match outcome {
            Ok((batches, rest)) => {
                proposing.batches.extend(batches);
                proposing.rest = rest.map_or(Rest::Nothing, Rest::ToPrepare);
                self.stage = Some(Stage::Proposing(proposing));
                Accepted::Propose
            }
            Err(broken) => Accepted::Broken(proposing.operation, broken),
        }
    }

    /// Batches that were prepared for the draft as it is. A plan that is still being made is stale by them.
    pub fn propose(&mut self, operation: Operation, reply: Vec<u8>, batches: VecDeque<PreparedBatch>) {
        if let Some(Stage::Preparing(making)) = self.stage {
            self.displaced = Some(making);
        }
        let proposing = Proposing { operation, reply, batches, rest: Rest::Nothing };
        self.stage = Some(Stage::Proposing(Box::new(proposing)));
    }

    /// The next batch, and what to answer once it is committed: that is with the last one.
    pub fn next_batch(&mut self) -> Option<(PreparedBatch, Option<Parked>)> {
        let Some(Stage::Proposing(proposing)) = &mut self.stage else { return None };
        let batch = proposing.batches.pop_front()?;
        if !proposing.batches.is_empty() || !matches!(proposing.rest, Rest::Nothing) {
            return Some((batch, None));
        }
        let Some(Stage::Proposing(proposing)) = self.stage.take() else { unreachable!("the stage was just looked at") };
        let Proposing { operation, reply, .. } = *proposing;
        Some((batch, Some(Parked { sender: operation.reply, reply: Ok(reply) })))
    }

    /// What to prepare next, as part `part`, a number that no other part of this process has. Beside what is in flight no
    /// more than two parts are encoded.
    pub fn next_part(&mut self, part: u64, now: Instant) -> Option<Box<Unprepared>> {
        let Some(Stage::Proposing(proposing)) = &mut self.stage else { return None };
        if proposing.batches.len() > BATCHES_PER_PART || !matches!(proposing.rest, Rest::ToPrepare(_)) {
            return None;
        }
        let until = now + time_to_prepare(RECORDS_PER_PART);
        match std::mem::replace(&mut proposing.rest, Rest::Awaited { part, until }) {
            Rest::ToPrepare(unprepared) => Some(unprepared),
            Rest::Nothing | Rest::Awaited { .. } => unreachable!("it was just looked at"),
        }
    }

    /// Gives way: a plan that is being made is stale when it comes, batches that are not proposed yet are dropped, and the
    /// operation is planned again. True if there were batches, so that a transaction may be open.
    pub fn interrupt(&mut self) -> bool {
        match self.stage.take() {
            Some(Stage::Proposing(proposing)) => {
                info!(operation = proposing.operation.name, "interrupted: it is planned again");
                self.waiting.push_front(proposing.operation);
                true
            }
            Some(Stage::Preparing(making)) => {
                self.displaced = Some(making);
                false
            }
            None => false,
        }
    }

    /// The claim is lost. What was proposed of a plan replays to nothing without its end, or to what a retry finds.
    pub fn fail_all(&mut self) {
        let proposing = match self.stage.take() {
            Some(Stage::Proposing(proposing)) => Some(proposing.operation),
            Some(Stage::Preparing(_)) | None => None,
        };
        self.displaced = None;
        for operation in proposing.into_iter().chain(self.waiting.drain(..)) {
            operation.refuse(not_controller());
        }
    }
}

/// What is given up.
pub enum Overdue {
    /// The operation is where its plan is made.
    Plan { name: &'static str, number: u64 },
    /// A part of the plan is not made, and what is proposed of it is a transaction without an end.
    Part(Operation),
}

impl Prepared {
    pub fn epoch(&self) -> ControllerEpoch {
        match self {
            Self::Plan(plan) => plan.epoch,
            Self::Part(part) => part.epoch,
        }
    }

    /// The claim that it was made for is gone.
    pub fn refuse(self) {
        match self {
            Self::Plan(plan) => plan.operation.refuse(not_controller()),
            // Its operation was refused with the claim.
            Self::Part(_) => {}
        }
    }
}

pub fn not_controller() -> ApiError {
    ApiError::new(ErrorName::NotController, "this node is not the active controller")
}

/// Plans, replays and encodes; pure, and long.
pub fn prepare(mut operation: Operation, draft: Ledger, stamp: Stamp, mut rng: Rng) -> Prepared {
    let base = draft.working().next_offset;
    let outcome = match batcher::plan(&mut operation, &draft, stamp.epoch, &mut rng) {
        Planned::Answered(reply) => Outcome::Answered(reply),
        Planned::Records { batches, reply } => first_part(&operation, Unprepared::new(&draft, stamp, batches), reply),
        Planned::Step(records) if operation.plan_only => {
            Outcome::Answered(all_steps(&mut operation, draft, stamp, &mut rng, records))
        }
        Planned::Step(_) => Outcome::InSteps,
    };
    Prepared::Plan(PreparedPlan { epoch: stamp.epoch, base, operation, outcome })
}

/// Replays and encodes the next part of a plan.
pub fn prepare_part(part: u64, unprepared: Box<Unprepared>) -> Prepared {
    let epoch = unprepared.epoch();
    Prepared::Part(PreparedPart { epoch, part, outcome: unprepared.prepare(BATCHES_PER_PART) })
}

/// The reply of an operation that only plans: the records of all its steps, each on what the one before leads to.
fn all_steps(
    operation: &mut Operation,
    mut draft: Ledger,
    stamp: Stamp,
    rng: &mut Rng,
    mut step: Vec<Record>,
) -> Result<Vec<u8>, ApiError> {
    let position = Position { controller_epoch: stamp.epoch, offset: draft.working().next_offset };
    let mut records = Vec::new();
    loop {
        let (next, replayed) =
            batcher::replay(&draft, stamp, step).map_err(|broken| does_not_replay(operation.name, &broken))?;
        draft = next;
        records.extend(replayed);
        let plan = operation.mutation.plan(draft.working(), rng)?;
        if !plan.is_partial {
            records.extend(plan.records);
            return Ok(operation.mutation.reply(&position, &records));
        }
        step = plan.records;
    }
}

/// Only a transaction is prepared in parts: of others nothing could be taken back if a later part did not replay.
fn first_part(operation: &Operation, unprepared: Box<Unprepared>, reply: Vec<u8>) -> Outcome {
    let count = if operation.atomic { BATCHES_PER_PART } else { usize::MAX };
    match unprepared.prepare(count) {
        Ok((batches, rest)) => Outcome::Batches { reply, batches, rest },
        Err(broken) => Outcome::Answered(Err(does_not_replay(operation.name, &broken))),
    }
}

/// A plan that does not replay is a defect of this program: it is refused loudly, and harms no other operation.
pub fn does_not_replay(operation: &str, broken: &str) -> ApiError {
    error!(operation, broken, "plan refused: it does not replay");
    let message = format!("the plan for {operation} would break the metadata ({broken}); nothing was changed");
    ApiError::new(ErrorName::UnknownServerError, message)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A transaction of which a part is awaited.
    fn awaiting(part: u64, until: Instant) -> LargePlans {
        let operation = Operation::internal("test", |_, _| unreachable!("it is planned"));
        let (reply, batches, rest) = (Vec::new(), VecDeque::new(), Rest::Awaited { part, until });
        let proposing = Proposing { operation, reply, batches, rest };
        LargePlans { stage: Some(Stage::Proposing(Box::new(proposing))), ..LargePlans::default() }
    }

    fn part(part: u64) -> Prepared {
        let epoch = ControllerEpoch::new(1);
        Prepared::Part(PreparedPart { epoch, part, outcome: Err("broken".to_owned()) })
    }

    #[test]
    fn only_the_part_that_is_awaited_counts() {
        let mut plans = awaiting(2, Instant::now());
        assert!(matches!(plans.accept(part(1), &Ledger::default()), Accepted::Nothing));
        assert!(plans.is_proposing());
        assert!(matches!(plans.accept(part(2), &Ledger::default()), Accepted::Broken(..)));
        assert!(!plans.is_proposing());
    }

    #[test]
    fn a_part_has_its_own_time() {
        let now = Instant::now();
        let mut plans = awaiting(1, now + Duration::from_secs(1));
        assert!(plans.give_up_overdue(now).is_none() && plans.is_proposing());
        assert!(matches!(plans.give_up_overdue(now + Duration::from_secs(1)), Some(Overdue::Part(_))));
        assert!(!plans.is_proposing());
    }
}
