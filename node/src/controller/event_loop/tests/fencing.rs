//! Fencings and controlled shutdowns: ahead of large plans, in steps, of one incarnation.

use quorate_metadata::limits::CHANGES_PER_STEP_MAX;
use quorate_metadata::plan::alter_partition::{AlterPartition, IsrMember, PartitionAlteration, alter_partition};
use quorate_metadata::plan::heartbeat::{Heartbeat, HeartbeatSteps};
use quorate_metadata::record::{Cause, LeaderRecoveryState, PartitionChange};

use super::super::super::liveness::Contact;
use super::super::super::probe::Evidence;
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
    assert!(!driven.claim().draft.has_open_transaction());
    driven.event_loop.go_on();
    assert!(driven.is_fenced(1));
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
    driven.fence(1);
    assert!(!driven.is_fenced(1) && driven.claim().is_fencing(broker(1)) && !driven.claim().is_fencing(broker(2)));
    driven.fence(1);
    assert_eq!(driven.claim().under_way.step_count(), 1);
    driven.finish().await;
    assert!(driven.is_fenced(1) && !driven.claim().is_fencing(broker(1)));
}

/// More than there may be of other operations that wait for their turn.
#[tokio::test]
async fn fencings_of_many_brokers_do_not_close_the_queue() {
    let mut driven = Driven::start().await;
    let brokers = 1..=i32::try_from(TURNS_WAITING_MAX).expect("a small number") + 1;
    driven.run(brokers.clone().map(|id| operation(move |image| register(image, id)).0));
    driven.finish().await;
    driven.run(brokers.clone().map(|id| operation(move |image| brokers::unfence(image, broker(id))).0));
    driven.finish().await;
    brokers.for_each(|id| driven.event_loop.fence(broker(id), "a test"));
    assert!(driven.claim().under_way.step_count() > TURNS_WAITING_MAX && driven.event_loop.has_room());
}

#[tokio::test]
async fn the_steps_of_a_fencing_end_where_another_incarnation_has_registered() {
    // Of two steps, so that one is left when the registration gives up what is left.
    let mut driven = Driven::with_partitions(CHANGES_PER_STEP_MAX as i32 + 100).await;
    driven.fence(1);
    driven.run([operation(|image| register(image, 1)).0]);
    driven.run([operation(|image| brokers::unfence(image, broker(1))).0]);
    driven.finish().await;
    assert!(!driven.is_fenced(1) && driven.claim().under_way.step_count() == 0);
}

#[tokio::test(start_paused = true)]
async fn brokers_whose_sessions_have_ended_are_fenced_turn_by_turn() {
    let mut driven = Driven::with_partitions(PARTITIONS).await;
    for id in [1, 2].map(broker) {
        hear(&driven, id);
    }
    tokio::time::advance(Duration::from_secs(3_601)).await;
    driven.event_loop.run_due_tasks(Instant::now());
    assert_eq!([1, 2].map(|id| driven.claim().is_fencing(broker(id))), [true, true]);
    assert_fenced_in_turns(driven).await;
}

#[tokio::test]
async fn brokers_whose_ports_are_refused_are_fenced_turn_by_turn() {
    let mut driven = Driven::with_partitions(PARTITIONS).await;
    for id in [1, 2].map(broker) {
        let epoch = driven.draft().broker(id).expect("registered").epoch;
        driven.event_loop.on_probed(Probed { broker: id, epoch, evidence: Evidence::Refused });
    }
    assert_fenced_in_turns(driven).await;
}

/// Both brokers are gone: other operations run between the steps, and no broker waits until the other is fenced.
async fn assert_fenced_in_turns(mut driven: Driven) {
    let first_in_isr = |driven: &Driven, id: i32| driven.draft().index.in_isr(broker(id)).next();
    let first = [1, 2].map(|id| first_in_isr(&driven, id));
    let (between, _) = set("between", "steps");
    driven.controller.submit(between).expect("the queue has room");
    assert!(driven.claim().in_flight.is_empty(), "nothing is planned where a broker is found gone");
    driven.event_loop.go_on();
    assert!(first_in_isr(&driven, 1) != first[0] && first_in_isr(&driven, 2) == first[1]);
    assert_eq!(value(driven.draft(), "between"), Some("steps"));
    driven.event_loop.go_on();
    assert!(first_in_isr(&driven, 2) != first[1] && !driven.is_fenced(1));
    driven.finish().await;
    assert_eq!([1, 2].map(|id| driven.is_fenced(id)), [true, true]);
}

#[tokio::test(start_paused = true)]
async fn brokers_with_few_partitions_are_fenced_together() {
    let mut driven = Driven::with_partitions(1).await;
    for id in [1, 2].map(broker) {
        driven.event_loop.fence(id, "a test");
    }
    let proposed = driven.event_loop.metrics.batches_proposed.get();
    driven.event_loop.go_on();
    assert_eq!([1, 2].map(|id| driven.is_fenced(id)), [true, true]);
    assert_eq!(driven.event_loop.metrics.batches_proposed.get(), proposed + 1);
}

#[tokio::test]
async fn a_fencing_waits_for_at_most_one_step_of_others() {
    let mut driven = Driven::with_partitions(PARTITIONS).await;
    driven.run((0..5).map(|_| large_steps()));
    driven.event_loop.fence(broker(1), "a test");
    let led = driven.draft().index.led_count(broker(1));
    driven.event_loop.go_on();
    driven.event_loop.go_on();
    assert!(driven.draft().index.led_count(broker(1)) < led);
}

/// Changes as many partitions as a step may, again and again.
fn large_steps() -> Operation {
    operation(|_| {
        let change = |number| {
            let id = TopicPartition::new(TopicId::default(), PartitionId::new(number));
            Record::PartitionChange(PartitionChange::none(id, Cause::ElectionRequested))
        };
        Ok(Plan::partial((0..CHANGES_PER_STEP_MAX as i32).map(change).collect(), ()))
    })
    .0
}

#[tokio::test(start_paused = true)]
async fn a_turn_makes_one_large_step_and_sets_the_others_aside() {
    let mut driven = Driven::with_partitions(PARTITIONS).await;
    let weight = Weight { records: CHANGES_PER_STEP_MAX, ..Weight::default() };
    let large = (0..20).map(|_| Operation { weight, ..large_steps() });
    let (small, _) = set("small", "1");
    large.chain([small]).for_each(|next| driven.controller.submit(next).expect("the queue has room"));
    let (before, first) = (driven.draft().next_offset, driven.event_loop.operations.recv().await.expect("it waits"));
    driven.event_loop.run_operations(first);
    assert_eq!(driven.draft().next_offset, before.advance(CHANGES_PER_STEP_MAX + 1));
    assert_eq!((driven.claim().under_way.step_count(), value(driven.draft(), "small")), (20, Some("1")));
}

/// Its seats tell what it costs, before it is planned.
#[tokio::test(start_paused = true)]
async fn the_return_of_a_broker_with_many_partitions_takes_turns() {
    let mut driven = Driven::with_partitions(PARTITIONS).await;
    driven.run([large_steps()]);
    let weight = Weight { broker: Some(broker(1)), ..Weight::default() };
    let (returns, _) = operation(|image| register(image, 1));
    driven.controller.submit(Operation { weight, ..returns }).expect("the queue has room");
    let (before, first) = (driven.draft().next_offset, driven.event_loop.operations.recv().await.expect("it waits"));
    driven.event_loop.run_operations(first);
    assert_eq!(
        (driven.claim().under_way.step_count(), driven.draft().next_offset),
        (2, before),
        "it is not planned yet"
    );
}

/// A heartbeat that was given up is repeated: only the last one is worth a turn.
#[tokio::test]
async fn an_operation_whose_caller_has_gone_is_not_planned() {
    let mut driven = Driven::with_partitions(1).await;
    let (gone, answer) = set("gone", "1");
    drop(answer);
    driven.run([Operation { has_caller: true, ..gone }]);
    assert_eq!(value(driven.draft(), "gone"), None);
}

#[tokio::test]
async fn contact_is_late_from_the_first_step_until_unfenced() {
    let mut driven = Driven::with_partitions(PARTITIONS).await;
    let late = |driven: &Driven| [1, 2].map(|id| hear(driven, broker(id)));
    assert_eq!(late(&driven), [None, None]);
    driven.fence(1);
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
    assert_eq!(hear(&driven, broker(1)), None);
    driven.event_loop.sessions.begin_removal(broker(1), Removal::Fencing);
    assert_eq!(hear(&driven, broker(1)), Some(Removal::Fencing));
    driven.event_loop.run_due_tasks(Instant::now() + Duration::from_secs(1));
    assert_eq!(hear(&driven, broker(1)), None);
}

/// The broker is heard, so that it has a session.
fn hear(driven: &Driven, id: BrokerId) -> Option<Removal> {
    let epoch = driven.draft().broker(id).expect("registered").epoch;
    driven.event_loop.sessions.touch(Contact { broker: id, epoch, metadata_offset: Offset::default() })
}

/// A heartbeat of broker 2, as the API has the controller carry it out.
struct Stops(HeartbeatSteps);

impl Mutation for Stops {
    fn plan(&mut self, image: &MetadataImage, _: &mut Rng) -> Result<Plan<()>, ApiError> {
        Ok(self.0.plan(image, None)?.map(|_| ()))
    }

    fn reply(&mut self, _: &Position, _: &[Record]) -> Vec<u8> {
        Vec::new()
    }

    fn removal(&self) -> Option<Removal> {
        self.0.removal()
    }
}

fn stops(driven: &Driven) -> Operation {
    let target =
        RemovalTarget { broker: broker(2), epoch: driven.draft().broker(broker(2)).expect("registered").epoch };
    let steps = HeartbeatSteps::new(Heartbeat {
        broker: target.broker,
        epoch: target.epoch,
        metadata_offset: driven.draft().next_offset,
        want_fence: false,
        want_shutdown: true,
        offline_directories: Vec::new(),
    });
    Operation { target: Some(target), ..Operation::without_caller("stop", Stops(steps)) }
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

/// Broker 2 leads the first partition and follows the others.
async fn follower() -> Driven {
    let mut driven = Driven::with_partitions(PARTITIONS).await;
    let led = TopicPartition::new(TopicId::default(), PartitionId::new(0));
    let change =
        PartitionChange { leader: Some(Some(broker(2))), ..PartitionChange::none(led, Cause::ElectionRequested) };
    driven.done(operation(move |_| Ok(Plan::new(vec![Record::PartitionChange(change.clone())], ())))).await;
    hear(&driven, broker(2));
    driven
}

fn assert_stopping(driven: &Driven) {
    let stopping = driven.draft().broker(broker(2)).expect("registered");
    assert!(stopping.in_controlled_shutdown && stopping.controlled_shutdown_offset.is_some() && !stopping.fenced);
    assert_eq!(driven.draft().index.in_isr(broker(2)).count(), 0);
}

#[tokio::test]
async fn a_shutdown_in_steps_is_carried_out_once_and_has_its_barrier() {
    let mut driven = follower().await;
    driven.run([stops(&driven)]);
    driven.run([stops(&driven)]);
    assert_eq!(driven.claim().under_way.step_count(), 1, "it goes on already");
    driven.finish().await;
    assert_stopping(&driven);
}

#[tokio::test]
async fn a_shutdown_has_its_barrier_although_the_claim_was_lost_meanwhile() {
    let mut driven = follower().await;
    driven.run([stops(&driven)]);
    driven.claim_again().await;
    assert!(driven.draft().is_active(broker(2)));
    driven.run([stops(&driven)]);
    driven.finish().await;
    assert_stopping(&driven);
}

#[tokio::test]
async fn a_shutdown_goes_on_although_another_of_the_same_broker_waits() {
    let mut driven = follower().await;
    let ((whole, done), first, second) = (transaction(), stops(&driven), stops(&driven));
    driven.run([first, whole, second]);
    driven.finish().await;
    assert!(matches!(done.await, Ok(Ok(_))));
    assert_stopping(&driven);
}

#[tokio::test]
async fn no_election_is_held_while_a_broker_leaves() {
    let mut driven = follower().await;
    driven.run([stops(&driven)]);
    let sweeps = |driven: &mut Driven| driven.event_loop.run_due_tasks(Instant::now() + Duration::from_secs(60));
    let next_offset = driven.draft().next_offset;
    sweeps(&mut driven);
    assert_eq!(driven.draft().next_offset, next_offset, "broker 1 is the preferred leader of the first partition");
    driven.finish().await;
    assert_stopping(&driven);
}

#[tokio::test]
async fn nobody_takes_a_broker_back_into_an_isr_that_it_was_to_leave() {
    for fences in [true, false] {
        let mut driven = Driven::with_partitions(PARTITIONS).await;
        hear(&driven, broker(2));
        if fences {
            driven.fence(2);
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

#[tokio::test]
async fn a_broker_that_gets_a_leadership_while_it_stops_is_not_taken_for_fenced() {
    let mut driven = Driven::with_partitions(PARTITIONS).await;
    hear(&driven, broker(2));
    // It leads nothing, so it is fenced at once, until it leads the last partition.
    driven.run([stops(&driven)]);
    assert_eq!(hear(&driven, broker(2)), Some(Removal::Fencing));
    let last = TopicPartition::new(TopicId::default(), PartitionId::new(PARTITIONS - 1));
    let change =
        PartitionChange { leader: Some(Some(broker(2))), ..PartitionChange::none(last, Cause::ElectionRequested) };
    driven.run([operation(move |_| Ok(Plan::new(vec![Record::PartitionChange(change.clone())], ()))).0]);
    driven.finish().await;
    driven.event_loop.run_due_tasks(Instant::now() + Duration::from_secs(1));
    assert_stopping(&driven);
    assert_ne!(hear(&driven, broker(2)), Some(Removal::Fencing));
}
