//! The consumer against brokers in this process, with the clock paused.

use quorate_metadata::ErrorName;
use quorate_proto::log::{CurrentLeader, EpochEnd, FetchedPartition};
use tokio::io::DuplexStream;
use tonic::transport::Endpoint;

use super::assigned::Route;
use super::fake::{Broker, batch, fetched, partition, refused};
use super::*;
use crate::nodes::{Node, Nodes, Options};

const WAIT: Duration = Duration::from_secs(5);

/// A cluster that nobody answers for.
fn nobody() -> AdminClient {
    let connector = tower::service_fn(|_| async {
        let refused = std::io::Error::from(std::io::ErrorKind::ConnectionRefused);
        Err::<hyper_util::rt::TokioIo<DuplexStream>, _>(refused)
    });
    let channel = Endpoint::from_static("http://fake").connect_with_connector_lazy(connector);
    AdminClient::over(Nodes::new(vec![Node::new("node".to_owned(), channel)]), Options::default())
}

/// A consumer that knows `a` as the leader in epoch 1.
fn consumer(options: ConsumerOptions, start: Start, brokers: &[(&str, &Broker)]) -> Consumer {
    let mut consumer = Consumer::new(nobody(), options);
    for (address, broker) in brokers {
        consumer.brokers.insert(address, broker.serve());
    }
    consumer.assign("orders", 0, start);
    let followers = brokers.iter().map(|(address, _)| Arc::from(*address)).filter(|address| **address != *"a:1");
    let route = Route {
        topic_id: "id".to_owned(),
        leader_epoch: 1,
        leader: Some("a:1".into()),
        followers: followers.collect(),
    };
    let assigned = consumer.partitions.get_mut(&partition()).expect("just assigned");
    assert_eq!(assigned.on_route(route, Instant::now()), Progress::default());
    consumer
}

async fn offsets(consumer: &mut Consumer) -> Result<Vec<i64>, ErrorName> {
    let records = consumer.poll(WAIT).await.map_err(|error| error.name())?;
    Ok(records.iter().map(|record| record.offset).collect())
}

fn position(consumer: &Consumer) -> Option<i64> {
    consumer.positions().get(&partition()).copied()
}

fn diverging(leader_epoch: i32, end_offset: i64) -> FetchedPartition {
    FetchedPartition { diverging: Some(EpochEnd { leader_epoch, end_offset }), ..fetched(20, Vec::new()) }
}

#[tokio::test(start_paused = true)]
async fn records_come_in_order_and_say_which_epoch_was_read_last() {
    let a = Broker::with([fetched(4, vec![batch(0, 0, &["x", "y"])]), fetched(4, vec![batch(2, 1, &["z", "w"])])]);
    let mut consumer = consumer(ConsumerOptions::default(), Start::At(1), &[("a:1", &a)]);
    assert_eq!(offsets(&mut consumer).await, Ok(vec![1]));
    assert_eq!(offsets(&mut consumer).await, Ok(vec![2, 3]));
    assert_eq!(position(&consumer), Some(4));
    assert_eq!(consumer.high_watermarks().get(&partition()), Some(&4));
    consumer.poll(Duration::from_millis(1)).await.expect("nothing more");
    let asked: Vec<_> = a.asked().iter().map(|asked| (asked.offset, asked.last_fetched_epoch)).collect();
    assert_eq!(asked, [(1, None), (2, Some(0)), (4, Some(1))]);
}

#[tokio::test(start_paused = true)]
async fn a_batch_without_records_leads_behind_a_gap_and_to_its_epoch() {
    let a = Broker::with([fetched(20, vec![batch(0, 0, &["x"]), batch(4, 0, &["y"]), batch(9, 1, &[])])]);
    let mut consumer = consumer(ConsumerOptions::default(), Start::At(0), &[("a:1", &a)]);
    assert_eq!(offsets(&mut consumer).await, Ok(vec![0, 4]));
    assert_eq!(position(&consumer), Some(9));
    consumer.poll(Duration::from_millis(1)).await.expect("nothing more");
    let asked: Vec<_> = a.asked().iter().map(|asked| (asked.offset, asked.last_fetched_epoch)).collect();
    assert_eq!(asked, [(0, None), (9, Some(1))]);
}

#[tokio::test(start_paused = true)]
async fn a_start_by_place_is_looked_up_together_with_the_end() {
    let a = Broker::with([fetched(9, vec![batch(3, 1, &["x"])])]);
    a.offsets.lock().expect("unpoisoned").extend([9, 3]);
    let mut consumer = consumer(ConsumerOptions::default(), Start::Beginning, &[("a:1", &a)]);
    assert_eq!(position(&consumer), None);
    assert_eq!(offsets(&mut consumer).await, Ok(vec![3]));
}

#[tokio::test(start_paused = true)]
async fn a_time_that_no_record_has_means_the_end() {
    let a = Broker::default();
    a.offsets.lock().expect("unpoisoned").extend([9]);
    let mut consumer = consumer(ConsumerOptions::default(), Start::Timestamp(5), &[("a:1", &a)]);
    assert_eq!(consumer.poll(Duration::from_millis(1)).await, Ok(Vec::new()));
    assert_eq!(position(&consumer), Some(9));
}

#[tokio::test(start_paused = true)]
async fn a_new_leader_that_is_named_is_asked_at_once() {
    let named = CurrentLeader { broker: Some(2), leader_epoch: 2, endpoint: "b:1".to_owned() };
    let moved = FetchedPartition { current_leader: Some(named), ..refused(ErrorName::NotLeaderOrFollower) };
    let (a, b) = (Broker::with([moved]), Broker::with([fetched(1, vec![batch(0, 2, &["x"])])]));
    let mut consumer = consumer(ConsumerOptions::default(), Start::At(0), &[("a:1", &a), ("b:1", &b)]);
    let started = Instant::now();
    assert_eq!(offsets(&mut consumer).await, Ok(vec![0]));
    assert_eq!(started.elapsed(), Duration::ZERO);
    assert_eq!(b.asked().first().and_then(|asked| asked.leader_epoch), Some(2));
}

#[tokio::test(start_paused = true)]
async fn without_anybody_to_ask_the_time_passes_and_the_trouble_is_known() {
    let a = Broker::with([refused(ErrorName::FencedLeaderEpoch)]);
    let mut consumer = consumer(ConsumerOptions::default(), Start::At(0), &[("a:1", &a)]);
    assert_eq!(offsets(&mut consumer).await, Ok(Vec::new()));
    let trouble = consumer.troubles().remove(&partition()).map(|error| error.name);
    assert_eq!(trouble, Some(ErrorName::ControllerUnavailable));
}

#[tokio::test(start_paused = true)]
async fn a_truncated_log_is_told_and_read_on_from_its_end() {
    let after = fetched(20, vec![batch(1, 2, &["other"])]);
    let a = Broker::with([fetched(9, vec![batch(0, 1, &["x", "y", "z"])]), diverging(1, 1), after]);
    let mut consumer = consumer(ConsumerOptions::default(), Start::At(0), &[("a:1", &a)]);
    assert_eq!(offsets(&mut consumer).await, Ok(vec![0, 1, 2]));
    let error = consumer.poll(WAIT).await.expect_err("truncated");
    assert_eq!(
        error.to_string(),
        "OFFSET_OUT_OF_RANGE: orders-0: the log was truncated to offset 1: what was read from there to 3 is gone"
    );
    assert_eq!(position(&consumer), Some(1));
    assert_eq!(offsets(&mut consumer).await, Ok(vec![1]));
}

#[tokio::test(start_paused = true)]
async fn a_follower_that_lags_does_not_make_a_log_truncated() {
    let options = ConsumerOptions { from_follower: true, ..ConsumerOptions::default() };
    let a = Broker::with([fetched(3, vec![batch(2, 1, &["z"])])]);
    let b = Broker::with([fetched(2, vec![batch(0, 1, &["x", "y"])]), diverging(1, 1)]);
    let mut consumer = consumer(options, Start::At(0), &[("a:1", &a), ("b:1", &b)]);
    assert_eq!(offsets(&mut consumer).await, Ok(vec![0, 1]));
    assert_eq!(offsets(&mut consumer).await, Ok(vec![2]), "the leader is asked");
}

#[tokio::test(start_paused = true)]
async fn an_offset_out_of_range_is_told_unless_a_reset_is_wanted() {
    let a = Broker::with([refused(ErrorName::OffsetOutOfRange)]);
    let mut strict = consumer(ConsumerOptions::default(), Start::At(7), &[("a:1", &a)]);
    assert_eq!(offsets(&mut strict).await, Err(ErrorName::OffsetOutOfRange));
    assert_eq!(position(&strict), Some(7));

    let a = Broker::with([refused(ErrorName::OffsetOutOfRange), fetched(9, vec![batch(3, 1, &["x"])])]);
    a.offsets.lock().expect("unpoisoned").extend([9, 3]);
    let options = ConsumerOptions { reset: Reset::Earliest, ..ConsumerOptions::default() };
    let mut lenient = consumer(options, Start::At(1), &[("a:1", &a)]);
    assert_eq!(offsets(&mut lenient).await, Ok(vec![3]));
}

#[tokio::test(start_paused = true)]
async fn a_beginning_that_moves_before_anything_is_read_is_looked_up_again() {
    let a = Broker::with([refused(ErrorName::OffsetOutOfRange), fetched(9, vec![batch(5, 1, &["x"])])]);
    a.offsets.lock().expect("unpoisoned").extend([9, 3, 9, 5]);
    let mut consumer = consumer(ConsumerOptions::default(), Start::Beginning, &[("a:1", &a)]);
    assert_eq!(offsets(&mut consumer).await, Ok(vec![5]));
    assert_eq!(consumer.take_skipped(), []);
}

#[tokio::test(start_paused = true)]
async fn what_a_reset_passes_over_is_told() {
    let answers = [
        fetched(9, vec![batch(0, 1, &["x", "y"])]),
        refused(ErrorName::OffsetOutOfRange),
        fetched(9, vec![batch(7, 1, &["z"])]),
    ];
    let a = Broker::with(answers);
    a.offsets.lock().expect("unpoisoned").extend([9, 0, 9, 7]);
    let options = ConsumerOptions { reset: Reset::Earliest, ..ConsumerOptions::default() };
    let mut lenient = consumer(options, Start::Beginning, &[("a:1", &a)]);
    assert_eq!(offsets(&mut lenient).await, Ok(vec![0, 1]));
    assert_eq!(offsets(&mut lenient).await, Ok(vec![7]));
    assert_eq!(lenient.take_skipped(), [Skipped { partition: partition(), offsets: 2..7 }]);
    assert_eq!(lenient.take_skipped(), []);
}

#[tokio::test(start_paused = true)]
async fn a_second_loss_after_a_reset_is_told_as_well() {
    let lost = || refused(ErrorName::OffsetOutOfRange);
    let answers = [fetched(9, vec![batch(0, 1, &["x"])]), lost(), lost(), fetched(9, vec![batch(7, 1, &["z"])])];
    let a = Broker::with(answers);
    a.offsets.lock().expect("unpoisoned").extend([9, 0, 9, 4, 9, 7]);
    let options = ConsumerOptions { reset: Reset::Earliest, ..ConsumerOptions::default() };
    let mut lenient = consumer(options, Start::Beginning, &[("a:1", &a)]);
    assert_eq!(offsets(&mut lenient).await, Ok(vec![0]));
    assert_eq!(offsets(&mut lenient).await, Ok(vec![7]));
    assert_eq!(lenient.take_skipped(), [Skipped { partition: partition(), offsets: 1..7 }]);
}

#[tokio::test(start_paused = true)]
async fn a_reader_of_what_is_to_come_is_told_when_its_first_offset_is_gone() {
    let a = Broker::with([refused(ErrorName::OffsetOutOfRange)]);
    a.offsets.lock().expect("unpoisoned").extend([3]);
    let mut strict = consumer(ConsumerOptions::default(), Start::End, &[("a:1", &a)]);
    assert_eq!(offsets(&mut strict).await, Err(ErrorName::OffsetOutOfRange));
}

#[tokio::test(start_paused = true)]
async fn without_a_reset_what_is_lost_after_the_first_record_is_told() {
    let a = Broker::with([fetched(9, vec![batch(0, 1, &["x", "y"])]), refused(ErrorName::OffsetOutOfRange)]);
    a.offsets.lock().expect("unpoisoned").extend([9, 0]);
    let mut strict = consumer(ConsumerOptions::default(), Start::Beginning, &[("a:1", &a)]);
    assert_eq!(offsets(&mut strict).await, Ok(vec![0, 1]));
    assert_eq!(offsets(&mut strict).await, Err(ErrorName::OffsetOutOfRange));
}

#[tokio::test(start_paused = true)]
async fn what_comes_before_a_corrupt_batch_is_handed_out_first() {
    let mut broken = batch(1, 1, &["y"]);
    broken.crc = Some(0);
    let a = Broker::with([fetched(2, vec![batch(0, 1, &["x"]), broken])]);
    let mut consumer = consumer(ConsumerOptions::default(), Start::At(0), &[("a:1", &a)]);
    assert_eq!(offsets(&mut consumer).await, Ok(vec![0]));
    assert_eq!(offsets(&mut consumer).await, Err(ErrorName::CorruptMessage));
    assert_eq!(position(&consumer), Some(1));
}

#[tokio::test(start_paused = true)]
async fn an_answer_to_an_earlier_assignment_is_not_taken() {
    let a = Broker::with([fetched(2, vec![batch(0, 1, &["x", "y"])])]);
    let mut consumer = consumer(ConsumerOptions::default(), Start::At(0), &[("a:1", &a)]);
    consumer.call();
    consumer.assign("orders", 0, Start::At(50));
    assert_eq!(offsets(&mut consumer).await, Ok(Vec::new()));
    assert_eq!(position(&consumer), Some(50));
}

#[tokio::test(start_paused = true)]
async fn a_broker_that_hangs_keeps_nobody_waiting_for_the_others() {
    let (a, b) = (Broker::default(), Broker::with([fetched(1, vec![batch(0, 1, &["x"])])]));
    let mut consumer = consumer(ConsumerOptions::default(), Start::At(0), &[("a:1", &a), ("b:1", &b)]);
    consumer.assign("other", 0, Start::At(0));
    let route =
        Route { topic_id: "other".to_owned(), leader_epoch: 1, leader: Some("b:1".into()), followers: Vec::new() };
    let other = Partition { topic: "other".into(), partition: 0 };
    consumer.partitions.get_mut(&other).expect("just assigned").on_route(route, Instant::now());
    let started = Instant::now();
    assert_eq!(offsets(&mut consumer).await, Ok(vec![0]));
    assert_eq!(started.elapsed(), Duration::ZERO);
}

#[tokio::test(start_paused = true)]
async fn a_poll_that_is_given_up_loses_nothing() {
    let a = Broker::with([fetched(2, vec![batch(0, 1, &["x", "y"])])]);
    let mut consumer = consumer(ConsumerOptions::default(), Start::At(0), &[("a:1", &a)]);
    let given_up = timeout(Duration::ZERO, consumer.poll(WAIT)).await;
    assert!(given_up.is_err());
    assert_eq!(offsets(&mut consumer).await, Ok(vec![0, 1]));
    assert_eq!(a.asked().first().map(|asked| asked.offset), Some(0));
}
