//! The active controller killed with -9: how long until the next CreateTopics is acknowledged.

use std::time::Duration;

use clap::Args;
use nix::sys::signal::Signal;
use quorate_proto::admin::NewTopic;
use serde_json::json;
use tokio::time::Instant;

use super::load::rounds;
use super::local::{random_phase, whole};
use super::{PerfError, Report, Samples, Target, address_of, after_cleaning, controller_of, create, delete, names};
use crate::{Freshness, Options};

/// The measurement waits longer than any client should, so as to see bad cases in full.
const CREATE_TIMEOUT: Duration = Duration::from_secs(60);

#[derive(Debug, Clone, Args)]
pub struct FailoverArgs {
    /// Rounds
    #[arg(long, default_value_t = 20, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    count: u32,
}

pub async fn run(target: &Target, arguments: &FailoverArgs) -> Result<Report, PerfError> {
    let names = names("failover", arguments.count as usize);
    let observation = target.observe();
    let measured = rounds("failover", arguments.count, async |number| round(target, &names[number]).await).await;
    let cleaned = delete(&target.client()?, &names).await.map_err(PerfError::from);
    let samples = Samples::of(after_cleaning(measured, cleaned)?);
    let parameters = json!({"nodes": target.bootstrap.len(), "signal": "kill"});
    Ok(Report::new("failover", &samples, parameters).with_nodes(observation.end().await))
}

async fn round(target: &Target, name: &str) -> Result<Duration, PerfError> {
    let cluster = target.processes()?;
    let quorum = whole(&target.client()?).await?;
    let controller = controller_of(&quorum)?;
    let options = Options { timeout: CREATE_TIMEOUT, ..target.options.clone() };
    let others = Target { options, ..target.without(&address_of(&quorum, controller)?) };
    let client = others.client()?;
    // Opens the connection, so that the time is the cluster's.
    client.describe_quorum(Freshness::Stale).await?;
    random_phase().await;

    let started = Instant::now();
    let pid = cluster.signal(controller, Signal::SIGKILL)?;
    let created = create(&client, NewTopic { name: name.to_owned(), partitions: Some(1), ..NewTopic::default() }).await;
    let elapsed = started.elapsed();

    // Whatever came of it, the node comes back.
    cluster.restart(controller, pid).await?;
    created?;
    whole(&target.client()?).await?;
    Ok(elapsed)
}
