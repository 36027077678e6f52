//! A broker fenced: how long until the partitions that it led have another leader, as a node's feed shows it.
//!
//! Either a real node is killed (`real.rs`), or one of some simulated brokers that leads very many partitions
//! (`simulated.rs`).

mod moves;
mod real;
mod simulated;

use std::time::Duration;

use clap::{Args, ValueEnum};

use super::{PerfError, Report, Target};

/// Longer than any session: a round that takes so long has failed.
const MOVE_TIMEOUT: Duration = Duration::from_secs(60);

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Means {
    /// kill -9; of a simulated broker: its port is closed and its streams break
    Kill,
    /// SIGTERM: a controlled shutdown
    Term,
    /// A simulated broker asks to be fenced
    Request,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Observer {
    /// The active controller's own feed
    Controller,
    /// The feed of a node that applies it last
    Standby,
}

#[derive(Debug, Clone, Args)]
pub struct FenceArgs {
    /// Rounds
    #[arg(long, default_value_t = 20, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    count: u32,
    /// How the broker ends
    #[arg(long, value_enum, default_value_t = Means::Kill)]
    signal: Means,
    /// Partitions that it leads
    #[arg(long, default_value_t = 20, value_parser = clap::value_parser!(i32).range(1..=1_000_000))]
    partitions: i32,
    /// Whose feed is watched
    #[arg(long, value_enum, default_value_t = Observer::Standby)]
    observe: Observer,
    #[command(flatten)]
    simulated: simulated::SimulatedArgs,
}

impl FenceArgs {
    /// Whether nodes of this machine are killed.
    pub fn needs_processes(&self) -> bool {
        self.simulated.brokers.is_none()
    }
}

pub async fn run(target: &Target, arguments: &FenceArgs, reports: &mut Vec<Report>) -> Result<(), PerfError> {
    let refuse = |message: &str| Err(PerfError::cluster(message));
    match (arguments.simulated.brokers, arguments.signal) {
        (None, Means::Request) => refuse("--signal request is for simulated brokers: give --brokers"),
        (Some(_), Means::Term) => refuse("--signal term is for real nodes: leave --brokers out"),
        (None, _) => {
            reports.push(real::run(target, arguments).await?);
            Ok(())
        }
        (Some(brokers), means) => simulated::run(target, arguments, brokers, means, reports).await,
    }
}
