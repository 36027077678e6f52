//! AlterPartition: the checks in their order, each by its name.

use quorate_client::world;
use quorate_metadata::ids::TopicId;
use quorate_proto::broker::{AlterPartitionRequest, IsrMember, PartitionAlteration};
use quorate_tests::{Cluster, outcome, wait};

use super::{ABSENT, STRANGER, Untouched, assigned, cluster_with_an_absent_broker, name_of};

async fn alter(cluster: &Cluster, request: AlterPartitionRequest) -> String {
    let answer = outcome(cluster.broker(3).alter_partition(request)).await;
    name_of(answer, |reply| reply.partitions.last().and_then(|partition| partition.error.as_ref()))
}

fn isr(brokers: &[i32]) -> Vec<IsrMember> {
    brokers.iter().map(|broker| IsrMember { broker: *broker, epoch: None }).collect()
}

#[tokio::test]
async fn in_sync_replicas_that_cannot_be() {
    let cluster = cluster_with_an_absent_broker().await;
    // Led by broker 1 at leader epoch 0 and partition epoch 0; the absent one is a replica and not in sync.
    let id = cluster.create(assigned("orders", &[&[1, 2, ABSENT]])).await.id;
    let epoch = async |broker| cluster.broker_seen(broker).await.expect("it is registered").epoch;
    let (first, second) = (epoch(1).await, epoch(2).await);
    let right = PartitionAlteration { topic_id: id, isr: isr(&[1]), ..PartitionAlteration::default() };
    let from_leader =
        |alteration| AlterPartitionRequest { broker: 1, broker_epoch: first, partitions: vec![alteration] };
    let unknown = TopicId::new(world::uuid()).to_string();
    let member = |broker, epoch| IsrMember { broker, epoch: Some(epoch) };
    let rows = [
        (PartitionAlteration { topic_id: unknown, ..right.clone() }, "UNKNOWN_TOPIC_ID"),
        (PartitionAlteration { topic_id: "not an id".to_owned(), ..right.clone() }, "INVALID_REQUEST"),
        (PartitionAlteration { partition: 1, ..right.clone() }, "UNKNOWN_TOPIC_OR_PARTITION"),
        (PartitionAlteration { partition: -1, ..right.clone() }, "UNKNOWN_TOPIC_OR_PARTITION"),
        (PartitionAlteration { leader_epoch: 1, ..right.clone() }, "NOT_CONTROLLER"),
        (PartitionAlteration { partition_epoch: 1, ..right.clone() }, "NOT_CONTROLLER"),
        (PartitionAlteration { partition_epoch: i32::MAX, ..right.clone() }, "NOT_CONTROLLER"),
        (PartitionAlteration { leader_epoch: -1, ..right.clone() }, "FENCED_LEADER_EPOCH"),
        (PartitionAlteration { partition_epoch: -1, ..right.clone() }, "INVALID_UPDATE_VERSION"),
        (PartitionAlteration { isr: isr(&[1, 2, 2]), ..right.clone() }, "INVALID_REQUEST"),
        (PartitionAlteration { isr: isr(&[1, 3]), ..right.clone() }, "INVALID_REQUEST"),
        (PartitionAlteration { isr: isr(&[1, STRANGER]), ..right.clone() }, "INVALID_REQUEST"),
        (PartitionAlteration { isr: isr(&[2]), ..right.clone() }, "INVALID_REQUEST"),
        (PartitionAlteration { isr: Vec::new(), ..right.clone() }, "INVALID_REQUEST"),
        (PartitionAlteration { recovery: 1, ..right.clone() }, "INVALID_REQUEST"),
        (PartitionAlteration { recovery: 1, isr: isr(&[1, 2]), ..right.clone() }, "INVALID_REQUEST"),
        (PartitionAlteration { recovery: 7, ..right.clone() }, "INVALID_REQUEST"),
        (PartitionAlteration { isr: isr(&[1, 2, ABSENT]), ..right.clone() }, "INELIGIBLE_REPLICA"),
        (
            PartitionAlteration { isr: vec![member(1, first), member(2, second + 1)], ..right.clone() },
            "INELIGIBLE_REPLICA",
        ),
    ];
    let untouched = Untouched::since_now(&cluster).await;
    for (alteration, expected) in rows {
        let description = format!("{alteration:?}");
        assert_eq!(alter(&cluster, from_leader(alteration)).await, expected, "{description}");
    }
    let right_request = from_leader(right);
    let stale = AlterPartitionRequest { broker_epoch: first - 1, ..right_request.clone() };
    assert_eq!(alter(&cluster, stale).await, "STALE_BROKER_EPOCH");
    let stranger = AlterPartitionRequest { broker: STRANGER, ..right_request.clone() };
    assert_eq!(alter(&cluster, stranger).await, "STALE_BROKER_EPOCH");
    let not_the_leader = AlterPartitionRequest { broker: 2, broker_epoch: second, ..right_request.clone() };
    assert_eq!(alter(&cluster, not_the_leader).await, "INVALID_REQUEST");
    untouched.check(&cluster).await;

    // Each row was wrong in nothing but what it shows. The leader itself takes the follower in again at once, so that
    // the same change is asked for twice until nothing came between.
    wait("a change made and confirmed", async || {
        let before = cluster.topic("orders").await.partitions[0].partition_epoch;
        let mut request = right_request.clone();
        request.partitions[0].partition_epoch = before;
        let answers = [alter(&cluster, request.clone()).await, alter(&cluster, request.clone()).await];
        let after = cluster.topic("orders").await.partitions[0].clone();
        if (after.partition_epoch, &after.isr[..]) != (before + 1, &[1]) {
            return None;
        }
        assert_eq!(answers, ["none", "none"], "made, and the same again is confirmed");
        request.partitions[0].isr = isr(&[1, 2]);
        assert_eq!(alter(&cluster, request).await, "INVALID_UPDATE_VERSION");
        Some(())
    })
    .await;
}
