//! A follower of the feed that insists on what the feed promises: in order, without gap or repeat.

use quorate_metadata::ids::{ControllerEpoch, Offset};
use quorate_metadata::image::{LEVEL_HIGHEST, Ledger, SnapshotHeader};
use quorate_metadata::{Batch, MetadataImage, Record};
use quorate_proto::broker::watch_event::Event;
use quorate_proto::broker::{CommittedRecords, SnapshotPart, WatchEvent, WatchRequest};
use quorate_proto::metadata::record::Record as Wire;
use quorate_proto::record::from_wire;
use tokio::time::timeout;
use tonic::Streaming;

use crate::PATIENCE;
use crate::call::{Broker, outcome};

/// The highest `metadata.version` that the tests understand.
pub const MAX_LEVEL: Option<i32> = Some(LEVEL_HIGHEST as i32);

/// Replays what the feed tells.
#[derive(Default)]
pub struct Follower {
    ledger: Ledger,
    snapshot: Vec<Record>,
    has_snapshot: bool,
    /// Records that came after the snapshot.
    pub records_seen: usize,
}

impl Follower {
    /// Follows one node's feed until the image is as wanted. Begins with a snapshot the first time, and where it stopped
    /// every other time.
    pub async fn follow(&mut self, mut node: Broker, wanted: impl Fn(&MetadataImage) -> bool) {
        let from_offset = self.has_snapshot.then(|| self.next_offset());
        let request = WatchRequest { from_offset, max_level: MAX_LEVEL, ..WatchRequest::default() };
        let mut feed = outcome(node.watch(request)).await.expect("the feed is served");
        while !self.has_snapshot || !wanted(self.image()) {
            self.take(next(&mut feed).await);
        }
    }

    /// Follows one node's feed until everything below the offset is replayed.
    pub async fn follow_to(&mut self, node: Broker, offset: i64) {
        self.follow(node, |image| image.next_offset.get() >= offset).await;
    }

    pub fn next_offset(&self) -> i64 {
        self.image().next_offset.get()
    }

    pub fn image(&self) -> &MetadataImage {
        self.ledger.visible()
    }

    /// As the nodes state it.
    pub fn digest(&self) -> String {
        format!("{:032x}", self.image().digest())
    }

    fn take(&mut self, event: Event) {
        match event {
            Event::Snapshot(part) => self.take_snapshot(part),
            Event::Records(records) => self.take_records(records),
            Event::Bookmark(bookmark) => {
                assert_eq!(bookmark.next_offset, self.next_offset(), "an unfiltered feed has nothing to leave out");
            }
        }
    }

    fn take_snapshot(&mut self, part: SnapshotPart) {
        assert!(!self.has_snapshot, "a snapshot comes once, and first");
        self.snapshot.extend(part.records.into_iter().map(|record| from_wire(record).expect("records decode")));
        if !part.last {
            return;
        }
        let header = SnapshotHeader {
            next_offset: Offset::new(part.next_offset),
            controller_epoch: ControllerEpoch::new(part.controller_epoch),
            timestamp_ms: part.time_ms,
            digest: u128::from_be_bytes(part.digest.as_slice().try_into().expect("a digest has 16 bytes")),
        };
        let image = MetadataImage::from_snapshot(header, std::mem::take(&mut self.snapshot));
        self.ledger = Ledger::new(image.expect("the snapshot gives the image of its digest"));
        self.has_snapshot = true;
    }

    fn take_records(&mut self, committed: CommittedRecords) {
        assert!(self.has_snapshot, "the snapshot comes first");
        let first = self.ledger.working().next_offset.get();
        for (expected, record) in (first..).zip(&committed.records) {
            assert_eq!(record.offset, expected, "a gap or a repeat");
        }
        self.records_seen += committed.records.len();
        let records = committed.records.into_iter().map(|record| {
            let record = record.record.expect("a committed record is there");
            from_wire(record).expect("records decode")
        });
        let batch = Batch {
            controller_epoch: ControllerEpoch::new(committed.controller_epoch),
            timestamp_ms: committed.time_ms,
            records: records.collect(),
        };
        let replayed = self.ledger.replay(&batch).expect("committed records replay");
        assert_eq!(replayed.next_offset.get(), committed.next_offset, "the batch ends where it says");
    }
}

/// The next event of a feed that must not end.
pub async fn next(feed: &mut Streaming<WatchEvent>) -> Event {
    let event = timeout(PATIENCE, feed.message()).await.expect("the feed goes on");
    event.expect("the feed does not break").and_then(|event| event.event).expect("the feed does not end")
}

/// The committed records from one offset up to another.
pub async fn records_between(mut node: Broker, from: i64, until: i64) -> Vec<Wire> {
    let request = WatchRequest { from_offset: Some(from), max_level: MAX_LEVEL, ..WatchRequest::default() };
    let mut feed = outcome(node.watch(request)).await.expect("the feed is served");
    let mut records = Vec::new();
    let mut reached = from;
    while reached < until {
        if let Event::Records(batch) = next(&mut feed).await {
            reached = batch.next_offset;
            let whole = batch.records.into_iter().map(|committed| committed.record.and_then(|record| record.record));
            records.extend(whole.map(|record| record.expect("a committed record is there")));
        }
    }
    records
}
