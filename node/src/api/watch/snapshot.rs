//! A snapshot for a watcher: the image as records, made while they are sent.
//!
//! A few snapshots are sent at a time, the other watchers wait. The image is taken when the turn has come, so that the
//! feed still has what follows it. A turn is for watchers that read: one that is waited for too long gives its turn to the
//! next and goes on beside the turns, where there is room for few.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use prost::Message;
use quorate_metadata::ids::Offset;
use quorate_metadata::{MetadataImage, Record};
use quorate_proto::broker::SnapshotPart;
use quorate_proto::encoded::WatchEvent;
use quorate_proto::record;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::task::yield_now;
use tokio::time::{Instant, sleep, timeout};
use tonic::Status;

use super::Ended;
use super::filter::Filter;
use super::outlet::Outlet;
use crate::feed::SnapshotTurns;

/// Bytes of records in one event, unless a single record is larger: a quarter of what a gRPC client takes by default.
const PART_BYTES_MAX: usize = 1024 * 1024;

/// Of the fields of a part besides its records.
const HEAD_BYTES_MAX: usize = 64;

/// Records looked at before other requests of this thread have their turn: about 2 ms.
const RECORDS_PER_SLICE: usize = 1_000;

/// How long a watcher and a node wait for each other.
#[derive(Debug, Clone, Copy)]
pub struct Patience {
    /// How often a watcher that waits for its turn gets an empty part.
    sign_interval: Duration,
    /// A watcher that takes no event for so long is cut off, and begins again.
    stall_max: Duration,
    /// How long a watcher is waited for in its turn, all its parts together.
    turn_wait: Duration,
    /// Added to it with every part that is taken.
    turn_wait_per_part: Duration,
}

/// Agents leave a node whose feed is silent for a second. Ten seconds for 1 MiB are less than any network that a broker
/// could live with. A watcher that reads 4 MiB a second keeps its turn until the end, however large the snapshot is: were
/// there less time, many that start at once would be taken for slow ones.
pub const PATIENCE: Patience = Patience {
    sign_interval: Duration::from_millis(400),
    stall_max: Duration::from_secs(10),
    turn_wait: Duration::from_secs(5),
    turn_wait_per_part: Duration::from_millis(250),
};

/// Sends the snapshot that the filter leaves; where the feed goes on after it.
pub async fn send(
    outlet: &Outlet,
    turns: SnapshotTurns,
    image: impl FnOnce() -> Result<MetadataImage, Status>,
    filter: &Filter,
    patience: Patience,
) -> Result<Offset, Ended> {
    let mut turn = Turn::begin(outlet, filter, turns, patience).await?;
    let image = match image() {
        Ok(image) => image,
        Err(refusal) => {
            outlet.refuse(refusal).await;
            return Err(Ended);
        }
    };
    let mut parts = Parts::new(&image, filter);
    while let Some(part) = parts.next().await {
        turn.send(snapshot(part)).await?;
    }
    Ok(image.next_offset)
}

/// The events of a whole snapshot, one after the other: for those who check what a watcher gets.
pub async fn events_of(image: &MetadataImage) -> Vec<WatchEvent> {
    let filter = Filter::default();
    let (mut parts, mut events) = (Parts::new(image, &filter), Vec::new());
    while let Some(part) = parts.next().await {
        events.push(snapshot(part));
    }
    events
}

/// The right to send a snapshot.
struct Turn<'a> {
    outlet: &'a Outlet,
    filter: &'a Filter,
    patience: Patience,
    permit: OwnedSemaphorePermit,
    slow: Arc<Semaphore>,
    /// How long the watcher may still be waited for. None once the turn was given to the next.
    wait_left: Option<Duration>,
}

impl<'a> Turn<'a> {
    /// Waits for a turn.
    async fn begin(
        outlet: &'a Outlet,
        filter: &'a Filter,
        turns: SnapshotTurns,
        patience: Patience,
    ) -> Result<Self, Ended> {
        let SnapshotTurns { turns, slow } = turns;
        let permit = turns.acquire_owned();
        tokio::pin!(permit);
        loop {
            tokio::select! {
                biased;
                permit = &mut permit => {
                    let (permit, wait_left) = (permit.map_err(|_| Ended)?, Some(patience.turn_wait));
                    return Ok(Self { outlet, filter, patience, permit, slow, wait_left });
                }
                () = outlet.closed() => return Err(Ended),
                () = sleep(patience.sign_interval) => outlet.offer(snapshot(Bytes::new())),
            }
        }
    }

    async fn send(&mut self, event: WatchEvent) -> Result<(), Ended> {
        let sent = timeout(self.patience.stall_max, self.outlet.send(event));
        tokio::pin!(sent);
        if let Some(wait_left) = self.wait_left {
            let began = Instant::now();
            if let Ok(sent) = timeout(wait_left, &mut sent).await {
                self.wait_left = Some(wait_left.saturating_sub(began.elapsed()) + self.patience.turn_wait_per_part);
                return sent.unwrap_or_else(|_| self.cut_off());
            }
            self.give_back()?;
        }
        sent.await.unwrap_or_else(|_| self.cut_off())
    }

    /// Lets the next watcher have the turn, where this one can go on beside.
    fn give_back(&mut self) -> Result<(), Ended> {
        let Ok(permit) = self.slow.clone().try_acquire_owned() else { return self.cut_off() };
        (self.permit, self.wait_left) = (permit, None);
        Ok(())
    }

    fn cut_off(&self) -> Result<(), Ended> {
        let broker = self.filter.broker.map(|id| id.get());
        tracing::info!(broker, "a watcher reads its snapshot too slowly, it is cut off");
        Err(Ended)
    }
}

fn snapshot(part: Bytes) -> WatchEvent {
    WatchEvent { snapshot: Some(part), ..WatchEvent::default() }
}

/// The encoded `SnapshotPart`s of an image.
struct Parts<'a> {
    records: Box<dyn Iterator<Item = Record> + Send>,
    filter: &'a Filter,
    /// What each part says besides its records.
    head: SnapshotPart,
    /// A record that did not fit into the part before.
    left_over: Vec<u8>,
    looked_at: usize,
    ended: bool,
}

impl<'a> Parts<'a> {
    fn new(image: &MetadataImage, filter: &'a Filter) -> Self {
        let header = image.header();
        let digest = if filter.is_whole() { header.digest.to_be_bytes().to_vec() } else { Vec::new() };
        let head = SnapshotPart {
            next_offset: header.next_offset.get(),
            controller_epoch: header.controller_epoch.get(),
            records: Vec::new(),
            last: false,
            digest,
            time_ms: header.timestamp_ms,
        };
        Self { records: filter.candidates(image), filter, head, left_over: Vec::new(), looked_at: 0, ended: false }
    }

    /// None after the last part. There is one at least.
    async fn next(&mut self) -> Option<Bytes> {
        if self.ended {
            return None;
        }
        let mut part = std::mem::take(&mut self.left_over);
        loop {
            let Some(record) = self.next_record().await else {
                self.ended = true;
                break;
            };
            let start = part.len();
            put(&mut part, &SnapshotPart { records: vec![record::to_wire(&record)], ..SnapshotPart::default() });
            if start > 0 && part.len() + HEAD_BYTES_MAX > PART_BYTES_MAX {
                self.left_over = part.split_off(start);
                break;
            }
        }
        // Fields may come in any order: encodings can be joined.
        put(&mut part, &SnapshotPart { last: self.ended, ..self.head.clone() });
        Some(part.into())
    }

    async fn next_record(&mut self) -> Option<Record> {
        loop {
            self.looked_at += 1;
            if self.looked_at.is_multiple_of(RECORDS_PER_SLICE) {
                yield_now().await;
            }
            let record = self.records.next()?;
            if self.filter.passes_in_snapshot(&record) {
                return Some(record);
            }
        }
    }
}

fn put(bytes: &mut Vec<u8>, message: &impl Message) {
    message.encode(bytes).expect("a Vec takes any length");
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;
    use std::pin::pin;

    use futures::poll;
    use quorate_metadata::ids::{BrokerId, ControllerEpoch};
    use quorate_metadata::image::SnapshotHeader;
    use quorate_metadata::record::ConfigResource;
    use quorate_metadata::{Batch, Ledger};
    use tokio_stream::StreamExt;

    use super::*;
    use crate::api::watch::outlet;
    use crate::feed::Transit;

    /// Of a watcher that is cut off before its turn is over.
    const SHORT: Patience = Patience {
        sign_interval: Duration::from_millis(1),
        stall_max: Duration::from_millis(10),
        turn_wait: Duration::from_millis(20),
        turn_wait_per_part: Duration::from_millis(1),
    };

    fn config(resource: ConfigResource, key: String, bytes: usize) -> Record {
        Record::Config { resource, key, value: Some("v".repeat(bytes)) }
    }

    /// An image of about 3 MiB in 3 000 configs of every broker, and one config each of brokers 1 and 2.
    fn image() -> MetadataImage {
        let mut records: Vec<Record> =
            (0..3_000).map(|key| config(ConfigResource::BrokerDefault, format!("key-{key}"), 1_000)).collect();
        let of = |broker| config(ConfigResource::Broker(BrokerId::new(broker)), "key".to_owned(), 1);
        records.extend([of(1), of(2)]);
        let mut ledger = Ledger::default();
        let batch = Batch { controller_epoch: ControllerEpoch::new(1), timestamp_ms: 3, records };
        ledger.replay(&batch).expect("the records of this test replay");
        ledger.visible().clone()
    }

    fn empty() -> Result<MetadataImage, Status> {
        Ok(MetadataImage::default())
    }

    async fn parts(image: &MetadataImage, filter: &Filter) -> Vec<SnapshotPart> {
        let mut parts = Parts::new(image, filter);
        let mut decoded = Vec::new();
        while let Some(part) = parts.next().await {
            assert!(part.len() <= PART_BYTES_MAX, "{} bytes", part.len());
            decoded.push(SnapshotPart::decode(part).expect("it is encoded by us"));
        }
        decoded
    }

    fn records(parts: &[SnapshotPart]) -> Vec<Record> {
        let records = parts.iter().flat_map(|part| part.records.iter().cloned());
        records.map(|item| record::from_wire(item).expect("it was a record")).collect()
    }

    #[tokio::test]
    async fn a_snapshot_comes_in_parts_that_give_the_image() {
        let image = image();
        let parts = parts(&image, &Filter::default()).await;
        assert_eq!(parts.iter().map(|part| part.last).collect::<Vec<_>>(), [false, false, true]);
        let last = parts.last().expect("there is one");
        let header = SnapshotHeader {
            next_offset: Offset::new(last.next_offset),
            controller_epoch: ControllerEpoch::new(last.controller_epoch),
            timestamp_ms: last.time_ms,
            digest: u128::from_be_bytes(last.digest.as_slice().try_into().expect("16 bytes")),
        };
        assert_eq!(MetadataImage::from_snapshot(header, records(&parts)), Ok(image));
    }

    #[tokio::test]
    async fn a_filtered_snapshot_has_what_passes_and_no_digest() {
        let filter = Filter { broker: Some(BrokerId::new(2)), ..Filter::default() };
        let filtered = parts(&image(), &filter).await;
        assert_eq!(records(&filtered).len(), 3_001);
        assert!(filtered.iter().all(|part| part.digest.is_empty()));
        let nothing = Filter { kinds: ["Digest".to_owned()].into(), ..Filter::default() };
        let none = parts(&image(), &nothing).await;
        let [only] = &none[..] else { panic!("the last part comes even when it is empty") };
        assert!(only.last && only.records.is_empty());
    }

    #[tokio::test]
    async fn a_watcher_waits_for_its_turn_and_is_not_left_in_silence() {
        let turns = SnapshotTurns::new(1, 0);
        let taken = turns.turns.clone().acquire_owned().await.expect("it is open");
        let (outlet, events) = outlet::open(Transit::default());
        let mut events = Box::pin(events);
        let sent = tokio::spawn(async move { send(&outlet, turns, empty, &Filter::default(), SHORT).await });
        let mut next = async || {
            let event = events.next().await.expect("the watcher is there").expect("no error");
            SnapshotPart::decode(event.snapshot.expect("a part")).expect("it is encoded by us")
        };
        assert_eq!(next().await, SnapshotPart::default());
        drop(taken);
        while !next().await.last {}
        assert_eq!(sent.await.expect("it does not panic").expect("it was sent"), Offset::default());
    }

    #[tokio::test]
    async fn the_image_is_taken_when_the_turn_has_come() {
        let turns = SnapshotTurns::new(0, 0);
        let (outlet, _events) = outlet::open(Transit::default());
        let (is_taken, filter) = (Cell::new(false), Filter::default());
        let image = || {
            is_taken.set(true);
            Ok(MetadataImage::default())
        };
        let patience = Patience { sign_interval: Duration::from_secs(3_600), ..SHORT };
        let mut sending = pin!(send(&outlet, turns.clone(), image, &filter, patience));
        assert!(poll!(&mut sending).is_pending() && !is_taken.get(), "what follows it would leave the feed meanwhile");
        turns.turns.add_permits(1);
        sending.await.expect("it is sent");
        assert!(is_taken.get());
    }

    #[tokio::test]
    async fn records_that_do_not_pass_are_looked_at_in_slices() {
        let (image, filter) = (image(), Filter { kinds: ["Digest".to_owned()].into(), ..Filter::default() });
        let mut parts = Parts::new(&image, &filter);
        let mut next = pin!(parts.next());
        let mut slices = 1;
        while poll!(&mut next).is_pending() {
            slices += 1;
        }
        assert_eq!(slices, 3_002 / RECORDS_PER_SLICE + 1);
    }

    #[tokio::test]
    async fn a_watcher_that_takes_nothing_loses_its_turn() {
        let turns = SnapshotTurns::new(1, 1);
        let (outlet, _events) = outlet::open(Transit::default());
        let ended = send(&outlet, turns.clone(), || Ok(image()), &Filter::default(), SHORT).await;
        assert!(ended.is_err(), "it would keep the others waiting");
        assert_eq!((turns.turns.available_permits(), turns.slow.available_permits()), (1, 1));
    }

    #[tokio::test(start_paused = true)]
    async fn a_watcher_that_reads_slowly_goes_on_beside_the_turns() {
        let turns = SnapshotTurns::new(1, 1);
        let (slow_outlet, slow_events) = outlet::open(Transit::default());
        let slow_turns = turns.clone();
        let slow =
            tokio::spawn(
                async move { send(&slow_outlet, slow_turns, || Ok(image()), &Filter::default(), PATIENCE).await },
            );
        let mut slow_events = Box::pin(slow_events);
        // Each part is taken before the watcher is cut off, and all of them take longer than a turn.
        sleep(PATIENCE.stall_max - Duration::from_secs(1)).await;
        assert_eq!((turns.turns.available_permits(), turns.slow.available_permits()), (1, 0));

        let (outlet, mut events) = outlet::open(Transit::default());
        let next_turns = turns.clone();
        let next =
            tokio::spawn(async move { send(&outlet, next_turns, || Ok(image()), &Filter::default(), PATIENCE).await });
        for _ in 0..3 {
            events.next().await.expect("the turn is free for the next watcher").expect("no error");
        }
        assert!(next.await.expect("it does not panic").is_ok());
        assert!(!slow.is_finished());

        for _ in 0..3 {
            slow_events.next().await.expect("a part").expect("no error");
        }
        assert!(slow.await.expect("it does not panic").is_ok(), "it gets the rest of its snapshot");
        assert_eq!(turns.slow.available_permits(), 1);
    }

    #[tokio::test(start_paused = true)]
    async fn a_watcher_that_reads_slowly_is_cut_off_where_too_many_do() {
        let turns = SnapshotTurns::new(1, 0);
        let (outlet, _events) = outlet::open(Transit::default());
        let began = Instant::now();
        assert!(send(&outlet, turns.clone(), || Ok(image()), &Filter::default(), PATIENCE).await.is_err());
        assert!(began.elapsed() < PATIENCE.stall_max, "it has not kept its turn until it was stalled");
        assert_eq!(turns.turns.available_permits(), 1);
    }

    #[tokio::test]
    async fn a_watcher_that_went_away_gives_its_place_back() {
        let turns = SnapshotTurns::new(0, 0);
        let (outlet, events) = outlet::open(Transit::default());
        drop(events);
        assert!(send(&outlet, turns, || Ok(image()), &Filter::default(), SHORT).await.is_err());
    }

    #[tokio::test]
    async fn a_watcher_is_refused_when_its_turn_comes() {
        let turns = SnapshotTurns::new(1, 1);
        let (outlet, events) = outlet::open(Transit::default());
        let refuse = || Err(Status::failed_precondition("the level was raised"));
        assert!(send(&outlet, turns, refuse, &Filter::default(), SHORT).await.is_err());
        let refusal = Box::pin(events).next().await.expect("the stream ends with the refusal").expect_err("no part");
        assert_eq!(refusal.message(), "the level was raised");
    }
}
