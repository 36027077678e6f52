//! Images for the tests of the agent: the topic "orders", whose partitions have replicas where a test says.

use quorate_metadata::ids::{
    BrokerId, ClusterId, ControllerEpoch, DirectoryId, LeaderEpoch, PartitionEpoch, PartitionId, TopicId,
    TopicPartition,
};
use quorate_metadata::image::METADATA_VERSION;
use quorate_metadata::record::{
    Cause, ConfigResource, Kind, LeaderRecoveryState, PartitionChange, PartitionRegistration, PartitionState,
};
use quorate_metadata::{Batch, MetadataImage, Record};
use uuid::Uuid;

pub fn broker(id: i32) -> BrokerId {
    BrokerId::new(id)
}

fn topic() -> TopicId {
    TopicId::new(Uuid::from_u128(1))
}

pub fn id(partition: i32) -> TopicPartition {
    TopicPartition::new(topic(), PartitionId::new(partition))
}

/// Partitions on these replicas, each led by its first.
pub fn image(partitions: &[&[i32]]) -> MetadataImage {
    image_of(Kind::LOG, partitions)
}

pub fn image_of(kind: Kind, partitions: &[&[i32]]) -> MetadataImage {
    let mut image = MetadataImage::default();
    replay(&mut image, Record::ClusterCreated { cluster: ClusterId::from_bytes([1; 16]) });
    replay(&mut image, Record::CreateTopic { topic: topic(), name: "orders".to_owned(), kind });
    for replicas in partitions {
        create(&mut image, replicas);
    }
    image
}

pub fn create(image: &mut MetadataImage, replicas: &[i32]) {
    let count = image.topic(topic()).map_or(0, |topic| topic.partitions.len());
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
    let id = id(i32::try_from(count).expect("a few partitions"));
    replay(image, Record::CreatePartition(PartitionRegistration { id, state: state.into() }));
}

pub fn lead(image: &mut MetadataImage, partition: i32, leader: Option<i32>) {
    let mut change = PartitionChange::none(id(partition), Cause::ElectionRequested);
    change.leader = Some(leader.map(BrokerId::new));
    replay(image, Record::PartitionChange(change));
}

pub fn shrink(image: &mut MetadataImage, partition: i32, isr: &[i32]) {
    let mut change = PartitionChange::none(id(partition), Cause::ElectionRequested);
    change.isr = Some(isr.iter().copied().map(BrokerId::new).collect());
    replay(image, Record::PartitionChange(change));
}

pub fn reassign(image: &mut MetadataImage, partition: i32, replicas: &[i32]) {
    let replicas: Vec<BrokerId> = replicas.iter().copied().map(BrokerId::new).collect();
    let mut change = PartitionChange::none(id(partition), Cause::ElectionRequested);
    change.directories = Some(vec![DirectoryId::UNASSIGNED; replicas.len()]);
    change.isr = Some(replicas.clone());
    change.leader = Some(replicas.first().copied());
    change.replicas = Some(replicas);
    replay(image, Record::PartitionChange(change));
}

pub fn finalize(image: &mut MetadataImage, level: i16) {
    replay(image, Record::FeatureLevel { name: METADATA_VERSION.to_owned(), level });
}

pub fn configure(image: &mut MetadataImage, key: &str, value: Option<&str>) {
    let resource = ConfigResource::Topic("orders".to_owned());
    replay(image, Record::Config { resource, key: key.to_owned(), value: value.map(str::to_owned) });
}

pub fn remove_topic(image: &mut MetadataImage) {
    replay(image, Record::RemoveTopic { topic: topic() });
}

fn replay(image: &mut MetadataImage, record: Record) {
    let controller_epoch = ControllerEpoch::new(1);
    image.replay(&Batch { controller_epoch, timestamp_ms: 0, records: vec![record] }).expect("it replays");
}
