//! The controllers: an image that changes by plans and nothing else, and the feed of what was committed.
//!
//! They are one here. What a failover loses was never committed, and a request that goes down with its controller is one
//! that never arrives.

use std::sync::Arc;

use quorate_metadata::ids::{
    BrokerEpoch, BrokerId, ClusterId, ControllerEpoch, DirectoryId, IncarnationId, Offset, PartitionId, TopicPartition,
};
use quorate_metadata::plan::brokers::{self, RegisterBroker};
use quorate_metadata::plan::topics::{self, CreateTopic};
use quorate_metadata::plan::{checkpoint, features};
use quorate_metadata::record::{BrokerRegistration, Endpoint, Kind, Partition, Probe, Record, SecurityProtocol};
use quorate_metadata::rng::Rng;
use quorate_metadata::{Batch, MetadataImage, Plan};

use crate::members::REPLICAS;

const TOPIC: &str = "orders";

/// An image, and its partition at hand.
#[derive(Debug, Clone, Default)]
pub struct Metadata {
    pub image: Arc<MetadataImage>,
    partition: Option<Arc<Partition>>,
}

impl Metadata {
    fn new(image: MetadataImage) -> Self {
        let partition = image.topic_named(TOPIC).map(|topic| Arc::clone(&topic.partitions[0]));
        Self { image: Arc::new(image), partition }
    }

    pub fn partition(&self) -> &Partition {
        self.partition.as_ref().expect("the topic is created before anyone asks")
    }

    pub fn id(&self) -> TopicPartition {
        TopicPartition::new(self.image.topic_names[TOPIC], PartitionId::new(0))
    }

    pub fn broker(&self, broker: BrokerId) -> &BrokerRegistration {
        &self.image.brokers[&broker]
    }
}

#[derive(Debug, Clone)]
pub struct Controller {
    pub now: Metadata,
    /// Every batch with the offset of its first record.
    feed: Arc<Vec<(Offset, Arc<Batch>)>>,
    /// A change broke a rule that `verify` knows.
    pub is_unsound: bool,
}

impl Controller {
    /// Three unfenced brokers, and a partition with all of them in sync.
    pub fn new(min_isr: usize, unclean_allowed: bool) -> Self {
        let mut controller = Self { now: Metadata::default(), feed: Arc::default(), is_unsound: false };
        controller.write(checkpoint::bootstrap(&controller.now.image, cluster()).records);
        for broker in REPLICAS {
            controller.write(controller.plan_registration(broker, 0, None).records);
            controller.write(brokers::unfence(&controller.now.image, broker).unwrap().records);
        }
        let request = CreateTopic {
            name: TOPIC.to_owned(),
            kind: Kind::LOG,
            partitions: None,
            replication_factor: None,
            assignment: vec![(PartitionId::new(0), REPLICAS.to_vec())],
            configs: vec![
                ("min.insync.replicas".to_owned(), Some(min_isr.to_string())),
                ("unclean.leader.election.enable".to_owned(), Some(unclean_allowed.to_string())),
            ],
        };
        let plan = topics::create_topics(&controller.now.image, &[request], &mut Rng::new(1)).unwrap();
        controller.write(plan.records);
        controller
    }

    /// Commits records. Returns whether there were any.
    pub fn write(&mut self, records: Vec<Record>) -> bool {
        if records.is_empty() {
            return false;
        }
        let batch = Batch { controller_epoch: ControllerEpoch::new(1), timestamp_ms: 0, records };
        let mut image = MetadataImage::clone(&self.now.image);
        let first_offset = image.next_offset;
        image.replay(&batch).unwrap();
        self.is_unsound |= !image.verify_changed(&batch).is_empty();
        self.now = Metadata::new(image);
        Arc::make_mut(&mut self.feed).push((first_offset, Arc::new(batch)));
        true
    }

    /// The incarnation is the number of times that the broker has started.
    pub fn plan_registration(
        &self,
        broker: BrokerId,
        incarnation: usize,
        stopped_at: Option<BrokerEpoch>,
    ) -> Plan<BrokerEpoch> {
        let id = u8::try_from(broker.get()).unwrap();
        let incarnation = u8::try_from(incarnation).unwrap();
        let request = RegisterBroker {
            broker,
            cluster: cluster(),
            incarnation: IncarnationId::from_bytes([16 * id + incarnation; 16]),
            endpoints: vec![Endpoint {
                name: "BROKER".to_owned(),
                host: "localhost".to_owned(),
                port: 9_000,
                security: SecurityProtocol::Plaintext,
            }],
            kind: Kind::LOG,
            probe: Probe::Unstated,
            rack: None,
            features: features::supported(),
            directories: vec![DirectoryId::from_bytes([100 + id; 16])],
            cordoned_directories: None,
            previous_epoch: stopped_at,
        };
        brokers::register(&self.now.image, request, false).unwrap()
    }

    /// What a broker that had `known` has once it has followed the feed to its end; without any, it begins with a
    /// snapshot. The flag says whether it has what the controllers have.
    pub fn feed(&self, known: Option<&Metadata>) -> (Metadata, bool) {
        let now = &self.now.image;
        let mut image = match known {
            Some(known) => MetadataImage::clone(&known.image),
            None => MetadataImage::from_snapshot(now.header(), now.to_records()).unwrap(),
        };
        let seen = self.feed.partition_point(|(first_offset, _)| *first_offset < image.next_offset);
        for (_, batch) in &self.feed[seen..] {
            image.replay(batch).unwrap();
        }
        let matches = image.digest() == now.digest() && image.next_offset == now.next_offset;
        (Metadata::new(image), matches)
    }
}

fn cluster() -> ClusterId {
    ClusterId::from_bytes([1; 16])
}
