//! One of several simulated brokers is fenced. It leads very many partitions, and follows in others.

use std::time::Duration;

use clap::Args;
use quorate_proto::admin::DescribeQuorumReply;
use serde_json::{Value, json};
use tokio::time::{Instant, sleep, timeout};

use super::moves::Moves;
use super::real::id_of;
use super::{FenceArgs, MOVE_TIMEOUT, Means, Observer};
use crate::Freshness;
use crate::perf::background::{Background, Phase};
use crate::perf::brokers::{Behaviour, Fleet};
use crate::perf::load::rounds;
use crate::perf::usage::NodeUsage;
use crate::perf::{
    PerfError, Report, Samples, Target, address_of, after_cleaning, assigned, controller_of, create, delete, names,
};

/// Mutations alone, to compare with.
const IDLE_WINDOW: Duration = Duration::from_secs(3);

/// Of one topic: its assignment, at about 20 bytes a partition, fits into a request of 4 MiB.
const PARTITIONS_PER_TOPIC_MAX: usize = 100_000;

#[derive(Debug, Clone, Args)]
pub(super) struct SimulatedArgs {
    /// Simulate so many brokers, one of which is fenced, instead of killing a node
    #[arg(long, value_parser = clap::value_parser!(i32).range(2..=10_000))]
    pub brokers: Option<i32>,
    /// Partitions in which the simulated broker follows
    #[arg(long, default_value_t = 0, value_parser = clap::value_parser!(i32).range(0..=10_000_000), requires = "brokers")]
    followed: i32,
    /// Replicas of each partition
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(i32).range(2..=9), requires = "brokers")]
    replication_factor: i32,
    /// The first of the broker ids that are registered for the measurement
    #[arg(long, default_value_t = 200_001, requires = "brokers")]
    first_broker: i32,
    /// Between two unrelated mutations
    #[arg(long, default_value = "2ms", value_parser = humantime::parse_duration, requires = "brokers")]
    mutate_every: Duration,
}

/// What a round measured.
struct Round {
    first: Duration,
    all: Duration,
    everything: Duration,
    before: Phase,
    meanwhile: Phase,
    elections: i32,
    nodes: Vec<NodeUsage>,
}

pub(super) async fn run(
    target: &Target,
    arguments: &FenceArgs,
    brokers: i32,
    means: Means,
    reports: &mut Vec<Report>,
) -> Result<(), PerfError> {
    let target = target.controller_first().await?.patient();
    if brokers < arguments.simulated.replication_factor {
        let factor = arguments.simulated.replication_factor;
        return Err(PerfError::cluster(format!("{brokers} brokers cannot have {factor} replicas of a partition")));
    }
    let victim = arguments.simulated.first_broker;
    let others: Vec<i32> = (1..brokers).map(|number| victim + number).collect();
    let behaviour = Behaviour { follows: true, ..Behaviour::default() };
    let fleet = Fleet::start(&target, &others, behaviour.clone()).await?;
    let names = names("fence", topics(arguments.partitions).len() + topics(arguments.simulated.followed).len());
    let measured = rounds("fence", arguments.count, async |_| {
        let one = Fleet::start(&target, &[victim], behaviour.clone()).await?;
        let measured = round(&target, arguments, &others, one, means, &names).await;
        after_cleaning(measured, delete(&target.client()?, &names).await.map_err(PerfError::from))
    })
    .await;
    let rounds = after_cleaning(measured, fleet.stop().await.map(drop))?;
    reports.extend(report(&rounds, &parameters(arguments, brokers, means)));
    Ok(())
}

fn parameters(arguments: &FenceArgs, brokers: i32, means: Means) -> Value {
    json!({
        "brokers": brokers, "partitions": arguments.partitions, "followed": arguments.simulated.followed,
        "replication_factor": arguments.simulated.replication_factor,
        "signal": if means == Means::Kill { "kill" } else { "request" },
        "observer": if arguments.observe == Observer::Controller { "controller" } else { "standby" },
    })
}

fn report(rounds: &[Round], parameters: &Value) -> Vec<Report> {
    let times = |measurement, time: fn(&Round) -> Duration| {
        Report::new(measurement, &Samples::of(rounds.iter().map(time)), parameters.clone())
    };
    let mutations = |measurement, phase: fn(&Round) -> &Phase| {
        let mut all = Phase::default();
        for round in rounds {
            all.merge(phase(round));
        }
        all.report(measurement, parameters.clone())
    };
    let elections: i32 = rounds.iter().map(|round| round.elections).sum();
    let nodes = rounds.last().map(|round| round.nodes.clone()).unwrap_or_default();
    vec![
        times("fence-first-leader", |round| round.first),
        times("fence-all-leaders", |round| round.all),
        times("fence-everything", |round| round.everything).with_result("elections", elections).with_nodes(nodes),
        mutations("fence-mutate-before", |round| &round.before),
        mutations("fence-mutate-meanwhile", |round| &round.meanwhile),
    ]
}

async fn round(
    target: &Target,
    arguments: &FenceArgs,
    others: &[i32],
    mut victim: Fleet,
    means: Means,
    names: &[String],
) -> Result<Round, PerfError> {
    let client = target.client()?;
    let quorum = client.describe_quorum(Freshness::Linearizable).await?;
    let mut led = Vec::new();
    for (name, (leads, partitions)) in names.iter().zip(shares(arguments)) {
        let replicas = replicas(arguments, others, leads, partitions);
        let topic = create(&client, assigned(name.clone(), replicas)).await?;
        if leads {
            led.push((id_of(&topic)?, partitions));
        }
    }
    let observer = observer(&quorum, arguments.observe)?;
    let mut moves = Moves::watch(target, observer, arguments.simulated.first_broker, led).await?;
    let background = Background::start(target, arguments.simulated.mutate_every).await?;
    sleep(IDLE_WINDOW).await;

    let observation = target.observe();
    background.next_phase();
    let started = Instant::now();
    match means {
        Means::Request => victim.request_fencing(),
        Means::Kill | Means::Term => victim.kill().await,
    }
    let moved = timeout(MOVE_TIMEOUT, moves.all_moved()).await;
    let all = started.elapsed();
    let fenced = timeout(MOVE_TIMEOUT, moves.fenced()).await;
    let everything = started.elapsed();
    background.next_phase();
    let nodes = observation.end().await;
    let mut phases = background.stop().await?.into_iter();
    let elections = target.controller_epoch().await? - quorum.epoch;
    delete(&client, names).await?;
    victim.stop().await?;

    let left = moves.left();
    let late = |what: String| PerfError::cluster(format!("{what} after {MOVE_TIMEOUT:?}"));
    moved.map_err(|_| late(format!("{left} partitions have no other leader")))??;
    fenced.map_err(|_| late("the broker is not fenced".to_owned()))??;
    let first = moves.first_moved_at().map_or(all, |at| at - started);
    let (before, meanwhile) = (phases.next().unwrap_or_default(), phases.next().unwrap_or_default());
    Ok(Round { first, all, everything, before, meanwhile, elections, nodes })
}

fn observer(quorum: &DescribeQuorumReply, observe: Observer) -> Result<String, PerfError> {
    let controller = controller_of(quorum)?;
    let standby = quorum.voters.iter().map(|voter| voter.id).find(|id| *id != controller);
    let observer = if observe == Observer::Controller { controller } else { standby.unwrap_or(controller) };
    address_of(quorum, observer)
}

/// The sizes of the topics that so many partitions are split into.
fn topics(partitions: i32) -> Vec<usize> {
    let partitions = partitions.unsigned_abs() as usize;
    let full = std::iter::repeat_n(PARTITIONS_PER_TOPIC_MAX, partitions / PARTITIONS_PER_TOPIC_MAX);
    full.chain(Some(partitions % PARTITIONS_PER_TOPIC_MAX).filter(|rest| *rest > 0)).collect()
}

/// The topics: whether the victim leads in them, and their sizes.
fn shares(arguments: &FenceArgs) -> impl Iterator<Item = (bool, usize)> {
    let led = topics(arguments.partitions).into_iter().map(|partitions| (true, partitions));
    led.chain(topics(arguments.simulated.followed).into_iter().map(|partitions| (false, partitions)))
}

/// The victim is the first or the second replica, and the others take turns.
fn replicas(arguments: &FenceArgs, others: &[i32], leads: bool, partitions: usize) -> impl Iterator<Item = Vec<i32>> {
    let victim = arguments.simulated.first_broker;
    let more = arguments.simulated.replication_factor.unsigned_abs() as usize - 1;
    (0..partitions).map(move |number| {
        let mut replicas: Vec<i32> = (0..more).map(|at| others[(number + at) % others.len()]).collect();
        replicas.insert(usize::from(!leads), victim);
        replicas
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn partitions_are_split_into_topics_that_fit_a_request() {
        assert_eq!(topics(0), Vec::<usize>::new());
        assert_eq!(topics(100_000), [100_000]);
        assert_eq!(topics(250_000), [100_000, 100_000, 50_000]);
    }
}
