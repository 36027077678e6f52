//! Creating topics: the latency of one small mutation, and how many a second.

use clap::Args;
use indicatif::ProgressBar;
use quorate_proto::admin::NewTopic;
use serde_json::json;
use tokio::task::JoinSet;
use tokio::time::Instant;

use super::{PerfError, Report, Routing, Samples, Target, after_cleaning, create, delete, names, progress};
use crate::AdminClient;

#[derive(Debug, Clone, Args)]
pub struct CreateArgs {
    /// Topics in all
    #[arg(long, default_value_t = 100, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    count: u32,
    /// Clients at once, each with a connection of its own
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=1024))]
    clients: u32,
    /// Partitions of each topic
    #[arg(long, default_value_t = 1)]
    partitions: i32,
    /// Replicas of each partition [default: the cluster's]
    #[arg(long)]
    replication_factor: Option<i32>,
    #[command(flatten)]
    routing: Routing,
}

pub async fn run(target: &Target, arguments: &CreateArgs) -> Result<Report, PerfError> {
    let target = target.routed(&arguments.routing).await?;
    let names = names("create", arguments.count as usize);
    let bar = progress("create", names.len() as u64);
    let started = Instant::now();
    let measured = measure(&target, arguments, &names, &bar).await;
    let elapsed = started.elapsed();
    bar.finish_and_clear();
    let cleaned = delete(&target.client()?, &names).await.map_err(PerfError::from);
    let samples = after_cleaning(measured, cleaned)?;
    let parameters = json!({
        "count": arguments.count, "clients": arguments.clients, "partitions": arguments.partitions,
        "replication_factor": arguments.replication_factor, "any_node": arguments.routing.any_node,
    });
    Ok(Report::new("create", &samples, parameters).with_rate(elapsed))
}

async fn measure(
    target: &Target,
    arguments: &CreateArgs,
    names: &[String],
    bar: &ProgressBar,
) -> Result<Samples, PerfError> {
    let mut clients = JoinSet::new();
    for share in names.chunks(names.len().div_ceil(arguments.clients as usize)) {
        let topics = share.iter().map(|name| NewTopic {
            name: name.clone(),
            partitions: Some(arguments.partitions),
            replication_factor: arguments.replication_factor,
            ..NewTopic::default()
        });
        clients.spawn(create_all(target.client()?, topics.collect(), bar.clone()));
    }
    let mut samples = Samples::default();
    while let Some(share) = clients.join_next().await {
        samples.merge(&share.expect("a client of ours does not panic")?);
    }
    Ok(samples)
}

async fn create_all(client: AdminClient, topics: Vec<NewTopic>, bar: ProgressBar) -> Result<Samples, PerfError> {
    // The first call pays for the connection; a read does so here.
    client.describe_quorum(crate::Freshness::Stale).await?;
    let mut samples = Samples::default();
    for topic in topics {
        let started = Instant::now();
        create(&client, topic).await?;
        samples.record(started.elapsed());
        bar.inc(1);
    }
    Ok(samples)
}
