//! The committed records of the recent past, in order, for the watchers that follow them.
//!
//! One bounded ring for all watchers: each holds a cursor, not a queue, so a slow one costs nothing. A cursor that has
//! fallen out of the ring gets an explicit resync, never a gap (P6). The ring holds no images: which brokers a record
//! concerns is computed when it comes in.

mod entry;

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard};

use quorate_metadata::ids::Offset;
use quorate_metadata::image::{Delta, MetadataImage};
use tokio::sync::{Semaphore, watch};

pub use entry::{EVENT_BYTES_MAX, FeedEntry, RecordView, Selected};

const MIB: usize = 1024 * 1024;

/// What the ring keeps for watchers that resume.
#[derive(Debug, Clone, Copy)]
struct Limits {
    records: usize,
    bytes: usize,
}

/// Enough for a minute of the heaviest load we aim at, and for the creation of a topic of about 140 000 partitions, whose
/// records come in all at once and take 450 bytes each until they are encoded; watchers of a larger one start again from a
/// snapshot. An eighth of the smallest memory that a node is run with (512 MiB).
const KEPT: Limits = Limits { records: 262_144, bytes: 64 * MIB };

/// Bytes of entries that one `read` hands out.
const READ_BYTES_MAX: usize = MIB;

/// Snapshots on their way to watchers at the same time. Each takes time of the API's threads and buffers a few events, so
/// that some after the other are all there sooner than all at once; the others wait with nothing but their request.
const SNAPSHOTS_MAX: usize = 8;

/// Snapshots that go on beside them because they are read slowly: each keeps an image alive and little else. A watcher
/// that reads slowly beyond them is cut off.
const SLOW_SNAPSHOTS_MAX: usize = 8;

/// Bytes of events on their way to all watchers: of the largest size 32 at a time. An eighth of the smallest memory that a
/// node is run with (512 MiB). Watchers wait for each other beyond it.
const TRANSIT_BYTES_MAX: usize = 64 * MIB;

#[derive(Clone)]
pub struct Feed {
    limits: Limits,
    ring: Arc<Mutex<Ring>>,
    end: Arc<watch::Sender<Offset>>,
    snapshots: SnapshotTurns,
    transit: Transit,
}

/// What is on its way to watchers, all of them together.
#[derive(Debug, Clone)]
pub struct Transit {
    pub room: Arc<Semaphore>,
    bytes_max: usize,
}

impl Default for Transit {
    fn default() -> Self {
        Self::with_room(TRANSIT_BYTES_MAX)
    }
}

impl Transit {
    pub fn with_room(bytes_max: usize) -> Self {
        Self { room: Arc::new(Semaphore::new(bytes_max)), bytes_max }
    }

    /// Bytes of the events on their way. What several watchers get is counted for each.
    pub fn bytes(&self) -> usize {
        self.bytes_max - self.room.available_permits()
    }

    pub fn has_room_for(&self, bytes: usize) -> bool {
        self.room.available_permits() >= bytes
    }
}

/// Permits to send a snapshot.
#[derive(Debug, Clone)]
pub struct SnapshotTurns {
    pub turns: Arc<Semaphore>,
    /// For those that go on after their turn, as they are read too slowly.
    pub slow: Arc<Semaphore>,
}

impl SnapshotTurns {
    pub fn new(turns: usize, slow: usize) -> Self {
        Self { turns: Arc::new(Semaphore::new(turns)), slow: Arc::new(Semaphore::new(slow)) }
    }
}

#[derive(Default)]
struct Ring {
    entries: VecDeque<Arc<FeedEntry>>,
    records: usize,
    bytes: usize,
    /// The first offset that the ring still has.
    start: Offset,
    end: Offset,
}

/// The offset asked for is not in the ring, or no longer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct OutOfRange {
    pub start: Offset,
    pub end: Offset,
}

/// What the feed holds, for metrics.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FeedLoad {
    pub records: usize,
    pub bytes: usize,
    pub watchers: usize,
    /// On their way to watchers.
    pub transit_bytes: usize,
}

impl Feed {
    pub fn new() -> Self {
        Self::with_limits(KEPT)
    }

    fn with_limits(limits: Limits) -> Self {
        let snapshots = SnapshotTurns::new(SNAPSHOTS_MAX, SLOW_SNAPSHOTS_MAX);
        let end = Arc::new(watch::Sender::new(Offset::default()));
        Self { limits, ring: Arc::default(), end, snapshots, transit: Transit::default() }
    }

    /// Adds what became visible; watchers are notified by `wake`. The images bound the whole run of deltas.
    pub fn push(&self, before: &MetadataImage, after: &MetadataImage, deltas: Vec<Delta>) {
        for delta in deltas {
            let entry = Arc::new(FeedEntry::new(delta, before, after));
            self.ring().push(entry, self.limits);
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

    /// At most `max` entries from `cursor` on, and no more bytes than one read hands out; empty at the end.
    pub fn read(&self, cursor: Offset, max: usize) -> Result<Vec<Arc<FeedEntry>>, OutOfRange> {
        let ring = self.ring();
        if cursor < ring.start || cursor > ring.end {
            return Err(OutOfRange { start: ring.start, end: ring.end });
        }
        let first = ring.entries.partition_point(|entry| entry.next_offset <= cursor);
        let mut bytes = 0;
        let fits = |entry: &&Arc<FeedEntry>| {
            let is_first = bytes == 0;
            bytes += entry.bytes();
            is_first || bytes <= READ_BYTES_MAX
        };
        Ok(ring.entries.range(first..).take(max).take_while(fits).cloned().collect())
    }

    /// What of an entry passes, from the cursor on, as encoded `CommittedRecords`. The first selection encodes the entry
    /// for all that follow.
    pub fn select(&self, entry: &FeedEntry, cursor: Offset, passes: impl Fn(RecordView<'_>) -> bool) -> Vec<Selected> {
        if entry.encode() {
            self.ring().settle(entry);
        }
        entry.select(cursor, passes)
    }

    /// Changes whenever there is more to read. Whoever holds it counts as a watcher.
    pub fn end(&self) -> watch::Receiver<Offset> {
        self.end.subscribe()
    }

    pub fn snapshots(&self) -> SnapshotTurns {
        self.snapshots.clone()
    }

    /// What is on its way to the watchers of this feed.
    pub fn transit(&self) -> Transit {
        self.transit.clone()
    }

    pub fn load(&self) -> FeedLoad {
        let (watchers, transit_bytes) = (self.end.receiver_count(), self.transit.bytes());
        let ring = self.ring();
        FeedLoad { records: ring.records, bytes: ring.bytes, watchers, transit_bytes }
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

impl Ring {
    fn push(&mut self, entry: Arc<FeedEntry>, limits: Limits) {
        self.records += entry.record_count();
        self.bytes += entry.bytes();
        self.end = entry.next_offset;
        self.entries.push_back(entry);
        while self.records > limits.records || self.bytes > limits.bytes {
            let Some(oldest) = self.entries.pop_front() else { break };
            self.records -= oldest.record_count();
            self.bytes -= oldest.bytes();
            self.start = oldest.next_offset;
        }
    }

    /// An entry was encoded: it has another size. One that is no longer in the ring was taken off with its old one.
    fn settle(&mut self, entry: &FeedEntry) {
        let saved = entry.settle_bytes();
        if entry.first_offset >= self.start {
            self.bytes = self.bytes.saturating_add_signed(-saved);
        }
    }
}

#[cfg(test)]
mod tests {
    use prost::Message;
    use quorate_metadata::ids::{BrokerId, ControllerEpoch};
    use quorate_metadata::image::{LEVEL_LOWEST, Ledger, METADATA_VERSION};
    use quorate_metadata::record::ConfigResource;
    use quorate_metadata::{Batch, Record};
    use quorate_proto::broker::CommittedRecords;
    use quorate_proto::record;

    use super::*;

    /// A feed and what it is fed from.
    struct Fed {
        feed: Feed,
        ledger: Ledger,
    }

    impl Fed {
        fn new(limits: Limits) -> Self {
            Self { feed: Feed::with_limits(limits), ledger: Ledger::default() }
        }

        fn push(&mut self, records: Vec<Record>) {
            let before = self.ledger.visible().clone();
            let batch = Batch { controller_epoch: ControllerEpoch::new(1), timestamp_ms: 5, records };
            let replayed = self.ledger.replay(&batch).expect("the records of this test replay");
            self.feed.push(&before, self.ledger.visible(), replayed.visible);
            self.feed.wake();
        }
    }

    fn feature(level: usize) -> Record {
        Record::FeatureLevel { name: "f".to_owned(), level: i16::try_from(level % 100).expect("small") + 1 }
    }

    fn config(resource: ConfigResource, bytes: usize) -> Record {
        Record::Config { resource, key: "k".to_owned(), value: Some("v".repeat(bytes)) }
    }

    /// A feed of so many batches of one record each.
    fn feed_of(batches: usize, limits: Limits) -> Feed {
        let mut fed = Fed::new(limits);
        (0..batches).for_each(|level| fed.push(vec![feature(level)]));
        fed.feed
    }

    fn committed(feed: &Feed, from: i64, passes: impl Fn(RecordView<'_>) -> bool + Copy) -> Vec<CommittedRecords> {
        let entries = feed.read(Offset::new(from), usize::MAX).expect("in range");
        let selected = entries.iter().flat_map(|entry| feed.select(entry, Offset::new(from), passes));
        selected.map(|part| CommittedRecords::decode(part.encoded).expect("it is encoded by us")).collect()
    }

    fn offsets(records: &CommittedRecords) -> Vec<i64> {
        records.records.iter().map(|committed| committed.offset).collect()
    }

    #[test]
    fn a_watcher_reads_every_batch_in_order() {
        let feed = feed_of(10, KEPT);
        let mut cursor = Offset::new(3);
        let mut seen = Vec::new();
        loop {
            let entries = feed.read(cursor, 2).expect("in range");
            let Some(last) = entries.last() else { break };
            cursor = last.next_offset;
            seen.extend(entries.iter().map(|entry| entry.first_offset.get()));
        }
        assert_eq!(seen, (3..10).collect::<Vec<_>>());
        assert_eq!(*feed.end().borrow(), Offset::new(10));
    }

    #[test]
    fn a_cursor_that_fell_out_of_the_ring_is_told_so() {
        let (kept, surplus) = (100, 5);
        let feed = feed_of(kept + surplus, Limits { records: kept, ..KEPT });
        let range = feed.read(Offset::new(0), 1).expect_err("those batches are gone");
        assert_eq!(range.start, Offset::new(surplus as i64));
        assert!(feed.read(range.start, 1).is_ok());
        assert!(feed.read(Offset::new(range.end.get() + 1), 1).is_err(), "the future is not in the ring either");
    }

    #[test]
    fn the_ring_is_bounded_in_records_whatever_their_batches() {
        let mut fed = Fed::new(Limits { records: 6, ..KEPT });
        (0..4).for_each(|_| fed.push((0..3).map(feature).collect()));
        assert_eq!(fed.feed.load().records, 6);
        assert_eq!(fed.feed.read(Offset::new(0), 1).expect_err("it is gone").start, Offset::new(6));
    }

    #[test]
    fn a_snapshot_restarts_the_feed_where_it_ends() {
        let feed = feed_of(3, KEPT);
        feed.restart(Offset::new(70));
        assert!(feed.read(Offset::new(3), 1).is_err());
        assert_eq!(feed.read(Offset::new(70), 1).map(|entries| entries.len()), Ok(0));
        assert_eq!(feed.load(), FeedLoad { records: 0, bytes: 0, watchers: 0, transit_bytes: 0 });
    }

    #[test]
    fn the_ring_is_bounded_in_bytes() {
        let mut fed = Fed::new(Limits { bytes: 10_000, ..KEPT });
        (0..20).for_each(|_| fed.push(vec![config(ConfigResource::BrokerDefault, 2_000)]));
        let load = fed.feed.load();
        assert!((1..=10_000).contains(&load.bytes) && (1..=4).contains(&load.records), "{load:?}");
        assert!(fed.feed.read(Offset::new(0), 1).is_err(), "the oldest are gone");
        assert!(fed.feed.read(Offset::new(19), 1).is_ok(), "the newest is there");
    }

    #[test]
    fn an_encoded_entry_is_counted_as_it_is() {
        let feed = feed_of(3, KEPT);
        let entries = feed.read(Offset::new(0), 3).expect("in range");
        let before = feed.load().bytes;
        feed.select(&entries[1], Offset::new(0), |_| true);
        assert!(feed.load().bytes < before, "it takes less than its records");
        assert_eq!(feed.load().bytes, entries.iter().map(|entry| entry.bytes()).sum::<usize>());
        feed.restart(Offset::new(3));
        feed.ring().bytes = before;
        feed.select(&entries[0], Offset::new(0), |_| true);
        assert_eq!(feed.load().bytes, before, "an entry that has left the ring is not counted");
    }

    #[test]
    fn a_read_hands_out_no_more_bytes_than_its_bound() {
        let mut fed = Fed::new(KEPT);
        (0..5).for_each(|_| fed.push(vec![config(ConfigResource::BrokerDefault, READ_BYTES_MAX / 3)]));
        assert_eq!(fed.feed.read(Offset::new(0), 5).map(|entries| entries.len()), Ok(2));
        fed.push(vec![config(ConfigResource::BrokerDefault, 2 * READ_BYTES_MAX)]);
        assert_eq!(fed.feed.read(Offset::new(5), 5).map(|entries| entries.len()), Ok(1), "one at least");
    }

    #[test]
    fn what_is_selected_is_the_batch() {
        let mut fed = Fed::new(KEPT);
        let records: Vec<Record> = (0..3).map(feature).collect();
        fed.push(records.clone());
        let events = committed(&fed.feed, 0, |_| true);
        let [whole] = &events[..] else { panic!("one batch is one event") };
        assert_eq!((whole.controller_epoch, whole.time_ms, whole.next_offset), (1, 5, 3));
        assert_eq!(offsets(whole), [0, 1, 2]);
        let sent = whole.records.iter().map(|committed| committed.record.clone().expect("it is there"));
        assert_eq!(sent.collect::<Vec<_>>(), records.iter().map(record::to_wire).collect::<Vec<_>>());
    }

    #[test]
    fn a_cursor_within_a_batch_gets_the_rest_of_it() {
        let mut fed = Fed::new(KEPT);
        fed.push((0..3).map(feature).collect());
        let events = committed(&fed.feed, 1, |_| true);
        let [rest] = &events[..] else { panic!("one batch is one event") };
        assert_eq!((offsets(rest), rest.next_offset), (vec![1, 2], 3));
    }

    #[test]
    fn a_broker_gets_what_concerns_it_and_ends_where_the_batch_ends() {
        let mut fed = Fed::new(KEPT);
        let of = |broker| config(ConfigResource::Broker(BrokerId::new(broker)), 1);
        fed.push(vec![of(1), of(2), config(ConfigResource::BrokerDefault, 1), Record::ProducerIds { next: 7 }]);
        let select = |broker| committed(&fed.feed, 0, move |record| record.concerns(BrokerId::new(broker)));
        assert_eq!(select(1).iter().map(offsets).collect::<Vec<_>>(), [[0, 2]]);
        assert_eq!(select(2).iter().map(offsets).collect::<Vec<_>>(), [[1, 2]]);
        assert_eq!(select(2)[0].next_offset, 4);
        assert_eq!(select(3).iter().map(offsets).collect::<Vec<_>>(), [[2]]);
        let producer_ids = committed(&fed.feed, 0, |record| record.kind == "ProducerIds");
        assert_eq!(producer_ids.iter().map(offsets).collect::<Vec<_>>(), [[3]]);
        assert_eq!(committed(&fed.feed, 0, |record| record.kind == "Digest"), []);
    }

    #[test]
    fn a_batch_larger_than_an_event_comes_in_parts_without_gap_or_repeat() {
        let mut fed = Fed::new(KEPT);
        fed.push((0..5).map(|_| config(ConfigResource::BrokerDefault, EVENT_BYTES_MAX / 2 - 1_000)).collect());
        let parts = committed(&fed.feed, 0, |_| true);
        assert_eq!(parts.iter().map(offsets).collect::<Vec<_>>(), [vec![0, 1], vec![2, 3], vec![4]]);
        assert_eq!(parts.iter().map(|part| part.next_offset).collect::<Vec<_>>(), [2, 4, 5]);
        assert!(parts.iter().all(|part| part.encoded_len() <= EVENT_BYTES_MAX));
        let resumed = committed(&fed.feed, parts[0].next_offset, |_| true);
        assert_eq!(resumed, parts[1..], "a watcher that broke off between two parts resumes with the next one");
    }

    #[test]
    fn an_entry_needs_the_highest_level_of_its_records() {
        let mut fed = Fed::new(KEPT);
        let finalize = |level| Record::FeatureLevel { name: METADATA_VERSION.to_owned(), level };
        fed.push(vec![feature(7)]);
        fed.push(vec![feature(7), finalize(2), feature(8)]);
        let entries = fed.feed.read(Offset::new(0), 2).expect("in range");
        assert_eq!(entries.iter().map(|entry| entry.level).collect::<Vec<_>>(), [LEVEL_LOWEST, 2]);
    }

    #[test]
    fn watchers_of_the_same_share_its_bytes() {
        let feed = feed_of(1, KEPT);
        let entries = feed.read(Offset::new(0), 1).expect("in range");
        let select = || feed.select(&entries[0], Offset::new(0), |_| true).remove(0).encoded;
        assert_eq!(select().as_ptr(), select().as_ptr());
    }
}
