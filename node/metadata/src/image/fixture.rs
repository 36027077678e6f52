//! A small image for the tests of this module: brokers 1 to 4, topic "orders" with two partitions on the first three.

use std::collections::BTreeMap;

use uuid::Uuid;

use super::MetadataImage;
use crate::ids::{
    BrokerEpoch, BrokerId, ClientId, ClusterId, ControllerEpoch, DirectoryId, IncarnationId, LeaderEpoch,
    PartitionEpoch, PartitionId, TopicId, TopicPartition,
};
use crate::record::{
    Batch, BrokerRegistration, Cause, Kind, LeaderRecoveryState, PartitionChange, PartitionRegistration,
    PartitionState, Probe, Record,
};

pub fn batch(epoch: i32, records: &[Record]) -> Batch {
    let controller_epoch = ControllerEpoch::new(epoch);
    Batch { controller_epoch, timestamp_ms: i64::from(epoch) * 1_000, records: records.to_vec() }
}

pub fn broker(id: i32) -> BrokerId {
    BrokerId::new(id)
}

pub fn topic(id: u128) -> TopicId {
    TopicId::new(Uuid::from_u128(id))
}

pub fn client(id: u128) -> ClientId {
    ClientId::new(Uuid::from_u128(id))
}

/// A partition of "orders".
pub fn partition_id(id: i32) -> TopicPartition {
    TopicPartition::new(topic(1), PartitionId::new(id))
}

pub fn feature(name: &str, level: i16) -> Record {
    Record::FeatureLevel { name: name.to_owned(), level }
}

pub fn begin() -> Record {
    Record::BeginTransaction { name: "test".to_owned() }
}

pub fn end() -> Record {
    Record::EndTransaction
}

/// As broker `id` is registered in `image`: unfenced, at the epoch that is its id.
pub fn registration(id: i32) -> BrokerRegistration {
    BrokerRegistration {
        broker: broker(id),
        epoch: BrokerEpoch::new(i64::from(id)),
        incarnation: IncarnationId::default(),
        endpoints: Vec::new(),
        kind: Kind::LOG,
        probe: Probe::Unstated,
        rack: None,
        features: BTreeMap::new(),
        directories: Vec::new(),
        cordoned_directories: None,
        fenced: false,
        in_controlled_shutdown: false,
        controlled_shutdown_offset: None,
    }
}

/// A partition with all replicas in sync, led by the first.
pub fn create_partition(topic: TopicId, id: i32, replicas: &[i32]) -> Record {
    let replicas: Vec<BrokerId> = replicas.iter().copied().map(BrokerId::new).collect();
    let state = PartitionState {
        directories: vec![DirectoryId::UNASSIGNED; replicas.len()],
        isr: replicas.clone(),
        elr: Vec::new(),
        last_known_elr: Vec::new(),
        adding: Vec::new(),
        removing: Vec::new(),
        leader: replicas.first().copied(),
        recovery: LeaderRecoveryState::Recovered,
        leader_epoch: LeaderEpoch::default(),
        partition_epoch: PartitionEpoch::default(),
        history: Vec::new(),
        replicas,
    };
    let id = TopicPartition::new(topic, PartitionId::new(id));
    Record::CreatePartition(PartitionRegistration { id, state: state.into() })
}

/// A change of nothing but the partition epoch.
pub fn change(id: TopicPartition) -> PartitionChange {
    PartitionChange::none(id, Cause::ElectionRequested)
}

pub fn image() -> MetadataImage {
    let mut records = vec![Record::ClusterCreated { cluster: ClusterId::from_bytes([1; 16]) }];
    records.extend((1..=4).map(|id| Record::RegisterBroker(registration(id))));
    records.push(feature("metadata.version", 1));
    records.push(Record::CreateTopic { topic: topic(1), name: "orders".to_owned(), kind: Kind::LOG });
    records.push(create_partition(topic(1), 0, &[1, 2, 3]));
    records.push(create_partition(topic(1), 1, &[2, 3]));
    let mut image = MetadataImage::default();
    image.replay(&batch(1, &records)).expect("the records of the fixture replay");
    image
}
