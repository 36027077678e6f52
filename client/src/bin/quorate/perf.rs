//! `quorate perf …`: one JSON line per measurement, whatever `-o` says.

use clap::Subcommand;
use quorate_client::perf::{self, PerfError, Target};

use crate::failure::{Failure, Outcome};
use crate::output;
use crate::session::Session;

#[derive(Debug, Subcommand)]
pub enum Perf {
    /// Create topics
    Create(perf::create::CreateArgs),
    /// Set a config of a topic, again and again
    Mutate(perf::mutate::MutateArgs),
    /// Shrink and expand ISRs
    AlterIsr(perf::alter_isr::AlterIsrArgs),
    /// Heartbeats of many brokers
    Heartbeat(perf::heartbeat::HeartbeatArgs),
    /// Records through the reference data plane
    Produce(perf::produce::ProduceArgs),
    /// End a partition's leader under a producer: the gap between acknowledgements, what is lost, what is there twice
    Outage(perf::outage::OutageArgs),
    /// Kill the active controller: time to the next acknowledged CreateTopics
    Failover(perf::failover::FailoverArgs),
    /// Kill a broker: time until all its partitions have another leader
    Fence(perf::fence::FenceArgs),
}

pub async fn run(session: &Session, command: Perf) -> Outcome {
    let target = Target { bootstrap: session.bootstrap.clone(), options: session.options.clone() };
    let report = match command {
        Perf::Create(arguments) => perf::create::run(&target, &arguments).await,
        Perf::Mutate(arguments) => perf::mutate::run(&target, &arguments).await,
        Perf::AlterIsr(arguments) => perf::alter_isr::run(&target, &arguments).await,
        Perf::Heartbeat(arguments) => perf::heartbeat::run(&target, &arguments).await,
        Perf::Produce(arguments) => perf::produce::run(&target, &arguments).await,
        Perf::Outage(arguments) => perf::outage::run(&target, &arguments).await,
        Perf::Failover(arguments) => perf::failover::run(&target, &arguments).await,
        Perf::Fence(arguments) => perf::fence::run(&target, &arguments).await,
    }?;
    output::line(&output::json(&report))
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
