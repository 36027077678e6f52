//! A broker with several log directories: one that fails takes its replicas with it, and nothing else.

use quorate_client::Mode;
use quorate_client::log::{ProducedRecord, Producer, ProducerOptions};
use quorate_metadata::ErrorName;
use quorate_proto::admin::{MoveReplicaRequest, NewTopic, PartitionDescription, TopicPartition};
use quorate_tests::{Cluster, Load, new_topic, wait};

/// So many that none of two directories stays empty: where a replica goes is drawn by the ids of topic and directory.
const PARTITIONS: u16 = 24;

/// Three nodes, of which the first has two log directories.
async fn cluster() -> Cluster {
    let mut cluster = Cluster::prepare(3, &[]).await;
    let paths = ["first", "second"].map(|name| cluster.file(name).display().to_string());
    cluster.set(1, "log_dirs", &paths.join(","));
    cluster.restart_all();
    cluster.ready().await;
    let configs = [("min.insync.replicas".to_owned(), "2".to_owned())].into();
    cluster.create(NewTopic { configs, ..new_topic("orders", PARTITIONS.into(), 3) }).await;
    cluster
}

/// The directory of each partition's replica on node 1.
async fn places(cluster: &Cluster) -> Vec<String> {
    let topic = cluster.topic("orders").await;
    wait("node 1 to have its replicas", async || {
        let described = cluster.replicas_on(1).await?;
        let mut of_topic: Vec<_> = described.replicas.into_iter().filter(|at| at.topic_id == topic.id).collect();
        of_topic.sort_by_key(|at| at.partition);
        (of_topic.len() == usize::from(PARTITIONS)).then(|| of_topic.into_iter().map(|at| at.directory).collect())
    })
    .await
}

/// Fills what a directory keeps in memory, so that it has to make a file.
async fn write_much(cluster: &Cluster, partitions: &[i32]) {
    let addresses: Vec<String> = cluster.ids().iter().map(|id| cluster.api(*id).to_owned()).collect();
    let producer = Producer::start(&addresses, ProducerOptions::default()).expect("the addresses are well formed");
    let mut deliveries = Vec::new();
    for partition in partitions.iter().cycle().take(50) {
        let record = ProducedRecord { value: Some(vec![b'x'; 900_000].into()), ..ProducedRecord::default() };
        deliveries.push(producer.send("orders", Some(*partition), record).await.expect("the producer runs"));
    }
    for delivery in deliveries {
        delivery.acknowledged().await.expect("two replicas take it");
    }
}

#[tokio::test]
async fn a_failed_directory_takes_only_its_replicas_away() {
    let mut cluster = cluster().await;
    let places = places(&cluster).await;
    let directories = cluster.replicas_on(1).await.expect("it runs").directories;
    let [lost, kept] = &directories[..] else { panic!("two directories: {directories:?}") };
    let partitions_in = |directory: &str| -> Vec<i32> {
        (0..PARTITIONS.into()).zip(&places).filter(|(_, at)| *at == directory).map(|(partition, _)| partition).collect()
    };
    let (gone, stay) = (partitions_in(&lost.id), partitions_in(&kept.id));
    assert!(!gone.is_empty() && !stay.is_empty(), "the replicas are spread: {places:?}");

    let load = Load::start(&cluster, "orders");
    std::fs::remove_dir_all(&lost.path).expect("the disk can be pulled out");
    write_much(&cluster, &gone).await;
    wait("the failed directory to be out of the registration", async || {
        let broker = cluster.broker_seen(1).await?;
        (broker.directories == [kept.id.clone()] && broker.state == "unfenced").then_some(())
    })
    .await;
    wait("only what was there to leave the ISR", async || {
        let partitions = cluster.topic("orders").await.partitions;
        let is_right = |at: &PartitionDescription| {
            let is_gone = gone.contains(&at.partition);
            at.isr.contains(&1) != is_gone && !(is_gone && at.leader == Some(1)) && at.leader.is_some()
        };
        partitions.iter().all(is_right).then_some(())
    })
    .await;

    // Another disk in its place: what was on the old one is fetched anew, into the directories that there are.
    cluster.stop(1).await;
    cluster.restart(1);
    wait("node 1 back in every ISR", async || {
        let partitions = cluster.topic("orders").await.partitions;
        partitions.iter().all(|at| at.isr.contains(&1)).then_some(())
    })
    .await;
    let account = load.stop().await;
    assert!(account.failed.is_empty(), "{:?}", account.failed);
    let logs = cluster.identical_logs("orders").await;
    for (value, (partition, offset)) in &account.acknowledged {
        let at = usize::try_from(*partition).expect("it is not negative");
        let found = offset.and_then(|offset| logs[at].values().remove(&offset));
        assert_eq!(found.as_deref(), Some(value.as_bytes()), "{value:?} is lost");
    }
}

#[tokio::test]
async fn a_replica_moves_to_another_directory_and_has_everything_there() {
    let cluster = cluster().await;
    let load = Load::start(&cluster, "orders");
    let before = places(&cluster).await;
    let directories = cluster.replicas_on(1).await.expect("it runs").directories;
    for (partition, from) in (0..PARTITIONS.into()).zip(&before) {
        let to = directories.iter().find(|directory| directory.id != *from).expect("there are two");
        let request = MoveReplicaRequest {
            partition: Some(TopicPartition { topic: "orders".to_owned(), partition }),
            broker: 1,
            directory: to.id.clone(),
            ..MoveReplicaRequest::default()
        };
        wait("the two others to be in sync", async || {
            let Err(error) = cluster.client().move_replica(request.clone(), Mode::Apply).await else { return Some(()) };
            assert_eq!(error.name(), ErrorName::NotEnoughReplicas, "{error}");
            None
        })
        .await;
    }
    wait("every replica in the other directory, and in sync", async || {
        let partitions = cluster.topic("orders").await.partitions;
        let now = places(&cluster).await;
        let moved = now.iter().zip(&before).all(|(now, before)| now != before);
        (moved && partitions.iter().all(|at| at.isr.contains(&1))).then_some(())
    })
    .await;
    let account = load.stop().await;
    assert!(account.failed.is_empty(), "{:?}", account.failed);
    account.check(&cluster.identical_logs("orders").await);
}
