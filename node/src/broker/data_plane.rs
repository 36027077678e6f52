//! The replicas of this broker, driven by the agent: the reference implementation of [`PartitionHost`].

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Bound;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};

use futures::future::select_all;
use quorate_client::agent::{
    Assignment, BrokerAgent, DeleteReason, LeaderCheck, MetadataCache, OfflineReason, PartitionHost, Standing,
};
use quorate_log::leadership::Proposal;
use quorate_log::{Flush, LogDirectory, LogError, MemoryLogs, Owner};
use quorate_metadata::ids::{BrokerId, DirectoryId, IncarnationId, LeaderEpoch, PartitionId, TopicId, TopicPartition};
use quorate_metadata::{ApiError, ErrorName};
use tokio::sync::{mpsc, oneshot, watch};
use tracing::{debug, info, warn};

use super::BrokerConfig;
use super::fetchers::Fetchers;
use super::producer_ids::ProducerIds;
use super::readers::{Reader, Readers};
use super::replica::Source;
use super::replicas::{Place, ReplicaHandle, Replicas};
use super::room;
use super::run_record::OpenDirectory;
use super::shard::{self, Outage, RoleChange, ShardHandle, Surroundings};
use crate::machine::Worker;

/// Cheap to clone; all clones are the same.
#[derive(Clone)]
pub struct DataPlane {
    inner: Arc<Inner>,
}

struct Inner {
    broker: BrokerId,
    shards: Vec<ShardHandle>,
    replicas: Replicas,
    metadata: MetadataCache,
    leaders: LeaderCheck,
    standing: watch::Receiver<Standing>,
    refusal: watch::Receiver<Option<ApiError>>,
    strays: Mutex<BTreeSet<TopicPartition>>,
    /// Held while a role is changed: the calls of the agent and those of operators do not overlap.
    changing: tokio::sync::Mutex<()>,
    producer_ids: ProducerIds,
    readers: BTreeMap<DirectoryId, Readers>,
    /// Dropped, it ends the owners of the directories.
    _plane: watch::Sender<()>,
    /// They have the directories open as well.
    _room: Vec<Worker>,
    /// Last, so that nobody uses the directories any more when their owners are waited for.
    _owners: Vec<Worker>,
}

/// What the directories' owners have to say to the rest of the broker.
pub struct Signals {
    pub proposals: mpsc::UnboundedReceiver<(TopicPartition, Proposal)>,
    pub failures: mpsc::UnboundedReceiver<(DirectoryId, Outage)>,
    /// Where a directory is reported that does not answer.
    pub report: mpsc::UnboundedSender<(DirectoryId, Outage)>,
}

/// Where the log directories of a broker are.
#[derive(Clone)]
pub enum Places {
    Paths(Vec<PathBuf>),
    Memory(Vec<MemoryLogs>),
}

/// The log directories of a broker, open, each with the logs that were found in it.
pub struct Directories(Vec<(LogDirectory, Vec<TopicPartition>)>);

impl Directories {
    /// All of them: without one, this broker would claim to have what it has not.
    pub fn open(places: &Places, flush: Flush, owner: Owner) -> Result<Self, LogError> {
        let opened: Vec<LogDirectory> = match places {
            Places::Paths(paths) => {
                paths.iter().map(|path| LogDirectory::open(path, flush)).collect::<Result<_, _>>()?
            }
            Places::Memory(logs) => logs.iter().map(|logs| LogDirectory::in_memory(logs, flush)).collect(),
        };
        // All are looked at before the first is written to.
        opened.iter().try_for_each(|directory| directory.check_owner(owner))?;
        opened.iter().try_for_each(|directory| directory.set_owner(owner))?;
        let mut owners: BTreeMap<TopicPartition, LogDirectory> = BTreeMap::new();
        let mut directories = Vec::new();
        for directory in opened {
            let found = directory.partitions()?;
            for id in &found {
                if let Some(other) = owners.insert(*id, directory.clone()) {
                    let reason = format!("it has a replica of {id}, which {:?} has as well", other.path());
                    return Err(LogError::Io { path: directory.path().to_owned(), reason });
                }
            }
            directories.push((directory, found));
        }
        Ok(Self(directories))
    }

    pub fn ids(&self) -> Vec<DirectoryId> {
        self.0.iter().map(|(directory, _)| directory.id()).collect()
    }

    /// With the run that opened each of them last.
    pub fn marks(&self) -> Result<Vec<OpenDirectory>, LogError> {
        let marked = |directory: &LogDirectory| Ok(OpenDirectory { id: directory.id(), mark: directory.run()? });
        self.0.iter().map(|(directory, _)| marked(directory)).collect()
    }

    /// Marks them as those of this run.
    pub fn set_run(&self, run: IncarnationId) -> Result<(), LogError> {
        self.0.iter().try_for_each(|(directory, _)| directory.set_run(run))
    }
}

impl DataPlane {
    /// Starts the owners of the directories, which open their logs beside their other work.
    pub fn start(config: &BrokerConfig, directories: Directories, agent: &BrokerAgent) -> (Self, Signals) {
        let (broker, workers) = (config.broker, config.workers);
        let (proposals, proposed) = mpsc::unbounded_channel();
        let (failures, failed) = mpsc::unbounded_channel();
        let (metadata, leaders) = (agent.metadata().clone(), agent.leader_check());
        let replicas = Replicas::default();
        let (plane, closed) = watch::channel(());
        let around = Surroundings {
            broker,
            replicas: replicas.clone(),
            fetchers: Fetchers::new(broker, metadata.changes(), agent.standing(), config.dialing.clone()),
            proposals,
            failures: failures.clone(),
            metadata: metadata.changes(),
            leaders: leaders.clone(),
            plane: closed.clone(),
        };
        let opened: Vec<LogDirectory> = directories.0.iter().map(|(directory, _)| directory.clone()).collect();
        let start = |(directory, found)| shard::start(directory, found, around.clone(), workers);
        let started = directories.0.into_iter().map(start);
        let (shards, owners): (Vec<ShardHandle>, Vec<Worker>) = started.unzip();
        let directories = shards.iter().map(ShardHandle::directory);
        let readers = directories.map(|directory| (directory, Readers::start(directory, workers))).collect();
        // In memory there is room.
        let watches_room = matches!(config.log_directories, Places::Paths(_));
        let watched = opened.into_iter().zip(&shards).filter(|_| watches_room).map(|(directory, shard)| {
            let name = format!("room-{}", shard.directory());
            let (mark, problems) = (config.free_bytes_min, config.problems.clone());
            workers.start(name, room::watch(directory, shard.clone(), mark, problems, closed.clone()))
        });
        let room = watched.collect();
        let inner = Inner {
            broker,
            shards,
            replicas,
            metadata,
            leaders,
            standing: agent.standing(),
            refusal: agent.registration_refusal(),
            strays: Mutex::default(),
            changing: tokio::sync::Mutex::default(),
            producer_ids: ProducerIds::new(agent.calls()),
            readers,
            _plane: plane,
            _room: room,
            _owners: owners,
        };
        (Self { inner: Arc::new(inner) }, Signals { proposals: proposed, failures: failed, report: failures })
    }

    pub fn broker(&self) -> BrokerId {
        self.inner.broker
    }

    pub fn directories(&self) -> BTreeSet<DirectoryId> {
        self.inner.shards.iter().map(ShardHandle::directory).collect()
    }

    pub fn shards(&self) -> &[ShardHandle] {
        &self.inner.shards
    }

    pub fn replicas(&self) -> &Replicas {
        &self.inner.replicas
    }

    pub fn replica(&self, id: TopicPartition) -> Option<ReplicaHandle> {
        self.inner.replicas.get(id)
    }

    pub fn metadata(&self) -> &MetadataCache {
        &self.inner.metadata
    }

    /// Where this broker stands with the controllers.
    pub fn standing(&self) -> Standing {
        *self.inner.standing.borrow()
    }

    /// Why it is not registered, while it tries.
    pub fn registration_refusal(&self) -> Option<ApiError> {
        self.inner.refusal.borrow().clone()
    }

    /// Whether this broker may answer as the leader of the partition at that epoch.
    pub fn may_lead(&self, id: TopicPartition, epoch: LeaderEpoch) -> bool {
        self.inner.leaders.may_lead(id, epoch)
    }

    pub fn producer_ids(&self) -> &ProducerIds {
        &self.inner.producer_ids
    }

    /// Reads from a directory for a consumer.
    pub async fn read_for_consumer<T: Send + 'static>(
        &self,
        directory: DirectoryId,
        job: impl FnOnce() -> T + Send + 'static,
    ) -> Result<T, ApiError> {
        self.read(directory, |readers| &readers.for_consumers, job).await
    }

    /// Reads from a directory for a follower.
    pub async fn read_for_follower<T: Send + 'static>(
        &self,
        directory: DirectoryId,
        job: impl FnOnce() -> T + Send + 'static,
    ) -> Result<T, ApiError> {
        self.read(directory, |readers| &readers.for_followers, job).await
    }

    /// Unless the directory is offline, or goes offline first.
    async fn read<T: Send + 'static>(
        &self,
        directory: DirectoryId,
        reader: impl FnOnce(&Readers) -> &Reader,
        job: impl FnOnce() -> T + Send + 'static,
    ) -> Result<T, ApiError> {
        let shard = self.inner.shards.iter().find(|shard| shard.directory() == directory);
        let (Some(shard), Some(readers)) = (shard, self.inner.readers.get(&directory)) else {
            let message = format!("this broker has no log directory {directory}");
            return Err(ApiError::new(ErrorName::ReplicaNotAvailable, message));
        };
        shard.unless_offline(async { Ok(reader(readers).read(job).await) }).await
    }

    /// When one of the threads of the data plane has ended, which none does unless told to.
    pub async fn ended(&self) {
        let shards = self.inner.shards.iter().map(|shard| Box::pin(shard.ended()));
        let readers = self.inner.readers.values().map(|readers| Box::pin(readers.ended()));
        tokio::select! {
            _ = select_all(shards) => {}
            _ = select_all(readers) => {}
        }
    }

    pub fn is_stray(&self, id: TopicPartition) -> bool {
        self.inner.strays.lock().expect(UNPOISONED).contains(&id)
    }

    /// The strays from this partition of this topic on; without a topic, all of them.
    pub fn strays(&self, topic: Option<TopicId>, partition: usize) -> Vec<TopicPartition> {
        let partition = PartitionId::new(i32::try_from(partition).unwrap_or(i32::MAX));
        let from = topic.map_or(Bound::Unbounded, |topic| Bound::Included(TopicPartition::new(topic, partition)));
        self.inner.strays.lock().expect(UNPOISONED).range((from, Bound::Unbounded)).copied().collect()
    }

    /// Deletes a stray, and returns when it cannot come back. What the metadata has come to want here is no stray any more.
    pub async fn delete_stray(&self, id: TopicPartition) -> Result<(), ApiError> {
        let broker = self.inner.broker;
        let unavailable = |message| ApiError::new(ErrorName::ReplicaNotAvailable, message);
        let deleted = {
            let _changing = self.inner.changing.lock().await;
            let image = self.inner.metadata.image();
            let is_wanted = image.partition(id).is_some_and(|state| state.replicas.contains(&broker));
            if is_wanted || !self.is_stray(id) {
                return Err(unavailable(format!("replica {id} on broker {broker} is no stray")));
            }
            let place = self.inner.replicas.place_of(id);
            let Place { shard, claim } = place.ok_or_else(|| unavailable(format!("replica {id} is not open")))?;
            // A directory that has failed keeps what it has: nothing would be deleted.
            shard.describe(id).await?;
            self.inner.strays.lock().expect(UNPOISONED).remove(&id);
            let (done, deleted) = oneshot::channel();
            shard.change_role(RoleChange::Delete { id, claim, done: Some(done) }).await?;
            (shard, deleted)
        };
        info!(partition = %id, "stray deleted by request");
        let (shard, deleted) = deleted;
        let stopping = |_| unavailable(format!("broker {broker} is stopping; the replica may be there again"));
        shard.unless_offline(async { deleted.await.map_err(stopping) }).await
    }

    /// Ends the owners of the directories, after they have written what a restart should know. Says whether everything
    /// is on stable storage.
    pub async fn stop(&self) -> bool {
        let mut is_clean = true;
        for shard in &self.inner.shards {
            is_clean &= shard.stop().await;
        }
        // Calls that wait for something here end.
        self.inner.replicas.clear();
        is_clean
    }

    /// Whether a directory has failed in a way that does not pass.
    pub fn has_broken(&self) -> bool {
        self.inner.shards.iter().filter_map(ShardHandle::outage).any(|outage| !outage.may_pass())
    }

    /// Whose directory has the replica, or shall have it: the one that the metadata names, else where it is, else the
    /// emptiest.
    async fn shard_for(&self, assignment: &Assignment) -> Option<ShardHandle> {
        let shards = || self.inner.shards.iter();
        let named = assignment.state.directory_of(self.inner.broker);
        let named = shards().find(|shard| shard.directory() == named);
        match (self.inner.replicas.place_of(assignment.id), named) {
            (Some(present), Some(named)) if present.shard.directory() != named.directory() => {
                // What names another directory has taken the replica out of ISR and ELR by the same change.
                debug!(partition = %assignment.id, from = %present.shard.directory(), to = %named.directory(), "moves");
                self.delete(present, assignment.id).await.then(|| named.clone())
            }
            (Some(present), _) => Some(present.shard),
            (None, Some(named)) => Some(named.clone()),
            (None, None) => shards().min_by_key(|shard| self.inner.replicas.count_in(shard)).cloned(),
        }
    }

    async fn tell(&self, assignment: &Assignment, change: RoleChange) {
        let _changing = self.inner.changing.lock().await;
        self.inner.strays.lock().expect(UNPOISONED).remove(&assignment.id);
        let Some(shard) = self.shard_for(assignment).await else {
            warn!(partition = %assignment.id, "no log directory for the replica");
            return;
        };
        self.inner.replicas.place([assignment.id], &shard);
        if let Err(error) = shard.change_role(change).await {
            debug!(partition = %assignment.id, %error, "no change of role");
        }
    }

    /// Waits until the replica cannot come back. False: the broker is stopping.
    async fn delete(&self, place: Place, id: TopicPartition) -> bool {
        let (done, deleted) = oneshot::channel();
        self.begin_deletion(&place, id, Some(done)).await;
        let ended = async { deleted.await.map_err(|_| ApiError::new(ErrorName::ReplicaNotAvailable, "stopping")) };
        place.shard.unless_offline(ended).await.is_ok() || place.shard.outage().is_some()
    }

    /// In a directory that is offline nothing is deleted: what it has is a stray when it comes back.
    async fn begin_deletion(
        &self,
        Place { shard, claim }: &Place,
        id: TopicPartition,
        done: Option<oneshot::Sender<()>>,
    ) {
        if let Err(error) = shard.change_role(RoleChange::Delete { id, claim: *claim, done }).await {
            debug!(partition = %id, %error, "replica not deleted");
            self.inner.replicas.remove(id, *claim);
        }
    }
}

#[tonic::async_trait]
impl PartitionHost for DataPlane {
    fn hosted(&self) -> Vec<TopicPartition> {
        self.inner.replicas.all_ids()
    }

    async fn become_leader(&self, assignment: Assignment) {
        let (id, leader_epoch) = (assignment.id, assignment.state.leader_epoch);
        self.tell(&assignment, RoleChange::Lead { id, leader_epoch }).await;
    }

    async fn become_follower(&self, assignment: Assignment) {
        let Some(leader) = assignment.state.leader else { return };
        let id = assignment.id;
        let source = Source { leader, leader_epoch: assignment.state.leader_epoch };
        self.tell(&assignment, RoleChange::Follow { id, source }).await;
    }

    async fn become_offline(&self, assignment: Assignment, reason: OfflineReason) {
        let (id, leader_epoch) = (assignment.id, assignment.state.leader_epoch);
        debug!(partition = %id, ?reason, "offline");
        self.tell(&assignment, RoleChange::Suspend { id, leader_epoch }).await;
    }

    async fn delete_replica(&self, id: TopicPartition, reason: DeleteReason) {
        let _changing = self.inner.changing.lock().await;
        self.inner.strays.lock().expect(UNPOISONED).remove(&id);
        debug!(partition = %id, ?reason, "replica to be deleted");
        // A replica that waits to be created has its place already.
        let Some(place) = self.inner.replicas.place_of(id) else { return };
        self.begin_deletion(&place, id, None).await;
    }

    async fn found_stray(&self, id: TopicPartition) {
        debug!(partition = %id, "a replica that the metadata does not know");
        self.inner.strays.lock().expect(UNPOISONED).insert(id);
    }
}

const UNPOISONED: &str = "no one panics while holding it";
