//! The largest requests that are accepted, in any order: whatever the log holds of them fits an entry; a snapshot taken
//! anywhere among them, inside of a transaction too, leads to the same digest; and a watcher with the limits that gRPC has by
//! default gets all of it, from the feed and from a snapshot.

mod draw;

use futures::executor::block_on;
use prost::Message;
use quorate_metadata::ids::{BrokerId, ClientId, ControllerEpoch, Offset};
use quorate_metadata::image::SnapshotHeader;
use quorate_metadata::plan::{Plan, checkpoint};
use quorate_metadata::rng::Rng;
use quorate_metadata::{ApiError, Batch, ErrorName, Ledger, MetadataImage, Record, limits};
use quorate_node::api::snapshot_events;
use quorate_node::controller::{Mutation, Operation, Position, PreparedBatch, RequestId, Stamp, entries_of};
use quorate_node::feed::Feed;
use quorate_proto::broker::{CommittedRecords, SnapshotPart};
use quorate_proto::encoded::WatchEvent;
use quorate_proto::{batch, record, snapshot};

use crate::requests::draw::{CLUSTER, registration};
use crate::requests::plan::Request;
use draw::Draw;

/// What a gRPC client takes by default.
const MESSAGE_BYTES_MAX: usize = 4 * 1024 * 1024;

/// Enough for transactions between snapshots, and little enough for a run of a second.
const REQUESTS_MAX: usize = 8;

const BROKERS: i32 = 6;

/// `bytes`: what requests are drawn from.
pub fn check(bytes: &[u8]) {
    let mut draw = Draw::new(bytes);
    let mut cluster = Cluster::new();
    for _ in 0..REQUESTS_MAX {
        if draw.is_exhausted() {
            break;
        }
        let request = draw.request(cluster.ledger.working());
        let (reply_bytes, snapshot_at) = (draw.reply_bytes(), draw.entry());
        cluster.apply(request, reply_bytes, snapshot_at);
    }
    cluster.check_snapshot();
}

/// A replica of the metadata, and what its watchers get.
struct Cluster {
    ledger: Ledger,
    feed: Feed,
    /// Where a watcher of the feed is.
    cursor: Offset,
    rng: Rng,
    requests: u64,
}

impl Cluster {
    fn new() -> Self {
        let (ledger, feed) = (Ledger::default(), Feed::new());
        let mut cluster = Self { ledger, feed, cursor: Offset::default(), rng: Rng::new(1), requests: 0 };
        cluster.replay(&cluster.batch(checkpoint::bootstrap(cluster.ledger.working(), CLUSTER).records));
        for broker in (1..=BROKERS).map(BrokerId::new) {
            cluster.apply(Request::Register(registration(broker), false), 0, usize::MAX);
            cluster.apply(Request::Unfence(broker), 0, usize::MAX);
        }
        cluster
    }

    fn batch(&self, records: Vec<Record>) -> Batch {
        let Stamp { epoch, timestamp_ms } = self.stamp();
        Batch { controller_epoch: epoch, timestamp_ms, records }
    }

    fn stamp(&self) -> Stamp {
        Stamp { epoch: ControllerEpoch::new(1), timestamp_ms: self.ledger.working().next_offset.get() }
    }

    /// Proposes what the request leads to. A snapshot is taken after one of its entries, and after the last.
    fn apply(&mut self, request: Request, reply_bytes: usize, snapshot_at: usize) {
        let operation = self.operation(request, reply_bytes);
        let entries = match entries_of(operation, &self.ledger, self.stamp(), &mut self.rng) {
            Ok(entries) => entries,
            Err(refused) => return check_refusal(&refused),
        };
        for (at, entry) in entries.iter().enumerate() {
            self.commit(entry);
            if at == snapshot_at {
                self.check_snapshot();
            }
        }
        self.follow();
    }

    fn operation(&mut self, request: Request, reply_bytes: usize) -> Operation {
        self.requests += 1;
        let id = RequestId { client: ClientId::from_bytes([1; 16]), request: self.requests };
        let nothing = |_: &MetadataImage, _: &mut Rng| Ok(Plan::new(Vec::new(), ()));
        Operation {
            request: (reply_bytes > 0).then_some(id),
            atomic: is_atomic(&request),
            mutation: Box::new(Asked { request, reply_bytes }),
            ..Operation::internal("largest", nothing)
        }
    }

    /// As a node replays an entry of the log.
    fn commit(&mut self, entry: &PreparedBatch) {
        assert!(entry.payload.len() <= limits::ENTRY_BYTES_MAX, "an entry of {} bytes", entry.payload.len());
        let (base, decoded) = batch::decode(&entry.payload).expect("what is encoded is decoded");
        assert_eq!(base, self.ledger.working().next_offset);
        self.replay(&decoded);
        if let Some(draft) = &entry.draft {
            assert_eq!(self.ledger.working().digest(), draft.working().digest());
        }
    }

    fn replay(&mut self, batch: &Batch) {
        let before = self.ledger.visible().clone();
        let replayed = self.ledger.replay(batch).expect("a plan replays");
        self.feed.push(&before, self.ledger.visible(), replayed.visible);
    }

    /// A watcher reads what has become visible, or begins again where that is more than the feed keeps.
    fn follow(&mut self) {
        let end = self.ledger.visible().next_offset;
        while let Ok(entries) = self.feed.read(self.cursor, 16) {
            if entries.is_empty() {
                break;
            }
            for entry in entries {
                for part in self.feed.select(&entry, self.cursor, |_| true) {
                    let records = CommittedRecords::decode(part.encoded.clone()).expect("it is encoded by us");
                    check_event(&WatchEvent { records: Some(part.encoded), ..WatchEvent::default() });
                    assert_eq!(records.next_offset, part.next_offset.get());
                    self.cursor = part.next_offset;
                }
                assert_eq!(self.cursor, entry.next_offset, "a gap in the feed");
            }
        }
        self.cursor = end;
    }

    fn check_snapshot(&self) {
        let mut written = Vec::new();
        snapshot::write(&self.ledger, &mut written).expect("memory can be written");
        let read = snapshot::read(&mut &*written).expect("what is written can be read");
        assert_eq!(read.visible().digest(), self.ledger.visible().digest());
        assert_eq!(read.working().digest(), self.ledger.working().digest());
        check_watched(self.ledger.visible());
    }
}

/// A watcher that begins with a snapshot has the image after it.
fn check_watched(image: &MetadataImage) {
    let events = block_on(snapshot_events(image));
    let mut records = Vec::new();
    let mut last = SnapshotPart::default();
    for event in events {
        check_event(&event);
        last = SnapshotPart::decode(event.snapshot.expect("a part of the snapshot")).expect("it is encoded by us");
        records.extend(last.records.drain(..).map(|item| record::from_wire(item).expect("it was a record")));
    }
    assert!(last.last);
    let header = SnapshotHeader {
        next_offset: Offset::new(last.next_offset),
        controller_epoch: ControllerEpoch::new(last.controller_epoch),
        timestamp_ms: last.time_ms,
        digest: u128::from_be_bytes(last.digest.as_slice().try_into().expect("16 bytes")),
    };
    let watched = MetadataImage::from_snapshot(header, records).expect("what is sent replays");
    assert_eq!(watched.digest(), image.digest());
}

fn check_event(event: &WatchEvent) {
    let bytes = event.encoded_len();
    assert!(bytes <= MESSAGE_BYTES_MAX, "an event of {bytes} bytes");
}

/// Refused by name, before anything is written, and not because the log would not take it.
fn check_refusal(refused: &ApiError) {
    assert!(refused.name.is_definite() && refused.name != ErrorName::UnknownServerError, "{refused:?}");
}

/// What the API asks for together becomes visible together.
fn is_atomic(request: &Request) -> bool {
    !matches!(
        request,
        Request::Register(..) | Request::Unfence(_) | Request::Fence(_) | Request::AlterPartition(_) | Request::Digest
    )
}

/// A request, and how large the reply is that is remembered of it.
struct Asked {
    request: Request,
    reply_bytes: usize,
}

impl Mutation for Asked {
    fn plan(&mut self, image: &MetadataImage, rng: &mut Rng) -> Result<Plan<()>, ApiError> {
        let planned = self.request.plan(image, rng)?;
        let (waiting_on, is_partial) = (planned.waiting_on, planned.is_partial);
        Ok(Plan { records: planned.records, response: (), waiting_on, is_partial })
    }

    fn reply(&mut self, _: &Position, _: &[Record]) -> Vec<u8> {
        vec![7; self.reply_bytes]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Each kind of request, with all of its sizes at their largest.
    #[test]
    fn the_largest_request_of_each_kind_is_kept_and_sent() {
        for kind in 0..draw::KINDS {
            let mut bytes = Vec::new();
            for kind in [0, 1, kind] {
                bytes.extend([kind, u8::MAX, u8::MAX, u8::MAX, u8::MAX, u8::MAX]);
            }
            check(&bytes);
        }
    }

    #[test]
    fn any_sequence_of_large_requests_is_kept_and_sent() {
        for seed in 0..6 {
            let mut rng = Rng::new(seed);
            let bytes: Vec<u8> = (0..64).map(|_| rng.next_u64() as u8).collect();
            check(&bytes);
        }
    }

    #[test]
    fn a_reply_larger_than_is_remembered_is_refused_before_the_log() {
        let mut cluster = Cluster::new();
        let before = cluster.ledger.clone();
        cluster.apply(Draw::new(&[1, 0]).request(cluster.ledger.working()), limits::REMEMBERED_REPLY_BYTES_MAX + 1, 0);
        assert_eq!(cluster.ledger, before);
        cluster.apply(Draw::new(&[1, 0]).request(cluster.ledger.working()), limits::REMEMBERED_REPLY_BYTES_MAX, 0);
        assert!(cluster.ledger.visible().next_offset > before.visible().next_offset);
    }
}
