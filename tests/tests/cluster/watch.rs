//! The feed: committed records, in order, without gap or repeat, from whichever node (P6, P7).

use quorate_metadata::ids::TopicId;
use quorate_proto::admin::{Assignment, NewTopic};
use quorate_proto::broker::WatchRequest;
use quorate_proto::broker::watch_event::Event;
use quorate_proto::metadata;
use quorate_proto::metadata::record::Record;
use quorate_tests::{Cluster, Follower, MAX_LEVEL, new_topic, next, outcome, refusal, wait};

#[tokio::test]
async fn a_feed_that_goes_on_at_another_node_leads_to_the_same_digest() {
    let mut cluster = Cluster::start(3).await;
    cluster.create(new_topic("before", 5, 3)).await;
    let served_by = cluster.active_controller().await;
    let mut follower = Follower::default();
    for round in 0..5 {
        let name = format!("first-{round}");
        cluster.create(new_topic(&name, 2, 3)).await;
        follower.follow(cluster.broker(served_by), |image| image.topic_named(&name).is_some()).await;
    }
    cluster.kill(served_by);
    cluster.broker_to_be(served_by, "fenced").await;
    for round in 0..5 {
        cluster.create(new_topic(format!("second-{round}"), 2, 3)).await;
    }
    for id in cluster.running() {
        cluster.create(new_topic(format!("seen-by-{id}"), 1, 1)).await;
        let offset = cluster.converged().await.0;
        follower.follow_to(cluster.broker(id), offset).await;
    }
    cluster.restart(served_by);
    cluster.ready().await;
    assert!(follower.records_seen > 0);
    agrees_with_every_node(&mut follower, &cluster).await;
}

#[tokio::test]
async fn a_feed_that_is_open_while_things_happen_sees_each_of_them() {
    let mut cluster = Cluster::start(3).await;
    let served_by = cluster.standby().await;
    let killed = cluster.running().into_iter().find(|id| *id != served_by).expect("two others");
    let node = cluster.broker(served_by);
    let following = tokio::spawn(async move {
        let mut follower = Follower::default();
        follower.follow(node, |image| image.topic_named("round-9").is_some()).await;
        follower
    });
    for round in 0..10 {
        cluster.create(new_topic(format!("round-{round}"), 4, 3)).await;
        if round == 5 {
            cluster.kill(killed);
            cluster.broker_to_be(killed, "fenced").await;
        }
    }
    let mut follower = following.await.expect("the feed keeps its promises");
    agrees_with_every_node(&mut follower, &cluster).await;
}

/// Catches up with each running node in turn, and compares digests where the offsets are the same.
async fn agrees_with_every_node(follower: &mut Follower, cluster: &Cluster) {
    wait("every node where the follower is", async || {
        for id in cluster.running() {
            agrees_with(follower, cluster, id).await?;
        }
        Some(())
    })
    .await;
}

/// Nothing where one of them has gone on meanwhile, or the node is not yet where the follower is.
async fn agrees_with(follower: &mut Follower, cluster: &Cluster, id: i32) -> Option<()> {
    let quorum = cluster.quorum_seen_by(id).await?;
    if quorum.metadata_offset < follower.next_offset() {
        return None;
    }
    follower.follow_to(cluster.broker(id), quorum.metadata_offset).await;
    if quorum.metadata_offset != follower.next_offset() {
        return None;
    }
    assert_eq!(quorum.digest, follower.digest(), "node {id} at offset {}", quorum.metadata_offset);
    Some(())
}

#[tokio::test]
async fn a_feed_for_one_broker_or_topic_has_its_partitions_and_no_others() {
    let cluster = Cluster::start(3).await;
    let (from, _) = cluster.converged().await;
    let mine = cluster.create(hosted_by("mine", 1)).await.id;
    let others = cluster.create(hosted_by("others", 2)).await.id;
    let (until, _) = cluster.converged().await;
    let of_broker = WatchRequest { broker: Some(1), max_level: MAX_LEVEL, ..WatchRequest::default() };
    let of_topic = WatchRequest { topics: vec![mine.clone()], max_level: MAX_LEVEL, ..WatchRequest::default() };
    for request in [of_broker, of_topic] {
        let followed = topics_from(&cluster, WatchRequest { from_offset: Some(from), ..request.clone() }, until).await;
        assert!(followed.contains(&mine) && !followed.contains(&others), "{mine} and not {others}: {followed:?}");
        assert_eq!(topics_of_snapshot(&cluster, request).await, std::slice::from_ref(&mine));
    }
}

/// The topics whose partitions are created in the feed before `until`.
async fn topics_from(cluster: &Cluster, request: WatchRequest, until: i64) -> Vec<String> {
    let mut reached = request.from_offset.expect("it is asked for from an offset on");
    let mut feed = outcome(cluster.broker(3).watch(request)).await.expect("the feed is served");
    let mut topics = Vec::new();
    while reached < until {
        match next(&mut feed).await {
            Event::Records(batch) => {
                reached = batch.next_offset;
                topics.extend(batch.records.into_iter().filter_map(|record| created_in(record.record?)));
            }
            Event::Bookmark(bookmark) => reached = bookmark.next_offset,
            Event::Snapshot(_) => panic!("asked for records from an offset on"),
        }
    }
    topics
}

/// The topics whose partitions are in a snapshot of one part.
async fn topics_of_snapshot(cluster: &Cluster, request: WatchRequest) -> Vec<String> {
    let mut feed = outcome(cluster.broker(3).watch(request)).await.expect("the feed is served");
    let Event::Snapshot(part) = next(&mut feed).await else { panic!("the snapshot comes first") };
    assert!(part.last && part.digest.is_empty(), "a part of the image has no digest");
    part.records.into_iter().filter_map(created_in).collect()
}

/// The topic in which a record creates a partition.
fn created_in(record: metadata::Record) -> Option<String> {
    match record.record? {
        Record::CreatePartition(partition) => Some(topic_id(&partition.topic)),
        _ => None,
    }
}

fn hosted_by(name: &str, broker: i32) -> NewTopic {
    let assignment = vec![Assignment { partition: 0, replicas: vec![broker] }];
    NewTopic { name: name.to_owned(), assignment, ..NewTopic::default() }
}

fn topic_id(bytes: &[u8]) -> String {
    let bytes = bytes.try_into().expect("an id has 16 bytes");
    TopicId::new(uuid::Uuid::from_bytes(bytes)).to_string()
}

#[tokio::test]
async fn what_is_no_longer_kept_is_refused_instead_of_left_out() {
    let settings = [("snapshot_log_bytes", "20000"), ("log_entries_kept", "5")];
    let mut cluster = Cluster::start_with(3, &settings).await;
    let id = cluster.standby().await;
    let mut count = 0;
    wait("a snapshot", async || {
        count += 1;
        cluster.create(new_topic(format!("topic-{count}"), 10, 3)).await;
        cluster.printed(id).contains("snapshot written").then_some(())
    })
    .await;
    cluster.kill(id);
    cluster.restart(id);
    cluster.ready().await;
    let from = |offset| WatchRequest { from_offset: Some(offset), max_level: MAX_LEVEL, ..WatchRequest::default() };
    let far = cluster.converged().await.0 + 1_000_000;
    assert_eq!(refusal(cluster.broker(id).watch(from(0))).await, "RESYNC_REQUIRED");
    assert_eq!(refusal(cluster.broker(id).watch(from(far))).await, "RESYNC_REQUIRED");
    // A snapshot does. The replicas of the node are still joining the ISR meanwhile.
    wait("a snapshot of where the node is", async || agrees_with(&mut Follower::default(), &cluster, id).await).await;
}
