//! Compacted topics: the last value of each key is there on every replica, whoever leads, and however old it is.

use std::collections::BTreeMap;

use quorate_metadata::ErrorName;
use quorate_proto::admin::NewTopic;
use quorate_proto::log::Record;
use quorate_tests::{Cluster, Committed, new_topic, produce, wait};

const KEYS: u8 = 4;

/// With segments of a few records, of which retention would leave nothing.
fn compacted(name: &str, replicas: i32) -> NewTopic {
    let configs = [
        ("cleanup.policy", "compact"),
        ("segment.bytes", "300"),
        ("min.cleanable.dirty.ratio", "0"),
        ("retention.ms", "1"),
        ("delete.retention.ms", "1"),
    ];
    let configs = configs.map(|(key, value)| (key.to_owned(), value.to_owned())).into();
    NewTopic { configs, ..new_topic(name, 1, replicas) }
}

fn record(key: u8, value: Option<&str>) -> Record {
    let value = value.map(|value| value.to_owned().into());
    Record { key: Some(vec![key].into()), value, ..Record::default() }
}

const TOPIC: &str = "accounts";

/// The offset of the record, when whoever leads has taken it.
async fn put(cluster: &Cluster, key: u8, value: Option<&str>) -> i64 {
    wait("the record to be taken", async || {
        let topic = cluster.topic(TOPIC).await;
        let mut log = cluster.log_of(topic.partitions[0].leader?);
        produce(&mut log, &topic.id, -1, record(key, value)).await.ok()
    })
    .await
    .base_offset
}

/// A few values for each key, of which the last one is returned.
async fn put_all(cluster: &Cluster, round: u32) -> BTreeMap<u8, String> {
    let mut last = BTreeMap::new();
    for number in 0..8 {
        for key in 0..KEYS {
            let value = format!("{round}-{number}");
            put(cluster, key, Some(&value)).await;
            last.insert(key, value);
        }
    }
    last
}

fn values(committed: &Committed) -> BTreeMap<u8, String> {
    let mut values = BTreeMap::new();
    for record in committed.records().into_values() {
        let key = record.key.as_ref().expect("each has a key")[0];
        match record.value {
            Some(value) => values.insert(key, String::from_utf8_lossy(&value).into_owned()),
            None => values.remove(&key),
        };
    }
    values
}

/// Waits until each replica has only a few records, and the last value of each key.
async fn compacted_to(cluster: &Cluster, topic_id: &str, expected: &BTreeMap<u8, String>) {
    for id in cluster.running() {
        let why = format!("the log on {id} to be compacted");
        wait(&why, async || {
            let committed = cluster.committed(id, topic_id, 0).await?;
            // The keys once, and what the active segment has.
            let is_small = committed.records().len() < usize::from(KEYS) * 3;
            (is_small && committed.log_start == 0 && values(&committed) == *expected).then_some(())
        })
        .await;
    }
}

#[tokio::test]
async fn the_last_value_of_each_key_survives_a_failover() {
    let mut cluster = Cluster::start(3).await;
    let id = cluster.create(compacted(TOPIC, 3)).await.id;
    let last = put_all(&cluster, 1).await;
    compacted_to(&cluster, &id, &last).await;

    let first = cluster.topic(TOPIC).await.partitions[0].leader.expect("it has a leader");
    cluster.kill(first);
    let mut last = put_all(&cluster, 2).await;
    put(&cluster, 0, None).await;
    last.remove(&0);
    compacted_to(&cluster, &id, &last).await;

    // It comes back to a log with gaps, in which the last of what it has may be missing.
    cluster.restart(first);
    cluster.ready().await;
    last.extend(put_all(&cluster, 3).await);
    put(&cluster, 0, None).await;
    last.remove(&0);
    compacted_to(&cluster, &id, &last).await;
}

#[tokio::test]
async fn a_record_without_a_key_is_refused_by_a_compacted_topic() {
    let cluster = Cluster::start(3).await;
    let id = cluster.create(compacted(TOPIC, 3)).await.id;
    let first = put(&cluster, 1, Some("x")).await;
    let refused = wait("the record to be refused", async || {
        let mut log = cluster.log_of(cluster.topic(TOPIC).await.partitions[0].leader?);
        let without = Record { value: Some("x".into()), ..Record::default() };
        let refused = produce(&mut log, &id, -1, without).await.expect_err("it has no key");
        (refused.name != ErrorName::NotLeaderOrFollower).then_some(refused)
    })
    .await;
    assert_eq!(refused.name, ErrorName::InvalidRecord);
    assert_eq!(put(&cluster, 1, Some("y")).await, first + 1, "nothing was appended");
}
