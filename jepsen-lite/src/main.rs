//! `jepsen-lite`: breaks a cluster on purpose, and checks every answer that it gave.
//!
//! Exit status: 0 valid, 1 invalid, 2 unknown, 3 wrong usage.

mod recorded;
mod show;
mod stop;

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Context;
use clap::error::ErrorKind;
use clap::{Args, CommandFactory, Parser, Subcommand};
use jepsen_lite::checker::Verdict;
use jepsen_lite::history;
use jepsen_lite::mutants;
use jepsen_lite::nemesis::Nemesis;
use jepsen_lite::network::{self, Layer};
use jepsen_lite::run::{self, Done, Plan, Results, Setup};
use jepsen_lite::schedule::Schedule;
use jepsen_lite::soak::{self, Sum};
use jepsen_lite::synthetic;
use jepsen_lite::workload::WorkloadName;
use stop::Stopped;
use tokio::time::Instant;

#[derive(Debug, Parser)]
#[command(name = "jepsen-lite", version, about = "Breaks a Quorate cluster on purpose, and checks every answer")]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Start a cluster, break it while it is asked, heal it, judge what it said
    Run(RunArgs),
    /// Carry a recorded schedule out again, several times
    Replay {
        /// A folder of an earlier run, or its schedule.json
        recorded: PathBuf,
        #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..=1000))]
        times: u32,
        #[command(flatten)]
        cluster: ClusterArgs,
    },
    /// Take away from a recorded schedule whatever is not needed for a run to be invalid
    Shrink(ShrinkArgs),
    /// Judge a recorded run once more, or a history by itself
    Check {
        /// The folder of a run, or a history.jsonl
        history: PathBuf,
        /// The history of these workloads only [default: all that was asked]
        #[arg(long, value_enum, value_delimiter = ',')]
        workload: Vec<WorkloadName>,
    },
    /// Make the history of a register that never existed, to time the checkers with
    Synthesize {
        file: PathBuf,
        #[arg(long, default_value_t = 1_000_000)]
        operations: usize,
        #[arg(long, default_value_t = 1)]
        seed: u64,
    },
    /// Run after run, each with the next seed, and what they come to
    Soak(SoakArgs),
    /// Whether bugs that are made on purpose are found; prints a table
    Mutants {
        /// Only these, such as M7
        #[arg(long, value_delimiter = ',')]
        only: Vec<String>,
        /// For each
        #[arg(long, default_value = "5m", value_parser = parse_duration)]
        budget: Duration,
        #[arg(long, default_value = "jepsen-lite-mutants")]
        out: PathBuf,
    },
    /// What there is to break, and to ask meanwhile
    List,
}

#[derive(Debug, Args)]
struct ClusterArgs {
    /// What is asked [default: everything, or what the recorded run asked]
    #[arg(long, value_enum, value_delimiter = ',')]
    workload: Vec<WorkloadName>,
    /// A setting of every node; may be repeated [default: none, or those of the recorded run]
    #[arg(long = "set", value_name = "KEY=VALUE")]
    settings: Vec<String>,
    /// What lies between the nodes [default: proxies, or what the recorded run had]
    #[arg(long, value_enum)]
    layer: Option<Layer>,
    /// Where history, schedule, results and the nodes' folders go
    #[arg(long, default_value = "jepsen-lite-run")]
    out: PathBuf,
}

impl ClusterArgs {
    /// What the arguments say counts before what is there.
    fn change(&self, mut setup: Setup) -> Setup {
        if !self.workload.is_empty() {
            setup.workloads.clone_from(&self.workload);
        }
        if !self.settings.is_empty() {
            setup.settings.clone_from(&self.settings);
        }
        setup.layer = self.layer.unwrap_or(setup.layer);
        setup
    }
}

#[derive(Debug, Args)]
struct RunArgs {
    /// What is done to the cluster [default: what a cluster of any settings survives]
    #[arg(long, value_enum, value_delimiter = ',')]
    nemesis: Vec<Nemesis>,
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// How long faults go on
    #[arg(long, default_value = "30s", value_parser = parse_duration)]
    time: Duration,
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(i32).range(1..=9))]
    nodes: i32,
    #[command(flatten)]
    cluster: ClusterArgs,
}

#[derive(Debug, Args)]
struct SoakArgs {
    /// How many runs [default: 1]
    #[arg(long, conflicts_with = "minutes")]
    runs: Option<u32>,
    /// Begin no further run after so many minutes
    #[arg(long)]
    minutes: Option<u64>,
    #[command(flatten)]
    run: RunArgs,
}

#[derive(Debug, Args)]
struct ShrinkArgs {
    /// A folder of an earlier run, or its schedule.json
    recorded: PathBuf,
    /// A schedule counts as one that fails when so many runs of it are invalid
    #[arg(long, default_value_t = 2, value_parser = clap::value_parser!(u32).range(1..=1000))]
    hits: u32,
    /// Of so many
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..=1000))]
    runs: u32,
    /// Try no further schedule after that
    #[arg(long, default_value = "2h", value_parser = parse_duration)]
    budget: Duration,
    #[command(flatten)]
    cluster: ClusterArgs,
}

impl RunArgs {
    /// Ends the program where they contradict each other.
    fn check(&self) {
        let keeps_records = self.cluster.settings.iter().any(|setting| setting == "log_flush=always");
        let workloads = &self.cluster.workload;
        let has_records = workloads.is_empty() || workloads.contains(&WorkloadName::Log);
        if self.nemesis.contains(&Nemesis::PowerCutAll) && has_records && !keeps_records {
            let message = "power-cut-all loses records, unless brokers sync them: --set log_flush=always";
            refuse(&Cli::command().error(ErrorKind::ArgumentConflict, message));
        }
    }
}

fn refuse(error: &clap::Error) -> ! {
    // A closed terminal cannot be told either.
    let _ = error.print();
    std::process::exit(if error.use_stderr() { USAGE } else { 0 })
}

const USAGE: i32 = 3;

fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => refuse(&error),
    };
    match carry_out(cli.command) {
        Ok(verdict) => ExitCode::from(match verdict {
            Verdict::Valid => 0,
            Verdict::Invalid => 1,
            Verdict::Unknown => 2,
        }),
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::from(2)
        }
    }
}

fn carry_out(command: Command) -> anyhow::Result<Verdict> {
    match command {
        Command::Run(arguments) => {
            let done = run_seed(&arguments, arguments.seed, &arguments.cluster.out)?;
            show::show(&done.results, &arguments.cluster.out);
            Ok(done.results.verdict)
        }
        Command::Soak(arguments) => soak(&arguments),
        Command::Replay { recorded, times, cluster } => recorded::replay(&recorded, times, &cluster),
        Command::Shrink(arguments) => recorded::reduce(&arguments),
        Command::Check { history, workload } => check(&history, workload),
        Command::Synthesize { file, operations, seed } => {
            let shape = synthetic::Shape { operations, processes: 10, operations_per_key: 180, lost_percent: 0 };
            history::write(&file, &synthetic::register(shape, seed))?;
            Ok(Verdict::Valid)
        }
        Command::Mutants { only, budget, out } => hunt(&only, budget, &out),
        Command::List => {
            show::list::<WorkloadName>("workloads");
            show::list::<Nemesis>("nemeses");
            Ok(Verdict::Valid)
        }
    }
}

fn run_seed(arguments: &RunArgs, seed: u64, folder: &Path) -> anyhow::Result<Done> {
    arguments.check();
    let nemeses = if arguments.nemesis.is_empty() { &Nemesis::USUAL[..] } else { &arguments.nemesis };
    let faults_ms = u64::try_from(arguments.time.as_millis())?;
    let schedule = Schedule::draw(arguments.nodes, seed, nemeses, faults_ms);
    let setup = arguments.cluster.change(Setup::default());
    let again = again(arguments, seed, nemeses, &setup);
    run_once(setup, folder, schedule, again)
}

fn run_once(setup: Setup, folder: &Path, schedule: Schedule, again: String) -> anyhow::Result<Done> {
    if setup.layer == Layer::Netns {
        network::enter()?;
    }
    let folder = std::env::current_dir()?.join(folder);
    anyhow::ensure!(!folder.exists(), "{} exists already: name another --out", folder.display());
    let plan = Plan { binaries: run::binaries()?, folder, setup, schedule };
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    runtime.block_on(run::run(&plan, again, async {
        stop::told().await;
        Stopped.into()
    }))
}

/// A run that the harness could not carry out counts as unknown, and the next one follows unless it was told to stop.
fn soak(arguments: &SoakArgs) -> anyhow::Result<Verdict> {
    let began = Instant::now();
    let mut sum = Sum::default();
    let goes_on = |runs: u32| match arguments.minutes {
        Some(minutes) => began.elapsed() < Duration::from_secs(60 * minutes),
        None => runs < arguments.runs.unwrap_or(1),
    };
    for turn in 0.. {
        if !goes_on(turn) {
            break;
        }
        let seed = arguments.run.seed + u64::from(turn);
        let folder = arguments.run.cluster.out.join(seed.to_string());
        match run_seed(&arguments.run, seed, &folder) {
            Ok(done) => {
                let Results { verdict, operations, fired, .. } = &done.results;
                println!("seed {seed}: {verdict:?}, {operations} operations, {} faults", fired.len());
                if *verdict != Verdict::Valid {
                    show::show(&done.results, &folder);
                }
                soak::clean_up(*verdict, &folder)?;
                sum.add(&done, folder);
            }
            Err(error) => {
                println!("seed {seed} could not be carried out: {error:#}");
                let is_stopped = error.is::<Stopped>();
                sum.fail(format!("seed {seed}: {error:#}"), folder);
                if is_stopped {
                    break;
                }
            }
        }
    }
    println!("{}", serde_json::to_string_pretty(&sum)?);
    Ok(sum.verdict())
}

/// Valid when every mutant is found, and no run without one is not valid.
fn hunt(only: &[String], budget: Duration, out: &Path) -> anyhow::Result<Verdict> {
    anyhow::ensure!(cfg!(feature = "mutants"), "these binaries have no mutants: see scripts/mutants");
    let mut fates = Vec::new();
    for trial in mutants::TRIALS.iter().filter(|trial| only.is_empty() || only.iter().any(|name| name == trial.mutant))
    {
        let fate = mutants::hunt(*trial, budget, &out.join(trial.mutant))?;
        eprintln!("{}: {:?}, control valid: {}, {}", trial.mutant, fate.killed, fate.control, fate.rules.join(", "));
        fates.push(fate);
    }
    println!("{}", mutants::table(&fates));
    let all_found = fates.iter().all(|fate| fate.killed.is_some() && fate.control);
    Ok(if all_found { Verdict::Valid } else { Verdict::Invalid })
}

/// A folder is judged by all that was recorded of its run, and a file by itself.
fn check(path: &Path, mut workloads: Vec<WorkloadName>) -> anyhow::Result<Verdict> {
    if path.is_dir() && workloads.is_empty() {
        let results = run::judge_again(path)?;
        show::show(&results, path);
        return Ok(results.verdict);
    }
    let file = if path.is_dir() { path.join(run::HISTORY) } else { path.to_owned() };
    let history = history::read(&file).with_context(|| file.display().to_string())?;
    if workloads.is_empty() {
        workloads = history.iter().map(|operation| operation.workload).collect();
        workloads.sort_unstable();
        workloads.dedup();
    }
    anyhow::ensure!(!workloads.is_empty(), "the history is empty");
    let reports = jepsen_lite::checker::check_all(&workloads, &history);
    reports.iter().for_each(show::show_report);
    let verdict = reports.iter().map(|report| report.verdict).max().unwrap_or(Verdict::Unknown);
    println!("{verdict:?}: {} operations", history.len());
    Ok(verdict)
}

/// The command line that does the same again.
fn again(arguments: &RunArgs, seed: u64, nemeses: &[Nemesis], setup: &Setup) -> String {
    format!(
        "jepsen-lite run --seed {seed} --time {}ms --nodes {} --nemesis {}{}",
        arguments.time.as_millis(),
        arguments.nodes,
        show::names(nemeses),
        show::flags(setup),
    )
}

fn parse_duration(text: &str) -> Result<Duration, String> {
    humantime::parse_duration(text).map_err(|error| error.to_string())
}
