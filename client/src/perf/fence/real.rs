//! A real node is killed or stopped.

use std::time::Duration;

use nix::sys::signal::Signal;
use quorate_metadata::ids::TopicId;
use quorate_proto::admin::{CreatedTopic, DescribeQuorumReply};
use rand::RngExt;
use serde_json::json;
use tokio::time::{Instant, timeout};

use super::moves::Moves;
use super::{FenceArgs, MOVE_TIMEOUT, Means, Observer};
use crate::perf::load::rounds;
use crate::perf::local::{random_phase, whole};
use crate::perf::{
    PerfError, Report, Samples, Target, address_of, after_cleaning, assigned, controller_of, create, delete, names,
};
use crate::world;

pub(super) async fn run(target: &Target, arguments: &FenceArgs) -> Result<Report, PerfError> {
    let names = names("fence", arguments.count as usize);
    let observation = target.observe();
    let measured =
        rounds("fence", arguments.count, async |number| round(target, arguments, &names[number]).await).await;
    let cleaned = delete(&target.client()?, &names).await.map_err(PerfError::from);
    let samples = Samples::of(after_cleaning(measured, cleaned)?);
    let parameters = json!({
        "nodes": target.bootstrap.len(),
        "partitions": arguments.partitions,
        "signal": if arguments.signal == Means::Kill { "kill" } else { "term" },
        "observer": if arguments.observe == Observer::Controller { "controller" } else { "standby" },
    });
    Ok(Report::new("fence", &samples, parameters).with_nodes(observation.end().await))
}

/// The nodes of a round.
struct Cast {
    victim: i32,
    /// Where the feed is watched.
    observer: String,
    /// Replicas beside the victim.
    others: Vec<i32>,
}

async fn round(target: &Target, arguments: &FenceArgs, name: &str) -> Result<Duration, PerfError> {
    let cluster = target.processes()?;
    let client = target.client()?;
    let cast = cast(&whole(&client).await?, arguments.observe)?;
    let topic = create(&client, assigned(name.to_owned(), replicas(&cast, arguments.partitions))).await?;
    let topics = [(id_of(&topic)?, arguments.partitions.unsigned_abs() as usize)];
    let mut moves = Moves::watch(target, cast.observer.clone(), cast.victim, topics).await?;
    random_phase().await;

    let signal = if arguments.signal == Means::Kill { Signal::SIGKILL } else { Signal::SIGTERM };
    let started = Instant::now();
    let pid = cluster.signal(cast.victim, signal)?;
    let moved = timeout(MOVE_TIMEOUT, moves.all_moved()).await;
    let elapsed = started.elapsed();

    // Whatever came of it, the node comes back.
    cluster.restart(cast.victim, pid).await?;
    let left = moves.left();
    moved
        .map_err(|_| PerfError::cluster(format!("{left} partitions have no other leader after {MOVE_TIMEOUT:?}")))??;
    delete(&client, &[name.to_owned()]).await?;
    Ok(elapsed)
}

pub(super) fn id_of(topic: &CreatedTopic) -> Result<TopicId, PerfError> {
    topic.id.parse().map_err(|error| PerfError::cluster(format!("topic id {:?}: {error}", topic.id)))
}

/// The victim is not the active controller: that would measure two failovers in one.
fn cast(quorum: &DescribeQuorumReply, observe: Observer) -> Result<Cast, PerfError> {
    let controller = controller_of(quorum)?;
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
