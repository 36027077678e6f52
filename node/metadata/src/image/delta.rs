//! What one batch changed, as the feed carries it.

use std::collections::BTreeSet;
use std::sync::Arc;

use super::MetadataImage;
use crate::ids::{BrokerId, ControllerEpoch, Offset, TopicPartition};
use crate::record::{ConfigResource, Partition, PartitionChange, Record};

/// Records that became visible, in order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Delta {
    pub first_offset: Offset,
    pub next_offset: Offset,
    pub controller_epoch: ControllerEpoch,
    pub timestamp_ms: i64,
    pub records: Arc<[Record]>,
}

impl Delta {
    /// The records with their offsets. They are consecutive, but for the last one, which is always at the end: in an
    /// aborted transaction only its first and its last record are left.
    pub fn offsets(&self) -> impl Iterator<Item = (Offset, &Record)> {
        let last = self.records.len().saturating_sub(1);
        let end = self.next_offset.get() - 1;
        self.records.iter().enumerate().map(move |(at, record)| {
            let offset = if at == last { Offset::new(end) } else { self.first_offset.advance(at) };
            (offset, record)
        })
    }

    /// The records that `broker` needs, given the images before and after: its own partitions, and what is small and
    /// about everyone. That includes every topic and its configs: a broker may come to host a topic that was created
    /// long before, and has to know its name then.
    pub fn concerning<'a>(
        &'a self,
        broker: BrokerId,
        before: &'a MetadataImage,
        after: &'a MetadataImage,
    ) -> impl Iterator<Item = (Offset, &'a Record)> + 'a {
        let concern = Concern { broker, before, after, moved: self.moved(broker) };
        self.offsets().filter(move |(_, record)| concern.has(record))
    }

    /// The partitions that name `broker` as a replica somewhere in this delta.
    fn moved(&self, broker: BrokerId) -> BTreeSet<TopicPartition> {
        let replicas_of = |record: &Record| match record {
            Record::CreatePartition(partition) => partition.state.replicas.contains(&broker).then_some(partition.id),
            Record::PartitionChange(PartitionChange { id, replicas: Some(replicas), .. }) => {
                replicas.contains(&broker).then_some(*id)
            }
            _ => None,
        };
        self.records.iter().filter_map(replicas_of).collect()
    }
}

struct Concern<'a> {
    broker: BrokerId,
    before: &'a MetadataImage,
    after: &'a MetadataImage,
    moved: BTreeSet<TopicPartition>,
}

impl Concern<'_> {
    fn has(&self, record: &Record) -> bool {
        match record {
            Record::RegisterBroker(_)
            | Record::FenceBroker { .. }
            | Record::UnfenceBroker { .. }
            | Record::BeginControlledShutdown { .. }
            | Record::UnregisterBroker { .. }
            | Record::CreateTopic { .. }
            | Record::RemoveTopic { .. } => true,
            Record::CreatePartition(partition) => self.hosts(partition.id),
            Record::PartitionChange(change) => self.hosts(change.id),
            Record::Config { resource, .. } => match resource {
                ConfigResource::Topic(_) | ConfigResource::BrokerDefault => true,
                ConfigResource::Broker(broker) => *broker == self.broker,
            },
            Record::ClusterCreated { .. }
            | Record::FeatureLevel { .. }
            | Record::RegisterController(_)
            | Record::RequestApplied { .. }
            | Record::Digest { .. }
            | Record::BeginTransaction { .. }
            | Record::EndTransaction
            | Record::AbortTransaction { .. } => false,
        }
    }

    fn hosts(&self, id: TopicPartition) -> bool {
        let is_replica = |partition: &Arc<Partition>| partition.replicas.contains(&self.broker);
        self.before.partition(id).is_some_and(is_replica)
            || self.after.partition(id).is_some_and(is_replica)
            || self.moved.contains(&id)
    }
}
