//! The table of configs beside the controllers that read it: where the value of a key differs, so do their plans. And what
//! an earlier release has stored stays readable, without effect.

use quorate_metadata::config::{self, BROKER_KEYS, ConfigKey, ConfigType, Reader, Scope, Support, TOPIC_KEYS};
use quorate_metadata::ids::{BrokerId, ClusterId, DirectoryId, IncarnationId, PartitionId, TopicPartition};
use quorate_metadata::plan::brokers::{self, RegisterBroker};
use quorate_metadata::plan::configs::{AlterConfigs, ConfigChange, ConfigOp, alter_configs};
use quorate_metadata::plan::topics::{self, CreateTopic, TopicRef};
use quorate_metadata::plan::{checkpoint, elections, features};
use quorate_metadata::record::{
    Cause, ConfigResource, Endpoint, Kind, PartitionChange, Probe, Record, SecurityProtocol,
};
use quorate_metadata::rng::Rng;
use quorate_metadata::{Batch, ErrorName, MetadataImage};

const CLUSTER: ClusterId = ClusterId::from_bytes([1; 16]);

fn broker(id: i32) -> BrokerId {
    BrokerId::new(id)
}

fn replay(image: &mut MetadataImage, records: Vec<Record>) {
    let controller_epoch = image.controller_epoch;
    image.replay(&Batch { controller_epoch, timestamp_ms: 0, records }).expect("a plan replays");
}

fn registration(id: i32) -> RegisterBroker {
    let (name, host) = ("API".to_owned(), "localhost".to_owned());
    let byte = u8::try_from(id).expect("a small id");
    RegisterBroker {
        broker: broker(id),
        cluster: CLUSTER,
        incarnation: IncarnationId::from_bytes([byte; 16]),
        kind: Kind::LOG,
        probe: Probe::Unstated,
        endpoints: vec![Endpoint { name, host, port: 9092, security: SecurityProtocol::Plaintext }],
        rack: None,
        features: features::supported(),
        directories: vec![DirectoryId::from_bytes([100 + byte; 16])],
        cordoned_directories: None,
        previous_epoch: None,
    }
}

fn new_topic(name: &str, replicas: &[i32]) -> CreateTopic {
    let replicas: Vec<BrokerId> = replicas.iter().copied().map(broker).collect();
    CreateTopic {
        name: name.to_owned(),
        kind: Kind::LOG,
        partitions: None,
        replication_factor: None,
        assignment: if replicas.is_empty() { Vec::new() } else { vec![(PartitionId::new(0), replicas)] },
        configs: Vec::new(),
    }
}

fn create(image: &MetadataImage, topic: CreateTopic) -> Vec<Record> {
    topics::create_topics(image, &[topic], &mut Rng::new(image.next_offset.get().unsigned_abs()))
        .expect("it is small")
        .records
}

/// Brokers 1 to 3. Topic "led" could have its preferred leader back, and topic "lost" could have a leader that is not in sync.
fn image() -> MetadataImage {
    let mut image = MetadataImage::default();
    let records = checkpoint::bootstrap(&image, CLUSTER).records;
    replay(&mut image, records);
    for id in 1..=3 {
        let records = brokers::register(&image, registration(id), false).expect("it may").records;
        replay(&mut image, records);
        let records = brokers::unfence(&image, broker(id)).expect("it is registered").records;
        replay(&mut image, records);
    }
    for (name, replicas) in [("led", [1, 2]), ("lost", [3, 2])] {
        let records = create(&image, new_topic(name, &replicas));
        replay(&mut image, records);
    }
    let change = |name: &str, isr: &[i32], leader| {
        let id = TopicPartition::new(image.topic_named(name).expect("created").id, PartitionId::new(0));
        Record::PartitionChange(PartitionChange {
            isr: Some(isr.iter().copied().map(broker).collect()),
            leader: Some(leader),
            ..PartitionChange::none(id, Cause::ElectionRequested)
        })
    };
    let changes = vec![change("led", &[1, 2], Some(broker(2))), change("lost", &[3], Some(broker(3)))];
    replay(&mut image, changes);
    let records = brokers::fence(&image, broker(3)).expect("it is registered").records;
    replay(&mut image, records);
    image
}

/// All that the controllers do by configs. Whatever reads another key is added here.
fn plans(image: &MetadataImage) -> String {
    let created = create(image, new_topic("another", &[]));
    let deleted = topics::delete_topics(image, &[TopicRef::Name("led".to_owned())]).response;
    let balanced = elections::balance_preferred(image, None, 10).records;
    let unclean = elections::elect_uncleanly_where_allowed(image, None, 10).records;
    let fenced = brokers::fence(image, broker(2)).map(|plan| plan.records);
    format!("{created:?} {deleted:?} {balanced:?} {unclean:?} {fenced:?}")
}

fn another_value(key: &ConfigKey) -> String {
    match &key.takes {
        ConfigType::Bool => (key.default == "false").to_string(),
        ConfigType::Int(..) => "2".to_owned(),
        ConfigType::Long(..) | ConfigType::Double(..) | ConfigType::Enum(_) | ConfigType::ListOf(_) => {
            panic!("{}: say which value differs", key.name)
        }
    }
}

fn is_read(key: &ConfigKey, name: &str, resource: ConfigResource) -> bool {
    let (before, mut after) = (image(), image());
    replay(&mut after, vec![Record::Config { resource, key: name.to_owned(), value: Some(another_value(key)) }]);
    // A record more moves the offsets that plans have.
    after.next_offset = before.next_offset;
    plans(&before) != plans(&after)
}

#[test]
fn every_key_of_the_controllers_has_a_reader() {
    for key in TOPIC_KEYS.iter().chain(BROKER_KEYS).filter(|key| key.reader == Reader::Controllers) {
        assert!(is_read(key, key.broker_name(), ConfigResource::BrokerDefault), "{}", key.broker_name());
        assert!(!is_read(key, key.broker_name(), ConfigResource::Broker(broker(1))), "one for the whole cluster");
        if matches!(key.scope, Scope::TopicAndBroker(_)) {
            let topics = ["led", "lost"].map(|name| ConfigResource::Topic(name.to_owned()));
            assert!(topics.into_iter().any(|topic| is_read(key, key.name, topic)), "{} of a topic", key.name);
        }
    }
}

fn alter(image: &MetadataImage, key: &str, op: ConfigOp) -> Result<Vec<Record>, ErrorName> {
    let resource = ConfigResource::Topic("led".to_owned());
    let changes = vec![ConfigChange { key: key.to_owned(), op, expected: None }];
    let plan = alter_configs(image, &[AlterConfigs { resource, changes }]);
    plan.response[0].as_ref().map_err(|refused| refused.name)?;
    Ok(plan.records)
}

#[test]
fn stored_key_that_is_not_supported_replays_and_can_go() {
    let mut image = image();
    let topic = ConfigResource::Topic("led".to_owned());
    let plain = plans(&image);
    for (resource, key, value) in [
        (topic.clone(), "flush.ms", "5"),
        (topic.clone(), "compression.type", "zstd"),
        (topic.clone(), "no.such.key", "x"),
        (ConfigResource::Broker(broker(1)), "max.connections", "5"),
        (ConfigResource::BrokerDefault, "log.flush.interval.ms", "5"),
    ] {
        let offset = image.next_offset;
        replay(&mut image, vec![Record::Config { resource, key: key.to_owned(), value: Some(value.to_owned()) }]);
        image.next_offset = offset;
    }
    assert_eq!(plans(&image), plain, "they have no effect");
    let again = MetadataImage::from_snapshot(image.header(), image.to_records()).expect("a snapshot has them");
    assert_eq!(config::own_value(&again, &topic, "flush.ms"), Some("5"));
    assert!(matches!(config::support(&topic, Some(&Kind::LOG), "flush.ms"), Support::Unsupported(_)));
    assert_eq!(alter(&again, "flush.ms", ConfigOp::Set("6".to_owned())), Err(ErrorName::InvalidConfig));
    let removed = alter(&again, "flush.ms", ConfigOp::Delete).expect("it may go");
    assert_eq!(removed, [Record::Config { resource: topic, key: "flush.ms".to_owned(), value: None }]);
    assert_eq!(alter(&image, "flush.messages", ConfigOp::Delete), Err(ErrorName::InvalidConfig), "it is not there");
}

#[test]
fn configs_of_a_kind_are_bounded() {
    let mut image = image();
    let kind = Kind::from("counter");
    let key = |at: usize| (format!("counter.key-{at}"), Some("x".to_owned()));
    let max = quorate_metadata::limits::CONFIGS_OF_KIND_MAX;
    let records = brokers::register(&image, RegisterBroker { kind: kind.clone(), ..registration(4) }, false);
    let records = records.expect("it may").records;
    replay(&mut image, records);
    let records = brokers::unfence(&image, broker(4)).expect("it is registered").records;
    replay(&mut image, records);
    let wanted = |count: usize| CreateTopic {
        kind: kind.clone(),
        configs: (0..count).map(key).collect(),
        ..new_topic("counts", &[4])
    };
    let answer = |count| {
        let plan = topics::create_topics(&image, &[wanted(count)], &mut Rng::new(1)).expect("it is small");
        plan.response[0].as_ref().map(|_| ()).map_err(|refused| refused.name)
    };
    assert_eq!((answer(max), answer(max + 1)), (Ok(()), Err(ErrorName::InvalidConfig)));
    let records = create(&image, wanted(max));
    replay(&mut image, records);
    let set = |key: &str| ConfigChange { key: key.to_owned(), op: ConfigOp::Set("y".to_owned()), expected: None };
    let alter = |changes| {
        let resource = ConfigResource::Topic("counts".to_owned());
        alter_configs(&image, &[AlterConfigs { resource, changes }]).response[0].clone().map_err(|refused| refused.name)
    };
    assert_eq!(alter(vec![set("counter.key-0")]), Ok(()), "it is there already");
    assert_eq!(alter(vec![set("counter.more")]), Err(ErrorName::InvalidConfig));
    let gone = ConfigChange { op: ConfigOp::Delete, ..set("counter.key-0") };
    assert_eq!(alter(vec![set("counter.more"), gone]), Ok(()), "one for one");
}
