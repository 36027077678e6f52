//! Logical segments: stretches of the log that retention removes whole and that timestamps are looked up by. Pure.

use bytes::{Buf, TryGetError};

use crate::batch::{LogOffset, StoredBatch};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Segment {
    pub base: LogOffset,
    pub end: LogOffset,
    pub bytes: u64,
    /// Of all records: what lookups by time go by.
    pub max_timestamp_ms: i64,
    /// The latest time that retention believes: a record from the future, or from before 1970, is as old as its append.
    pub newest_ms: i64,
    /// When its first batch was appended, which its age goes by; of a segment that was read again, the time of that batch,
    /// believed in the same way.
    pub first_ms: i64,
}

impl Segment {
    pub fn empty(base: LogOffset) -> Self {
        Self { base, end: base, bytes: 0, max_timestamp_ms: i64::MIN, newest_ms: i64::MIN, first_ms: i64::MAX }
    }

    fn add(&mut self, batch: &StoredBatch, believed_ms: i64, appended_ms: i64) {
        let timestamp_ms = batch.max_timestamp_ms();
        self.end = batch.next_offset();
        self.bytes += batch.size_bytes();
        self.max_timestamp_ms = self.max_timestamp_ms.max(timestamp_ms);
        self.newest_ms = self.newest_ms.max(believed_ms);
        if self.first_ms == i64::MAX {
            self.first_ms = appended_ms;
        }
    }

    /// The next one becomes part of it.
    fn append(&mut self, next: &Self) {
        self.end = next.end;
        self.bytes += next.bytes;
        self.max_timestamp_ms = self.max_timestamp_ms.max(next.max_timestamp_ms);
        self.newest_ms = self.newest_ms.max(next.newest_ms);
    }

    pub fn encode(&self) -> Vec<u8> {
        let times = [self.max_timestamp_ms, self.newest_ms, self.first_ms];
        let fields = [self.base.0, self.end.0, self.bytes.cast_signed()].into_iter().chain(times);
        fields.flat_map(i64::to_be_bytes).collect()
    }

    /// A segment that an earlier release closed has no `first_ms`, and may have no `newest_ms`.
    pub fn decode(mut body: &[u8]) -> Result<Self, TryGetError> {
        let base = LogOffset(body.try_get_i64()?);
        let end = LogOffset(body.try_get_i64()?);
        let bytes = body.try_get_u64()?;
        let max_timestamp_ms = body.try_get_i64()?;
        let newest_ms = if body.is_empty() { max_timestamp_ms } else { body.try_get_i64()? };
        let first_ms = if body.is_empty() { newest_ms } else { body.try_get_i64()? };
        Ok(Self { base, end, bytes, max_timestamp_ms, newest_ms, first_ms })
    }
}

/// Dense: each begins where the one before ends. Only the active one, the last, grows, and only it may be empty.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Segments {
    closed: Vec<Segment>,
    active: Segment,
    /// When the log was appended to, or opened.
    appended_ms: i64,
}

/// What retention goes by.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Retention {
    /// A segment goes when its latest record is older, the active one not before its latest append is.
    pub ms: Option<u64>,
    /// The oldest segment goes while the others alone have this much.
    pub bytes: Option<u64>,
}

impl Segments {
    /// Opened at `now_ms`.
    pub fn new(closed: Vec<Segment>, active: Segment, now_ms: i64) -> Self {
        Self { closed, active, appended_ms: now_ms }
    }

    /// A batch that is appended at `now_ms`.
    pub fn append(&mut self, batch: &StoredBatch, now_ms: i64) {
        self.active.add(batch, believed_ms(batch, now_ms), now_ms);
        self.appended_ms = now_ms;
    }

    /// A batch that is there already.
    pub fn fill(&mut self, batch: &StoredBatch) {
        let believed_ms = believed_ms(batch, self.appended_ms);
        self.active.add(batch, believed_ms, believed_ms);
    }

    pub fn appended_ms(&self) -> i64 {
        self.appended_ms
    }

    /// The active segment is full if `more` bytes would lead it beyond `max`. An empty one never is.
    pub fn is_full(&self, more: u64, max: u64) -> bool {
        self.active.bytes > 0 && self.active.bytes + more > max
    }

    /// The active segment has a batch, and the first of them is older than `max_ms`.
    pub fn is_old(&self, now_ms: i64, max_ms: u64) -> bool {
        self.active.bytes > 0 && age_ms(now_ms, self.active.first_ms) > i128::from(max_ms)
    }

    /// Closes the active segment and begins the next one. Returns the closed one.
    pub fn roll(&mut self) -> Segment {
        let closed = self.active;
        self.active = Segment::empty(closed.end);
        self.closed.push(closed);
        closed
    }

    pub fn closed(&self) -> &[Segment] {
        &self.closed
    }

    /// What is left of closed segments: base and bytes of each. One that is not there any more is passed over.
    pub fn set_sizes(&mut self, sizes: &[(LogOffset, u64)]) {
        for (base, bytes) in sizes {
            if let Ok(at) = self.closed.binary_search_by_key(base, |segment| segment.base) {
                self.closed[at].bytes = *bytes;
            }
        }
    }

    /// Merges closed segments below `end` that have at most `max` bytes together. Returns the bases of those that are no more.
    pub fn merge_below(&mut self, end: LogOffset, max: u64) -> Vec<LogOffset> {
        let mut gone = Vec::new();
        let mut merged: Vec<Segment> = Vec::with_capacity(self.closed.len());
        for segment in &self.closed {
            match merged.last_mut() {
                Some(before) if segment.end <= end && before.bytes + segment.bytes <= max => {
                    before.append(segment);
                    gone.push(segment.base);
                }
                _ => merged.push(*segment),
            }
        }
        self.closed = merged;
        gone
    }

    pub fn active(&self) -> &Segment {
        &self.active
    }

    pub fn all(&self) -> impl Iterator<Item = &Segment> {
        self.closed.iter().chain([&self.active])
    }

    pub fn bytes(&self) -> u64 {
        self.all().map(|segment| segment.bytes).sum()
    }

    /// The closed segments that a log beginning at `start` no longer needs are dropped.
    pub fn drop_below(&mut self, start: LogOffset) -> Vec<Segment> {
        let gone = self.closed.partition_point(|segment| segment.end <= start);
        self.closed.drain(..gone).collect()
    }

    /// The segment that has `offset` becomes the active one, to be filled anew; later ones are dropped.
    pub fn reopen_at(&mut self, offset: LogOffset) {
        let kept = self.closed.partition_point(|segment| segment.end <= offset);
        let base = self.closed.get(kept).map_or(self.active.base, |segment| segment.base);
        self.closed.truncate(kept);
        self.active = Segment::empty(base);
    }

    /// Where the log shall begin: whole segments go, and none that is not wholly below `below`.
    pub fn expired(&self, now_ms: i64, retention: Retention, below: LogOffset) -> Option<LogOffset> {
        let mut left = self.bytes();
        let mut start = None;
        let closed = self.closed.iter().map(|segment| (segment, segment.newest_ms));
        let active = (&self.active, self.active.newest_ms.max(self.appended_ms));
        for (segment, newest_ms) in closed.chain([active]).filter(|(segment, _)| segment.bytes > 0) {
            let is_old = retention.ms.is_some_and(|ms| age_ms(now_ms, newest_ms) > i128::from(ms));
            let is_surplus = retention.bytes.is_some_and(|bytes| left - segment.bytes >= bytes);
            if segment.end > below || !(is_old || is_surplus) {
                break;
            }
            left -= segment.bytes;
            start = Some(segment.end);
        }
        start
    }
}

fn believed_ms(batch: &StoredBatch, now_ms: i64) -> i64 {
    let timestamp_ms = batch.max_timestamp_ms();
    if (0..=now_ms).contains(&timestamp_ms) { timestamp_ms } else { now_ms }
}

fn age_ms(now_ms: i64, then_ms: i64) -> i128 {
    i128::from(now_ms) - i128::from(then_ms)
}
