//! A broker killed: how long until all the partitions it led have another leader, as another node's feed tells it.

use std::collections::BTreeSet;
use std::time::Duration;

use clap::{Args, ValueEnum};
use nix::sys::signal::Signal;
use quorate_metadata::Record;
use quorate_metadata::ids::{BrokerId, TopicId};
use quorate_proto::admin::DescribeQuorumReply;
use quorate_proto::record;
use rand::RngExt;
use serde_json::json;
use tokio::time::{Instant, timeout};

use super::local::{LocalCluster, random_phase, whole};
use super::{
    LocalArgs, PerfError, Report, Samples, Target, address_of, after_cleaning, assigned, create, delete, names,
    progress,
};
use crate::{Event, Freshness, Watch, WatchFilter, world};

/// Longer than any session: a round that takes so long has failed.
const MOVE_TIMEOUT: Duration = Duration::from_secs(60);

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Means {
    /// kill -9
    Kill,
    /// SIGTERM: a controlled shutdown
    Term,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Observer {
    /// The active controller's own feed
    Controller,
    /// The feed of a node that hears of it last
    Standby,
}

#[derive(Debug, Clone, Args)]
pub struct FenceArgs {
    #[command(flatten)]
    local: LocalArgs,
    /// Rounds
    #[arg(long, default_value_t = 20, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    count: u32,
    /// How the broker ends
    #[arg(long, value_enum, default_value_t = Means::Kill)]
    signal: Means,
    /// Partitions that it leads
    #[arg(long, default_value_t = 20, value_parser = clap::value_parser!(i32).range(1..=10_000))]
    partitions: i32,
    /// Whose feed is watched
    #[arg(long, value_enum, default_value_t = Observer::Standby)]
    observe: Observer,
}

pub async fn run(target: &Target, arguments: &FenceArgs) -> Result<Report, PerfError> {
    let (cluster, target) = LocalCluster::open(&arguments.local, target)?;
    let names = names("fence", arguments.count as usize);
    let bar = progress("fence", arguments.count.into());
    let mut samples = Samples::default();
    let mut measured = Ok(());
    for name in &names {
        match round(&cluster, &target, arguments, name).await {
            Ok(elapsed) => samples.record(elapsed),
            Err(error) => {
                measured = Err(error);
                break;
            }
        }
        bar.inc(1);
    }
    bar.finish_and_clear();
    let cleaned = delete(&target.client()?, &names).await.map_err(PerfError::from);
    after_cleaning(measured, cleaned)?;
    let parameters = json!({
        "nodes": target.bootstrap.len(),
        "partitions": arguments.partitions,
        "signal": if arguments.signal == Means::Kill { "kill" } else { "term" },
        "observer": if arguments.observe == Observer::Controller { "controller" } else { "standby" },
    });
    Ok(Report::new("fence", &samples, parameters))
}

/// Who plays which part in a round.
struct Cast {
    victim: i32,
    /// Where the feed is watched.
    observer: String,
    /// Replicas beside the victim.
    others: Vec<i32>,
}

async fn round(
    cluster: &LocalCluster,
    target: &Target,
    arguments: &FenceArgs,
    name: &str,
) -> Result<Duration, PerfError> {
    let client = target.client()?;
    let cast = cast(&whole(&client).await?, arguments.observe)?;
    let topic = create(&client, assigned(name.to_owned(), replicas(&cast, arguments.partitions))).await?;
    let topic: TopicId =
        topic.id.parse().map_err(|error| PerfError::cluster(format!("topic id {:?}: {error}", topic.id)))?;
    let mut moves = Moves::watch(target, &cast, topic, arguments.partitions).await?;
    random_phase().await;

    let signal = if arguments.signal == Means::Kill { Signal::SIGKILL } else { Signal::SIGTERM };
    let started = Instant::now();
    let pid = cluster.signal(cast.victim, signal)?;
    let moved = timeout(MOVE_TIMEOUT, moves.all()).await;
    let elapsed = started.elapsed();

    // Whatever came of it, the node comes back.
    cluster.restart(cast.victim, pid).await?;
    let left = moves.waiting.len();
    moved
        .map_err(|_| PerfError::cluster(format!("{left} partitions have no other leader after {MOVE_TIMEOUT:?}")))??;
    delete(&client, &[name.to_owned()]).await?;
    Ok(elapsed)
}

/// The victim is not the active controller: that would measure two failovers in one.
fn cast(quorum: &DescribeQuorumReply, observe: Observer) -> Result<Cast, PerfError> {
    let controller = quorum.leader_id.ok_or_else(|| PerfError::cluster("there is no active controller"))?;
    let mut standbys: Vec<i32> = quorum.voters.iter().map(|voter| voter.id).filter(|id| *id != controller).collect();
    if standbys.len() < 2 {
        return Err(PerfError::cluster("at least three nodes are needed"));
    }
    let victim = standbys.remove(world::chance().random_range(0..standbys.len()));
    let observer = match observe {
        Observer::Controller => controller,
        Observer::Standby => standbys[0],
    };
    let observer = address_of(quorum, observer)?;
    Ok(Cast { victim, observer, others: vec![controller, standbys[0]] })
}

fn replicas(cast: &Cast, partitions: i32) -> impl Iterator<Item = Vec<i32>> {
    let (victim, first, second) = (cast.victim, cast.others[0], cast.others[1]);
    (0..partitions).map(
        move |number| {
            if number % 2 == 0 { vec![victim, first, second] } else { vec![victim, second, first] }
        },
    )
}

/// The partitions that still wait for another leader.
struct Moves {
    feed: Watch,
    topic: TopicId,
    victim: BrokerId,
    waiting: BTreeSet<i32>,
}

impl Moves {
    async fn watch(target: &Target, cast: &Cast, topic: TopicId, partitions: i32) -> Result<Self, PerfError> {
        let observer = Target { bootstrap: vec![cast.observer.clone()], options: target.options.clone() }.client()?;
        let from = Some(observer.describe_quorum(Freshness::Stale).await?.metadata_offset);
        let kinds = vec!["PartitionChange".to_owned()];
        let mut feed = observer.watch(WatchFilter { from, broker: None, kinds });
        feed.open().await?;
        Ok(Self { feed, topic, victim: BrokerId::new(cast.victim), waiting: (0..partitions).collect() })
    }

    async fn all(&mut self) -> Result<(), PerfError> {
        while !self.waiting.is_empty() {
            let Event::Records(records) = self.feed.next().await? else { continue };
            for committed in records.records {
                let record = record::from_wire(committed.record.unwrap_or_default())
                    .map_err(|error| PerfError::cluster(format!("record {}: {error}", committed.offset)))?;
                self.see(&record);
            }
        }
        Ok(())
    }

    fn see(&mut self, record: &Record) {
        if let Record::PartitionChange(change) = record
            && change.id.topic == self.topic
            && let Some(Some(leader)) = change.leader
            && leader != self.victim
        {
            self.waiting.remove(&change.id.partition.get());
        }
    }
}
