//! Simulated brokers that live beside other measurements: registered, beating, following the feed, completing ISRs.

use std::time::Duration;

use clap::Args;
use serde_json::json;
use tokio::signal::unix::{SignalKind, signal};
use tokio::time::{Instant, sleep};

use super::brokers::{Behaviour, Fleet};
use super::{PerfError, Report, Target, seconds};

#[derive(Debug, Clone, Args)]
pub struct SimulateArgs {
    /// Brokers at once
    #[arg(long, default_value_t = 1000, value_parser = clap::value_parser!(i32).range(1..=10_000))]
    brokers: i32,
    /// The first of their ids. Ids that are registered and fenced are registered again
    #[arg(long, default_value_t = 100_001)]
    first_broker: i32,
    /// Between the heartbeats of one broker
    #[arg(long, default_value = "250ms", value_parser = humantime::parse_duration)]
    interval: Duration,
    /// Brokers that share a connection to a node, each with two streams; a real one has its own
    #[arg(long, default_value_t = 50, value_parser = clap::value_parser!(u32).range(1..=100))]
    per_connection: u32,
    /// End after so many seconds, rather than when interrupted or terminated
    #[arg(long)]
    seconds: Option<u64>,
}

/// Says when all of them are unfenced, and ends without unregistering them, as processes do.
pub async fn run(target: &Target, arguments: &SimulateArgs) -> Result<Report, PerfError> {
    let ids: Vec<i32> = (arguments.first_broker..).take(arguments.brokers.unsigned_abs() as usize).collect();
    let behaviour = Behaviour {
        interval: arguments.interval,
        follows: true,
        per_connection: arguments.per_connection as usize,
        takes_over: true,
    };
    let began = Instant::now();
    let fleet = Fleet::start(target, &ids, behaviour).await?;
    let unfenced_after = seconds(began.elapsed());
    eprintln!("{} simulated brokers are unfenced", ids.len());
    let observation = target.observe();
    let started = Instant::now();
    fleet.record(true);
    end(arguments.seconds).await?;
    fleet.record(false);
    let elapsed = started.elapsed();
    let nodes = observation.end().await;
    let samples = fleet.halt().await?;
    let parameters = json!({
        "brokers": arguments.brokers, "interval_ms": arguments.interval.as_millis() as u64,
        "per_connection": arguments.per_connection, "seconds": seconds(elapsed),
    });
    let report = Report::new("simulate", &samples, parameters).with_rate(elapsed);
    Ok(report.with_result("unfenced_after_seconds", unfenced_after).with_nodes(nodes))
}

async fn end(after_seconds: Option<u64>) -> Result<(), PerfError> {
    let io = |source| PerfError::Io { what: "cannot wait for a signal".to_owned(), source };
    let mut interrupted = signal(SignalKind::interrupt()).map_err(io)?;
    let mut terminated = signal(SignalKind::terminate()).map_err(io)?;
    let over = async {
        match after_seconds {
            Some(seconds) => sleep(Duration::from_secs(seconds)).await,
            None => std::future::pending().await,
        }
    };
    tokio::select! {
        () = over => {}
        _ = interrupted.recv() => {}
        _ = terminated.recv() => {}
    }
    Ok(())
}
