//! `quorate produce`: lines of the standard input become records.

use std::pin::pin;
use std::time::Duration;

use clap::Args;
use indicatif::{ProgressBar, ProgressStyle};
use quorate_client::log::{Acknowledged, Acks, Delivery, ProducedRecord, Producer, ProducerOptions};
use quorate_client::perf::produce::AcksArg;
use quorate_client::{ClientError, Freshness, check_item, spec, world};
use quorate_proto::admin::TopicRef;
use serde::Serialize;
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::sync::mpsc;
use tokio::time::{Instant, timeout};

use crate::failure::{Failure, Outcome};
use crate::output::{self, Format};
use crate::session::Session;

/// So long without an acknowledgement, and it is told why.
const SILENCE_MAX: Duration = Duration::from_secs(3);

/// Lines read and not yet acknowledged.
const UNDER_WAY_MAX: usize = 10_000;

#[derive(Debug, Args)]
pub struct Produce {
    topic: String,
    /// To this partition; without it the key decides, and without a key all take turns
    #[arg(short, long, value_name = "P", value_parser = clap::value_parser!(i32).range(0..))]
    partition: Option<i32>,
    /// The key of every record
    #[arg(long, conflicts_with = "key_separator")]
    key: Option<String>,
    /// What stands between key and value in a line
    #[arg(long, value_name = "TEXT")]
    key_separator: Option<String>,
    #[arg(long, default_value = "all")]
    acks: AcksArg,
    /// Let a record that is sent again be there twice
    #[arg(long)]
    no_idempotence: bool,
    /// How long a record may take, retries included
    #[arg(long, default_value = "120s", value_parser = spec::time_limit, value_name = "DURATION")]
    delivery_timeout: Duration,
}

#[derive(Serialize)]
struct Line {
    partition: i32,
    offset: Option<i64>,
    leader_epoch: i32,
    /// When it was acknowledged, by this machine's clock.
    time_ms: i64,
}

pub async fn run(session: &Session, command: Produce) -> Outcome {
    known(session, &command.topic).await?;
    let acks = Acks::from(command.acks);
    let idempotent = acks == Acks::All && !command.no_idempotence;
    let delivery_timeout = command.delivery_timeout;
    let tls = session.options.tls.clone();
    let options = ProducerOptions { acks, idempotent, delivery_timeout, tls, ..ProducerOptions::default() };
    let producer = Producer::start(&session.bootstrap, options).map_err(|error| Failure::Local(error.to_string()))?;
    let (under_way, deliveries) = mpsc::channel(UNDER_WAY_MAX);
    let format = session.format;
    let reporter = tokio::spawn(report(producer.clone(), deliveries, format));
    let sent = send(&producer, &command, under_way).await;
    let reported = reporter.await.unwrap_or_else(|error| std::panic::resume_unwind(error.into_panic()));
    sent.and(reported)
}

/// Refuses a topic that is not there before the first line is read.
async fn known(session: &Session, name: &str) -> Outcome {
    let topic = TopicRef { name: Some(name.to_owned()), id: None };
    let topics = session.client.describe_topics(vec![topic], Freshness::Linearizable).await?.topics;
    Ok(check_item(topics.first().and_then(|topic| topic.error.as_ref()))?)
}

async fn send(producer: &Producer, command: &Produce, under_way: mpsc::Sender<Delivery>) -> Outcome {
    let mut lines = BufReader::new(tokio::io::stdin()).lines();
    loop {
        let next = tokio::select! {
            next = lines.next_line() => next,
            // What was read is still delivered.
            _ = tokio::signal::ctrl_c() => return Ok(()),
        };
        let Some(line) = next.map_err(|error| Failure::Local(format!("cannot read the input: {error}")))? else {
            return Ok(());
        };
        let delivery = producer.send(&command.topic, command.partition, record(command, line)).await?;
        if under_way.send(delivery).await.is_err() {
            return Ok(());
        }
    }
}

fn record(command: &Produce, line: String) -> ProducedRecord {
    let split = command.key_separator.as_deref().and_then(|separator| line.split_once(separator));
    let (key, value) = match split {
        Some((key, value)) => (Some(key.to_owned()), value.to_owned()),
        None => (command.key.clone(), line),
    };
    ProducedRecord { key: key.map(Into::into), value: Some(value.into()), ..ProducedRecord::default() }
}

/// A line for each record, in the order of the input.
async fn report(producer: Producer, mut deliveries: mpsc::Receiver<Delivery>, format: Format) -> Outcome {
    let bar = progress();
    let started = Instant::now();
    let mut first_error: Option<ClientError> = None;
    let (mut acknowledged, mut failed) = (0_u64, 0_u64);
    let mut told = String::new();
    while let Some(delivery) = deliveries.recv().await {
        match acknowledged_by(&producer, delivery, &mut told).await {
            Ok(at) => {
                acknowledged += 1;
                output::line(&line(format, &at))?;
            }
            Err(error) => {
                failed += 1;
                eprintln!("not delivered: {error}");
                first_error.get_or_insert(error);
            }
        }
        bar.set_position(acknowledged);
    }
    bar.finish_and_clear();
    eprintln!("{}", summary(acknowledged, failed, started.elapsed()));
    first_error.map_or(Ok(()), |error| Err(error.into()))
}

/// Nobody waits without a word, and the word is not repeated.
async fn acknowledged_by(
    producer: &Producer,
    delivery: Delivery,
    told: &mut String,
) -> Result<Acknowledged, ClientError> {
    let mut outcome = pin!(delivery.acknowledged());
    loop {
        if let Ok(outcome) = timeout(SILENCE_MAX, &mut outcome).await {
            return outcome;
        }
        let why = producer.trouble().map_or_else(|| "no answer yet".to_owned(), |error| error.to_string());
        if why != *told {
            eprintln!("still trying: {why}");
            *told = why;
        }
    }
}

fn line(format: Format, at: &Acknowledged) -> String {
    let Acknowledged { partition, offset, leader_epoch } = *at;
    match format {
        Format::Table => match offset {
            Some(offset) => format!("partition {partition} offset {offset}"),
            None => format!("partition {partition}"),
        },
        Format::Json | Format::Yaml => {
            output::json(&Line { partition, offset, leader_epoch, time_ms: world::wall_ms() })
        }
    }
}

fn summary(acknowledged: u64, failed: u64, elapsed: Duration) -> String {
    let rate = acknowledged as f64 / elapsed.as_secs_f64().max(0.001);
    let failures = if failed == 0 { String::new() } else { format!(", {failed} failed") };
    format!("{acknowledged} records acknowledged{failures}, {rate:.0} a second")
}

/// Shown on a terminal only.
fn progress() -> ProgressBar {
    let style = ProgressStyle::with_template("{pos} records, {per_sec}").expect("the template is well formed");
    ProgressBar::no_length().with_style(style)
}
