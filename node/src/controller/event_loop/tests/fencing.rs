//! Fencings and controlled shutdowns: ahead of large plans, in steps, of one incarnation.

use quorate_metadata::limits::CHANGES_PER_STEP_MAX;
use quorate_metadata::plan::alter_partition::{AlterPartition, IsrMember, PartitionAlteration, alter_partition};
use quorate_metadata::plan::heartbeat::{Heartbeat, HeartbeatSteps};
use quorate_metadata::record::{Cause, LeaderRecoveryState, PartitionChange};

use super::super::super::liveness::Contact;
use super::*;

/// More than one step.
const PARTITIONS: i32 = 2_500;

#[tokio::test]
async fn a_fencing_goes_ahead_of_a_transaction_which_is_made_again() {
    let mut driven = Driven::with_partitions(1).await;
    let (whole, done) = transaction();
    driven.run([whole]);
    assert!(driven.claim().draft.has_open_transaction());
    driven.event_loop.fence(broker(1), "a test");
    assert!(driven.is_fenced(1) && !driven.claim().draft.has_open_transaction());
    driven.settle().await;
    let image = driven.event_loop.view.image();
    assert!(image.broker(broker(1)).expect("registered").fenced && value(&image, "part-0").is_none());
    driven.finish().await;
    assert_eq!(done.await, Ok(Ok(b"0".to_vec())));
    assert!(value(&driven.event_loop.view.image(), "part-39").is_some());
}

#[tokio::test]
async fn a_broker_that_is_being_fenced_is_not_fenced_again() {
    let mut driven = Driven::with_partitions(PARTITIONS).await;
    driven.event_loop.fence(broker(1), "a test");
    assert!(!driven.is_fenced(1) && driven.claim().is_fencing(broker(1)) && !driven.claim().is_fencing(broker(2)));
    driven.event_loop.fence(broker(1), "a test");
    assert_eq!(driven.claim().steps.len(), 1);
    driven.finish().await;
    assert!(driven.is_fenced(1) && !driven.claim().is_fencing(broker(1)));
}

#[tokio::test]
async fn the_steps_of_a_fencing_end_where_another_incarnation_has_registered() {
    // Of two steps, so that one is left when the registration gives up what is left.
    let mut driven = Driven::with_partitions(CHANGES_PER_STEP_MAX as i32 + 100).await;
    driven.event_loop.fence(broker(1), "a test");
    driven.run([operation(|image| register(image, 1)).0]);
    driven.run([operation(|image| brokers::unfence(image, broker(1))).0]);
    driven.finish().await;
    assert!(!driven.is_fenced(1) && driven.claim().steps.is_empty());
}

#[tokio::test(start_paused = true)]
async fn brokers_whose_sessions_have_ended_are_fenced_turn_by_turn() {
    let mut driven = Driven::with_partitions(1).await;
    for id in [1, 2].map(broker) {
        let epoch = driven.draft().broker(id).expect("registered").epoch;
        driven.event_loop.sessions.touch(Contact { broker: id, epoch, metadata_offset: Offset::default() });
    }
    tokio::time::advance(Duration::from_secs(3_601)).await;
    driven.event_loop.run_due_tasks(Instant::now());
    assert_eq!([1, 2].map(|id| driven.is_fenced(id)), [true, false]);
    driven.event_loop.run_unfinished_tasks();
    assert_eq!([1, 2].map(|id| driven.is_fenced(id)), [true, true]);
}

#[tokio::test]
async fn contact_is_late_from_the_first_step_until_unfenced() {
    let mut driven = Driven::with_partitions(PARTITIONS).await;
    let epochs = [1, 2].map(|id| driven.draft().broker(broker(id)).expect("registered").epoch);
    let late = |driven: &Driven| {
        [1, 2].map(|id| {
            let (broker, epoch) = (broker(id), epochs[id as usize - 1]);
            driven.event_loop.sessions.touch(Contact { broker, epoch, metadata_offset: Offset::default() })
        })
    };
    assert_eq!(late(&driven), [None, None]);
    driven.event_loop.fence(broker(1), "a test");
    assert!(!driven.is_fenced(1));
    driven.event_loop.run_due_tasks(Instant::now() + Duration::from_secs(1));
    assert_eq!(late(&driven), [Some(Removal::Fencing), None]);
    driven.finish().await;
    assert!(driven.is_fenced(1));
    assert_eq!(late(&driven), [Some(Removal::Fencing), None]);
    driven.run([operation(|image| brokers::unfence(image, broker(1))).0]);
    assert_eq!(late(&driven), [None, None]);
}

#[tokio::test]
async fn a_fencing_that_was_refused_makes_no_contact_late() {
    let mut driven = Driven::with_partitions(1).await;
    let epoch = driven.draft().broker(broker(1)).expect("registered").epoch;
    let contact = Contact { broker: broker(1), epoch, metadata_offset: Offset::default() };
    assert_eq!(driven.event_loop.sessions.touch(contact), None);
    driven.event_loop.sessions.begin_removal(broker(1), Removal::Fencing);
    assert_eq!(driven.event_loop.sessions.touch(contact), Some(Removal::Fencing));
    driven.event_loop.run_due_tasks(Instant::now() + Duration::from_secs(1));
    assert_eq!(driven.event_loop.sessions.touch(contact), None);
}

/// What a stopping broker 2 asks for, as its heartbeats have the controller do it.
fn stops(driven: &Driven) -> Operation {
    let epoch = driven.draft().broker(broker(2)).expect("registered").epoch;
    let removes = Removes { broker: broker(2), epoch, removal: Removal::ControlledShutdown };
    let mut steps = HeartbeatSteps::new(Heartbeat {
        broker: broker(2),
        epoch,
        metadata_offset: driven.draft().next_offset,
        want_fence: false,
        want_shutdown: true,
        offline_directories: Vec::new(),
    });
    let plan = move |image: &MetadataImage, _: &mut Rng| Ok(steps.plan(image, None)?.map(|_| ()));
    Operation { removes: Some(removes), ..Operation::internal("stop", plan) }
}

/// The leader, broker 1, wants the broker in the ISR of a partition.
fn take_in(driven: &Driven, number: i32) -> AlterPartition {
    let image = driven.draft();
    let id = TopicPartition::new(TopicId::default(), PartitionId::new(number));
    let partition = image.partition(id).expect("it exists");
    let member = |id| IsrMember { broker: broker(id), epoch: None };
    AlterPartition {
        broker: broker(1),
        broker_epoch: image.broker(broker(1)).expect("registered").epoch,
        partitions: vec![PartitionAlteration {
            id,
            leader_epoch: partition.leader_epoch,
            partition_epoch: partition.partition_epoch,
            isr: vec![member(1), member(2)],
            recovery: LeaderRecoveryState::Recovered,
            supersedes: false,
        }],
    }
}

#[tokio::test]
async fn a_broker_that_stops_waits_for_its_barrier_although_the_first_step_has_moved_all_that_it_led() {
    let mut driven = Driven::with_partitions(PARTITIONS).await;
    let led = TopicPartition::new(TopicId::default(), PartitionId::new(0));
    let change =
        PartitionChange { leader: Some(Some(broker(2))), ..PartitionChange::none(led, Cause::ElectionRequested) };
    driven.done(operation(move |_| Ok(Plan::new(vec![Record::PartitionChange(change.clone())], ())))).await;
    driven.run([stops(&driven)]);
    assert_eq!(driven.draft().index.led_count(broker(2)), 0);
    driven.run([stops(&driven)]);
    assert_eq!(driven.claim().steps.len(), 1, "it goes on already");
    driven.finish().await;
    let stopping = driven.draft().broker(broker(2)).expect("registered").clone();
    assert!(stopping.in_controlled_shutdown && stopping.controlled_shutdown_offset.is_some() && !stopping.fenced);
    assert_eq!(driven.draft().index.in_isr(broker(2)).count(), 0);
}

#[tokio::test]
async fn nobody_takes_a_broker_back_into_an_isr_that_it_was_to_leave() {
    for fences in [true, false] {
        let mut driven = Driven::with_partitions(PARTITIONS).await;
        if fences {
            driven.event_loop.fence(broker(2), "a test");
        } else {
            driven.run([stops(&driven)]);
        }
        assert!(driven.draft().is_active(broker(2)) && driven.draft().index.in_isr(broker(2)).next().is_some());
        let request = take_in(&driven, 0);
        let sessions = driven.event_loop.sessions.clone();
        let plan =
            alter_partition(driven.draft(), &request, |broker| sessions.is_leaving(broker)).expect("it is heard");
        let (_, answer) = &plan.response[0];
        assert_eq!(answer.as_ref().map_err(|error| error.name), Err(ErrorName::IneligibleReplica));
        // One that is still in the ISR may stay there until its turn comes.
        let request = take_in(&driven, PARTITIONS - 1);
        let plan =
            alter_partition(driven.draft(), &request, |broker| sessions.is_leaving(broker)).expect("it is heard");
        assert!(plan.response[0].1.is_ok());
        driven.finish().await;
        assert_eq!(driven.draft().index.in_isr(broker(2)).count(), 0);
    }
}
