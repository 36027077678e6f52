//! The metadata feed: a snapshot where asked for, then every committed batch, filtered, resumable.
//!
//! A watcher holds a cursor into the node's feed and at most a few events on their way. One that falls behind what the
//! feed keeps gets RESYNC_REQUIRED: it starts again from a snapshot, and never sees a gap.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use quorate_metadata::ids::{BrokerId, Offset};
use quorate_metadata::image::{Delta, MetadataImage};
use quorate_metadata::mutant::Mutant;
use quorate_metadata::{ApiError, ErrorName, Record};
use quorate_proto::broker::{
    Bookmark, CommittedRecord, CommittedRecords, SnapshotPart, WatchEvent, WatchRequest, watch_event,
};
use quorate_proto::record;
use tokio::sync::mpsc;
use tokio::time::timeout;
use tokio_stream::Stream;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Status;

use super::gateway::Gateway;
use super::request::invalid;
use crate::feed::{FeedEntry, OutOfRange};

/// Events on their way to one watcher. Beyond it the watcher's cursor waits, at no cost to anyone.
const EVENTS_BUFFERED_MAX: usize = 16;

/// Records per snapshot event: with the largest records we write, well under the message limit.
const SNAPSHOT_RECORDS_PER_EVENT: usize = 1_000;

/// Batches read from the feed at a time.
const ENTRIES_PER_READ: usize = 64;

/// How often a watcher hears where it is while nothing passes its filter.
const BOOKMARK_INTERVAL: Duration = Duration::from_secs(5);

/// Which records a watcher wants.
struct Filter {
    broker: Option<BrokerId>,
    kinds: BTreeSet<String>,
}

/// The watcher went away, or was told to start again.
struct Ended;

pub fn serve(
    gateway: &Gateway,
    request: WatchRequest,
) -> Result<impl Stream<Item = Result<WatchEvent, Status>> + use<>, Status> {
    let filter = Filter::new(&request).map_err(|error| gateway.status(&error))?;
    let (sender, events) = mpsc::channel(EVENTS_BUFFERED_MAX);
    let watcher = Watcher { gateway: gateway.clone(), filter, sender };
    match request.from_offset.map(Offset::new) {
        Some(from) => {
            // Refused at once rather than as the stream's first item.
            gateway.view.feed.read(from, 1).map_err(|range| watcher.out_of_range(from, range))?;
            tokio::spawn(watcher.follow(from));
        }
        None => {
            tokio::spawn(watcher.snapshot_then_follow());
        }
    }
    Ok(ReceiverStream::new(events))
}

struct Watcher {
    gateway: Gateway,
    filter: Filter,
    sender: mpsc::Sender<Result<WatchEvent, Status>>,
}

impl Watcher {
    async fn snapshot_then_follow(self) {
        let image = self.gateway.view.image();
        if self.send_snapshot(&image).await.is_ok() {
            self.follow(image.next_offset).await;
        }
    }

    async fn send_snapshot(&self, image: &MetadataImage) -> Result<(), Ended> {
        let mut records = self.filter.snapshot(image).into_iter().peekable();
        loop {
            let part: Vec<_> =
                records.by_ref().take(SNAPSHOT_RECORDS_PER_EVENT).map(|item| record::to_wire(&item)).collect();
            let last = records.peek().is_none();
            self.send(watch_event::Event::Snapshot(SnapshotPart {
                next_offset: image.next_offset.get(),
                controller_epoch: image.controller_epoch.get(),
                records: part,
                last,
                digest: if self.filter.is_whole() { image.digest().to_be_bytes().to_vec() } else { Vec::new() },
                time_ms: image.timestamp_ms,
            }))
            .await?;
            if last {
                return Ok(());
            }
        }
    }

    async fn follow(self, mut cursor: Offset) {
        let mut end = self.gateway.view.feed.end();
        let mut told = cursor;
        if self.begin_wrongly(&mut cursor).await.is_err() {
            return;
        }
        loop {
            end.mark_unchanged();
            match self.send_available(&mut cursor, &mut told).await {
                Ok(true) => continue,
                Ok(false) => {}
                Err(Ended) => return,
            }
            tokio::select! {
                () = self.sender.closed() => return,
                changed = timeout(BOOKMARK_INTERVAL, end.changed()) => match changed {
                    Ok(Ok(())) => {}
                    Ok(Err(_)) => return,
                    Err(_) if told == cursor => {}
                    Err(_) => {
                        if self.send(watch_event::Event::Bookmark(Bookmark { next_offset: cursor.get() })).await.is_err() {
                            return;
                        }
                        told = cursor;
                    }
                },
            }
        }
    }

    /// As the mutants do.
    async fn begin_wrongly(&self, cursor: &mut Offset) -> Result<(), Ended> {
        let entries = self.gateway.view.feed.read(*cursor, 2).unwrap_or_default();
        let [first, second] = &entries[..] else { return Ok(()) };
        let (told, next) = match () {
            () if Mutant::DroppedDelta.is_on() => (vec![], first),
            () if Mutant::RepeatedDelta.is_on() => (vec![first, first], first),
            () if Mutant::SwappedDeltas.is_on() => (vec![second, first], second),
            () => return Ok(()),
        };
        for entry in told {
            if let Some(records) = self.filter.committed(entry, *cursor) {
                self.send(watch_event::Event::Records(records)).await?;
            }
        }
        *cursor = next.delta.next_offset;
        Ok(())
    }

    /// Sends what the feed has from the cursor on; whether there was anything.
    async fn send_available(&self, cursor: &mut Offset, told: &mut Offset) -> Result<bool, Ended> {
        fail::fail_point!("feed");
        let entries = match self.gateway.view.feed.read(*cursor, ENTRIES_PER_READ) {
            Ok(entries) => entries,
            Err(range) => {
                // The receiver is the watcher's connection; when it is gone there is nobody to tell.
                let _ = self.sender.send(Err(self.out_of_range(*cursor, range))).await;
                return Err(Ended);
            }
        };
        for entry in &entries {
            if let Some(records) = self.filter.committed(entry, *cursor) {
                self.send(watch_event::Event::Records(records)).await?;
                *told = entry.delta.next_offset;
            }
            *cursor = entry.delta.next_offset;
        }
        Ok(!entries.is_empty())
    }

    async fn send(&self, event: watch_event::Event) -> Result<(), Ended> {
        self.sender.send(Ok(WatchEvent { event: Some(event) })).await.map_err(|_| Ended)
    }

    fn out_of_range(&self, asked: Offset, range: OutOfRange) -> Status {
        self.gateway.status(&ApiError::new(
            ErrorName::ResyncRequired,
            format!(
                "offset {asked} is not in the feed of this node, which has {} to {}; start from a snapshot",
                range.start, range.end
            ),
        ))
    }
}

impl Filter {
    fn new(request: &WatchRequest) -> Result<Self, ApiError> {
        if let Some(unknown) = request.kinds.iter().find(|kind| !Record::KINDS.contains(&kind.as_str())) {
            return Err(invalid(format!("unknown record type {unknown:?}; there are {}", Record::KINDS.join(", "))));
        }
        if let Some(from) = request.from_offset
            && from < 0
        {
            return Err(invalid(format!("offset {from} is negative")));
        }
        Ok(Self { broker: request.broker.map(BrokerId::new), kinds: request.kinds.iter().cloned().collect() })
    }

    fn is_whole(&self) -> bool {
        self.broker.is_none() && self.kinds.is_empty()
    }

    fn wants(&self, record: &Record) -> bool {
        self.kinds.is_empty() || self.kinds.contains(record.kind())
    }

    fn snapshot(&self, image: &MetadataImage) -> Vec<Record> {
        let wanted = image.to_records().filter(|record| self.wants(record));
        let Some(broker) = self.broker else { return wanted.collect() };
        let records: Arc<[Record]> = wanted.collect();
        let whole = Delta {
            first_offset: Offset::default(),
            next_offset: image.next_offset,
            controller_epoch: image.controller_epoch,
            timestamp_ms: image.timestamp_ms,
            records,
        };
        whole.concerning(broker, image, image).map(|(_, record)| record.clone()).collect()
    }

    /// What of one batch passes, from the cursor on; none when nothing does.
    fn committed(&self, entry: &FeedEntry, cursor: Offset) -> Option<CommittedRecords> {
        let delta = &entry.delta;
        let committed = |(offset, item): (Offset, &Record)| CommittedRecord {
            offset: offset.get(),
            record: Some(record::to_wire(item)),
        };
        let passes = |(offset, item): &(Offset, &Record)| *offset >= cursor && self.wants(item);
        let records: Vec<CommittedRecord> = match self.broker {
            Some(broker) => {
                delta.concerning(broker, &entry.before, &entry.after).filter(passes).map(committed).collect()
            }
            None => delta.offsets().filter(passes).map(committed).collect(),
        };
        (!records.is_empty()).then(|| CommittedRecords {
            controller_epoch: delta.controller_epoch.get(),
            time_ms: delta.timestamp_ms,
            next_offset: delta.next_offset.get(),
            records,
        })
    }
}
