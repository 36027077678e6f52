//! What one partition is sent: batches in their order, one under way at a time. Pure.

use std::collections::VecDeque;
use std::time::Duration;

use prost::Message as _;
use quorate_metadata::ApiError;
use quorate_proto::log::{ProducerStamp, Record, RecordBatch, RecordHeader, Records};
use tokio::time::Instant;

use super::{Acknowledged, ProducedRecord, Promise, bytes_of};
use crate::error::ClientError;
use crate::world;

const RETRY_MIN: Duration = Duration::from_millis(20);
const RETRY_MAX: Duration = Duration::from_millis(200);

/// Sequences are 0 to i32::MAX, and then 0 again.
const SEQUENCES: i64 = 1 << 31;

pub struct Batch {
    /// Grows over all partitions of a producer.
    number: u64,
    records: Vec<Record>,
    promises: Vec<Promise>,
    bytes: usize,
    pub begun: Instant,
    /// Given when it is first sent, and kept: that is how a repetition is recognised.
    stamp: Option<ProducerStamp>,
    encoded: Option<RecordBatch>,
    /// It was sent, and its outcome is not known.
    pub maybe_appended: bool,
}

pub struct Lane {
    batches: VecDeque<Batch>,
    in_flight: bool,
    /// The producer whose sequence this partition is at.
    producer: Option<i64>,
    next_sequence: i32,
    retry_at: Option<Instant>,
    pause: Duration,
    /// Why the first batch is not acknowledged, as far as that was told.
    pub trouble: Option<ApiError>,
}

impl Default for Lane {
    fn default() -> Self {
        Self {
            batches: VecDeque::new(),
            in_flight: false,
            producer: None,
            next_sequence: 0,
            retry_at: None,
            pause: RETRY_MIN,
            trouble: None,
        }
    }
}

impl Lane {
    pub fn is_empty(&self) -> bool {
        self.batches.is_empty()
    }

    /// Adds a record to the last batch, or to a new one of that `number`. Says whether it is a new one.
    pub fn push(
        &mut self,
        (record, promise): (ProducedRecord, Promise),
        batch_bytes: usize,
        number: u64,
        now: Instant,
    ) -> bool {
        let bytes = bytes_of(&record);
        let first_may_grow = !self.in_flight || self.batches.len() > 1;
        let has_room =
            |batch: &&mut Batch| first_may_grow && batch.encoded.is_none() && batch.bytes + bytes <= batch_bytes;
        let record = to_wire(record);
        if let Some(batch) = self.batches.back_mut().filter(has_room) {
            batch.records.push(record);
            batch.promises.push(promise);
            batch.bytes += bytes;
            return false;
        }
        self.batches.push_back(Batch {
            number,
            records: vec![record],
            promises: vec![promise],
            bytes,
            begun: now,
            stamp: None,
            encoded: None,
            maybe_appended: false,
        });
        true
    }

    /// When the first batch may be sent; `None`: none can be now.
    pub fn due_at(&self, linger: Duration, batch_bytes: usize) -> Option<Instant> {
        let first = self.batches.front().filter(|_| !self.in_flight)?;
        let is_full = self.batches.len() > 1 || first.bytes >= batch_bytes || first.encoded.is_some();
        let lingered = if is_full { first.begun } else { first.begun + linger };
        Some(self.retry_at.map_or(lingered, |retry| retry.max(lingered)))
    }

    /// The first batch, ready for its way. `producer`: the id to begin with where the partition has none.
    pub fn take_off(&mut self, producer: Option<i64>) -> Option<RecordBatch> {
        let batch = self.batches.front_mut()?;
        self.in_flight = true;
        self.retry_at = None;
        let encoded = batch.encoded.get_or_insert_with(|| encode(std::mem::take(&mut batch.records)));
        if let (None, Some(current)) = (batch.stamp, producer) {
            let id = *self.producer.get_or_insert_with(|| {
                self.next_sequence = 0;
                current
            });
            batch.stamp = Some(ProducerStamp { id, epoch: 0, base_sequence: self.next_sequence });
            self.next_sequence = sequence_after(self.next_sequence, batch.promises.len());
            encoded.producer = batch.stamp;
        }
        Some(encoded.clone())
    }

    /// The leader knows nothing of the producer, and certainly has nothing of the batch: another begins with it.
    pub fn begin_anew(&mut self) {
        self.in_flight = false;
        self.producer = None;
        if let Some(batch) = self.batches.front_mut() {
            batch.stamp = None;
        }
    }

    /// The batch under way is acknowledged.
    pub fn landed(&mut self, partition: i32, base_offset: Option<i64>, leader_epoch: i32) {
        self.in_flight = false;
        self.pause = RETRY_MIN;
        self.trouble = None;
        let Some(batch) = self.batches.pop_front() else { return };
        for (at, promise) in (0..).zip(batch.promises) {
            let offset = base_offset.map(|base: i64| base + at);
            promise.keep(Ok(Acknowledged { partition, offset, leader_epoch }));
        }
    }

    /// The batch under way is to be sent again, at once where it is known to whom.
    pub fn again(&mut self, at_once: bool, maybe_appended: bool, now: Instant) {
        self.in_flight = false;
        if let Some(batch) = self.batches.front_mut() {
            batch.maybe_appended |= maybe_appended;
        }
        if at_once {
            self.retry_at = None;
        } else {
            self.retry_at = Some(now + self.pause);
            self.pause = (self.pause * 2).min(RETRY_MAX);
        }
    }

    /// The first batch has failed for good. What its sequence was is void: the partition begins anew with another id.
    /// Returns whether one is needed.
    pub fn failed(&mut self, error: &ClientError) -> bool {
        self.in_flight = false;
        self.trouble = None;
        let Some(batch) = self.batches.pop_front() else { return false };
        let was_stamped = batch.stamp.is_some();
        for promise in batch.promises {
            promise.keep(Err(error.clone()));
        }
        if was_stamped {
            self.producer = None;
        }
        was_stamped
    }

    pub fn first(&self) -> Option<&Batch> {
        self.batches.front()
    }

    /// How much the first batch takes in a request.
    pub fn first_bytes(&self) -> usize {
        self.first().map_or(0, |batch| batch.bytes)
    }

    /// Whether a batch up to that number is not yet done with.
    pub fn has_up_to(&self, number: u64) -> bool {
        self.first().is_some_and(|batch| batch.number <= number)
    }

    pub fn is_in_flight(&self) -> bool {
        self.in_flight
    }
}

fn encode(records: Vec<Record>) -> RecordBatch {
    let record_count = i32::try_from(records.len()).unwrap_or(i32::MAX);
    let max_timestamp_ms = records.iter().map(|record| record.timestamp_ms()).max().unwrap_or(0);
    let records = bytes::Bytes::from(Records { records }.encode_to_vec());
    let crc = Some(crc32fast::hash(&records));
    RecordBatch { record_count, max_timestamp_ms, records, crc, ..RecordBatch::default() }
}

fn to_wire(record: ProducedRecord) -> Record {
    let header = |(key, value)| RecordHeader { key, value };
    Record {
        key: record.key,
        value: record.value,
        timestamp_ms: Some(record.timestamp_ms.unwrap_or_else(world::wall_ms)),
        headers: record.headers.into_iter().map(header).collect(),
    }
}

fn sequence_after(sequence: i32, count: usize) -> i32 {
    let count = i64::try_from(count).unwrap_or(0);
    i32::try_from((i64::from(sequence) + count) % SEQUENCES).expect("it is below 2^31")
}
