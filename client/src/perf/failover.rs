//! The active controller killed with -9: how long until the next CreateTopics is acknowledged.

use std::time::Duration;

use clap::Args;
use nix::sys::signal::Signal;
use quorate_proto::admin::NewTopic;
use serde_json::json;
use tokio::time::Instant;

use super::local::{LocalCluster, random_phase, whole};
use super::{
    LocalArgs, PerfError, Report, Samples, Target, address_of, after_cleaning, create, delete, names, progress,
};
use crate::{Freshness, Options};

/// The measurement waits longer than any client should, so as to see bad cases in full.
const CREATE_TIMEOUT: Duration = Duration::from_secs(60);

#[derive(Debug, Clone, Args)]
pub struct FailoverArgs {
    #[command(flatten)]
    local: LocalArgs,
    /// Rounds
    #[arg(long, default_value_t = 20, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    count: u32,
}

pub async fn run(target: &Target, arguments: &FailoverArgs) -> Result<Report, PerfError> {
    let (cluster, target) = LocalCluster::open(&arguments.local, target)?;
    let names = names("failover", arguments.count as usize);
    let bar = progress("failover", arguments.count.into());
    let mut samples = Samples::default();
    let mut measured = Ok(());
    for name in &names {
        match round(&cluster, &target, name).await {
            Ok(elapsed) => samples.record(elapsed),
            Err(error) => {
                measured = Err(error);
                break;
            }
        }
        bar.inc(1);
    }
    bar.finish_and_clear();
    let cleaned = delete(&target.client()?, &names).await.map_err(PerfError::from);
    after_cleaning(measured, cleaned)?;
    let parameters = json!({"nodes": target.bootstrap.len(), "signal": "kill"});
    Ok(Report::new("failover", &samples, parameters))
}

async fn round(cluster: &LocalCluster, target: &Target, name: &str) -> Result<Duration, PerfError> {
    let quorum = whole(&target.client()?).await?;
    let controller = quorum.leader_id.ok_or_else(|| PerfError::cluster("there is no active controller"))?;
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
