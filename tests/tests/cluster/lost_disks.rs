//! Nodes whose disk has lost a part, or all, of what it held.

use std::collections::BTreeMap;
use std::fs;
use std::process::Command;

use quorate_client::Mode;
use quorate_proto::admin::{Assignment, ElectionKind, NewTopic, TopicPartition};
use quorate_proto::log::Record;
use quorate_tests::{Cluster, binary, new_topic, produce, wait};

const ACKS_ALL: i32 = -1;
const RECORDS: usize = 20;

/// Sends records to the leader of the topic's only partition; what was acknowledged, by offset.
async fn acknowledged(cluster: &Cluster, topic: &str) -> BTreeMap<i64, Vec<u8>> {
    let mut acknowledged = BTreeMap::new();
    for number in 0..RECORDS {
        let value = format!("record {number}").into_bytes();
        let produced = wait("the record to be taken", async || {
            let description = cluster.topic(topic).await;
            let mut log = cluster.log_of(description.partitions[0].leader?);
            let record = Record { value: Some(value.clone().into()), ..Record::default() };
            produce(&mut log, &description.id, ACKS_ALL, record).await.ok()
        })
        .await;
        acknowledged.insert(produced.base_offset, value);
    }
    acknowledged
}

async fn isr_of(cluster: &Cluster, topic: &str, replicas: usize) {
    wait("so many replicas to be in sync", async || {
        (cluster.topic(topic).await.partitions[0].isr.len() == replicas).then_some(())
    })
    .await;
}

#[tokio::test]
async fn a_partly_wiped_voter_is_refused_and_nothing_is_lost() {
    let mut cluster = Cluster::start(3).await;
    let active = cluster.active_controller().await;
    let (wiped, absent) = (cluster.others(active)[0], cluster.others(active)[1]);
    cluster.create(new_topic("before", 1, 3)).await;
    cluster.kill(absent);
    cluster.create(new_topic("acknowledged", 1, 2)).await;
    cluster.kill(wiped);
    cluster.kill(active);
    let data = cluster.data(wiped);
    for name in ["raft", "snapshots"] {
        fs::rename(data.join(name), cluster.file(name)).expect("the test's folder can be written");
    }
    cluster.restart(absent);
    let printed = cluster.run_again(wiped, &[]).refused("the partly wiped voter to be refused").await;
    assert!(printed.contains("VOTER_STATE_LOST") && printed.contains("is missing"), "{printed}");
    assert!(!data.join("raft").exists(), "a refused start makes no new log");

    // The others have a majority, and what was acknowledged.
    cluster.restart(active);
    wait("the topic to be there", async || cluster.topics().await.contains(&"acknowledged".to_owned()).then_some(()))
        .await;
    for name in ["raft", "snapshots"] {
        fs::rename(cluster.file(name), data.join(name)).expect("the test's folder can be written");
    }
    cluster.restart(wiped);
    cluster.ready().await;
    cluster.converged().await;
}

#[tokio::test]
async fn a_voter_with_a_lost_disk_is_replaced() {
    let mut cluster = Cluster::start(3).await;
    cluster.create(new_topic("before", 1, 3)).await;
    let written = acknowledged(&cluster, "before").await;
    let lost = cluster.standby().await;
    cluster.kill(lost);
    let old = cluster.file("old-disk");
    fs::rename(cluster.data(lost), &old).expect("the test's folder can be written");
    let mut format = Command::new(binary());
    format.arg("format").arg("--data").arg(cluster.data(lost)).args(["--node-id", &lost.to_string(), "--replacement"]);
    assert!(format.output().expect("the binary can be started").status.success());
    cluster.restart(lost);
    let client = cluster.client_of(&cluster.others(lost));
    let replaced = wait("the disk to be replaced", async || client.replace_voter(lost).await.ok()).await;
    let quorum = cluster.quorum_seen_by(cluster.active_controller().await).await.expect("it answers");
    let voter = quorum.voters.iter().find(|voter| voter.id == lost).expect("it is a voter");
    assert_eq!(voter.directory_id, replaced.directory_id);
    cluster.ready().await;
    cluster.converged().await;
    isr_of(&cluster, "before", 3).await;

    // The quorum is whole with it and one other.
    let other = cluster.others(lost).into_iter().next().expect("there are three");
    cluster.kill(other);
    cluster.create(new_topic("with-it", 1, 2)).await;
    let description = cluster.topic("before").await;
    let copy = wait("its copy to be whole", async || {
        let copy = cluster.committed(lost, &description.id, 0).await?;
        (copy.values().len() == written.len()).then_some(copy)
    })
    .await;
    assert_eq!(copy.values(), written);
    cluster.restart(other);
    cluster.ready().await;

    cluster.kill(lost);
    cluster.wipe(lost);
    fs::rename(old, cluster.data(lost)).expect("the test's folder can be written");
    let printed = cluster.run_again(lost, &[]).refused("the old disk to be refused").await;
    assert!(printed.contains("INVALID_VOTER_KEY"), "{printed}");
}

#[tokio::test]
async fn a_broker_with_an_empty_disk_leads_nothing_until_someone_accepts_the_loss() {
    let mut cluster = Cluster::start(3).await;
    let lost = cluster.standby().await;
    let assignment = vec![Assignment { partition: 0, replicas: vec![lost] }];
    cluster.create(NewTopic { name: "alone".to_owned(), assignment, ..NewTopic::default() }).await;
    acknowledged(&cluster, "alone").await;
    let first = cluster.broker_to_be(lost, "unfenced").await;
    cluster.kill(lost);
    fs::remove_dir_all(cluster.data(lost).join("logs")).expect("the test's folder can be written");
    cluster.restart(lost);
    wait("the broker to be back", async || {
        let broker = cluster.broker_seen(lost).await?;
        (broker.epoch > first.epoch && broker.state == "unfenced").then_some(())
    })
    .await;
    // It has been tried: the next controller tries again.
    cluster.kill(cluster.active_controller().await);
    cluster.active_controller().await;
    let partition = cluster.topic("alone").await.partitions.remove(0);
    assert_eq!(partition.leader, None, "{partition:?}");
    assert_eq!(partition.last_known_elr, [lost]);

    let client = cluster.client_of(&[lost]);
    let alone = vec![TopicPartition { topic: "alone".to_owned(), partition: 0 }];
    wait("an unclean election", async || {
        client.elect_leaders(ElectionKind::Unclean, Some(alone.clone()), Mode::Apply).await.ok()
    })
    .await;
    let partition = cluster.topic("alone").await.partitions.remove(0);
    assert_eq!(partition.leader, Some(lost));
    assert!(partition.history.iter().any(|change| change.unclean), "{partition:?}");
}

#[tokio::test]
async fn a_partition_whose_replicas_were_all_killed_is_led_again_and_has_all_records() {
    let mut cluster = Cluster::start(3).await;
    cluster.create(new_topic("orders", 1, 3)).await;
    let written = acknowledged(&cluster, "orders").await;
    for id in cluster.ids() {
        cluster.kill(id);
    }
    cluster.restart_all();
    cluster.ready().await;
    isr_of(&cluster, "orders", 3).await;
    let partition = cluster.topic("orders").await.partitions.remove(0);
    assert!(!partition.history.iter().any(|change| change.unclean), "{partition:?}");
    let leader = partition.leader.expect("it has all replicas in sync");
    let copy = cluster.committed(leader, &cluster.topic("orders").await.id, 0).await.expect("it leads");
    assert_eq!(copy.values(), written);
}
