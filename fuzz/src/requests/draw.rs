//! Requests out of bytes. Most of what they name is there, because a request for nothing is refused at the door; one
//! value in sixteen is anything at all.

use std::collections::BTreeMap;

use arbitrary::{Arbitrary, Unstructured};
use quorate_metadata::config::{BROKER_KEYS, ConfigType, TOPIC_KEYS, broker_key, topic_key};
use quorate_metadata::ids::{
    BrokerEpoch, BrokerId, ClientId, ClusterId, ControllerId, DirectoryId, IncarnationId, LeaderEpoch, Offset,
    PartitionEpoch, PartitionId, ReassignmentId, TopicId, TopicPartition,
};
use quorate_metadata::plan::alter_partition::{AlterPartition, IsrMember, PartitionAlteration};
use quorate_metadata::plan::brokers::RegisterBroker;
use quorate_metadata::plan::configs::{AlterConfigs, ConfigChange, ConfigOp};
use quorate_metadata::plan::elections::ElectionKind;
use quorate_metadata::plan::features;
use quorate_metadata::plan::heartbeat::Heartbeat;
use quorate_metadata::plan::reassignment::{
    Cancelled, ChangeReassignment, MoveReplica, PartitionRef, StartReassignment,
};
use quorate_metadata::plan::topics::{CreatePartitions, CreateTopic, TopicRef};
use quorate_metadata::record::{
    ConfigResource, ControllerRegistration, Endpoint, Kind, LeaderRecoveryState, Probe, SecurityProtocol, VersionRange,
};
use quorate_metadata::{MetadataImage, limits};

use super::plan::Request;

pub const CLUSTER: ClusterId = ClusterId::from_bytes([1; 16]);

const BROKERS: u8 = 6;
const TOPICS: u8 = 4;

/// What the planner may allocate for one request is bounded by a million, which is too much for a fuzzer.
const PARTITIONS_DRAWN_MAX: i32 = 16;

/// What makes a retry recognisable.
#[derive(Debug, Clone, Copy)]
pub struct RequestId {
    pub client: ClientId,
    pub request: u64,
}

/// How a plan travels.
#[derive(Debug, Clone, Copy)]
pub struct Cut {
    /// In one batch.
    pub records: usize,
    /// The last batch is never proposed: the controller resigns before.
    pub resigns: bool,
}

impl Cut {
    pub const WHOLE: Self = Self { records: usize::MAX, resigns: false };
}

/// As a broker registers that has two disks.
pub fn registration(broker: BrokerId) -> RegisterBroker {
    RegisterBroker {
        broker,
        cluster: CLUSTER,
        incarnation: IncarnationId::from_bytes([0; 16]),
        endpoints: vec![endpoint()],
        kind: Kind::LOG,
        probe: Probe::Unstated,
        rack: None,
        features: features::supported(),
        directories: vec![directory(broker, 0), directory(broker, 1)],
        cordoned_directories: None,
        previous_epoch: None,
    }
}

fn endpoint() -> Endpoint {
    let (name, host) = ("PLAINTEXT".to_owned(), "localhost".to_owned());
    Endpoint { name, host, port: 9092, security: SecurityProtocol::Plaintext }
}

fn directory(broker: BrokerId, disk: u8) -> DirectoryId {
    let mut bytes = [disk + 1; 16];
    bytes[..4].copy_from_slice(&broker.get().to_be_bytes());
    DirectoryId::from_bytes(bytes)
}

pub struct Draw<'a>(Unstructured<'a>);

/// Simple values.
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

    pub fn flag(&mut self) -> bool {
        self.any::<u8>() % 2 == 1
    }

    fn below(&mut self, bound: usize) -> usize {
        usize::from(self.any::<u8>()) % bound.max(1)
    }

    /// `tame` of a byte, or anything.
    fn mostly<T>(&mut self, tame: impl FnOnce(&mut Self, u8) -> T, wild: impl FnOnce(&mut Self) -> T) -> T {
        match self.any::<u8>() {
            byte @ 0..240 => tame(self, byte),
            _ => wild(self),
        }
    }

    fn list<T>(&mut self, max: usize, mut item: impl FnMut(&mut Self) -> T) -> Vec<T> {
        (0..self.below(max + 1)).map(|_| item(self)).collect()
    }

    fn option<T>(&mut self, item: impl FnOnce(&mut Self) -> T) -> Option<T> {
        self.flag().then(|| item(self))
    }

    fn text(&mut self) -> String {
        let bytes = self.list(12, Self::any::<u8>);
        String::from_utf8_lossy(&bytes).into_owned()
    }

    pub fn cut(&mut self) -> Cut {
        let byte = self.any::<u8>();
        let records = if byte & 4 == 0 { usize::MAX } else { 1 + usize::from(byte & 3) };
        Cut { records, resigns: byte >= 240 }
    }

    pub fn request_id(&mut self) -> Option<RequestId> {
        let byte = self.any::<u8>();
        let request = u64::from(byte >> 2);
        (byte & 1 == 1).then_some(RequestId { client: ClientId::from_bytes([byte & 2; 16]), request })
    }
}

/// Names of what there is.
impl Draw<'_> {
    fn broker(&mut self) -> BrokerId {
        self.mostly(|_, byte| BrokerId::new(1 + i32::from(byte % BROKERS)), |draw| BrokerId::new(draw.any()))
    }

    fn broker_epoch(&mut self, image: &MetadataImage, broker: BrokerId) -> BrokerEpoch {
        let current = image.broker(broker).map(|known| known.epoch).unwrap_or_default();
        self.mostly(|_, _| current, |draw| BrokerEpoch::new(draw.any()))
    }

    fn directory(&mut self, broker: BrokerId) -> DirectoryId {
        self.mostly(|_, byte| directory(broker, byte % 3), |draw| DirectoryId::from_bytes(draw.any()))
    }

    fn topic_name(&mut self) -> String {
        self.mostly(
            |_, byte| format!("topic-{}", byte % TOPICS),
            |draw| match draw.below(4) {
                0 => "topic.0".to_owned(),
                1 => "topic_0".to_owned(),
                2 => "x".repeat(limits::TOPIC_NAME_LENGTH_MAX + draw.below(2)),
                _ => draw.text(),
            },
        )
    }

    fn topic_ref(&mut self, image: &MetadataImage) -> TopicRef {
        let name = self.topic_name();
        let id = self.mostly(
            |_, byte| image.topic_named(&name).filter(|_| byte % 2 == 0).map(|topic| topic.id),
            |draw| Some(TopicId::from_bytes(draw.any())),
        );
        id.map_or(TopicRef::Name(name), TopicRef::Id)
    }

    fn partition(&mut self, image: &MetadataImage) -> TopicPartition {
        let there = image.partitions().count();
        let unknown = TopicPartition::new(TopicId::default(), PartitionId::default());
        self.mostly(
            |_, byte| image.partitions().nth(usize::from(byte) % there.max(1)).map_or(unknown, |(id, _)| id),
            |draw| {
                let topic = image.topics.keys().next().copied().unwrap_or_default();
                TopicPartition::new(topic, PartitionId::new(draw.any()))
            },
        )
    }

    fn partition_ref(&mut self, image: &MetadataImage) -> PartitionRef {
        let TopicPartition { topic, partition } = self.partition(image);
        let named = image.topic(topic).map(|topic| topic.name.clone());
        PartitionRef { topic: named.unwrap_or_else(|| self.topic_name()), partition }
    }

    fn reassignment(&mut self, image: &MetadataImage) -> ReassignmentId {
        let there = image.reassignments.len();
        self.mostly(
            |_, byte| image.reassignments.keys().nth(usize::from(byte) % there.max(1)).copied().unwrap_or_default(),
            |draw| ReassignmentId::new(draw.any()),
        )
    }

    /// A number of partitions or replicas.
    fn count(&mut self) -> i32 {
        self.mostly(
            |_, byte| 1 + i32::from(byte % 5),
            |draw| {
                let above = i32::try_from(limits::PARTITIONS_PER_REQUEST_MAX).unwrap_or(i32::MAX).saturating_add(1);
                [i32::MIN, -2, -1, 0, PARTITIONS_DRAWN_MAX, above, i32::MAX][draw.below(7)]
            },
        )
    }

    fn brokers(&mut self) -> Vec<BrokerId> {
        self.list(4, Self::broker)
    }
}

/// Requests.
impl Draw<'_> {
    pub fn request(&mut self, image: &MetadataImage) -> Request {
        match self.below(28) {
            0 => Request::Bootstrap(CLUSTER),
            1 => Request::RegisterController(self.controller()),
            2 | 3 => Request::Register(self.register(image), self.flag()),
            4 | 5 => Request::Unfence(self.broker()),
            6 | 7 => Request::Fence(self.broker()),
            8 => Request::BeginControlledShutdown(self.broker()),
            9 => Request::Unregister(self.broker()),
            10 => Request::Heartbeat(self.heartbeat(image), self.option(|draw| Offset::new(draw.any()))),
            11 | 12 => Request::CreateTopics(self.list(3, Self::new_topic)),
            13 => Request::DeleteTopics(self.list(3, |draw| draw.topic_ref(image))),
            14 => Request::CreatePartitions(self.list(3, Self::more_partitions)),
            15 => Request::AlterConfigs(self.list(3, Self::config_alteration)),
            16..=18 => Request::AlterPartition(self.alteration(image)),
            19 => Request::Elect(self.kind(), self.option(|draw| draw.list(4, |draw| draw.partition(image)))),
            20 => Request::BalancePreferred(self.below(4)),
            21 => Request::ElectUncleanly(self.below(4)),
            22 | 23 => Request::StartReassignment(self.moves(image)),
            24 => Request::CancelReassignment(self.cancelled(image), self.flag()),
            25 => Request::ChangeReassignment(self.reassignment(image), self.pace()),
            26 => Request::MoveReplica(self.move_replica(image)),
            _ => match self.below(2) {
                0 => Request::Digest,
                _ => {
                    let broker = self.broker();
                    Request::ProducerIds(broker, self.broker_epoch(image, broker))
                }
            },
        }
    }

    fn controller(&mut self) -> ControllerRegistration {
        ControllerRegistration {
            controller: ControllerId::new(self.any()),
            incarnation: IncarnationId::from_bytes([self.any(); 16]),
            endpoints: vec![endpoint()],
            features: self.features(),
        }
    }

    fn features(&mut self) -> BTreeMap<String, VersionRange> {
        self.mostly(
            |_, _| features::supported(),
            |draw| [(draw.text(), VersionRange { min: draw.any(), max: draw.any() })].into(),
        )
    }

    fn probe(&mut self) -> Probe {
        match self.below(4) {
            0 => Probe::None,
            1 => Probe::Endpoint(endpoint().name),
            2 => Probe::Endpoint(self.text()),
            _ => Probe::Unstated,
        }
    }

    fn register(&mut self, image: &MetadataImage) -> RegisterBroker {
        let broker = self.broker();
        RegisterBroker {
            cluster: self.mostly(|_, _| CLUSTER, |draw| ClusterId::from_bytes(draw.any())),
            incarnation: IncarnationId::from_bytes([self.any::<u8>() % 3; 16]),
            endpoints: self.mostly(
                |_, _| vec![endpoint()],
                |draw| {
                    draw.list(2, |draw| {
                        let (name, host) = (draw.text(), draw.text());
                        Endpoint { name, host, port: draw.any(), security: SecurityProtocol::SaslSsl }
                    })
                },
            ),
            kind: self.system(),
            rack: self.option(|draw| format!("rack-{}", draw.below(3))),
            features: self.features(),
            directories: self.mostly(
                |_, byte| {
                    [0, 1].into_iter().filter(|disk| byte % 4 != disk + 1).map(|disk| directory(broker, disk)).collect()
                },
                |draw| draw.list(3, |draw| draw.directory(broker)),
            ),
            cordoned_directories: self.option(|draw| draw.list(2, |draw| draw.directory(broker))),
            previous_epoch: self.option(|draw| draw.broker_epoch(image, broker)),
            probe: self.probe(),
            ..registration(broker)
        }
    }

    fn heartbeat(&mut self, image: &MetadataImage) -> Heartbeat {
        let broker = self.broker();
        Heartbeat {
            broker,
            epoch: self.broker_epoch(image, broker),
            metadata_offset: self.mostly(|_, _| image.next_offset, |draw| Offset::new(draw.any())),
            want_fence: self.flag(),
            want_shutdown: self.flag(),
            offline_directories: self.list(2, |draw| draw.directory(broker)),
        }
    }

    fn system(&mut self) -> Kind {
        if self.below(4) == 0 { Kind::from("counter") } else { Kind::LOG }
    }

    fn new_topic(&mut self) -> CreateTopic {
        let by_hand = self.mostly(|_, byte| byte % 4 == 0, Self::flag);
        let assignment = if by_hand {
            let mut next = 0..;
            self.list(4, |draw| {
                let id = draw.mostly(|_, _| next.next().unwrap_or_default(), Self::any);
                (PartitionId::new(id), draw.brokers())
            })
        } else {
            Vec::new()
        };
        let says_counts = !by_hand || self.mostly(|_, _| false, |_| true);
        CreateTopic {
            name: self.topic_name(),
            kind: self.system(),
            partitions: says_counts.then(|| self.count()),
            replication_factor: says_counts.then(|| i16::try_from(self.count()).unwrap_or(i16::MAX)),
            assignment,
            configs: self.list(2, |draw| {
                let resource = ConfigResource::Topic(String::new());
                let key = draw.config_key(&resource);
                let value = draw.mostly(|draw, _| Some(draw.config_value(&resource, &key)), |_| None);
                (key, value)
            }),
        }
    }

    fn more_partitions(&mut self) -> CreatePartitions {
        let assignment = self.option(|draw| draw.list(3, Self::brokers));
        CreatePartitions { topic: self.topic_name(), count: self.count(), assignment }
    }

    fn config_alteration(&mut self) -> AlterConfigs {
        let resource = match self.below(4) {
            0 => ConfigResource::Broker(self.broker()),
            1 => ConfigResource::BrokerDefault,
            _ => ConfigResource::Topic(self.topic_name()),
        };
        let change = |draw: &mut Self| {
            let key = draw.config_key(&resource);
            let op = match draw.below(5) {
                0 => ConfigOp::Delete,
                1 => ConfigOp::Append(draw.config_value(&resource, &key)),
                2 => ConfigOp::Subtract(draw.config_value(&resource, &key)),
                _ => ConfigOp::Set(draw.config_value(&resource, &key)),
            };
            let expected = draw.mostly(|_, _| None, |draw| Some(draw.config_value(&resource, &key)));
            ConfigChange { key, op, expected }
        };
        let changes = self.list(3, change);
        AlterConfigs { resource, changes }
    }

    fn config_key(&mut self, resource: &ConfigResource) -> String {
        let of_topics = TOPIC_KEYS.iter().map(|key| key.name);
        let of_brokers = BROKER_KEYS.iter().map(|key| key.name);
        let names: Vec<&str> = match resource {
            ConfigResource::Topic(_) => of_topics.collect(),
            ConfigResource::Broker(_) | ConfigResource::BrokerDefault => of_brokers.chain(of_topics).collect(),
        };
        // Those that plans look at come first, and oftener.
        const TELLING: [&str; 2] = ["min.insync.replicas", "unclean.leader.election.enable"];
        self.mostly(
            |_, byte| TELLING.get(usize::from(byte % 4)).unwrap_or(&names[usize::from(byte) % names.len()]).to_string(),
            Self::text,
        )
    }

    fn config_value(&mut self, resource: &ConfigResource, key: &str) -> String {
        let is_topic = matches!(resource, ConfigResource::Topic(_));
        let takes = if is_topic { topic_key(key) } else { broker_key(key) }.map(|key| &key.takes);
        self.mostly(
            |_, byte| match takes {
                Some(ConfigType::Bool) => (byte % 2 == 0).to_string(),
                Some(ConfigType::Enum(allowed) | ConfigType::ListOf(allowed)) => {
                    allowed[usize::from(byte) % allowed.len()].to_owned()
                }
                _ => (byte % 6).to_string(),
            },
            |draw| {
                let text = draw.text();
                let is_large = text.parse::<i64>().is_ok_and(|number| number > PARTITIONS_DRAWN_MAX.into());
                if is_large { PARTITIONS_DRAWN_MAX.to_string() } else { text }
            },
        )
    }

    fn alteration(&mut self, image: &MetadataImage) -> AlterPartition {
        let first = self.partition(image);
        let leader = image.partition(first).and_then(|partition| partition.leader);
        let broker = self.mostly(|_, _| leader, |draw| Some(draw.broker())).unwrap_or_default();
        let mut ids = self.list(2, |draw| draw.partition(image));
        ids.push(first);
        AlterPartition {
            broker,
            broker_epoch: self.broker_epoch(image, broker),
            partitions: ids.into_iter().map(|id| self.partition_alteration(image, id)).collect(),
        }
    }

    fn partition_alteration(&mut self, image: &MetadataImage, id: TopicPartition) -> PartitionAlteration {
        let known = image.partition(id);
        let leader_epoch = known.map(|partition| partition.leader_epoch).unwrap_or_default();
        let partition_epoch = known.map(|partition| partition.partition_epoch).unwrap_or_default();
        let replicas = known.map(|partition| partition.replicas.to_vec()).unwrap_or_default();
        let members = self.mostly(
            |_, byte| {
                replicas.iter().enumerate().filter(|(at, _)| byte & (1 << (at % 8)) != 0).map(|(_, id)| *id).collect()
            },
            Self::brokers,
        );
        let member = |broker| IsrMember { broker, epoch: self.option(|draw| draw.broker_epoch(image, broker)) };
        let isr = members.into_iter().map(member).collect();
        let leader_epoch = self.mostly(|_, _| leader_epoch, |draw| LeaderEpoch::new(draw.any()));
        let partition_epoch = self.mostly(|_, _| partition_epoch, |draw| PartitionEpoch::new(draw.any()));
        let (recovery, supersedes) = self.mostly(
            |_, byte| (LeaderRecoveryState::Recovered, byte % 8 == 7),
            |_| (LeaderRecoveryState::Recovering, false),
        );
        PartitionAlteration { id, isr, leader_epoch, partition_epoch, recovery, supersedes }
    }

    fn kind(&mut self) -> ElectionKind {
        if self.flag() { ElectionKind::Preferred } else { ElectionKind::Unclean }
    }

    fn moves(&mut self, image: &MetadataImage) -> StartReassignment {
        StartReassignment {
            targets: self.list(3, |draw| (draw.partition_ref(image), draw.brokers())),
            throttle_bytes_per_second: self.option(Self::any),
        }
    }

    fn cancelled(&mut self, image: &MetadataImage) -> Cancelled {
        if self.flag() {
            return Cancelled::Operation(self.reassignment(image));
        }
        Cancelled::Partitions(self.list(3, |draw| draw.partition_ref(image)))
    }

    fn pace(&mut self) -> ChangeReassignment {
        ChangeReassignment {
            paused: self.option(Self::flag),
            throttle_bytes_per_second: self.option(|draw| draw.option(Self::any)),
        }
    }

    fn move_replica(&mut self, image: &MetadataImage) -> MoveReplica {
        let partition = self.partition_ref(image);
        let broker = self.broker();
        MoveReplica { partition, broker, directory: self.directory(broker) }
    }
}
