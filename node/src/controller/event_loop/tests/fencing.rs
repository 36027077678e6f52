//! Fencings: ahead of large plans, in steps, of one incarnation.

use quorate_metadata::limits::CHANGES_PER_STEP_MAX;

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
    assert_eq!(late(&driven), [false, false]);
    driven.event_loop.fence(broker(1), "a test");
    assert!(!driven.is_fenced(1));
    driven.event_loop.run_due_tasks(Instant::now() + Duration::from_secs(1));
    assert_eq!(late(&driven), [true, false]);
    driven.finish().await;
    assert!(driven.is_fenced(1));
    assert_eq!(late(&driven), [true, false]);
    driven.run([operation(|image| brokers::unfence(image, broker(1))).0]);
    assert_eq!(late(&driven), [false, false]);
}

#[tokio::test]
async fn a_fencing_that_was_refused_makes_no_contact_late() {
    let mut driven = Driven::with_partitions(1).await;
    let epoch = driven.draft().broker(broker(1)).expect("registered").epoch;
    let contact = Contact { broker: broker(1), epoch, metadata_offset: Offset::default() };
    assert!(!driven.event_loop.sessions.touch(contact));
    driven.event_loop.sessions.begin_fencing(broker(1));
    assert!(driven.event_loop.sessions.touch(contact));
    driven.event_loop.run_due_tasks(Instant::now() + Duration::from_secs(1));
    assert!(!driven.event_loop.sessions.touch(contact));
}
