//! The leader of a partition goes while a producer writes to it: how long is nothing acknowledged, what is lost, and
//! what is there twice?

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use clap::{Args, ValueEnum};
use nix::sys::signal::Signal;
use quorate_proto::admin::{NewTopic, TopicRef};
use serde_json::json;
use tokio::sync::watch;
use tokio::task::{JoinHandle, JoinSet};
use tokio::time::{Instant, interval, sleep};

use super::load::rounds;
use super::local::{random_phase, whole};
use super::{PerfError, Report, Samples, Target, after_cleaning, assigned, controller_of, create, delete, names};
use crate::log::{Consumer, ConsumerOptions, Partition, ProducedRecord, Producer, ProducerOptions, Start};
use crate::{AdminClient, Freshness, check_item};

/// Writes are looked at for so long after the leader has gone: longer than any gap that is expected.
const WINDOW: Duration = Duration::from_secs(2);

/// A round in which nothing is acknowledged for so long has failed.
const GAP_MAX: Duration = Duration::from_secs(60);

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Means {
    /// kill -9
    Kill,
    /// SIGTERM: a controlled shutdown
    Term,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Victim {
    /// Also the active controller: both have to be replaced
    Controller,
    /// A node that is not the active controller
    Standby,
}

#[derive(Debug, Clone, Args)]
pub struct OutageArgs {
    /// Rounds
    #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u32).range(1..=1000))]
    count: u32,
    /// How the leader ends
    #[arg(long, value_enum, default_value_t = Means::Kill)]
    signal: Means,
    /// Who leads the partition
    #[arg(long, value_enum, default_value_t = Victim::Controller)]
    victim: Victim,
    /// Between two records
    #[arg(long, default_value = "2ms", value_parser = humantime::parse_duration, value_name = "DURATION")]
    every: Duration,
}

pub async fn run(target: &Target, arguments: &OutageArgs) -> Result<Report, PerfError> {
    let names = names("outage", arguments.count as usize);
    let observation = target.observe();
    let measured =
        rounds("outage", arguments.count, async |number| round(target, arguments, &names[number]).await).await;
    let cleaned = delete(&target.client()?, &names).await.map_err(PerfError::from);
    let mut samples = Samples::default();
    let mut tally = Tally::default();
    for (gap, found) in after_cleaning(measured, cleaned)? {
        samples.record(gap);
        tally.add(&found);
    }
    let parameters = json!({
        "nodes": target.bootstrap.len(),
        "signal": format!("{:?}", arguments.signal).to_lowercase(),
        "victim": format!("{:?}", arguments.victim).to_lowercase(),
        "every_ms": arguments.every.as_secs_f64() * 1000.0,
        "acknowledged": tally.acknowledged,
        "failed": tally.failed,
        "lost": tally.lost,
        "duplicates": tally.duplicates,
    });
    Ok(Report::new("outage", &samples, parameters).with_nodes(observation.end().await))
}

#[derive(Debug, Default)]
struct Tally {
    acknowledged: u64,
    failed: u64,
    lost: u64,
    duplicates: u64,
}

impl Tally {
    fn add(&mut self, other: &Self) {
        self.acknowledged += other.acknowledged;
        self.failed += other.failed;
        self.lost += other.lost;
        self.duplicates += other.duplicates;
    }
}

async fn round(target: &Target, arguments: &OutageArgs, topic: &str) -> Result<(Duration, Tally), PerfError> {
    let cluster = target.processes()?;
    let client = target.client()?;
    let quorum = whole(&client).await?;
    let controller = controller_of(&quorum)?;
    let mut nodes: Vec<i32> = quorum.voters.iter().map(|voter| voter.id).collect();
    // The first replica leads.
    nodes.sort_by_key(|node| (*node == controller) != (arguments.victim == Victim::Controller));
    nodes.truncate(3);
    let configs = [("min.insync.replicas".to_owned(), "2".to_owned())].into();
    let leader = nodes[0];
    create(&client, NewTopic { configs, ..assigned(topic.to_owned(), [nodes]) }).await?;

    let writer = Writer::start(target, topic, arguments.every)?;
    writer.acknowledges().await?;
    random_phase().await;
    let signal = if arguments.signal == Means::Kill { Signal::SIGKILL } else { Signal::SIGTERM };
    let gone = Instant::now();
    let pid = cluster.signal(leader, signal)?;
    sleep(WINDOW).await;
    let recovered = writer.acknowledges().await;
    // Whatever came of it, the node comes back.
    cluster.restart(leader, pid).await?;
    recovered?;
    whole(&client).await?;
    let written = writer.stop().await;
    let gap = written.longest_gap_after(gone);
    Ok((gap, written.compare(&read_all(client, topic).await?)))
}

/// A steady producer.
struct Writer {
    stop: watch::Sender<bool>,
    acknowledged: Arc<Mutex<Vec<Instant>>>,
    task: JoinHandle<Written>,
}

/// What the producer was told.
#[derive(Default)]
struct Written {
    at: Vec<Instant>,
    /// By value: the offset.
    acknowledged: BTreeMap<Bytes, Option<i64>>,
    failed: u64,
}

impl Writer {
    fn start(target: &Target, topic: &str, every: Duration) -> Result<Self, PerfError> {
        let producer = Producer::start(
            &target.bootstrap,
            ProducerOptions { tls: target.options.tls.clone(), ..ProducerOptions::default() },
        )?;
        let stop = watch::Sender::new(false);
        let acknowledged = Arc::<Mutex<Vec<Instant>>>::default();
        let task = tokio::spawn(write(producer, topic.to_owned(), every, stop.subscribe(), acknowledged.clone()));
        Ok(Self { stop, acknowledged, task })
    }

    /// Waits until records are acknowledged from now on.
    async fn acknowledges(&self) -> Result<(), PerfError> {
        let since = Instant::now();
        while self.acknowledged.lock().expect(UNPOISONED).last().is_none_or(|last| *last < since) {
            if since.elapsed() > GAP_MAX {
                return Err(PerfError::cluster(format!("nothing was acknowledged for {GAP_MAX:?}")));
            }
            sleep(Duration::from_millis(5)).await;
        }
        Ok(())
    }

    async fn stop(self) -> Written {
        self.stop.send_replace(true);
        let mut written = self.task.await.expect("the writer does not panic");
        written.at.clone_from(&self.acknowledged.lock().expect(UNPOISONED));
        written
    }
}

const UNPOISONED: &str = "no one panics while holding the times";

async fn write(
    producer: Producer,
    topic: String,
    every: Duration,
    mut stop: watch::Receiver<bool>,
    acknowledged: Arc<Mutex<Vec<Instant>>>,
) -> Written {
    let mut written = Written::default();
    let mut open = JoinSet::new();
    let mut pace = interval(every);
    let mut number = 0_u64;
    loop {
        tokio::select! {
            // Told, or nobody is left to tell.
            _ = stop.changed() => break,
            _ = pace.tick() => {
                let value = Bytes::from(number.to_string());
                number += 1;
                let record = ProducedRecord { value: Some(value.clone()), ..ProducedRecord::default() };
                let Ok(delivery) = producer.send(&topic, Some(0), record).await else { break };
                let times = acknowledged.clone();
                open.spawn(async move {
                    let outcome = delivery.acknowledged().await;
                    if outcome.is_ok() {
                        times.lock().expect(UNPOISONED).push(Instant::now());
                    }
                    (value, outcome)
                });
            }
            Some(done) = open.join_next() => written.take(done.expect("a delivery does not panic")),
        }
    }
    while let Some(done) = open.join_next().await {
        written.take(done.expect("a delivery does not panic"));
    }
    written
}

impl Written {
    fn take(&mut self, (value, outcome): (Bytes, Result<crate::log::Acknowledged, crate::ClientError>)) {
        match outcome {
            Ok(at) => drop(self.acknowledged.insert(value, at.offset)),
            Err(_) => self.failed += 1,
        }
    }

    fn longest_gap_after(&self, from: Instant) -> Duration {
        let mut times = self.at.clone();
        times.sort_unstable();
        let gaps = times.windows(2).filter(|pair| pair[1] >= from && pair[0] <= from + WINDOW);
        gaps.map(|pair| pair[1] - pair[0]).max().unwrap_or_default()
    }

    fn compare(&self, found: &[(i64, Bytes)]) -> Tally {
        let mut places: BTreeMap<&Bytes, Vec<i64>> = BTreeMap::new();
        for (offset, value) in found {
            places.entry(value).or_default().push(*offset);
        }
        let is_lost = |(value, offset): &(&Bytes, &Option<i64>)| {
            places.get(value).is_none_or(|places| offset.is_some_and(|offset| !places.contains(&offset)))
        };
        Tally {
            acknowledged: self.acknowledged.len() as u64,
            failed: self.failed,
            lost: self.acknowledged.iter().filter(is_lost).count() as u64,
            duplicates: places.values().map(|places| places.len() as u64 - 1).sum(),
        }
    }
}

async fn read_all(client: AdminClient, topic: &str) -> Result<Vec<(i64, Bytes)>, PerfError> {
    let named = TopicRef { name: Some(topic.to_owned()), id: None };
    let described = client.describe_topics(vec![named], Freshness::Linearizable).await?.topics;
    check_item(described.first().and_then(|topic| topic.error.as_ref()))?;
    let mut consumer = Consumer::new(client, ConsumerOptions::default());
    consumer.assign(topic, 0, Start::Beginning);
    let partition = Partition { topic: topic.into(), partition: 0 };
    let mut found = Vec::new();
    loop {
        let records = consumer.poll(Duration::from_secs(1)).await?;
        let is_quiet = records.is_empty();
        found.extend(records.into_iter().map(|record| (record.offset, record.value.unwrap_or_default())));
        let end = consumer.high_watermarks().get(&partition).copied();
        let position = consumer.positions().get(&partition).copied();
        if is_quiet && end.is_some() && position >= end {
            return Ok(found);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn written(acknowledged: &[(&'static str, i64)]) -> Written {
        let acknowledged =
            acknowledged.iter().map(|(value, offset)| (Bytes::from_static(value.as_bytes()), Some(*offset))).collect();
        Written { acknowledged, ..Written::default() }
    }

    #[test]
    fn what_is_missing_elsewhere_or_there_twice_is_counted() {
        let found = |values: &[(i64, &'static str)]| -> Vec<(i64, Bytes)> {
            values.iter().map(|(offset, value)| (*offset, Bytes::from_static(value.as_bytes()))).collect()
        };
        let written = written(&[("a", 0), ("b", 1), ("c", 2)]);
        let whole = written.compare(&found(&[(0, "a"), (1, "b"), (2, "c"), (3, "never acknowledged")]));
        assert_eq!((whole.lost, whole.duplicates, whole.acknowledged), (0, 0, 3));
        let broken = written.compare(&found(&[(0, "a"), (1, "a"), (3, "c")]));
        assert_eq!((broken.lost, broken.duplicates), (2, 1), "b is gone, c is elsewhere, a is there twice");
    }

    #[test]
    fn only_the_gap_around_the_outage_counts() {
        let begin = Instant::now();
        let at = |ms| begin + Duration::from_millis(ms);
        let times = vec![at(0), at(900), at(1_000), at(1_300), at(1_310), at(4_000), at(9_000)];
        let written = Written { at: times, ..Written::default() };
        assert_eq!(written.longest_gap_after(at(950)), Duration::from_millis(2_690));
        assert_eq!(
            written.longest_gap_after(at(1_350)),
            Duration::from_millis(2_690),
            "the one that began before counts"
        );
    }
}
