//! The broker role: the reference data plane, built on the SDK as any other partitioned system would be.
//!
//! ```text
//!   agent (SDK) ──► data plane ──► shards, one a log directory ──► replicas
//!      ▲ isr changes      │              │ positions
//!      └── proposals ◄────┘              └──► fetchers, one a leader ──► the leader's shards
//! ```

mod clean_stop;
mod data_plane;
mod fetchers;
mod pacing;
mod producer_ids;
mod proposals;
mod readers;
mod replica;
mod replicas;
mod shard;
mod situation;
pub mod wire;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use quorate_client::agent::{AgentConfig, BrokerAgent, LocalMetadata, ProbedEndpoint, Resolve};
use quorate_log::{Flush, LogError, Owner};
use quorate_metadata::ApiError;
use quorate_metadata::ids::{BrokerId, ClusterId, DirectoryId, IncarnationId};
use quorate_metadata::record::{Endpoint, Kind, VersionRange};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tracing::{info, warn};

use clean_stop::CleanStop;
pub use data_plane::DataPlane;
use data_plane::Directories;
pub use data_plane::Places;
pub use fetchers::{Dial, Dialing};
pub use replica::{
    Acks, Answer, Batches, Description, NewRecords, Position, Produced, Progress, Published, Refused, RoleName, Sink,
    check_epoch,
};
pub use replicas::ReplicaHandle;
pub use shard::{Command, ShardHandle};
#[cfg(test)]
pub(crate) use situation::Situation;

use crate::api::DataPlaneSlot;
use crate::machine::{Note, Workers};

pub struct BrokerConfig {
    pub broker: BrokerId,
    pub cluster: ClusterId,
    pub incarnation: IncarnationId,
    pub endpoint: Endpoint,
    pub rack: Option<String>,
    /// The levels of each feature that this node supports.
    pub features: BTreeMap<String, VersionRange>,
    pub log_directories: Places,
    /// Where the proof of a clean stop is left.
    pub note: Note,
    pub flush: Flush,
    pub bootstrap: Vec<String>,
    /// Where the node is a controller as well.
    pub local_metadata: Option<Arc<dyn LocalMetadata>>,
    pub resolve: Resolve,
    pub dialing: Dialing,
    pub workers: Workers,
    /// None: it goes on trying.
    pub registration_timeout: Option<Duration>,
    pub controlled_shutdown_timeout: Duration,
    pub stray_grace: Duration,
    /// Where the API finds the data plane.
    pub slot: DataPlaneSlot,
}

#[derive(Debug, thiserror::Error)]
pub enum BrokerError {
    #[error("the broker cannot register: {0}")]
    Register(ApiError),
    #[error(transparent)]
    Log(#[from] LogError),
    #[error("no log directory is left; {directory} has failed last: {reason}")]
    Directory { directory: DirectoryId, reason: String },
    #[error("a task of the broker has ended, which none does by itself")]
    Ended,
}

/// Runs until told to stop; then hands its leaderships over. Fails when its registration is refused for good, or no
/// log directory can be opened.
pub async fn run(config: BrokerConfig, mut stop: watch::Receiver<bool>) -> Result<(), BrokerError> {
    let (broker, shutdown_timeout) = (config.broker, config.controlled_shutdown_timeout);
    let clean_stop = CleanStop::at(config.note.clone());
    let Running { mut agent, plane, mut failures, mut tasks } = start(config, &clean_stop)?;
    let mut online: BTreeSet<DirectoryId> = plane.directories().into_iter().collect();
    let failed = loop {
        tokio::select! {
            () = told(&mut stop) => break None,
            error = agent.failed() => break Some(BrokerError::Register(error)),
            Some((directory, reason)) = failures.recv() => {
                online.remove(&directory);
                if online.is_empty() {
                    break Some(BrokerError::Directory { directory, reason });
                }
                // The controllers move what was led there, and the rest stays.
                agent.report_offline([directory].into());
            }
            Some(ended) = tasks.join_next() => {
                ended.unwrap_or_else(|error| std::panic::resume_unwind(error.into_panic()));
                return Err(BrokerError::Ended);
            }
        }
    };
    if let Some(error) = failed {
        // The process may go on without the broker: its logs are closed, and no one acts on what it had.
        drop(agent);
        plane.stop().await;
        return Err(error);
    }
    let stopped = agent.shut_down(shutdown_timeout).await;
    let is_on_disk = plane.stop().await;
    if let Some(epoch) = stopped.epoch.filter(|_| is_on_disk) {
        clean_stop.leave(epoch, &plane.directories());
    }
    if stopped.is_confirmed {
        info!(%broker, is_on_disk, "controlled shutdown done");
    } else {
        warn!(%broker, is_on_disk, "no controller has confirmed the shutdown; stopping anyway");
    }
    Ok(())
}

struct Running {
    agent: BrokerAgent,
    plane: DataPlane,
    failures: mpsc::UnboundedReceiver<(DirectoryId, String)>,
    /// None of them ends by itself.
    tasks: JoinSet<()>,
}

fn start(config: BrokerConfig, clean_stop: &CleanStop) -> Result<Running, BrokerError> {
    let owner = Owner { cluster: config.cluster, broker: config.broker };
    let directories = Directories::open(&config.log_directories, config.flush, owner)?;
    let agent_config = AgentConfig {
        broker: config.broker,
        cluster: config.cluster,
        incarnation: config.incarnation,
        // The node listens there before the broker starts, and stops that last.
        probe: ProbedEndpoint::Named(config.endpoint.name.clone()),
        endpoints: vec![config.endpoint],
        kind: Kind::LOG,
        rack: config.rack,
        features: config.features,
        directories: directories.ids(),
        previous_epoch: clean_stop.take(&directories.ids()),
        bootstrap: config.bootstrap,
        local_metadata: config.local_metadata,
        resolve: config.resolve,
        network: config.dialing.network.clone(),
        registration_timeout: config.registration_timeout,
        stray_grace: config.stray_grace,
    };
    let mut agent = BrokerAgent::start(agent_config);
    let (plane, signals) = DataPlane::start(config.broker, directories, &agent, config.dialing, config.workers);
    agent.drive(Arc::new(plane.clone()));
    let mut tasks = JoinSet::new();
    tasks.spawn(proposals::run(signals.proposals, agent.isr_changes(), plane.replicas().clone()));
    let watched = plane.clone();
    tasks.spawn(async move { watched.ended().await });
    // Each node has one broker at most, so that nobody has filled it before.
    let _ = config.slot.set(plane.clone());
    Ok(Running { agent, plane, failures: signals.failures, tasks })
}

async fn told(stop: &mut watch::Receiver<bool>) {
    // A dropped sender means that the node is gone, which is a reason to stop as well.
    let _ = stop.wait_for(|stop| *stop).await;
}
