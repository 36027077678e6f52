//! Calls through a node without a controller.

use quorate_proto::admin::ListTopicsRequest;
use quorate_proto::broker::WatchRequest;
use quorate_tests::{Cluster, MAX_LEVEL, new_topic, next, outcome};

/// More than one connection to a controller bears.
const WATCHES: usize = 300;

#[tokio::test]
async fn watchers_that_do_not_read_hold_up_neither_each_other_nor_other_calls() {
    let mut cluster = Cluster::start(3).await;
    cluster.add_broker(4);
    cluster.restart(4);
    cluster.broker_to_be(4, "unfenced").await;
    // A snapshot is more than one call may have on its way.
    cluster.create(new_topic("orders", 2_000, 3)).await;
    let mut feeds = Vec::new();
    for _ in 0..WATCHES {
        let request = WatchRequest { max_level: MAX_LEVEL, ..WatchRequest::default() };
        // Each on a connection of its own: here the node between is what they share.
        feeds.push(outcome(cluster.broker(4).watch(request)).await.expect("it is passed on"));
    }
    let listed = outcome(cluster.admin(4).list_topics(ListTopicsRequest::default())).await.expect("it is answered");
    assert_eq!(listed.topics.len(), 1);
    for feed in &mut feeds {
        next(feed).await;
    }
}
