//! What one committed batch changed: its records, with their offsets.

use std::sync::Arc;

use crate::ids::{BrokerId, ControllerEpoch, Offset, TopicId};
use crate::record::{Batch, ConfigResource, Record};

use super::MetadataImage;

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Delta {
    pub first_offset: Offset,
    /// Past the last record: fewer records than offsets mean that an aborted transaction used the others.
    pub next_offset: Offset,
    pub controller_epoch: ControllerEpoch,
    pub timestamp_ms: i64,
    pub records: Arc<[Record]>,
}

impl Delta {
    pub(super) fn of(first_offset: Offset, batch: Batch) -> Self {
        Self {
            first_offset,
            next_offset: first_offset.advance(batch.records.len()),
            controller_epoch: batch.controller_epoch,
            timestamp_ms: batch.timestamp_ms,
            records: batch.records.into(),
        }
    }

    /// Every record with its offset.
    pub fn offsets(&self) -> impl Iterator<Item = (Offset, &Record)> {
        self.records.iter().enumerate().map(|(at, record)| (self.first_offset.advance(at), record))
    }

    /// The records that concern one broker, given the images before and after: partitions that it hosts or hosted,
    /// their topics and configs, its own configs, and every broker's registration (it has to reach the others).
    pub fn concerning<'a>(
        &'a self,
        broker: BrokerId,
        before: &'a MetadataImage,
        after: &'a MetadataImage,
    ) -> impl Iterator<Item = (Offset, &'a Record)> + 'a {
        self.offsets().filter(move |(_, record)| concerns(record, broker, before, after))
    }
}

fn concerns(record: &Record, broker: BrokerId, before: &MetadataImage, after: &MetadataImage) -> bool {
    let hosts = |topic: TopicId| hosts_any(before, topic, broker) || hosts_any(after, topic, broker);
    match record {
        Record::ClusterCreated { .. }
        | Record::FeatureLevel { .. }
        | Record::RegisterController(_)
        | Record::RegisterBroker(_)
        | Record::FenceBroker { .. }
        | Record::UnfenceBroker { .. }
        | Record::BeginControlledShutdown { .. }
        | Record::UnregisterBroker { .. }
        | Record::BeginTransaction { .. }
        | Record::EndTransaction
        | Record::AbortTransaction { .. } => true,
        Record::CreateTopic { topic, .. } | Record::RemoveTopic { topic } => hosts(*topic),
        Record::CreatePartition(created) => created.state.replicas.contains(&broker),
        Record::PartitionChange(change) => [before, after]
            .iter()
            .any(|image| image.partition(change.id).is_some_and(|state| state.replicas.contains(&broker))),
        Record::Config { resource: ConfigResource::Topic(name), .. } => {
            let topic = after.topic_named(name).or_else(|| before.topic_named(name));
            topic.is_some_and(|topic| hosts(topic.id))
        }
        Record::Config { resource: ConfigResource::Broker(id), .. } => *id == broker,
        Record::Config { resource: ConfigResource::BrokerDefault, .. } => true,
        // A filtered copy of the image has another digest, and requests are the business of clients.
        Record::Digest { .. } | Record::RequestApplied { .. } => false,
    }
}

fn hosts_any(image: &MetadataImage, topic: TopicId, broker: BrokerId) -> bool {
    image
        .topic(topic)
        .is_some_and(|topic| topic.partitions.iter().any(|state| state.replicas.contains(&broker)))
}
