//! Creating topics: the latency of a request, and how many topics and partitions a second.

use std::collections::VecDeque;

use clap::Args;
use quorate_proto::admin::NewTopic;
use serde_json::json;

use super::load::{Limit, Load, Operation};
use super::report::rate;
use super::{PerfError, Report, Routing, Target, after_cleaning, create_all, delete, names};
use crate::{AdminClient, Freshness};

#[derive(Debug, Clone, Args)]
pub struct CreateArgs {
    /// Topics in all
    #[arg(long, visible_alias = "topics", default_value_t = 100, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    count: u32,
    /// Topics in one request
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    per_request: u32,
    /// Clients at once, each with a connection of its own
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=1024))]
    clients: u32,
    /// Partitions of each topic
    #[arg(long, default_value_t = 1)]
    partitions: i32,
    /// Replicas of each partition [default: the cluster's]
    #[arg(long)]
    replication_factor: Option<i32>,
    /// Leave the topics in the cluster; the measurement is called "build"
    #[arg(long)]
    keep: bool,
    #[command(flatten)]
    routing: Routing,
}

pub async fn run(target: &Target, arguments: &CreateArgs) -> Result<Report, PerfError> {
    let target = target.routed(&arguments.routing).await?.patient();
    let names = names("create", arguments.count as usize);
    let measured = Load::run(&target, "create", clients(&target, arguments, &names)?).await;
    let cleaned = match measured.is_ok() && arguments.keep {
        true => Ok(()),
        false => delete(&target.client()?, &names).await.map_err(PerfError::from),
    };
    let load = after_cleaning(measured, cleaned)?;
    let partitions = u64::from(arguments.count) * u64::from(arguments.partitions.unsigned_abs());
    let partitions_per_second = rate(partitions, load.elapsed);
    let parameters = json!({
        "count": arguments.count, "per_request": arguments.per_request, "clients": arguments.clients,
        "partitions": arguments.partitions, "replication_factor": arguments.replication_factor,
        "any_node": arguments.routing.any_node,
    });
    let measurement = if arguments.keep { "build" } else { "create" };
    Ok(load.report(measurement, parameters).with_result("partitions_per_second", partitions_per_second))
}

/// The requests, shared out among the clients.
fn clients(target: &Target, arguments: &CreateArgs, names: &[String]) -> Result<Vec<(Creation, Limit)>, PerfError> {
    let topic = |name: &String| NewTopic {
        name: name.clone(),
        partitions: Some(arguments.partitions),
        replication_factor: arguments.replication_factor,
        ..NewTopic::default()
    };
    let requests: Vec<Vec<NewTopic>> =
        names.chunks(arguments.per_request as usize).map(|chunk| chunk.iter().map(topic).collect()).collect();
    let shares = requests.chunks(requests.len().div_ceil(arguments.clients as usize));
    shares
        .map(|share| {
            let creation = Creation { client: target.client()?, requests: share.iter().cloned().collect() };
            Ok((creation, Limit::Times(share.len() as u64)))
        })
        .collect()
}

struct Creation {
    client: AdminClient,
    requests: VecDeque<Vec<NewTopic>>,
}

impl Operation for Creation {
    async fn prepare(&mut self) -> Result<(), PerfError> {
        // The first call pays for the connection; a read does so here.
        self.client.describe_quorum(Freshness::Stale).await?;
        Ok(())
    }

    async fn run(&mut self) -> Result<(), PerfError> {
        let topics = self.requests.pop_front().expect("repeated once for each request");
        create_all(&self.client, topics).await?;
        Ok(())
    }
}
