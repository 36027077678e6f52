//! Everything else that can be asked wrongly.

use std::time::Duration;

use quorate_client::{AdminClient, Freshness, Options};
use quorate_metadata::ErrorName;
use quorate_proto::admin::{
    AlterConfigsRequest, ConfigAlteration, ConfigChange, ConfigResource, CreateTopicsRequest, ElectLeadersRequest,
    MutationOptions, TopicPartition, UnregisterBrokerRequest, config_resource,
};
use quorate_proto::broker::WatchRequest;
use quorate_tests::{Cluster, MAX_LEVEL, UNHURRIED, mutation, new_topic, outcome, refusal};

use super::{STRANGER, Untouched, name_of};

const PATIENT: Duration = Duration::from_secs(30);

/// Of an enum of the wire: no such value.
const UNKNOWN: i32 = 99;

#[tokio::test]
async fn elections_configs_and_ids_that_make_no_sense() {
    let cluster = Cluster::start_with(3, UNHURRIED).await;
    cluster.create(new_topic("orders", 2, 3)).await;
    let untouched = Untouched::since_now(&cluster).await;
    let partition = |topic: &str, partition| TopicPartition { topic: topic.to_owned(), partition };
    for (kind, partitions, all, expected) in [
        (UNKNOWN, vec![partition("orders", 0)], false, "INVALID_REQUEST"),
        (0, vec![partition("orders", 0)], false, "INVALID_REQUEST"),
        (1, vec![partition("orders", 0)], true, "INVALID_REQUEST"),
        (1, vec![partition("orders", 0)], false, "ELECTION_NOT_NEEDED"),
        (1, vec![partition("orders", -1)], false, "UNKNOWN_TOPIC_OR_PARTITION"),
        (1, vec![partition("missing", 0)], false, "UNKNOWN_TOPIC_OR_PARTITION"),
    ] {
        let description = format!("kind {kind} {partitions:?} all {all}");
        let request = ElectLeadersRequest { options: mutation(PATIENT), kind, partitions, all };
        let answer = outcome(cluster.admin(2).elect_leaders(request)).await;
        let name = name_of(answer, |reply| reply.partitions.last().and_then(|elected| elected.error.as_ref()));
        assert_eq!(name, expected, "{description}");
    }
    config_rows(&cluster).await;
    for (broker, expected) in [(STRANGER, "BROKER_ID_NOT_REGISTERED"), (1, "POLICY_VIOLATION")] {
        let unregister = UnregisterBrokerRequest { options: mutation(PATIENT), broker, force: false };
        assert_eq!(refusal(cluster.admin(2).unregister_broker(unregister)).await, expected);
    }
    let whole = mutation(PATIENT).expect("there are options");
    for options in [
        MutationOptions { client_id: String::new(), ..whole.clone() },
        MutationOptions { request_id: 0, ..whole.clone() },
        MutationOptions { client_id: "not an id".to_owned(), ..whole },
    ] {
        let request = CreateTopicsRequest { options: Some(options), topics: vec![new_topic("never", 1, 1)] };
        assert_eq!(refusal(cluster.admin(2).create_topics(request)).await, "INVALID_REQUEST");
    }
    untouched.check(&cluster).await;
}

async fn config_rows(cluster: &Cluster) {
    use config_resource::Resource;
    let topic = |name: &str| Some(Resource::Topic(name.to_owned()));
    for (resource, key, op, value, expected) in [
        (topic("orders"), "retention.ms", UNKNOWN, "1", "INVALID_REQUEST"),
        (topic("orders"), "retention.ms", 0, "1", "INVALID_REQUEST"),
        (topic("orders"), "no.such.key", 1, "1", "INVALID_CONFIG"),
        (topic("orders"), "retention.ms", 1, "soon", "INVALID_CONFIG"),
        (topic("orders"), "max.message.bytes", 1, "16777216", "INVALID_CONFIG"),
        (topic("orders"), "retention.ms", 3, "1", "INVALID_CONFIG"),
        (topic("missing"), "retention.ms", 1, "1", "UNKNOWN_TOPIC_OR_PARTITION"),
        (Some(Resource::Broker(STRANGER)), "num.partitions", 1, "1", "BROKER_ID_NOT_REGISTERED"),
        (Some(Resource::Broker(-1)), "num.partitions", 1, "1", "INVALID_REQUEST"),
        (None, "retention.ms", 1, "1", "INVALID_REQUEST"),
    ] {
        let description = format!("{resource:?} {key} {op} {value}");
        let changes = vec![ConfigChange { key: key.to_owned(), op, value: value.to_owned(), expected: None }];
        let resources = vec![ConfigAlteration { resource: Some(ConfigResource { resource }), changes }];
        let request = AlterConfigsRequest { options: mutation(PATIENT), resources };
        let answer = outcome(cluster.admin(2).alter_configs(request)).await;
        let name = name_of(answer, |reply| reply.resources.last().and_then(|altered| altered.error.as_ref()));
        assert_eq!(name, expected, "{description}");
    }
}

#[tokio::test]
async fn feeds_that_cannot_be_followed() {
    let cluster = Cluster::start_with(3, UNHURRIED).await;
    let from = |offset| WatchRequest { from_offset: Some(offset), max_level: MAX_LEVEL, ..WatchRequest::default() };
    let unknown = WatchRequest { kinds: vec!["NoSuchRecord".to_owned()], ..WatchRequest::default() };
    for (request, expected) in [
        (from(-1), "INVALID_REQUEST"),
        (from(i64::MIN), "INVALID_REQUEST"),
        (from(i64::MAX), "RESYNC_REQUIRED"),
        (unknown, "INVALID_REQUEST"),
        (WatchRequest { topics: vec!["orders".to_owned()], ..WatchRequest::default() }, "INVALID_REQUEST"),
        (WatchRequest::default(), "UNSUPPORTED_VERSION"),
        (WatchRequest { broker: Some(1), ..WatchRequest::default() }, "UNSUPPORTED_VERSION"),
    ] {
        let description = format!("{request:?}");
        assert_eq!(refusal(cluster.broker(2).watch(request)).await, expected, "{description}");
    }
}

#[tokio::test]
async fn raft_port_as_bootstrap_is_refused_by_name() {
    let cluster = Cluster::start(1).await;
    let client = AdminClient::connect(&[cluster.raft(1)], Options::default()).expect("it is an address");
    let refused = client.describe_quorum(Freshness::Stale).await.expect_err("it has no API");
    assert_eq!(refused.name(), ErrorName::UnsupportedVersion, "{refused}");
    assert!(refused.error().message.contains(cluster.raft(1)), "{refused}");
}
