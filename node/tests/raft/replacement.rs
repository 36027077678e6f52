//! New disks for voters that have lost theirs.

use std::fs;
use std::time::Duration;

use quorate_metadata::ids::ControllerId;
use quorate_node::raft::{self, RaftError, RaftNode, Replaced};
use tokio::time::{Instant, sleep};

use super::harness::{Cluster, PATIENCE, start};

/// Until the disk that replaces the old one has been found waiting.
async fn replace(leader: &RaftNode, id: i32) -> Replaced {
    let until = Instant::now() + PATIENCE;
    loop {
        match leader.replace_voter(ControllerId::new(id), PATIENCE).await {
            Ok(replaced) => return replaced,
            Err(error) => assert!(Instant::now() < until, "{error}"),
        }
        sleep(Duration::from_millis(20)).await;
    }
}

/// A cluster with a voter whose disk is gone, and whose old disk was put aside.
async fn with_lost_disk() -> (Cluster, i32) {
    let (cluster, lost) = Cluster::with_stopped_follower().await;
    fs::rename(cluster.data(lost), cluster.root.path().join("old")).unwrap();
    (cluster, lost)
}

#[tokio::test]
async fn a_replaced_disk_gets_the_log_and_votes() {
    let (mut cluster, lost) = with_lost_disk().await;
    let (leader, _) = cluster.leader().await;
    let other = (1..=3).find(|id| *id != lost && *id != leader).unwrap();
    let formatted = raft::format(&cluster.data(lost), ControllerId::new(lost), None, true).unwrap();
    let raft = cluster.running[&leader].raft.clone();
    let old = raft.status().voters.iter().find(|voter| voter.id.get() == lost).unwrap().directory;
    let waiting = start(cluster.config(lost), cluster.address(lost));
    let (voter, replaced) = futures::future::join(waiting, replace(&raft, lost)).await;
    assert_eq!(replaced, Replaced { directory: formatted.directory, old: Some(old) });
    cluster.running.insert(lost, voter.unwrap());
    cluster.write("after").await;
    cluster.wait_equal(2).await;
    // It counts: the quorum is whole with one of the others.
    cluster.stop(other).await;
    cluster.write("with it").await;
    // A repetition finds nothing to do.
    let again = cluster.running[&cluster.leader().await.0].raft.replace_voter(ControllerId::new(lost), PATIENCE).await;
    match again {
        Ok(again) => assert_eq!(again, Replaced { directory: formatted.directory, old: None }),
        Err(error) => assert_eq!(cluster.leader().await.0, lost, "{error}"),
    }
    cluster.stop(lost).await;
    cluster.restart(lost).await;
    cluster.restart(other).await;
    cluster.wait_equal(3).await;

    cluster.stop(lost).await;
    fs::remove_dir_all(cluster.data(lost)).unwrap();
    fs::rename(cluster.root.path().join("old"), cluster.data(lost)).unwrap();
    let refused = start(cluster.config(lost), cluster.address(lost)).await.err().expect("the old disk is no voter");
    assert!(matches!(refused, RaftError::InvalidVoterKey { .. }), "{refused}");
}

#[tokio::test]
async fn what_cannot_be_replaced_is_refused_by_name() {
    let (mut cluster, lost) = with_lost_disk().await;
    let (leader, _) = cluster.leader().await;
    let raft = cluster.running[&leader].raft.clone();
    let refused = |id| {
        let raft = raft.clone();
        async move { raft.replace_voter(ControllerId::new(id), PATIENCE).await.expect_err("refused").to_string() }
    };
    let other = (1..=3).find(|id| *id != lost && *id != leader).unwrap();
    let nobody = refused(lost).await;
    assert!(nobody.contains(&format!("voter {lost} cannot be replaced: no node answers at")), "{nobody}");
    let unknown = refused(9).await;
    assert!(unknown.contains("it is not configured"), "{unknown}");
    let active = refused(leader).await;
    assert!(active.contains("it is the active controller"), "{active}");
    let follower = cluster.running[&other].raft.replace_voter(ControllerId::new(lost), PATIENCE).await;
    assert!(matches!(follower, Err(RaftError::NotLeader)), "{follower:?}");
    // The quorum without it needs both of the others.
    cluster.stop(other).await;
    let until = Instant::now() + PATIENCE;
    while !refused(lost).await.contains("which do not answer") {
        assert!(Instant::now() < until, "the voter that was stopped counts as silent");
        sleep(Duration::from_millis(20)).await;
    }
    cluster.restart(other).await;
    cluster.write("after").await;
}

/// The first attempt gives up while the new disk is a learner; the second one goes on there.
#[tokio::test]
async fn a_replacement_that_was_interrupted_is_completed_by_a_repetition() {
    let (mut cluster, lost) = with_lost_disk().await;
    let (leader, _) = cluster.leader().await;
    let raft = cluster.running[&leader].raft.clone();
    let formatted = raft::format(&cluster.data(lost), ControllerId::new(lost), None, true).unwrap();
    let waiting = tokio::spawn(start(cluster.config(lost), cluster.address(lost)));
    let is_learner = || raft.status().observers.iter().any(|observer| observer.id.get() == lost);
    let until = Instant::now() + PATIENCE;
    while !is_learner() {
        // Too short for the whole.
        let short = Duration::from_millis(30);
        match raft.replace_voter(ControllerId::new(lost), short).await {
            Ok(_) => break,
            Err(error) => assert!(Instant::now() < until, "{error}"),
        }
    }
    replace(&raft, lost).await;
    cluster.running.insert(lost, waiting.await.unwrap().unwrap());
    let voters = raft.status().voters;
    let voter = voters.iter().find(|voter| voter.id.get() == lost).expect("it votes");
    assert_eq!((voter.directory, raft.status().observers.len()), (formatted.directory, 0));
    cluster.write("after").await;
    cluster.wait_equal(2).await;
}
