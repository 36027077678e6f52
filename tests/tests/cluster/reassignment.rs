//! Moving replicas, through whichever node: what one operation comes to.

use quorate_client::{Freshness, Mode};
use quorate_proto::admin::{
    Assignment, CancelReassignmentRequest, ChangeReassignmentRequest, NewTopic, PartitionTarget,
    ReassignmentDescription, TopicPartition,
};
use quorate_proto::broker::{AlterPartitionRequest, IsrMember, PartitionAlteration};
use quorate_tests::{Cluster, outcome};

async fn under_way(cluster: &Cluster) -> Vec<ReassignmentDescription> {
    let reply = cluster.client().list_reassignments(Freshness::Linearizable).await;
    reply.expect("a read is answered").reassignments
}

fn target(partition: i32, replicas: &[i32]) -> PartitionTarget {
    let partition = Some(TopicPartition { topic: "orders".to_owned(), partition });
    PartitionTarget { partition, replicas: replicas.to_vec() }
}

/// Leader 1 finds these in sync with itself.
async fn in_sync(cluster: &Cluster, isr: &[i32]) {
    let topic = cluster.topic("orders").await;
    let partition = &topic.partitions[0];
    let alteration = PartitionAlteration {
        topic_id: topic.id.clone(),
        leader_epoch: partition.leader_epoch,
        partition_epoch: partition.partition_epoch,
        isr: isr.iter().map(|&broker| IsrMember { broker, epoch: None }).collect(),
        ..PartitionAlteration::default()
    };
    let broker_epoch = cluster.broker_seen(1).await.expect("it is registered").epoch;
    let request = AlterPartitionRequest { broker: 1, broker_epoch, partitions: vec![alteration] };
    let reply = outcome(cluster.broker(2).alter_partition(request)).await.expect("the sender is registered");
    assert_eq!(reply.partitions[0].error, None);
}

#[tokio::test]
async fn an_operation_is_gone_when_its_last_partition_is_there_or_back() {
    let cluster = Cluster::start(3).await;
    let assignment = (0..2).map(|partition| Assignment { partition, replicas: vec![1, 2] }).collect();
    cluster.create(NewTopic { name: "orders".to_owned(), assignment, ..NewTopic::default() }).await;
    let client = cluster.client();

    let targets = vec![target(0, &[1, 3]), target(1, &[1, 3])];
    let started = client.start_reassignment(targets, Some(1_000), Mode::Apply).await.expect("it may be started");
    let id = started.id.expect("broker 3 is yet to come into sync");
    assert!(started.partitions.iter().all(|partition| partition.progress == "moving"));
    let paused = ChangeReassignmentRequest { id, paused: Some(true), ..ChangeReassignmentRequest::default() };
    client.change_reassignment(paused, Mode::Apply).await.expect("it may be paused");
    let operations = under_way(&cluster).await;
    let [operation] = &operations[..] else { panic!("one was started: {operations:?}") };
    assert!(operation.id == id && operation.paused && operation.throttle_bytes_per_second == Some(1_000));
    let first = &operation.partitions[0];
    assert_eq!((&first.target[..], &first.original[..]), (&[1, 3][..], &[1, 2][..]));
    assert_eq!((&first.adding[..], &first.removing[..]), (&[3][..], &[2][..]));

    in_sync(&cluster, &[1, 2, 3]).await;
    assert_eq!(cluster.topic("orders").await.partitions[0].replicas, [1, 3]);
    assert_eq!(under_way(&cluster).await[0].partitions.len(), 1);

    let cancel = CancelReassignmentRequest { id: Some(id), ..CancelReassignmentRequest::default() };
    client.cancel_reassignment(cancel, Mode::Apply).await.expect("it may be cancelled");
    assert_eq!(cluster.topic("orders").await.partitions[1].replicas, [1, 2]);
    assert_eq!(under_way(&cluster).await, []);
}
