//! Turns of the event loop of a controller that is a cluster by itself; the test makes each of them.

mod fencing;
mod held;
mod large_plans;
mod tasks;

use quorate_metadata::ids::{ClientId, DirectoryId, IncarnationId, PartitionId, TopicId, TopicPartition};
use quorate_metadata::plan::brokers::{self, RegisterBroker};
use quorate_metadata::plan::features;
use quorate_metadata::record::{
    ConfigResource, Endpoint, Kind, PartitionRegistration, PartitionState, Probe, SecurityProtocol,
};
use quorate_metadata::{ApiError, ErrorName, MetadataImage, Plan, Record};
use tokio::sync::oneshot;

use super::super::fixture::{event_loop, lone_voter};
use super::super::inflight::IN_FLIGHT_MAX;
use super::super::operation::{Mutation, Origin, Position, RemovalTarget, Reply, RequestId, Weight};
use super::*;

type Answer = oneshot::Receiver<Reply>;

/// Far more turns than any of these tests needs.
const TURNS_MAX: usize = 1_000;

/// Replies with the number of records that it is given.
struct Counting<P>(P);

impl<P> Mutation for Counting<P>
where
    P: FnMut(&MetadataImage) -> Result<Plan<()>, ApiError> + Send,
{
    fn plan(&mut self, image: &MetadataImage, _: &mut Rng) -> Result<Plan<()>, ApiError> {
        (self.0)(image)
    }

    fn reply(&mut self, _: &Position, records: &[Record]) -> Vec<u8> {
        records.len().to_string().into_bytes()
    }
}

fn operation(plan: impl FnMut(&MetadataImage) -> Result<Plan<()>, ApiError> + Send + 'static) -> (Operation, Answer) {
    let (reply, answer) = oneshot::channel();
    let internal = Operation::internal("test", |_, _| Ok(Plan::new(Vec::new(), ())));
    (Operation { mutation: Box::new(Counting(plan)), reply, ..internal }, answer)
}

fn config(key: &str, value: String) -> Record {
    Record::Config { resource: ConfigResource::BrokerDefault, key: key.to_owned(), value: Some(value) }
}

fn value<'a>(image: &'a MetadataImage, key: &str) -> Option<&'a str> {
    image.configs.get(&ConfigResource::BrokerDefault)?.get(key).map(String::as_str)
}

/// Writes one config.
fn set(key: &'static str, value: &'static str) -> (Operation, Answer) {
    operation(move |_| Ok(Plan::new(vec![config(key, value.to_owned())], ())))
}

/// Writes `{name}-0` and so on, one in a step.
fn in_steps(name: &'static str, count: usize) -> (Operation, Answer) {
    operation(move |image| {
        let next =
            (0..count).find(|at| value(image, &format!("{name}-{at}")).is_none()).expect("planned until it is done");
        let records = vec![config(&format!("{name}-{next}"), "written".to_owned())];
        Ok(if next + 1 < count { Plan::partial(records, ()) } else { Plan::new(records, ()) })
    })
}

/// Writes a transaction of four batches.
fn transaction() -> (Operation, Answer) {
    let records: Vec<Record> = (0..40).map(|at| config(&format!("part-{at}"), "x".repeat(100_000))).collect();
    let (operation, answer) = operation(move |_| Ok(Plan::new(records.clone(), ())));
    (Operation { atomic: true, ..operation }, answer)
}

fn broker(id: i32) -> BrokerId {
    BrokerId::new(id)
}

/// The one directory of a broker.
fn directory(id: i32) -> DirectoryId {
    DirectoryId::new(uuid::Uuid::from_u128(u128::from(id.unsigned_abs()) << 64))
}

/// The next process of a broker.
fn register(image: &MetadataImage, id: i32) -> Result<Plan<()>, ApiError> {
    let request = RegisterBroker {
        broker: broker(id),
        cluster: image.cluster.expect("it was created"),
        incarnation: IncarnationId::new(uuid::Uuid::from_u128(image.next_offset.get().unsigned_abs().into())),
        endpoints: vec![Endpoint {
            name: "api".to_owned(),
            host: "127.0.0.1".to_owned(),
            port: 1,
            security: SecurityProtocol::Plaintext,
        }],
        kind: Kind::LOG,
        probe: Probe::Unstated,
        rack: None,
        features: features::supported(),
        directories: vec![directory(id)],
        cordoned_directories: None,
        previous_epoch: None,
    };
    Ok(brokers::register(image, request, false)?.map(|_| ()))
}

/// Led by broker 1, followed by broker 2.
fn partition(number: i32) -> Record {
    let replicas = [1, 2].map(broker).to_vec();
    let state = PartitionState {
        directories: [1, 2].map(directory).to_vec(),
        isr: replicas.clone(),
        leader: replicas.first().copied(),
        replicas,
        ..PartitionState::default()
    };
    let id = TopicPartition::new(TopicId::default(), PartitionId::new(number));
    Record::CreatePartition(PartitionRegistration { id, state: state.into() })
}

struct Driven {
    event_loop: EventLoop,
    controller: ControllerHandle,
    epoch: ControllerEpoch,
    _leadership: mpsc::Receiver<Leadership>,
}

impl Driven {
    async fn start() -> Self {
        let (raft, view) = lone_voter().await;
        let mut leadership = raft.leadership();
        let Some(Leadership::Claimed { epoch }) = leadership.recv().await else { panic!("it is elected") };
        let (event_loop, controller) = event_loop(raft, view);
        let mut driven = Self { event_loop, controller, epoch, _leadership: leadership };
        driven.event_loop.on_claimed(epoch);
        driven.finish().await;
        driven
    }

    /// Brokers 1 and 2, and a topic of so many partitions.
    async fn with_partitions(count: i32) -> Self {
        let mut driven = Self::start().await;
        for id in [1, 2] {
            driven.done(operation(move |image| register(image, id))).await;
            driven.done(operation(move |image| brokers::unfence(image, broker(id)))).await;
        }
        let mut records =
            vec![Record::CreateTopic { topic: TopicId::default(), name: "orders".to_owned(), kind: Kind::LOG }];
        records.extend((0..count).map(partition));
        driven.done(operation(move |_| Ok(Plan::new(records.clone(), ())))).await;
        driven
    }

    fn claim(&self) -> &Claim {
        self.event_loop.claim.as_ref().expect("the claim is kept")
    }

    fn draft(&self) -> &MetadataImage {
        self.claim().draft.working()
    }

    fn is_fenced(&self, id: i32) -> bool {
        self.draft().broker(broker(id)).expect("registered").fenced
    }

    fn run(&mut self, operations: impl IntoIterator<Item = Operation>) {
        self.event_loop.run_all(operations.into_iter().collect());
    }

    /// Begins a fencing and makes its first step.
    fn fence(&mut self, id: i32) {
        self.event_loop.fence(broker(id), "a test");
        self.event_loop.go_on();
    }

    async fn settle_one(&mut self) {
        let outcome = EventLoop::next_settled(&mut self.event_loop.claim).await;
        self.event_loop.on_settled(outcome);
    }

    /// Until nothing is in flight.
    async fn settle(&mut self) {
        while self.event_loop.claim.as_ref().is_some_and(|claim| !claim.in_flight.is_empty()) {
            self.settle_one().await;
        }
    }

    async fn take_prepared(&mut self) {
        let prepared = self.event_loop.prepared.join_next().await.expect("a plan is being made");
        self.event_loop.on_prepared(prepared.expect("a plan does not panic"));
    }

    /// Until there is nothing to do.
    async fn finish(&mut self) {
        for _ in 0..TURNS_MAX {
            self.settle().await;
            if self.event_loop.can_go_on() {
                self.event_loop.go_on();
            } else if !self.event_loop.prepared.is_empty() {
                self.take_prepared().await;
            } else if self.event_loop.claim.as_ref().is_none_or(|claim| claim.in_flight.is_empty()) {
                return;
            }
        }
        panic!("the event loop comes to no end");
    }

    /// Runs it to its end.
    async fn done(&mut self, (operation, answer): (Operation, Answer)) {
        self.run([operation]);
        self.finish().await;
        assert_eq!(answer.await, Ok(Ok(b"0".to_vec())));
    }

    async fn claim_again(&mut self) {
        self.settle().await;
        self.event_loop.resign("a test");
        self.event_loop.activate(self.epoch);
    }
}

#[tokio::test]
async fn an_epoch_that_is_claimed_already_is_not_claimed_again() {
    let mut driven = Driven::start().await;
    let (operation, answer) = set("key", "value");
    driven.run([operation]);
    driven.event_loop.on_claimed(driven.epoch);
    driven.finish().await;
    assert_eq!(answer.await, Ok(Ok(b"0".to_vec())), "it is still in flight");
}

#[tokio::test(start_paused = true)]
async fn steps_take_turns_and_operations_run_between_them() {
    let mut driven = Driven::start().await;
    let ((one, one_done), (other, other_done)) = (in_steps("one", 3), in_steps("other", 3));
    driven.run([one, other]);
    let (between, _) = set("between", "steps");
    driven.controller.submit(between).expect("the queue has room");
    driven.event_loop.go_on();
    let written = ["one-1", "other-1", "between", "one-2"].map(|key| value(driven.draft(), key).is_some());
    assert_eq!(written, [true, true, true, false]);
    driven.finish().await;
    assert_eq!((one_done.await, other_done.await), (Ok(Ok(b"0".to_vec())), Ok(Ok(b"0".to_vec()))));
    assert!(value(&driven.event_loop.view.image(), "other-2").is_some());
}

/// Writes `{name}-0` and so on, all at once.
fn many(name: &'static str) -> (Operation, Answer) {
    let records: Vec<Record> =
        (0..=MANY_RECORDS).map(|at| config(&format!("{name}-{at}"), "written".to_owned())).collect();
    let (operation, answer) = operation(move |_| Ok(Plan::new(records.clone(), ())));
    (Operation { weight: Weight { bytes: 1_000, records: MANY_RECORDS + 1, broker: None }, ..operation }, answer)
}

#[tokio::test(start_paused = true)]
async fn a_small_operation_does_not_wait_for_all_large_ones_before_it() {
    let mut driven = Driven::start().await;
    let (large, mut answers): (Vec<_>, Vec<_>) = ["a", "b", "c"].map(many).into_iter().unzip();
    let (small, done) = set("small", "1");
    answers.push(done);
    large.into_iter().chain([small]).for_each(|next| driven.controller.submit(next).expect("the queue has room"));
    let first = driven.event_loop.operations.recv().await.expect("it waits");
    driven.event_loop.run_operations(first);
    let written = ["a-0", "small", "b-0", "c-0"].map(|key| value(driven.draft(), key).is_some());
    assert_eq!(written, [true, true, false, false]);
    assert_eq!(driven.event_loop.operations.bytes().total(), 2_000, "those that wait are still counted");
    driven.finish().await;
    for answer in answers {
        assert_eq!(answer.await, Ok(Ok(b"0".to_vec())));
    }
    assert_eq!(driven.event_loop.operations.bytes().total(), 0);
}

#[tokio::test]
async fn a_client_does_not_wait_for_all_brokers_before_it() {
    let mut driven = Driven::start().await;
    for _ in 0..2 * OPERATIONS_PER_BATCH_MAX {
        driven.controller.submit(set("broker", "written").0).expect("the queue has room");
    }
    let (mutation, _) = set("client", "written");
    driven.controller.submit(Operation { origin: Origin::Client, ..mutation }).expect("the queue has room");
    let first = driven.event_loop.operations.recv().await.expect("it waits");
    driven.event_loop.run_operations(first);
    assert_eq!(value(driven.draft(), "client"), Some("written"));
}

#[tokio::test]
async fn a_turn_ends_when_its_time_is_over() {
    let mut driven = Driven::start().await;
    for key in ["first", "second"] {
        let (slow, _) = operation(move |_| {
            let started = Instant::now();
            while started.elapsed() < TURN_MAX {
                std::hint::spin_loop();
            }
            Ok(Plan::new(vec![config(key, "written".to_owned())], ()))
        });
        driven.controller.submit(slow).expect("the queue has room");
    }
    let first = driven.event_loop.operations.recv().await.expect("it waits");
    driven.event_loop.run_operations(first);
    assert_eq!(["first", "second"].map(|key| value(driven.draft(), key)), [Some("written"), None]);
    driven.event_loop.go_on();
    assert_eq!(value(driven.draft(), "second"), Some("written"));
}

#[tokio::test]
async fn what_waits_for_its_turn_is_bounded_and_is_refused_with_the_claim() {
    let mut driven = Driven::start().await;
    driven.run([many("first").0]);
    let mut waiting = Vec::new();
    while driven.event_loop.has_room() {
        let (large, answer) = many("next");
        driven.controller.submit(large).expect("the queue has room");
        let next = driven.event_loop.operations.recv().await.expect("it waits");
        driven.event_loop.run_operations(next);
        waiting.push(answer);
    }
    assert_eq!(waiting.len(), TURNS_WAITING_MAX);
    driven.event_loop.resign("a test");
    assert_eq!(driven.event_loop.operations.bytes().total(), 0);
    for answer in waiting {
        assert_eq!(answer.await.expect("an answer").map_err(|error| error.name), Err(ErrorName::NotController));
    }
}

#[tokio::test]
async fn operations_between_batches_of_a_plan_go_on_after_it_in_order() {
    let mut driven = Driven::start().await;
    let ((whole, done), (first, first_done), (second, second_done)) = (transaction(), set("key", "1"), set("key", "2"));
    driven.run([whole, first, second]);
    assert!(value(driven.draft(), "key").is_none());
    driven.finish().await;
    for answer in [done, first_done, second_done] {
        assert_eq!(answer.await, Ok(Ok(b"0".to_vec())));
    }
    let image = driven.event_loop.view.image();
    assert_eq!((value(&image, "key"), value(&image, "part-39").map(str::len)), (Some("2"), Some(100_000)));
}

#[tokio::test]
async fn a_group_of_large_operations_becomes_several_batches() {
    let mut driven = Driven::start().await;
    let large =
        |at: usize| operation(move |_| Ok(Plan::new(vec![config(&format!("large-{at}"), "x".repeat(300_000))], ())));
    let (operations, answers): (Vec<_>, Vec<_>) = (0..20).map(large).unzip();
    driven.run(operations);
    assert!(driven.claim().in_flight.bytes() > 5_000_000);
    driven.finish().await;
    for answer in answers {
        assert_eq!(answer.await, Ok(Ok(b"0".to_vec())));
    }
    assert_eq!((driven.claim().in_flight.bytes(), driven.event_loop.metrics.in_flight_bytes.get()), (0, 0));
}

#[tokio::test]
async fn large_steps_of_a_group_become_several_batches() {
    let mut driven = Driven::start().await;
    let large = |at: usize| {
        operation(move |image| {
            let key = format!("large-{at}");
            let is_last = value(image, &key).is_some();
            let record = if is_last { config("last", key) } else { config(&key, "x".repeat(900_000)) };
            Ok(if is_last { Plan::new(vec![record], ()) } else { Plan::partial(vec![record], ()) })
        })
    };
    let (operations, answers): (Vec<_>, Vec<_>) = (0..6).map(large).unzip();
    driven.run(operations);
    assert!(driven.claim().in_flight.bytes() > 4_500_000);
    driven.finish().await;
    for answer in answers {
        assert_eq!(answer.await, Ok(Ok(b"0".to_vec())));
    }
}

#[tokio::test]
async fn nothing_is_planned_while_too_much_is_in_flight() {
    let mut driven = Driven::start().await;
    let (steps, done) = in_steps("step", 3);
    driven.run([steps]);
    for _ in 1..IN_FLIGHT_MAX {
        assert!(driven.event_loop.has_room() && driven.event_loop.can_go_on());
        driven.run([set("key", "value").0]);
    }
    assert!(!driven.event_loop.has_room() && !driven.event_loop.can_go_on());
    driven.settle_one().await;
    assert!(driven.event_loop.has_room() && driven.event_loop.can_go_on());
    driven.finish().await;
    assert_eq!(done.await, Ok(Ok(b"0".to_vec())));
}

#[tokio::test]
async fn an_operation_leaves_room_in_the_queue_when_it_is_planned() {
    let mut driven = Driven::start().await;
    let heavy = || {
        let (operation, answer) = set("key", "value");
        (Operation { weight: Weight { bytes: 20 * 1024 * 1024, records: 1, broker: None }, ..operation }, answer)
    };
    for _ in 0..3 {
        driven.controller.submit(heavy().0).expect("the queue is empty");
        let refused = driven.controller.submit(heavy().0).expect_err("both are more than it may have");
        assert_eq!(refused.name, ErrorName::Throttled);
        let first = driven.event_loop.operations.recv().await.expect("it waits");
        driven.event_loop.run_operations(first);
    }
    let (mut alone, _) = heavy();
    alone.weight.bytes *= 3;
    driven.controller.submit(alone).expect("an empty queue takes any request");
}

#[tokio::test]
async fn a_request_that_was_applied_is_answered_and_not_applied_again() {
    let mut driven = Driven::start().await;
    let request = Some(RequestId { client: ClientId::new(uuid::Uuid::from_u128(7)), request: 1 });
    let (whole, first) = transaction();
    driven.run([Operation { request, ..whole }]);
    driven.finish().await;
    let next_offset = driven.draft().next_offset;
    let (whole, second) = transaction();
    driven.run([Operation { request, ..whole }]);
    driven.finish().await;
    assert_eq!((first.await, second.await), (Ok(Ok(b"0".to_vec())), Ok(Ok(b"0".to_vec()))));
    assert_eq!(driven.draft().next_offset, next_offset);
}

#[tokio::test]
async fn an_operation_that_nothing_waits_for_is_not_planned() {
    let mut driven = Driven::start().await;
    let request = Some(RequestId { client: ClientId::new(uuid::Uuid::from_u128(7)), request: 1 });
    let (abandoned, answer) = set("key", "abandoned");
    drop(answer);
    driven.run([Operation { request, ..abandoned }]);
    driven.finish().await;
    assert_eq!(value(driven.draft(), "key"), None);
}

#[tokio::test]
async fn a_plan_that_was_given_up_while_it_was_made_is_dropped() {
    let mut driven = Driven::start().await;
    let pulse = driven.event_loop.pulse();
    let (held, _) = operation(move |_| {
        pulse.give_up();
        Ok(Plan::new(vec![config("key", "late".to_owned())], ()))
    });
    driven.run([held]);
    driven.finish().await;
    assert_eq!(value(driven.draft(), "key"), None);
    driven.done(set("key", "next")).await;
}

#[tokio::test]
async fn an_operation_that_is_refused_takes_no_room_in_the_queue() {
    let driven = Driven::start().await;
    (0..QUEUE_MAX).for_each(|_| driven.controller.submit(set("key", "value").0).expect("the queue has room"));
    let (heavy, _) = set("key", "value");
    let weight = Weight { bytes: 1_000, records: 1, broker: None };
    let refused = driven.controller.submit(Operation { weight, ..heavy }).expect_err("the queue is full");
    assert_eq!((refused.name, driven.event_loop.operations.bytes().total()), (ErrorName::Throttled, 0));
}

#[tokio::test]
async fn a_resignation_answers_everything_that_waits() {
    let mut driven = Driven::start().await;
    let ((steps, in_steps), (whole, proposed), (deferred, waits)) =
        (in_steps("step", 3), transaction(), set("key", "value"));
    let (heavy, large) = large_plans::heavy("large");
    driven.run([steps, heavy, whole, deferred]);
    driven.event_loop.resign("a test");
    for answer in [in_steps, proposed, waits, large] {
        assert_eq!(answer.await.expect("an answer").map_err(|error| error.name), Err(ErrorName::NotController));
    }
}

#[tokio::test]
async fn a_claim_ends_the_transaction_that_the_one_before_it_left_open() {
    let mut driven = Driven::start().await;
    driven.run([transaction().0]);
    assert!(driven.claim().draft.has_open_transaction());
    driven.claim_again().await;
    driven.finish().await;
    let ledger = driven.event_loop.view.ledger();
    assert!(!ledger.has_open_transaction() && value(ledger.visible(), "part-0").is_none());
    driven.done(set("key", "value")).await;
}
