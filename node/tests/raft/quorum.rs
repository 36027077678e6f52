//! Electing, proposing, reading, handing over.

use std::path::Path;
use std::time::Duration;

use bytes::Bytes;
use quorate_metadata::ids::{ClusterId, ControllerEpoch, ControllerId, Offset};
use quorate_node::raft::{DialMap, Leadership, Outcome, ProposeError, VoterState};
use tokio::time::{Instant, sleep, timeout};

use super::harness::{Cluster, PATIENCE, propose, start, wait};

#[tokio::test]
async fn three_voters_elect_one_leader_and_replay_the_same() {
    let cluster = Cluster::formed(3).await;
    for number in 0..20 {
        cluster.write(&format!("line {number}")).await;
    }
    cluster.wait_equal(20).await;
    let ids: Vec<ClusterId> = cluster.running.values().map(|voter| voter.raft.cluster()).collect();
    assert!(ids.iter().all(|id| *id == ids[0]));
}

#[tokio::test]
async fn proposals_keep_their_order_and_need_the_claimed_epoch() {
    let mut cluster = Cluster::calm(3);
    cluster.start_all().await;
    let (leader, epoch) = cluster.leader().await;
    let raft = &cluster.running[&leader].raft;
    cluster.write("first").await;
    let outcomes: Vec<_> = (0..100).map(|number| raft.propose(epoch, format!("{number:03}").into())).collect();
    for (number, outcome) in outcomes.into_iter().enumerate() {
        let next_offset = Offset::new(i64::try_from(number).unwrap() + 2);
        assert_eq!(outcome.await.unwrap(), Ok(Outcome::Replayed { next_offset }));
    }
    let lines = cluster.lines(leader);
    assert!(lines.is_sorted_by_key(|line| (line != "first", line.clone())));
    assert_eq!(propose(raft, epoch, "stale").await, Ok(Outcome::WrongEpoch));
    let old = ControllerEpoch::new(epoch.get() - 1);
    assert_eq!(propose(raft, old, "late").await, Err(ProposeError::NotLeader));
    let follower = cluster.running.keys().find(|id| **id != leader).unwrap();
    assert_eq!(propose(&cluster.running[follower].raft, epoch, "elsewhere").await, Err(ProposeError::NotLeader));
    let huge = raft.propose(epoch, vec![0; 5 << 20].into()).await.unwrap();
    assert_eq!(huge, Err(ProposeError::TooLarge { bytes: 5 << 20 }));
}

#[tokio::test]
async fn a_barrier_on_any_voter_shows_what_was_acknowledged_before() {
    let cluster = Cluster::formed(3).await;
    for number in 0..50 {
        let line = format!("line {number}");
        cluster.write(&line).await;
        for (id, voter) in &cluster.running {
            voter.raft.read_barrier(PATIENCE).await.unwrap();
            assert!(cluster.lines(*id).contains(&Bytes::from(line.clone())), "voter {id} lacks {line}");
        }
    }
}

#[tokio::test]
async fn without_a_majority_nothing_is_read_or_written_and_all_resumes_with_it() {
    let mut cluster = Cluster::formed(3).await;
    cluster.write("before").await;
    let (leader, epoch) = cluster.leader().await;
    for id in cluster.running.keys().copied().filter(|id| *id != leader).collect::<Vec<_>>() {
        cluster.stop(id).await;
    }
    let raft = cluster.running[&leader].raft.clone();
    assert!(raft.read_barrier(Duration::from_millis(500)).await.is_err());
    let pending = raft.propose(epoch, "during".into());
    let silent = timeout(Duration::from_millis(500), pending).await;
    assert!(!matches!(silent, Ok(Ok(Ok(Outcome::Replayed { .. })))), "{silent:?}");
    let stopped: Vec<i32> = (1..=3).filter(|id| *id != leader).collect();
    cluster.restart(stopped[0]).await;
    cluster.write("after").await;
    raft.read_barrier(PATIENCE).await.unwrap();
}

#[tokio::test]
async fn an_office_is_confirmed_by_a_majority_and_under_its_epoch_only() {
    let mut cluster = Cluster::calm(3);
    cluster.start_all().await;
    cluster.write("before").await;
    let (leader, epoch) = cluster.leader().await;
    let raft = cluster.running[&leader].raft.clone();
    assert_eq!(raft.confirm(epoch).await.unwrap(), Ok(()));
    let old = ControllerEpoch::new(epoch.get() - 1);
    assert!(raft.confirm(old).await.unwrap().is_err(), "an office of before");
    let others: Vec<i32> = (1..=3).filter(|id| *id != leader).collect();
    assert!(cluster.running[&others[0]].raft.confirm(epoch).await.unwrap().is_err(), "a follower");
    for id in &others {
        cluster.stop(*id).await;
    }
    assert!(raft.confirm(epoch).await.unwrap().is_err(), "nobody has heard it");
}

#[tokio::test]
async fn alone_in_the_quorum_an_office_needs_nobodys_word() {
    let cluster = Cluster::formed(1).await;
    cluster.write("before").await;
    let (leader, epoch) = cluster.leader().await;
    let raft = &cluster.running[&leader].raft;
    // Longer than a leader of several may go unanswered.
    sleep(Duration::from_millis(3 * cluster.config(leader).election_max_ms)).await;
    assert_eq!(raft.confirm(epoch).await.unwrap(), Ok(()));
    raft.read_barrier(PATIENCE).await.unwrap();
}

#[tokio::test]
async fn leadership_moves_on_request_and_is_told_alternating() {
    let mut cluster = Cluster::calm(3);
    cluster.start_all().await;
    cluster.write("before").await;
    cluster.wait_equal(1).await;
    let (leader, epoch) = cluster.leader().await;
    let next = (1..=3).find(|id| *id != leader).unwrap();
    make_leader(&cluster, next).await;
    let old = &mut cluster.running.get_mut(&leader).unwrap().leadership;
    assert_eq!(timeout(PATIENCE, old.recv()).await.unwrap(), Some(Leadership::Claimed { epoch }));
    assert_eq!(timeout(PATIENCE, old.recv()).await.unwrap(), Some(Leadership::Resigned));
    let new = &mut cluster.running.get_mut(&next).unwrap().leadership;
    assert!(
        matches!(timeout(PATIENCE, new.recv()).await.unwrap(), Some(Leadership::Claimed { epoch: newer }) if newer > epoch)
    );
    cluster.write("after").await;
    cluster.wait_equal(2).await;
}

#[tokio::test]
async fn a_stopped_leader_is_replaced_long_before_its_lease_ends() {
    let mut cluster = Cluster::formed(3).await;
    cluster.write("before").await;
    cluster.wait_equal(1).await;
    let (leader, epoch) = cluster.leader().await;
    cluster.stop(leader).await;
    let stopped = Instant::now();
    let (_, newer) = cluster.leader().await;
    println!("new leader after {:?}", stopped.elapsed());
    assert!(newer > epoch);
    cluster.write("after").await;
}

#[tokio::test]
async fn a_moved_dial_map_moves_the_connections() {
    let mut cluster = Cluster::calm(3);
    let map = cluster.root.path().join("dial.toml");
    std::fs::write(&map, "").unwrap();
    let starts = (1..=3).map(|id| {
        let mut config = cluster.config(id);
        // Only voter 1 looks through the map.
        if id == 1 {
            config.dial = DialMap::file(&map).unwrap();
        }
        start(config, cluster.address(id))
    });
    for (id, voter) in (1..).zip(futures::future::join_all(starts).await) {
        cluster.running.insert(id, voter.unwrap());
    }
    cluster.write("before").await;
    make_leader(&cluster, 1).await;
    let (_, epoch) = cluster.leader().await;
    write_map(&map, 3, "127.0.0.1:1");
    cluster.write("without 3").await;
    let raft = cluster.running[&1].raft.clone();
    let state = || raft.status().voters.iter().find(|voter| voter.id.get() == 3).map(|voter| voter.state);
    wait(|| state() == Some(VoterState::Unreachable), "voter 3 unreachable from the leader").await;
    write_map(&map, 3, &cluster.address(3));
    cluster.write("with 3").await;
    cluster.wait_equal(3).await;
    // A stream that breaks while the leader's port answers is no reason to elect. Voter 3 had none from the leader for
    // longer than its election timeout, but no voter listens to it while the leader is well.
    assert_eq!(cluster.leader().await, (1, epoch));
}

/// Asks until it leads: a successor declines as long as its disk is behind, and an election that goes wrong makes another
/// one leader.
async fn make_leader(cluster: &Cluster, id: i32) {
    let until = Instant::now() + PATIENCE;
    loop {
        let (leader, _) = cluster.leader().await;
        if leader == id {
            return;
        }
        let asked = cluster.running[&leader].raft.transfer_leadership(Some(ControllerId::new(id))).await;
        assert!(Instant::now() < until, "voter {id} does not take over: {asked:?}");
        sleep(Duration::from_millis(5)).await;
    }
}

fn write_map(path: &Path, peer: i32, address: &str) {
    std::fs::write(path, format!("[peers]\n{peer} = {{ raft = \"{address}\" }}\n")).unwrap();
}
