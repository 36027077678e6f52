//! A standby node is killed, stays dead for minutes, and is started again: how mutations go on meanwhile, and how long it
//! takes until the cluster is as before.

use std::time::Duration;

use clap::Args;
use nix::sys::signal::Signal;
use nix::unistd::Pid;
use quorate_proto::admin::ClusterStatusReply;
use rand::RngExt;
use serde_json::{Value, json};
use tokio::time::{Instant, sleep};

use super::background::{Background, Phase};
use super::load::progress;
use super::local::{LocalCluster, await_status, is_in_sync, whole};
use super::usage::NodeUsage;
use super::{PerfError, Report, Samples, Target, controller_of};
use crate::{AdminClient, Freshness, world};

/// Mutations alone, to compare with.
const IDLE_WINDOW: Duration = Duration::from_secs(5);

#[derive(Debug, Clone, Args)]
pub struct DeadBrokerArgs {
    /// How long it stays dead
    #[arg(long, default_value_t = 120, value_parser = clap::value_parser!(u64).range(1..=86_400))]
    seconds: u64,
    /// Between two mutations
    #[arg(long, default_value = "10ms", value_parser = humantime::parse_duration)]
    mutate_every: Duration,
    /// How long the return may take
    #[arg(long, default_value = "10m", value_parser = humantime::parse_duration)]
    patience: Duration,
}

/// Mutations before, while it is dead and until it has returned; then the two times of the return.
pub async fn run(target: &Target, arguments: &DeadBrokerArgs, reports: &mut Vec<Report>) -> Result<(), PerfError> {
    let cluster = target.processes()?;
    let client = target.client()?;
    let quorum = whole(&client).await?;
    let partitions = client.cluster_status(Freshness::Linearizable).await?.partitions;
    let victim = standby(controller_of(&quorum)?, quorum.voters.iter().map(|voter| voter.id).collect())?;
    let background = Background::start(&target.controller_first().await?, arguments.mutate_every).await?;
    sleep(IDLE_WINDOW).await;

    background.next_phase();
    let dead = dies(target, cluster, victim, arguments).await;
    background.next_phase();
    let returned = match &dead {
        Ok(dead) => returns(target, cluster, &client, dead, arguments).await,
        Err(_) => Ok(Return::default()),
    };
    let phases = background.stop().await?;
    let elections_after = target.controller_epoch().await? - quorum.epoch;

    let parameters = json!({
        "nodes": target.bootstrap.len(), "partitions": partitions, "seconds": arguments.seconds,
        "mutate_every_ms": arguments.mutate_every.as_secs_f64() * 1000.0,
    });
    let dead = dead?;
    reports.extend(mutations(&phases, &dead, quorum.epoch, &parameters));
    reports.extend(returned?.reports(elections_after - (dead.epoch - quorum.epoch), &parameters));
    Ok(())
}

/// A random one of those that are not the active controller.
fn standby(controller: i32, mut voters: Vec<i32>) -> Result<i32, PerfError> {
    voters.retain(|id| *id != controller);
    if voters.len() < 2 {
        return Err(PerfError::cluster("at least three nodes are needed"));
    }
    Ok(voters.swap_remove(world::chance().random_range(0..voters.len())))
}

/// A node that has been dead for its time.
struct Dead {
    node: i32,
    pid: Pid,
    /// At the end of that time.
    epoch: i32,
    nodes: Vec<NodeUsage>,
}

async fn dies(
    target: &Target,
    cluster: &LocalCluster,
    node: i32,
    arguments: &DeadBrokerArgs,
) -> Result<Dead, PerfError> {
    let observation = target.observe();
    let pid = cluster.signal(node, Signal::SIGKILL)?;
    let bar = progress("dead-broker: seconds", arguments.seconds);
    for _ in 0..arguments.seconds {
        sleep(Duration::from_secs(1)).await;
        bar.inc(1);
    }
    bar.finish_and_clear();
    let nodes = observation.end().await;
    let epoch = target.patient().controller_epoch().await?;
    Ok(Dead { node, pid, epoch, nodes })
}

/// Times from the start of the node.
#[derive(Default)]
struct Return {
    in_sync: Duration,
    preferred: Duration,
    nodes: Vec<NodeUsage>,
}

async fn returns(
    target: &Target,
    cluster: &LocalCluster,
    client: &AdminClient,
    dead: &Dead,
    arguments: &DeadBrokerArgs,
) -> Result<Return, PerfError> {
    cluster.ended(dead.node, dead.pid).await?;
    let observation = target.observe();
    let started = Instant::now();
    let patience = arguments.patience;
    let back = async {
        await_status(client, patience, "all replicas in sync", is_in_sync).await?;
        let in_sync = started.elapsed();
        let is_preferred = |status: &ClusterStatusReply| is_in_sync(status) && status.not_preferred == 0;
        await_status(client, patience, "preferred leaders", is_preferred).await?;
        Ok::<_, PerfError>((in_sync, started.elapsed()))
    };
    let (start, back) = tokio::join!(cluster.start(dead.node), back);
    start?;
    let (in_sync, preferred) = back?;
    Ok(Return { in_sync, preferred, nodes: observation.end().await })
}

fn mutations(phases: &[Phase], dead: &Dead, epoch_before: i32, parameters: &Value) -> Vec<Report> {
    let report = |phase: usize, measurement| phases[phase].report(measurement, parameters.clone());
    let elections = dead.epoch - epoch_before;
    vec![
        report(0, "dead-broker-mutate-before"),
        report(1, "dead-broker-mutate").with_result("elections", elections).with_nodes(dead.nodes.clone()),
        report(2, "dead-broker-mutate-return"),
    ]
}

impl Return {
    fn reports(self, elections: i32, parameters: &Value) -> [Report; 2] {
        let once = |measurement, time| Report::new(measurement, &Samples::of([time]), parameters.clone());
        [
            once("dead-broker-in-sync", self.in_sync).with_result("elections", elections).with_nodes(self.nodes),
            once("dead-broker-preferred", self.preferred),
        ]
    }
}
