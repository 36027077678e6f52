//! The grammar: `quorate NOUN VERB [ARGS] [--flags]`.

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, CommandFactory, Parser, Subcommand};

use quorate_client::spec;

use crate::failure::Outcome;
use crate::output::{self, Format};

#[derive(Debug, Parser)]
#[command(
    name = "quorate",
    version,
    about = "Talk to a Quorate cluster",
    after_help = "Exit status: 0 done, 1 refused or failed, 2 wrong usage, 3 the outcome is unknown."
)]
pub struct Cli {
    #[command(flatten)]
    pub global: Global,
    #[command(subcommand)]
    pub command: Command,
}

#[derive(Debug, Args)]
pub struct Global {
    /// Nodes to ask, any of them [env: QUORATE_BOOTSTRAP] [default: the context's, or a local cluster]
    #[arg(long, global = true, value_name = "HOST:PORT,…", value_delimiter = ',', conflicts_with = "context")]
    pub bootstrap: Vec<String>,
    /// A named cluster of ~/.config/quorate/config.toml
    #[arg(long, global = true, value_name = "NAME")]
    pub context: Option<String>,
    /// A table for people, JSON or YAML for programs
    #[arg(short, long, global = true, value_enum, default_value_t = Format::Table)]
    pub output: Format,
    /// How long to try
    #[arg(long, global = true, default_value = "10s", value_parser = spec::time_limit)]
    pub timeout: Duration,
    /// The authority that signed the nodes' certificates (PEM); turns TLS on
    #[arg(long, global = true, value_name = "FILE")]
    pub tls_ca: Option<PathBuf>,
    /// Our certificate (PEM)
    #[arg(long, global = true, value_name = "FILE", requires_all = ["tls_ca", "tls_key"])]
    pub tls_cert: Option<PathBuf>,
    /// The key of our certificate (PEM)
    #[arg(long, global = true, value_name = "FILE", requires = "tls_cert")]
    pub tls_key: Option<PathBuf>,
}

#[derive(Debug, Subcommand)]
pub enum Command {
    /// Create, list, describe, delete and alter topics
    #[command(subcommand, alias = "topics")]
    Topic(crate::topic::Topic),
    /// Find partitions in trouble, explain them, elect leaders, move replicas
    #[command(subcommand, alias = "partitions")]
    Partition(crate::partition::Partition),
    /// List, describe and unregister brokers
    #[command(subcommand, alias = "brokers")]
    Broker(crate::broker::Broker),
    /// The controllers
    #[command(subcommand, alias = "quorums")]
    Quorum(crate::quorum::Quorum),
    /// Dynamic configs of topics and brokers
    #[command(subcommand, alias = "configs")]
    Config(crate::config::Config),
    /// Finalized levels of features: describe, upgrade, downgrade
    #[command(subcommand, alias = "features")]
    Feature(crate::feature::Feature),
    /// Write lines of the standard input as records
    Produce(crate::produce::Produce),
    /// The records of a topic, a line a value
    Consume(crate::consume::Arguments),
    /// The metadata feed, a line a record
    Watch(crate::watch::Arguments),
    /// Whether the cluster is healthy, and why it is not
    Status,
    /// Print a shell's completion script
    Completion { shell: clap_complete::Shell },
    /// Load and timing, one JSON line per measurement
    Perf(crate::perf::Arguments),
}

/// What every mutation takes.
#[derive(Debug, Clone, Copy, Args)]
pub struct Planning {
    /// Print what would change, and change nothing
    #[arg(long)]
    pub plan: bool,
}

/// What verbs that destroy take.
#[derive(Debug, Clone, Copy, Args)]
pub struct Consent {
    /// Do not ask
    #[arg(short, long)]
    pub yes: bool,
}

pub fn completion(shell: clap_complete::Shell) -> Outcome {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut Cli::command(), "quorate", &mut script);
    output::write(&script)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(line: &str) -> Result<Cli, clap::error::ErrorKind> {
        Cli::try_parse_from(line.split_whitespace()).map_err(|error| error.kind())
    }

    #[test]
    fn the_grammar_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn plural_nouns_are_accepted() {
        for line in ["topics list", "partitions list", "brokers list", "configs get topic/a", "features describe"] {
            assert!(parse(&format!("quorate {line}")).is_ok(), "{line}");
        }
    }

    #[test]
    fn global_flags_stand_anywhere() {
        let cli = parse("quorate topic list -o json --bootstrap a:1,b:2 --timeout 250ms").expect("parses");
        assert_eq!(cli.global.output, Format::Json);
        assert_eq!(cli.global.bootstrap, ["a:1", "b:2"]);
        assert_eq!(cli.global.timeout, Duration::from_millis(250));
    }

    #[test]
    fn a_topic_is_created_with_all_its_flags() {
        let line =
            "quorate topic create orders --partitions 3 --replication-factor 2 --config a=b --config c=d=e --plan";
        assert!(parse(line).is_ok());
        assert!(parse("quorate topic create orders --assignment 1:2:3,2:3:1 --if-not-exists").is_ok());
    }

    #[test]
    fn wrong_usage_is_refused_before_anything_is_sent() {
        for line in [
            "quorate",
            "quorate topic create",
            "quorate topic alter orders",
            "quorate topic create orders --assignment 1:2 --partitions 3",
            "quorate topic create orders --config novalue",
            "quorate partition explain orders",
            "quorate partition elect",
            "quorate partition elect --unclean orders-0",
            "quorate partition elect --all orders-0",
            "quorate partition reassign",
            "quorate partition reassign -f plan.json --throttle fast",
            "quorate partition reassign -f plan.json --throttle 0",
            "quorate partition reassign -f plan.json list",
            "quorate partition reassign cancel",
            "quorate partition reassign throttle 7",
            "quorate config set topic/orders",
            "quorate config get nothing/orders",
            "quorate topic list --bootstrap a:1 --context prod",
            "quorate topic list --timeout 0s",
            "quorate topic list --timeout 8days",
            "quorate produce orders --partition=-5",
            "quorate produce orders --delivery-timeout 0ms",
            "quorate consume",
            "quorate consume orders --from yesterday",
            "quorate consume orders --from -1",
            "quorate consume orders -p -1",
            "quorate feature upgrade",
            "quorate feature upgrade metadata.version",
            "quorate feature upgrade metadata.version=2 --unsafe",
        ] {
            assert!(parse(line).is_err(), "{line}");
        }
    }

    #[test]
    fn replicas_are_moved_by_a_file_or_an_operation_is_named() {
        for line in [
            "quorate partition reassign -f plan.json",
            "quorate partition reassign -f plan.json --throttle 10MiB --plan --yes",
            "quorate partition reassign list -o json",
            "quorate partition reassign cancel 7 --force --yes",
            "quorate partition reassign pause 7",
            "quorate partition reassign resume 7 --plan",
            "quorate partition reassign throttle 7 512KiB",
            "quorate partition reassign throttle 7 none",
        ] {
            assert!(parse(line).is_ok(), "{line}");
        }
    }

    #[test]
    fn a_topic_is_consumed_from_any_place() {
        for from in ["7", "beginning", "end", "@1700000000000"] {
            assert!(parse(&format!("quorate consume orders -p 0,2 --from {from} --follow")).is_ok(), "{from}");
        }
        assert!(parse("quorate consume orders --max-records 5 --print-key --from-follower -o json").is_ok());
    }

    #[test]
    fn measurements_take_the_folder_of_their_cluster_anywhere() {
        for line in [
            "quorate perf fence --dir d --count 3 --cluster-script scripts/cluster",
            "quorate perf --dir d mutate --clients 64",
            "quorate perf create --topics 1000 --per-request 1000 --partitions 1000 --replication-factor 3 --keep",
            "quorate perf heartbeat --brokers 200 --flat-out --per-connection 50",
            "quorate perf fence --brokers 10 --partitions 100000 --followed 200000 --signal request",
            "quorate perf restart --node 2",
            "quorate perf curve a.jsonl b.jsonl",
        ] {
            assert!(parse(line).is_ok(), "{line}");
        }
        for line in
            ["quorate perf heartbeat --flat-out --interval 1s", "quorate perf fence --followed 7", "quorate perf curve"]
        {
            assert!(parse(line).is_err(), "{line}");
        }
    }

    #[test]
    fn a_feature_is_described_upgraded_or_downgraded() {
        for line in [
            "quorate feature describe -o json",
            "quorate feature describe metadata.version",
            "quorate feature upgrade metadata.version=2 eligible.leader.replicas.version=1 --plan",
            "quorate feature downgrade metadata.version=1 --unsafe --yes",
        ] {
            assert!(parse(line).is_ok(), "{line}");
        }
    }

    #[test]
    fn an_unclean_election_names_the_loss() {
        assert!(parse("quorate partition elect --unclean --accept-loss orders-0 orders-1").is_ok());
        assert!(parse("quorate partition elect --preferred --all").is_ok());
    }
}
