//! Producers that wait for the leader's word on what it has appended for them.

use std::collections::VecDeque;

use quorate_log::LogOffset;
use quorate_metadata::{ApiError, ErrorName};
use tokio::sync::oneshot;

use super::leading::{Acks, Produced};

/// What waits for the replicas of one partition. One whose high watermark stands still must not use up what all
/// partitions of the broker share.
const REPLICATING_BYTES_MAX: usize = 16 << 20;

pub struct Waiting {
    pub end: LogOffset,
    pub bytes: usize,
    pub produced: Produced,
    pub reply: oneshot::Sender<Result<Produced, ApiError>>,
}

#[derive(Default)]
pub struct Acknowledgements {
    /// acks=all, by the offset that the high watermark has to reach.
    replicating: VecDeque<Waiting>,
    replicating_bytes: usize,
    /// acks=1, until the commit.
    written: Vec<Waiting>,
}

impl Acknowledgements {
    pub fn is_full(&self) -> bool {
        self.replicating_bytes > REPLICATING_BYTES_MAX
    }

    pub fn is_empty(&self) -> bool {
        self.replicating.is_empty() && self.written.is_empty()
    }

    pub fn add(&mut self, acks: Acks, waiting: Waiting) {
        match acks {
            Acks::None => waiting.acknowledge(),
            Acks::Leader => self.written.push(waiting),
            // A batch that was there before waits among the older ones.
            Acks::All => {
                let at = self.replicating.partition_point(|other| other.end <= waiting.end);
                self.replicating_bytes += waiting.bytes;
                self.replicating.insert(at, waiting);
            }
        }
    }

    /// After a commit, by whoever may lead.
    pub fn acknowledge(&mut self, high_watermark: LogOffset) {
        self.written.drain(..).for_each(Waiting::acknowledge);
        let committed = self.replicating.partition_point(|waiting| waiting.end <= high_watermark);
        for waiting in self.replicating.drain(..committed) {
            self.replicating_bytes -= waiting.bytes;
            waiting.acknowledge();
        }
    }

    /// The in-sync replicas are too few to promise that what was appended stays.
    pub fn not_enough_replicas(&mut self) {
        let message = "appended, but too few replicas are in sync to keep it";
        self.replicating_bytes = 0;
        fail(self.replicating.drain(..), &ApiError::new(ErrorName::NotEnoughReplicasAfterAppend, message));
    }

    /// What was appended may stay or go: others decide.
    pub fn give_up(&mut self, why: &str) {
        self.replicating_bytes = 0;
        let all = self.replicating.drain(..).chain(self.written.drain(..));
        fail(all, &ApiError::new(ErrorName::OutcomeUnknown, format!("appended, but {why}")));
    }
}

impl Waiting {
    fn acknowledge(self) {
        answer(self.reply, Ok(self.produced));
    }
}

fn fail(waiting: impl Iterator<Item = Waiting>, error: &ApiError) {
    waiting.for_each(|waiting| answer(waiting.reply, Err(error.clone())));
}

/// Who asked may have gone: then nobody misses the answer.
pub fn answer(reply: oneshot::Sender<Result<Produced, ApiError>>, outcome: Result<Produced, ApiError>) {
    let _ = reply.send(outcome);
}

#[cfg(test)]
mod tests {
    use quorate_metadata::ids::LeaderEpoch;

    use super::*;

    type Reply = oneshot::Receiver<Result<Produced, ApiError>>;

    fn waiting(end: i64, bytes: usize) -> (Waiting, Reply) {
        let (reply, answer) = oneshot::channel();
        let produced =
            Produced { base_offset: LogOffset(end - 1), leader_epoch: LeaderEpoch::new(1), log_start: LogOffset(0) };
        (Waiting { end: LogOffset(end), bytes, produced, reply }, answer)
    }

    fn said(reply: &mut Reply) -> Option<Result<i64, ErrorName>> {
        let answer = reply.try_recv().ok()?;
        Some(answer.map(|produced| produced.base_offset.0).map_err(|error| error.name))
    }

    #[test]
    fn what_is_appended_is_acknowledged_as_it_was_asked_for() {
        let mut all = Acknowledgements::default();
        let ((late, mut late_reply), (early, mut early_reply)) = (waiting(8, 1), waiting(5, 1));
        let (written, mut written_reply) = waiting(9, 1);
        all.add(Acks::All, late);
        all.add(Acks::All, early);
        all.add(Acks::Leader, written);
        all.acknowledge(LogOffset(5));
        assert_eq!(said(&mut early_reply), Some(Ok(4)));
        assert_eq!(said(&mut written_reply), Some(Ok(8)));
        assert_eq!(said(&mut late_reply), None);
    }

    #[test]
    fn what_a_former_leader_has_appended_is_nobodys_promise_and_nobodys_refusal() {
        let mut all = Acknowledgements::default();
        let ((replicating, mut first), (written, mut second)) = (waiting(1, 1), waiting(2, 1));
        all.add(Acks::All, replicating);
        all.add(Acks::Leader, written);
        all.give_up("the leadership is over");
        assert_eq!(said(&mut first), Some(Err(ErrorName::OutcomeUnknown)));
        assert_eq!(said(&mut second), Some(Err(ErrorName::OutcomeUnknown)));
    }

    #[test]
    fn what_waits_for_replicas_is_bounded_and_the_room_comes_back() {
        let mut all = Acknowledgements::default();
        let (first, _first) = waiting(1, REPLICATING_BYTES_MAX);
        let (second, _second) = waiting(2, 1);
        all.add(Acks::All, first);
        assert!(!all.is_full());
        all.add(Acks::All, second);
        assert!(all.is_full());
        all.acknowledge(LogOffset(1));
        assert!(!all.is_full());
        all.acknowledge(LogOffset(2));
        assert_eq!(all.replicating_bytes, 0);
    }
}
