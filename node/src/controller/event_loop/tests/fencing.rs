//! Fencings: ahead of large plans, in steps, of one incarnation.

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
    let mut driven = Driven::with_partitions(PARTITIONS).await;
    driven.event_loop.fence(broker(1), "a test");
    driven.run([operation(|image| register(image, 1)).0]);
    driven.run([operation(|image| brokers::unfence(image, broker(1))).0]);
    driven.finish().await;
    assert!(!driven.is_fenced(1) && driven.claim().steps.is_empty());
}
