//! The image as records and back: what a node that was away too long gets instead of the log.
//!
//! Invariant: image -> records -> image is identity, and the digest proves it on arrival.

use std::collections::BTreeSet;
use std::iter::once;
use std::sync::Arc;

use imbl::OrdMap;

use super::partition_changes::PartitionChanges;
use super::removed_topics::RemovedTopics;
use super::{MetadataImage, ReplayError, Topic};
use crate::ids::{BrokerId, ControllerEpoch, Offset, PartitionId, TopicId, TopicPartition};
use crate::mutant::Mutant;
use crate::record::{ConfigResource, Partition, PartitionRegistration, Record};

/// Partitions that the index takes over at once while an image is restored.
const CHANGES_MAX: usize = 4_096;

/// What of an image is not in its records.
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
            digest: self.digest(),
        }
    }

    /// Of the whole image as records, those that may concern one broker: no partitions but the ones that it hosts, and
    /// those after all topics.
    fn to_records_of(&self, broker: BrokerId) -> impl Iterator<Item = Record> + Send + use<> {
        let image = self.clone();
        let hosted: Vec<TopicPartition> = image.index.hosted_by(broker).collect();
        let topics = image.topics.clone().into_iter().map(|(_, topic)| create_topic(&topic));
        let partitions = move |id: TopicPartition| {
            let state = Partition::clone(image.partition(id)?);
            Some(Record::CreatePartition(PartitionRegistration { id, state }))
        };
        let rest = Self { topics: OrdMap::new(), ..self.clone() };
        topics.chain(hosted.into_iter().filter_map(partitions)).chain(rest.to_records())
    }

    /// The records for a follower of one broker, of some topics (empty: of all) or of both.
    pub fn to_records_for(
        &self,
        broker: Option<BrokerId>,
        topics: &BTreeSet<TopicId>,
    ) -> Box<dyn Iterator<Item = Record> + Send> {
        let chosen = if topics.is_empty() { self.clone() } else { self.with_topics(topics) };
        match broker {
            Some(broker) => Box::new(chosen.to_records_of(broker)),
            None => Box::new(chosen.to_records()),
        }
    }

    /// Without the other topics and their configs. For its records only: its digest and its index are those of the whole.
    fn with_topics(&self, topics: &BTreeSet<TopicId>) -> Self {
        let named: OrdMap<TopicId, Arc<Topic>> =
            topics.iter().filter_map(|id| Some((*id, Arc::clone(self.topics.get(id)?)))).collect();
        let topic_configs = named.values().filter_map(|topic| {
            let resource = ConfigResource::Topic(topic.name.clone());
            let entries = self.configs.get(&resource)?.clone();
            Some((resource, entries))
        });
        let others = self.configs.iter().filter(|(resource, _)| !matches!(resource, ConfigResource::Topic(_)));
        let configs =
            others.map(|(resource, entries)| (resource.clone(), entries.clone())).chain(topic_configs).collect();
        Self { topics: named, configs, removed_topics: RemovedTopics::default(), ..self.clone() }
    }

    /// The whole image as records, made one at a time while the image itself moves on.
    pub fn to_records(&self) -> impl Iterator<Item = Record> + Send + use<> {
        let image = self.clone();
        let cluster = image.cluster.into_iter().map(|cluster| Record::ClusterCreated { cluster });
        let features = image.features.into_iter().map(|(name, level)| Record::FeatureLevel { name, level });
        let controllers = image.controllers.into_iter();
        let brokers = image.brokers.into_iter();
        let topics = image.topics.into_iter();
        let configs = image.configs.into_iter().flat_map(|(resource, entries)| {
            let config = move |(key, value)| Record::Config { resource: resource.clone(), key, value: Some(value) };
            entries.into_iter().map(config)
        });
        let producer_ids = (image.next_producer_id > 0).then_some(Record::ProducerIds { next: image.next_producer_id });
        cluster
            .chain(features)
            .chain(producer_ids)
            .chain(controllers.map(|(_, controller)| Record::RegisterController(Arc::unwrap_or_clone(controller))))
            .chain(brokers.map(|(_, broker)| Record::RegisterBroker(Arc::unwrap_or_clone(broker))))
            .chain(topics.flat_map(|(_, topic)| records_of(topic)))
            .filter(|record| !is_lost(record))
            .chain(configs)
            .chain(image.removed_topics.into_records())
            .chain(image.reassignments.into_iter().map(|(_, operation)| operation.to_record()))
            .chain(image.requests.into_records().filter(|_| !Mutant::ForgottenRequests.is_on()))
    }

    /// How many records `to_records` gives. Costs the topics and the resources with configs, not the partitions.
    pub fn record_count(&self) -> usize {
        let single = usize::from(self.cluster.is_some()) + usize::from(self.next_producer_id > 0);
        let topics: usize = self.topics.values().map(|topic| 1 + topic.partitions.len()).sum();
        let lost = self.topics.values().filter(|topic| Mutant::LostPartition.is_on() && topic.partitions.len() > 2);
        let configs: usize = self.configs.values().map(OrdMap::len).sum();
        let requests = if Mutant::ForgottenRequests.is_on() { 0 } else { self.requests.record_count() };
        let registrations = self.features.len() + self.controllers.len() + self.brokers.len();
        single + self.removed_topics.len() + registrations + topics - lost.count()
            + configs
            + self.reassignments.len()
            + requests
    }

    /// Refuses records that do not add up to what the header says.
    pub fn from_snapshot(
        header: SnapshotHeader,
        records: impl IntoIterator<Item = Record>,
    ) -> Result<Self, ReplayError> {
        Self::try_from_snapshot(header, records.into_iter().map(Ok))
    }

    /// As `from_snapshot`, of records that are still being read: they are never all in memory. Ends at the first error.
    pub fn try_from_snapshot<E: From<ReplayError>>(
        header: SnapshotHeader,
        records: impl IntoIterator<Item = Result<Record, E>>,
    ) -> Result<Self, E> {
        let mut image = Self {
            next_offset: header.next_offset,
            controller_epoch: header.controller_epoch,
            timestamp_ms: header.timestamp_ms,
            ..Self::default()
        };
        let mut changes = PartitionChanges::default();
        for record in records {
            image.restore(&record?, &mut changes)?;
            if changes.len() >= CHANGES_MAX {
                image.index.update(std::mem::take(&mut changes));
            }
        }
        image.index.update(changes);
        if image.digest() == header.digest {
            return Ok(image);
        }
        let (offset, expected, actual) = (header.next_offset, header.digest, image.digest());
        Err(ReplayError::DigestMismatch { offset, expected, actual }.into())
    }

    fn restore(&mut self, record: &Record, changes: &mut PartitionChanges) -> Result<(), ReplayError> {
        match record {
            Record::ClusterCreated { .. }
            | Record::FeatureLevel { .. }
            | Record::RegisterController(_)
            | Record::RegisterBroker(_)
            | Record::CreateTopic { .. }
            | Record::CreatePartition(_)
            | Record::Config { .. }
            | Record::BeginReassignment(_)
            | Record::ProducerIds { .. } => self.apply(record, changes),
            Record::RemovedTopic { topic, offset } => {
                self.removed_topics.insert(&mut self.digest, *topic, *offset);
                Ok(())
            }
            Record::RequestApplied { client, request, reply, offset: Some(offset), forgotten_up_to } => {
                self.requests.restore(&mut self.digest, *client, *request, *offset, reply, *forgotten_up_to);
                Ok(())
            }
            Record::RequestApplied { offset: None, .. }
            | Record::FenceBroker { .. }
            | Record::UnfenceBroker { .. }
            | Record::BeginControlledShutdown { .. }
            | Record::UnregisterBroker { .. }
            | Record::RemoveTopic { .. }
            | Record::PartitionChange(_)
            | Record::Digest { .. }
            | Record::BeginTransaction { .. }
            | Record::EndTransaction
            | Record::AbortTransaction { .. }
            | Record::ChangeReassignment { .. } => Err(ReplayError::NotInSnapshot(record.kind())),
        }
    }
}

fn is_lost(record: &Record) -> bool {
    Mutant::LostPartition.is_on()
        && matches!(record, Record::CreatePartition(partition) if partition.id.partition.get() == 2)
}

fn create_topic(topic: &Topic) -> Record {
    Record::CreateTopic { topic: topic.id, name: topic.name.clone(), kind: topic.kind.clone() }
}

fn records_of(topic: Arc<Topic>) -> impl Iterator<Item = Record> {
    let id = topic.id;
    let create = create_topic(&topic);
    let partitions = (0..).zip(topic.partitions.clone()).map(move |(at, state)| {
        let id = TopicPartition::new(id, PartitionId::new(at));
        Record::CreatePartition(PartitionRegistration { id, state: Partition::clone(&state) })
    });
    once(create).chain(partitions)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::image::fixture::{batch, broker, client, create_partition, feature, image, topic};
    use crate::record::{ConfigResource, Kind};

    #[test]
    fn an_image_survives_its_records() {
        let image = image();
        assert_eq!(MetadataImage::from_snapshot(image.header(), image.to_records()), Ok(image));
    }

    #[test]
    fn records_are_counted_without_being_made() {
        let mut image = image();
        let config = |key: &str| Record::Config {
            resource: ConfigResource::Topic("orders".to_owned()),
            key: key.to_owned(),
            value: Some("1".to_owned()),
        };
        let applied = |request| Record::RequestApplied {
            client: client(1),
            request,
            reply: Vec::new(),
            offset: None,
            forgotten_up_to: None,
        };
        let more = [
            config("retention.ms"),
            config("retention.bytes"),
            create_partition(topic(1), 2, &[1]),
            Record::ProducerIds { next: 1_000 },
            applied(1),
            applied(2),
        ];
        let before = image.record_count();
        image.replay(&batch(2, &more)).expect("they are new");
        assert_eq!(image.record_count(), before + more.len());
        assert_eq!(image.record_count(), image.to_records().count());
    }

    #[test]
    fn the_records_of_a_broker_have_its_partitions_and_everything_else() {
        let image = image();
        let sorted = |records: &mut dyn Iterator<Item = Record>| {
            let mut lines: Vec<String> = records.map(|record| format!("{record:?}")).collect();
            lines.sort();
            lines
        };
        for (host, partitions) in [(broker(1), 1), (broker(2), 2), (broker(4), 0)] {
            let is_foreign = |record: &Record| match record {
                Record::CreatePartition(made) => !made.state.replicas.contains(&host),
                _ => false,
            };
            let made = image.to_records_of(host).filter(|record| matches!(record, Record::CreatePartition(_)));
            assert_eq!(made.count(), partitions);
            let expected = sorted(&mut image.to_records().filter(|record| !is_foreign(record)));
            assert_eq!(sorted(&mut image.to_records_of(host)), expected);
        }
    }

    #[test]
    fn records_of_some_topics_leave_out_the_others() {
        let mut image = image();
        let config = |name: &str| Record::Config {
            resource: ConfigResource::Topic(name.to_owned()),
            key: "retention.ms".to_owned(),
            value: Some("1".to_owned()),
        };
        let other = topic(9);
        let more = [
            Record::CreateTopic { topic: other, name: "other".to_owned(), kind: Kind::LOG },
            create_partition(other, 0, &[1]),
            config("orders"),
            config("other"),
        ];
        image.replay(&batch(2, &more)).expect("they are new");
        let is_of_other = |record: &Record| match record {
            Record::CreateTopic { topic, .. } => *topic == other,
            Record::CreatePartition(made) => made.id.topic == other,
            Record::Config { resource: ConfigResource::Topic(name), .. } => name == "other",
            _ => false,
        };
        let expected: Vec<Record> = image.to_records().filter(|record| !is_of_other(record)).collect();
        let records_for = |broker, id| image.to_records_for(broker, &BTreeSet::from([topic(id)])).collect::<Vec<_>>();
        assert_eq!(records_for(None, 1), expected);
        let expected: Vec<Record> = image.to_records_of(broker(1)).filter(|record| !is_of_other(record)).collect();
        assert_eq!(records_for(Some(broker(1)), 1), expected);
        assert!(records_for(None, 77).iter().all(|record| record.kind() != "CreateTopic"));
    }

    #[test]
    fn a_record_that_cannot_be_read_ends_the_restoration() {
        let image = image();
        let records = image.to_records().map(Ok).take(3).chain([Err(ReplayError::NotInSnapshot("unreadable"))]);
        let refused = MetadataImage::try_from_snapshot(image.header(), records);
        assert_eq!(refused, Err(ReplayError::NotInSnapshot("unreadable")));
    }

    #[test]
    fn a_record_more_or_less_is_noticed() {
        let image = image();
        let is_refused = |records: Vec<Record>| {
            let refused = MetadataImage::from_snapshot(image.header(), records);
            matches!(refused, Err(ReplayError::DigestMismatch { .. }))
        };
        let mut more: Vec<Record> = image.to_records().collect();
        more.push(feature("stray", 1));
        assert!(is_refused(more));
        let mut less: Vec<Record> = image.to_records().collect();
        less.pop();
        assert!(is_refused(less));
    }

    #[test]
    fn a_record_that_tells_no_state_is_refused() {
        let header = MetadataImage::default().header();
        let refused = MetadataImage::from_snapshot(header, [Record::EndTransaction]);
        assert_eq!(refused, Err(ReplayError::NotInSnapshot("EndTransaction")));
    }
}
