//! What is acknowledged survives: the logs of all replicas are the same, byte for byte, after whatever has happened.

use quorate_client::log::{Acks, ProducerOptions};
use quorate_proto::admin::NewTopic;
use quorate_proto::log::Record;
use quorate_tests::{Account, Cluster, Load, Log, new_topic, wait};
use tokio::task::JoinSet;

/// Two in-sync replicas are enough, and one is not.
fn durable(name: &str, partitions: i32) -> NewTopic {
    let configs = [("min.insync.replicas".to_owned(), "2".to_owned())].into();
    NewTopic { configs, ..new_topic(name, partitions, 3) }
}

/// Waits until so many more records have been committed.
async fn committed_more(cluster: &Cluster, topic: &str, more: i64) {
    let count = async || {
        let described = cluster.topic(topic).await;
        let mut sum = 0;
        for partition in &described.partitions {
            let leader = partition.leader?;
            let replicas = cluster.replicas_on(leader).await?.replicas;
            let replica =
                replicas.iter().find(|at| at.topic_id == described.id && at.partition == partition.partition)?;
            sum += replica.high_watermark;
        }
        Some(sum)
    };
    let before = wait("the high watermarks", &count).await;
    wait("more records to be committed", async || count().await.filter(|now| *now >= before + more)).await;
}

async fn check(cluster: &Cluster, topic: &str, account: &Account) {
    assert!(account.failed.is_empty(), "no produce may fail with default retries: {:?}", account.failed);
    account.check(&cluster.identical_logs(topic).await);
}

#[tokio::test]
async fn a_killed_leader_loses_nothing_that_was_acknowledged() {
    let mut cluster = Cluster::start(3).await;
    cluster.create(durable("orders", 3)).await;
    let load = Load::start(&cluster, "orders");
    committed_more(&cluster, "orders", 50).await;
    let killed = cluster.topic("orders").await.partitions[0].leader.expect("all are up");
    cluster.kill(killed);
    committed_more(&cluster, "orders", 50).await;
    cluster.restart(killed);
    cluster.ready().await;
    committed_more(&cluster, "orders", 50).await;
    check(&cluster, "orders", &load.stop().await).await;
}

#[tokio::test]
async fn a_killed_follower_comes_back_with_the_same_log() {
    let mut cluster = Cluster::start(3).await;
    cluster.create(durable("orders", 1)).await;
    let load = Load::start(&cluster, "orders");
    committed_more(&cluster, "orders", 50).await;
    let leader = cluster.topic("orders").await.partitions[0].leader.expect("all are up");
    let follower = cluster.ids().into_iter().find(|id| *id != leader).expect("there are three");
    cluster.kill(follower);
    committed_more(&cluster, "orders", 50).await;
    cluster.restart(follower);
    wait("the follower back in the isr", async || {
        cluster.topic("orders").await.partitions[0].isr.contains(&follower).then_some(())
    })
    .await;
    check(&cluster, "orders", &load.stop().await).await;
}

#[tokio::test]
async fn two_brokers_killed_at_once_stop_the_writes_and_lose_nothing() {
    let mut cluster = Cluster::start(5).await;
    cluster.create(durable("orders", 4)).await;
    let load = Load::start(&cluster, "orders");
    committed_more(&cluster, "orders", 50).await;
    let replicas = cluster.topic("orders").await.partitions[0].replicas.clone();
    cluster.kill(replicas[0]);
    cluster.kill(replicas[1]);
    for id in &replicas[..2] {
        cluster.broker_to_be(*id, "fenced").await;
    }
    cluster.restart_all();
    cluster.ready().await;
    committed_more(&cluster, "orders", 50).await;
    check(&cluster, "orders", &load.stop().await).await;
}

/// The last replica standing (KIP-966): what it had committed was on another one as well.
#[tokio::test]
async fn the_last_replica_standing_goes_and_comes_back_unclean() {
    let mut cluster = Cluster::start_on_own_machines(5).await;
    cluster.create(durable("orders", 1)).await;
    let load = Load::start(&cluster, "orders");
    committed_more(&cluster, "orders", 50).await;
    for _ in 0..2 {
        let leader = wait("a leader", async || cluster.topic("orders").await.partitions[0].leader).await;
        cluster.kill(leader);
        cluster.broker_to_be(leader, "fenced").await;
    }
    let last = wait("the last one standing", async || cluster.topic("orders").await.partitions[0].leader).await;
    cluster.kill(last);
    cluster.boot(last, "second");
    cluster.restart_all();
    cluster.ready().await;
    committed_more(&cluster, "orders", 50).await;
    check(&cluster, "orders", &load.stop().await).await;
}

#[tokio::test]
async fn a_rolling_restart_fails_no_produce() {
    let mut cluster = Cluster::start(3).await;
    cluster.create(durable("orders", 6)).await;
    let load = Load::start(&cluster, "orders");
    for id in cluster.ids() {
        committed_more(&cluster, "orders", 50).await;
        assert!(cluster.stop(id).await.success());
        committed_more(&cluster, "orders", 50).await;
        cluster.restart(id);
        cluster.ready().await;
        wait("every replica in sync", async || {
            let topic = cluster.topic("orders").await;
            topic.partitions.iter().all(|partition| partition.isr.len() == 3).then_some(())
        })
        .await;
    }
    let account = load.stop().await;
    println!("longest gap between acknowledgements: {:?}", account.longest_gap);
    check(&cluster, "orders", &account).await;
}

#[tokio::test]
async fn a_topic_created_again_while_a_broker_was_away_has_nothing_of_the_old_one() {
    let mut cluster = Cluster::start(3).await;
    let first = cluster.create(durable("orders", 2)).await.id;
    let load = Load::start(&cluster, "orders");
    committed_more(&cluster, "orders", 50).await;
    load.stop().await;
    cluster.kill(3);
    cluster.broker_to_be(3, "fenced").await;
    cluster.delete("orders").await;
    let second = cluster.create(NewTopic { replication_factor: Some(2), ..durable("orders", 2) }).await.id;
    assert_ne!(first, second);
    let load = Load::start(&cluster, "orders");
    committed_more(&cluster, "orders", 50).await;
    cluster.set(3, "stray_grace_ms", "100");
    cluster.restart(3);
    cluster.ready().await;
    wait("the replicas of the deleted topic to be gone", async || {
        for id in cluster.ids() {
            let replicas = cluster.replicas_on(id).await?.replicas;
            if replicas.iter().any(|replica| replica.topic_id == first) {
                return None;
            }
        }
        Some(())
    })
    .await;
    check(&cluster, "orders", &load.stop().await).await;
}

/// One record straight to one broker: the leader epoch that acknowledged it, or why not.
async fn produce(broker: &mut Log, topic_id: &str, acks: i32, value: &str) -> Result<i32, String> {
    let record = Record { value: Some(value.as_bytes().to_vec().into()), ..Record::default() };
    let produced = quorate_tests::produce(broker, topic_id, acks, record).await;
    produced.map(|produced| produced.leader_epoch).map_err(|error| error.to_string())
}

/// Nothing may be acknowledged by a leader that others have replaced.
#[tokio::test]
async fn a_paused_leader_acknowledges_nothing_when_it_wakes_up() {
    let mut cluster = Cluster::start(3).await;
    let id = cluster.create(durable("orders", 1)).await.id;
    let (paused, epoch, connected) = wait("a leader that is no controller, and takes records", async || {
        let active = cluster.active_controller().await;
        let leader = cluster.topic("orders").await.partitions[0].leader?;
        if leader == active {
            cluster.pause(leader);
            cluster.broker_to_be(leader, "fenced").await;
            cluster.resume(leader);
            cluster.broker_to_be(leader, "unfenced").await;
            return None;
        }
        let mut connected = cluster.log_of(leader);
        let epoch = produce(&mut connected, &id, 1, "before the pause").await.ok()?;
        Some((leader, epoch, connected))
    })
    .await;
    let durable_load = Load::start(&cluster, "orders");
    let options = ProducerOptions { acks: Acks::Leader, idempotent: false, ..ProducerOptions::default() };
    let loose_load = Load::start_with(&cluster, "orders", "loose", options);
    committed_more(&cluster, "orders", 50).await;
    cluster.pause(paused);
    cluster.broker_to_be(paused, "fenced").await;
    // They wait in its sockets, and are the first that it sees when it wakes up.
    let mut late = JoinSet::new();
    for number in 0..20 {
        let (mut connected, id) = (connected.clone(), id.clone());
        let acks = if number % 2 == 0 { 1 } else { -1 };
        let value = format!("late {number}");
        late.spawn(async move { (produce(&mut connected, &id, acks, &value).await, value) });
    }
    committed_more(&cluster, "orders", 50).await;
    cluster.resume(paused);
    let late = late.join_all().await;
    cluster.broker_to_be(paused, "unfenced").await;
    wait("the paused leader back in the isr", async || {
        cluster.topic("orders").await.partitions[0].isr.contains(&paused).then_some(())
    })
    .await;
    let (account, loose) = (durable_load.stop().await, loose_load.stop().await);
    assert!(account.failed.is_empty(), "{:?}", account.failed);
    assert!(!loose.acknowledged.is_empty());
    let logs = cluster.identical_logs("orders").await;
    let values: Vec<String> =
        logs[0].values().into_values().map(|value| String::from_utf8(value).expect("texts")).collect();
    for (answer, value) in late {
        match answer {
            Ok(acknowledged_at) => assert!(acknowledged_at > epoch, "{value:?} was acknowledged after the fencing"),
            Err(_) => assert!(!values.contains(&value), "{value:?} was refused, and is there"),
        }
    }
    for value in account.acknowledged.keys() {
        assert!(values.contains(value), "{value:?} was acknowledged by all in-sync replicas, and is lost");
    }
}
