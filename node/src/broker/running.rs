//! The broker from when it opens its log directories until it closes them.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use quorate_client::agent::{AgentConfig, BrokerAgent, ProbedEndpoint, Standing};
use quorate_log::{LogError, Owner};
use quorate_metadata::ids::{BrokerEpoch, DirectoryId, IncarnationId};
use quorate_metadata::record::Kind;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};
use tracing::{info, warn};

use super::data_plane::{DataPlane, Directories};
use super::run_record::{Run, RunRecord};
use super::shard::Outage;
use super::{BrokerConfig, BrokerError, disk_watch, proposals};

/// Between two attempts to open directories again.
const REOPEN_INTERVAL: Duration = Duration::from_millis(500);

/// Attempts of which one is logged: every half a minute.
const ATTEMPTS_PER_LINE: u32 = 60;

/// Why the log directories are closed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    Stopped,
    /// Those that were offline can be used again.
    CanReturn,
}

pub struct Running {
    pub incarnation: IncarnationId,
    pub agent: BrokerAgent,
    pub plane: DataPlane,
    failures: mpsc::UnboundedReceiver<(DirectoryId, Outage)>,
    /// None of them ends by itself.
    pub tasks: JoinSet<()>,
    offline: BTreeMap<DirectoryId, Outage>,
    config: BrokerConfig,
}

impl Running {
    pub async fn start(config: &BrokerConfig, incarnation: IncarnationId, is_first: bool) -> Result<Self, BrokerError> {
        let (directories, previous_epoch) = open(config, incarnation, is_first).await?;
        let agent_config = AgentConfig {
            broker: config.broker,
            cluster: config.cluster,
            incarnation,
            // The node listens there before the broker starts, and stops that last.
            probe: ProbedEndpoint::Named(config.endpoint.name.clone()),
            endpoints: vec![config.endpoint.clone()],
            kind: Kind::LOG,
            rack: config.rack.clone(),
            features: config.features.clone(),
            directories: directories.ids(),
            previous_epoch,
            bootstrap: config.bootstrap.clone(),
            local_metadata: config.local_metadata.clone(),
            resolve: config.resolve.clone(),
            network: config.dialing.network.clone(),
            registration_timeout: config.registration_timeout,
            stray_grace: config.stray_grace,
        };
        let mut agent = BrokerAgent::start(agent_config);
        let (plane, signals) = DataPlane::start(config, directories, &agent);
        agent.drive(Arc::new(plane.clone()));
        let mut tasks = JoinSet::new();
        tasks.spawn(proposals::run(signals.proposals, agent.isr_changes(), plane.replicas().clone()));
        tasks.spawn(record_run(config.clone(), incarnation, plane.directories(), agent.standing()));
        let watched = plane.clone();
        tasks.spawn(async move { watched.ended().await });
        tasks.spawn(disk_watch::run(plane.shards().to_vec(), config.disk_timeout, signals.report));
        config.slot.fill(plane.clone());
        let (failures, offline, config) = (signals.failures, BTreeMap::new(), config.clone());
        Ok(Self { incarnation, agent, plane, failures, tasks, offline, config })
    }

    /// Until it cannot go on, or directories that are offline can be opened again.
    pub async fn run(&mut self) -> Result<End, BrokerError> {
        let mut problems = self.config.problems.changes();
        self.agent.report_disk_problems(self.config.problems.list());
        loop {
            let returns = disk_watch::return_of(self.plane.shards(), &self.offline);
            tokio::select! {
                error = self.agent.failed() => return Err(BrokerError::Register(error)),
                Some((directory, outage)) = self.failures.recv() => self.lose(directory, outage).await?,
                // Ours is a sender of it.
                Ok(()) = problems.changed() => self.agent.report_disk_problems(self.config.problems.list()),
                () = returns => {
                    self.offline.keys().for_each(|directory| self.config.problems.clear(&place(*directory)));
                    return Ok(End::CanReturn);
                }
                Some(ended) = self.tasks.join_next() => {
                    ended.unwrap_or_else(|error| std::panic::resume_unwind(error.into_panic()));
                    return Err(BrokerError::Ended);
                }
            }
        }
    }

    /// The controllers move what was led there, and the rest stays. A broker that has nothing left is fenced, and waits where
    /// that may pass.
    async fn lose(&mut self, directory: DirectoryId, outage: Outage) -> Result<(), BrokerError> {
        self.config.problems.set(&place(directory), format!("is offline: {}", outage.reason));
        self.offline.insert(directory, outage.clone());
        let has_lost_all = self.offline.len() == self.plane.shards().len();
        self.agent.report_offline([directory].into());
        if !outage.may_pass() {
            record(&self.config, RunRecord::fail).await;
        }
        if has_lost_all && !self.offline.values().all(Outage::may_pass) {
            return Err(BrokerError::Directory { directory, reason: outage.reason });
        }
        Ok(())
    }
}

/// Writes the record of the runs. Its disk may be the one that does not answer: nothing waits for it for long.
pub async fn record(config: &BrokerConfig, write: impl FnOnce(&RunRecord) + Send + 'static) {
    let run_record = config.run_record.clone();
    let written = config.workers.run("run-record", move || write(&run_record));
    if timeout(config.disk_timeout, written).await.is_err() {
        warn!(broker = %config.broker, "the disk of the data directory does not answer; the record of this run is written when it does");
    }
}

fn place(directory: DirectoryId) -> String {
    format!("log directory {directory}")
}

/// Opens the directories beside everything else: a disk may not answer. One that is full is waited for; and so, when they
/// are opened again, are calls that still read from them. With the epoch of the last run, if they have all that it
/// acknowledged.
async fn open(
    config: &BrokerConfig,
    run: IncarnationId,
    is_first: bool,
) -> Result<(Directories, Option<BrokerEpoch>), BrokerError> {
    let mut attempts = 0;
    loop {
        let attempt = config.clone();
        let error = match config.workers.run("log-open", move || try_to_open(&attempt, run)).await {
            Ok(opened) => {
                config.problems.clear(OPENING);
                if attempts > 0 {
                    info!(broker = %config.broker, attempts, "log directories opened");
                }
                return Ok(opened);
            }
            Err(error) => error,
        };
        let passes = error.is_no_space() || (!is_first && matches!(error, LogError::Locked { .. }));
        if !passes {
            if is_first {
                return Err(BrokerError::Log(error));
            }
            record(config, RunRecord::fail).await;
            return Err(BrokerError::Reopen(error));
        }
        config.problems.set(OPENING, error.to_string());
        if attempts % ATTEMPTS_PER_LINE == 0 {
            warn!(broker = %config.broker, %error, "log directories cannot be opened yet");
        }
        attempts += 1;
        sleep(REOPEN_INTERVAL).await;
    }
}

fn try_to_open(config: &BrokerConfig, run: IncarnationId) -> Result<(Directories, Option<BrokerEpoch>), LogError> {
    let owner = Owner { cluster: config.cluster, broker: config.broker };
    let directories = Directories::open(&config.log_directories, config.flush, owner)?;
    let previous_epoch = config.run_record.proven(&directories.marks()?, run);
    directories.set_run(run)?;
    Ok((directories, previous_epoch))
}

/// Records each registration, so that the run counts if the process ends without warning.
async fn record_run(
    config: BrokerConfig,
    incarnation: IncarnationId,
    directories: BTreeSet<DirectoryId>,
    mut standing: watch::Receiver<Standing>,
) {
    let mut recorded = None;
    loop {
        let is_new = |standing: &Standing| standing.epoch.is_some() && standing.epoch != recorded;
        let Ok(epoch) = standing.wait_for(is_new).await.map(|standing| standing.epoch) else {
            // The agent has ended, and with it the broker.
            return std::future::pending().await;
        };
        recorded = epoch;
        if let Some(epoch) = epoch {
            let run = Run { epoch, incarnation, directories: directories.clone() };
            let flush = config.flush;
            record(&config, move |record| record.begin(&run, flush)).await;
        }
    }
}

/// Under which it is said why the directories are not open.
const OPENING: &str = "log directories";
