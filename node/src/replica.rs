//! What the log is replayed on: the ledger behind the image that readers see and the feed that watchers follow.

use std::collections::BTreeMap;
use std::io::{self, Read, Write};
use std::sync::Arc;

use arc_swap::ArcSwap;
use bytes::Bytes;
use quorate_client::agent::LocalMetadata;
use quorate_metadata::ids::{ControllerEpoch, Offset};
use quorate_metadata::image::{Ledger, MetadataImage};
use quorate_metadata::plan::features;
use quorate_metadata::record::VersionRange;
use quorate_proto::{batch, snapshot};
use tokio::sync::watch;

use crate::drafts::Drafts;
use crate::feed::Feed;
use crate::raft::{FrozenReplica, Outcome, Replica, ReplicaError};

/// The committed metadata, as everyone but the log sees it. Cheap to clone.
#[derive(Clone)]
pub struct MetadataView {
    /// The ledger after the last batch; readers take its visible side, a claim starts from its whole.
    ledger: Arc<ArcSwap<Ledger>>,
    next_offset: Arc<watch::Sender<Offset>>,
    pub feed: Feed,
    /// Of the active controller of this node, if it is one.
    pub drafts: Drafts,
}

impl MetadataView {
    pub fn new() -> Self {
        Self {
            ledger: Arc::new(ArcSwap::from_pointee(Ledger::default())),
            next_offset: Arc::new(watch::Sender::new(Offset::default())),
            feed: Feed::new(),
            drafts: Drafts::default(),
        }
    }

    /// What readers may see now.
    pub fn image(&self) -> MetadataImage {
        self.ledger.load().visible().clone()
    }

    /// Looks at what readers may see now, without the cost of a copy: for what is done with every heartbeat.
    pub fn inspect<T>(&self, look: impl FnOnce(&MetadataImage) -> T) -> T {
        look(self.ledger.load().visible())
    }

    /// Everything replayed, with an open transaction if there is one.
    pub fn ledger(&self) -> Ledger {
        Ledger::clone(&self.ledger.load())
    }

    /// Changes whenever records become visible.
    pub fn offsets(&self) -> watch::Receiver<Offset> {
        self.next_offset.subscribe()
    }

    /// An empty view for a node that holds no metadata of its own.
    fn publish(&self, ledger: &Ledger) {
        self.ledger.store(Arc::new(ledger.clone()));
        let end = ledger.visible().next_offset;
        // Inside a transaction nothing becomes visible.
        self.next_offset.send_if_modified(|current| std::mem::replace(current, end) != end);
    }
}

impl LocalMetadata for MetadataView {
    fn image(&self) -> MetadataImage {
        self.image()
    }

    fn offsets(&self) -> watch::Receiver<Offset> {
        self.offsets()
    }
}

impl Default for MetadataView {
    fn default() -> Self {
        Self::new()
    }
}

/// The replaying side: owned by the log, which calls it from one task.
pub struct MetadataReplica {
    ledger: Ledger,
    view: MetadataView,
    /// The levels of each feature that this node supports.
    features: BTreeMap<String, VersionRange>,
}

impl MetadataReplica {
    pub fn new(view: MetadataView, features: BTreeMap<String, VersionRange>) -> Self {
        Self { ledger: Ledger::default(), view, features }
    }

    /// Refuses a log of a later release: what it may hold from here on has another meaning than this node would see.
    fn check_features(&self) -> Result<(), ReplicaError> {
        features::check_member(self.ledger.working(), "this node", &self.features)
            .map_err(|refusal| ReplicaError(refusal.to_string()))
    }
}

impl Replica for MetadataReplica {
    fn replay(&mut self, epoch: ControllerEpoch, payload: &Bytes) -> Result<Outcome, ReplicaError> {
        let (base_offset, batch) = batch::decode(payload).map_err(|error| ReplicaError(error.to_string()))?;
        // Planned under another claim, or on a draft that never became true: nobody was promised anything by it.
        if batch.controller_epoch != epoch || base_offset != self.ledger.working().next_offset {
            return Ok(Outcome::WrongEpoch);
        }
        let before = self.ledger.visible().clone();
        // After an error the node stops, and nothing is published.
        let replayed = self.ledger.replay_in_place(&batch).map_err(|error| ReplicaError(error.to_string()))?;
        self.check_features()?;
        self.view.feed.push(&before, self.ledger.visible(), replayed.visible);
        self.view.drafts.share_with(&mut self.ledger, epoch).map_err(|error| ReplicaError(error.to_string()))?;
        Ok(Outcome::Replayed { next_offset: replayed.next_offset })
    }

    fn publish(&mut self) {
        self.view.publish(&self.ledger);
        self.view.feed.wake();
    }

    fn freeze(&self) -> Box<dyn FrozenReplica> {
        Box::new(FrozenMetadata(self.ledger.clone()))
    }

    fn install(&mut self, content: &mut dyn Read) -> Result<(), ReplicaError> {
        let ledger = snapshot::read(content).map_err(|error| ReplicaError(error.to_string()))?;
        self.ledger = ledger;
        self.check_features()?;
        self.view.feed.restart(self.ledger.visible().next_offset);
        self.publish();
        Ok(())
    }
}

struct FrozenMetadata(Ledger);

impl FrozenReplica for FrozenMetadata {
    fn write_to(&self, out: &mut dyn Write) -> io::Result<()> {
        snapshot::write(&self.0, out)
    }
}

#[cfg(test)]
mod tests {
    use quorate_metadata::Batch;
    use quorate_metadata::Record;

    use super::*;

    fn finalize(level: i16) -> (ControllerEpoch, Bytes) {
        let record = Record::FeatureLevel { name: features::METADATA_VERSION.to_owned(), level };
        let controller_epoch = ControllerEpoch::new(1);
        let batch = Batch { controller_epoch, timestamp_ms: 0, records: vec![record] };
        (controller_epoch, batch::encode(Offset::default(), &batch))
    }

    #[test]
    fn a_log_of_a_later_release_is_not_replayed() {
        let replica = || MetadataReplica::new(MetadataView::new(), features::supported_up_to(1));
        let (epoch, payload) = finalize(1);
        replica().replay(epoch, &payload).expect("the level is supported");
        let (epoch, payload) = finalize(2);
        let refused = replica().replay(epoch, &payload).expect_err("the level is not supported").to_string();
        assert!(refused.contains("metadata.version 1 to 1, the cluster is at 2"), "{refused}");
    }
}
