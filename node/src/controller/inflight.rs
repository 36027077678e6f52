//! Replies that are not given yet, and what they wait for: their batch, or the office to be confirmed.

use std::collections::VecDeque;
use std::time::Duration;

use quorate_metadata::ids::Offset;
use quorate_metadata::{ApiError, ErrorName};
use tokio::sync::oneshot;
use tokio::time::Instant;
use tracing::debug;

use super::operation::Reply;
use crate::raft::{Outcome, ProposeError, ReadError};

/// Several batches travel at once, so that a commit never waits for the one before it to be answered. Rounds of heartbeats
/// for replies without records count as well: who floods a controller with refusals waits, as others do.
pub const IN_FLIGHT_MAX: usize = 8;

/// Steps of what changes much that travel at once: enough to keep the disk and the replays busy. Other mutations wait
/// behind them, and have room beside them.
const STEPS_IN_FLIGHT_MAX: usize = 6;

/// And in bytes: a batch is seldom above 1 MiB, and may have 4.
pub const IN_FLIGHT_BYTES_MAX: usize = 8 * 1024 * 1024;

pub struct Parked {
    pub sender: oneshot::Sender<Reply>,
    pub reply: Reply,
}

impl Parked {
    pub fn release(self) {
        // The caller may have given up meanwhile; nobody else wants the answer.
        let _ = self.sender.send(self.reply);
    }

    pub fn refuse(self, name: ErrorName, why: &str) {
        let _ = self.sender.send(Err(ApiError::new(name, why)));
    }
}

/// What replies wait for.
enum Awaited {
    /// Their records, which are in a batch; replayed here, the log is at `next_offset`.
    Replay {
        next_offset: Offset,
        bytes: usize,
        proposed_at: Instant,
        replayed: oneshot::Receiver<Result<Outcome, ProposeError>>,
    },
    /// They have no records, and are true if this node was still the controller when they were planned.
    Office(oneshot::Receiver<Result<(), ReadError>>),
}

/// Replies that wait for the same.
struct Waiting {
    awaited: Awaited,
    parked: Vec<Parked>,
    /// A step of what changes much.
    is_step: bool,
}

impl Waiting {
    fn fail(self) {
        let (name, why) = match self.awaited {
            Awaited::Replay { .. } => (
                ErrorName::OutcomeUnknown,
                "the controller changed before the commit was confirmed; it may have been applied",
            ),
            Awaited::Office(_) => (
                ErrorName::NotController,
                "no majority confirms that this node is still the controller; this attempt wrote nothing",
            ),
        };
        self.parked.into_iter().for_each(|parked| parked.refuse(name, why));
    }
}

/// In the order in which they were planned: each rests on all before it.
#[derive(Default)]
pub struct InFlight {
    waiting: VecDeque<Waiting>,
    bytes: usize,
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

impl InFlight {
    pub fn is_empty(&self) -> bool {
        self.waiting.is_empty()
    }

    pub fn is_full(&self) -> bool {
        self.waiting.len() >= IN_FLIGHT_MAX || self.bytes >= IN_FLIGHT_BYTES_MAX
    }

    /// Whether the next step of what changes much has to wait.
    pub fn is_full_of_steps(&self) -> bool {
        self.waiting.iter().filter(|waiting| waiting.is_step).count() >= STEPS_IN_FLIGHT_MAX
    }

    pub fn has_step(&self) -> bool {
        self.waiting.iter().any(|waiting| waiting.is_step)
    }

    /// What was pushed last is such a step.
    pub fn mark_step(&mut self) {
        if let Some(last) = self.waiting.back_mut() {
            last.is_step = true;
        }
    }

    /// Of the batches that are not replayed yet.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    pub fn push(
        &mut self,
        next_offset: Offset,
        bytes: usize,
        replayed: oneshot::Receiver<Result<Outcome, ProposeError>>,
        parked: Vec<Parked>,
    ) {
        self.bytes += bytes;
        self.waiting.push_back(Waiting {
            awaited: Awaited::Replay { next_offset, bytes, proposed_at: Instant::now(), replayed },
            parked,
            is_step: false,
        });
    }

    /// Replies without records, which also rest on everything in flight before them.
    pub fn push_without_records(&mut self, office: oneshot::Receiver<Result<(), ReadError>>, parked: Vec<Parked>) {
        self.waiting.push_back(Waiting { awaited: Awaited::Office(office), parked, is_step: false });
    }

    /// Waits for the oldest and releases its replies. Returns how long a batch was under way. Pending for ever while there is
    /// none. Cancel safe.
    pub async fn next_settled(&mut self) -> Result<Option<Duration>, LostClaim> {
        let Some(oldest) = self.waiting.front_mut() else { return std::future::pending().await };
        let may_be_given = oldest.awaited.may_be_given().await;
        let oldest = self.waiting.pop_front().expect("the oldest was just awaited");
        self.bytes -= oldest.awaited.bytes();
        let took = oldest.awaited.under_way_for();
        match may_be_given {
            Ok(true) => oldest.parked.into_iter().for_each(Parked::release),
            Ok(false) => oldest.fail(),
            Err(lost) => {
                oldest.fail();
                return Err(lost);
            }
        }
        Ok(took)
    }

    pub fn fail_all(&mut self) {
        self.waiting.drain(..).for_each(Waiting::fail);
        self.bytes = 0;
    }
}

impl Awaited {
    fn bytes(&self) -> usize {
        match self {
            Self::Replay { bytes, .. } => *bytes,
            Self::Office(_) => 0,
        }
    }

    /// None: it is no batch.
    fn under_way_for(&self) -> Option<Duration> {
        match self {
            Self::Replay { proposed_at, .. } => Some(proposed_at.elapsed()),
            Self::Office(_) => None,
        }
    }

    /// Whether the replies may be given. Without a majority that answers, the office may be kept all the same.
    async fn may_be_given(&mut self) -> Result<bool, LostClaim> {
        match self {
            Self::Replay { next_offset, replayed, .. } => {
                let outcome = replayed.await.unwrap_or(Err(ProposeError::Stopped));
                confirmed(outcome, *next_offset).map(|()| true)
            }
            Self::Office(office) => {
                let confirmed = office.await.unwrap_or(Err(ReadError::Stopped));
                Ok(confirmed.inspect_err(|why| debug!(%why, "the office is not confirmed")).is_ok())
            }
        }
    }
}

fn confirmed(outcome: Result<Outcome, ProposeError>, expected: Offset) -> Result<(), LostClaim> {
    match outcome? {
        Outcome::Replayed { next_offset } if next_offset == expected => Ok(()),
        Outcome::Replayed { next_offset } => Err(LostClaim::OffsetDiffers { expected, found: next_offset }),
        Outcome::WrongEpoch => Err(LostClaim::Overtaken),
    }
}

#[cfg(test)]
mod tests {
    use futures::FutureExt;

    use super::*;

    fn parked(reply: &[u8]) -> (Parked, oneshot::Receiver<Reply>) {
        let (sender, receiver) = oneshot::channel();
        (Parked { sender, reply: Ok(reply.to_vec()) }, receiver)
    }

    #[tokio::test]
    async fn a_reply_without_records_waits_for_the_office_and_for_what_is_in_flight_before_it() {
        let mut in_flight = InFlight::default();
        let (commit, replayed) = oneshot::channel();
        in_flight.push(Offset::new(7), 1, replayed, Vec::new());
        let (confirmation, office) = oneshot::channel();
        let (held, mut answer) = parked(b"empty plan");
        in_flight.push_without_records(office, vec![held]);
        confirmation.send(Ok(())).expect("somebody waits");
        let early = in_flight.next_settled().now_or_never();
        assert!(early.is_none() && answer.try_recv().is_err(), "it rests on the batch before it");
        commit.send(Ok(Outcome::Replayed { next_offset: Offset::new(7) })).expect("somebody waits");
        in_flight.next_settled().await.expect("the batch is replayed");
        assert!(answer.try_recv().is_err(), "it has not been looked at yet");
        in_flight.next_settled().await.expect("the office is kept");
        assert_eq!(answer.await.expect("an answer"), Ok(b"empty plan".to_vec()));
    }

    #[tokio::test]
    async fn room_is_bounded_in_batches_and_in_bytes_and_comes_back() {
        let replayed = || {
            let (commit, replayed) = oneshot::channel();
            commit.send(Ok(Outcome::Replayed { next_offset: Offset::new(7) })).expect("it waits");
            replayed
        };
        let mut in_flight = InFlight::default();
        in_flight.push(Offset::new(7), IN_FLIGHT_BYTES_MAX - 1, replayed(), Vec::new());
        assert!(!in_flight.is_full());
        in_flight.push(Offset::new(7), 1, replayed(), Vec::new());
        assert!(in_flight.is_full());
        in_flight.next_settled().await.expect("it is replayed");
        assert_eq!((in_flight.is_full(), in_flight.bytes()), (false, 1));
        (1..IN_FLIGHT_MAX - 1).for_each(|_| in_flight.push(Offset::new(7), 1, replayed(), Vec::new()));
        assert!(!in_flight.is_full());
        in_flight.push(Offset::new(7), 1, replayed(), Vec::new());
        assert!(in_flight.is_full());
        in_flight.fail_all();
        assert_eq!((in_flight.is_full(), in_flight.bytes()), (false, 0));
    }

    #[tokio::test]
    async fn steps_and_other_batches_leave_each_other_room() {
        let mut in_flight = InFlight::default();
        let push = |in_flight: &mut InFlight| {
            let (commit, replayed) = oneshot::channel();
            commit.send(Ok(Outcome::Replayed { next_offset: Offset::new(7) })).expect("it waits");
            in_flight.push(Offset::new(7), 1, replayed, Vec::new());
        };
        for _ in 0..STEPS_IN_FLIGHT_MAX {
            assert!(!in_flight.is_full_of_steps());
            push(&mut in_flight);
            in_flight.mark_step();
        }
        assert!(in_flight.is_full_of_steps() && !in_flight.is_full());
        in_flight.next_settled().await.expect("it is replayed");
        push(&mut in_flight);
        assert!(!in_flight.is_full_of_steps(), "a batch of others is no step");
    }

    #[tokio::test]
    async fn a_batch_that_did_not_replay_as_planned_ends_the_claim() {
        for outcome in [Outcome::WrongEpoch, Outcome::Replayed { next_offset: Offset::new(8) }] {
            let mut in_flight = InFlight::default();
            let (commit, replayed) = oneshot::channel();
            let (held, answer) = parked(b"created");
            in_flight.push(Offset::new(7), 1, replayed, vec![held]);
            commit.send(Ok(outcome)).expect("it waits");
            assert!(in_flight.next_settled().await.is_err());
            assert_eq!(answer.await.expect("an answer").map_err(|error| error.name), Err(ErrorName::OutcomeUnknown));
        }
    }

    #[tokio::test]
    async fn without_a_majority_a_reply_without_records_is_not_given() {
        let mut in_flight = InFlight::default();
        let (confirmation, office) = oneshot::channel();
        let (held, answer) = parked(b"stale");
        in_flight.push_without_records(office, vec![held]);
        confirmation.send(Err(ReadError::Stopped)).expect("somebody waits");
        in_flight.next_settled().await.expect("the office may be kept all the same");
        assert_eq!(answer.await.expect("an answer").map_err(|error| error.name), Err(ErrorName::NotController));
    }

    #[tokio::test]
    async fn who_resigns_tells_what_may_have_been_written_from_what_was_not() {
        let mut in_flight = InFlight::default();
        let (_commit, replayed) = oneshot::channel();
        let (_confirmation, office) = oneshot::channel();
        let (with_records, written) = parked(b"created");
        let (without_records, refused) = parked(b"exists already");
        in_flight.push(Offset::new(7), 1, replayed, vec![with_records]);
        in_flight.push_without_records(office, vec![without_records]);
        in_flight.fail_all();
        assert!(in_flight.is_empty());
        let name = |answer: Reply| answer.map_err(|error| error.name);
        assert_eq!(name(written.await.expect("an answer")), Err(ErrorName::OutcomeUnknown));
        assert_eq!(name(refused.await.expect("an answer")), Err(ErrorName::NotController));
    }
}
