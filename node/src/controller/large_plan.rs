//! Operations that change much: planned beside the event loop, on a clone of the draft, and proposed batch by batch as
//! room appears.
//!
//! While one is prepared or proposed, other operations wait in their queue, so that it is made once. Fencing does not
//! wait: it goes ahead, which makes the plan stale (it was made for another offset), and a transaction that was begun is
//! aborted; then the operation is planned again.

use std::collections::VecDeque;
use std::time::Duration;

use quorate_metadata::ids::{ControllerEpoch, Offset};
use quorate_metadata::image::Ledger;
use quorate_metadata::rng::Rng;
use quorate_metadata::{ApiError, ErrorName, Record};
use tokio::time::Instant;
use tracing::{error, info};

use super::batcher::{self, Planned, PreparedBatch, Stamp};
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

/// The large operation in hand, and those that wait for it.
#[derive(Default)]
pub struct LargePlans {
    waiting: VecDeque<Operation>,
    stage: Option<Stage>,
    /// A plan that is still being made, and before which another one is proposed: it is stale when it comes.
    displaced: Option<Displaced>,
}

struct Displaced {
    name: &'static str,
    number: u64,
    until: Instant,
}

enum Stage {
    /// Its plan is being made elsewhere.
    Preparing {
        name: &'static str,
        number: u64,
        until: Instant,
    },
    Proposing(Proposing),
}

/// A plan on its way into the log.
pub struct Proposing {
    operation: Operation,
    reply: Vec<u8>,
    batches: VecDeque<PreparedBatch>,
}

/// A plan as it comes back to the event loop.
pub struct Prepared {
    /// The claim and the offset that it was made for.
    epoch: ControllerEpoch,
    base: Offset,
    operation: Operation,
    outcome: Outcome,
}

enum Outcome {
    Answered(Result<Vec<u8>, ApiError>),
    /// It is planned in steps, each of which the event loop can plan.
    InSteps,
    Batches {
        reply: Vec<u8>,
        batches: VecDeque<PreparedBatch>,
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
    /// It is to be prepared again, since something was planned meanwhile; or it came too late.
    Nothing,
}

impl LargePlans {
    pub fn push(&mut self, operation: Operation) {
        self.waiting.push_back(operation);
    }

    /// Whether other operations have to wait.
    pub fn is_busy(&self) -> bool {
        self.stage.is_some() || !self.waiting.is_empty()
    }

    /// The next operation to prepare, if none is in hand.
    pub fn start(&mut self, now: Instant) -> Option<Operation> {
        if !self.can_start() {
            return None;
        }
        let operation = self.waiting.pop_front()?;
        let Operation { name, number, weight, .. } = operation;
        self.stage = Some(Stage::Preparing { name, number, until: now + time_to_prepare(weight.records) });
        Some(operation)
    }

    /// Gives up a plan that is not made in time, so that others need not wait for it; its name and number.
    pub fn give_up_overdue(&mut self, now: Instant) -> Option<(&'static str, u64)> {
        if let Some(Displaced { name, number, .. }) = self.displaced.take_if(|displaced| displaced.until <= now) {
            return Some((name, number));
        }
        match self.stage {
            Some(Stage::Preparing { name, number, until }) if until <= now => {
                self.stage = None;
                Some((name, number))
            }
            Some(Stage::Preparing { .. } | Stage::Proposing(_)) | None => None,
        }
    }

    pub fn can_start(&self) -> bool {
        self.stage.is_none() && self.displaced.is_none() && !self.waiting.is_empty()
    }

    pub fn has_batches(&self) -> bool {
        matches!(&self.stage, Some(Stage::Proposing(_)))
    }

    /// Takes in a plan that was prepared under this claim.
    pub fn accept(&mut self, prepared: Prepared, draft: &Ledger) -> Accepted {
        let Prepared { base, operation, outcome, .. } = prepared;
        let is_awaited = matches!(self.stage, Some(Stage::Preparing { number, .. }) if number == operation.number);
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
            Outcome::Batches { reply, batches } => {
                self.propose(operation, reply, batches);
                Accepted::Propose
            }
        }
    }

    /// Batches that were prepared for the draft as it is. A plan that is still being made is stale by them.
    pub fn propose(&mut self, operation: Operation, reply: Vec<u8>, batches: VecDeque<PreparedBatch>) {
        if let Some(Stage::Preparing { name, number, until }) = self.stage {
            self.displaced = Some(Displaced { name, number, until });
        }
        self.stage = Some(Stage::Proposing(Proposing { operation, reply, batches }));
    }

    /// The next batch, and what to answer once it is committed: that is with the last one.
    pub fn next_batch(&mut self) -> Option<(PreparedBatch, Option<Parked>)> {
        let Some(Stage::Proposing(proposing)) = &mut self.stage else { return None };
        let batch = proposing.batches.pop_front()?;
        if !proposing.batches.is_empty() {
            return Some((batch, None));
        }
        let Some(Stage::Proposing(Proposing { operation, reply, .. })) = self.stage.take() else {
            unreachable!("the stage was just looked at")
        };
        Some((batch, Some(Parked { sender: operation.reply, reply: Ok(reply) })))
    }

    /// Gives way: batches that are not proposed yet are dropped, and their operation is planned again. True if there were
    /// any, so that a transaction may be open.
    pub fn interrupt(&mut self) -> bool {
        match self.stage.take() {
            Some(Stage::Proposing(Proposing { operation, .. })) => {
                info!(operation = operation.name, "interrupted: it is planned again");
                self.waiting.push_front(operation);
                true
            }
            other => {
                self.stage = other;
                false
            }
        }
    }

    /// The claim is lost. What was proposed of a plan replays to nothing without its end, or to what a retry finds.
    pub fn fail_all(&mut self) {
        let proposing = match self.stage.take() {
            Some(Stage::Proposing(Proposing { operation, .. })) => Some(operation),
            Some(Stage::Preparing { .. }) | None => None,
        };
        self.displaced = None;
        for operation in proposing.into_iter().chain(self.waiting.drain(..)) {
            operation.refuse(not_controller());
        }
    }
}

impl Prepared {
    pub fn epoch(&self) -> ControllerEpoch {
        self.epoch
    }

    /// The claim that it was made for is gone.
    pub fn refuse(self) {
        self.operation.refuse(not_controller());
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
        Planned::Records { batches, reply } => prepared(operation.name, &draft, stamp, batches, reply),
        Planned::Step(records) if operation.plan_only => {
            Outcome::Answered(all_steps(&mut operation, draft, stamp, &mut rng, records))
        }
        Planned::Step(_) => Outcome::InSteps,
    };
    Prepared { epoch: stamp.epoch, base, operation, outcome }
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

fn prepared(name: &'static str, draft: &Ledger, stamp: Stamp, batches: Vec<Vec<Record>>, reply: Vec<u8>) -> Outcome {
    match batcher::prepare(draft, stamp, batches) {
        Ok(batches) => Outcome::Batches { reply, batches },
        Err(broken) => Outcome::Answered(Err(does_not_replay(name, &broken))),
    }
}

/// A plan that does not replay is a defect of this program: it is refused loudly, and harms no other operation.
pub fn does_not_replay(operation: &str, broken: &str) -> ApiError {
    error!(operation, broken, "plan refused: it does not replay");
    let message = format!("the plan for {operation} would break the metadata ({broken}); nothing was changed");
    ApiError::new(ErrorName::UnknownServerError, message)
}
