//! The broker role: the reference data plane, built on the SDK as any other partitioned system would be.
//!
//! ```text
//!   agent (SDK) ──► data plane ──► shards, one a log directory ──► replicas
//!      ▲ isr changes      │              │ positions
//!      └── proposals ◄────┘              └──► fetchers, one a leader ──► the leader's shards
//! ```

mod data_plane;
mod disk_watch;
mod fetchers;
mod pacing;
mod producer_ids;
mod proposals;
mod readers;
mod replica;
mod replicas;
mod room;
mod run_record;
mod running;
mod shard;
mod situation;
pub mod wire;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use quorate_client::agent::{LocalMetadata, Resolve};
use quorate_client::world;
use quorate_log::{Flush, LogError};
use quorate_metadata::ApiError;
use quorate_metadata::ids::{BrokerId, ClusterId, DirectoryId, IncarnationId};
use quorate_metadata::record::{Endpoint, VersionRange};
use tokio::sync::watch;
use tracing::{info, warn};

pub use data_plane::DataPlane;
pub use data_plane::Places;
pub use fetchers::{Dial, Dialing};
pub use replica::{
    Acks, Answer, Batches, Description, NewRecords, Position, Produced, Progress, Published, Refused, RoleName, Sink,
    check_epoch,
};
pub use replicas::ReplicaHandle;
use run_record::Run;
pub use run_record::RunRecord;
use running::{End, Running};
pub use shard::{Command, ShardHandle};
#[cfg(test)]
pub(crate) use situation::Situation;

use crate::api::DataPlaneSlot;
use crate::disks::DiskProblems;
use crate::machine::Workers;

#[derive(Clone)]
pub struct BrokerConfig {
    pub broker: BrokerId,
    pub cluster: ClusterId,
    pub endpoint: Endpoint,
    pub rack: Option<String>,
    /// The levels of each feature that this node supports.
    pub features: BTreeMap<String, VersionRange>,
    pub log_directories: Places,
    /// Where a run says that its logs are whole.
    pub run_record: RunRecord,
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
    /// A directory that does not answer for so long goes offline.
    pub disk_timeout: Duration,
    /// Producers are refused while the disk of a directory has less room than this.
    pub free_bytes_min: u64,
    /// What is wrong with the disks of this node.
    pub problems: DiskProblems,
    /// Where the API finds the data plane.
    pub slot: DataPlaneSlot,
}

#[derive(Debug, thiserror::Error)]
pub enum BrokerError {
    #[error("the broker cannot register: {0}")]
    Register(ApiError),
    #[error(transparent)]
    Log(#[from] LogError),
    #[error("the log directories cannot be opened again: {0}")]
    Reopen(LogError),
    #[error("no log directory is left; {directory} has failed last: {reason}")]
    Directory { directory: DirectoryId, reason: String },
    #[error("a task of the broker has ended, which none does by itself")]
    Ended,
}

/// Runs until told to stop; then hands its leaderships over. Fails when its registration is refused for good, or no
/// log directory can be opened.
///
/// A directory that was full, or did not answer, is opened again when that is over, and with it all others: for the
/// controllers the broker is then another process, since what was in the directory has left the ISR.
pub async fn run(config: BrokerConfig, mut stop: watch::Receiver<bool>) -> Result<(), BrokerError> {
    let mut is_first = true;
    loop {
        let incarnation = IncarnationId::new(world::uuid());
        let started = tokio::select! {
            started = Running::start(&config, incarnation, is_first) => started?,
            () = told(&mut stop) => return Ok(()),
        };
        match run_until_closed(&config, started, &mut stop).await? {
            End::Stopped => return Ok(()),
            End::CanReturn => info!(broker = %config.broker, "log directories are opened again"),
        }
        is_first = false;
    }
}

async fn run_until_closed(
    config: &BrokerConfig,
    mut running: Running,
    stop: &mut watch::Receiver<bool>,
) -> Result<End, BrokerError> {
    let end = tokio::select! {
        () = told(stop) => Ok(End::Stopped),
        end = running.run() => end,
    };
    let Running { agent, plane, mut tasks, incarnation, .. } = running;
    let end = match end {
        Ok(end) => end,
        Err(error) => {
            // The process may go on without the broker: its logs are closed, and no one acts on what it had.
            drop(agent);
            config.slot.clear();
            // They have the directories open as well.
            tasks.shutdown().await;
            plane.stop().await;
            record_failure(config, &plane).await;
            return Err(error);
        }
    };
    let stopped = agent.shut_down(config.controlled_shutdown_timeout).await;
    config.slot.clear();
    tasks.shutdown().await;
    let is_on_disk = plane.stop().await;
    if let Some(epoch) = stopped.epoch.filter(|_| is_on_disk) {
        let run = Run { epoch, incarnation, directories: plane.directories() };
        running::record(config, move |record| record.end(&run)).await;
    }
    record_failure(config, &plane).await;
    let broker = config.broker;
    if stopped.is_confirmed {
        info!(%broker, is_on_disk, "controlled shutdown done");
    } else {
        warn!(%broker, is_on_disk, "no controller has confirmed the shutdown; stopping anyway");
    }
    Ok(end)
}

/// A directory that is broken by the end has not all that was acknowledged.
async fn record_failure(config: &BrokerConfig, plane: &DataPlane) {
    if plane.has_broken() {
        running::record(config, RunRecord::fail).await;
    }
}

async fn told(stop: &mut watch::Receiver<bool>) {
    // A dropped sender means that the node is gone, which is a reason to stop as well.
    let _ = stop.wait_for(|stop| *stop).await;
}
