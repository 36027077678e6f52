//! Disks that hold less than their voter knew, and logs of leaders that lack what a voter knows.

use std::fs;
use std::path::Path;

use quorate_node::raft::{self, RaftError};
use tokio::time::timeout;

use super::harness::{Cluster, PATIENCE, start, wait};

fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap().map(Result::unwrap) {
        let target = to.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            copy(&entry.path(), &target);
        } else {
            fs::copy(entry.path(), target).unwrap();
        }
    }
}

fn replace(path: &Path, by: &Path) {
    fs::remove_dir_all(path).unwrap();
    copy(by, path);
}

async fn refused(cluster: &Cluster, id: i32) -> String {
    let refused = start(cluster.config(id), cluster.address(id)).await.err().expect("refused");
    assert!(matches!(refused, RaftError::VoterStateLost { .. }), "{refused}");
    refused.to_string()
}

async fn stop_reason(cluster: &Cluster, id: i32) -> String {
    let mut stopped = cluster.running[&id].raft.stopped();
    timeout(PATIENCE, stopped.wait_for(Option::is_some)).await.unwrap().unwrap().clone().unwrap()
}

#[tokio::test]
async fn a_voter_without_its_raft_log_is_refused() {
    let (mut cluster, id) = Cluster::with_stopped_follower().await;
    let (data, saved) = (cluster.data(id), cluster.root.path().join("saved"));
    copy(&data, &saved);
    for lost in [&["raft"][..], &["raft", "snapshots"]] {
        lost.iter().for_each(|name| fs::remove_dir_all(data.join(name)).unwrap());
        let reason = refused(&cluster, id).await;
        assert!(reason.contains("raft log") && reason.contains("is missing"), "{reason}");
        assert!(!data.join("raft").exists(), "a refused start makes no new log");
        replace(&data, &saved);
    }
    // Emptied, not removed.
    fs::remove_dir_all(data.join("raft")).unwrap();
    fs::create_dir(data.join("raft")).unwrap();
    refused(&cluster, id).await;

    replace(&data, &saved);
    cluster.restart(id).await;
    cluster.write("after").await;
    cluster.wait_equal(2).await;
}

#[tokio::test]
async fn an_older_copy_of_the_raft_log_is_refused() {
    let (mut cluster, id) = Cluster::with_stopped_follower().await;
    let (log, older) = (cluster.data(id).join("raft"), cluster.root.path().join("older"));
    copy(&log, &older);
    cluster.restart(id).await;
    cluster.write("after").await;
    cluster.wait_equal(2).await;
    cluster.stop(id).await;
    replace(&log, &older);
    let reason = refused(&cluster, id).await;
    assert!(reason.contains("raft log is an older copy"), "{reason}");
}

#[tokio::test]
async fn a_trimmed_log_without_its_snapshots_is_refused() {
    let mut cluster = Cluster::calm(1);
    cluster.log_entries_kept = 2;
    cluster.start_all().await;
    for number in 0..10 {
        cluster.write(&format!("line {number}")).await;
    }
    cluster.running[&1].raft.trigger_snapshot().await.unwrap();
    let first = || raft::dump_log(&cluster.data(1)).unwrap().next().unwrap().unwrap().index;
    wait(|| first() > 0, "the log is trimmed").await;
    cluster.stop(1).await;
    let (snapshots, saved) = (cluster.data(1).join("snapshots"), cluster.root.path().join("saved"));
    copy(&snapshots, &saved);
    fs::remove_dir_all(&snapshots).unwrap();
    let reason = refused(&cluster, 1).await;
    assert!(reason.contains("the files in snapshots/ are missing"), "{reason}");
    replace(&snapshots, &saved);
    cluster.restart(1).await;
    cluster.wait_equal(10).await;
}

#[tokio::test]
async fn an_older_copy_of_the_disk_is_refused_by_the_leader() {
    let (mut cluster, id) = Cluster::with_stopped_follower().await;
    let (data, older) = (cluster.data(id), cluster.root.path().join("older"));
    copy(&data, &older);
    cluster.restart(id).await;
    let (leader, epoch) = cluster.leader().await;
    cluster.write("after").await;
    cluster.wait_equal(2).await;
    // It may have replayed the line before its acknowledgement has come to the leader.
    let status = || cluster.running[&leader].raft.status();
    let end_of = |voter: i32| status().voters.iter().find(|known| known.id.get() == voter).unwrap().log_end;
    wait(|| end_of(id) == end_of(leader), "the acknowledgement of the line").await;
    cluster.stop(id).await;
    replace(&data, &older);
    // The leader may call before the start is over, or after it.
    let reason = match start(cluster.config(id), cluster.address(id)).await {
        Err(refused) => refused.to_string(),
        Ok(voter) => {
            cluster.running.insert(id, voter);
            let reason = stop_reason(&cluster, id).await;
            cluster.stop(id).await;
            reason
        }
    };
    assert!(reason.contains("VOTER_STATE_LOST") && reason.contains("the disk is an older copy"), "{reason}");
    cluster.write("the others go on").await;
    assert_eq!(cluster.leader().await, (leader, epoch));
}

/// The others have lost what this voter knows as committed: it must not follow them.
#[tokio::test]
async fn a_voter_does_not_cut_what_it_knows_as_committed() {
    let (mut cluster, absent) = Cluster::with_stopped_follower().await;
    let (knows, _) = cluster.leader().await;
    let goes_back = (1..=3).find(|id| *id != absent && *id != knows).unwrap();
    cluster.stop(goes_back).await;
    let (data, older) = (cluster.data(goes_back), cluster.root.path().join("older"));
    copy(&data, &older);
    cluster.restart(goes_back).await;
    cluster.write("acknowledged").await;
    cluster.wait_equal(2).await;
    cluster.stop_all().await;
    replace(&data, &older);
    let [first, second] = [absent, goes_back].map(|id| start(cluster.config(id), cluster.address(id)));
    let (first, second) = futures::future::join(first, second).await;
    cluster.running.extend([(absent, first.unwrap()), (goes_back, second.unwrap())]);
    cluster.write("instead").await;

    cluster.restart(knows).await;
    let reason = stop_reason(&cluster, knows).await;
    assert!(reason.contains("VOTER_STATE_DIVERGED") && reason.contains("nothing was cut"), "{reason}");
    assert_eq!(cluster.lines(knows), ["before", "acknowledged"]);
    cluster.stop(knows).await;
    let data = cluster.data(knows);
    let mut kept = raft::dump_log(&data).unwrap().map(Result::unwrap);
    assert!(kept.any(|entry| entry.payload == "acknowledged"), "its log is as it was");
}

/// What a process that is killed would find at its next start.
#[tokio::test]
async fn the_committed_index_is_written_without_another_entry() {
    let cluster = Cluster::formed(1).await;
    cluster.write("one").await;
    let last = || raft::dump_log(&cluster.data(1)).unwrap().last().unwrap().unwrap().index;
    let committed = || raft::dump_vote(&cluster.data(1)).unwrap().unwrap().committed;
    wait(|| committed() == Some(last()), "the committed index on the disk").await;
}
