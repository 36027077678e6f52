//! Requests with the sizes that their limits allow, out of a few bytes.

use arbitrary::{Arbitrary, Unstructured};
use quorate_metadata::ids::{BrokerId, DirectoryId, IncarnationId, LeaderEpoch, TopicPartition};
use quorate_metadata::image::Topic;
use quorate_metadata::plan::alter_partition::{AlterPartition, IsrMember, PartitionAlteration};
use quorate_metadata::plan::brokers::RegisterBroker;
use quorate_metadata::plan::configs::{AlterConfigs, ConfigChange, ConfigOp};
use quorate_metadata::plan::reassignment::{Cancelled, PartitionRef, StartReassignment};
use quorate_metadata::plan::topics::{CreatePartitions, CreateTopic, TopicRef};
use quorate_metadata::record::{
    ConfigResource, Endpoint, Kind, LeaderRecoveryState, Partition, Probe, SecurityProtocol,
};
use quorate_metadata::{MetadataImage, limits};

use super::BROKERS;
use crate::requests::draw::registration;
use crate::requests::plan::Request;

pub const KINDS: u8 = 11;

/// The list configs that a topic has.
const LISTS: [&str; 1] = ["cleanup.policy"];

/// Partitions of one request: enough for several batches and steps, not for the million that is allowed, which would take a
/// run minutes.
const PARTITIONS_MAX: usize = 6_000;

/// Topics of one request that have configs of the largest size: several entries of them.
const CONFIGURED_TOPICS_MAX: usize = 48;

/// Bytes of a host name, or of a rack: a registration of nearly the largest record.
const NAME_BYTES_MAX: usize = 400_000;

pub struct Draw<'a>(Unstructured<'a>);

impl<'a> Draw<'a> {
    pub fn new(bytes: &'a [u8]) -> Self {
        Self(Unstructured::new(bytes))
    }

    pub fn is_exhausted(&self) -> bool {
        self.0.is_empty()
    }

    fn any<T: Arbitrary<'a> + Default>(&mut self) -> T {
        self.0.arbitrary().unwrap_or_default()
    }

    /// From 1 to `max`, in sixteenths of it: the largest is common.
    fn share(&mut self, max: usize) -> usize {
        (max * (1 + usize::from(self.any::<u8>() % 16)) / 16).max(1)
    }

    /// Bytes of the reply that is remembered, if one is.
    pub fn reply_bytes(&mut self) -> usize {
        match self.any::<u8>() % 4 {
            0 => 0,
            1 => 100,
            2 => limits::REMEMBERED_REPLY_BYTES_MAX + 1,
            _ => limits::REMEMBERED_REPLY_BYTES_MAX,
        }
    }

    /// The entry of a request after which a snapshot is taken.
    pub fn entry(&mut self) -> usize {
        usize::from(self.any::<u8>() % 8)
    }

    pub fn request(&mut self, image: &MetadataImage) -> Request {
        match self.any::<u8>() % KINDS {
            0 => Request::CreateTopics(self.configured_topics(image)),
            1 => Request::CreateTopics(self.topics_with_partitions(image)),
            2 => Request::AlterConfigs(self.alterations(image)),
            3 => Request::AlterPartition(self.isr_changes(image)),
            4 => Request::StartReassignment(self.moves(image)),
            5 => Request::CancelReassignment(self.cancelled(image), false),
            6 => Request::Fence(self.broker()),
            7 => Request::Register(self.registration(), false),
            8 => Request::Unfence(self.broker()),
            9 => Request::CreatePartitions(self.more_partitions(image)),
            _ => Request::DeleteTopics(self.deleted(image)),
        }
    }

    fn broker(&mut self) -> BrokerId {
        BrokerId::new(1 + i32::from(self.any::<u8>()) % BROKERS)
    }

    fn configured_topics(&mut self, image: &MetadataImage) -> Vec<CreateTopic> {
        let list = self.list();
        let configs: Vec<_> = LISTS.iter().map(|key| ((*key).to_owned(), Some(list.clone()))).collect();
        let topic = |name| CreateTopic { configs: configs.clone(), ..new_topic(name, 1, 1) };
        new_names(image).take(self.share(CONFIGURED_TOPICS_MAX)).map(topic).collect()
    }

    fn topics_with_partitions(&mut self, image: &MetadataImage) -> Vec<CreateTopic> {
        let topics = self.share(16);
        let partitions = self.share(PARTITIONS_MAX) / topics;
        let names = new_names(image).take(topics);
        names.map(|name| new_topic(name, partitions.max(1), BROKERS as usize)).collect()
    }

    /// Of the largest size, in bytes or in items.
    fn list(&mut self) -> String {
        let item = if self.any::<u8>().is_multiple_of(2) { "compact" } else { "delete" };
        let items = limits::CONFIG_LIST_ITEMS_MAX.min((limits::CONFIG_VALUE_BYTES_MAX + 1) / (item.len() + 1));
        vec![item; items].join(",")
    }

    fn alterations(&mut self, image: &MetadataImage) -> Vec<AlterConfigs> {
        let list = self.list();
        let change =
            |key: &&str| ConfigChange { key: (*key).to_owned(), op: ConfigOp::Set(list.clone()), expected: None };
        let names = image.topic_names.keys().take(self.share(CONFIGURED_TOPICS_MAX));
        let alteration = |name: &String| AlterConfigs {
            resource: ConfigResource::Topic(name.clone()),
            changes: LISTS.iter().map(change).collect(),
        };
        names.map(alteration).collect()
    }

    fn isr_changes(&mut self, image: &MetadataImage) -> AlterPartition {
        let broker = self.broker();
        let alone = self.any::<u8>().is_multiple_of(2);
        let changed = |id: TopicPartition| {
            let state = image.partition(id)?;
            let members: &[BrokerId] = if alone { std::slice::from_ref(&broker) } else { &state.replicas };
            Some(isr_change(image, id, state, members))
        };
        AlterPartition {
            broker,
            broker_epoch: image.broker(broker).map(|known| known.epoch).unwrap_or_default(),
            partitions: image.index.led_by(broker).take(self.share(PARTITIONS_MAX)).filter_map(changed).collect(),
        }
    }

    fn moves(&mut self, image: &MetadataImage) -> StartReassignment {
        let to: Vec<BrokerId> = (1..=BROKERS).rev().take(self.share(4)).map(BrokerId::new).collect();
        let targets = partitions(image).take(self.share(PARTITIONS_MAX)).map(|partition| (partition, to.clone()));
        StartReassignment { targets: targets.collect(), throttle_bytes_per_second: Some(u64::MAX) }
    }

    fn cancelled(&mut self, image: &MetadataImage) -> Cancelled {
        match image.reassignments.keys().next() {
            Some(id) if self.any::<u8>().is_multiple_of(2) => Cancelled::Operation(*id),
            _ => Cancelled::Partitions(partitions(image).take(self.share(PARTITIONS_MAX)).collect()),
        }
    }

    fn registration(&mut self) -> RegisterBroker {
        let broker = self.broker();
        let directory = |at: usize| {
            let mut bytes = [0xd1; 16];
            bytes[..4].copy_from_slice(&broker.get().to_be_bytes());
            bytes[4..12].copy_from_slice(&(at as u64).to_be_bytes());
            DirectoryId::from_bytes(bytes)
        };
        let name = "h".repeat(self.share(NAME_BYTES_MAX));
        let endpoint = Endpoint {
            name: "PLAINTEXT".to_owned(),
            host: name.clone(),
            port: u16::MAX,
            security: SecurityProtocol::Plaintext,
        };
        RegisterBroker {
            incarnation: IncarnationId::from_bytes([self.any::<u8>() | 1; 16]),
            endpoints: vec![endpoint],
            probe: Probe::Endpoint("PLAINTEXT".to_owned()),
            rack: Some(name),
            directories: (0..self.share(limits::DIRECTORIES_PER_BROKER_MAX)).map(directory).collect(),
            ..registration(broker)
        }
    }

    fn more_partitions(&mut self, image: &MetadataImage) -> Vec<CreatePartitions> {
        let more = self.share(PARTITIONS_MAX);
        let grown = |topic: &std::sync::Arc<Topic>| CreatePartitions {
            topic: topic.name.clone(),
            count: i32::try_from(topic.partitions.len() + more).unwrap_or(i32::MAX),
            assignment: None,
        };
        image.topics.values().take(1).map(grown).collect()
    }

    fn deleted(&mut self, image: &MetadataImage) -> Vec<TopicRef> {
        image.topic_names.keys().take(self.share(64)).cloned().map(TopicRef::Name).collect()
    }
}

/// Names of the largest length that no topic has.
fn new_names(image: &MetadataImage) -> impl Iterator<Item = String> {
    let name = |at: i64| format!("{at:0>width$}", width = limits::TOPIC_NAME_LENGTH_MAX);
    (image.next_offset.get()..).map(name)
}

fn new_topic(name: String, partitions: usize, replication_factor: usize) -> CreateTopic {
    CreateTopic {
        name,
        kind: Kind::LOG,
        partitions: i32::try_from(partitions).ok(),
        replication_factor: i16::try_from(replication_factor).ok(),
        assignment: Vec::new(),
        configs: Vec::new(),
    }
}

fn isr_change(image: &MetadataImage, id: TopicPartition, state: &Partition, isr: &[BrokerId]) -> PartitionAlteration {
    let member =
        |broker: &BrokerId| IsrMember { broker: *broker, epoch: image.broker(*broker).map(|known| known.epoch) };
    let leader_epoch: LeaderEpoch = state.leader_epoch;
    PartitionAlteration {
        id,
        leader_epoch,
        partition_epoch: state.partition_epoch,
        isr: isr.iter().map(member).collect(),
        recovery: LeaderRecoveryState::Recovered,
        supersedes: false,
    }
}

fn partitions(image: &MetadataImage) -> impl Iterator<Item = PartitionRef> {
    let named = |id: TopicPartition| {
        let topic = image.topic(id.topic)?.name.clone();
        Some(PartitionRef { topic, partition: id.partition })
    };
    image.partitions().filter_map(move |(id, _)| named(id))
}
