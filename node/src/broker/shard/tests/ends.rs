//! Ends: of a leadership that is over before it is taken, of the directory, and of the broker.

use super::*;

async fn stop(driven: &Driven) {
    driven.handle.send(Command::Stop(oneshot::channel().0)).await.expect("the owner lives");
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
    driven.change(RoleChange::Delete { id: id(1), done: None }).await;
    driven.round();
    driven.change(RoleChange::Delete { id: id(2), done: Some(done) }).await;
    driven.logs.break_disk();
    let mut unwritten = driven.produce(id(0)).await;
    driven.round();
    assert!(driven.shard.owned.is_empty() && !driven.shard.has_more_to_do());
    assert!(matches!(unwritten.try_recv(), Ok(Err(_))));
    assert_eq!(deleted.try_recv(), Ok(()));
    assert!(!driven.is_found(id(1)) && driven.is_found(id(3)));
    driven.change(RoleChange::Delete { id: id(3), done: None }).await;
    let mut refused = driven.produce(id(0)).await;
    driven.round();
    assert!(matches!(refused.try_recv(), Ok(Err(error)) if error.name == ErrorName::KafkaStorageError));
    assert!(!driven.is_found(id(3)));
}
