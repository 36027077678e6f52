//! The metadata, followed from the feed of the nearest node that answers.

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
use tracing::{debug, warn};

use super::AgentConfig;
use super::connect::{Candidates, MESSAGE_BYTES_MAX, connect};

/// How long the feed may say nothing while it lacks what the controller has told of. The node that is followed may be
/// cut off, and would show for ever what it has.
const SILENCE_MAX: Duration = Duration::from_secs(1);

/// A copy of the committed metadata. Cheap to clone.
#[derive(Clone)]
pub struct MetadataCache {
    image: Arc<watch::Sender<MetadataImage>>,
}

impl MetadataCache {
    pub(super) fn new() -> Self {
        Self { image: Arc::new(watch::Sender::new(MetadataImage::default())) }
    }

    pub fn image(&self) -> MetadataImage {
        self.image.borrow().clone()
    }

    /// Changes with every batch replayed.
    pub fn changes(&self) -> watch::Receiver<MetadataImage> {
        self.image.subscribe()
    }

    /// Everything below this offset has been replayed.
    pub fn next_offset(&self) -> Offset {
        self.image.borrow().next_offset
    }

    fn publish(&self, ledger: &Ledger) {
        self.image.send_if_modified(|image| {
            // A snapshot of a node that lags must not undo what was acted on.
            let is_newer = ledger.visible().next_offset >= image.next_offset;
            if is_newer {
                image.clone_from(ledger.visible());
            }
            is_newer
        });
    }
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

/// Follows for ever: resumes by offset, and starts again from a snapshot where the feed asks for it.
pub(super) async fn follow(config: Arc<AgentConfig>, cache: MetadataCache, told: watch::Receiver<Offset>) {
    let mut candidates = Candidates::new(&config);
    let mut follower = Follower { cache, told, ledger: Ledger::default(), snapshot: Vec::new(), started: false };
    loop {
        let address = candidates.next().await;
        let interrupted = follower.follow(&config, &address).await;
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
        let request = WatchRequest { from_offset, broker: None, kinds: Vec::new(), max_level: Some(max_level.into()) };
        let mut client = BrokerClient::new(channel).max_decoding_message_size(MESSAGE_BYTES_MAX);
        let opened = timeout(SILENCE_MAX, client.watch(request)).await.map_err(|_| Interrupted::Silent)?;
        let mut events = opened?.into_inner();
        loop {
            let Ok(event) = timeout(SILENCE_MAX, events.message()).await else {
                if self.is_behind() {
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

    fn is_behind(&self) -> bool {
        self.cache.next_offset() < *self.told.borrow()
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
        self.cache.publish(&self.ledger);
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
        self.cache.publish(&self.ledger);
        Ok(())
    }
}

fn refusal(status: &Status) -> ErrorName {
    quorate_proto::error::from_status(status).name
}

fn replay(error: impl std::fmt::Display) -> Interrupted {
    Interrupted::Replay(error.to_string())
}
