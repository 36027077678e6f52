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
            | Record::RemoveTopic { .. }
            | Record::BeginReassignment(_)
            | Record::ChangeReassignment { .. } => true,
            Record::CreatePartition(partition) => self.hosts(partition.id),
            Record::PartitionChange(change) => self.hosts(change.id),
            Record::Config { resource, .. } => match resource {
                ConfigResource::Topic(_) | ConfigResource::BrokerDefault => true,
                ConfigResource::Broker(broker) => *broker == self.broker,
            },
            Record::ClusterCreated { .. }
            | Record::ProducerIds { .. }
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::ReassignmentId;
    use crate::image::Ledger;
    use crate::image::fixture::{
        batch, broker, change, create_partition, feature, image, partition_id, registration, topic,
    };
    use crate::record::{ReassignedPartition, ReassignmentStart};

    fn config(resource: ConfigResource) -> Record {
        Record::Config { resource, key: "retention.ms".to_owned(), value: Some("1".to_owned()) }
    }

    fn reassignment() -> Record {
        let moved = ReassignedPartition { id: partition_id(0), original: vec![broker(2)] };
        Record::BeginReassignment(ReassignmentStart {
            id: ReassignmentId::new(1),
            partitions: vec![moved],
            paused: false,
            throttle_bytes_per_second: None,
            started_ms: None,
        })
    }

    /// The offsets that concern broker 1 of what `records` add to the image of `fixture`.
    fn concerning(records: &[Record]) -> Vec<usize> {
        let mut ledger = Ledger::new(image());
        let before = ledger.visible().clone();
        let replayed = ledger.replay(&batch(2, records)).expect("the records of this test replay");
        let [delta] = &replayed.visible[..] else { panic!("one batch is one delta") };
        let found = delta.concerning(broker(1), &before, ledger.visible());
        let first = before.next_offset.get();
        found.map(|(offset, _)| usize::try_from(offset.get() - first).expect("offsets grow")).collect()
    }

    #[test]
    fn partitions_concern_those_who_host_them() {
        let orders = topic(1);
        let mut gained = change(TopicPartition::new(orders, crate::ids::PartitionId::new(1)));
        gained.replicas = Some(vec![broker(3), broker(2), broker(1)]);
        let mut lost = gained.clone();
        lost.replicas = Some(vec![broker(2), broker(3)]);
        lost.directories = Some(vec![crate::ids::DirectoryId::UNASSIGNED; 2]);
        let records = [
            create_partition(orders, 2, &[1, 2]),
            create_partition(orders, 3, &[2, 3]),
            Record::PartitionChange(gained),
            Record::PartitionChange(lost),
            Record::PartitionChange(change(TopicPartition::new(orders, crate::ids::PartitionId::new(3)))),
        ];
        assert_eq!(concerning(&records), [0, 2, 3]);
    }

    #[test]
    fn brokers_and_topics_concern_everyone_and_bookkeeping_no_one() {
        let mut other = registration(9);
        other.epoch = crate::ids::BrokerEpoch::new(20);
        let records = [
            Record::RegisterBroker(other),
            feature("metadata.version", 2),
            Record::CreateTopic { topic: topic(2), name: "payments".to_owned() },
            config(ConfigResource::Topic("payments".to_owned())),
            config(ConfigResource::Broker(broker(2))),
            config(ConfigResource::Broker(broker(1))),
            config(ConfigResource::BrokerDefault),
            reassignment(),
            Record::RemoveTopic { topic: topic(1) },
        ];
        assert_eq!(concerning(&records), [0, 2, 3, 5, 6, 7, 8]);
    }

    #[test]
    fn the_last_record_of_a_delta_is_at_its_end() {
        let delta = Delta {
            first_offset: Offset::new(3),
            next_offset: Offset::new(9),
            controller_epoch: ControllerEpoch::new(1),
            timestamp_ms: 0,
            records: Arc::new([feature("a", 1), feature("b", 1)]),
        };
        assert_eq!(delta.offsets().map(|(offset, _)| offset.get()).collect::<Vec<_>>(), [3, 8]);
    }
}
