//! When a log is compacted, and what compaction changes in it.

use std::sync::Arc;

use super::PartitionLog;
use crate::batch::LogOffset;
use crate::compaction::{Compaction, CompactionBounds, CompactionEnd, CompactionPolicy, Plan, Rewritten};
use crate::directory::Writes;
use crate::segments::Segment;

impl PartitionLog {
    /// Below it each key has one record, but for records that came in later.
    pub fn cleaned_to(&self) -> LogOffset {
        self.compacted.cleaned_to
    }

    /// The compaction that is due, if one is. Only what is below `below`, which is committed, and in closed segments is touched.
    pub fn compaction(&self, policy: &CompactionPolicy, below: LogOffset, now_ms: i64) -> Option<Compaction> {
        self.bounded_compaction(policy, below, now_ms, CompactionBounds::default())
    }

    /// As `compaction`, within other bounds.
    pub fn bounded_compaction(
        &self,
        policy: &CompactionPolicy,
        below: LogOffset,
        now_ms: i64,
        bounds: CompactionBounds,
    ) -> Option<Compaction> {
        let cleaned_to = self.compacted.cleaned_to;
        let until = match self.dirty_until(policy, below, now_ms) {
            Some(until) => until,
            // Nothing is dirty enough, and tombstones have had their time.
            None if self.compacted.next_horizon_ms <= now_ms => cleaned_to,
            None => return None,
        };
        let first = self.segments.all().next().map(|segment| segment.base)?;
        let committed = self.segments.closed().iter().find(|segment| segment.end >= until)?.end;
        let segments = self.segments.closed().iter().filter(|segment| segment.base < until);
        Some(Compaction::new(Plan {
            rows: self.rows.clone(),
            history: self.history.clone(),
            first,
            dirty_from: cleaned_to.max(first).min(until),
            until,
            committed,
            segments: segments.map(|segment| (segment.base, segment.end)).collect(),
            remembered: self.producers.remembered().filter(|base| *base < until).collect(),
            now_ms,
            delete_retention_ms: policy.delete_retention_ms,
            bounds,
        }))
    }

    /// Where the dirty part ends, if it is to be compacted.
    fn dirty_until(&self, policy: &CompactionPolicy, below: LogOffset, now_ms: i64) -> Option<LogOffset> {
        let is_clean = |segment: &&Segment| segment.end <= self.compacted.cleaned_to;
        let youngest_ms = now_ms.saturating_sub(policy.min_lag_ms);
        let may_go = |segment: &&Segment| segment.end <= below && segment.newest_ms <= youngest_ms;
        let closed = self.segments.closed();
        let clean_bytes: u64 = closed.iter().take_while(is_clean).map(|segment| segment.bytes).sum();
        let (mut dirty_bytes, mut first_ms, mut until) = (0, i64::MAX, None);
        for segment in closed.iter().skip_while(is_clean).take_while(may_go) {
            dirty_bytes += segment.bytes;
            first_ms = first_ms.min(segment.first_ms);
            until = Some(segment.end);
        }
        let is_overdue = first_ms < now_ms.saturating_sub(policy.max_lag_ms);
        let is_dirty = share(dirty_bytes, clean_bytes + dirty_bytes) > policy.min_dirty_ratio;
        until.filter(|_| is_overdue || is_dirty)
    }

    /// Stages what a compaction has found. False: the log was truncated meanwhile, and the compaction is over.
    pub fn rewrite(&mut self, writes: &mut Writes, rewritten: &Rewritten) -> bool {
        if !Arc::ptr_eq(&self.history, &rewritten.history) {
            return false;
        }
        self.allow_gaps_below(writes, rewritten.until);
        let first = self.segments.all().next().map_or(LogOffset(0), |segment| segment.base);
        // What has expired meanwhile must not come back.
        for (before, left) in rewritten.changes.iter().filter(|(before, _)| before.next_offset() > first) {
            match left {
                Some(left) => self.rows.put_batch(writes, left),
                None => self.rows.delete_batch(writes, before),
            }
        }
        true
    }

    /// Notes how far the log is compacted, and merges segments that have become small. False: as in `rewrite`.
    pub fn end_compaction(&mut self, writes: &mut Writes, end: &CompactionEnd) -> bool {
        if !Arc::ptr_eq(&self.history, &end.history) {
            return false;
        }
        self.compacted.cleaned_to = self.compacted.cleaned_to.max(end.until);
        self.compacted.next_horizon_ms = end.next_horizon_ms;
        self.rows.put_compacted(writes, &self.compacted);
        self.segments.set_sizes(&end.sizes);
        for base in self.segments.merge_below(end.until, self.segment_bytes) {
            self.rows.delete_segment(writes, base);
        }
        let closed = self.segments.closed().iter();
        closed.take_while(|segment| segment.base < end.until).for_each(|segment| self.rows.put_closed(writes, segment));
        self.rows.reclaim_below(end.until);
        true
    }

    /// Batches may be missing below `offset`, here or on the leader that is followed; also when the log is opened again.
    pub fn allow_gaps_below(&mut self, writes: &mut Writes, offset: LogOffset) {
        if offset > self.compacted.gaps_below {
            self.compacted.gaps_below = offset;
            self.rows.allow_gaps_below(offset);
            self.rows.put_compacted(writes, &self.compacted);
        }
    }
}

#[expect(clippy::cast_precision_loss, reason = "a share is compared with a config")]
fn share(part: u64, whole: u64) -> f64 {
    if whole == 0 { 0.0 } else { part as f64 / whole as f64 }
}
