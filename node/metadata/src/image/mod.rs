//! What is true: the metadata as of one offset.
//!
//! The image is a persistent data structure, so that a snapshot, a read and the start of a watcher are a clone
//! of a few pointers. It changes in one place only, `replay`, which has no policy.

mod canonical;
mod changes;
mod delta;
mod digest;
#[cfg(test)]
pub(crate) mod fixture;
mod index;
mod ledger;
mod levels;
mod partition_changes;
mod partition_set;
mod reassignments;
mod removed_topics;
mod replay;
mod requests;
mod seats;
mod small_map;
mod snapshot;
pub mod verify;

use std::sync::Arc;

use imbl::{OrdMap, Vector};

use crate::ids::{
    BrokerId, ClusterId, ControllerEpoch, ControllerId, DirectoryId, Offset, PartitionId, ReassignmentId, TopicId,
    TopicPartition,
};
use crate::record::{BrokerRegistration, ConfigResource, ControllerRegistration, Kind, Partition, SharedDirectories};
use digest::Digest;

pub use changes::ChangedPartition;
pub use delta::{Audience, Delta};
pub use index::PartitionIndex;
pub use ledger::{Ledger, Replayed};
pub use levels::{LEVEL_HIGHEST, LEVEL_LOWEST, LEVEL_OF_PROBES, LEVEL_OF_REMOVED_TOPICS, METADATA_VERSION};
pub use reassignments::Reassignment;
pub use removed_topics::RemovedTopics;
pub use replay::ReplayError;
pub use requests::{RequestOutcome, Requests};
pub use snapshot::SnapshotHeader;

#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct MetadataImage {
    /// The offset that the next record will have.
    pub next_offset: Offset,
    /// The controller epoch of the last batch replayed.
    pub controller_epoch: ControllerEpoch,
    /// The time of the last batch replayed.
    pub timestamp_ms: i64,
    /// None until the first controller has written the cluster's first record.
    pub cluster: Option<ClusterId>,
    pub features: OrdMap<String, i16>,
    pub controllers: OrdMap<ControllerId, Arc<ControllerRegistration>>,
    pub brokers: OrdMap<BrokerId, Arc<BrokerRegistration>>,
    pub topics: OrdMap<TopicId, Arc<Topic>>,
    pub topic_names: OrdMap<String, TopicId>,
    pub removed_topics: RemovedTopics,
    pub configs: OrdMap<ConfigResource, OrdMap<String, String>>,
    /// The first producer id that nobody has been given.
    pub next_producer_id: i64,
    pub requests: Requests,
    /// Derived from the partitions; not part of the digest.
    pub index: PartitionIndex,
    /// The operations under way. Each has a partition.
    pub reassignments: OrdMap<ReassignmentId, Arc<Reassignment>>,
    /// To which of them a partition belongs; derived, not part of the digest.
    reassigning: OrdMap<TopicPartition, ReassignmentId>,
    /// Those of the registered brokers, shared by the partitions; not part of the digest.
    directories: SharedDirectories,
    /// Sum of the entities' hashes, kept as each one changes.
    digest: Digest,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Topic {
    pub id: TopicId,
    pub name: String,
    pub kind: Kind,
    /// Dense: the position is the partition id.
    pub partitions: Vector<Arc<Partition>>,
    /// Sum of the partitions' hashes, so that the topic is taken out of the image's digest at once.
    partitions_digest: Digest,
}

impl Topic {
    fn new(id: TopicId, name: String, kind: Kind) -> Self {
        Self { id, name, kind, partitions: Vector::new(), partitions_digest: Digest::default() }
    }

    pub fn partition(&self, id: PartitionId) -> Option<&Arc<Partition>> {
        usize::try_from(id.get()).ok().and_then(|at| self.partitions.get(at))
    }

    /// Every partition with its id.
    pub fn partitions(&self) -> impl Iterator<Item = (TopicPartition, &Arc<Partition>)> {
        (0..)
            .zip(self.partitions.iter())
            .map(|(id, partition)| (TopicPartition::new(self.id, PartitionId::new(id)), partition))
    }
}

impl MetadataImage {
    pub fn broker(&self, id: BrokerId) -> Option<&Arc<BrokerRegistration>> {
        self.brokers.get(&id)
    }

    /// Whether this broker may be in an ISR or lead: registered, unfenced, and not on its way out.
    pub fn is_active(&self, id: BrokerId) -> bool {
        self.broker(id).is_some_and(|broker| broker.is_active())
    }

    pub fn topic(&self, id: TopicId) -> Option<&Arc<Topic>> {
        self.topics.get(&id)
    }

    pub fn topic_named(&self, name: &str) -> Option<&Arc<Topic>> {
        self.topic_names.get(name).and_then(|id| self.topics.get(id))
    }

    pub fn partition(&self, id: TopicPartition) -> Option<&Arc<Partition>> {
        self.topic(id.topic).and_then(|topic| topic.partition(id.partition))
    }

    /// The partitions whose replica on `broker` is in `directory`.
    pub fn in_directory(&self, broker: BrokerId, directory: DirectoryId) -> impl Iterator<Item = TopicPartition> {
        let is_there = move |id: &TopicPartition| {
            let partition = self.partition(*id).expect("the index names partitions of the image");
            partition.directory_of(broker) == directory
        };
        let count = self.index.directory_count(broker, directory);
        self.index.hosted_by(broker).filter(is_there).take(count)
    }

    /// Every partition of every topic.
    pub fn partitions(&self) -> impl Iterator<Item = (TopicPartition, &Arc<Partition>)> {
        self.topics.values().flat_map(|topic| topic.partitions())
    }

    /// Whether both hold the same, by their digests.
    fn is_same(&self, other: &Self) -> bool {
        let end = |image: &Self| (image.next_offset, image.controller_epoch, image.timestamp_ms, image.digest);
        end(self) == end(other)
    }

    /// The digest of everything that a snapshot would hold.
    pub fn digest(&self) -> u128 {
        self.digest.get()
    }
}
