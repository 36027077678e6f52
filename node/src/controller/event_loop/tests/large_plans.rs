//! Plans that are made beside the event loop.

use quorate_proto::admin::MutationResult;

use super::super::super::handle::MutationTerms;
use super::super::super::large_plan::RECORDS_ON_LOOP_MAX;
use super::*;

const WEIGHT: Weight = Weight { bytes: 0, records: RECORDS_ON_LOOP_MAX + 1, broker: None };

/// Adds its name to a list, after those that are there.
pub fn heavy(name: &'static str) -> (Operation, Answer) {
    let (operation, answer) = operation(move |image| {
        let list = format!("{}{name};", value(image, "list").unwrap_or_default());
        Ok(Plan::new(vec![config("list", list)], ()))
    });
    (Operation { weight: WEIGHT, ..operation }, answer)
}

#[tokio::test]
async fn other_operations_wait_while_a_large_plan_is_made() {
    let mut driven = Driven::start().await;
    let (large, done) = heavy("large");
    driven.run([large]);
    assert!(!driven.event_loop.has_room() && driven.event_loop.can_go_on());
    assert!(value(driven.draft(), "list").is_none(), "it is not planned here");
    let next_offset = driven.draft().next_offset;
    driven.event_loop.run_due_tasks(Instant::now() + Duration::from_secs(60));
    assert_eq!(driven.draft().next_offset, next_offset, "a task that is not urgent would make it stale");
    driven.event_loop.go_on();
    assert!(!driven.event_loop.has_room() && !driven.event_loop.can_go_on());
    driven.take_prepared().await;
    assert!(driven.event_loop.has_room());
    driven.finish().await;
    assert_eq!(done.await, Ok(Ok(b"0".to_vec())));
}

#[tokio::test]
async fn a_large_plan_that_is_stale_is_made_again_before_the_next() {
    let mut driven = Driven::start().await;
    let ((one, one_done), (other, other_done)) = (heavy("one"), heavy("other"));
    driven.run([one, other]);
    driven.event_loop.go_on();
    driven.event_loop.go_on();
    // Nothing plans between them today; if something does, the plan must not be used.
    driven.run([set("list", "fenced;").0]);
    driven.take_prepared().await;
    assert_eq!(value(driven.draft(), "list"), Some("fenced;"));
    driven.finish().await;
    assert_eq!((one_done.await, other_done.await), (Ok(Ok(b"0".to_vec())), Ok(Ok(b"0".to_vec()))));
    assert_eq!(value(&driven.event_loop.view.image(), "list"), Some("fenced;one;other;"));
}

#[tokio::test]
async fn a_fencing_goes_ahead_of_a_plan_that_is_being_made() {
    let mut driven = Driven::with_partitions(1).await;
    let (large, done) = heavy("large");
    driven.run([large]);
    driven.event_loop.go_on();
    driven.event_loop.fence(broker(1), "a test");
    driven.take_prepared().await;
    assert!(!driven.claim().large.is_proposing() && value(driven.draft(), "list").is_none());
    driven.event_loop.go_on();
    assert!(driven.is_fenced(1));
    driven.finish().await;
    assert_eq!(done.await, Ok(Ok(b"0".to_vec())));
    assert_eq!(value(&driven.event_loop.view.image(), "list"), Some("large;"));
}

#[tokio::test]
async fn others_do_not_wait_for_a_large_plan_that_waits_for_steps() {
    let mut driven = Driven::start().await;
    let ((steps, _), (large, done), (between, _)) = (in_steps("step", 3), heavy("large"), set("between", "steps"));
    driven.run([steps, large]);
    driven.controller.submit(between).expect("the queue has room");
    assert!(driven.event_loop.has_room());
    driven.event_loop.go_on();
    let written = ["step-1", "between", "step-2"].map(|key| value(driven.draft(), key).is_some());
    assert_eq!(written, [true, true, false]);
    driven.event_loop.go_on();
    assert!(!driven.event_loop.has_room(), "now it is made");
    driven.finish().await;
    assert_eq!(done.await, Ok(Ok(b"0".to_vec())));
}

#[tokio::test]
async fn a_large_plan_does_not_wait_for_what_changes_much_and_came_later() {
    let mut driven = Driven::start().await;
    let ((steps, _), (large, done), (later, later_done)) = (in_steps("step", 3), heavy("large"), many("later"));
    driven.run([steps, large]);
    driven.controller.submit(later).expect("the queue has room");
    let first = driven.event_loop.operations.recv().await.expect("it waits");
    driven.event_loop.run_operations(first);
    assert_eq!(driven.claim().under_way.step_count(), 1, "it waits behind the large one");
    driven.finish().await;
    assert_eq!((done.await, later_done.await), (Ok(Ok(b"0".to_vec())), Ok(Ok(b"0".to_vec()))));
    assert_eq!(driven.event_loop.operations.bytes().total(), 0);
}

#[tokio::test]
async fn a_large_plan_is_refused_when_many_wait() {
    let mut driven = Driven::start().await;
    driven.run([in_steps("step", 3).0]);
    let (waiting, answers): (Vec<_>, Vec<_>) = (0..8).map(|_| heavy("large")).unzip();
    driven.run(waiting);
    let (next, refused) = heavy("next");
    driven.run([next]);
    assert_eq!(refused.await.expect("an answer").map_err(|error| error.name), Err(ErrorName::Throttled));
    assert!(driven.event_loop.has_room(), "small operations need not wait for the steps");
    driven.finish().await;
    for answer in answers {
        assert_eq!(answer.await, Ok(Ok(b"0".to_vec())));
    }
}

#[tokio::test]
async fn a_large_plan_that_nothing_waits_for_is_not_made() {
    let mut driven = Driven::start().await;
    let request = Some(RequestId { client: ClientId::new(uuid::Uuid::from_u128(7)), request: 1 });
    let ((abandoned, answer), (next, done)) = (heavy("abandoned"), heavy("next"));
    driven.run([Operation { request, ..abandoned }, next]);
    drop(answer);
    driven.finish().await;
    assert_eq!(done.await, Ok(Ok(b"0".to_vec())));
    assert_eq!(value(&driven.event_loop.view.image(), "list"), Some("next;"));
}

#[tokio::test]
async fn a_large_plan_that_is_being_made_gives_way_to_one_that_is_there() {
    let mut driven = Driven::start().await;
    let ((large, large_done), (next, next_done), (ready, ready_done)) = (heavy("large"), heavy("next"), transaction());
    driven.run([large, next]);
    driven.event_loop.go_on();
    driven.run([ready]);
    driven.finish().await;
    assert!(matches!(ready_done.await, Ok(Ok(_))));
    assert_eq!((large_done.await, next_done.await), (Ok(Ok(b"0".to_vec())), Ok(Ok(b"0".to_vec()))));
    assert_eq!(value(&driven.event_loop.view.image(), "list"), Some("large;next;"));
}

#[tokio::test(start_paused = true)]
async fn a_large_plan_that_comes_too_late_is_dropped() {
    let mut driven = Driven::start().await;
    let controller = driven.controller.clone();
    let terms = MutationTerms {
        origin: Origin::Client,
        request: None,
        plan_only: false,
        atomic: true,
        timeout: Duration::from_secs(3_600),
        weight: WEIGHT,
    };
    let plan = |_: &MetadataImage, _: &mut Rng| Ok(Plan::new(vec![config("list", "late;".to_owned())], ()));
    let answer = |(), _: &Position, _: &[Record]| MutationResult::default();
    let caller = tokio::spawn(async move { controller.mutate("test", terms, plan, answer).await });
    let first = driven.event_loop.operations.recv().await.expect("it comes");
    driven.event_loop.run_operations(first);
    driven.event_loop.go_on();
    driven.event_loop.on_tick();
    assert!(!driven.event_loop.has_room(), "it has time");
    tokio::time::advance(Duration::from_secs(2)).await;
    driven.event_loop.on_tick();
    assert!(driven.event_loop.has_room(), "others need not wait any longer");
    let refused = caller.await.expect("no panic").expect_err("it was given up");
    assert_eq!(refused.name, ErrorName::PolicyViolation);
    driven.take_prepared().await;
    driven.finish().await;
    assert_eq!(value(driven.draft(), "list"), None);
}

#[tokio::test]
async fn a_large_plan_of_a_claim_that_is_gone_is_refused() {
    let mut driven = Driven::start().await;
    let (large, done) = heavy("large");
    driven.run([large]);
    driven.event_loop.go_on();
    driven.event_loop.resign("a test");
    driven.take_prepared().await;
    assert_eq!(done.await.expect("an answer").map_err(|error| error.name), Err(ErrorName::NotController));
}

#[tokio::test]
async fn a_plan_in_steps_that_is_not_to_be_written_is_answered_with_all_steps() {
    let mut driven = Driven::start().await;
    let next_offset = driven.draft().next_offset;
    let (steps, done) = in_steps("step", 3);
    driven.run([Operation { plan_only: true, ..steps }]);
    driven.finish().await;
    assert_eq!(done.await, Ok(Ok(b"3".to_vec())));
    assert_eq!(driven.draft().next_offset, next_offset);
}

#[tokio::test]
async fn a_large_plan_in_steps_goes_on_here() {
    let mut driven = Driven::start().await;
    let (steps, done) = in_steps("step", 3);
    driven.run([Operation { weight: WEIGHT, ..steps }]);
    driven.event_loop.go_on();
    driven.take_prepared().await;
    assert!(driven.event_loop.has_room(), "the steps hold nothing up");
    driven.event_loop.go_on();
    assert!(driven.event_loop.has_room() && value(driven.draft(), "step-0").is_some());
    driven.finish().await;
    assert_eq!(done.await, Ok(Ok(b"0".to_vec())));
}

/// Writes a transaction of so many parts that some are still to be prepared when the first is proposed.
fn in_parts(last: Record) -> (Operation, Answer) {
    let mut records: Vec<Record> = (0..400).map(|at| config(&format!("part-{at}"), "x".repeat(100_000))).collect();
    records.push(last);
    let (operation, answer) = operation(move |_| Ok(Plan::new(records.clone(), ())));
    (Operation { atomic: true, weight: WEIGHT, ..operation }, answer)
}

impl Driven {
    /// Until the first batches are proposed and a later part is being prepared.
    async fn propose_first_part(&mut self) {
        self.event_loop.go_on();
        self.take_prepared().await;
        self.settle().await;
        while self.event_loop.can_go_on() {
            self.event_loop.go_on();
            self.settle().await;
        }
        assert!(self.claim().draft.has_open_transaction() && !self.event_loop.prepared.is_empty());
    }

    /// Of the transaction nothing is there.
    async fn has_nothing_of_it(&mut self) {
        self.settle().await;
        let ledger = self.event_loop.view.ledger();
        assert!(!ledger.has_open_transaction() && value(ledger.visible(), "part-0").is_none());
    }
}

#[tokio::test]
async fn a_transaction_is_proposed_while_its_later_parts_are_prepared() {
    let mut driven = Driven::start().await;
    let ((whole, done), (other, other_done)) = (in_parts(config("last", String::new())), set("key", "value"));
    driven.run([whole]);
    driven.propose_first_part().await;
    driven.run([other]);
    assert!(!driven.event_loop.can_go_on() && !driven.event_loop.has_room(), "others wait for the end");
    driven.finish().await;
    assert_eq!((done.await, other_done.await), (Ok(Ok(b"0".to_vec())), Ok(Ok(b"0".to_vec()))));
    let image = driven.event_loop.view.image();
    assert!(value(&image, "part-399").is_some() && value(&image, "last").is_some());
    assert_eq!(image.digest(), driven.draft().digest());
}

#[tokio::test]
async fn a_fencing_goes_ahead_of_parts_that_are_not_there_and_they_are_made_again() {
    let mut driven = Driven::with_partitions(1).await;
    let (whole, done) = in_parts(config("last", String::new()));
    driven.run([whole]);
    driven.propose_first_part().await;
    driven.fence(1);
    assert!(driven.is_fenced(1));
    driven.has_nothing_of_it().await;
    driven.finish().await;
    assert_eq!(done.await, Ok(Ok(b"0".to_vec())));
    assert!(value(&driven.event_loop.view.image(), "part-399").is_some());
}

#[tokio::test]
async fn a_part_that_does_not_replay_leaves_nothing_of_its_transaction() {
    let mut driven = Driven::start().await;
    let (whole, done) = in_parts(Record::Digest { digest: 1 });
    driven.run([whole]);
    driven.propose_first_part().await;
    driven.finish().await;
    assert_eq!(done.await.expect("an answer").map_err(|error| error.name), Err(ErrorName::UnknownServerError));
    driven.has_nothing_of_it().await;
    driven.done(set("key", "value")).await;
}

#[tokio::test(start_paused = true)]
async fn a_part_that_comes_too_late_leaves_nothing_of_its_transaction() {
    let mut driven = Driven::start().await;
    let (whole, done) = in_parts(config("last", String::new()));
    driven.run([whole]);
    driven.propose_first_part().await;
    tokio::time::advance(Duration::from_secs(7)).await;
    driven.event_loop.on_tick();
    assert_eq!(done.await.expect("an answer").map_err(|error| error.name), Err(ErrorName::PolicyViolation));
    driven.finish().await;
    driven.has_nothing_of_it().await;
}

#[tokio::test]
async fn a_part_of_a_claim_before_this_one_is_dropped() {
    let mut driven = Driven::start().await;
    let (whole, done) = in_parts(config("last", String::new()));
    driven.run([whole]);
    driven.propose_first_part().await;
    driven.claim_again().await;
    assert_eq!(done.await.expect("an answer").map_err(|error| error.name), Err(ErrorName::NotController));
    let (whole, done) = in_parts(config("last", String::new()));
    driven.run([whole]);
    driven.finish().await;
    assert_eq!(done.await, Ok(Ok(b"0".to_vec())));
    assert_eq!(driven.event_loop.view.image().digest(), driven.draft().digest());
}
