//! Whose disk it is: who is refused, and how a cluster forms.

use std::time::Duration;

use futures::future::select;
use quorate_metadata::ids::ClusterId;
use quorate_node::raft::{RaftError, RocksStore, Store};
use tokio::time::timeout;

use super::harness::{Cluster, start, wait};

#[tokio::test]
async fn a_wiped_disk_under_an_old_id_is_refused_by_name() {
    let mut cluster = Cluster::formed(3).await;
    cluster.write("before").await;
    for id in [1, 3] {
        cluster.stop(id).await;
        std::fs::remove_dir_all(cluster.data(id)).unwrap();
        let refused = start(cluster.config(id), cluster.address(id)).await.err().expect("refused");
        assert!(matches!(&refused, RaftError::InvalidVoterKey { node, .. } if node.get() == id), "{refused}");
        assert!(refused.to_string().contains(&format!("node {id} is a voter with directory")), "{refused}");
        if id == 1 {
            break;
        }
    }
    // The two others go on without it.
    cluster.write("after").await;
}

#[tokio::test]
async fn a_node_of_another_cluster_is_refused() {
    let mut cluster = Cluster::formed(3).await;
    cluster.write("before").await;
    cluster.stop(3).await;
    std::fs::remove_dir_all(cluster.data(3)).unwrap();
    let mut config = cluster.config(3);
    config.cluster = Some(ClusterId::from_bytes([9; 16]));
    let refused = start(config, cluster.address(3)).await.err().expect("refused").to_string();
    assert!(refused.contains("INCONSISTENT_CLUSTER_ID"), "{refused}");
    let mut config = cluster.config(1);
    cluster.stop(1).await;
    config.cluster = Some(ClusterId::from_bytes([9; 16]));
    let refused = start(config, cluster.address(1)).await.err().expect("refused");
    assert!(matches!(refused, RaftError::InconsistentClusterId(_)), "{refused}");
}

#[tokio::test]
async fn an_unformatted_disk_needs_leave_and_a_disk_has_one_process() {
    let cluster = Cluster::formed(1).await;
    let mut strict = cluster.config(1);
    (strict.auto_format, strict.data) = (false, cluster.root.path().join("empty"));
    let refused = start(strict, "127.0.0.1:0".into()).await.err().expect("refused");
    assert!(matches!(refused, RaftError::NotFormatted { .. }), "{refused}");
    assert!(!cluster.root.path().join("empty").exists());
    let locked = start(cluster.config(1), "127.0.0.1:0".into()).await.err().expect("refused");
    assert!(matches!(locked, RaftError::DataLocked { .. }), "{locked}");
}

#[tokio::test]
async fn a_second_node_with_a_taken_id_is_refused() {
    let cluster = Cluster::formed(3).await;
    cluster.write("before").await;
    let mut twin = cluster.config(2);
    twin.data = cluster.root.path().join("twin");
    let refused = start(twin, "127.0.0.1:0".into()).await.err().expect("refused");
    assert!(matches!(refused, RaftError::InvalidVoterKey { .. }), "{refused}");
    cluster.write("after").await;
}

#[tokio::test]
async fn voters_wait_for_each_other_before_they_form_a_cluster() {
    let mut cluster = Cluster::new(3);
    let [mut first, mut second] = [1, 2].map(|id| Box::pin(start(cluster.config(id), cluster.address(id))));
    let formed = timeout(Duration::from_secs(1), select(&mut first, &mut second)).await;
    assert!(formed.is_err(), "two of three must not form a cluster");
    wait(|| [1, 2].iter().all(|id| cluster.data(*id).join("raft").exists()), "their disks to be made").await;
    // Whoever stops waiting for a voter to start leaves its thread to end by itself.
    drop((first, second));
    for id in [1, 2] {
        wait(|| RocksStore::new(&cluster.data(id)).open().is_ok(), "the disk is free").await;
    }
    cluster.start_all().await;
    cluster.write("all").await;
}
