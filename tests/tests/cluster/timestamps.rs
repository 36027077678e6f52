//! The times of records: what a producer may say, what the topic makes of it, and what retention believes.

use quorate_client::{Mode, check_item, world};
use quorate_metadata::ErrorName;
use quorate_proto::admin::{ConfigAlteration, ConfigChange, ConfigOp, ConfigResource, NewTopic, config_resource};
use quorate_proto::log::Record;
use quorate_tests::{Cluster, Log, new_topic, produce, wait};

const DAY_MS: i64 = 24 * 60 * 60 * 1_000;

/// With a segment for each record.
fn of_small_segments(name: &str) -> NewTopic {
    let configs = [("segment.bytes".to_owned(), "14".to_owned())].into();
    NewTopic { configs, ..new_topic(name, 1, 3) }
}

fn record(timestamp_ms: Option<i64>) -> Record {
    Record { value: Some("x".into()), timestamp_ms, ..Record::default() }
}

/// The leader of the only partition, when it takes records.
async fn leader(cluster: &Cluster, topic: &str) -> (i32, Log) {
    wait("a leader", async || {
        let leader = cluster.topic(topic).await.partitions[0].leader?;
        Some((leader, cluster.log_of(leader)))
    })
    .await
}

/// When the leader has taken the first one of them.
async fn produced(log: &mut Log, topic_id: &str, timestamp_ms: Option<i64>) -> i64 {
    let taken = async || produce(&mut log.clone(), topic_id, -1, record(timestamp_ms)).await.ok();
    wait("the record to be taken", taken).await.base_offset
}

async fn set(cluster: &Cluster, topic: &str, key: &str, value: &str) {
    let resource = ConfigResource { resource: Some(config_resource::Resource::Topic(topic.to_owned())) };
    let change = ConfigChange {
        key: key.to_owned(),
        op: ConfigOp::Set.into(),
        value: value.to_owned(),
        ..ConfigChange::default()
    };
    let alteration = ConfigAlteration { resource: Some(resource), changes: vec![change] };
    let reply = cluster.client().alter_configs(vec![alteration], Mode::Apply).await.expect("it is answered");
    check_item(reply.resources[0].error.as_ref()).expect("the value is valid");
}

#[tokio::test]
async fn a_record_without_a_time_has_the_time_of_its_append_and_stays() {
    let cluster = Cluster::start(3).await;
    let before_ms = world::wall_ms();
    let id = cluster.create(of_small_segments("orders")).await.id;
    let (leader, mut log) = leader(&cluster, "orders").await;
    let old = produced(&mut log, &id, Some(before_ms - 8 * DAY_MS)).await;
    let fresh = produced(&mut log, &id, None).await;
    let old_again = produced(&mut log, &id, Some(before_ms - 8 * DAY_MS)).await;
    assert_eq!((fresh, old_again), (old + 1, old + 2));
    let committed = wait("retention to take the first one", async || {
        cluster.committed(leader, &id, 0).await.filter(|committed| committed.log_start > old)
    })
    .await;
    assert_eq!(committed.log_start, fresh, "it has no older record");
    let records = committed.records();
    let timestamp_ms = records[&fresh].timestamp_ms();
    assert!((before_ms..=world::wall_ms()).contains(&timestamp_ms), "{timestamp_ms}");
    assert!(records.contains_key(&old_again), "the active segment was appended to a moment ago");
}

#[tokio::test]
async fn a_time_beyond_the_bounds_is_refused_by_name() {
    let cluster = Cluster::start(3).await;
    let id = cluster.create(new_topic("orders", 1, 3)).await.id;
    let (leader, mut log) = leader(&cluster, "orders").await;
    let first = produced(&mut log, &id, None).await;
    let now_ms = world::wall_ms();
    for timestamp_ms in [i64::MIN, -1, now_ms + 2 * DAY_MS, i64::MAX] {
        let refused = produce(&mut log, &id, -1, record(Some(timestamp_ms))).await.expect_err("it is no such time");
        assert_eq!(refused.name, ErrorName::InvalidTimestamp, "{timestamp_ms}");
    }
    set(&cluster, "orders", "message.timestamp.before.max.ms", "3600000").await;
    wait("the bound to be known", async || {
        let refused = produce(&mut log.clone(), &id, -1, record(Some(now_ms - DAY_MS))).await.err()?;
        (refused.name == ErrorName::InvalidTimestamp).then_some(())
    })
    .await;
    set(&cluster, "orders", "message.timestamp.type", "LogAppendTime").await;
    let taken = produced(&mut log, &id, Some(now_ms + 3_650 * DAY_MS)).await;
    assert!(taken > first);
    let committed = wait("it to be committed", async || {
        cluster.committed(leader, &id, 0).await.filter(|committed| committed.high_watermark > taken)
    })
    .await;
    let timestamp_ms = committed.records()[&taken].timestamp_ms();
    assert!((now_ms..=world::wall_ms()).contains(&timestamp_ms), "{timestamp_ms}");
}
