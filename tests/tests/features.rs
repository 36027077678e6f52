//! A cluster whose nodes run different releases, through an upgrade.
//!
//! The earlier release is this one, made to support `metadata.version` up to one level less.

use quorate_client::{ClientError, Freshness, Mode};
use quorate_metadata::image::LEVEL_HIGHEST;
use quorate_proto::admin::{
    FeatureDescription, FeatureUpdate, ReadOptions, SupportedLevels, UpdateFeaturesReply, UpgradeType,
};
use quorate_proto::broker::watch_event::Event;
use quorate_proto::broker::{RegisterRequest, WatchEvent, WatchRequest};
use quorate_proto::error::from_status;
use quorate_proto::metadata::Probe;
use quorate_proto::metadata::record::Record;
use quorate_tests::{Cluster, MAX_LEVEL, PATIENCE, new_topic, next, outcome, refusal, registration, wait};
use tokio::time::timeout;
use tonic::Streaming;

const METADATA_VERSION: &str = "metadata.version";

/// The level before the newest one.
const EARLIER: i16 = NEWEST - 1;
const NEWEST: i16 = LEVEL_HIGHEST;

const NO_PROBE: Option<Probe> = Some(Probe { endpoint: None });

#[tokio::test]
async fn a_mixed_cluster_is_upgraded_when_its_last_node_is_replaced() {
    let mut cluster = Cluster::prepare(3, &[]).await;
    cluster.set_level_max(3, Some(EARLIER));
    cluster.restart_all();
    cluster.ready().await;
    begins_at_the_level_of_all(&cluster).await;
    let follower = open_feed(&cluster, Some(EARLIER.into())).await;
    is_refused_for_node_3(&cluster).await;
    needs_the_newest_level(&cluster).await;
    works(&mut cluster, "mixed").await;

    cluster.stop(3).await;
    cluster.set_level_max(3, None);
    cluster.restart(3);
    cluster.ready().await;
    // A node that is replaced is not upgraded to: that is for people to decide.
    assert_eq!(finalized(&cluster).await, EARLIER);
    let planned = update(&cluster, NEWEST, UpgradeType::Upgrade, Mode::PlanOnly).await.expect("all support it");
    assert_eq!(planned.result.expect("there is a result").planned.len(), 1);
    assert_eq!(finalized(&cluster).await, EARLIER, "a plan changes nothing");
    let updated = update(&cluster, NEWEST, UpgradeType::Upgrade, Mode::Apply).await.expect("all support it");
    assert_eq!((updated.features[0].from, updated.features[0].to), (i32::from(EARLIER), i32::from(NEWEST)));
    works(&mut cluster, "upgraded").await;
    has_the_newest_level(&cluster).await;
    is_at_on_every_node(&cluster, NEWEST).await;

    ends_at_the_level_it_does_not_understand(follower).await;
    new_feeds_are_gated(&cluster).await;
    is_not_lowered(&cluster).await;
    an_earlier_release_stops_by_name(&mut cluster).await;
    works(&mut cluster, "afterwards").await;
}

#[tokio::test]
async fn a_cluster_of_one_release_begins_at_its_newest_level() {
    let cluster = Cluster::start(3).await;
    assert_eq!(finalized(&cluster).await, NEWEST);
    let rows = [
        (vec![], "INVALID_REQUEST"),
        (vec![feature("no.such.feature", 1, UpgradeType::Upgrade)], "INVALID_UPDATE_VERSION"),
        (vec![feature(METADATA_VERSION, 99, UpgradeType::Upgrade)], "INVALID_UPDATE_VERSION"),
        (vec![feature(METADATA_VERSION, -1, UpgradeType::Upgrade)], "INVALID_UPDATE_VERSION"),
        (vec![feature(METADATA_VERSION, i32::MAX, UpgradeType::Upgrade)], "INVALID_REQUEST"),
        (vec![feature(METADATA_VERSION, 1, UpgradeType::Unspecified)], "INVALID_REQUEST"),
        (vec![feature(METADATA_VERSION, 1, UpgradeType::Upgrade)], "INVALID_UPDATE_VERSION"),
        (vec![feature(METADATA_VERSION, NEWEST.into(), UpgradeType::Upgrade); 2], "INVALID_REQUEST"),
    ];
    for (updates, expected) in rows {
        let description = format!("{updates:?}");
        let refused = cluster.client().update_features(updates, Mode::Apply).await.expect_err(&description);
        assert_eq!(refused.name().as_str(), expected, "{description}");
    }
}

/// Every voter has registered when it started, the standbys as well.
async fn begins_at_the_level_of_all(cluster: &Cluster) {
    let described = described(cluster).await;
    assert_eq!(described.finalized, i32::from(EARLIER));
    let levels = |members: &[SupportedLevels]| members.iter().map(|member| (member.id, member.max)).collect::<Vec<_>>();
    let expected = [(1, i32::from(NEWEST)), (2, i32::from(NEWEST)), (3, i32::from(EARLIER))];
    assert_eq!(levels(&described.controllers), expected);
    assert_eq!(levels(&described.brokers), expected);
    assert!(described.controllers.iter().all(|member| member.state == "registered"), "{described:?}");
}

async fn is_refused_for_node_3(cluster: &Cluster) {
    let refused =
        update(cluster, NEWEST, UpgradeType::Upgrade, Mode::Apply).await.expect_err("node 3 does not support it");
    assert_eq!(refused.name().as_str(), "INVALID_UPDATE_VERSION");
    assert!(refused.error().message.contains("controller 3"), "{refused}");
    assert_eq!(finalized(cluster).await, EARLIER);
}

/// What a node of the earlier release would misread.
async fn needs_the_newest_level(cluster: &Cluster) {
    let cluster_id = cluster.quorum_seen_by(1).await.expect("it is up").cluster_id;
    let unprobed = RegisterRequest { probe: NO_PROBE, ..registration(&cluster_id, 9) };
    assert_eq!(refusal(cluster.broker(1).register(unprobed)).await, "UNSUPPORTED_VERSION");
}

async fn has_the_newest_level(cluster: &Cluster) {
    let cluster_id = cluster.quorum_seen_by(1).await.expect("it is up").cluster_id;
    let unprobed = RegisterRequest { probe: NO_PROBE, ..registration(&cluster_id, 9) };
    outcome(cluster.broker(1).register(unprobed)).await.expect("the level has probes");
}

/// Mutations are made, and all nodes that run agree on what they led to.
async fn works(cluster: &mut Cluster, name: &str) {
    cluster.create(new_topic(name, 3, 2)).await;
    cluster.create(new_topic(format!("{name}-deleted"), 1, 1)).await;
    cluster.delete(&format!("{name}-deleted")).await;
    cluster.converged().await;
    cluster.assert_alive();
}

async fn is_at_on_every_node(cluster: &Cluster, level: i16) {
    for id in cluster.running() {
        let request =
            quorate_proto::admin::DescribeFeaturesRequest { options: Some(ReadOptions { stale: true, timeout_ms: 0 }) };
        let reply = outcome(cluster.admin(id).describe_features(request)).await.expect("a read is answered");
        assert_eq!(metadata_version(reply.features).finalized, i32::from(level), "node {id}");
    }
}

/// A watcher that was there before sees everything up to the upgrade.
async fn ends_at_the_level_it_does_not_understand(mut feed: Streaming<WatchEvent>) {
    let refused = loop {
        match timeout(PATIENCE, feed.message()).await.expect("the feed goes on or ends") {
            Ok(Some(_)) => {}
            Ok(None) => panic!("the feed ended without a reason"),
            Err(status) => break from_status(&status),
        }
    };
    assert_eq!(refused.name.as_str(), "UNSUPPORTED_VERSION", "{refused}");
}

async fn new_feeds_are_gated(cluster: &Cluster) {
    let watch = |max_level, kinds| WatchRequest { max_level, kinds, ..WatchRequest::default() };
    for max_level in [None, Some(i32::from(EARLIER))] {
        assert_eq!(refusal(cluster.broker(1).watch(watch(max_level, Vec::new()))).await, "UNSUPPORTED_VERSION");
    }
    outcome(cluster.broker(1).watch(watch(MAX_LEVEL, Vec::new()))).await.expect("it understands the level");
    let kinds = vec!["FeatureLevel".to_owned()];
    let mut feed = outcome(cluster.broker(1).watch(watch(None, kinds))).await.expect("it understands the kind");
    let Event::Snapshot(part) = next(&mut feed).await else { panic!("the snapshot comes first") };
    assert!(part.records.iter().all(|record| matches!(record.record, Some(Record::FeatureLevel(_)))), "{part:?}");
}

async fn is_not_lowered(cluster: &Cluster) {
    for kind in [UpgradeType::SafeDowngrade, UpgradeType::UnsafeDowngrade] {
        let refused = update(cluster, EARLIER, kind, Mode::Apply).await.expect_err("no level is left again");
        assert_eq!(refused.name().as_str(), "INVALID_UPDATE_VERSION");
    }
    assert_eq!(finalized(cluster).await, NEWEST);
}

async fn an_earlier_release_stops_by_name(cluster: &mut Cluster) {
    cluster.stop(3).await;
    cluster.set_level_max(3, Some(EARLIER));
    let printed = cluster.run_again(3, &[]).refused("a node that does not support the level").await;
    let expected = format!("supports metadata.version 1 to {EARLIER}, the cluster is at {NEWEST}");
    assert!(printed.contains(&expected), "{printed}");
}

async fn described(cluster: &Cluster) -> FeatureDescription {
    let reply = wait("features to be described", async || {
        cluster.client().describe_features(Freshness::Linearizable).await.ok()
    });
    metadata_version(reply.await.features)
}

fn metadata_version(features: Vec<FeatureDescription>) -> FeatureDescription {
    features.into_iter().find(|feature| feature.name == METADATA_VERSION).expect("it is a feature")
}

async fn finalized(cluster: &Cluster) -> i16 {
    i16::try_from(described(cluster).await.finalized).expect("a level has 16 bits")
}

fn feature(name: &str, level: i32, kind: UpgradeType) -> FeatureUpdate {
    FeatureUpdate { feature: name.to_owned(), level, r#type: kind.into() }
}

async fn update(
    cluster: &Cluster,
    level: i16,
    kind: UpgradeType,
    mode: Mode,
) -> Result<UpdateFeaturesReply, ClientError> {
    cluster.client().update_features(vec![feature(METADATA_VERSION, level.into(), kind)], mode).await
}

async fn open_feed(cluster: &Cluster, max_level: Option<i32>) -> Streaming<WatchEvent> {
    let request = WatchRequest { max_level, ..WatchRequest::default() };
    outcome(cluster.broker(2).watch(request)).await.expect("it understands the level")
}
