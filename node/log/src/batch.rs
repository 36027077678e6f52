//! One frame of bytes: the same on the leader's disk, on the way to a follower, and on the follower's disk. It is Kafka's
//! record batch, magic 2.
//!
//! Big endian: `base offset i64 | bytes after this field i32 | leader epoch i32 | magic i8 | crc32c u32 | attributes i16 |
//! last offset delta i32 | base timestamp i64 | max timestamp i64 | producer id i64 | producer epoch i16 | base sequence
//! i32 | record count i32 | records`. The checksum covers all that follows it: neither the offset, which the key of the row
//! confirms, nor the leader epoch. Without a producer, its three fields are -1.
//!
//! A batch covers the offsets from its first to its last, also those whose records compaction has removed. Frames of the
//! releases before this one are read as well ([`crate::frame_v1`]).

use std::fmt;

use bytes::{BufMut, Bytes, BytesMut};
use quorate_metadata::ids::LeaderEpoch;

use crate::frame_v1;
use crate::records::{self, Record};

const LENGTH: usize = 8;
/// Where what `LENGTH` counts begins.
const BODY: usize = 12;
const EPOCH: usize = 12;
const MAGIC: usize = 16;
const CRC: usize = 17;
const ATTRIBUTES: usize = 21;
const LAST_DELTA: usize = 23;
const BASE_TIMESTAMP: usize = 27;
const MAX_TIMESTAMP: usize = 35;
const PRODUCER: usize = 43;
const COUNT: usize = 57;
/// Bytes of a frame before its records.
pub const HEADER_BYTES: usize = 61;

const MAGIC_2: u8 = 2;
/// The base timestamp is the time from which tombstones may go (KIP-534). No other attribute is in use.
const HAS_DELETE_HORIZON: i16 = 0x40;

/// A position in the log of a partition: one per record.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct LogOffset(pub i64);

impl fmt::Display for LogOffset {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.0, f)
    }
}

impl fmt::Debug for LogOffset {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&self.0, f)
    }
}

/// By whom a batch was produced, so that it is taken once however often it is sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Producer {
    pub id: i64,
    pub epoch: i16,
    /// Of the first record.
    pub base_sequence: i32,
}

impl Producer {
    /// What a frame without a producer has in its place.
    const NONE: Self = Self { id: -1, epoch: -1, base_sequence: -1 };
}

/// What a leader is asked to append.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NewBatch {
    pub record_count: u32,
    /// What the times of the records are relative to.
    pub base_timestamp_ms: i64,
    pub max_timestamp_ms: i64,
    pub producer: Option<Producer>,
    /// Encoded, each at the offset after the one before.
    pub records: Bytes,
}

impl NewBatch {
    /// The records in this order, whatever their offset deltas say.
    pub fn of(mut records: Vec<Record>, producer: Option<Producer>) -> Result<Self, CorruptBatch> {
        let record_count = u32::try_from(records.len()).map_err(|_| CorruptBatch("record count out of range"))?;
        records.iter_mut().zip(0..).for_each(|(record, delta)| record.offset_delta = delta);
        let base_timestamp_ms = records.first().map_or(0, |record| record.timestamp_ms);
        let max_timestamp_ms = records.iter().map(|record| record.timestamp_ms).max().unwrap_or(0);
        let records = records::encode(&records, base_timestamp_ms)?;
        Ok(Self { record_count, base_timestamp_ms, max_timestamp_ms, producer, records })
    }
}

/// A batch with its place in the log. One that exists is whole: its checksum and its fields are verified.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoredBatch {
    frame: Bytes,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("corrupt batch: {0}")]
pub struct CorruptBatch(pub &'static str);

/// The fields of a frame that its checksum covers.
struct Fields<'a> {
    attributes: i16,
    last_offset_delta: i32,
    base_timestamp_ms: i64,
    max_timestamp_ms: i64,
    producer: Producer,
    record_count: u32,
    records: &'a [u8],
}

impl StoredBatch {
    /// Gives `batch` its place.
    pub fn new(base: LogOffset, epoch: LeaderEpoch, batch: &NewBatch) -> Result<Self, CorruptBatch> {
        if batch.record_count == 0 {
            return Err(CorruptBatch("record count out of range"));
        }
        if batch.producer == Some(Producer::NONE) {
            return Err(CorruptBatch("negative producer id"));
        }
        let last = i32::try_from(batch.record_count - 1).map_err(|_| CorruptBatch("record count out of range"))?;
        let fields = Fields {
            attributes: 0,
            last_offset_delta: last,
            base_timestamp_ms: batch.base_timestamp_ms,
            max_timestamp_ms: batch.max_timestamp_ms,
            producer: batch.producer.unwrap_or(Producer::NONE),
            record_count: batch.record_count,
            records: &batch.records,
        };
        Self::frame_of(base, epoch, &fields)
    }

    /// This batch with `kept` of its records, at the same offsets. With a delete horizon, its tombstones may go from then on.
    pub fn keep(&self, kept: &[Record], delete_horizon_ms: Option<i64>) -> Result<Self, CorruptBatch> {
        let base_timestamp_ms = delete_horizon_ms.unwrap_or_else(|| self.base_timestamp_ms());
        let latest = kept.iter().map(|record| record.timestamp_ms).max();
        let fields = Fields {
            attributes: if delete_horizon_ms.is_some() { HAS_DELETE_HORIZON } else { 0 },
            last_offset_delta: self.last_offset_delta(),
            base_timestamp_ms,
            max_timestamp_ms: latest.unwrap_or_else(|| self.max_timestamp_ms()),
            producer: self.stamp(),
            record_count: u32::try_from(kept.len()).map_err(|_| CorruptBatch("record count out of range"))?,
            records: &records::encode(kept, base_timestamp_ms)?,
        };
        Self::frame_of(self.base_offset(), self.leader_epoch(), &fields)
    }

    fn frame_of(base: LogOffset, epoch: LeaderEpoch, fields: &Fields<'_>) -> Result<Self, CorruptBatch> {
        let bytes = i32::try_from(HEADER_BYTES - BODY + fields.records.len());
        let mut frame = BytesMut::with_capacity(HEADER_BYTES + fields.records.len());
        frame.put_i64(base.0);
        frame.put_i32(bytes.map_err(|_| CorruptBatch("longer than 2 GiB"))?);
        frame.put_i32(epoch.get());
        frame.put_u8(MAGIC_2);
        frame.put_u32(0);
        frame.put_i16(fields.attributes);
        frame.put_i32(fields.last_offset_delta);
        frame.put_i64(fields.base_timestamp_ms);
        frame.put_i64(fields.max_timestamp_ms);
        frame.put_i64(fields.producer.id);
        frame.put_i16(fields.producer.epoch);
        frame.put_i32(fields.producer.base_sequence);
        frame.put_u32(fields.record_count);
        frame.put_slice(fields.records);
        let checksum = crc32c::crc32c(&frame[ATTRIBUTES..]);
        frame[CRC..ATTRIBUTES].copy_from_slice(&checksum.to_be_bytes());
        let stored = Self { frame: frame.freeze() };
        stored.check_fields()?;
        Ok(stored)
    }

    /// A frame as it is stored or sent; one of an earlier release becomes one of this.
    pub fn decode(frame: Bytes) -> Result<Self, CorruptBatch> {
        let bytes = frame.get(LENGTH..BODY).and_then(|bytes| bytes.try_into().ok()).map(i32::from_be_bytes);
        let is_whole = bytes.and_then(|bytes| usize::try_from(bytes).ok()) == frame.len().checked_sub(BODY);
        if !is_whole || frame.get(MAGIC) != Some(&MAGIC_2) {
            return frame_v1::decode(frame);
        }
        if frame.len() < HEADER_BYTES {
            return Err(CorruptBatch("shorter than its header"));
        }
        let batch = Self { frame };
        if u32::from_be_bytes(batch.field(CRC)) != crc32c::crc32c(&batch.frame[ATTRIBUTES..]) {
            return Err(CorruptBatch("checksum mismatch"));
        }
        batch.check_fields()?;
        Ok(batch)
    }

    fn check_fields(&self) -> Result<(), CorruptBatch> {
        let last = self.last_offset_delta();
        if last < 0 || i64::from(self.record_count()) > i64::from(last) + 1 {
            return Err(CorruptBatch("record count out of range"));
        }
        if self.base_offset().0 < 0 || self.base_offset().0.checked_add(i64::from(last) + 1).is_none() {
            return Err(CorruptBatch("offset out of range"));
        }
        if self.leader_epoch().get() < 0 {
            return Err(CorruptBatch("negative leader epoch"));
        }
        if self.attributes() & !HAS_DELETE_HORIZON != 0 {
            return Err(CorruptBatch("unknown attributes"));
        }
        match self.stamp() {
            Producer::NONE => Ok(()),
            Producer { id: ..0, .. } => Err(CorruptBatch("negative producer id")),
            Producer { epoch: ..0, .. } => Err(CorruptBatch("negative producer epoch")),
            Producer { base_sequence: ..0, .. } => Err(CorruptBatch("negative sequence")),
            _ => Ok(()),
        }
    }

    pub fn base_offset(&self) -> LogOffset {
        LogOffset(i64::from_be_bytes(self.field(0)))
    }

    /// After the last offset that the batch covers.
    pub fn next_offset(&self) -> LogOffset {
        LogOffset(self.base_offset().0 + i64::from(self.last_offset_delta()) + 1)
    }

    pub fn leader_epoch(&self) -> LeaderEpoch {
        LeaderEpoch::new(i32::from_be_bytes(self.field(EPOCH)))
    }

    fn attributes(&self) -> i16 {
        i16::from_be_bytes(self.field(ATTRIBUTES))
    }

    fn last_offset_delta(&self) -> i32 {
        i32::from_be_bytes(self.field(LAST_DELTA))
    }

    /// How many offsets it covers: as many as it had records when it was appended.
    pub fn offset_count(&self) -> u32 {
        self.last_offset_delta().cast_unsigned() + 1
    }

    /// How many records it has now.
    pub fn record_count(&self) -> u32 {
        u32::from_be_bytes(self.field(COUNT))
    }

    fn base_timestamp_ms(&self) -> i64 {
        i64::from_be_bytes(self.field(BASE_TIMESTAMP))
    }

    pub fn max_timestamp_ms(&self) -> i64 {
        i64::from_be_bytes(self.field(MAX_TIMESTAMP))
    }

    /// From when on its tombstones may go; `None`: compaction has not seen them yet.
    pub fn delete_horizon_ms(&self) -> Option<i64> {
        (self.attributes() & HAS_DELETE_HORIZON != 0).then(|| self.base_timestamp_ms())
    }

    pub fn producer(&self) -> Option<Producer> {
        Some(self.stamp()).filter(|stamp| *stamp != Producer::NONE)
    }

    fn stamp(&self) -> Producer {
        Producer {
            id: i64::from_be_bytes(self.field(PRODUCER)),
            epoch: i16::from_be_bytes(self.field(PRODUCER + 8)),
            base_sequence: i32::from_be_bytes(self.field(PRODUCER + 10)),
        }
    }

    /// Encoded.
    pub fn records(&self) -> Bytes {
        self.frame.slice(HEADER_BYTES..)
    }

    pub fn decode_records(&self) -> Result<Vec<Record>, CorruptBatch> {
        let records = records::decode(self.records(), self.record_count(), self.base_timestamp_ms())?;
        let is_in_order = records.is_sorted_by(|a, b| a.offset_delta < b.offset_delta);
        let covers = |record: &Record| (0..=self.last_offset_delta()).contains(&record.offset_delta);
        if !is_in_order || !records.iter().all(covers) {
            return Err(CorruptBatch("offset of a record out of range"));
        }
        Ok(records)
    }

    /// As it is stored and replicated.
    pub fn frame(&self) -> &Bytes {
        &self.frame
    }

    pub fn size_bytes(&self) -> u64 {
        self.frame.len() as u64
    }

    fn field<const N: usize>(&self, at: usize) -> [u8; N] {
        self.frame[at..at + N].try_into().expect("a frame has its header")
    }
}

#[cfg(test)]
mod tests;
