//! The metadata feed: a snapshot where asked for, then every committed batch, filtered, resumable.
//!
//! A watcher holds a cursor into the node's feed and at most a few events on their way. One that falls behind what the
//! feed keeps gets RESYNC_REQUIRED: it starts again from a snapshot, and never sees a gap. One that takes no events is cut
//! off, and resumes from where it was.

mod filter;
mod levels;
mod outlet;
mod snapshot;

use std::time::Duration;

use bytes::Bytes;
use prost::Message;
use quorate_metadata::ids::Offset;
use quorate_metadata::mutant::Mutant;
use quorate_metadata::{ApiError, ErrorName, MetadataImage};
use quorate_proto::broker::{Bookmark, WatchRequest};
use quorate_proto::encoded::WatchEvent;
use tokio::sync::watch;
use tokio::time::timeout;
use tokio_stream::Stream;
use tonic::Status;

use super::gateway::Gateway;
use crate::feed::{FeedEntry, OutOfRange};
use filter::Filter;
use levels::LevelGate;
use outlet::{Guard, Outlet};
use snapshot::PATIENCE;
pub use snapshot::events_of;

/// Batches read from the feed at a time; the feed bounds their bytes.
const ENTRIES_PER_READ: usize = 64;

/// How often a watcher learns where it is while nothing passes its filter.
const BOOKMARK_INTERVAL: Duration = Duration::from_secs(5);

/// The watcher went away, or has to start again.
#[derive(Debug)]
struct Ended;

pub fn serve(
    gateway: &Gateway,
    request: WatchRequest,
) -> Result<impl Stream<Item = Result<WatchEvent, Status>> + use<>, Status> {
    let filter = Filter::new(&request).map_err(|error| gateway.status(&error))?;
    let levels = LevelGate::new(&request);
    // Refused at once rather than as the stream's first item.
    levels.check(gateway.view.inspect(MetadataImage::level)).map_err(|refusal| gateway.status(&refusal))?;
    let (outlet, events) = outlet::open(gateway.view.feed.transit());
    let guard = outlet.guard();
    let watcher = Watcher { gateway: gateway.clone(), filter, levels, outlet, end: gateway.view.feed.end() };
    match request.from_offset.map(Offset::new) {
        Some(from) => {
            gateway.view.feed.read(from, 1).map_err(|range| watcher.out_of_range(from, range))?;
            tokio::spawn(until_stalled(guard, watcher.follow(from)));
        }
        None => {
            tokio::spawn(until_stalled(guard, watcher.snapshot_then_follow()));
        }
    }
    Ok(events)
}

/// Serves a watcher, unless it takes nothing: then what waits for it is dropped.
async fn until_stalled(guard: Guard, served: impl Future<Output = ()>) {
    tokio::select! {
        biased;
        () = served => {}
        () = guard.stalled() => {
            tracing::info!("a watcher takes no events, it is cut off");
            guard.cut_off();
        }
    }
}

struct Watcher {
    gateway: Gateway,
    filter: Filter,
    levels: LevelGate,
    outlet: Outlet,
    /// The end of the feed.
    end: watch::Receiver<Offset>,
}

impl Watcher {
    async fn snapshot_then_follow(self) {
        let feed = &self.gateway.view.feed;
        let sent =
            snapshot::send(&self.outlet, feed.snapshots(), || self.snapshot_image(), &self.filter, PATIENCE).await;
        if let Ok(next_offset) = sent {
            self.follow(next_offset).await;
        }
    }

    /// The level may have been raised while the watcher waited for its turn.
    fn snapshot_image(&self) -> Result<MetadataImage, Status> {
        let image = self.gateway.view.image();
        self.levels.check(image.level()).map_err(|refusal| self.gateway.status(&refusal))?;
        Ok(image)
    }

    async fn follow(mut self, mut cursor: Offset) {
        let mut told = cursor;
        if self.begin_wrongly(&mut cursor).await.is_err() {
            return;
        }
        loop {
            self.end.mark_unchanged();
            match self.send_available(&mut cursor, &mut told).await {
                Ok(true) => continue,
                Ok(false) => {}
                Err(Ended) => return,
            }
            tokio::select! {
                () = self.outlet.closed() => return,
                changed = timeout(BOOKMARK_INTERVAL, self.end.changed()) => match changed {
                    Ok(Ok(())) => {}
                    Ok(Err(_)) => return,
                    Err(_) if told == cursor => {}
                    Err(_) => {
                        let bookmark = Bookmark { next_offset: cursor.get() }.encode_to_vec().into();
                        let event = WatchEvent { bookmark: Some(bookmark), ..WatchEvent::default() };
                        if self.outlet.send(event).await.is_err() {
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
            self.send_entry(entry, *cursor).await?;
        }
        *cursor = next.next_offset;
        Ok(())
    }

    /// Sends what the feed has from the cursor on; whether there was anything.
    async fn send_available(&self, cursor: &mut Offset, told: &mut Offset) -> Result<bool, Ended> {
        fail::fail_point!("feed");
        self.outlet.ready().await?;
        let entries = match self.gateway.view.feed.read(*cursor, ENTRIES_PER_READ) {
            Ok(entries) => entries,
            Err(range) => {
                self.outlet.refuse(self.out_of_range(*cursor, range)).await;
                return Err(Ended);
            }
        };
        let is_any = !entries.is_empty();
        for entry in entries {
            if self.send_entry(&entry, *cursor).await? {
                *told = entry.next_offset;
            }
            *cursor = entry.next_offset;
            // Who waits for room holds one entry, which the ring may have dropped, and not all that were read.
            if self.outlet.is_full() {
                break;
            }
        }
        Ok(is_any)
    }

    /// Sends what of a batch passes the filter; whether anything does.
    async fn send_entry(&self, entry: &FeedEntry, cursor: Offset) -> Result<bool, Ended> {
        if let Err(refusal) = self.levels.check(entry.level) {
            self.outlet.refuse(self.gateway.status(&refusal)).await;
            return Err(Ended);
        }
        let selected = self.gateway.view.feed.select(entry, cursor, |record| self.filter.passes(record));
        let is_any = !selected.is_empty();
        for part in selected {
            self.outlet.send(records(part.encoded)).await?;
        }
        Ok(is_any)
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

fn records(encoded: Bytes) -> WatchEvent {
    WatchEvent { records: Some(encoded), ..WatchEvent::default() }
}

#[cfg(test)]
mod tests;
