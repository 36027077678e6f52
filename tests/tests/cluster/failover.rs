//! The active controller dies together with the broker beside it.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use quorate_client::{AdminClient, Mode, check_item};
use quorate_tests::{CALM, Cluster, beginning_of, new_topic, wait};

#[tokio::test]
async fn a_killed_controller_is_followed_and_its_partitions_have_new_leaders_from_the_isr() {
    let mut cluster = Cluster::start(3).await;
    cluster.create(new_topic("orders", 12, 3)).await;
    let killed = cluster.active_controller().await;
    let before = cluster.partitions().await;
    let led = before.iter().filter(|partition| partition.leader == Some(killed)).count();
    assert!(led > 0, "node {killed} leads something");
    let creator = Creator::start(cluster.client());

    cluster.kill(killed);
    wait("another controller", async || (cluster.active_controller().await != killed).then_some(())).await;
    cluster.broker_to_be(killed, "fenced").await;
    let after = cluster.partitions().await;
    for (before, after) in before.iter().zip(after.iter().filter(|partition| partition.topic == "orders")) {
        assert_eq!(before.partition, after.partition);
        assert!(!after.isr.contains(&killed), "a fenced broker is in no ISR: {after:?}");
        if before.leader == Some(killed) {
            let leader = after.leader.expect("two others are in sync");
            assert!(before.isr.contains(&leader) && after.isr.contains(&leader), "not from the ISR: {after:?}");
            assert!(after.leader_epoch > before.leader_epoch, "the leader epoch grows: {after:?}");
            assert_eq!(beginning_of(before.leader_epoch + 1, after).cause, format!("broker-fenced {killed}"));
        } else {
            assert_eq!(after.leader, before.leader, "nobody else loses a leadership");
            assert_eq!(after.leader_epoch, before.leader_epoch, "the ISR shrinks without a new leader epoch");
        }
    }

    cluster.restart(killed);
    cluster.broker_to_be(killed, "unfenced").await;
    let created = creator.stop().await;
    let topics = cluster.topics().await;
    assert!(!created.is_empty() && created.iter().all(|name| topics.contains(name)), "{created:?} of {topics:?}");
    cluster.converged().await;
}

#[tokio::test]
async fn a_killed_broker_that_is_not_the_controller_loses_its_leaderships_and_no_controller_changes() {
    let mut cluster = Cluster::start_with(3, CALM).await;
    cluster.create(new_topic("orders", 12, 3)).await;
    let active = cluster.active_controller().await;
    let epoch = cluster.quorum_seen_by(active).await.expect("it is up").epoch;
    let killed = cluster.others(active)[0];
    cluster.kill(killed);
    cluster.broker_to_be(killed, "fenced").await;
    for partition in cluster.partitions().await {
        assert!(partition.leader.is_some_and(|leader| leader != killed), "{partition:?}");
        assert!(!partition.isr.contains(&killed), "{partition:?}");
    }
    wait("the two others in sync", async || {
        cluster.partitions().await.iter().all(|partition| partition.isr.len() == 2).then_some(())
    })
    .await;
    let quorum = cluster.quorum_seen_by(active).await.expect("it is up");
    assert_eq!((quorum.leader_id, quorum.epoch), (Some(active), epoch), "nobody had a reason to elect");
}

/// Creates one topic after the other; each of them has to succeed.
struct Creator {
    stop: Arc<AtomicBool>,
    task: tokio::task::JoinHandle<Vec<String>>,
}

impl Creator {
    fn start(client: AdminClient) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let task = tokio::spawn(create_until(client, stop.clone()));
        Self { stop, task }
    }

    async fn stop(self) -> Vec<String> {
        self.stop.store(true, Ordering::Relaxed);
        self.task.await.expect("every topic is created")
    }
}

async fn create_until(client: AdminClient, stop: Arc<AtomicBool>) -> Vec<String> {
    let mut created = Vec::new();
    while !stop.load(Ordering::Relaxed) {
        let name = format!("meanwhile-{}", created.len());
        let reply = client.create_topics(vec![new_topic(&name, 1, 2)], Mode::Apply).await;
        let reply = reply.unwrap_or_else(|error| panic!("create {name}: {error}"));
        check_item(reply.topics[0].error.as_ref()).unwrap_or_else(|error| panic!("create {name}: {error}"));
        created.push(name);
    }
    created
}
