//! `quorate`: the command line for people and scripts. One file for each noun.

mod args;
mod broker;
mod config;
mod consume;
mod context;
mod failure;
mod feature;
mod output;
mod partition;
mod perf;
mod plan;
mod produce;
mod quorum;
mod reasons;
mod reassign;
mod record_line;
mod record_view;
mod session;
mod status;
mod strays;
mod topic;
mod view;
mod watch;

use std::process::ExitCode;

use clap::Parser;

use crate::args::{Cli, Command};
use crate::failure::{Failure, Outcome};
use crate::session::Session;

fn main() -> ExitCode {
    let cli = Cli::parse();
    let format = cli.global.output;
    let outcome = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .map_err(|error| Failure::local("cannot start the runtime", error))
        .and_then(|runtime| runtime.block_on(run(cli)));
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => failure.report(format),
    }
}

async fn run(cli: Cli) -> Outcome {
    if let Command::Completion { shell } = cli.command {
        return args::completion(shell);
    }
    let session = Session::open(cli.global)?;
    match cli.command {
        Command::Topic(command) => topic::run(&session, command).await,
        Command::Partition(command) => partition::run(&session, command).await,
        Command::Broker(command) => broker::run(&session, command).await,
        Command::Quorum(command) => quorum::run(&session, command).await,
        Command::Config(command) => config::run(&session, command).await,
        Command::Feature(command) => feature::run(&session, command).await,
        Command::Consume(arguments) => consume::run(&session, arguments).await,
        Command::Produce(arguments) => produce::run(&session, arguments).await,
        Command::Watch(arguments) => watch::run(&session, arguments).await,
        Command::Status => status::run(&session).await,
        Command::Perf(command) => perf::run(&session, command).await,
        Command::Completion { .. } => unreachable!("answered above"),
    }
}
