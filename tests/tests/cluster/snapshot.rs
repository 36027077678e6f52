//! Nodes that were away, and a cluster that was.

use quorate_tests::{Cluster, new_topic, wait};

#[tokio::test]
async fn a_follower_that_the_log_was_trimmed_past_catches_up_by_snapshot() {
    let settings = [("snapshot_log_bytes", "50000"), ("log_entries_kept", "5")];
    let mut cluster = Cluster::start_with(3, &settings).await;
    cluster.create(new_topic("before", 3, 3)).await;
    let away = cluster.standby().await;
    cluster.kill(away);
    let mut topics = 0;
    wait("two snapshots on every node that is up", async || {
        cluster.create(new_topic(format!("meanwhile-{topics}"), 10, 3)).await;
        topics += 1;
        let twice = |id| cluster.printed(id).matches("snapshot written").count() > 1;
        cluster.running().into_iter().all(twice).then_some(())
    })
    .await;
    cluster.restart(away);
    cluster.ready().await;
    wait("the snapshot to be installed", async || cluster.printed(away).contains("snapshot installed").then_some(()))
        .await;
    cluster.converged().await;
    assert_eq!(cluster.topics().await.len(), topics + 1);
    // What was installed is what it starts from.
    cluster.kill(away);
    cluster.restart(away);
    cluster.ready().await;
    cluster.converged().await;
}

#[tokio::test]
async fn a_cluster_that_was_killed_whole_has_everything_again() {
    let settings = [("snapshot_log_bytes", "50000"), ("log_entries_kept", "5")];
    let mut cluster = Cluster::start_with(3, &settings).await;
    for round in 0..3 {
        for topic in 0..20 {
            cluster.create(new_topic(format!("topic-{round}-{topic}"), 5, 3)).await;
        }
        let before = cluster.topics().await;
        cluster.kill_all();
        cluster.restart_all();
        cluster.ready().await;
        assert_eq!(cluster.topics().await, before);
        cluster.converged().await;
    }
}
