//! Keeps the agent's view of the metadata up to date: from the metadata that this process has already, where it has, and
//! otherwise from the feed of the nearest node that answers.

use std::sync::Arc;
use std::time::Duration;

use quorate_metadata::ids::{ControllerEpoch, Offset};
use quorate_metadata::image::{Ledger, SnapshotHeader};
use quorate_metadata::plan::features;
use quorate_metadata::{Batch, ErrorName, MetadataImage, Record};
use quorate_proto::broker::broker_client::BrokerClient;
use quorate_proto::broker::{CommittedRecords, SnapshotPart, WatchRequest, watch_event};
use quorate_proto::record;
use tokio::sync::watch;
use tokio::time::timeout;
use tonic::Status;
use tracing::{debug, info, warn};

use super::connect::{Candidates, MESSAGE_BYTES_MAX, connect};
use super::{AgentConfig, MetadataCache};

/// How long the metadata may stand still while it lacks what the controller has told of. The node that it comes from may be
/// cut off, and would show for ever what it has.
const SILENCE_MAX: Duration = Duration::from_secs(1);

/// Committed metadata that this process replays already. The agent of a node that is a controller as well shares the image
/// of that, instead of following a feed into a second one.
pub trait LocalMetadata: Send + Sync {
    /// What is committed, as far as it is replayed.
    fn image(&self) -> MetadataImage;

    /// The end of the image: changes when the image has.
    fn offsets(&self) -> watch::Receiver<Offset>;
}

/// Why following stopped for now.
#[derive(Debug, thiserror::Error)]
enum Interrupted {
    #[error("{0}")]
    Connect(#[from] tonic::transport::Error),
    #[error("{0}")]
    Status(#[from] Status),
    #[error("the feed ended")]
    Ended,
    #[error("the feed does not replay: {0}")]
    Replay(String),
    #[error("the feed is silent, and behind what the controller has told of")]
    Silent,
}

/// Follows for ever.
pub(super) async fn follow(config: Arc<AgentConfig>, cache: MetadataCache, told: watch::Receiver<Offset>) {
    let mut candidates = Candidates::new(&config);
    loop {
        if let Some(local) = &config.local_metadata {
            mirror(local.as_ref(), &cache, &told).await;
            warn!("the metadata of this process is behind: the feed of another node is followed");
        }
        let follower = Follower::new(cache.clone(), told.clone());
        tokio::select! {
            () = follow_feeds(&config, follower, &mut candidates) => {}
            () = caught_up(config.local_metadata.as_deref(), &cache, &told) => info!("the metadata of this process has caught up"),
        }
    }
}

/// Publishes the metadata of this process, until it is behind and stands still, or has ended.
async fn mirror(local: &dyn LocalMetadata, cache: &MetadataCache, told: &watch::Receiver<Offset>) {
    let mut offsets = local.offsets();
    loop {
        offsets.mark_unchanged();
        cache.publish(&local.image());
        match timeout(SILENCE_MAX, offsets.changed()).await {
            Ok(Ok(())) => {}
            Ok(Err(_)) => return,
            Err(_) if is_behind(cache, told) => return,
            Err(_) => {}
        }
    }
}

/// Waits until the metadata of this process has what the feed has brought and what the controller has told of; without such
/// metadata, for ever.
async fn caught_up(local: Option<&dyn LocalMetadata>, cache: &MetadataCache, told: &watch::Receiver<Offset>) {
    let Some(local) = local else { return std::future::pending().await };
    let mut offsets = local.offsets();
    loop {
        // What is wanted stands still while it is waited for: under load the feed of another node is always a little ahead.
        let wanted = cache.next_offset().max(*told.borrow());
        let reached = timeout(SILENCE_MAX, offsets.wait_for(|end| *end >= wanted)).await;
        match reached.map(|waited| waited.is_ok()) {
            Ok(true) => return,
            Ok(false) => break,
            Err(_) => {}
        }
    }
    std::future::pending().await
}

fn is_behind(cache: &MetadataCache, told: &watch::Receiver<Offset>) -> bool {
    cache.next_offset() < *told.borrow()
}

/// Follows for ever: resumes by offset, and starts again from a snapshot where the feed asks for it.
async fn follow_feeds(config: &AgentConfig, mut follower: Follower, candidates: &mut Candidates) {
    loop {
        let address = candidates.next().await;
        let interrupted = follower.follow(config, &address).await;
        match &interrupted {
            Interrupted::Status(status) if refusal(status) == ErrorName::UnsupportedVersion => {
                warn!(address, %interrupted, "metadata feed");
            }
            Interrupted::Replay(_) => warn!(address, %interrupted, "metadata feed"),
            Interrupted::Connect(_) | Interrupted::Status(_) | Interrupted::Silent | Interrupted::Ended => {
                debug!(address, %interrupted, "metadata feed");
            }
        }
        if matches!(interrupted, Interrupted::Silent) {
            candidates.pass_over(&address);
        }
        if let Interrupted::Replay(_) = interrupted {
            follower.started = false;
        }
        if let Interrupted::Status(status) = &interrupted
            && refusal(status) == ErrorName::ResyncRequired
        {
            follower.started = false;
        }
    }
}

struct Follower {
    cache: MetadataCache,
    /// How far the metadata goes, by the controller's last word.
    told: watch::Receiver<Offset>,
    ledger: Ledger,
    /// Records of a snapshot that has not yet come whole.
    snapshot: Vec<Record>,
    started: bool,
}

impl Follower {
    /// Goes on from what is known.
    fn new(cache: MetadataCache, told: watch::Receiver<Offset>) -> Self {
        let image = cache.image();
        let started = image.next_offset > Offset::default();
        Self { cache, told, ledger: Ledger::new(image), snapshot: Vec::new(), started }
    }

    async fn follow(&mut self, config: &AgentConfig, address: &str) -> Interrupted {
        match self.try_follow(config, address).await {
            Ok(()) => Interrupted::Ended,
            Err(interrupted) => interrupted,
        }
    }

    async fn try_follow(&mut self, config: &AgentConfig, address: &str) -> Result<(), Interrupted> {
        let channel = connect(config, address).await?;
        let from_offset = self.started.then(|| self.ledger.working().next_offset.get());
        self.snapshot.clear();
        let max_level = features::range(&config.features, features::METADATA_VERSION).max;
        let request = WatchRequest { from_offset, max_level: Some(max_level.into()), ..WatchRequest::default() };
        let mut client = BrokerClient::new(channel).max_decoding_message_size(MESSAGE_BYTES_MAX);
        let opened = timeout(SILENCE_MAX, client.watch(request)).await.map_err(|_| Interrupted::Silent)?;
        let mut events = opened?.into_inner();
        loop {
            let Ok(event) = timeout(SILENCE_MAX, events.message()).await else {
                if is_behind(&self.cache, &self.told) {
                    return Err(Interrupted::Silent);
                }
                continue;
            };
            let Some(event) = event? else { return Ok(()) };
            match event.event {
                Some(watch_event::Event::Snapshot(part)) => self.on_snapshot(part)?,
                Some(watch_event::Event::Records(records)) => self.on_records(records)?,
                Some(watch_event::Event::Bookmark(_)) | None => {}
            }
        }
    }

    fn on_snapshot(&mut self, part: SnapshotPart) -> Result<(), Interrupted> {
        for item in part.records {
            self.snapshot.push(record::from_wire(item).map_err(replay)?);
        }
        if !part.last {
            return Ok(());
        }
        let digest = part.digest.as_slice().try_into().map(u128::from_be_bytes).map_err(replay)?;
        let header = SnapshotHeader {
            next_offset: Offset::new(part.next_offset),
            controller_epoch: ControllerEpoch::new(part.controller_epoch),
            timestamp_ms: part.time_ms,
            digest,
        };
        let image = MetadataImage::from_snapshot(header, std::mem::take(&mut self.snapshot)).map_err(replay)?;
        self.ledger = Ledger::new(image);
        self.started = true;
        self.cache.publish(self.ledger.visible());
        Ok(())
    }

    fn on_records(&mut self, records: CommittedRecords) -> Result<(), Interrupted> {
        let expected = self.ledger.working().next_offset.get();
        if let Some(first) = records.records.first()
            && first.offset != expected
        {
            return Err(Interrupted::Replay(format!("offset {} where {expected} was expected", first.offset)));
        }
        let batch = Batch {
            controller_epoch: ControllerEpoch::new(records.controller_epoch),
            timestamp_ms: records.time_ms,
            records: records
                .records
                .into_iter()
                .map(|item| record::from_wire(item.record.unwrap_or_default()))
                .collect::<Result<_, _>>()
                .map_err(replay)?,
        };
        self.ledger.replay_visible(&batch, Offset::new(records.next_offset)).map_err(replay)?;
        self.cache.publish(self.ledger.visible());
        Ok(())
    }
}

fn refusal(status: &Status) -> ErrorName {
    quorate_proto::error::from_status(status).name
}

fn replay(error: impl std::fmt::Display) -> Interrupted {
    Interrupted::Replay(error.to_string())
}

#[cfg(test)]
mod tests {
    use futures::FutureExt;

    use super::super::fixture::image;
    use super::*;

    /// Metadata whose end can be moved.
    struct Local(watch::Sender<Offset>);

    impl Local {
        fn at(offset: i64) -> Self {
            Self(watch::Sender::new(Offset::new(offset)))
        }
    }

    impl LocalMetadata for Local {
        fn image(&self) -> MetadataImage {
            let mut image = image(&[&[1, 2]]);
            image.next_offset = *self.0.borrow();
            image
        }

        fn offsets(&self) -> watch::Receiver<Offset> {
            self.0.subscribe()
        }
    }

    /// What the controller has told of.
    fn told(offset: i64) -> watch::Sender<Offset> {
        watch::Sender::new(Offset::new(offset))
    }

    #[tokio::test(start_paused = true)]
    async fn local_metadata_is_shared_as_it_changes() {
        let (local, cache, told) = (Local::at(5), MetadataCache::new(), told(9));
        let told = told.subscribe();
        let mut mirrored = Box::pin(mirror(&local, &cache, &told));
        assert!((&mut mirrored).now_or_never().is_none());
        assert_eq!(cache.next_offset(), Offset::new(5));
        local.0.send_replace(Offset::new(9));
        assert!((&mut mirrored).now_or_never().is_none());
        assert_eq!(cache.next_offset(), Offset::new(9));
    }

    #[tokio::test(start_paused = true)]
    async fn local_metadata_that_stands_still_is_left_only_where_it_lacks_something() {
        let (local, cache, told) = (Local::at(5), MetadataCache::new(), told(5));
        let receiver = told.subscribe();
        let mut mirrored = Box::pin(mirror(&local, &cache, &receiver));
        assert!(timeout(3 * SILENCE_MAX, &mut mirrored).await.is_err(), "nothing is missing");
        told.send_replace(Offset::new(6));
        assert!(timeout(2 * SILENCE_MAX, &mut mirrored).await.is_ok());
    }

    #[tokio::test(start_paused = true)]
    async fn local_metadata_is_read_again_once_it_has_what_the_feed_has_brought() {
        let (local, cache, told) = (Local::at(5), MetadataCache::new(), told(8));
        cache.publish(&Local::at(7).image());
        let told = told.subscribe();
        let mut returned = Box::pin(caught_up(Some(&local), &cache, &told));
        assert!((&mut returned).now_or_never().is_none());
        local.0.send_replace(Offset::new(7));
        assert!((&mut returned).now_or_never().is_none(), "the controller has told of more");
        local.0.send_replace(Offset::new(8));
        assert!((&mut returned).now_or_never().is_some());
    }
}
