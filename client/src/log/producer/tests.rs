use std::collections::HashMap;

use quorate_proto::error::to_item;
use quorate_proto::log::{ProduceReply, ProducedPartition, RecordBatch};
use tokio::time::Instant;

use super::lane::Lane;
use super::owner::Owner;
use super::routes::Route;
use super::*;
use quorate_metadata::ApiError;

type Outcome = oneshot::Receiver<Result<Acknowledged, ClientError>>;

fn promise() -> (Promise, Outcome) {
    let room = Arc::new(Semaphore::new(1)).try_acquire_owned().expect("there is room for one");
    let (reply, outcome) = oneshot::channel();
    (Promise { reply, _room: room }, outcome)
}

fn record(bytes: usize) -> ProducedRecord {
    ProducedRecord { value: Some(vec![b'x'; bytes].into()), timestamp_ms: Some(0), ..ProducedRecord::default() }
}

fn push(lane: &mut Lane, bytes: usize) -> Outcome {
    let (promise, outcome) = promise();
    lane.push((record(bytes), promise), 1_000, 1, Instant::now());
    outcome
}

fn sequence(batch: Option<RecordBatch>) -> (i64, i32) {
    let stamp = batch.and_then(|batch| batch.producer).expect("it is stamped");
    (stamp.id, stamp.base_sequence)
}

#[tokio::test]
async fn what_comes_while_a_batch_is_under_way_makes_up_the_next() {
    let mut lane = Lane::default();
    let mut first = push(&mut lane, 10);
    push(&mut lane, 10);
    assert_eq!(lane.take_off(Some(7)).expect("it is due").record_count, 2);
    let mut later = push(&mut lane, 10);
    lane.landed(0, Some(40), 1);
    assert_eq!(first.try_recv().expect("it is acknowledged").expect("well").offset, Some(40));
    assert!(later.try_recv().is_err(), "it was not sent yet");
    assert_eq!(sequence(lane.take_off(Some(7))), (7, 2));
}

#[tokio::test]
async fn a_repetition_has_the_sequence_of_the_first_attempt() {
    let mut lane = Lane::default();
    let _outcome = push(&mut lane, 10);
    let first = lane.take_off(Some(7));
    lane.again(true, true, Instant::now());
    // Also where another id has been given out meanwhile.
    assert_eq!(lane.take_off(Some(8)), first);
    assert!(lane.first().expect("it waits").maybe_appended);
}

#[tokio::test]
async fn a_producer_that_the_leader_has_forgotten_begins_anew_with_the_same_records() {
    let mut lane = Lane::default();
    let _outcomes = [push(&mut lane, 10), push(&mut lane, 2_000)];
    lane.take_off(Some(7));
    lane.landed(0, Some(0), 1);
    let refused = lane.take_off(Some(7)).expect("it is due");
    assert_eq!(sequence(Some(refused.clone())), (7, 1));
    lane.begin_anew();
    let again = lane.take_off(Some(8)).expect("it is due");
    assert_eq!((&again.records, again.crc), (&refused.records, refused.crc));
    assert_eq!(sequence(Some(again)), (8, 0));
}

#[tokio::test]
async fn a_batch_that_failed_takes_its_sequence_with_it() {
    let mut lane = Lane::default();
    let mut failed = push(&mut lane, 10);
    lane.take_off(Some(7));
    assert!(lane.failed(&ClientError::failed(ErrorName::InvalidRecord, "no")), "another id is needed");
    assert!(failed.try_recv().expect("it is told").is_err());
    let _outcome = push(&mut lane, 10);
    assert_eq!(sequence(lane.take_off(Some(8))), (8, 0));
}

/// An owner that knows topic "t", with one leader per partition, and sends nothing anywhere.
fn owner(leaders: &[&str]) -> Owner {
    let look_up = look_up(&ProducerOptions::default());
    let nodes = Nodes::open(&["127.0.0.1:1"], &look_up).expect("the address is well formed");
    let mut owner = Owner::new(AdminClient::over(nodes, look_up), ProducerOptions::default(), watch::Sender::default());
    owner.on_looked(Ok(vec![("t".to_owned(), Ok(Route::led_by(leaders)))]));
    owner
}

fn send(owner: &mut Owner, topic: &str, partition: Option<i32>) -> Outcome {
    let (promise, outcome) = promise();
    owner.take(Message::Send(Sent { topic: topic.to_owned(), partition, record: record(10), promise }));
    outcome
}

fn answered(error: Option<ErrorName>) -> ProducedPartition {
    let error = error.map(|name| to_item(&ApiError::new(name, "")));
    ProducedPartition { error, ..ProducedPartition::default() }
}

/// Sends what is due as producer 7, and says how many requests are under way.
fn dispatch(owner: &mut Owner) -> u64 {
    owner.identified(7);
    owner.dispatch();
    owner.last_flight()
}

#[tokio::test]
async fn records_without_a_key_survive_a_topic_that_was_made_smaller() {
    let mut owner = owner(&["a:1", "a:1", "a:1"]);
    let mut outcomes: Vec<Outcome> = Vec::new();
    for _ in 0..3 {
        outcomes.push(send(&mut owner, "t", None));
        dispatch(&mut owner);
    }
    owner.on_looked(Ok(vec![("t".to_owned(), Ok(Route::led_by(&["a:1"])))]));
    let mut outcome = send(&mut owner, "t", None);
    assert!(outcome.try_recv().is_err(), "it is not refused");
}

#[tokio::test]
async fn a_flush_waits_for_what_was_sent_before_and_not_for_what_comes_later() {
    let mut owner = owner(&["a:1", "b:1"]);
    let _before = send(&mut owner, "t", Some(0));
    let (done, mut flushed) = oneshot::channel();
    owner.take(Message::Flush(done));
    dispatch(&mut owner);
    let _after = send(&mut owner, "t", Some(1));
    owner.end_flushes();
    assert!(flushed.try_recv().is_err(), "the first record is under way");
    owner.on_reply(1, Ok(ProduceReply { partitions: vec![answered(None)] }));
    owner.end_flushes();
    assert!(flushed.try_recv().is_ok(), "only the second record is left");
}

#[tokio::test]
async fn a_flush_waits_for_records_of_a_topic_that_is_not_known_yet() {
    let mut owner = owner(&["a:1"]);
    let _before = send(&mut owner, "u", Some(0));
    let (done, mut flushed) = oneshot::channel();
    owner.take(Message::Flush(done));
    owner.end_flushes();
    owner.on_looked(Ok(vec![("u".to_owned(), Ok(Route::led_by(&["a:1"])))]));
    owner.end_flushes();
    assert!(flushed.try_recv().is_err(), "it is routed, and not sent");
    dispatch(&mut owner);
    owner.on_reply(1, Ok(ProduceReply { partitions: vec![answered(None)] }));
    owner.end_flushes();
    assert!(flushed.try_recv().is_ok());
}

#[tokio::test(start_paused = true)]
async fn a_partition_that_has_moved_does_not_wait_for_the_others_of_its_request() {
    let mut owner = owner(&["a:1", "a:1"]);
    let (mut stays, mut moves) = (send(&mut owner, "t", Some(0)), send(&mut owner, "t", Some(1)));
    assert_eq!(dispatch(&mut owner), 1);
    tokio::time::advance(Duration::from_secs(1)).await;
    owner.on_looked(Ok(vec![("t".to_owned(), Ok(Route::led_by(&["a:1", "b:1"])))]));
    assert_eq!(dispatch(&mut owner), 2, "to the new leader at once");
    owner.on_reply(2, Ok(ProduceReply { partitions: vec![answered(None)] }));
    assert!(moves.try_recv().expect("it is answered").is_ok());
    assert!(stays.try_recv().is_err());
    // The late answer for the partition that has moved is not taken for anything.
    let late = vec![answered(None), answered(Some(ErrorName::InvalidRecord))];
    owner.on_reply(1, Ok(ProduceReply { partitions: late }));
    assert!(stays.try_recv().expect("it is answered").is_ok());
}

#[tokio::test(start_paused = true)]
async fn an_open_outcome_is_tried_again_and_a_later_refusal_leaves_it_open() {
    let mut owner = owner(&["a:1"]);
    let mut outcome = send(&mut owner, "t", Some(0));
    dispatch(&mut owner);
    owner.on_reply(1, Ok(ProduceReply { partitions: vec![answered(Some(ErrorName::OutcomeUnknown))] }));
    assert!(outcome.try_recv().is_err(), "it is tried again");
    tokio::time::advance(Duration::from_millis(30)).await;
    assert_eq!(dispatch(&mut owner), 2);
    owner.on_reply(2, Ok(ProduceReply { partitions: vec![answered(Some(ErrorName::InvalidRecord))] }));
    let error = outcome.try_recv().expect("it is answered").expect_err("it is refused");
    assert!(matches!(error, ClientError::Unknown(_)), "the first attempt may have been taken: {error}");
}

#[tokio::test(start_paused = true)]
async fn a_record_that_is_not_delivered_tells_what_is_in_its_way() {
    let mut owner = owner(&["a:1"]);
    let trouble = owner.trouble();
    let mut outcome = send(&mut owner, "t", Some(0));
    dispatch(&mut owner);
    owner.on_reply(1, Ok(ProduceReply { partitions: vec![answered(Some(ErrorName::NotEnoughReplicas))] }));
    owner.tell_trouble();
    assert_eq!(trouble.borrow().as_ref().map(|error| error.name), Some(ErrorName::NotEnoughReplicas));
    tokio::time::advance(ProducerOptions::default().delivery_timeout).await;
    owner.expire();
    let error = outcome.try_recv().expect("it is given up").expect_err("it is not delivered");
    assert!(error.is_definite() && error.name() == ErrorName::RequestTimedOut, "{error:?}");
    assert!(error.to_string().contains("NOT_ENOUGH_REPLICAS"), "{error}");
    owner.tell_trouble();
    assert_eq!(*trouble.borrow(), None, "nothing waits any more");
}

#[tokio::test]
async fn a_record_that_fits_into_no_request_is_refused_before_it_is_sent() {
    let producer = Producer::start(&["127.0.0.1:1"], ProducerOptions::default()).expect("the address is well formed");
    let Err(refused) = producer.send("t", None, record(REQUEST_BYTES_MAX)).await else { panic!("it is taken") };
    assert!(refused.to_string().contains("MESSAGE_TOO_LARGE"), "{refused}");
}

#[tokio::test]
async fn a_request_is_not_filled_beyond_what_a_broker_takes() {
    let mut owner = owner(&["a:1", "a:1"]);
    let mut outcomes = HashMap::new();
    for partition in 0..2 {
        let (promise, outcome) = promise();
        let record = record(REQUEST_BYTES_MAX - 100);
        owner.take(Message::Send(Sent { topic: "t".to_owned(), partition: Some(partition), record, promise }));
        outcomes.insert(partition, outcome);
    }
    assert_eq!(dispatch(&mut owner), 1);
    assert_eq!(dispatch(&mut owner), 2, "the second batch has a request of its own");
}
