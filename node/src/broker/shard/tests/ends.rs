//! Ends: of a leadership that is over before it is taken, of the directory, and of the broker.

use quorate_log::leadership::Outcome;

use super::super::super::room::{Room, Shortage};
use super::*;
use crate::disks::Space;

async fn stop(driven: &Driven) {
    driven.handle.send(Command::Stop(oneshot::channel().0)).await.expect("the owner lives");
}

/// Partition 0 is on brokers 1 and 2, both in sync, and led by one of them.
fn on_both(leader: i32) -> Record {
    Record::PartitionChange(PartitionChange {
        replicas: Some(vec![broker(1), broker(2)]),
        directories: Some(vec![DirectoryId::UNASSIGNED; 2]),
        isr: Some(vec![broker(1), broker(2)]),
        leader: Some(Some(broker(leader))),
        ..PartitionChange::none(id(0), Cause::Reassignment)
    })
}

#[tokio::test]
async fn a_leadership_that_the_metadata_does_not_have_is_not_taken() {
    let mut driven = Driven::start(Vec::new());
    driven.change(RoleChange::Lead { id: id(0), leader_epoch: LeaderEpoch::new(5) }).await;
    driven.change(RoleChange::Lead { id: id(1), leader_epoch: LeaderEpoch::default() }).await;
    driven.round();
    assert_eq!(driven.shard.owned.keys().copied().collect::<Vec<_>>(), [id(1)]);
}

#[tokio::test]
async fn a_stop_comes_after_all_changes_of_role_before_it() {
    let mut driven = Driven::start(Vec::new());
    for partition in 0..3 * i32::try_from(ROUND_OPENED_MAX).expect("small") {
        driven.change(RoleChange::Lead { id: id(partition), leader_epoch: LeaderEpoch::default() }).await;
    }
    stop(&driven).await;
    let mut round = Round::default();
    driven.shard.take_waiting(&mut round, &mut driven.inbox);
    assert!(round.stopped.is_some());
    assert_eq!(driven.shard.owned.len(), 3 * ROUND_OPENED_MAX);
}

#[tokio::test]
async fn a_directory_that_fails_opens_nothing_more_and_lets_its_replicas_go() {
    let mut driven = Driven::start((0..COUNT).map(id).collect());
    driven.change(RoleChange::Lead { id: id(0), leader_epoch: LeaderEpoch::default() }).await;
    let (done, mut deleted) = oneshot::channel();
    driven.delete(id(1), None).await;
    driven.round();
    driven.delete(id(2), Some(done)).await;
    driven.logs.break_disk();
    let mut unwritten = driven.produce(id(0)).await;
    driven.round();
    assert!(driven.shard.owned.is_empty() && !driven.shard.has_more_to_do());
    assert!(matches!(unwritten.try_recv(), Ok(Err(_))));
    assert_eq!(deleted.try_recv(), Ok(()));
    assert!(!driven.is_found(id(1)) && driven.is_found(id(3)));
    let refused = driven.handle.describe(id(0)).await.expect_err("it is offline");
    assert_eq!(refused.name, ErrorName::KafkaStorageError);
    let (_, outage) = driven.failed.try_recv().expect("it is reported");
    assert_eq!(outage.cause, OutageCause::Broken);
}

/// They were sent while it was online.
#[tokio::test]
async fn requests_behind_a_failure_are_refused_and_deletions_end() {
    let mut driven = Driven::leading().await;
    let mut refused = driven.produce(id(0)).await;
    driven.delete(id(3), None).await;
    let outage = Outage { cause: OutageCause::Hangs, reason: "the disk does not answer".to_owned() };
    assert!(driven.handle.take_offline(outage));
    driven.shard.notice_outage();
    driven.round();
    assert!(driven.shard.owned.is_empty());
    assert!(matches!(refused.try_recv(), Ok(Err(error)) if error.name == ErrorName::KafkaStorageError));
    assert!(!driven.is_found(id(3)));
    assert!(driven.failed.try_recv().is_err(), "who took it offline has reported it");
}

#[tokio::test]
async fn a_follower_fetches_on_when_its_disk_has_room_again() {
    let mut driven = Driven::start(Vec::new());
    let space = Space { free_bytes: 1 << 20, total_bytes: 1 << 30 };
    let shortage = Shortage { free_bytes: space.free_bytes, mark_bytes: 1 << 28 };
    driven.handle.set_room(Room::Scarce(shortage), space);
    assert!(driven.handle.check_producers().is_err_and(|error| error.name == ErrorName::KafkaStorageError));
    let source = |leader| Source { leader: broker(leader), leader_epoch: LeaderEpoch::new(1) };
    for partition in 0..3 {
        driven.change(RoleChange::Follow { id: id(partition), source: source(2) }).await;
    }
    driven.round();
    assert_eq!(driven.shard.without_room.len(), 3);
    driven.delete(id(1), None).await;
    driven.round();
    driven.tick();
    assert!(driven.shard.without_room.contains_key(&id(0)), "there is no room yet");
    driven.handle.set_room(Room::Low(shortage), space);
    driven.tick();
    assert!(driven.shard.without_room.is_empty());
    assert!(driven.handle.check_producers().is_err(), "followers go first");
    driven.handle.set_room(Room::Enough, space);
    assert!(driven.handle.check_producers().is_ok());
    assert!(driven.shard.owned[&id(0)].follows(source(2)) && !driven.shard.owned[&id(0)].follows(source(3)));
}

#[tokio::test]
async fn a_directory_without_room_may_return_and_a_broken_one_not() {
    for (is_full, cause) in [(true, OutageCause::Full), (false, OutageCause::Broken)] {
        let mut driven = Driven::leading().await;
        if is_full {
            driven.logs.fill_disk()
        } else {
            driven.logs.break_disk()
        }
        let _unwritten = driven.produce(id(0)).await;
        driven.round();
        let (_, outage) = driven.failed.try_recv().expect("it is reported");
        assert_eq!((outage.cause, outage.may_pass()), (cause, is_full));
    }
}

#[tokio::test]
async fn nobody_waits_for_the_owner_of_a_directory_whose_disk_hangs() {
    let mut driven = Driven::leading().await;
    let outage = Outage { cause: OutageCause::Hangs, reason: "the disk does not answer".to_owned() };
    let lead = || RoleChange::Lead { id: id(0), leader_epoch: LeaderEpoch::default() };
    // More than the queue takes, and nobody takes them.
    let blocked = async {
        while driven.handle.change_role(lead()).await.is_ok() {}
        driven.handle.change_role(lead()).await
    };
    let taken_offline = async {
        tokio::task::yield_now().await;
        driven.handle.take_offline(outage.clone())
    };
    let (refused, is_first) = tokio::join!(blocked, taken_offline);
    assert!(is_first && refused.is_err_and(|error| error.name == ErrorName::KafkaStorageError));
    let asked = driven.handle.describe(id(0)).await;
    assert!(asked.is_err_and(|error| error.message.contains("does not answer")));
    let _write = driven.handle.operations().begin();
    assert!(!driven.handle.stop().await, "what it has may not be on the disk");
    assert!(driven.failed.try_recv().is_err());
}

#[tokio::test]
async fn a_replica_that_is_deleted_before_it_is_open_is_not_opened() {
    let mut driven = Driven::start((0..COUNT).map(id).collect());
    driven.delete(id(COUNT - 1), None).await;
    while driven.shard.has_more_to_do() {
        driven.round();
    }
    assert_eq!(driven.shard.owned.len(), COUNT as usize - 1);
    assert!(driven.logs.pending() > 0);
    driven.tick();
    assert_eq!(driven.logs.pending(), 0, "it cannot come back after a loss of power");
    assert!(!driven.is_found(id(COUNT - 1)));
}

#[tokio::test]
async fn a_follower_that_lags_is_found_by_a_tick_and_the_outcome_counts() {
    let mut driven = Driven::start(Vec::new());
    driven.learn(vec![on_both(1)]);
    driven.change(RoleChange::Lead { id: id(0), leader_epoch: LeaderEpoch::new(1) }).await;
    driven.round();
    let mut answer = driven.produce(id(0)).await;
    driven.round();
    driven.tick();
    assert!(answer.try_recv().is_err() && driven.proposed.try_recv().is_err(), "the follower has time");
    // As if so much time had passed.
    driven.shard.started -= Duration::from_secs(60);
    driven.tick();
    let (partition, proposal) = driven.proposed.try_recv().expect("the follower has lagged for too long");
    assert_eq!((partition, proposal.isr.len()), (id(0), 1));
    let applied = Outcome::Applied { partition_epoch: proposal.partition_epoch.next(), isr: vec![broker(1)] };
    driven.handle.send(Command::Outcomes(vec![(partition, proposal, applied)])).await.expect("the owner lives");
    driven.round();
    assert!(matches!(answer.try_recv(), Ok(Ok(_))));
}

#[tokio::test]
async fn housekeeping_is_done_where_there_are_records() {
    let mut driven = Driven::leading().await;
    driven.tick();
    let _answer = driven.produce(id(3)).await;
    driven.round();
    driven.shard.housekeeping = Housekeeping::default();
    assert_eq!(driven.tick(), 1);
}

#[tokio::test]
async fn a_leader_at_an_old_epoch_acknowledges_nothing() {
    let mut driven = Driven::leading().await;
    let mut staged = driven.produce(id(0)).await;
    let mut other = driven.produce(id(1)).await;
    let mut round = Round::default();
    driven.shard.take_waiting(&mut round, &mut driven.inbox);
    // The change of role is still on its way.
    driven.metadata.send_modify(|image| replay(image, vec![on_both(2)]));
    driven.end(round);
    assert!(staged.try_recv().is_err(), "neither acknowledged nor refused");
    assert!(matches!(other.try_recv(), Ok(Ok(_))));
    let mut late = driven.produce(id(0)).await;
    driven.round();
    assert!(matches!(late.try_recv(), Ok(Err(error)) if error.name == ErrorName::NotLeaderOrFollower));
    let source = Source { leader: broker(2), leader_epoch: LeaderEpoch::new(1) };
    driven.change(RoleChange::Follow { id: id(0), source }).await;
    driven.round();
    assert!(matches!(staged.try_recv(), Ok(Err(error)) if error.name == ErrorName::OutcomeUnknown));
}
