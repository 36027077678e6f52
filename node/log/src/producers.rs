//! Idempotent producers: what each wrote last, so that a batch is taken once however often it is sent. Pure.
//!
//! The state is a function of the batches of the log alone: leader, follower and a log that is opened again agree.

use std::collections::{BTreeMap, VecDeque};

use bytes::{Buf, BufMut, TryGetError};

use crate::batch::{LogOffset, Producer, StoredBatch};
use crate::error::AppendRefused;

/// As many batches as a Kafka producer may have in flight.
const REMEMBERED_BATCHES: usize = 5;
/// Bounds memory and the size of a checkpoint (below 1 MiB). The producer that wrote longest ago is forgotten first. From
/// then on its first batch cannot be told from a repetition, nor can that of a new producer with a lower id: both are
/// refused, and a producer that has not written yet asks for an id above all that were given.
const PRODUCERS_MAX: usize = 4096;
/// The epoch in which no producer writes: this entry of a checkpoint says up to which id producers were forgotten.
const FORGOTTEN: i16 = -1;
/// Of a batch that is remembered, encoded.
const WRITTEN_BYTES: usize = 16;
/// Sequences are 0 to i32::MAX, and then 0 again.
const SEQUENCES: u32 = 1 << 31;

#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Producers {
    by_id: BTreeMap<i64, State>,
    /// The highest id of a producer that was forgotten.
    forgotten_up_to: Option<i64>,
}

/// The last batches are never empty, oldest first.
#[derive(Debug, Clone, PartialEq, Eq)]
struct State {
    epoch: i16,
    batches: VecDeque<Written>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Written {
    first_sequence: i32,
    last_sequence: i32,
    base: LogOffset,
}

impl Producers {
    /// May this batch be appended? `Some`: it was, at that offset.
    pub fn check(&self, producer: Producer, record_count: u32) -> Result<Option<LogOffset>, AppendRefused> {
        let first = producer.base_sequence;
        let Some(state) = self.by_id.get(&producer.id) else {
            let is_new = first == 0 && self.forgotten_up_to.is_none_or(|forgotten| producer.id > forgotten);
            return if is_new { Ok(None) } else { Err(AppendRefused::UnknownProducerId { id: producer.id }) };
        };
        if producer.epoch < state.epoch {
            return Err(AppendRefused::InvalidProducerEpoch { epoch: producer.epoch, current: state.epoch });
        }
        if producer.epoch > state.epoch {
            return expect_sequence(0, first);
        }
        let last = sequence_after(first, record_count - 1);
        let same = |written: &&Written| (written.first_sequence, written.last_sequence) == (first, last);
        if let Some(written) = state.batches.iter().find(same) {
            return Ok(Some(written.base));
        }
        let next = sequence_after(state.last().last_sequence, 1);
        if is_behind(first, next) && is_behind(last, next) {
            return Err(AppendRefused::DuplicateSequence { found: first });
        }
        expect_sequence(next, first)
    }

    /// The batch is in the log.
    pub fn record(&mut self, batch: &StoredBatch) {
        let Some(producer) = batch.producer() else { return };
        let last_sequence = sequence_after(producer.base_sequence, batch.offset_count() - 1);
        let written = Written { first_sequence: producer.base_sequence, last_sequence, base: batch.base_offset() };
        match self.by_id.get_mut(&producer.id) {
            Some(state) if state.epoch == producer.epoch => {
                state.batches.push_back(written);
                let forgotten = state.batches.len().saturating_sub(REMEMBERED_BATCHES);
                state.batches.drain(..forgotten);
            }
            _ => {
                self.by_id.insert(producer.id, State { epoch: producer.epoch, batches: [written].into() });
                self.forget_beyond_limit();
            }
        }
    }

    /// Where the batches begin that a repetition is recognised by.
    pub fn remembered(&self) -> impl Iterator<Item = LogOffset> {
        self.by_id.values().flat_map(|state| state.batches.iter().map(|written| written.base))
    }

    fn forget_beyond_limit(&mut self) {
        if self.by_id.len() > PRODUCERS_MAX
            && let Some((&id, _)) = self.by_id.iter().min_by_key(|(_, state)| state.last().base)
        {
            self.by_id.remove(&id);
            self.forgotten_up_to = self.forgotten_up_to.max(Some(id));
        }
    }

    pub fn encode(&self) -> Vec<u8> {
        let mut body = Vec::new();
        for (id, state) in &self.by_id {
            state.encode(*id, &mut body);
        }
        if let Some(forgotten) = self.forgotten_up_to {
            // As a producer, so that an earlier release can read it.
            let nothing = Written { first_sequence: 0, last_sequence: 0, base: LogOffset(0) };
            State { epoch: FORGOTTEN, batches: [nothing].into() }.encode(forgotten, &mut body);
        }
        body
    }

    pub fn decode(mut body: &[u8]) -> Result<Self, TryGetError> {
        let (mut by_id, mut forgotten_up_to) = (BTreeMap::new(), None);
        while body.has_remaining() {
            let (id, epoch, count) = (body.try_get_i64()?, body.try_get_i16()?, body.try_get_u8()?);
            if count == 0 {
                // A producer is known by a batch.
                return Err(TryGetError { requested: WRITTEN_BYTES, available: 0 });
            }
            let mut batches = VecDeque::new();
            for _ in 0..count {
                let (first_sequence, last_sequence) = (body.try_get_i32()?, body.try_get_i32()?);
                batches.push_back(Written { first_sequence, last_sequence, base: LogOffset(body.try_get_i64()?) });
            }
            if epoch == FORGOTTEN {
                forgotten_up_to = Some(id);
            } else {
                by_id.insert(id, State { epoch, batches });
            }
        }
        Ok(Self { by_id, forgotten_up_to })
    }
}

impl State {
    fn encode(&self, id: i64, body: &mut Vec<u8>) {
        body.put_i64(id);
        body.put_i16(self.epoch);
        body.put_u8(u8::try_from(self.batches.len()).expect("five at most"));
        for written in &self.batches {
            body.put_i32(written.first_sequence);
            body.put_i32(written.last_sequence);
            body.put_i64(written.base.0);
        }
    }

    fn last(&self) -> &Written {
        self.batches.back().expect("a producer is known by a batch")
    }
}

fn expect_sequence(expected: i32, found: i32) -> Result<Option<LogOffset>, AppendRefused> {
    if found == expected { Ok(None) } else { Err(AppendRefused::OutOfOrderSequence { found, expected }) }
}

fn sequence_after(sequence: i32, count: u32) -> i32 {
    let sum = sequence.cast_unsigned().wrapping_add(count) % SEQUENCES;
    sum.cast_signed()
}

/// In the half of the circle before `next`.
fn is_behind(sequence: i32, next: i32) -> bool {
    let distance = next.cast_unsigned().wrapping_sub(sequence.cast_unsigned()) % SEQUENCES;
    distance > 0 && distance < SEQUENCES / 2
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use quorate_metadata::ids::LeaderEpoch;

    use super::*;
    use crate::batch::NewBatch;

    fn stored(id: i64, base_sequence: i32, record_count: u32, base: i64) -> StoredBatch {
        let producer = Some(Producer { id, epoch: 0, base_sequence });
        let batch =
            NewBatch { record_count, base_timestamp_ms: 0, max_timestamp_ms: 0, producer, records: Bytes::new() };
        StoredBatch::new(LogOffset(base), LeaderEpoch::new(0), &batch).unwrap()
    }

    fn check(producers: &Producers, base_sequence: i32, count: u32) -> Result<Option<LogOffset>, AppendRefused> {
        producers.check(Producer { id: 1, epoch: 0, base_sequence }, count)
    }

    #[test]
    fn sequences_wrap_to_zero() {
        let mut producers = Producers::default();
        producers.record(&stored(1, i32::MAX - 1, 2, 0));
        assert_eq!(check(&producers, 0, 3), Ok(None));
        assert_eq!(check(&producers, i32::MAX - 1, 2), Ok(Some(LogOffset(0))));
        producers.record(&stored(1, 0, 1, 2));
        let behind = AppendRefused::DuplicateSequence { found: i32::MAX };
        assert_eq!(check(&producers, i32::MAX, 1), Err(behind));
        let ahead = AppendRefused::OutOfOrderSequence { found: 2, expected: 1 };
        assert_eq!(check(&producers, 2, 1), Err(ahead));

        let mut across = Producers::default();
        across.record(&stored(1, i32::MAX, 3, 0));
        assert_eq!(check(&across, 2, 1), Ok(None));
    }

    #[test]
    fn a_producer_without_a_batch_is_not_read() {
        let [id, epoch, count] = [&7_i64.to_be_bytes()[..], &0_i16.to_be_bytes(), &[0]];
        assert!(Producers::decode(&[id, epoch, count].concat()).is_err());
        assert!(Producers::decode(&[id, epoch, count, &[0; WRITTEN_BYTES]].concat()).is_err());
    }

    #[test]
    fn who_wrote_longest_ago_is_forgotten_first() {
        let mut producers = Producers::default();
        (0..=PRODUCERS_MAX as i64).for_each(|id| producers.record(&stored(id, 0, 1, id)));
        assert_eq!(producers.by_id.len(), PRODUCERS_MAX);
        assert!(!producers.by_id.contains_key(&0));
        let forgotten = Producer { id: 0, epoch: 0, base_sequence: 1 };
        assert_eq!(producers.check(forgotten, 1), Err(AppendRefused::UnknownProducerId { id: 0 }));
        assert_eq!(Producers::decode(&producers.encode()), Ok(producers));
    }

    #[test]
    fn the_first_batch_of_a_producer_that_was_forgotten_is_refused_and_that_of_a_later_one_taken() {
        let mut producers = Producers::default();
        let ids = 10..=10 + PRODUCERS_MAX as i64;
        ids.clone().for_each(|id| producers.record(&stored(id, 0, 1, id)));
        let producers = Producers::decode(&producers.encode()).unwrap();
        let first = |id| producers.check(Producer { id, epoch: 0, base_sequence: 0 }, 1);
        for id in [*ids.start(), 3] {
            assert_eq!(first(id), Err(AppendRefused::UnknownProducerId { id }), "it may be a repetition");
        }
        assert_eq!(first(ids.end() + 1), Ok(None));
        assert_eq!(first(*ids.end()), Ok(Some(LogOffset(*ids.end()))));
    }
}
