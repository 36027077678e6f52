//! SIGTERM: nothing is lost, nothing waits for a timeout, and the next start can prove it.

use quorate_proto::admin::{Assignment, NewTopic, PartitionDescription};
use quorate_tests::{CALM, Cluster, beginning_of, new_topic, wait};

#[tokio::test]
async fn a_stopped_broker_hands_its_leaderships_over_and_ends_well() {
    let mut cluster = Cluster::start_with(3, CALM).await;
    cluster.create(new_topic("orders", 12, 3)).await;
    let active = cluster.active_controller().await;
    let stopped = cluster.others(active)[0];
    let led = |partitions: &[PartitionDescription]| {
        partitions.iter().filter(|at| at.leader == Some(stopped)).map(|at| at.partition).collect::<Vec<_>>()
    };
    let moved = led(&cluster.partitions().await);
    assert!(!moved.is_empty(), "node {stopped} leads something");

    assert!(cluster.stop(stopped).await.success());
    let after = cluster.topic("orders").await.partitions;
    assert!(led(&after).is_empty());
    for partition in after {
        assert!(!partition.isr.contains(&stopped));
        if !moved.contains(&partition.partition) {
            continue;
        }
        let change = beginning_of(1, &partition);
        assert_eq!(change.cause, format!("controlled-shutdown {stopped}"));
        assert!(!change.unclean);
    }
    assert_eq!(cluster.active_controller().await, active, "the office was elsewhere, and stays");
}

#[tokio::test]
async fn a_stopped_controller_hands_its_office_over() {
    let mut cluster = Cluster::start_with(3, CALM).await;
    cluster.create(new_topic("orders", 6, 3)).await;
    for _ in 0..2 {
        // It is given up where the successor's disk is behind for seconds, and then the next stop has to do it.
        wait("an office that is handed over, so that nobody waits for a timeout", async || {
            let stopped = cluster.active_controller().await;
            let before = cluster.log(stopped).len();
            assert!(cluster.stop(stopped).await.success());
            let is_handed_over = cluster.log(stopped)[before..].contains("controller handed over");
            wait("another controller", async || (cluster.active_controller().await != stopped).then_some(())).await;
            assert!(cluster.partitions().await.iter().all(|at| at.leader.is_some_and(|leader| leader != stopped)));
            cluster.restart(stopped);
            cluster.ready().await;
            is_handed_over.then_some(())
        })
        .await;
    }
    cluster.converged().await;
}

#[tokio::test]
async fn a_stop_and_a_kill_keep_the_broker_eligible_and_a_loss_of_power_does_not() {
    let mut cluster = Cluster::start_on_own_machines(3).await;
    let active = cluster.active_controller().await;
    let broker = cluster.others(active)[0];
    let assignment = vec![Assignment { partition: 0, replicas: vec![active, broker] }];
    let configs = [("min.insync.replicas".to_owned(), "2".to_owned())].into();
    cluster.create(NewTopic { name: "pairs".to_owned(), assignment, configs, ..NewTopic::default() }).await;

    assert!(cluster.stop(broker).await.success());
    assert_eq!(only_partition(&cluster).await.elr, [broker], "below min.insync.replicas it stays eligible");
    let first = cluster.broker_to_be(broker, "fenced").await;
    cluster.restart(broker);
    cluster.broker_to_be(broker, "unfenced").await;
    assert!(cluster.broker_seen(broker).await.expect("it is registered").epoch > first.epoch);
    let partition = back_in_sync(&cluster, broker).await;
    let lost_trust = |partition: &PartitionDescription| {
        partition.history.iter().any(|change| change.cause == format!("unclean-restart {broker}"))
    };
    assert!(!lost_trust(&partition), "it proved that its log is whole: {partition:?}");

    for boot in ["first", "second"] {
        cluster.kill(broker);
        cluster.broker_to_be(broker, "fenced").await;
        assert_eq!(only_partition(&cluster).await.elr, [broker], "while it is away nothing is known against it");
        cluster.boot(broker, boot);
        cluster.restart(broker);
        cluster.broker_to_be(broker, "unfenced").await;
        let partition = back_in_sync(&cluster, broker).await;
        assert_eq!(lost_trust(&partition), boot == "second", "after a start of boot {boot:?}: {partition:?}");
    }
}

/// Waits until the broker has caught up with the leader.
async fn back_in_sync(cluster: &Cluster, broker: i32) -> PartitionDescription {
    wait("the broker in the ISR", async || {
        Some(only_partition(cluster).await).filter(|partition| partition.isr.contains(&broker))
    })
    .await
}

async fn only_partition(cluster: &Cluster) -> PartitionDescription {
    cluster.topic("pairs").await.partitions.remove(0)
}
