//! The committed records of the recent past, in order, for whoever follows them.
//!
//! One bounded ring for all watchers: each holds a cursor, not a queue, so a slow one costs nothing. A cursor that has
//! fallen out of the ring gets an explicit resync, never a gap (P6).

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard};

use quorate_metadata::ids::Offset;
use quorate_metadata::image::{Delta, MetadataImage};
use tokio::sync::watch;

/// Records kept for watchers that resume. Enough for a minute of the heaviest load we aim at.
const RECORDS_KEPT_MAX: usize = 262_144;

/// Batches kept: each holds on to the image before and after it, so this bounds what old images cost.
const ENTRIES_KEPT_MAX: usize = 8_192;

/// One visible batch, with the images that a filter by broker needs.
#[derive(Debug, Clone)]
pub struct FeedEntry {
    pub delta: Delta,
    pub before: MetadataImage,
    pub after: MetadataImage,
}

#[derive(Clone)]
pub struct Feed {
    ring: Arc<Mutex<Ring>>,
    end: Arc<watch::Sender<Offset>>,
}

#[derive(Default)]
struct Ring {
    entries: VecDeque<Arc<FeedEntry>>,
    records: usize,
    /// The first offset that the ring can still tell.
    start: Offset,
    end: Offset,
}

/// The offset asked for is not in the ring, or no longer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct OutOfRange {
    pub start: Offset,
    pub end: Offset,
}

impl Feed {
    pub fn new() -> Self {
        Self { ring: Arc::default(), end: Arc::new(watch::Sender::new(Offset::default())) }
    }

    /// Adds what became visible; watchers are told by `wake`. The images bound the whole run of deltas.
    pub fn push(&self, before: MetadataImage, after: MetadataImage, deltas: Vec<Delta>) {
        let mut ring = self.ring();
        for delta in deltas {
            ring.records += delta.records.len();
            ring.end = delta.next_offset;
            ring.entries.push_back(Arc::new(FeedEntry { delta, before: before.clone(), after: after.clone() }));
        }
        while ring.records > RECORDS_KEPT_MAX || ring.entries.len() > ENTRIES_KEPT_MAX {
            let Some(oldest) = ring.entries.pop_front() else { break };
            ring.records -= oldest.delta.records.len();
            ring.start = oldest.delta.next_offset;
        }
    }

    pub fn wake(&self) {
        let end = self.ring().end;
        self.end.send_if_modified(|current| std::mem::replace(current, end) != end);
    }

    /// Forgets everything: the image was replaced by a snapshot that ends here.
    pub fn restart(&self, at: Offset) {
        *self.ring() = Ring { start: at, end: at, ..Ring::default() };
    }

    /// At most `max` entries from `cursor` on; empty at the end.
    pub fn read(&self, cursor: Offset, max: usize) -> Result<Vec<Arc<FeedEntry>>, OutOfRange> {
        let ring = self.ring();
        if cursor < ring.start || cursor > ring.end {
            return Err(OutOfRange { start: ring.start, end: ring.end });
        }
        let first = ring.entries.partition_point(|entry| entry.delta.next_offset <= cursor);
        Ok(ring.entries.iter().skip(first).take(max).cloned().collect())
    }

    /// Changes whenever there is more to read.
    pub fn end(&self) -> watch::Receiver<Offset> {
        self.end.subscribe()
    }

    fn ring(&self) -> MutexGuard<'_, Ring> {
        self.ring.lock().expect("no one panics while holding the feed")
    }
}

impl Default for Feed {
    fn default() -> Self {
        Self::new()
    }
}

#[cfg(test)]
mod tests {
    use quorate_metadata::ids::ControllerEpoch;
    use quorate_metadata::image::Ledger;
    use quorate_metadata::{Batch, Record};

    use super::*;

    /// A feed of so many batches of one record each.
    fn feed_of(batches: usize) -> Feed {
        let feed = Feed::new();
        let mut ledger = Ledger::default();
        for level in 0..batches {
            let before = ledger.visible().clone();
            let record = Record::FeatureLevel { name: "f".to_owned(), level: (level % 100) as i16 + 1 };
            let batch = Batch { controller_epoch: ControllerEpoch::new(1), timestamp_ms: 0, records: vec![record] };
            let replayed = ledger.replay(&batch).expect("a feature level always replays");
            feed.push(before, ledger.visible().clone(), replayed.visible);
        }
        feed.wake();
        feed
    }

    #[test]
    fn a_watcher_reads_every_batch_in_order() {
        let feed = feed_of(10);
        let mut cursor = Offset::new(3);
        let mut seen = Vec::new();
        loop {
            let entries = feed.read(cursor, 2).expect("in range");
            let Some(last) = entries.last() else { break };
            cursor = last.delta.next_offset;
            seen.extend(entries.iter().map(|entry| entry.delta.first_offset.get()));
        }
        assert_eq!(seen, (3..10).collect::<Vec<_>>());
        assert_eq!(*feed.end().borrow(), Offset::new(10));
    }

    #[test]
    fn a_cursor_that_fell_out_of_the_ring_is_told_so() {
        let surplus = 5;
        let feed = feed_of(ENTRIES_KEPT_MAX + surplus);
        let range = feed.read(Offset::new(0), 1).expect_err("those batches are gone");
        assert_eq!(range.start, Offset::new(surplus as i64));
        assert!(feed.read(range.start, 1).is_ok());
        assert!(feed.read(Offset::new(range.end.get() + 1), 1).is_err(), "the future is not in the ring either");
    }

    #[test]
    fn a_snapshot_restarts_the_feed_where_it_ends() {
        let feed = feed_of(3);
        feed.restart(Offset::new(70));
        assert!(feed.read(Offset::new(3), 1).is_err());
        assert_eq!(feed.read(Offset::new(70), 1).map(|entries| entries.len()), Ok(0));
    }
}
