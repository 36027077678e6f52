//! A snapshot is the image re-emitted as records, in an order in which they replay.

use crate::ids::{ControllerEpoch, Offset, PartitionId, TopicPartition};
use crate::record::{BrokerRegistration, PartitionRegistration, Record};

use super::MetadataImage;
use super::replay::ReplayError;

/// What of an image its records do not say.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SnapshotHeader {
    pub next_offset: Offset,
    pub controller_epoch: ControllerEpoch,
    pub timestamp_ms: i64,
    pub digest: u128,
}

impl MetadataImage {
    pub fn header(&self) -> SnapshotHeader {
        SnapshotHeader {
            next_offset: self.next_offset,
            controller_epoch: self.controller_epoch,
            timestamp_ms: self.timestamp_ms,
            digest: self.digest,
        }
    }

    /// The image as records, made one at a time.
    pub fn to_records(&self) -> impl Iterator<Item = Record> + use<> {
        let cluster = self.cluster.into_iter().map(|cluster| Record::ClusterCreated { cluster });
        let features = self.features.clone().into_iter().map(|(name, level)| Record::FeatureLevel { name, level });
        let controllers =
            self.controllers.clone().into_iter().map(|(_, known)| Record::RegisterController((*known).clone()));
        let brokers = self
            .brokers
            .clone()
            .into_iter()
            .map(|(_, known)| Record::RegisterBroker(BrokerRegistration::clone(&known)));
        let topics = self.topics.clone().into_iter().flat_map(|(id, topic)| {
            let created = Record::CreateTopic { topic: id, name: topic.name.clone() };
            let count = topic.partitions.len();
            let partitions = (0..).map(PartitionId::new).take(count).map(move |at| {
                let state = topic.partition(at).expect("partitions are dense");
                let id = TopicPartition::new(topic.id, at);
                Record::CreatePartition(PartitionRegistration { id, state: (**state).clone() })
            });
            std::iter::once(created).chain(partitions)
        });
        let configs = self.configs.clone().into_iter().flat_map(|(resource, configs)| {
            configs.into_iter().map(move |(key, value)| Record::Config {
                resource: resource.clone(),
                key,
                value: Some(value),
            })
        });
        cluster
            .chain(features)
            .chain(controllers)
            .chain(brokers)
            .chain(topics)
            .chain(configs)
            .chain(self.requests.to_records())
    }

    /// The image that gave these records.
    pub fn from_snapshot(
        header: SnapshotHeader,
        records: impl IntoIterator<Item = Record>,
    ) -> Result<Self, ReplayError> {
        let mut image = Self::default();
        for record in records {
            image.replay_record(&record, header.timestamp_ms)?;
        }
        image.next_offset = header.next_offset;
        image.controller_epoch = header.controller_epoch;
        image.timestamp_ms = header.timestamp_ms;
        if image.digest != header.digest {
            return Err(ReplayError::DigestMismatch {
                offset: header.next_offset,
                expected: header.digest,
                actual: image.digest,
            });
        }
        Ok(image)
    }
}
