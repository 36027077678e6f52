//! Watchers that all start from a snapshot at once: how long until each has it whole, and what that does to mutations.

use std::time::Duration;

use clap::Args;
use prost::Message;
use quorate_metadata::image::LEVEL_HIGHEST;
use quorate_proto::broker::watch_event::Event;
use quorate_proto::broker::{WatchEvent, WatchRequest};
use serde_json::json;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, timeout};
use tonic::{Status, Streaming};

use super::background::Background;
use super::load::progress;
use super::{PATIENCE, PerfError, Report, Samples, Target};
use crate::admin::brokers as wire;
use crate::nodes::Nodes;

/// Mutations alone, to compare with.
const IDLE_WINDOW: Duration = Duration::from_secs(3);

/// Before a snapshot that broke off is asked for again.
const RETRY_PAUSE: Duration = Duration::from_millis(100);

#[derive(Debug, Clone, Args)]
pub struct WatchArgs {
    /// Watchers at once, each with a connection of its own, spread over the nodes
    #[arg(long, default_value_t = 1000, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    watchers: u32,
    /// Each follows only what concerns one broker: this id and those after it
    #[arg(long)]
    first_broker: Option<i32>,
    /// Between two mutations
    #[arg(long, default_value = "5ms", value_parser = humantime::parse_duration)]
    mutate_every: Duration,
}

/// One line for the watchers, and one for the mutations before and meanwhile.
pub async fn run(target: &Target, arguments: &WatchArgs, reports: &mut Vec<Report>) -> Result<(), PerfError> {
    let routed = target.controller_first().await?;
    let background = Background::start(&routed, arguments.mutate_every).await?;
    sleep(IDLE_WINDOW).await;
    let epoch = target.controller_epoch().await?;
    let observation = target.observe();
    background.next_phase();
    let started = Instant::now();
    let watched = watch_all(target, arguments).await;
    let elapsed = started.elapsed();
    background.next_phase();
    let nodes = observation.end().await;
    let elections = target.controller_epoch().await? - epoch;
    let phases = background.stop().await?;
    let seen = watched?;

    let parameters = json!({"watchers": arguments.watchers, "first_broker": arguments.first_broker});
    let report = Report::new("watch", &seen.samples, parameters.clone()).with_rate(elapsed);
    reports.push(
        report
            .with_result("bytes", seen.bytes)
            .with_result("records", seen.records)
            .with_result("broken_off", seen.broken_off)
            .with_result("elections", elections)
            .with_nodes(nodes),
    );
    reports.push(phases[0].report("watch-mutate-before", parameters.clone()));
    reports.push(phases[1].report("watch-mutate-meanwhile", parameters));
    Ok(())
}

/// What watchers received.
#[derive(Default)]
struct Seen {
    /// From the start of each until its snapshot was whole.
    samples: Samples,
    bytes: u64,
    records: u64,
    broken_off: u64,
}

async fn watch_all(target: &Target, arguments: &WatchArgs) -> Result<Seen, PerfError> {
    let mut watchers = JoinSet::new();
    for (place, number) in (0..arguments.watchers as usize).zip(0..) {
        let address = &target.bootstrap[place % target.bootstrap.len()];
        let nodes = Nodes::open(&[address], &target.options)?;
        let broker = arguments.first_broker.map(|first| first + number);
        watchers.spawn(watch_whole(nodes, broker));
    }
    let bar = progress("watch", arguments.watchers.into());
    let mut seen = Seen::default();
    while let Some(watcher) = watchers.join_next().await {
        seen.add(watcher.expect("a watcher does not panic")?);
        bar.inc(1);
    }
    bar.finish_and_clear();
    Ok(seen)
}

impl Seen {
    fn add(&mut self, other: Self) {
        self.samples.merge(&other.samples);
        self.bytes += other.bytes;
        self.records += other.records;
        self.broken_off += other.broken_off;
    }

    fn count(&mut self, event: &WatchEvent) {
        self.bytes += event.encoded_len() as u64;
        if let Some(Event::Snapshot(part)) = &event.event {
            self.records += part.records.len() as u64;
        }
    }
}

/// Reads one whole snapshot and keeps nothing of it. One that breaks off is read again from its beginning.
async fn watch_whole(nodes: Nodes, broker: Option<i32>) -> Result<Seen, PerfError> {
    let started = Instant::now();
    let mut seen = Seen::default();
    loop {
        let left = PATIENCE.saturating_sub(started.elapsed());
        let error = match timeout(left, read_snapshot(&nodes, broker, &mut seen)).await {
            Ok(Ok(())) => {
                seen.samples.record(started.elapsed());
                return Ok(seen);
            }
            Ok(Err(status)) => status.to_string(),
            Err(_) => return Err(PerfError::cluster(format!("a snapshot was not whole within {PATIENCE:?}"))),
        };
        tracing::debug!(error, "snapshot broken off");
        seen.broken_off += 1;
        sleep(RETRY_PAUSE).await;
    }
}

async fn read_snapshot(nodes: &Nodes, broker: Option<i32>, seen: &mut Seen) -> Result<(), Status> {
    let max_level = Some(LEVEL_HIGHEST.into());
    let request = WatchRequest { broker, max_level, ..WatchRequest::default() };
    let mut feed: Streaming<WatchEvent> = wire(nodes.current().1.channel.clone()).watch(request).await?.into_inner();
    while let Some(event) = feed.message().await? {
        seen.count(&event);
        if let Some(Event::Snapshot(part)) = event.event
            && part.last
        {
            return Ok(());
        }
    }
    Err(Status::unavailable("the feed ended"))
}
