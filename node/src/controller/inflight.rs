//! Batches that were proposed and not yet replayed here, with the replies that wait for them.

use std::collections::VecDeque;

use quorate_metadata::ids::Offset;
use quorate_metadata::{ApiError, ErrorName};
use tokio::sync::oneshot;

use super::operation::Reply;
use crate::raft::{Outcome, ProposeError};

/// Several batches travel at once, so that a commit never waits for the one before it to be answered.
pub const BATCHES_IN_FLIGHT_MAX: usize = 8;

pub struct Parked {
    pub sender: oneshot::Sender<Reply>,
    pub reply: Reply,
}

impl Parked {
    pub fn release(self) {
        // The caller may have given up meanwhile; nobody else wants the answer.
        let _ = self.sender.send(self.reply);
    }

    fn fail(self) {
        let error = ApiError::new(
            ErrorName::OutcomeUnknown,
            "the controller changed before the commit was confirmed; it may have been applied",
        );
        let _ = self.sender.send(Err(error));
    }
}

struct InFlight {
    /// Where the log is once this batch is replayed.
    next_offset: Offset,
    replayed: oneshot::Receiver<Result<Outcome, ProposeError>>,
    parked: Vec<Parked>,
}

#[derive(Default)]
pub struct InFlightBatches {
    batches: VecDeque<InFlight>,
}

/// Why a claim cannot be kept.
#[derive(Debug, thiserror::Error)]
pub enum LostClaim {
    #[error("the proposal failed: {0}")]
    Propose(#[from] ProposeError),
    #[error("another controller's records came first")]
    Overtaken,
    #[error("replayed to offset {found} instead of {expected}")]
    OffsetDiffers { expected: Offset, found: Offset },
}

impl InFlightBatches {
    pub fn is_empty(&self) -> bool {
        self.batches.is_empty()
    }

    pub fn is_full(&self) -> bool {
        self.batches.len() >= BATCHES_IN_FLIGHT_MAX
    }

    pub fn push(
        &mut self,
        next_offset: Offset,
        replayed: oneshot::Receiver<Result<Outcome, ProposeError>>,
        parked: Vec<Parked>,
    ) {
        self.batches.push_back(InFlight { next_offset, replayed, parked });
    }

    /// Parks a reply that rests on everything in flight, or releases it when nothing is.
    pub fn park_behind_newest(&mut self, parked: Parked) {
        match self.batches.back_mut() {
            Some(newest) => newest.parked.push(parked),
            None => parked.release(),
        }
    }

    /// Waits for the oldest batch and releases its replies. Pending for ever while there is none. Cancel safe.
    pub async fn next_replayed(&mut self) -> Result<(), LostClaim> {
        let Some(oldest) = self.batches.front_mut() else { return std::future::pending().await };
        let outcome = (&mut oldest.replayed).await.unwrap_or(Err(ProposeError::Stopped));
        let oldest = self.batches.pop_front().expect("the oldest batch was just awaited");
        match confirmed(outcome, oldest.next_offset) {
            Ok(()) => oldest.parked.into_iter().for_each(Parked::release),
            Err(lost) => {
                oldest.parked.into_iter().for_each(Parked::fail);
                return Err(lost);
            }
        }
        Ok(())
    }

    pub fn fail_all(&mut self) {
        self.batches.drain(..).flat_map(|batch| batch.parked).for_each(Parked::fail);
    }
}

fn confirmed(outcome: Result<Outcome, ProposeError>, expected: Offset) -> Result<(), LostClaim> {
    match outcome? {
        Outcome::Replayed { next_offset } if next_offset == expected => Ok(()),
        Outcome::Replayed { next_offset } => Err(LostClaim::OffsetDiffers { expected, found: next_offset }),
        Outcome::WrongEpoch => Err(LostClaim::Overtaken),
    }
}
