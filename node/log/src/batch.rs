//! One frame of bytes: the same on the leader's disk, on the way to a follower, and on the follower's disk.
//!
//! Big endian: `crc32 u32 | base offset i64 | leader epoch i32 | record count u32 | max timestamp i64 | producer id i64 |
//! producer epoch i16 | base sequence i32 | records`. The checksum covers all that follows it. Without a producer, its
//! three fields are -1.

use std::fmt;

use bytes::{BufMut, Bytes, BytesMut};
use quorate_metadata::ids::LeaderEpoch;

const CRC: usize = 4;
const EPOCH: usize = 12;
const COUNT: usize = 16;
const MAX_TIMESTAMP: usize = 20;
const PRODUCER: usize = 28;
/// Bytes of a frame before its records.
pub const HEADER_BYTES: usize = 42;

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
    pub max_timestamp_ms: i64,
    pub producer: Option<Producer>,
    pub records: Bytes,
}

/// A batch with its place in the log. One that exists is whole: its checksum and its fields are verified.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoredBatch {
    frame: Bytes,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("corrupt batch: {0}")]
pub struct CorruptBatch(pub &'static str);

impl StoredBatch {
    /// Gives `batch` its place.
    pub fn new(base: LogOffset, epoch: LeaderEpoch, batch: &NewBatch) -> Result<Self, CorruptBatch> {
        let producer = batch.producer.unwrap_or(Producer::NONE);
        let mut frame = BytesMut::with_capacity(HEADER_BYTES + batch.records.len());
        frame.put_u32(0);
        frame.put_i64(base.0);
        frame.put_i32(epoch.get());
        frame.put_u32(batch.record_count);
        frame.put_i64(batch.max_timestamp_ms);
        frame.put_i64(producer.id);
        frame.put_i16(producer.epoch);
        frame.put_i32(producer.base_sequence);
        frame.put_slice(&batch.records);
        let checksum = crc32fast::hash(&frame[CRC..]);
        frame[..CRC].copy_from_slice(&checksum.to_be_bytes());
        let stored = Self { frame: frame.freeze() };
        stored.check_fields()?;
        if batch.producer == Some(Producer::NONE) {
            return Err(CorruptBatch("negative producer id"));
        }
        Ok(stored)
    }

    pub fn decode(frame: Bytes) -> Result<Self, CorruptBatch> {
        if frame.len() < HEADER_BYTES {
            return Err(CorruptBatch("shorter than its header"));
        }
        let batch = Self { frame };
        if u32::from_be_bytes(batch.field(0)) != crc32fast::hash(&batch.frame[CRC..]) {
            return Err(CorruptBatch("checksum mismatch"));
        }
        batch.check_fields()?;
        Ok(batch)
    }

    fn check_fields(&self) -> Result<(), CorruptBatch> {
        let count = self.record_count();
        if count == 0 || i32::try_from(count).is_err() {
            return Err(CorruptBatch("record count out of range"));
        }
        if self.base_offset().0 < 0 || self.base_offset().0.checked_add(i64::from(count)).is_none() {
            return Err(CorruptBatch("offset out of range"));
        }
        if self.leader_epoch().get() < 0 {
            return Err(CorruptBatch("negative leader epoch"));
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
        LogOffset(i64::from_be_bytes(self.field(CRC)))
    }

    /// Of the record after the last.
    pub fn next_offset(&self) -> LogOffset {
        LogOffset(self.base_offset().0 + i64::from(self.record_count()))
    }

    pub fn leader_epoch(&self) -> LeaderEpoch {
        LeaderEpoch::new(i32::from_be_bytes(self.field(EPOCH)))
    }

    pub fn record_count(&self) -> u32 {
        u32::from_be_bytes(self.field(COUNT))
    }

    pub fn max_timestamp_ms(&self) -> i64 {
        i64::from_be_bytes(self.field(MAX_TIMESTAMP))
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

    pub fn records(&self) -> Bytes {
        self.frame.slice(HEADER_BYTES..)
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
mod tests {
    use super::*;

    fn batch() -> NewBatch {
        let producer = Some(Producer { id: 7, epoch: 2, base_sequence: 40 });
        NewBatch { record_count: 3, max_timestamp_ms: 99, producer, records: Bytes::from_static(b"abc") }
    }

    #[test]
    fn a_batch_survives_its_frame() {
        let stored = StoredBatch::new(LogOffset(10), LeaderEpoch::new(4), &batch()).unwrap();
        let read = StoredBatch::decode(stored.frame().clone()).unwrap();
        assert_eq!((read.base_offset(), read.next_offset()), (LogOffset(10), LogOffset(13)));
        assert_eq!((read.leader_epoch(), read.record_count()), (LeaderEpoch::new(4), 3));
        assert_eq!((read.max_timestamp_ms(), read.producer()), (99, batch().producer));
        assert_eq!(read.records(), batch().records);
    }

    #[test]
    fn no_flipped_bit_and_no_missing_byte_goes_unnoticed() {
        let stored = StoredBatch::new(LogOffset(10), LeaderEpoch::new(4), &batch()).unwrap();
        for at in 0..stored.frame().len() {
            let mut damaged = stored.frame().to_vec();
            damaged[at] ^= 0x10;
            assert!(StoredBatch::decode(damaged.into()).is_err(), "byte {at}");
            assert!(StoredBatch::decode(stored.frame().slice(..at)).is_err(), "cut at {at}");
        }
    }

    #[test]
    fn without_a_producer_nothing_of_one_is_there() {
        let none = NewBatch { producer: None, ..batch() };
        let stored = StoredBatch::new(LogOffset(10), LeaderEpoch::new(4), &none).unwrap();
        assert_eq!(StoredBatch::decode(stored.frame().clone()).unwrap().producer(), None);
        let mut other = stored.frame().to_vec();
        other[PRODUCER + 9] = 0;
        let checksum = crc32fast::hash(&other[CRC..]);
        other[..CRC].copy_from_slice(&checksum.to_be_bytes());
        assert_eq!(StoredBatch::decode(other.into()), Err(CorruptBatch("negative producer id")));
    }

    #[test]
    fn fields_out_of_range_are_refused() {
        let epoch = LeaderEpoch::new(0);
        let refused = |base, batch: NewBatch| StoredBatch::new(LogOffset(base), epoch, &batch).unwrap_err().0;
        assert_eq!(refused(0, NewBatch { record_count: 0, ..batch() }), "record count out of range");
        assert_eq!(refused(i64::MAX, batch()), "offset out of range");
        let producer = |id, epoch, base_sequence| Some(Producer { id, epoch, base_sequence });
        assert_eq!(refused(0, NewBatch { producer: producer(-1, 0, 0), ..batch() }), "negative producer id");
        assert_eq!(refused(0, NewBatch { producer: producer(-1, -1, -1), ..batch() }), "negative producer id");
        assert_eq!(refused(0, NewBatch { producer: producer(1, -1, 0), ..batch() }), "negative producer epoch");
        assert_eq!(refused(0, NewBatch { producer: producer(1, 0, -1), ..batch() }), "negative sequence");
    }
}
