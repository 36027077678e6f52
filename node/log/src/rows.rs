//! The rows of one log: what is read of them, and how a change is staged.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};

use bytes::{Buf, TryGetError};
use quorate_metadata::ids::{LeaderEpoch, TopicPartition};

use crate::batch::{LogOffset, StoredBatch};
use crate::directory::{LogDirectory, Writes};
use crate::epochs::Epochs;
use crate::error::LogError;
use crate::keys;
use crate::producers::Producers;
use crate::segments::Segment;
use crate::table::{Family, Row};

/// Rows of a family that are deleted one by one. A log without records has three.
const ROWS_BY_KEY_MAX: usize = 8;

#[derive(Clone)]
pub struct Rows {
    directory: LogDirectory,
    partition: TopicPartition,
    /// Below it batches may be missing, as far as any reader may meet: it does not go back.
    gaps_below: Arc<AtomicI64>,
}

/// How far a log is compacted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Compacted {
    /// From it on every offset belongs to a batch.
    pub gaps_below: LogOffset,
    /// Below it each key has one record, but for records that came in later.
    pub cleaned_to: LogOffset,
    /// When the first of the tombstones that are left below it may go.
    pub next_horizon_ms: i64,
}

impl Default for Compacted {
    fn default() -> Self {
        Self { gaps_below: LogOffset(0), cleaned_to: LogOffset(0), next_horizon_ms: i64::MAX }
    }
}

/// What is on disk beside the batches.
pub struct Meta {
    pub log_start: LogOffset,
    pub high_watermark: LogOffset,
    pub epochs: Epochs,
    pub closed: Vec<Segment>,
    /// Where the active segment begins.
    pub active: LogOffset,
    pub compacted: Compacted,
}

impl Compacted {
    fn encode(&self) -> Vec<u8> {
        [self.gaps_below.0, self.cleaned_to.0, self.next_horizon_ms].into_iter().flat_map(i64::to_be_bytes).collect()
    }

    fn decode(mut body: &[u8]) -> Result<Self, TryGetError> {
        let (gaps_below, cleaned_to) = (LogOffset(body.try_get_i64()?), LogOffset(body.try_get_i64()?));
        Ok(Self { gaps_below, cleaned_to, next_horizon_ms: body.try_get_i64()? })
    }
}

impl fmt::Debug for Rows {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "rows of {}", self.partition)
    }
}

impl Rows {
    pub fn new(directory: LogDirectory, partition: TopicPartition) -> Self {
        Self { directory, partition, gaps_below: Arc::default() }
    }

    /// Batches may be missing below `offset`.
    pub fn allow_gaps_below(&self, offset: LogOffset) {
        self.gaps_below.fetch_max(offset.0, Ordering::AcqRel);
    }

    pub fn gaps_below(&self) -> LogOffset {
        LogOffset(self.gaps_below.load(Ordering::Acquire))
    }

    /// Whether the log may have no batch between `end`, where one ends, and `next`, where the next one begins.
    pub fn is_gap(&self, end: LogOffset, next: LogOffset) -> bool {
        end < next && next <= self.gaps_below()
    }

    pub fn partition(&self) -> TopicPartition {
        self.partition
    }

    pub fn directory(&self) -> &LogDirectory {
        &self.directory
    }

    /// The batches that have `from` or a later offset, verified, in order.
    pub fn batches(&self, from: LogOffset) -> impl Iterator<Item = Result<StoredBatch, LogError>> {
        let mut before: Option<(LogOffset, LeaderEpoch)> = None;
        self.scan(Family::Batches, keys::batch_from(self.partition, from)).map(move |row| {
            let (key, frame) = row?;
            let corrupt = |reason: &str| self.corrupt(before.map_or(from, |(end, _)| end), reason.to_owned());
            let batch = StoredBatch::decode(frame).map_err(|error| corrupt(error.0))?;
            if *key != *keys::batch(self.partition, &batch) {
                return Err(corrupt("a batch under the key of another"));
            }
            if let Some((end, epoch)) = before {
                if batch.base_offset() < end || batch.leader_epoch() < epoch {
                    return Err(corrupt("a batch that does not follow the one before it"));
                }
                if batch.base_offset() > end && !self.is_gap(end, batch.base_offset()) {
                    return Err(corrupt("batches are missing"));
                }
            }
            before = Some((batch.next_offset(), batch.leader_epoch()));
            Ok(batch)
        })
    }

    /// `None`: there is no such log.
    pub fn meta(&self) -> Result<Option<Meta>, LogError> {
        let state = |mut body: &[u8]| Ok((LogOffset(body.try_get_i64()?), LogOffset(body.try_get_i64()?)));
        let Some((log_start, high_watermark)) = self.get(&keys::meta(self.partition, keys::STATE), state)? else {
            return Ok(None);
        };
        let epochs = self.get(&keys::meta(self.partition, keys::EPOCHS), Epochs::decode)?.unwrap_or_default();
        let compacted = self.get(&keys::meta(self.partition, keys::COMPACTION), Compacted::decode)?.unwrap_or_default();
        self.allow_gaps_below(compacted.gaps_below);
        let mut closed = Vec::new();
        let mut active = None;
        for row in self.scan(Family::Meta, keys::meta(self.partition, keys::SEGMENT)) {
            let (key, value) = row?;
            match key.get(keys::PREFIX) {
                Some(&keys::SEGMENT) => closed.push(self.decode(&key, &value, Segment::decode)?),
                Some(&keys::PRODUCERS) => active = (&key[keys::PREFIX + 1..]).try_get_i64().ok().map(LogOffset),
                _ => {}
            }
        }
        let active = active.ok_or_else(|| self.corrupt(log_start, "no segment".into()))?;
        let is_dense = closed.windows(2).all(|pair| pair[0].end == pair[1].base)
            && closed.last().is_none_or(|last| last.end == active);
        if !is_dense {
            return Err(self.corrupt(log_start, "a segment is missing".into()));
        }
        Ok(Some(Meta { log_start, high_watermark, epochs, closed, active, compacted }))
    }

    /// The producers' state where the segment begins; `None`: no segment begins there.
    pub fn producers_at(&self, segment: LogOffset) -> Result<Option<Producers>, LogError> {
        self.get(&keys::segment(self.partition, keys::PRODUCERS, segment), Producers::decode)
    }

    /// The producers' state where the segment begins.
    pub fn producers(&self, segment: LogOffset) -> Result<Producers, LogError> {
        self.producers_at(segment)?.ok_or_else(|| self.corrupt(segment, "the producers' state is missing".into()))
    }

    pub fn put_batch(&self, writes: &mut Writes, batch: &StoredBatch) {
        writes.logs.insert(self.partition);
        writes.rows.put(Family::Batches, keys::batch(self.partition, batch), batch.frame().clone());
    }

    pub fn delete_batch(&self, writes: &mut Writes, batch: &StoredBatch) {
        writes.logs.insert(self.partition);
        writes.rows.delete(Family::Batches, keys::batch(self.partition, batch));
    }

    pub fn put_compacted(&self, writes: &mut Writes, compacted: &Compacted) {
        self.put_meta(writes, &keys::meta(self.partition, keys::COMPACTION), &compacted.encode());
    }

    /// The segment that began at `base` is part of the one before it.
    pub fn delete_segment(&self, writes: &mut Writes, base: LogOffset) {
        writes.logs.insert(self.partition);
        for kind in [keys::SEGMENT, keys::PRODUCERS] {
            writes.rows.delete(Family::Meta, keys::segment(self.partition, kind, base));
        }
    }

    /// The space of batches below `offset` that were deleted or became smaller is given back.
    pub fn reclaim_below(&self, offset: LogOffset) {
        let (from, until) = (keys::batch_from(self.partition, LogOffset(0)), keys::batch_from(self.partition, offset));
        self.directory.table().reclaim(&from, &until);
    }

    pub fn put_state(&self, writes: &mut Writes, log_start: LogOffset, high_watermark: LogOffset) {
        let body = [log_start.0.to_be_bytes(), high_watermark.0.to_be_bytes()].concat();
        self.put_meta(writes, &keys::meta(self.partition, keys::STATE), &body);
    }

    pub fn put_epochs(&self, writes: &mut Writes, epochs: &Epochs) {
        self.put_meta(writes, &keys::meta(self.partition, keys::EPOCHS), &epochs.encode());
    }

    pub fn put_closed(&self, writes: &mut Writes, segment: &Segment) {
        self.put_meta(writes, &keys::segment(self.partition, keys::SEGMENT, segment.base), &segment.encode());
    }

    /// A segment begins, and this is what its producers did before.
    pub fn put_producers(&self, writes: &mut Writes, segment: LogOffset, producers: &Producers) {
        self.put_meta(writes, &keys::segment(self.partition, keys::PRODUCERS, segment), &producers.encode());
    }

    /// The segment that begins at `active` is to be open, and the log to end at `end` within it.
    pub fn delete_from(&self, writes: &mut Writes, active: LogOffset, end: LogOffset) {
        let segments = |kind, from| keys::segment(self.partition, kind, from);
        let after_active = LogOffset(active.0 + 1);
        let past = LogOffset(i64::MAX);
        writes.logs.insert(self.partition);
        let (batches, meta) = (Family::Batches, Family::Meta);
        writes.rows.delete_range(batches, keys::batch_from(self.partition, end), keys::end(self.partition));
        writes.rows.delete_range(meta, segments(keys::SEGMENT, active), segments(keys::SEGMENT, past));
        writes.rows.delete_range(meta, segments(keys::PRODUCERS, after_active), segments(keys::PRODUCERS, past));
    }

    /// The first segment is to be the one that begins at `first`.
    pub fn delete_below(&self, writes: &mut Writes, first: LogOffset) {
        let start = LogOffset(0);
        writes.logs.insert(self.partition);
        let batches = |offset| keys::batch_from(self.partition, offset);
        writes.rows.delete_range(Family::Batches, batches(start), batches(first));
        for kind in [keys::SEGMENT, keys::PRODUCERS] {
            let segments = |base| keys::segment(self.partition, kind, base);
            writes.rows.delete_range(Family::Meta, segments(start), segments(first));
        }
    }

    pub fn delete_all(&self, writes: &mut Writes) {
        writes.logs.insert(self.partition);
        for family in Family::ALL {
            writes.rows.delete_range(family, keys::prefix(self.partition), keys::end(self.partition));
        }
    }

    /// As `delete_all`, by a look at what there is: few rows are deleted by their keys. Each range that is deleted costs
    /// every later read of the table until a compaction, so that thousands of small logs must not leave one each.
    ///
    /// This looks at the disk: `writes` has nothing of this log.
    pub fn delete_found(&self, writes: &mut Writes) -> Result<(), LogError> {
        writes.logs.insert(self.partition);
        for family in Family::ALL {
            let found: Vec<Row> =
                self.scan(family, keys::prefix(self.partition)).take(ROWS_BY_KEY_MAX + 1).collect::<Result<_, _>>()?;
            if found.len() > ROWS_BY_KEY_MAX {
                writes.rows.delete_range(family, keys::prefix(self.partition), keys::end(self.partition));
            } else {
                found.into_iter().for_each(|(key, _)| writes.rows.delete(family, key.to_vec()));
            }
        }
        Ok(())
    }

    fn put_meta(&self, writes: &mut Writes, key: &[u8], body: &[u8]) {
        writes.logs.insert(self.partition);
        writes.rows.put(Family::Meta, key.to_vec(), keys::seal(key, body).into());
    }

    fn get<T>(&self, key: &[u8], decode: impl Fn(&[u8]) -> Result<T, TryGetError>) -> Result<Option<T>, LogError> {
        let value = self.directory.table().get(Family::Meta, key).map_err(|failure| self.directory.failed(failure))?;
        value.map(|value| self.decode(key, &value, decode)).transpose()
    }

    fn decode<T>(
        &self,
        key: &[u8],
        value: &[u8],
        decode: impl Fn(&[u8]) -> Result<T, TryGetError>,
    ) -> Result<T, LogError> {
        let body = keys::unseal(key, value);
        let decoded = body.and_then(|body| decode(body).map_err(|error| error.to_string()));
        decoded.map_err(|reason| self.corrupt(LogOffset(0), reason))
    }

    /// The rows of this log in `family` from `key` on.
    fn scan(&self, family: Family, key: Vec<u8>) -> impl Iterator<Item = Result<Row, LogError>> {
        let mut rows = self.directory.table().scan(family, key, Some(keys::end(self.partition)));
        let next = move || {
            let _operation = self.directory.operations().begin();
            rows.next()
        };
        std::iter::from_fn(next).map(|row| row.map_err(|failure| self.directory.failed(failure)))
    }

    /// A batch that the log knows of is not on the disk.
    pub fn missing(&self, offset: LogOffset) -> LogError {
        self.corrupt(offset, "batches are missing".into())
    }

    pub fn corrupt(&self, offset: LogOffset, reason: String) -> LogError {
        LogError::Corrupt { partition: self.partition, offset, reason }
    }
}
