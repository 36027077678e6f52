//! What disks keep, and what happens when they do not.

use std::io::Read;

use quorate_metadata::ids::Offset;
use quorate_node::raft::{self, MemoryStore, ProposeError, RocksStore, Store};
use tokio::time::timeout;

use super::harness::{Cluster, Journal, PATIENCE, listen, propose, start_on, start_replica, wait};

#[tokio::test]
async fn one_voter_alone_is_a_cluster() {
    let mut cluster = Cluster::formed(1).await;
    assert_eq!(cluster.write("alone").await, Offset::new(1));
    cluster.stop(1).await;
    cluster.restart(1).await;
    cluster.write("again").await;
    assert_eq!(cluster.lines(1), ["alone", "again"]);
}

#[tokio::test]
async fn a_restarted_voter_replays_its_log_and_catches_up() {
    let mut cluster = Cluster::formed(3).await;
    for number in 0..10 {
        cluster.write(&format!("line {number}")).await;
    }
    let (leader, _) = cluster.leader().await;
    let follower = (1..=3).find(|id| *id != leader).unwrap();
    cluster.stop(follower).await;
    for number in 10..20 {
        cluster.write(&format!("line {number}")).await;
    }
    cluster.restart(follower).await;
    cluster.wait_equal(20).await;
    assert_eq!(*cluster.running[&follower].installed.lock().unwrap(), 0);
    cluster.stop_all().await;
    cluster.start_all().await;
    cluster.write("line 20").await;
    cluster.wait_equal(21).await;
}

#[tokio::test]
async fn a_voter_that_the_log_was_trimmed_past_catches_up_by_snapshot() {
    let mut cluster = Cluster::calm(3);
    (cluster.snapshot_log_bytes, cluster.log_entries_kept) = (4 << 20, 5);
    cluster.start_all().await;
    cluster.write("first").await;
    let (leader, _) = cluster.leader().await;
    let follower = (1..=3).find(|id| *id != leader).unwrap();
    cluster.stop(follower).await;
    // Three megabytes a line: two of them make a snapshot due, and the whole takes several chunks.
    for number in 0..4 {
        cluster.write(&format!("{number}{}", "x".repeat(3 << 20))).await;
    }
    let (leader, _) = cluster.leader().await;
    let raft = cluster.running[&leader].raft.clone();
    wait(|| raft.status().snapshot > 0, "a snapshot by size").await;
    for number in 0..10 {
        cluster.write(&format!("line {number}")).await;
    }
    raft.trigger_snapshot().await.unwrap();
    let (leader, _) = cluster.leader().await;
    let first = || raft::dump_log(&cluster.data(leader)).unwrap().next().unwrap().unwrap().index;
    wait(|| first() > 10, "the log is trimmed").await;
    cluster.restart(follower).await;
    cluster.write("last").await;
    cluster.wait_equal(16).await;
    assert_eq!(*cluster.running[&follower].installed.lock().unwrap(), 1);
    // The received snapshot is the one it starts from.
    cluster.stop(follower).await;
    cluster.restart(follower).await;
    cluster.wait_equal(16).await;
}

#[tokio::test]
async fn entries_kept_behind_a_snapshot_are_bounded_in_bytes() {
    let mut cluster = Cluster::calm(1);
    (cluster.snapshot_log_bytes, cluster.log_entries_kept) = (40 << 20, 1_000_000);
    cluster.start_all().await;
    // More than the memory keeps, and then a snapshot of all of it.
    for number in 0..16 {
        cluster.write(&format!("{number}{}", "x".repeat(3 << 20))).await;
    }
    let first = || raft::dump_log(&cluster.data(1)).unwrap().next().unwrap().unwrap().index;
    wait(|| first() > 0, "the log is trimmed").await;
    assert!(first() < 10, "the entries in memory are kept, from {}", first());
}

/// A follower that takes connections and answers nothing keeps the entries that it is being sent in use.
#[tokio::test]
async fn a_trim_by_bytes_that_is_postponed_outlives_the_next_snapshots() {
    let mut cluster = Cluster::calm(3);
    (cluster.snapshot_log_bytes, cluster.log_entries_kept) = (40 << 20, 15);
    cluster.start_all().await;
    cluster.write("first").await;
    cluster.wait_equal(1).await;
    let (leader, _) = cluster.leader().await;
    let follower = (1..=3).find(|id| *id != leader).unwrap();
    cluster.stop(follower).await;
    let silent = listen(&cluster.address(follower)).await;
    // More than the memory keeps: the first ones can go, though they are among the last fifteen.
    for number in 0..20 {
        cluster.write(&format!("{number}{}", "x".repeat(3 << 20))).await;
    }
    let raft = cluster.running[&leader].raft.clone();
    wait(|| raft.status().snapshot > 0, "a snapshot by size").await;
    for number in 0..10 {
        cluster.write(&format!("line {number}")).await;
        raft.trigger_snapshot().await.unwrap();
    }
    cluster.write("last").await;
    assert_eq!(cluster.leader().await.0, leader);

    drop(silent);
    cluster.restart(follower).await;
    cluster.wait_equal(32).await;
    let first = || raft::dump_log(&cluster.data(leader)).unwrap().next().unwrap().unwrap().index;
    wait(|| first() > 5, "the log is trimmed once the follower has what it lacked").await;
}

#[tokio::test]
async fn what_cannot_be_replayed_stops_the_voter_with_the_reason() {
    let cluster = Cluster::formed(1).await;
    let (_, epoch) = cluster.leader().await;
    let raft = &cluster.running[&1].raft;
    assert!(propose(raft, epoch, "poison").await.is_err());
    let mut stopped = raft.stopped();
    let reason = timeout(PATIENCE, stopped.wait_for(Option::is_some)).await.unwrap().unwrap().clone().unwrap();
    assert!(reason.contains("poisoned"), "{reason}");
    assert_eq!(propose(raft, epoch, "late").await, Err(ProposeError::Stopped));
}

/// Else the process that ends with the error ends while threads of the database work.
#[tokio::test]
async fn a_start_that_fails_at_replay_has_closed_the_disk() {
    let mut cluster = Cluster::formed(1).await;
    cluster.write("one").await;
    cluster.stop(1).await;
    for _ in 0..20 {
        let store = RocksStore::new(&cluster.data(1));
        let replica = Box::new(Journal::refusing());
        let started = start_replica(store.clone(), cluster.config(1), cluster.address(1), replica).await;
        let reason = started.err().expect("the log cannot be replayed").to_string();
        assert!(reason.contains("refused by the test"), "{reason}");
        drop(store.open().expect("nobody has the database open"));
    }
    cluster.restart(1).await;
    cluster.wait_equal(1).await;
}

#[tokio::test]
async fn a_data_directory_can_be_read_while_and_after_the_node_runs() {
    let mut cluster = Cluster::formed(1).await;
    cluster.write("one").await;
    cluster.write("two").await;
    cluster.running[&1].raft.trigger_snapshot().await.unwrap();
    let data = cluster.data(1);
    let payloads = || {
        let entries = raft::dump_log(&data).unwrap().map(|entry| entry.unwrap());
        entries.filter(|entry| entry.kind == raft::EntryKind::Normal).map(|entry| entry.payload).collect::<Vec<_>>()
    };
    assert_eq!(payloads(), ["one", "two"]);
    cluster.stop(1).await;
    assert_eq!(payloads(), ["one", "two"]);
    let vote = raft::dump_vote(&data).unwrap().unwrap();
    assert!(vote.leads && vote.voted_for.get() == 1);
    let mut content = String::new();
    raft::dump_snapshot(&data).unwrap().unwrap().content.read_to_string(&mut content).unwrap();
    assert_eq!(content, "one\ntwo\n");
}

#[tokio::test]
async fn a_power_cut_of_all_voters_loses_nothing_acknowledged() {
    let mut cluster = Cluster::new(3);
    let stores = [(); 3].map(|()| MemoryStore::new());
    let mut written = 0;
    for cut in 0..3 {
        let starts =
            (1..).zip(&stores).map(|(id, store)| start_on(store.clone(), cluster.config(id), cluster.address(id)));
        for (id, voter) in (1..).zip(futures::future::join_all(starts).await) {
            cluster.running.insert(id, voter.unwrap());
        }
        for number in 0..10 {
            cluster.write(&format!("line {cut}.{number}")).await;
            written += 1;
        }
        cluster.wait_equal(written).await;
        stores.iter().for_each(|store| store.crash(cut));
        cluster.stop_all().await;
    }
}

#[tokio::test]
async fn a_broken_disk_stops_its_voter_and_the_others_go_on() {
    let mut cluster = Cluster::calm(3);
    let stores = [(); 3].map(|()| MemoryStore::new());
    let starts = (1..).zip(&stores).map(|(id, store)| start_on(store.clone(), cluster.config(id), cluster.address(id)));
    for (id, voter) in (1..).zip(futures::future::join_all(starts).await) {
        cluster.running.insert(id, voter.unwrap());
    }
    cluster.write("before").await;
    let (leader, epoch) = cluster.leader().await;
    stores[usize::try_from(leader - 1).unwrap()].break_disk();
    let broken = cluster.running.remove(&leader).unwrap();
    // One entry at least must be written for the disk to be found out.
    assert!(propose(&broken.raft, epoch, "lost?").await.is_err());
    let mut stopped = broken.raft.stopped();
    let reason = timeout(PATIENCE, stopped.wait_for(Option::is_some)).await.unwrap().unwrap().clone().unwrap();
    assert!(reason.contains("os error 5"), "{reason}");
    cluster.write("after").await;
}
