//! What one batch changed, as the feed carries it.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::MetadataImage;
use crate::ids::{BrokerId, ControllerEpoch, Offset, TopicId, TopicPartition};
use crate::record::{ConfigResource, PartitionChange, Record};

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

    /// The brokers that each record concerns, given the images before and after. A record of a partition concerns the
    /// brokers that host it before, after, or somewhere in this delta. Topics and their configs concern every broker: one
    /// may come to host a topic that was created long before, and has to know its name then.
    pub fn audiences(&self, before: &MetadataImage, after: &MetadataImage) -> impl Iterator<Item = Audience> {
        let named = self.named_hosts();
        self.records.iter().map(move |record| match Scope::of(record) {
            Scope::Everyone | Scope::Topic(_) | Scope::TopicConfig(_) => Audience::Everyone,
            Scope::NoBroker => Audience::NoBroker,
            Scope::Broker(broker) => Audience::Brokers(vec![broker]),
            Scope::Partition(id) => {
                let named = named.get(&id).into_iter().flatten().chain(replicas_in(record)).copied();
                let hosts = [before, after].into_iter().filter_map(|image| image.partition(id));
                Audience::of_hosts(hosts.flat_map(|partition| partition.replicas.iter().copied()).chain(named))
            }
        })
    }

    /// The topic that each record belongs to, given the image before; None for what belongs to the cluster. The config of a
    /// topic names it: of two topics that have a name one after the other, it belongs to the one that has it then.
    pub fn topics(&self, before: &MetadataImage) -> impl Iterator<Item = Option<TopicId>> {
        let mut created: BTreeMap<&str, TopicId> = BTreeMap::new();
        self.records.iter().map(move |record| {
            if let Record::CreateTopic { topic, name, .. } = record {
                created.insert(name, *topic);
            }
            match Scope::of(record) {
                Scope::Topic(topic) => Some(topic),
                Scope::Partition(id) => Some(id.topic),
                Scope::TopicConfig(name) => created.get(name).or_else(|| before.topic_names.get(name)).copied(),
                Scope::Everyone | Scope::NoBroker | Scope::Broker(_) => None,
            }
        })
    }

    /// The replicas that this delta names of the partitions whose replicas it changes. Empty for all but a few deltas: a
    /// partition that is merely created has the replicas of its own record.
    fn named_hosts(&self) -> BTreeMap<TopicPartition, Vec<BrokerId>> {
        let moves = |record: &Record| matches!(record, Record::PartitionChange(change) if change.replicas.is_some());
        if !self.records.iter().any(moves) {
            return BTreeMap::new();
        }
        let mut named: BTreeMap<TopicPartition, Vec<BrokerId>> = BTreeMap::new();
        for record in self.records.iter() {
            if let Scope::Partition(id) = Scope::of(record) {
                named.entry(id).or_default().extend(replicas_in(record));
            }
        }
        named
    }
}

/// The replicas that a record of a partition names.
fn replicas_in(record: &Record) -> &[BrokerId] {
    match record {
        Record::CreatePartition(partition) => &partition.state.replicas,
        Record::PartitionChange(PartitionChange { replicas: Some(replicas), .. }) => replicas,
        _ => &[],
    }
}

/// The brokers that a record concerns.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Audience {
    Everyone,
    NoBroker,
    /// In ascending order.
    Brokers(Vec<BrokerId>),
}

impl Audience {
    /// Of a record of a snapshot, whose partitions have no hosts but those that the record names.
    pub fn in_snapshot(record: &Record) -> Self {
        match Scope::of(record) {
            Scope::Everyone | Scope::Topic(_) | Scope::TopicConfig(_) => Self::Everyone,
            Scope::NoBroker => Self::NoBroker,
            Scope::Broker(broker) => Self::Brokers(vec![broker]),
            Scope::Partition(_) => Self::of_hosts(replicas_in(record).iter().copied()),
        }
    }

    pub fn includes(&self, broker: BrokerId) -> bool {
        match self {
            Self::Everyone => true,
            Self::NoBroker => false,
            Self::Brokers(brokers) => brokers.binary_search(&broker).is_ok(),
        }
    }

    fn of_hosts(hosts: impl Iterator<Item = BrokerId>) -> Self {
        let mut hosts: Vec<BrokerId> = hosts.collect();
        hosts.sort_unstable();
        hosts.dedup();
        Self::Brokers(hosts)
    }
}

/// What decides which brokers and which topic a record concerns.
enum Scope<'a> {
    Everyone,
    /// A topic itself: every broker.
    Topic(TopicId),
    /// A config of the topic of this name: every broker.
    TopicConfig(&'a str),
    NoBroker,
    Broker(BrokerId),
    Partition(TopicPartition),
}

impl<'a> Scope<'a> {
    fn of(record: &'a Record) -> Self {
        match record {
            Record::RegisterBroker(_)
            | Record::FenceBroker { .. }
            | Record::UnfenceBroker { .. }
            | Record::BeginControlledShutdown { .. }
            | Record::UnregisterBroker { .. }
            | Record::FeatureLevel { .. }
            | Record::RemovedTopic { .. }
            | Record::BeginReassignment(_)
            | Record::ChangeReassignment { .. } => Self::Everyone,
            Record::CreateTopic { topic, .. } | Record::RemoveTopic { topic } => Self::Topic(*topic),
            Record::CreatePartition(partition) => Self::Partition(partition.id),
            Record::PartitionChange(change) => Self::Partition(change.id),
            Record::Config { resource, .. } => match resource {
                ConfigResource::Topic(name) => Self::TopicConfig(name),
                ConfigResource::BrokerDefault => Self::Everyone,
                ConfigResource::Broker(broker) => Self::Broker(*broker),
            },
            Record::ClusterCreated { .. }
            | Record::ProducerIds { .. }
            | Record::RegisterController(_)
            | Record::RequestApplied { .. }
            | Record::Digest { .. }
            | Record::BeginTransaction { .. }
            | Record::EndTransaction
            | Record::AbortTransaction { .. } => Self::NoBroker,
        }
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
    use crate::record::{Kind, ReassignedPartition, ReassignmentStart};

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
        let audiences = delta.audiences(&before, ledger.visible()).enumerate();
        audiences.filter(|(_, audience)| audience.includes(broker(1))).map(|(at, _)| at).collect()
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
    fn brokers_topics_and_levels_concern_everyone_and_bookkeeping_no_one() {
        let mut other = registration(9);
        other.epoch = crate::ids::BrokerEpoch::new(20);
        let records = [
            Record::RegisterBroker(other),
            feature("metadata.version", 2),
            Record::CreateTopic { topic: topic(2), name: "payments".to_owned(), kind: Kind::LOG },
            config(ConfigResource::Topic("payments".to_owned())),
            config(ConfigResource::Broker(broker(2))),
            config(ConfigResource::Broker(broker(1))),
            config(ConfigResource::BrokerDefault),
            reassignment(),
            Record::RemoveTopic { topic: topic(1) },
        ];
        assert_eq!(concerning(&records), [0, 1, 2, 3, 5, 6, 7, 8]);
    }

    #[test]
    fn a_config_belongs_to_the_topic_that_has_its_name_then() {
        let named = |name: &str| config(ConfigResource::Topic(name.to_owned()));
        let create = |id, name: &str| Record::CreateTopic { topic: topic(id), name: name.to_owned(), kind: Kind::LOG };
        let records = [
            named("orders"),
            Record::RemoveTopic { topic: topic(1) },
            create(2, "orders"),
            named("orders"),
            create(3, "short-lived"),
            named("short-lived"),
            Record::RemoveTopic { topic: topic(3) },
            create_partition(topic(2), 0, &[1]),
            config(ConfigResource::BrokerDefault),
        ];
        let mut ledger = Ledger::new(image());
        let before = ledger.visible().clone();
        let replayed = ledger.replay(&batch(2, &records)).expect("the records of this test replay");
        let expected = [1, 1, 2, 2, 3, 3, 3, 2].map(|id| Some(topic(id)));
        let found: Vec<Option<TopicId>> = replayed.visible[0].topics(&before).collect();
        assert_eq!(found, [&expected[..], &[None]].concat());
    }

    #[test]
    fn a_record_of_a_snapshot_concerns_the_hosts_that_it_names() {
        let created = create_partition(topic(1), 2, &[3, 1]);
        assert_eq!(Audience::in_snapshot(&created), Audience::Brokers(vec![broker(1), broker(3)]));
        let named = Record::CreateTopic { topic: topic(2), name: "payments".to_owned(), kind: Kind::LOG };
        assert_eq!(Audience::in_snapshot(&named), Audience::Everyone);
        assert_eq!(Audience::in_snapshot(&feature("metadata.version", 2)), Audience::Everyone);
        assert_eq!(Audience::in_snapshot(&Record::ProducerIds { next: 7 }), Audience::NoBroker);
        let others = config(ConfigResource::Broker(broker(2)));
        assert_eq!(Audience::in_snapshot(&others), Audience::Brokers(vec![broker(2)]));
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
