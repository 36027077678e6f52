//! `quorate-node`: runs one node, gives an identity to a data directory, or looks into one.

use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::{Args, Parser, Subcommand, ValueEnum};
use quorate_metadata::ids::ControllerId;
use quorate_node::config::{self, NodeConfig, is_service_variable};
use quorate_node::machine::Machine;
use quorate_node::{inspect, node, raft, telemetry};
use tokio::signal::unix::{SignalKind, signal};

/// For tests of clusters whose nodes run different releases: the highest `metadata.version` that the node supports.
const LEVEL_MAX_VARIABLE: &str = "QUORATE_TEST_METADATA_VERSION_MAX";

#[derive(Parser)]
#[command(name = "quorate-node", version, about = "A node of a Quorate cluster")]
struct Cli {
    #[command(subcommand)]
    command: Option<Command>,
    /// What `run` takes, which may also stand before it.
    #[command(flatten)]
    run: Run,
}

#[derive(Subcommand)]
enum Command {
    /// Run the node until SIGTERM.
    Run(Run),
    /// Give an empty data directory an identity: once, for a production cluster.
    Format {
        #[arg(long)]
        data: PathBuf,
        #[arg(long)]
        node_id: i32,
        /// 22 characters of URL-safe base64, which may begin with a hyphen; the same on every node.
        #[arg(long, allow_hyphen_values = true)]
        cluster_id: Option<String>,
        /// The directory replaces the lost one of this voter: the node waits for `quorate quorum replace`.
        #[arg(long)]
        replacement: bool,
    },
    /// Look into the data directory of a stopped node. Changes nothing.
    Inspect {
        #[arg(long)]
        data: PathBuf,
        #[arg(value_enum, default_value_t = Part::Log)]
        part: Part,
    },
}

#[derive(Clone, Copy, ValueEnum)]
enum Part {
    Log,
    Snapshot,
    Vote,
}

#[derive(Args, Default)]
struct Run {
    /// A TOML file.
    #[arg(long, short)]
    config: Option<PathBuf>,
    /// Sets one key of the configuration; may be repeated.
    #[arg(long = "set", value_name = "KEY=VALUE")]
    settings: Vec<String>,
    #[arg(long)]
    node_id: Option<i32>,
    #[arg(long)]
    data_dir: Option<PathBuf>,
    /// A TOML file with the addresses to dial for each peer.
    #[arg(long)]
    dial_map: Option<PathBuf>,
    /// Accept non-loopback addresses without TLS.
    #[arg(long)]
    insecure: bool,
    /// Print the configuration in effect, and exit.
    #[arg(long)]
    print_config: bool,
}

impl Run {
    /// With what stands later on the command line, which wins.
    fn with(self, later: Self) -> Self {
        Self {
            config: later.config.or(self.config),
            settings: [self.settings, later.settings].concat(),
            node_id: later.node_id.or(self.node_id),
            data_dir: later.data_dir.or(self.data_dir),
            dial_map: later.dial_map.or(self.dial_map),
            insecure: self.insecure || later.insecure,
            print_config: self.print_config || later.print_config,
        }
    }

    /// Other commands have no use for what `run` takes.
    fn refuse_for(&self, command: &str) -> Result<(), String> {
        let given = [
            ("--config", self.config.is_some()),
            ("--set", !self.settings.is_empty()),
            ("--node-id", self.node_id.is_some()),
            ("--data-dir", self.data_dir.is_some()),
            ("--dial-map", self.dial_map.is_some()),
            ("--insecure", self.insecure),
            ("--print-config", self.print_config),
        ];
        match given.into_iter().find(|(_, is_given)| *is_given) {
            Some((flag, _)) => Err(format!("{flag} before `{command}` has no effect; `run` takes it")),
            None => Ok(()),
        }
    }

    fn load(self) -> Result<NodeConfig, String> {
        let mut settings = Vec::new();
        for text in self.settings {
            let (key, value) = text.split_once('=').ok_or_else(|| format!("--set {text}: expected KEY=VALUE"))?;
            settings.push((key.to_owned(), value.to_owned()));
        }
        let mut flag = |key: &str, value: Option<String>| {
            settings.extend(value.map(|value| (key.to_owned(), value)));
        };
        flag("node_id", self.node_id.map(|id| id.to_string()));
        flag("data_dir", self.data_dir.map(|path| path.display().to_string()));
        flag("dial_map", self.dial_map.map(|path| path.display().to_string()));
        flag("insecure", self.insecure.then(|| "true".to_owned()));
        config::load(self.config.as_deref(), std::env::vars(), &settings).map_err(|error| error.to_string())
    }

    fn start(self) -> Result<(), String> {
        if self.print_config {
            let config = self.load()?;
            print!("{}", toml::to_string(&config).map_err(|error| error.to_string())?);
            return Ok(());
        }
        run(self.load()?)
    }
}

fn main() -> ExitCode {
    // Failpoints of this process, by the variable FAILPOINTS.
    let _failpoints = fail::FailScenario::setup();
    let Cli { command, run } = Cli::parse();
    let done = match command {
        Some(Command::Run(later)) => run.with(later).start(),
        Some(Command::Format { data, node_id, cluster_id, replacement }) => {
            run.refuse_for("format").and_then(|()| format(data, node_id, cluster_id, replacement))
        }
        Some(Command::Inspect { data, part }) => run.refuse_for("inspect").and_then(|()| look_into(data, part)),
        None if run.print_config => run.start(),
        None => Err("no command; try `quorate-node run --config node.toml`, or --help".to_owned()),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(message) => {
            // Who closed stderr reads no message; the exit status is left.
            let _ = writeln!(std::io::stderr(), "error: {message}");
            ExitCode::FAILURE
        }
    }
}

/// What the threads of a node that has stopped may still take: all their work has ended, unless something holds it.
const HELD_THREADS_TIMEOUT: Duration = Duration::from_secs(1);

fn run(config: NodeConfig) -> Result<(), String> {
    telemetry::start(config.log_format, &config.log_level)?;
    if let Err(error) = quorate_node::raise_descriptor_limit() {
        tracing::warn!(%error, "cannot raise the limit of descriptors");
    }
    let ignored: Vec<String> =
        std::env::vars().map(|(name, _)| name).filter(|name| is_service_variable(name)).collect();
    if !ignored.is_empty() {
        tracing::info!(variables = ignored.join(" "), "variables of Kubernetes services are no settings");
    }
    let machine = Machine { level_max: level_max()?, ..Machine::default() };
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .map_err(|error| format!("cannot start the runtime: {error}"))?;
    let ended = runtime.block_on(async {
        let mut terminate = signal(SignalKind::terminate()).map_err(|error| error.to_string())?;
        let mut interrupt = signal(SignalKind::interrupt()).map_err(|error| error.to_string())?;
        let stop = async move {
            tokio::select! {
                _ = terminate.recv() => {}
                _ = interrupt.recv() => {}
            }
        };
        node::run_on(machine, config, stop).await.map_err(|error| error.to_string())
    });
    // A thread that is held must not keep the process.
    runtime.shutdown_timeout(HELD_THREADS_TIMEOUT);
    ended
}

fn level_max() -> Result<Option<i16>, String> {
    let Some(text) = std::env::var_os(LEVEL_MAX_VARIABLE) else { return Ok(None) };
    let level = text.to_str().and_then(|text| text.parse().ok());
    level.map(Some).ok_or_else(|| format!("invalid {LEVEL_MAX_VARIABLE} {text:?}: expected a level, such as 1"))
}

fn format(data: PathBuf, node_id: i32, cluster_id: Option<String>, replacement: bool) -> Result<(), String> {
    if node_id <= 0 {
        return Err(format!("node id {node_id} is not positive"));
    }
    let cluster = cluster_id.map(|text| text.parse()).transpose().map_err(|error| format!("cluster id: {error}"))?;
    let formatted =
        raft::format(&data, ControllerId::new(node_id), cluster, replacement).map_err(|error| error.to_string())?;
    println!("formatted {} as directory {} of node {node_id}", data.display(), formatted.directory);
    Ok(())
}

fn look_into(data: PathBuf, part: Part) -> Result<(), String> {
    let out = std::io::stdout().lock();
    match part {
        Part::Log => inspect::log(&data, out),
        Part::Snapshot => inspect::snapshot(&data, out),
        Part::Vote => inspect::vote(&data, out),
    }
    .map_err(|error| error.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(arguments: &[&str]) -> Cli {
        Cli::try_parse_from([&["quorate-node"], arguments].concat()).expect("they are known")
    }

    #[test]
    fn flags_before_and_after_run_are_the_same_and_the_later_wins() {
        let cli =
            parse(&["--set", "rack=a", "--insecure", "--config", "a.toml", "run", "--set", "rack=b", "-c", "b.toml"]);
        let Some(Command::Run(later)) = cli.command else { panic!("the command is run") };
        let run = cli.run.with(later);
        assert_eq!((run.settings, run.insecure), (vec!["rack=a".to_owned(), "rack=b".to_owned()], true));
        assert_eq!(run.config, Some(PathBuf::from("b.toml")));
        for arguments in [["--print-config", "run"], ["run", "--print-config"]] {
            let cli = parse(&arguments);
            let Some(Command::Run(later)) = cli.command else { panic!("the command is run") };
            assert!(cli.run.with(later).print_config);
        }
    }

    #[test]
    fn a_flag_of_run_before_another_command_is_refused_by_name() {
        let cli = parse(&["--set", "rack=a", "format", "--data", "d", "--node-id", "1"]);
        let refused = cli.run.refuse_for("format").expect_err("format has no settings");
        assert_eq!(refused, "--set before `format` has no effect; `run` takes it");
        assert_eq!(parse(&["format", "--data", "d", "--node-id", "1"]).run.refuse_for("format"), Ok(()));
    }
}
