//! Periodic tasks: sweeps that go on where they stopped, and digests between batches.

use super::*;

/// More than one scan.
const PARTITIONS: i32 = 6_000;

const LATER: Duration = Duration::from_secs(60);

#[tokio::test]
async fn a_sweep_goes_on_in_the_next_turn_and_comes_to_an_end() {
    let mut driven = Driven::with_partitions(PARTITIONS).await;
    driven.fence(1);
    driven.finish().await;
    // Back, but in no ISR: nothing can be elected, and everything is looked at.
    driven.done(operation(|image| brokers::unfence(image, broker(1)))).await;
    driven.event_loop.run_due_tasks(Instant::now() + LATER);
    driven.settle().await;
    assert!(driven.claim().tasks.has_unfinished() && driven.event_loop.can_go_on());
    driven.event_loop.go_on();
    assert!(!driven.claim().tasks.has_unfinished() && !driven.event_loop.can_go_on(), "it was the rest");
}

#[tokio::test]
async fn a_returned_broker_gets_all_that_it_can_lead_from_this_claim_or_the_next() {
    let mut driven = Driven::with_partitions(PARTITIONS).await;
    for id in [1, 2] {
        driven.fence(id);
        driven.finish().await;
    }
    driven.done(operation(|image| brokers::unfence(image, broker(2)))).await;
    let led = |driven: &Driven| driven.draft().index.led_by(broker(2)).count();
    let at_once = led(&driven);
    driven.event_loop.run_due_tasks(Instant::now() + LATER);
    let after_a_run = led(&driven);
    assert!(at_once < after_a_run && after_a_run < PARTITIONS as usize, "{at_once}, then {after_a_run}");
    driven.claim_again().await;
    driven.event_loop.run_due_tasks(Instant::now() + LATER);
    driven.finish().await;
    assert_eq!(led(&driven), PARTITIONS as usize);
}

#[tokio::test]
async fn a_digest_is_written_when_nothing_is_in_flight() {
    let mut driven = Driven::start().await;
    driven.run([in_steps("step", 2).0]);
    driven.event_loop.run_due_tasks(Instant::now() + LATER);
    let next_offset = driven.draft().next_offset;
    let may_go_on = driven.event_loop.has_room() || driven.event_loop.can_go_on();
    assert!(driven.claim().digest_due && !may_go_on, "what is in flight runs out first");
    driven.settle_one().await;
    assert!(!driven.claim().digest_due && driven.event_loop.has_room());
    assert_eq!(driven.draft().next_offset, next_offset.advance(1));
    driven.finish().await;
    driven.event_loop.run_due_tasks(Instant::now() + 2 * LATER);
    driven.finish().await;
    let digested = driven.draft().next_offset;
    driven.event_loop.run_due_tasks(Instant::now() + 3 * LATER);
    assert_eq!(driven.draft().next_offset, digested, "nothing new, no new digest");
}
