//! Moving replicas: start, cancel, change.

use std::time::Duration;

use quorate_proto::admin::{
    CancelReassignmentRequest, ChangeReassignmentRequest, MoveReplicaRequest, PartitionTarget,
    StartReassignmentRequest, TopicPartition,
};
use quorate_tests::{Cluster, mutation, outcome, refusal};

use super::{ABSENT, STRANGER, Untouched, assigned, cluster_with_an_absent_broker, name_of};

const PATIENT: Duration = Duration::from_secs(30);

fn partition(topic: &str, partition: i32) -> TopicPartition {
    TopicPartition { topic: topic.to_owned(), partition }
}

fn target(topic: &str, at: i32, replicas: &[i32]) -> PartitionTarget {
    PartitionTarget { partition: Some(partition(topic, at)), replicas: replicas.to_vec() }
}

/// Well formed, and nobody's.
const NO_DIRECTORY: &str = "QQQQQQQQQQQQQQQQQQQQQQ";

async fn start(cluster: &Cluster, partitions: Vec<PartitionTarget>) -> String {
    let request = StartReassignmentRequest { options: mutation(PATIENT), partitions, throttle_bytes_per_second: None };
    let answer = outcome(cluster.admin(2).start_reassignment(request)).await;
    name_of(answer, |reply| reply.partitions.last().and_then(|partition| partition.error.as_ref()))
}

async fn cancel(cluster: &Cluster, id: Option<i64>, partitions: Vec<TopicPartition>) -> String {
    let request = CancelReassignmentRequest { options: mutation(PATIENT), id, partitions, force: false };
    let answer = outcome(cluster.admin(3).cancel_reassignment(request)).await;
    name_of(answer, |reply| reply.partitions.last().and_then(|partition| partition.error.as_ref()))
}

#[tokio::test]
async fn replicas_that_cannot_be_moved() {
    let cluster = cluster_with_an_absent_broker().await;
    cluster.create(assigned("orders", &[&[1, 2], &[2, 3]])).await;
    let untouched = Untouched::since_now(&cluster).await;
    let rows = [
        (vec![target("orders", 0, &[])], "INVALID_REPLICA_ASSIGNMENT"),
        (vec![target("orders", 0, &[3, 3])], "INVALID_REPLICA_ASSIGNMENT"),
        (vec![target("orders", 0, &[1, STRANGER])], "INVALID_REPLICA_ASSIGNMENT"),
        (vec![target("orders", 0, &[1, -1])], "INVALID_REPLICA_ASSIGNMENT"),
        (vec![target("orders", 2, &[1])], "UNKNOWN_TOPIC_OR_PARTITION"),
        (vec![target("orders", -1, &[1])], "UNKNOWN_TOPIC_OR_PARTITION"),
        (vec![target("nothing", 0, &[1])], "UNKNOWN_TOPIC_OR_PARTITION"),
        (vec![target("orders", 0, &[3]), target("orders", 0, &[2])], "INVALID_REQUEST"),
        (vec![PartitionTarget::default()], "INVALID_REQUEST"),
    ];
    for (partitions, expected) in rows {
        let description = format!("{partitions:?}");
        assert_eq!(start(&cluster, partitions).await, expected, "{description}");
    }
    let throttled = StartReassignmentRequest {
        options: mutation(PATIENT),
        partitions: vec![target("orders", 0, &[3])],
        throttle_bytes_per_second: Some(0),
    };
    assert_eq!(refusal(cluster.admin(1).start_reassignment(throttled)).await, "INVALID_REQUEST");

    assert_eq!(cancel(&cluster, None, vec![partition("orders", 0)]).await, "NO_REASSIGNMENT_IN_PROGRESS");
    assert_eq!(cancel(&cluster, None, vec![partition("nothing", 0)]).await, "UNKNOWN_TOPIC_OR_PARTITION");
    assert_eq!(cancel(&cluster, Some(1), Vec::new()).await, "NO_REASSIGNMENT_IN_PROGRESS");
    assert_eq!(cancel(&cluster, None, Vec::new()).await, "INVALID_REQUEST");
    assert_eq!(cancel(&cluster, Some(1), vec![partition("orders", 0)]).await, "INVALID_REQUEST");
    let change =
        ChangeReassignmentRequest { options: mutation(PATIENT), id: 1, ..ChangeReassignmentRequest::default() };
    assert_eq!(refusal(cluster.admin(1).change_reassignment(change)).await, "NO_REASSIGNMENT_IN_PROGRESS");
    let orders = Some(partition("orders", 0));
    let moves = [
        (None, 1, NO_DIRECTORY, "INVALID_REQUEST"),
        (orders.clone(), 1, "not a directory", "INVALID_REQUEST"),
        (orders.clone(), 1, NO_DIRECTORY, "LOG_DIR_NOT_FOUND"),
        (orders.clone(), 3, NO_DIRECTORY, "INVALID_REPLICA_ASSIGNMENT"),
        (orders, STRANGER, NO_DIRECTORY, "BROKER_ID_NOT_REGISTERED"),
        (Some(partition("nothing", 0)), 1, NO_DIRECTORY, "UNKNOWN_TOPIC_OR_PARTITION"),
    ];
    for (partition, broker, directory, expected) in moves {
        let options = mutation(PATIENT);
        let request = MoveReplicaRequest { options, partition, broker, directory: directory.to_owned() };
        let description = format!("{request:?}");
        assert_eq!(refusal(cluster.admin(2).move_replica(request)).await, expected, "{description}");
    }
    untouched.check(&cluster).await;

    // A broker that is fenced may be named: it will be back.
    assert_eq!(start(&cluster, vec![target("orders", 0, &[1, ABSENT])]).await, "none");
}
