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
use quorate_metadata::ids::{BrokerId, DirectoryId, LeaderEpoch, PartitionId, TopicId, TopicPartition};
use quorate_metadata::{ApiError, ErrorName};
use tokio::sync::{mpsc, oneshot, watch};
use tracing::{debug, info, warn};

use super::fetchers::{Dialing, Fetchers};
use super::producer_ids::ProducerIds;
use super::readers::Reader;
use super::replica::Source;
use super::replicas::{Place, ReplicaHandle, Replicas};
use super::shard::{self, Command, RoleChange, ShardHandle, Surroundings};
use crate::machine::{Worker, Workers};

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
    /// Apart, so that consumers of old records hold no follower up.
    for_consumers: Reader,
    for_followers: Reader,
    for_compaction: Arc<Reader>,
    /// Dropped, it ends the owners of the directories.
    _plane: watch::Sender<()>,
    /// Last, so that nobody uses the directories any more when their owners are waited for.
    _owners: Vec<Worker>,
}

/// What the directories' owners have to say to the rest of the broker.
pub struct Signals {
    pub proposals: mpsc::UnboundedReceiver<(TopicPartition, Proposal)>,
    pub failures: mpsc::UnboundedReceiver<(DirectoryId, String)>,
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
}

impl DataPlane {
    /// Starts the owners of the directories, which open their logs beside their other work.
    pub fn start(
        broker: BrokerId,
        directories: Directories,
        agent: &BrokerAgent,
        dialing: Dialing,
        workers: Workers,
    ) -> (Self, Signals) {
        let (proposals, proposed) = mpsc::unbounded_channel();
        let (failures, failed) = mpsc::unbounded_channel();
        let (metadata, leaders) = (agent.metadata().clone(), agent.leader_check());
        let replicas = Replicas::default();
        let (plane, closed) = watch::channel(());
        let for_compaction = Arc::new(Reader::start("log-compaction", workers));
        let around = Surroundings {
            broker,
            replicas: replicas.clone(),
            fetchers: Fetchers::new(broker, metadata.changes(), agent.standing(), dialing),
            proposals,
            failures,
            metadata: metadata.changes(),
            leaders: leaders.clone(),
            for_compaction: for_compaction.clone(),
            plane: closed,
        };
        let start = |(directory, found)| shard::start(directory, found, around.clone(), workers);
        let started = directories.0.into_iter().map(start);
        let (shards, owners) = started.unzip();
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
            for_consumers: Reader::start("log-consumers", workers),
            for_followers: Reader::start("log-followers", workers),
            for_compaction,
            _plane: plane,
            _owners: owners,
        };
        (Self { inner: Arc::new(inner) }, Signals { proposals: proposed, failures: failed })
    }

    pub fn broker(&self) -> BrokerId {
        self.inner.broker
    }

    pub fn directories(&self) -> Vec<DirectoryId> {
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

    pub fn for_consumers(&self) -> &Reader {
        &self.inner.for_consumers
    }

    pub fn for_followers(&self) -> &Reader {
        &self.inner.for_followers
    }

    /// When one of the threads of the data plane has ended, which none does unless told to.
    pub async fn ended(&self) {
        let shards = self.inner.shards.iter().map(|shard| Box::pin(shard.ended()));
        tokio::select! {
            _ = select_all(shards) => {}
            () = self.inner.for_consumers.ended() => {}
            () = self.inner.for_followers.ended() => {}
            () = self.inner.for_compaction.ended() => {}
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
            let stopping = |_| unavailable(format!("broker {broker} is stopping"));
            shard.change_role(RoleChange::Delete { id, claim, done: Some(done) }).await.map_err(stopping)?;
            deleted
        };
        info!(partition = %id, "stray deleted by request");
        deleted.await.map_err(|_| unavailable(format!("broker {broker} is stopping; the replica may be there again")))
    }

    /// Ends the owners of the directories, after they have written what a restart should know. Says whether everything
    /// is on stable storage.
    pub async fn stop(&self) -> bool {
        let mut is_clean = true;
        for shard in &self.inner.shards {
            let (done, stopped) = oneshot::channel();
            is_clean &= shard.send(Command::Stop(done)).await.is_ok() && stopped.await.unwrap_or(false);
            shard.ended().await;
        }
        is_clean
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
                delete(present, assignment.id).await.then(|| named.clone())
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
}

/// Waits until the replica cannot come back. False: the broker is stopping.
async fn delete(Place { shard, claim }: Place, id: TopicPartition) -> bool {
    let (done, deleted) = oneshot::channel();
    shard.change_role(RoleChange::Delete { id, claim, done: Some(done) }).await.is_ok() && deleted.await.is_ok()
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
        let Some(Place { shard, claim }) = self.inner.replicas.place_of(id) else { return };
        if let Err(error) = shard.change_role(RoleChange::Delete { id, claim, done: None }).await {
            debug!(partition = %id, %error, "replica not deleted");
        }
    }

    async fn found_stray(&self, id: TopicPartition) {
        debug!(partition = %id, "a replica that the metadata does not know");
        self.inner.strays.lock().expect(UNPOISONED).insert(id);
    }
}

const UNPOISONED: &str = "no one panics while holding it";
