//! Topics: create, delete, more partitions.

use std::time::Duration;

use quorate_client::world;
use quorate_metadata::ids::TopicId;
use quorate_proto::admin::{
    Assignment, CreatePartitionsRequest, CreateTopicsRequest, DeleteTopicsRequest, MorePartitions, NewTopic, TopicRef,
};
use quorate_tests::{Cluster, UNHURRIED, mutation, new_topic, outcome, refusal, topic_named};

use super::{ABSENT, STRANGER, Untouched, assigned, cluster_with_an_absent_broker, name_of};

const PATIENT: Duration = Duration::from_secs(30);

async fn create(cluster: &Cluster, topics: Vec<NewTopic>) -> String {
    let request = CreateTopicsRequest { options: mutation(PATIENT), topics };
    // Through a node that has to forward as often as not.
    let answer = outcome(cluster.admin(2).create_topics(request)).await;
    name_of(answer, |reply| reply.topics.last().and_then(|topic| topic.error.as_ref()))
}

#[tokio::test]
async fn topics_that_cannot_be_created() {
    let cluster = cluster_with_an_absent_broker().await;
    cluster.create(new_topic("taken", 1, 1)).await;
    cluster.create(new_topic("a.b", 1, 1)).await;
    let numbered = |name: &str, partitions: &[i32]| NewTopic {
        assignment: partitions.iter().map(|at| Assignment { partition: *at, replicas: vec![1] }).collect(),
        name: name.to_owned(),
        ..NewTopic::default()
    };
    let configured = |key: &str, value: &str| NewTopic {
        configs: [(key.to_owned(), value.to_owned())].into(),
        ..new_topic("configured", 1, 1)
    };
    let rows = [
        (new_topic("", 1, 1), "INVALID_TOPIC_EXCEPTION"),
        (new_topic(".", 1, 1), "INVALID_TOPIC_EXCEPTION"),
        (new_topic("..", 1, 1), "INVALID_TOPIC_EXCEPTION"),
        (new_topic("x".repeat(250), 1, 1), "INVALID_TOPIC_EXCEPTION"),
        (new_topic("with space", 1, 1), "INVALID_TOPIC_EXCEPTION"),
        (new_topic("größe", 1, 1), "INVALID_TOPIC_EXCEPTION"),
        (new_topic("a_b", 1, 1), "INVALID_TOPIC_EXCEPTION"),
        (new_topic("taken", 1, 1), "TOPIC_ALREADY_EXISTS"),
        (new_topic("__cluster_metadata", 1, 1), "INVALID_REQUEST"),
        (new_topic("none", 0, 1), "INVALID_PARTITIONS"),
        (new_topic("none", -2, 1), "INVALID_PARTITIONS"),
        (new_topic("none", i32::MIN, 1), "INVALID_PARTITIONS"),
        (new_topic("many", i32::MAX, 1), "POLICY_VIOLATION"),
        (new_topic("none", 1, 0), "INVALID_REPLICATION_FACTOR"),
        (new_topic("none", 1, -2), "INVALID_REPLICATION_FACTOR"),
        (new_topic("wide", 1, 5), "INVALID_REPLICATION_FACTOR"),
        (new_topic("wide", 1, i32::MAX), "INVALID_REPLICATION_FACTOR"),
        (NewTopic { partitions: Some(1), ..assigned("both", &[&[1]]) }, "INVALID_REQUEST"),
        (NewTopic { replication_factor: Some(1), ..assigned("both", &[&[1]]) }, "INVALID_REQUEST"),
        (numbered("gap", &[0, 2]), "INVALID_REPLICA_ASSIGNMENT"),
        (numbered("twice", &[0, 0]), "INVALID_REPLICA_ASSIGNMENT"),
        (numbered("negative", &[-1]), "INVALID_REPLICA_ASSIGNMENT"),
        (assigned("nowhere", &[&[]]), "INVALID_REPLICA_ASSIGNMENT"),
        (assigned("strange", &[&[1, STRANGER]]), "INVALID_REPLICA_ASSIGNMENT"),
        (assigned("negative", &[&[-1]]), "INVALID_REPLICA_ASSIGNMENT"),
        (assigned("repeated", &[&[1, 1]]), "INVALID_REPLICA_ASSIGNMENT"),
        (assigned("uneven", &[&[1, 2], &[1]]), "INVALID_REPLICA_ASSIGNMENT"),
        (assigned("inactive", &[&[ABSENT]]), "INVALID_REPLICA_ASSIGNMENT"),
        (configured("no.such.key", "1"), "INVALID_CONFIG"),
        (configured("retention.ms", "soon"), "INVALID_CONFIG"),
        (configured("min.insync.replicas", "0"), "INVALID_CONFIG"),
        (configured("min.insync.replicas", "9"), "INVALID_CONFIG"),
        (configured("compression.type", "zstd"), "INVALID_CONFIG"),
        (configured("counter.window.ms", "1"), "INVALID_CONFIG"),
    ];
    let untouched = Untouched::since_now(&cluster).await;
    for (topic, expected) in rows {
        let description = format!("{topic:?}");
        assert_eq!(create(&cluster, vec![topic]).await, expected, "{description}");
    }
    let twice = vec![new_topic("twice", 1, 1), new_topic("twice", 2, 1)];
    assert_eq!(create(&cluster, twice).await, "INVALID_REQUEST");
    untouched.check(&cluster).await;

    // One that cannot be created does not keep another from being created.
    let mixed = vec![new_topic("fine", 1, 1), new_topic("taken", 1, 1)];
    assert_eq!(create(&cluster, mixed).await, "TOPIC_ALREADY_EXISTS");
    assert_eq!(cluster.topic("fine").await.partitions.len(), 1);
}

#[tokio::test]
async fn topics_that_cannot_be_deleted() {
    let cluster = Cluster::start_with(3, UNHURRIED).await;
    let id = cluster.create(new_topic("there", 1, 1)).await.id;
    let by_id = |id: &str| TopicRef { name: None, id: Some(id.to_owned()) };
    let unknown = TopicId::new(world::uuid()).to_string();
    let both = TopicRef { name: Some("there".to_owned()), id: Some(id.clone()) };
    let rows = [
        (vec![both], "INVALID_REQUEST"),
        (vec![TopicRef::default()], "INVALID_REQUEST"),
        (vec![topic_named("there"), topic_named("there")], "INVALID_REQUEST"),
        (vec![topic_named("there"), by_id(&id)], "INVALID_REQUEST"),
        (vec![topic_named("missing")], "UNKNOWN_TOPIC_OR_PARTITION"),
        (vec![topic_named("")], "UNKNOWN_TOPIC_OR_PARTITION"),
        (vec![by_id(&unknown)], "UNKNOWN_TOPIC_ID"),
        (vec![by_id("not an id")], "INVALID_REQUEST"),
    ];
    let untouched = Untouched::since_now(&cluster).await;
    for (topics, expected) in rows {
        let description = format!("{topics:?}");
        let request = DeleteTopicsRequest { options: mutation(PATIENT), topics };
        let answer = outcome(cluster.admin(2).delete_topics(request)).await;
        let name = name_of(answer, |reply| reply.topics.last().and_then(|topic| topic.error.as_ref()));
        assert_eq!(name, expected, "{description}");
    }
    untouched.check(&cluster).await;
}

#[tokio::test]
async fn partitions_that_cannot_be_added() {
    let cluster = cluster_with_an_absent_broker().await;
    cluster.create(new_topic("orders", 3, 2)).await;
    let more = |topic: &str, count, replicas: &[&[i32]]| MorePartitions {
        topic: topic.to_owned(),
        count,
        assignment: (3..)
            .zip(replicas)
            .map(|(partition, replicas)| Assignment { partition, replicas: replicas.to_vec() })
            .collect(),
    };
    let rows = [
        (more("orders", 3, &[]), "INVALID_PARTITIONS"),
        (more("orders", 2, &[]), "INVALID_PARTITIONS"),
        (more("orders", -1, &[]), "INVALID_PARTITIONS"),
        (more("orders", i32::MAX, &[]), "POLICY_VIOLATION"),
        (more("missing", 4, &[]), "UNKNOWN_TOPIC_OR_PARTITION"),
        (more("orders", 5, &[&[1, 2]]), "INVALID_REPLICA_ASSIGNMENT"),
        (more("orders", 4, &[&[1, 2], &[1, 2]]), "INVALID_REPLICA_ASSIGNMENT"),
        (more("orders", 4, &[&[1]]), "INVALID_REPLICA_ASSIGNMENT"),
        (more("orders", 4, &[&[1, STRANGER]]), "INVALID_REPLICA_ASSIGNMENT"),
    ];
    let untouched = Untouched::since_now(&cluster).await;
    for (topic, expected) in rows {
        let description = format!("{topic:?}");
        let request = CreatePartitionsRequest { options: mutation(PATIENT), topics: vec![topic] };
        let answer = outcome(cluster.admin(2).create_partitions(request)).await;
        let name = name_of(answer, |reply| reply.topics.last().and_then(|topic| topic.error.as_ref()));
        assert_eq!(name, expected, "{description}");
    }
    untouched.check(&cluster).await;
}

/// The answer would not fit into an entry of the log: that is this request's fault, and nobody else's.
#[tokio::test]
async fn a_request_whose_answer_is_too_large_to_be_remembered() {
    let cluster = Cluster::start_with(3, UNHURRIED).await;
    let active = cluster.active_controller().await;
    let epoch = cluster.quorum_seen_by(active).await.expect("it is up").epoch;
    let untouched = Untouched::since_now(&cluster).await;
    let topics = (0..85_000).map(|at| new_topic(format!("{at:020}"), 1, 1)).collect();
    let request = CreateTopicsRequest { options: mutation(PATIENT), topics };
    assert_eq!(refusal(cluster.admin(active).create_topics(request)).await, "RECORD_LIST_TOO_LARGE");
    untouched.check(&cluster).await;
    let quorum = cluster.quorum_seen_by(active).await.expect("it is up");
    assert_eq!((quorum.leader_id, quorum.epoch), (Some(active), epoch), "the controller has kept its office");
}
