//! Heartbeats of many brokers: how long the active controller takes to answer, and what one costs it.

use std::time::Duration;

use clap::Args;
use serde_json::json;
use tokio::time::{Instant, sleep};

use super::brokers::{Behaviour, Fleet};
use super::load::progress;
use super::usage::NodeUsage;
use super::{PerfError, Report, Target, active_controller, seconds};

/// How long the nodes are observed before there are any heartbeats of ours: what they use anyway is not counted.
const IDLE_WINDOW: Duration = Duration::from_secs(3);

/// After the registrations, so that what they left to be done is not measured.
const SETTLE_TIME: Duration = Duration::from_secs(1);

#[derive(Debug, Clone, Args)]
pub struct HeartbeatArgs {
    /// Brokers at once
    #[arg(long, default_value_t = 100, value_parser = clap::value_parser!(i32).range(1..=10_000))]
    brokers: i32,
    /// For how long
    #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u64).range(1..=3600))]
    seconds: u64,
    /// Between the heartbeats of one broker
    #[arg(long, default_value = "250ms", value_parser = humantime::parse_duration, conflicts_with = "flat_out")]
    interval: Duration,
    /// The next heartbeat of a broker as soon as one is answered
    #[arg(long)]
    flat_out: bool,
    /// Brokers that share a connection to the controller; a real one has its own
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=250))]
    per_connection: u32,
    /// The first of the broker ids that are registered for the measurement
    #[arg(long, default_value_t = 100_001)]
    first_broker: i32,
}

impl HeartbeatArgs {
    fn interval(&self) -> Duration {
        if self.flat_out { Duration::ZERO } else { self.interval }
    }
}

pub async fn run(target: &Target, arguments: &HeartbeatArgs) -> Result<Report, PerfError> {
    let controller = active_controller(target).await?;
    let idle = idle_share(target, controller).await;
    let ids: Vec<i32> = (arguments.first_broker..).take(arguments.brokers.unsigned_abs() as usize).collect();
    let behaviour = Behaviour {
        interval: arguments.interval(),
        per_connection: arguments.per_connection as usize,
        ..Behaviour::default()
    };
    let fleet = Fleet::start(target, &ids, behaviour).await?;
    sleep(SETTLE_TIME).await;
    let observation = target.observe();
    let started = Instant::now();
    fleet.record(true);
    wait_with_progress(arguments.seconds).await;
    fleet.record(false);
    let elapsed = started.elapsed();
    let nodes = observation.end().await;
    let samples = fleet.stop().await?;
    let parameters = json!({
        "brokers": arguments.brokers, "seconds": seconds(elapsed), "interval_ms": arguments.interval().as_millis() as u64,
        "per_connection": arguments.per_connection,
    });
    let mut report = Report::new("heartbeat", &samples, parameters).with_rate(elapsed);
    if let (Some(idle), Some(used)) = (idle, cpu_of(&nodes, controller)) {
        let ours = (used - idle * seconds(elapsed)).max(0.0);
        report = report.with_result("controller_cpu_micros", micros_each(ours, samples.len()));
    }
    Ok(report.with_nodes(nodes))
}

/// How many CPU seconds a second the controller uses without heartbeats of ours, where it runs on this machine.
async fn idle_share(target: &Target, controller: i32) -> Option<f64> {
    let observation = target.observe();
    let started = Instant::now();
    sleep(IDLE_WINDOW).await;
    let used = cpu_of(&observation.end().await, controller)?;
    Some(used / seconds(started.elapsed()))
}

fn cpu_of(nodes: &[NodeUsage], controller: i32) -> Option<f64> {
    nodes.iter().find(|node| node.node == controller).map(|node| node.cpu_seconds)
}

fn micros_each(cpu_seconds: f64, heartbeats: u64) -> f64 {
    let micros = cpu_seconds * 1_000_000.0 / heartbeats.max(1) as f64;
    (micros * 10.0).round() / 10.0
}

async fn wait_with_progress(seconds: u64) {
    let bar = progress("heartbeat", seconds);
    for _ in 0..seconds {
        sleep(Duration::from_secs(1)).await;
        bar.inc(1);
    }
    bar.finish_and_clear();
}
