//! The metadata feed: committed records in order, without gap or repeat, from whichever node serves them.
//!
//! A stream that breaks is opened again at another node from the offset that comes next. A snapshot is handed out only
//! when it is whole, so one that breaks off is simply fetched anew.

use std::collections::VecDeque;

use quorate_metadata::ErrorName;
use quorate_metadata::image::LEVEL_HIGHEST;
use quorate_proto::broker::watch_event::Event as Wire;
use quorate_proto::broker::{CommittedRecords, SnapshotPart, WatchEvent, WatchRequest};
use tokio::time::{Instant, sleep};
use tonic::{Status, Streaming};

use crate::admin::{AdminClient, brokers};
use crate::error::ClientError;
use crate::retry::{Effect, Pace, judge, run};

/// What to follow.
#[derive(Debug, Clone, Default)]
pub struct WatchFilter {
    /// From this offset on; `None`: a snapshot first, then what follows it.
    pub from: Option<i64>,
    /// Only what concerns this broker.
    pub broker: Option<i32>,
    /// Only records of these types; none: all.
    pub kinds: Vec<String>,
    /// Ids of topics: nothing that belongs to another topic; none: all.
    pub topics: Vec<String>,
}

#[derive(Debug, Clone, PartialEq)]
pub enum Event {
    Snapshot(SnapshotPart),
    Records(CommittedRecords),
    /// Nothing that passes the filter below this offset.
    Bookmark(i64),
}

/// A feed that goes on over broken connections and dead nodes.
#[derive(Debug)]
pub struct Watch {
    client: AdminClient,
    filter: WatchFilter,
    stream: Option<(usize, Streaming<WatchEvent>)>,
    /// Parts of a snapshot: gathered until the last one is there, then handed out.
    snapshot: VecDeque<SnapshotPart>,
    pace: Pace,
    broken_since: Option<Instant>,
}

impl Watch {
    pub(crate) fn new(client: AdminClient, filter: WatchFilter) -> Self {
        let pace = Pace::new(client.nodes.len());
        Self { client, filter, stream: None, snapshot: VecDeque::new(), pace, broken_since: None }
    }

    /// Where the feed goes on; `None` before the snapshot is there.
    pub fn next_offset(&self) -> Option<i64> {
        self.filter.from
    }

    /// Opens the stream, where it is not open: what happens from here on is not missed even if nobody asks yet.
    pub async fn open(&mut self) -> Result<(), ClientError> {
        if self.stream.is_some() {
            return Ok(());
        }
        self.snapshot.clear();
        let request = WatchRequest {
            from_offset: self.filter.from,
            broker: self.filter.broker,
            kinds: self.filter.kinds.clone(),
            topics: self.filter.topics.clone(),
            max_level: Some(LEVEL_HIGHEST.into()),
        };
        let AdminClient { nodes, options, .. } = &self.client;
        let stream = run(nodes, options, Effect::None, request, |channel, request| async move {
            brokers(channel).watch(request).await
        })
        .await?;
        self.stream = Some((nodes.current().0, stream));
        Ok(())
    }

    /// The next event. Fails when no node serves the feed for as long as the client's timeout, and with
    /// RESYNC_REQUIRED when the records from here on are no longer kept: begin anew, with a snapshot.
    ///
    /// Cancel safe: what was received is not lost.
    pub async fn next(&mut self) -> Result<Event, ClientError> {
        loop {
            if let Some(part) = self.whole_snapshot_part() {
                return Ok(Event::Snapshot(part));
            }
            self.open().await?;
            let (place, stream) = self.stream.as_mut().expect("just opened");
            let place = *place;
            match stream.message().await {
                Ok(Some(event)) => {
                    self.pace.reset();
                    self.broken_since = None;
                    if let Some(event) = event.event.and_then(|event| self.accept(event)) {
                        return Ok(event);
                    }
                }
                Ok(None) => self.reopen(place, Status::unavailable("the feed ended")).await?,
                Err(status) => self.reopen(place, status).await?,
            }
        }
    }

    fn accept(&mut self, event: Wire) -> Option<Event> {
        match event {
            Wire::Snapshot(part) => {
                if part.last {
                    self.filter.from = Some(part.next_offset);
                }
                self.snapshot.push_back(part);
                None
            }
            Wire::Records(records) => {
                self.filter.from = Some(records.next_offset);
                Some(Event::Records(records))
            }
            Wire::Bookmark(bookmark) => {
                self.filter.from = Some(bookmark.next_offset);
                Some(Event::Bookmark(bookmark.next_offset))
            }
        }
    }

    fn whole_snapshot_part(&mut self) -> Option<SnapshotPart> {
        let whole = self.snapshot.back().is_some_and(|part| part.last);
        if whole { self.snapshot.pop_front() } else { None }
    }

    /// Gets ready to open the feed elsewhere, unless that would not help.
    async fn reopen(&mut self, place: usize, status: Status) -> Result<(), ClientError> {
        self.stream = None;
        let failure = judge("the feed", &status);
        let since = *self.broken_since.get_or_insert_with(Instant::now);
        let pause = self.pace.pause(failure.next).map(|pause| pause.max(failure.delay));
        match pause {
            Some(pause) if since.elapsed() + pause < self.client.options.timeout => {
                self.client.nodes.leave(place);
                sleep(pause).await;
                Ok(())
            }
            _ => Err(ClientError::failed(failure.error.name, failure.error.message)),
        }
    }
}

impl ClientError {
    /// The feed cannot go on from where it was.
    pub fn needs_resync(&self) -> bool {
        self.name() == ErrorName::ResyncRequired
    }
}
