//! The keys of a partition, and the sealed values of `meta`.
//!
//! A partition's keys begin with `topic id (16) | partition BE (4)`. In `batches` follows the *last* offset of the batch,
//! so that a seek to an offset finds the batch that has it. In `meta` follows the kind, and for kinds of a segment its
//! base offset.

use bytes::Buf;
use quorate_metadata::ids::{PartitionId, TopicId, TopicPartition};

use crate::batch::{LogOffset, StoredBatch};

pub const PREFIX: usize = 20;

/// Log start and high watermark. Every log has it, so it also says which logs there are.
pub const STATE: u8 = 0;
pub const EPOCHS: u8 = 1;
/// A closed segment.
pub const SEGMENT: u8 = 2;
/// The producers' state where a segment begins.
pub const PRODUCERS: u8 = 3;
/// How far the log is compacted. A log that never was, and has no gaps, has none.
pub const COMPACTION: u8 = 4;

/// The key of the owner of the directory: shorter than the keys of any partition.
pub const OWNER: &[u8] = b"owner";

/// The key of the run of the broker that had the directory open last.
pub const RUN: &[u8] = b"run";

/// The key of the version of the format of the directory.
pub const FORMAT: &[u8] = b"format";

pub fn prefix(partition: TopicPartition) -> Vec<u8> {
    let mut key = Vec::with_capacity(PREFIX + 9);
    key.extend_from_slice(partition.topic.as_bytes());
    key.extend_from_slice(&partition.partition.get().to_be_bytes());
    key
}

/// After every key of the partition, in both families: where the next one of the topic begins.
pub fn end(partition: TopicPartition) -> Vec<u8> {
    let mut key = Vec::with_capacity(PREFIX);
    key.extend_from_slice(partition.topic.as_bytes());
    key.extend_from_slice(&(partition.partition.get().cast_unsigned() + 1).to_be_bytes());
    key
}

/// The first key of a batch that has `offset` or a later one.
pub fn batch_from(partition: TopicPartition, offset: LogOffset) -> Vec<u8> {
    let mut key = prefix(partition);
    key.extend_from_slice(&offset.0.to_be_bytes());
    key
}

pub fn batch(partition: TopicPartition, batch: &StoredBatch) -> Vec<u8> {
    batch_from(partition, LogOffset(batch.next_offset().0 - 1))
}

pub fn meta(partition: TopicPartition, kind: u8) -> Vec<u8> {
    let mut key = prefix(partition);
    key.push(kind);
    key
}

pub fn segment(partition: TopicPartition, kind: u8, base: LogOffset) -> Vec<u8> {
    let mut key = meta(partition, kind);
    key.extend_from_slice(&base.0.to_be_bytes());
    key
}

/// The partition of a `STATE` key.
pub fn partition_of_state(key: &[u8]) -> Option<TopicPartition> {
    let (topic, rest) = key.split_first_chunk::<16>()?;
    let (partition, kind) = rest.split_first_chunk::<4>()?;
    let partition = PartitionId::new(i32::from_be_bytes(*partition));
    (kind == [STATE]).then(|| TopicPartition::new(TopicId::from_bytes(*topic), partition))
}

/// `crc32 | body`: the checksum covers the key too, so that a value under another's key is found out.
pub fn seal(key: &[u8], body: &[u8]) -> Vec<u8> {
    [&checksum(key, body).to_be_bytes(), body].concat()
}

pub fn unseal<'a>(key: &[u8], mut value: &'a [u8]) -> Result<&'a [u8], String> {
    match value.try_get_u32() {
        Ok(stored) if stored == checksum(key, value) => Ok(value),
        Ok(_) => Err("checksum mismatch in the meta data".into()),
        Err(_) => Err(format!("meta data of {} bytes", value.len())),
    }
}

fn checksum(key: &[u8], body: &[u8]) -> u32 {
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(key);
    hasher.update(body);
    hasher.finalize()
}
