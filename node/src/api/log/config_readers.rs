//! The table of configs beside what reads it: where the value of a key differs, so does what a broker goes by.

use quorate_metadata::config::{BROKER_KEYS, ConfigKey, ConfigType, Reader, TOPIC_KEYS};
use quorate_metadata::ids::{BrokerId, PartitionId, TopicId, TopicPartition};
use quorate_metadata::record::{ConfigResource, Kind, PartitionRegistration, PartitionState};
use quorate_metadata::{MetadataImage, Record};

use super::produce::Wanted;
use crate::broker::Situation;

const BROKER: BrokerId = BrokerId::new(1);
const TOPIC: &str = "orders";

/// All that a broker goes by. Whatever reads another key is added here.
fn read(image: &MetadataImage) -> String {
    let id = TopicPartition::new(TopicId::default(), PartitionId::new(0));
    let replica = Situation::of(image, BROKER, id).expect("the partition is there");
    format!("{replica:?} {:?}", Wanted::on(image, BROKER, TOPIC))
}

/// One partition, of kind log. Old records go and the others are compacted: then each key of either counts.
fn image() -> MetadataImage {
    let mut image = MetadataImage::default();
    let id = TopicPartition::new(TopicId::default(), PartitionId::new(0));
    let state = PartitionState { replicas: vec![BROKER, BrokerId::new(2)], ..PartitionState::default() };
    let (key, value) = ("log.cleanup.policy".to_owned(), Some("compact,delete".to_owned()));
    image
        .replay_records(&[
            Record::Config { resource: ConfigResource::BrokerDefault, key, value },
            Record::CreateTopic { topic: id.topic, name: TOPIC.to_owned(), kind: Kind::LOG },
            Record::CreatePartition(PartitionRegistration { id, state: state.into() }),
        ])
        .expect("they replay");
    image
}

/// A valid value that is not the default.
fn another_value(key: &ConfigKey) -> String {
    let differs = |value: &String| *value != key.default;
    let candidates: Vec<String> = match &key.takes {
        ConfigType::Bool => ["true", "false"].map(str::to_owned).into(),
        ConfigType::Int(min, max) => [max, min].map(ToString::to_string).into(),
        ConfigType::Long(min, max) => [max, min].map(ToString::to_string).into(),
        ConfigType::Double(min, max) => [max, min].map(ToString::to_string).into(),
        ConfigType::Enum(values) | ConfigType::ListOf(values) => values.iter().map(ToString::to_string).collect(),
    };
    candidates.into_iter().find(differs).expect("it takes more than one value")
}

fn is_read(key: &ConfigKey, name: &str, resource: ConfigResource) -> bool {
    let (before, mut after) = (image(), image());
    let value = Some(another_value(key));
    after.replay_records(&[Record::Config { resource, key: name.to_owned(), value }]).expect("it replays");
    read(&before) != read(&after)
}

#[test]
fn every_key_of_kind_log_has_a_reader() {
    for key in TOPIC_KEYS.iter().chain(BROKER_KEYS).filter(|key| key.reader == Reader::Log) {
        let (name, broker_name) = (key.name, key.broker_name());
        if TOPIC_KEYS.iter().any(|topic_key| topic_key.name == name) {
            assert!(is_read(key, name, ConfigResource::Topic(TOPIC.to_owned())), "{name} of the topic");
        }
        assert!(is_read(key, broker_name, ConfigResource::Broker(BROKER)), "{broker_name} of the broker");
        assert!(!is_read(key, broker_name, ConfigResource::Broker(BrokerId::new(2))), "{broker_name} of another");
        assert!(is_read(key, broker_name, ConfigResource::BrokerDefault), "{broker_name} of all brokers");
    }
}
