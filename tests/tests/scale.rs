//! The main job at the size of a large cluster: a broker dies and stays dead, and then the active controller dies.

use std::time::Duration;

use quorate_client::Freshness;
use quorate_tests::{CALM, Cluster, Mutations, new_topic, wait, wait_at_most};

/// Twenty times what the controller moves in one run of a periodic task, so that none can end what it begins in one run.
const TOPICS: i32 = 20;
const PARTITIONS_PER_TOPIC: i32 = 1_000;

/// The slowest periodic task of the controller runs every 30 s, and the defect that this test is for began with it: in
/// two minutes it runs four times, and a snapshot, a digest and several bookmarks of each feed come between.
const DEAD_FOR: Duration = Duration::from_secs(120);

/// A debug build on a loaded machine takes a fraction of it: no claim about speed.
const WHOLE_WITHIN: Duration = Duration::from_secs(300);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn twenty_thousand_partitions_survive_a_dead_broker_and_a_dead_controller() {
    let mut cluster = Cluster::start_with(3, CALM).await;
    for number in 0..TOPICS {
        cluster.create(new_topic(topic(number), PARTITIONS_PER_TOPIC, 3)).await;
    }
    whole(&mut cluster, "created").await;
    let active = cluster.active_controller().await;

    a_broker_is_dead(&mut cluster, active).await;

    cluster.kill(active);
    wait("another controller", async || (cluster.active_controller().await != active).then_some(())).await;
    cluster.create(new_topic("under-another-controller", 1, 2)).await;
    cluster.restart(active);
    whole(&mut cluster, "after the controller's return").await;
    cluster.converged().await;
}

fn topic(number: i32) -> String {
    format!("scale-{number}")
}

/// A standby's broker is killed and stays dead: mutations go on under the same controller. Then it returns.
async fn a_broker_is_dead(cluster: &mut Cluster, active: i32) {
    let epoch = cluster.quorum_seen_by(active).await.expect("it is up").epoch;
    let dead = cluster.others(active)[0];
    let mut mutations = Mutations::start(cluster, &topic(0));
    cluster.kill(dead);
    cluster.broker_to_be(dead, "fenced").await;
    mutations.continue_for(DEAD_FOR).await;

    let quorum = cluster.quorum_seen_by(active).await.expect("it is up");
    assert_eq!((quorum.leader_id, quorum.epoch), (Some(active), epoch), "nothing caused an election");
    let broker = cluster.broker_seen(dead).await.expect("a dead broker stays registered");
    assert_eq!((broker.state.as_str(), broker.leaders, broker.in_sync), ("fenced", 0, 0), "{broker:?}");
    let acknowledged = mutations.stop().await;
    println!("{acknowledged} mutations were acknowledged while broker {dead} was dead");

    cluster.restart(dead);
    whole(cluster, "after the broker's return").await;
}

/// Waits until every replica of every partition is in sync.
async fn whole(cluster: &mut Cluster, when: &str) {
    let client = cluster.client();
    wait_at_most(WHOLE_WITHIN, &format!("all replicas in sync, {when}"), async || {
        cluster.assert_alive();
        let status = client.cluster_status(Freshness::Linearizable).await.ok()?;
        (status.brokers_fenced == 0 && status.under_replicated == 0 && status.leaderless == 0).then_some(())
    })
    .await;
}
