//! All nodes killed and started again, or one of them: how long until the cluster serves, and until it is as before.

use std::time::Duration;

use clap::Args;
use futures::future::{join_all, try_join_all};
use nix::sys::signal::Signal;
use nix::unistd::Pid;
use quorate_proto::admin::{DescribeQuorumReply, NewTopic};
use serde_json::{Value, json};
use tokio::time::{Instant, sleep};

use super::load::rounds;
use super::local::{LocalCluster, await_status, is_in_sync};
use super::usage::NodeUsage;
use super::{PerfError, Report, Samples, Target, after_cleaning, create, delete, names};
use crate::{AdminClient, Freshness, Options};

/// Between two looks at what is waited for.
const LOOK_INTERVAL: Duration = Duration::from_millis(10);

/// One attempt of a create: what is not answered within it is asked for again.
const ATTEMPT_TIMEOUT: Duration = Duration::from_secs(3);

#[derive(Debug, Clone, Args)]
pub struct RestartArgs {
    /// Rounds
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=1000))]
    count: u32,
    /// Only this node: a follower returns, or starts from nothing
    #[arg(long)]
    node: Option<i32>,
    /// How long each step may take
    #[arg(long, default_value = "10m", value_parser = humantime::parse_duration)]
    patience: Duration,
}

/// Times from the start of the processes.
struct Round {
    ready: Duration,
    /// The first create that is acknowledged, where all nodes were killed.
    created: Option<Duration>,
    whole: Duration,
    elections: i32,
    nodes: Vec<NodeUsage>,
}

pub async fn run(target: &Target, arguments: &RestartArgs, reports: &mut Vec<Report>) -> Result<(), PerfError> {
    let cluster = target.processes()?;
    let client = target.client()?;
    let partitions = client.cluster_status(Freshness::Linearizable).await?.partitions;
    let names = names("restart", arguments.count as usize);
    let measured =
        rounds("restart", arguments.count, async |number| round(target, cluster, arguments, &names[number]).await)
            .await;
    let cleaned = delete(&client, &names).await.map_err(PerfError::from);
    let rounds = after_cleaning(measured, cleaned)?;
    let parameters = json!({"nodes": target.bootstrap.len(), "node": arguments.node, "partitions": partitions});
    reports.extend(report(&rounds, &parameters));
    Ok(())
}

fn report(rounds: &[Round], parameters: &Value) -> Vec<Report> {
    let times = |measurement, times: Vec<Duration>| Report::new(measurement, &Samples::of(times), parameters.clone());
    let elections: Vec<i32> = rounds.iter().map(|round| round.elections).collect();
    let nodes = rounds.last().map(|round| round.nodes.clone()).unwrap_or_default();
    let created: Vec<Duration> = rounds.iter().filter_map(|round| round.created).collect();
    let mut reports = vec![times("restart-ready", rounds.iter().map(|round| round.ready).collect())];
    if !created.is_empty() {
        reports.push(times("restart-create", created));
    }
    let whole = times("restart-whole", rounds.iter().map(|round| round.whole).collect());
    reports.push(whole.with_result("elections", elections).with_nodes(nodes));
    reports
}

async fn round(
    target: &Target,
    cluster: &LocalCluster,
    arguments: &RestartArgs,
    name: &str,
) -> Result<Round, PerfError> {
    let client = target.client()?;
    let epoch = client.describe_quorum(Freshness::Linearizable).await?.epoch;
    let nodes = arguments.node.map_or_else(|| cluster.nodes(), |node| vec![node]);
    kill(cluster, &nodes).await?;
    let options = Options { timeout: arguments.patience, attempt_timeout: ATTEMPT_TIMEOUT, ..target.options.clone() };
    let patient = Target { options, ..target.clone() }.client()?;

    let observation = target.observe();
    let started = Instant::now();
    let steps = async {
        all_ready(cluster, &nodes, arguments.patience).await?;
        let ready = started.elapsed();
        let created = match arguments.node {
            None => Some(create_first(&patient, name, arguments.patience, started).await?),
            Some(node) => {
                caught_up(&patient, node, arguments.patience).await?;
                None
            }
        };
        await_status(&patient, arguments.patience, "the cluster as before", is_in_sync).await?;
        Ok::<_, PerfError>((ready, created, started.elapsed()))
    };
    let (starts, steps) = tokio::join!(join_all(nodes.iter().map(|node| cluster.start(*node))), steps);
    starts.into_iter().collect::<Result<Vec<()>, _>>()?;
    let (ready, created, whole) = steps?;
    let elections = target.controller_epoch().await? - epoch;
    Ok(Round { ready, created, whole, elections, nodes: observation.end().await })
}

/// kill -9 of those that run, all at once. Returns when they have ended; one that was ending before ends before it is started.
async fn kill(cluster: &LocalCluster, nodes: &[i32]) -> Result<(), PerfError> {
    let running: Vec<i32> = nodes.iter().copied().filter(|node| cluster.running(*node).is_some()).collect();
    let killed: Vec<(i32, Pid)> = running
        .into_iter()
        .map(|node| Ok((node, cluster.signal(node, Signal::SIGKILL)?)))
        .collect::<Result<_, PerfError>>()?;
    try_join_all(killed.into_iter().map(|(node, pid)| cluster.ended(node, pid))).await?;
    Ok(())
}

/// Waits until each of the nodes says that it is ready.
async fn all_ready(cluster: &LocalCluster, nodes: &[i32], patience: Duration) -> Result<(), PerfError> {
    let deadline = Instant::now() + patience;
    for node in nodes {
        while !cluster.is_ready(*node).await {
            in_time(deadline, &format!("node {node} is not ready"))?;
            sleep(LOOK_INTERVAL).await;
        }
    }
    Ok(())
}

/// The first create that succeeds. It is refused while there is no broker to hold the partition.
async fn create_first(
    client: &AdminClient,
    name: &str,
    patience: Duration,
    started: Instant,
) -> Result<Duration, PerfError> {
    let deadline = Instant::now() + patience;
    let topic = NewTopic { name: name.to_owned(), partitions: Some(1), ..NewTopic::default() };
    loop {
        match create(client, topic.clone()).await {
            Ok(_) => return Ok(started.elapsed()),
            Err(error) => in_time(deadline, &format!("no topic was created: {error}"))?,
        }
        sleep(LOOK_INTERVAL).await;
    }
}

/// Waits until the node is a follower that has all that the quorum has.
async fn caught_up(client: &AdminClient, node: i32, patience: Duration) -> Result<(), PerfError> {
    let deadline = Instant::now() + patience;
    loop {
        let quorum = client.describe_quorum(Freshness::Linearizable).await?;
        if has_caught_up(&quorum, node) {
            return Ok(());
        }
        in_time(deadline, &format!("node {node} has not caught up"))?;
        sleep(LOOK_INTERVAL).await;
    }
}

fn has_caught_up(quorum: &DescribeQuorumReply, node: i32) -> bool {
    let voters = quorum.voters.iter().filter(|voter| voter.id == node);
    voters.into_iter().any(|voter| voter.state == "leader" || (voter.state == "follower" && voter.lag == Some(0)))
}

fn in_time(deadline: Instant, message: &str) -> Result<(), PerfError> {
    if Instant::now() < deadline { Ok(()) } else { Err(PerfError::cluster(message)) }
}

#[cfg(test)]
mod tests {
    use quorate_proto::admin::Voter;

    use super::*;

    #[test]
    fn a_follower_has_caught_up_when_it_lacks_nothing() {
        let voter = |state: &str, lag| Voter { id: 2, state: state.to_owned(), lag, ..Voter::default() };
        let quorum = |voter| DescribeQuorumReply { voters: vec![voter], ..DescribeQuorumReply::default() };
        assert!(has_caught_up(&quorum(voter("follower", Some(0))), 2));
        assert!(!has_caught_up(&quorum(voter("follower", Some(1))), 2));
        assert!(!has_caught_up(&quorum(voter("unreachable", Some(0))), 2));
        assert!(!has_caught_up(&quorum(voter("follower", Some(0))), 3), "another node");
    }
}
