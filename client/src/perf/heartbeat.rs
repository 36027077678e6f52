//! Heartbeats of many brokers: how long the active controller takes to answer.

use std::time::Duration;

use clap::Args;
use serde_json::json;
use tokio::time::{Instant, sleep};

use super::brokers::OwnBrokers;
use super::{PerfError, Report, Target, progress, seconds};

#[derive(Debug, Clone, Args)]
pub struct HeartbeatArgs {
    /// Brokers at once
    #[arg(long, default_value_t = 100, value_parser = clap::value_parser!(i32).range(1..=10_000))]
    brokers: i32,
    /// For how long
    #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u64).range(1..=3600))]
    seconds: u64,
    /// Between the heartbeats of one broker; 0s: the next as soon as one is answered
    #[arg(long, default_value = "250ms", value_parser = humantime::parse_duration)]
    interval: Duration,
    /// The first of the broker ids that are registered for the measurement
    #[arg(long, default_value_t = 100_001)]
    first_broker: i32,
}

pub async fn run(target: &Target, arguments: &HeartbeatArgs) -> Result<Report, PerfError> {
    let ids: Vec<i32> = (arguments.first_broker..).take(arguments.brokers.unsigned_abs() as usize).collect();
    let brokers = OwnBrokers::start(target, &ids, arguments.interval).await?;
    let started = Instant::now();
    let bar = progress("heartbeat", arguments.seconds);
    for _ in 0..arguments.seconds {
        sleep(Duration::from_secs(1)).await;
        bar.inc(1);
    }
    let elapsed = started.elapsed();
    bar.finish_and_clear();
    let samples = brokers.stop().await?;
    let parameters = json!({
        "brokers": arguments.brokers, "seconds": seconds(elapsed), "interval_ms": arguments.interval.as_millis() as u64,
    });
    Ok(Report::new("heartbeat", &samples, parameters).with_rate(elapsed))
}
