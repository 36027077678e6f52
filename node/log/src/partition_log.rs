//! The log of one replica, in the hands of its owner.
//!
//! `log start <= high watermark <= log end` after every change; batches follow one another from the first segment's base to
//! the log end, with gaps only where compaction has removed some, here or on the leader that was followed; epochs never go
//! back. State in memory is ahead of the disk by what is staged.

mod compacting;

use std::sync::Arc;

use quorate_metadata::ids::{LeaderEpoch, TopicPartition};

use crate::batch::{LogOffset, NewBatch, StoredBatch};
use crate::directory::Writes;
use crate::epochs::Epochs;
use crate::error::{AppendRefused, LogError};
use crate::producers::Producers;
use crate::reader::LogReader;
use crate::rows::{Compacted, Rows};
use crate::segments::{Retention, Segment, Segments};

/// A segment's size where nothing else is said: what is read to open a log, and what retention removes at once.
pub const SEGMENT_BYTES: u64 = 16 << 20;

pub struct PartitionLog {
    rows: Rows,
    log_start: LogOffset,
    high_watermark: LogOffset,
    epochs: Epochs,
    segments: Segments,
    producers: Producers,
    segment_bytes: u64,
    segment_ms: u64,
    compacted: Compacted,
    /// Another one whenever something is removed from the end: what was read before may not be there any more.
    history: Arc<()>,
}

/// Where a batch is in the log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Appended {
    pub base_offset: LogOffset,
    pub next_offset: LogOffset,
    /// None: it was there before.
    pub batch: Option<StoredBatch>,
}

impl PartitionLog {
    /// One that is not there is staged.
    pub(crate) fn open(rows: Rows, writes: &mut Writes, now_ms: i64) -> Result<Self, LogError> {
        let Some(meta) = rows.meta()? else { return Self::create(rows, writes, now_ms) };
        let mut log = Self {
            log_start: meta.log_start,
            high_watermark: meta.high_watermark,
            epochs: meta.epochs,
            segments: Segments::new(meta.closed, Segment::empty(meta.active), now_ms),
            producers: Producers::default(),
            segment_bytes: SEGMENT_BYTES,
            segment_ms: u64::MAX,
            compacted: Compacted { cleaned_to: meta.compacted.cleaned_to.min(meta.active), ..meta.compacted },
            history: Arc::default(),
            rows,
        };
        log.fill_active(LogOffset(i64::MAX))?;
        Ok(log)
    }

    fn create(rows: Rows, writes: &mut Writes, now_ms: i64) -> Result<Self, LogError> {
        // What was left of it without its state, if anything, is not part of the new one.
        rows.delete_found(writes)?;
        let log = Self {
            log_start: LogOffset(0),
            high_watermark: LogOffset(0),
            epochs: Epochs::default(),
            segments: Segments::new(Vec::new(), Segment::empty(LogOffset(0)), now_ms),
            producers: Producers::default(),
            segment_bytes: SEGMENT_BYTES,
            segment_ms: u64::MAX,
            compacted: Compacted::default(),
            history: Arc::default(),
            rows,
        };
        log.put_start(writes);
        Ok(log)
    }

    pub fn partition(&self) -> TopicPartition {
        self.rows.partition()
    }

    /// The first offset that may be read. It may be within a batch.
    pub fn log_start(&self) -> LogOffset {
        self.log_start
    }

    /// The offset that the next record gets.
    pub fn log_end(&self) -> LogOffset {
        self.segments.active().end
    }

    /// As last checkpointed: the true one may be later.
    pub fn high_watermark(&self) -> LogOffset {
        self.high_watermark
    }

    pub fn epochs(&self) -> &Epochs {
        &self.epochs
    }

    pub fn last_epoch(&self) -> Option<LeaderEpoch> {
        self.epochs.last()
    }

    pub fn segments(&self) -> &Segments {
        &self.segments
    }

    pub fn producers(&self) -> &Producers {
        &self.producers
    }

    pub fn size_bytes(&self) -> u64 {
        self.segments.bytes()
    }

    pub fn reader(&self) -> LogReader {
        LogReader::new(self.rows.clone())
    }

    /// A segment that would become larger is closed.
    pub fn set_segment_bytes(&mut self, bytes: u64) {
        self.segment_bytes = bytes;
    }

    /// A segment is closed by the next append, or by `roll_old_segment`, when its first batch is older.
    pub fn set_segment_ms(&mut self, ms: u64) {
        self.segment_ms = ms;
    }

    /// Closes the active segment if it is too old.
    pub fn roll_old_segment(&mut self, writes: &mut Writes, now_ms: i64) {
        if self.segments.is_old(now_ms, self.segment_ms) {
            self.roll(writes);
        }
    }

    /// The largest epoch up to `epoch`, and where it ends.
    pub fn end_of_epoch(&self, epoch: LeaderEpoch) -> Option<(LeaderEpoch, LogOffset)> {
        self.epochs.end_of(epoch, self.log_end())
    }

    pub fn append_as_leader(
        &mut self,
        writes: &mut Writes,
        batch: &NewBatch,
        epoch: LeaderEpoch,
        now_ms: i64,
    ) -> Result<Appended, AppendRefused> {
        let stored = StoredBatch::new(self.log_end(), epoch, batch)?;
        self.check_epoch(epoch)?;
        if let Some(producer) = batch.producer
            && let Some(base) = self.producers.check(producer, batch.record_count)?
        {
            let next = LogOffset(base.0 + i64::from(batch.record_count));
            return Ok(Appended { base_offset: base, next_offset: next, batch: None });
        }
        self.append(writes, &stored, now_ms);
        let (base_offset, next_offset) = (stored.base_offset(), stored.next_offset());
        Ok(Appended { base_offset, next_offset, batch: Some(stored) })
    }

    /// What the leader took is taken: it has asked what there was to ask. Batches may be missing as far as
    /// `allow_gaps_below` says.
    pub fn append_as_follower(
        &mut self,
        writes: &mut Writes,
        batch: &StoredBatch,
        now_ms: i64,
    ) -> Result<(), AppendRefused> {
        if batch.base_offset() != self.log_end() && !self.rows.is_gap(self.log_end(), batch.base_offset()) {
            return Err(AppendRefused::NotAtEnd { base: batch.base_offset(), end: self.log_end() });
        }
        self.check_epoch(batch.leader_epoch())?;
        self.append(writes, batch, now_ms);
        Ok(())
    }

    /// A leader begins: what it appends is of `epoch`.
    pub fn begin_epoch(&mut self, writes: &mut Writes, epoch: LeaderEpoch) {
        self.begin_epoch_at(writes, epoch, self.log_end());
    }

    fn begin_epoch_at(&mut self, writes: &mut Writes, epoch: LeaderEpoch, start: LogOffset) {
        if self.epochs.begin(epoch, start) {
            self.rows.put_epochs(writes, &self.epochs);
        }
    }

    /// Removes the batches from `offset` on, also the one that has it within. Never keeps what was to go.
    ///
    /// This looks at the disk, so what `writes` has of this log is committed first.
    pub fn truncate_to(&mut self, writes: &mut Writes, offset: LogOffset) -> Result<(), LogError> {
        if offset < self.log_start {
            self.start_at(writes, offset);
            return Ok(());
        }
        let end = if offset < self.log_end() { self.remove_from(writes, offset)? } else { self.log_end() };
        self.epochs.truncate_to(end);
        self.rows.put_epochs(writes, &self.epochs);
        self.log_start = self.log_start.min(end);
        self.high_watermark = self.high_watermark.min(end);
        if self.compacted.cleaned_to > end {
            self.compacted.cleaned_to = end;
            self.rows.put_compacted(writes, &self.compacted);
        }
        self.rows.put_state(writes, self.log_start, self.high_watermark);
        Ok(())
    }

    /// Drops everything, to begin at `offset`: for a follower that is behind its leader's log start.
    pub fn start_at(&mut self, writes: &mut Writes, offset: LogOffset) {
        self.log_start = offset;
        self.high_watermark = offset;
        self.epochs = Epochs::default();
        self.segments = Segments::new(Vec::new(), Segment::empty(offset), self.segments.appended_ms());
        self.producers = Producers::default();
        self.compacted = Compacted { cleaned_to: offset, ..Compacted::default() };
        self.history = Arc::default();
        self.rows.delete_all(writes);
        self.put_start(writes);
    }

    /// The rows of a log that has no records.
    fn put_start(&self, writes: &mut Writes) {
        self.rows.put_state(writes, self.log_start, self.high_watermark);
        self.rows.put_producers(writes, self.log_start, &self.producers);
    }

    /// What is below `offset` is no longer read, and goes segment by segment. The log end is the limit.
    pub fn advance_log_start(&mut self, writes: &mut Writes, offset: LogOffset) {
        let offset = offset.min(self.log_end());
        if offset <= self.log_start {
            return;
        }
        if offset == self.log_end() && self.segments.active().bytes > 0 {
            self.roll(writes);
        }
        if let Some(last) = self.segments.drop_below(offset).last() {
            self.rows.delete_below(writes, last.end);
        }
        self.log_start = offset;
        self.high_watermark = self.high_watermark.max(offset);
        self.rows.put_state(writes, self.log_start, self.high_watermark);
        self.epochs.start_at(offset);
        self.rows.put_epochs(writes, &self.epochs);
    }

    pub fn checkpoint_high_watermark(&mut self, writes: &mut Writes, offset: LogOffset) {
        let offset = offset.clamp(self.log_start, self.log_end());
        if offset != self.high_watermark {
            self.high_watermark = offset;
            self.rows.put_state(writes, self.log_start, offset);
        }
    }

    /// Where retention wants the log to begin, if later than now: whole segments, and never above `below`.
    pub fn expired(&self, now_ms: i64, retention: Retention, below: LogOffset) -> Option<LogOffset> {
        self.segments.expired(now_ms, retention, below).filter(|&start| start > self.log_start)
    }

    /// The first committed batch, wholly below `below`, that has a record as late as `timestamp_ms`.
    pub fn find_timestamp(&self, timestamp_ms: i64, below: LogOffset) -> Result<Option<StoredBatch>, LogError> {
        let is_late = |segment: &&Segment| segment.max_timestamp_ms >= timestamp_ms && segment.end > self.log_start;
        let Some(segment) = self.segments.all().find(is_late) else { return Ok(None) };
        for batch in self.rows.batches(segment.base.max(self.log_start)) {
            let batch = batch?;
            if batch.next_offset() > below {
                break;
            }
            if batch.max_timestamp_ms() >= timestamp_ms && batch.record_count() > 0 {
                return Ok(Some(batch));
            }
        }
        Ok(None)
    }

    fn check_epoch(&self, epoch: LeaderEpoch) -> Result<(), AppendRefused> {
        match self.last_epoch() {
            Some(last) if epoch < last => Err(AppendRefused::EpochWentBack { epoch, last }),
            _ => Ok(()),
        }
    }

    fn append(&mut self, writes: &mut Writes, batch: &StoredBatch, now_ms: i64) {
        let is_full = self.segments.is_full(batch.size_bytes(), self.segment_bytes);
        if is_full || self.segments.is_old(now_ms, self.segment_ms) {
            self.roll(writes);
        }
        self.begin_epoch_at(writes, batch.leader_epoch(), batch.base_offset());
        self.segments.append(batch, now_ms);
        self.producers.record(batch);
        self.rows.put_batch(writes, batch);
    }

    fn roll(&mut self, writes: &mut Writes) {
        let closed = self.segments.roll();
        self.rows.put_closed(writes, &closed);
        self.rows.put_producers(writes, closed.end, &self.producers);
    }

    /// Removes the batches that have `offset` or a later one; there is one. Returns the log end: where the last batch that
    /// stays ends, also if a gap follows it.
    fn remove_from(&mut self, writes: &mut Writes, offset: LogOffset) -> Result<LogOffset, LogError> {
        if writes.logs.contains(&self.partition()) {
            self.rows.directory().commit(std::mem::take(writes))?;
        }
        let first = self.rows.batches(offset).next().transpose()?;
        let end = first.ok_or_else(|| self.rows.missing(offset))?.base_offset().min(offset);
        self.history = Arc::default();
        self.segments.reopen_at(end);
        self.rows.delete_from(writes, self.segments.active().base, end);
        self.fill_active(end)?;
        Ok(self.log_end())
    }

    /// Reads the active segment up to `end`, and what its producers did.
    fn fill_active(&mut self, end: LogOffset) -> Result<(), LogError> {
        let base = self.segments.active().base;
        self.producers = self.rows.producers(base)?;
        for batch in self.rows.batches(base) {
            let batch = batch?;
            if batch.next_offset() > end {
                break;
            }
            if batch.base_offset() != self.log_end() && !self.rows.is_gap(self.log_end(), batch.base_offset()) {
                return Err(self.rows.missing(self.log_end()));
            }
            self.segments.fill(&batch);
            self.producers.record(&batch);
        }
        Ok(())
    }
}
