//! Moving replicas, through whichever node: what one operation comes to.

use quorate_client::{Freshness, Mode};
use quorate_proto::admin::{
    Assignment, CancelReassignmentRequest, ChangeReassignmentRequest, NewTopic, PartitionTarget,
    ReassignmentDescription, TopicPartition,
};
use quorate_tests::{Cluster, Load, wait};

async fn under_way(cluster: &Cluster) -> Vec<ReassignmentDescription> {
    let reply = cluster.client().list_reassignments(Freshness::Linearizable).await;
    reply.expect("a read is answered").reassignments
}

fn target(partition: i32, replicas: &[i32]) -> PartitionTarget {
    let partition = Some(TopicPartition { topic: "orders".to_owned(), partition });
    PartitionTarget { partition, replicas: replicas.to_vec() }
}

#[tokio::test]
async fn an_operation_is_gone_when_its_last_partition_is_there_or_back() {
    let mut cluster = Cluster::start(3).await;
    cluster.add_broker(4);
    cluster.restart(4);
    cluster.ready().await;
    let assignment = (0..2).map(|partition| Assignment { partition, replicas: vec![1, 2] }).collect();
    cluster.create(NewTopic { name: "orders".to_owned(), assignment, ..NewTopic::default() }).await;
    let load = Load::start(&cluster, "orders");
    let client = cluster.client();
    // It cannot come into sync, so that nothing is moved before we look.
    cluster.kill(4);
    cluster.broker_to_be(4, "fenced").await;

    let mut ids = Vec::new();
    for partition in 0..2 {
        let targets = vec![target(partition, &[1, 4])];
        let started =
            client.start_reassignment(targets, Some(50_000_000), Mode::Apply).await.expect("it may be started");
        assert!(started.partitions.iter().all(|partition| partition.progress == "moving"));
        ids.push(started.id.expect("broker 4 is yet to come into sync"));
    }
    let paused = ChangeReassignmentRequest { id: ids[0], paused: Some(true), ..ChangeReassignmentRequest::default() };
    client.change_reassignment(paused, Mode::Apply).await.expect("it may be paused");
    let operations = under_way(&cluster).await;
    let operation = operations.iter().find(|operation| operation.id == ids[0]).expect("it was started");
    assert!(operation.paused && operation.throttle_bytes_per_second == Some(50_000_000));
    let first = &operation.partitions[0];
    assert_eq!((&first.target[..], &first.original[..]), (&[1, 4][..], &[1, 2][..]));
    assert_eq!((&first.adding[..], &first.removing[..]), (&[4][..], &[2][..]));

    let cancel = CancelReassignmentRequest { id: Some(ids[1]), ..CancelReassignmentRequest::default() };
    client.cancel_reassignment(cancel, Mode::Apply).await.expect("it may be cancelled");
    assert_eq!(cluster.topic("orders").await.partitions[1].replicas, [1, 2]);
    assert_eq!(under_way(&cluster).await.len(), 1, "the other one goes on");

    cluster.restart(4);
    cluster.ready().await;
    let resumed = ChangeReassignmentRequest { id: ids[0], paused: Some(false), ..ChangeReassignmentRequest::default() };
    client.change_reassignment(resumed, Mode::Apply).await.expect("it may go on");
    wait("the partition to be where it was to go", async || {
        (cluster.topic("orders").await.partitions[0].replicas == [1, 4]).then_some(())
    })
    .await;
    assert_eq!(under_way(&cluster).await, []);
    let account = load.stop().await;
    assert!(account.failed.is_empty(), "{:?}", account.failed);
    account.check(&cluster.identical_logs("orders").await);
}

#[tokio::test]
async fn all_partitions_move_under_load_and_lose_nothing() {
    let cluster = Cluster::start(5).await;
    let assignment = (0..4).map(|partition| Assignment { partition, replicas: vec![1, 2, 3] }).collect();
    let configs = [("min.insync.replicas".to_owned(), "2".to_owned())].into();
    let topic = NewTopic { name: "orders".to_owned(), assignment, configs, ..NewTopic::default() };
    let id = cluster.create(topic).await.id;
    let load = Load::start(&cluster, "orders");
    let targets = (0..4).map(|partition| target(partition, &[5, 4, 3])).collect();
    cluster.client().start_reassignment(targets, None, Mode::Apply).await.expect("it may be started");
    wait("all partitions to be where they were to go", async || {
        let partitions = cluster.topic("orders").await.partitions;
        partitions.iter().all(|partition| partition.replicas == [5, 4, 3]).then_some(())
    })
    .await;
    wait("what was left behind to be deleted", async || {
        let left = cluster.replicas_on(1).await?.replicas;
        left.iter().all(|replica| replica.topic_id != id).then_some(())
    })
    .await;
    let account = load.stop().await;
    assert!(account.failed.is_empty(), "{:?}", account.failed);
    account.check(&cluster.identical_logs("orders").await);
}
