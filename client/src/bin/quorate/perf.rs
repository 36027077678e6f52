//! `quorate perf …`: one JSON line per measurement, whatever `-o` says.

use clap::{Args, Subcommand};
use quorate_client::perf::{self, LocalArgs, LocalCluster, PerfError, Report, Target};

use crate::failure::{Failure, Outcome};
use crate::output;
use crate::session::Session;

#[derive(Debug, Args)]
pub struct Arguments {
    #[command(flatten)]
    local: LocalArgs,
    #[command(subcommand)]
    measurement: Perf,
}

#[derive(Debug, Subcommand)]
enum Perf {
    /// Create topics
    Create(perf::create::CreateArgs),
    /// Set a config of a topic, again and again
    Mutate(perf::mutate::MutateArgs),
    /// Shrink and expand ISRs
    AlterIsr(perf::alter_isr::AlterIsrArgs),
    /// Heartbeats of many brokers
    Heartbeat(perf::heartbeat::HeartbeatArgs),
    /// Simulated brokers, to measure beside
    Simulate(perf::simulate::SimulateArgs),
    /// Watchers that all start from a snapshot at once
    Watch(perf::watch::WatchArgs),
    /// Records through the reference data plane
    Produce(perf::produce::ProduceArgs),
    /// End a partition's leader under a producer: the gap between acknowledgements, what is lost, what is there twice
    Outage(perf::outage::OutageArgs),
    /// Kill the active controller: time to the next acknowledged CreateTopics
    Failover(perf::failover::FailoverArgs),
    /// Kill a broker: time until all its partitions have another leader
    Fence(perf::fence::FenceArgs),
    /// Kill a standby and leave it dead: how mutations go on, and how long its return takes
    DeadBroker(perf::dead_broker::DeadBrokerArgs),
    /// Kill all nodes and start them: time to ready, to the first create, and to whole
    Restart(perf::restart::RestartArgs),
    /// Draw cost over size, as an SVG, from results of scripts/bench --curve
    Curve(perf::curve::CurveArgs),
}

impl Perf {
    /// Whether nodes on this machine are killed and started.
    fn needs_processes(&self) -> bool {
        match self {
            Self::Outage(_) | Self::Failover(_) | Self::DeadBroker(_) | Self::Restart(_) => true,
            Self::Fence(arguments) => arguments.needs_processes(),
            Self::Create(_)
            | Self::Mutate(_)
            | Self::AlterIsr(_)
            | Self::Heartbeat(_)
            | Self::Simulate(_)
            | Self::Watch(_)
            | Self::Produce(_)
            | Self::Curve(_) => false,
        }
    }
}

/// What was measured is printed, even where the rest failed.
pub async fn run(session: &Session, arguments: Arguments) -> Outcome {
    if let Perf::Curve(arguments) = &arguments.measurement {
        return output::write(perf::curve::run(arguments)?.as_bytes());
    }
    let target = target(session, &arguments)?;
    let mut reports = Vec::new();
    let outcome = measure(&target, arguments.measurement, &mut reports).await;
    reports.iter().try_for_each(|report| output::line(&output::json(report)))?;
    outcome.map_err(Failure::from)
}

fn target(session: &Session, arguments: &Arguments) -> Outcome<Target> {
    let options = session.options.clone();
    if arguments.local.dir.is_some() || arguments.measurement.needs_processes() {
        return Ok(Target::local(LocalCluster::open(&arguments.local)?, options));
    }
    Ok(Target::new(session.bootstrap.clone(), options))
}

async fn measure(target: &Target, measurement: Perf, reports: &mut Vec<Report>) -> Result<(), PerfError> {
    let report = match measurement {
        Perf::Create(arguments) => perf::create::run(target, &arguments).await,
        Perf::Mutate(arguments) => perf::mutate::run(target, &arguments).await,
        Perf::AlterIsr(arguments) => perf::alter_isr::run(target, &arguments).await,
        Perf::Heartbeat(arguments) => perf::heartbeat::run(target, &arguments).await,
        Perf::Simulate(arguments) => perf::simulate::run(target, &arguments).await,
        Perf::Outage(arguments) => perf::outage::run(target, &arguments).await,
        Perf::Failover(arguments) => perf::failover::run(target, &arguments).await,
        Perf::Produce(arguments) => return perf::produce::run(target, &arguments, reports).await,
        Perf::Watch(arguments) => return perf::watch::run(target, &arguments, reports).await,
        Perf::Fence(arguments) => return perf::fence::run(target, &arguments, reports).await,
        Perf::DeadBroker(arguments) => return perf::dead_broker::run(target, &arguments, reports).await,
        Perf::Restart(arguments) => return perf::restart::run(target, &arguments, reports).await,
        Perf::Curve(_) => unreachable!("drawn above"),
    }?;
    reports.push(report);
    Ok(())
}

impl From<PerfError> for Failure {
    fn from(error: PerfError) -> Self {
        match error {
            PerfError::Client(error) => error.into(),
            PerfError::Address(error) => error.into(),
            error @ (PerfError::Io { .. } | PerfError::Cluster(_)) => Self::Local(error.to_string()),
        }
    }
}
