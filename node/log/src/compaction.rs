//! Compaction of one log: of the records of a key only the last one stays, and a tombstone only for a while (Kafka's
//! `cleanup.policy=compact`).
//!
//! It reads beside the owner of the log, in steps of bounded size, and hands over what the owner has to write. First the dirty
//! part is read, to know the last offset of each of its keys; then the log is read from its start, and batches are rewritten
//! or dropped. A row is changed by itself and keeps its key, since a batch keeps its offsets: a part of a compaction is as
//! right as the whole, and one that ends early is begun again later.
//!
//! These batches stay, without records if need be: the first of each leader epoch, so that a new follower learns where the
//! epoch begins; the last of each segment, so that it gets to the log end; and those that a repetition of an idempotent
//! producer is recognised by.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;

use bytes::Bytes;
use quorate_metadata::ids::LeaderEpoch;

use crate::batch::{CorruptBatch, LogOffset, StoredBatch};
use crate::error::LogError;
use crate::producers::Producers;
use crate::records::Record;
use crate::rows::Rows;

/// Rows that one step changes, also where they are dropped.
const CHANGES_MAX: usize = 1_000;
/// What a key costs beside its own bytes: its place in the map and its allocation.
const KEY_OVERHEAD_BYTES: usize = 64;

/// What compaction goes by, as the configs of a topic have it.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct CompactionPolicy {
    /// `min.cleanable.dirty.ratio`: of the closed segments, so much must be dirty.
    pub min_dirty_ratio: f64,
    /// `delete.retention.ms`
    pub delete_retention_ms: i64,
    /// `min.compaction.lag.ms`: younger records stay as they are.
    pub min_lag_ms: i64,
    /// `max.compaction.lag.ms`: older ones do not, whatever the ratio.
    pub max_lag_ms: i64,
}

/// What a compaction may take, of one log at a time in a directory; beyond each by one batch.
#[derive(Debug, Clone, Copy)]
pub struct CompactionBounds {
    /// Keys of the dirty part in memory. What has more is compacted in parts.
    pub keys_bytes: usize,
    /// What one step reads: some milliseconds.
    pub read_bytes: u64,
    /// What one step has to write: no producer waits long for it.
    pub written_bytes: u64,
}

impl Default for CompactionBounds {
    fn default() -> Self {
        Self { keys_bytes: 32 << 20, read_bytes: 4 << 20, written_bytes: 1 << 20 }
    }
}

/// Where a compaction begins and ends.
#[derive(Debug)]
pub(crate) struct Plan {
    pub rows: Rows,
    /// Of the log that is read: what it was when the compaction began.
    pub history: Arc<()>,
    pub first: LogOffset,
    pub dirty_from: LogOffset,
    /// Where a closed segment ends.
    pub until: LogOffset,
    /// Base and end of the segments below `until`.
    pub segments: Vec<(LogOffset, LogOffset)>,
    /// The end of the segment in which it ends: whatever the log is truncated to, it is not below.
    pub committed: LogOffset,
    /// Where batches begin that a repetition is recognised by, now; and those that it would be if the log ended at `committed`
    /// are added from the disk.
    pub remembered: BTreeSet<LogOffset>,
    pub now_ms: i64,
    pub delete_retention_ms: i64,
    pub bounds: CompactionBounds,
}

/// One that is under way. Dropped, it leaves the log as it is then.
#[derive(Debug)]
pub struct Compaction {
    plan: Plan,
    is_begun: bool,
    is_mapping: bool,
    /// Up to here it has read.
    position: LogOffset,
    last_offsets: LastOffsets,
    epoch: Option<LeaderEpoch>,
    /// What is left of each segment.
    sizes: Vec<u64>,
    next_horizon_ms: i64,
}

/// What the owner of the log has to do.
#[derive(Debug)]
pub enum CompactionStep {
    /// Nothing yet.
    Read,
    Write(Rewritten),
    Done(CompactionEnd),
}

/// Batches to be written again or dropped.
#[derive(Debug)]
pub struct Rewritten {
    pub(crate) history: Arc<()>,
    pub(crate) until: LogOffset,
    pub(crate) changes: Vec<(StoredBatch, Option<StoredBatch>)>,
}

#[derive(Debug)]
pub struct CompactionEnd {
    pub(crate) history: Arc<()>,
    pub(crate) until: LogOffset,
    pub(crate) next_horizon_ms: i64,
    /// Base and bytes of the segments that were read to their end.
    pub(crate) sizes: Vec<(LogOffset, u64)>,
}

impl Compaction {
    pub(crate) fn new(plan: Plan) -> Self {
        let is_mapping = plan.dirty_from < plan.until;
        let position = if is_mapping { plan.dirty_from } else { plan.first };
        let sizes = vec![0; plan.segments.len()];
        let (last_offsets, next_horizon_ms) = (LastOffsets::default(), i64::MAX);
        Self { plan, is_begun: false, is_mapping, position, last_offsets, epoch: None, sizes, next_horizon_ms }
    }

    /// Reads on. Not to be called after `Done`.
    pub fn step(&mut self) -> Result<CompactionStep, LogError> {
        if !self.is_begun {
            let producers = self.plan.rows.producers_at(self.plan.committed)?;
            self.plan.remembered.extend(producers.iter().flat_map(Producers::remembered));
            self.is_begun = true;
            return Ok(CompactionStep::Read);
        }
        if self.is_mapping {
            self.map()?;
            return Ok(CompactionStep::Read);
        }
        let is_at_end = self.position >= self.plan.until;
        let changes = if is_at_end { Vec::new() } else { self.rewrite()? };
        if !changes.is_empty() {
            let (history, until) = (self.plan.history.clone(), self.plan.until);
            return Ok(CompactionStep::Write(Rewritten { history, until, changes }));
        }
        if self.position < self.plan.until { Ok(CompactionStep::Read) } else { Ok(CompactionStep::Done(self.end())) }
    }

    /// Learns the last offsets of the keys of the dirty part. Where they are too many, the compaction ends earlier.
    fn map(&mut self) -> Result<(), LogError> {
        let mut bytes = 0;
        for batch in self.plan.rows.clone().batches(self.position) {
            let batch = batch?;
            if batch.base_offset() >= self.plan.until {
                break;
            }
            for record in self.records(&batch)? {
                let offset = LogOffset(batch.base_offset().0 + i64::from(record.offset_delta));
                if let Some(key) = record.key {
                    self.last_offsets.add(&key, offset);
                }
            }
            self.position = batch.next_offset();
            if self.last_offsets.bytes > self.plan.bounds.keys_bytes {
                self.plan.until = self.position;
            }
            bytes += batch.size_bytes();
            if bytes > self.plan.bounds.read_bytes {
                return Ok(());
            }
        }
        self.is_mapping = false;
        self.position = self.plan.first;
        Ok(())
    }

    fn rewrite(&mut self) -> Result<Vec<(StoredBatch, Option<StoredBatch>)>, LogError> {
        let (mut read, mut written) = (0, 0);
        let bounds = self.plan.bounds;
        let mut changes = Vec::new();
        for batch in self.plan.rows.clone().batches(self.position) {
            let batch = batch?;
            if batch.base_offset() >= self.plan.until {
                self.position = self.plan.until;
                return Ok(changes);
            }
            let left = self.what_stays(&batch)?;
            self.note(&batch, left.as_ref());
            self.position = batch.next_offset();
            read += batch.size_bytes();
            if left.as_ref() != Some(&batch) {
                written += left.as_ref().map_or(0, StoredBatch::size_bytes);
                changes.push((batch, left));
            }
            if read > bounds.read_bytes || written > bounds.written_bytes || changes.len() >= CHANGES_MAX {
                return Ok(changes);
            }
        }
        self.position = self.plan.until;
        Ok(changes)
    }

    fn what_stays(&self, batch: &StoredBatch) -> Result<Option<StoredBatch>, LogError> {
        let horizon_ms = batch.delete_horizon_ms();
        let may_go = horizon_ms.is_some_and(|horizon_ms| horizon_ms <= self.plan.now_ms);
        let mut records = self.records(batch)?;
        records.retain(|record| {
            let offset = LogOffset(batch.base_offset().0 + i64::from(record.offset_delta));
            self.last_offsets.is_last(record.key.as_ref(), offset) && !(may_go && record.value.is_none())
        });
        if records.is_empty() {
            return if self.must_stay(batch) { self.keep(batch, &records, None).map(Some) } else { Ok(None) };
        }
        let has_tombstone = records.iter().any(|record| record.value.is_none());
        let fresh_ms = self.plan.now_ms.saturating_add(self.plan.delete_retention_ms);
        let horizon_ms = has_tombstone.then(|| horizon_ms.unwrap_or(fresh_ms));
        self.keep(batch, &records, horizon_ms).map(Some)
    }

    /// One that has nothing to lose stays as it is.
    fn keep(&self, batch: &StoredBatch, records: &[Record], horizon_ms: Option<i64>) -> Result<StoredBatch, LogError> {
        let is_whole = batch.record_count() as usize == records.len();
        if is_whole && (records.is_empty() || batch.delete_horizon_ms() == horizon_ms) {
            return Ok(batch.clone());
        }
        batch.keep(records, horizon_ms).map_err(|error| self.corrupt(batch, error))
    }

    fn must_stay(&self, batch: &StoredBatch) -> bool {
        let next = batch.next_offset();
        let ends_segment = self.plan.segments.binary_search_by_key(&next, |(_, end)| *end).is_ok();
        ends_segment || self.epoch != Some(batch.leader_epoch()) || self.plan.remembered.contains(&batch.base_offset())
    }

    fn note(&mut self, batch: &StoredBatch, left: Option<&StoredBatch>) {
        self.epoch = Some(batch.leader_epoch());
        let Some(left) = left else { return };
        let segment = self.plan.segments.partition_point(|(_, end)| *end <= batch.base_offset());
        if let Some(size) = self.sizes.get_mut(segment) {
            *size += left.size_bytes();
        }
        // One that has passed already has taken the tombstones.
        let horizon_ms = left.delete_horizon_ms().filter(|horizon_ms| *horizon_ms > self.plan.now_ms);
        self.next_horizon_ms = self.next_horizon_ms.min(horizon_ms.unwrap_or(i64::MAX));
    }

    fn end(&self) -> CompactionEnd {
        let sizes = self.plan.segments.iter().zip(&self.sizes);
        let whole = sizes.filter(|((_, end), _)| *end <= self.plan.until);
        CompactionEnd {
            history: self.plan.history.clone(),
            until: self.plan.until,
            next_horizon_ms: self.next_horizon_ms,
            sizes: whole.map(|((base, _), bytes)| (*base, *bytes)).collect(),
        }
    }

    fn records(&self, batch: &StoredBatch) -> Result<Vec<Record>, LogError> {
        batch.decode_records().map_err(|error| self.corrupt(batch, error))
    }

    fn corrupt(&self, batch: &StoredBatch, error: CorruptBatch) -> LogError {
        self.plan.rows.corrupt(batch.base_offset(), error.0.to_owned())
    }
}

/// The last offset of each key of the dirty part.
#[derive(Debug, Default)]
struct LastOffsets {
    by_key: HashMap<Box<[u8]>, LogOffset>,
    bytes: usize,
}

impl LastOffsets {
    fn add(&mut self, key: &Bytes, offset: LogOffset) {
        if let Some(last) = self.by_key.get_mut(&key[..]) {
            *last = offset;
            return;
        }
        self.bytes += key.len() + KEY_OVERHEAD_BYTES;
        // Copied, since the bytes of the record are a part of its batch's.
        self.by_key.insert(key[..].into(), offset);
    }

    /// A record without a key is what no later one replaces and nobody looks up: as in Kafka, it does not stay.
    fn is_last(&self, key: Option<&Bytes>, offset: LogOffset) -> bool {
        key.is_some_and(|key| self.by_key.get(&key[..]).is_none_or(|last| offset >= *last))
    }
}
