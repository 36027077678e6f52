//! Records through the reference data plane: how many, and how long until each is acknowledged.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use clap::{Args, ValueEnum};
use futures::StreamExt;
use futures::stream::FuturesUnordered;
use quorate_proto::admin::NewTopic;
use serde_json::json;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, watch};
use tokio::time::{Instant, interval_at, sleep};

use super::{PerfError, Report, Samples, Target, after_cleaning, create, delete, names, seconds};
use crate::AdminClient;
use crate::log::{Acks, Delivery, ProducedRecord, Producer, ProducerOptions};

#[derive(Debug, Clone, Copy, ValueEnum)]
pub enum AcksArg {
    #[value(name = "0")]
    None,
    #[value(name = "1")]
    Leader,
    All,
}

impl From<AcksArg> for Acks {
    fn from(arg: AcksArg) -> Self {
        match arg {
            AcksArg::None => Self::None,
            AcksArg::Leader => Self::Leader,
            AcksArg::All => Self::All,
        }
    }
}

#[derive(Debug, Clone, Args)]
pub struct ProduceArgs {
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(i32).range(1..=1000))]
    partitions: i32,
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(i32).range(1..=9))]
    replication_factor: i32,
    #[arg(long, default_value_t = 2, value_parser = clap::value_parser!(i32).range(1..=9))]
    min_isr: i32,
    #[arg(long, default_value_t = 1024, value_parser = clap::value_parser!(u32).range(1..=900_000))]
    record_bytes: u32,
    #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u64).range(1..=600))]
    seconds: u64,
    #[arg(long, default_value = "all")]
    acks: AcksArg,
    /// Records a second; 0: as many as the cluster takes
    #[arg(long, default_value_t = 0, value_parser = clap::value_parser!(u32).range(0..=1_000_000))]
    rate: u32,
    /// Records not yet acknowledged, at most
    #[arg(long, default_value_t = 1000, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    in_flight: u32,
    #[arg(long)]
    no_idempotence: bool,
    /// Create a topic with so many partitions halfway: what is acknowledged from then on is a measurement of its own
    #[arg(long, default_value_t = 0, value_parser = clap::value_parser!(i32).range(0..=1_000_000))]
    create_partitions: i32,
}

pub async fn run(target: &Target, arguments: &ProduceArgs, reports: &mut Vec<Report>) -> Result<(), PerfError> {
    let admin = target.patient().client()?;
    let names = names("produce", 2);
    let configs = [("min.insync.replicas".to_owned(), arguments.min_isr.to_string())].into();
    let topic = NewTopic {
        name: names[0].clone(),
        partitions: Some(arguments.partitions),
        replication_factor: Some(arguments.replication_factor),
        configs,
        ..NewTopic::default()
    };
    create(&admin, topic).await?;
    let measured = measure(target, &admin, arguments, &names).await;
    let cleaned = delete(&admin, &names).await.map_err(PerfError::from);
    reports.extend(after_cleaning(measured, cleaned)?);
    Ok(())
}

struct UnderWay {
    sent: Instant,
    delivery: Delivery,
    _room: OwnedSemaphorePermit,
}

/// What was acknowledged before the other topic was created, or since then.
#[derive(Default)]
struct Seen {
    samples: Samples,
    failed: u64,
    last: Option<Instant>,
    longest_gap: Duration,
}

async fn measure(
    target: &Target,
    admin: &AdminClient,
    arguments: &ProduceArgs,
    names: &[String],
) -> Result<Vec<Report>, PerfError> {
    let acks = Acks::from(arguments.acks);
    let idempotent = acks == Acks::All && !arguments.no_idempotence;
    let tls = target.options.tls.clone();
    let options = ProducerOptions { acks, idempotent, tls, ..ProducerOptions::default() };
    let producer = Producer::start(&target.bootstrap, options)?;
    let (under_way, deliveries) = mpsc::channel(arguments.in_flight as usize);
    let begun = watch::Sender::new(None);
    let collector = tokio::spawn(collect(deliveries, begun.subscribe()));
    let observation = target.observe();
    let started = Instant::now();
    let sending = send(&producer, arguments, &names[0], under_way);
    let ((), creation) = tokio::try_join!(sending, create_halfway(admin, arguments, &names[1], &begun))?;
    let [before, since] = collector.await.expect("the collector does not panic");
    let elapsed = started.elapsed();
    let nodes = observation.end().await;
    let parameters = |seen: &Seen| {
        json!({
            "partitions": arguments.partitions,
            "replication_factor": arguments.replication_factor,
            "min_isr": arguments.min_isr,
            "record_bytes": arguments.record_bytes,
            "acks": format!("{:?}", arguments.acks).to_lowercase(),
            "idempotent": idempotent,
            "rate": arguments.rate,
            "in_flight": arguments.in_flight,
            "failed": seen.failed,
            "longest_gap_ms": seen.longest_gap.as_millis() as u64,
        })
    };
    let begun = (*begun.borrow()).map_or(elapsed, |begun| begun - started);
    let alone = Report::new("produce", &before.samples, parameters(&before)).with_rate(begun);
    let Some(creation) = creation else { return Ok(vec![alone.with_nodes(nodes)]) };
    let beside = Report::new("produce-beside-create", &since.samples, parameters(&since)).with_rate(elapsed - begun);
    let beside = beside.with_result("created_partitions", arguments.create_partitions);
    Ok(vec![alone, beside.with_result("created_after_seconds", seconds(creation)).with_nodes(nodes)])
}

/// Creates the other topic, where one is asked for, and returns how long that took.
async fn create_halfway(
    admin: &AdminClient,
    arguments: &ProduceArgs,
    name: &str,
    begun: &watch::Sender<Option<Instant>>,
) -> Result<Option<Duration>, PerfError> {
    if arguments.create_partitions == 0 {
        return Ok(None);
    }
    sleep(Duration::from_secs(arguments.seconds) / 2).await;
    let topic = NewTopic {
        name: name.to_owned(),
        partitions: Some(arguments.create_partitions),
        replication_factor: Some(arguments.replication_factor),
        ..NewTopic::default()
    };
    let started = Instant::now();
    begun.send_replace(Some(started));
    create(admin, topic).await?;
    Ok(Some(started.elapsed()))
}

async fn send(
    producer: &Producer,
    arguments: &ProduceArgs,
    topic: &str,
    under_way: mpsc::Sender<UnderWay>,
) -> Result<(), PerfError> {
    let room = Arc::new(Semaphore::new(arguments.in_flight as usize));
    let value = Bytes::from(vec![b'x'; arguments.record_bytes as usize]);
    let ends = Instant::now() + Duration::from_secs(arguments.seconds);
    let mut pace = (arguments.rate > 0).then(|| interval_at(Instant::now(), Duration::from_secs(1) / arguments.rate));
    let mut number = 0;
    while Instant::now() < ends {
        if let Some(pace) = &mut pace {
            pace.tick().await;
        }
        let room = room.clone().acquire_owned().await.expect("it is never closed");
        let record = ProducedRecord { value: Some(value.clone()), ..ProducedRecord::default() };
        let sent = Instant::now();
        let delivery = producer.send(topic, Some(number % arguments.partitions), record).await?;
        number = number.wrapping_add(1).max(0);
        if under_way.send(UnderWay { sent, delivery, _room: room }).await.is_err() {
            break;
        }
    }
    Ok(())
}

/// Before and since the time that `begun` has.
async fn collect(mut deliveries: mpsc::Receiver<UnderWay>, begun: watch::Receiver<Option<Instant>>) -> [Seen; 2] {
    let mut seen = [Seen::default(), Seen::default()];
    let mut open = FuturesUnordered::new();
    let mut is_over = false;
    while !(is_over && open.is_empty()) {
        tokio::select! {
            next = deliveries.recv(), if !is_over => match next {
                Some(next) => open.push(async move { (next.sent, next.delivery.acknowledged().await, next._room) }),
                None => is_over = true,
            },
            Some((sent, outcome, _room)) = open.next() => {
                let now = Instant::now();
                let is_since = (*begun.borrow()).is_some_and(|begun| now >= begun);
                seen[usize::from(is_since)].take(sent, now, outcome.is_ok());
            }
        }
    }
    seen
}

impl Seen {
    fn take(&mut self, sent: Instant, now: Instant, is_acknowledged: bool) {
        if !is_acknowledged {
            self.failed += 1;
            return;
        }
        self.samples.record(now - sent);
        if let Some(last) = self.last.replace(now) {
            self.longest_gap = self.longest_gap.max(now - last);
        }
    }
}
