//! Committed entries meet the replica here: replayed in order, published once per run, then answered.

use std::io::{self, Read};
use std::sync::{Arc, Mutex};

use futures::{Stream, TryStreamExt};
use openraft::storage::{EntryResponder, RaftSnapshotBuilder, RaftStateMachine};
use openraft::{EntryPayload, OptionalSend};
use tokio::sync::Notify;

use quorate_metadata::ids::ControllerEpoch;

use super::identity::LocalVoter;
use super::store::{Snapshot, Snapshots, entry_bytes};
use super::types::{Applied, Entry, LogId, SnapshotMeta, StoredMembership, Types};
use super::{FrozenReplica, RaftError, Replica, ReplicaError};

type SnapshotOf = openraft::alias::SnapshotOf<Types, Snapshot>;

pub struct StateMachine {
    /// None while a snapshot is being installed. Never contended: openraft wants `Sync`, a mutex gives it.
    replica: Mutex<Option<Box<dyn Replica>>>,
    snapshots: Snapshots,
    local: LocalVoter,
    applied: Option<LogId>,
    membership: StoredMembership,
    growth: LogGrowth,
}

/// Wants a snapshot whenever so many bytes were replayed since the last.
struct LogGrowth {
    bytes: u64,
    limit: u64,
    grown: Arc<Notify>,
}

impl LogGrowth {
    fn add(&mut self, bytes: usize) {
        self.bytes += bytes as u64;
        if self.bytes >= self.limit {
            self.grown.notify_one();
        }
    }
}

impl StateMachine {
    /// `grown` is notified when a snapshot is due.
    pub fn new(
        replica: Box<dyn Replica>,
        snapshots: Snapshots,
        local: LocalVoter,
        snapshot_log_bytes: u64,
        grown: Arc<Notify>,
    ) -> Self {
        Self {
            replica: Mutex::new(Some(replica)),
            snapshots,
            local,
            applied: None,
            membership: StoredMembership::default(),
            growth: LogGrowth { bytes: 0, limit: snapshot_log_bytes, grown },
        }
    }

    fn replica(&mut self) -> &mut dyn Replica {
        let replica = self.replica.get_mut().expect("no holder panics").as_mut();
        replica.expect("the replica is away only while a snapshot is installed").as_mut()
    }

    fn replay(&mut self, entry: &Entry) -> io::Result<Applied> {
        self.growth.add(entry_bytes(entry));
        let applied = match &entry.payload {
            EntryPayload::Blank => Applied::Internal,
            EntryPayload::Membership(membership) => {
                self.membership = StoredMembership::new(Some(entry.log_id), membership.clone());
                Applied::Internal
            }
            EntryPayload::Normal(payload) => {
                let epoch = epoch_of(entry.log_id)?;
                let outcome = self.replica().replay(epoch, &payload.0);
                outcome.map_err(|error| broken(entry.log_id, &error))?.into()
            }
        };
        self.applied = Some(entry.log_id);
        Ok(applied)
    }

    fn meta(&self) -> SnapshotMeta {
        SnapshotMeta { last_log_id: self.applied, last_membership: self.membership.clone() }
    }

    fn refuse_foreign(&self, snapshot: &Snapshot) -> io::Result<()> {
        match (snapshot.cluster, self.local.cluster()) {
            (Some(theirs), Some(ours)) if theirs != ours => {
                let error =
                    RaftError::InconsistentClusterId(format!("{} is of cluster {theirs}, not {ours}", snapshot.name()));
                Err(io::Error::other(error))
            }
            _ => Ok(()),
        }
    }
}

/// A controller epoch is a term, in Kafka's width.
pub fn epoch_of(id: LogId) -> io::Result<ControllerEpoch> {
    let term = id.leader_id.term;
    i32::try_from(term)
        .map(ControllerEpoch::new)
        .map_err(|_| io::Error::other(format!("term {term} is no controller epoch")))
}

fn broken(id: LogId, error: &ReplicaError) -> io::Error {
    io::Error::other(format!("cannot replay log entry {}: {error}", id.index))
}

impl RaftStateMachine<Types> for StateMachine {
    type SnapshotData = Snapshot;
    type SnapshotBuilder = SnapshotBuilder;

    async fn applied_state(&mut self) -> io::Result<(Option<LogId>, StoredMembership)> {
        Ok((self.applied, self.membership.clone()))
    }

    async fn apply<S>(&mut self, mut entries: S) -> io::Result<()>
    where
        S: Stream<Item = io::Result<EntryResponder<Types>>> + Unpin + OptionalSend,
    {
        fail::fail_point!("raft.apply", |_| Err(io::Error::other("failpoint raft.apply")));
        let mut replies = Vec::new();
        while let Some((entry, responder)) = entries.try_next().await? {
            let applied = self.replay(&entry)?;
            replies.extend(responder.map(|responder| (responder, applied)));
        }
        // Whoever gets a reply must be able to read what it speaks of.
        self.replica().publish();
        replies.into_iter().for_each(|(responder, applied)| responder.send(applied));
        Ok(())
    }

    async fn get_snapshot_builder(&mut self) -> SnapshotBuilder {
        self.growth.bytes = 0;
        let frozen = self.replica().freeze();
        let (meta, snapshots, local) = (self.meta(), self.snapshots.clone(), self.local.clone());
        SnapshotBuilder { frozen: Mutex::new(Some(frozen)), meta, snapshots, local }
    }

    async fn install_snapshot(&mut self, meta: &SnapshotMeta, snapshot: Snapshot) -> io::Result<()> {
        self.refuse_foreign(&snapshot)?;
        let slot = self.replica.get_mut().expect("no holder panics");
        let mut replica = slot.take().expect("snapshots are installed one by one");
        let (name, snapshots) = (snapshot.name(), self.snapshots.clone());
        let install = move || {
            let installed = snapshots.adopt(snapshot).and_then(|snapshot| install(replica.as_mut(), &snapshot));
            (replica, installed)
        };
        let (replica, installed) = self.snapshots.run(install).await;
        *self.replica.get_mut().expect("no holder panics") = Some(replica);
        installed?;
        tracing::info!(snapshot = name, index = meta.last_log_id.map(|id| id.index), "snapshot installed");
        self.applied = meta.last_log_id;
        self.membership = meta.last_membership.clone();
        self.growth.bytes = 0;
        Ok(())
    }

    async fn get_current_snapshot(&mut self) -> io::Result<Option<SnapshotOf>> {
        Ok(self.snapshots.latest()?.map(|snapshot| SnapshotOf { meta: snapshot.meta.clone(), snapshot }))
    }
}

fn install(replica: &mut dyn Replica, snapshot: &Snapshot) -> io::Result<()> {
    let mut content = snapshot.read()?;
    replica.install(&mut content).map_err(|error| io::Error::other(format!("{}: {error}", snapshot.name())))?;
    // The replica may stop before the end, where the length is checked.
    io::copy(&mut content.by_ref(), &mut io::sink())?;
    Ok(())
}

/// Writes a frozen view out while the replica goes on.
pub struct SnapshotBuilder {
    frozen: Mutex<Option<Box<dyn FrozenReplica>>>,
    meta: SnapshotMeta,
    snapshots: Snapshots,
    local: LocalVoter,
}

impl RaftSnapshotBuilder<Types> for SnapshotBuilder {
    type SnapshotData = Snapshot;

    async fn build_snapshot(&mut self) -> io::Result<SnapshotOf> {
        fail::fail_point!("raft.snapshot", |_| Err(io::Error::other("failpoint raft.snapshot")));
        let frozen = self.frozen.get_mut().expect("no holder panics").take().expect("a builder builds once");
        let (snapshots, meta, cluster) = (self.snapshots.clone(), self.meta.clone(), self.local.cluster());
        let build = move || {
            let mut writer = snapshots.create(meta, cluster)?;
            frozen.write_to(&mut writer)?;
            writer.finish()
        };
        let snapshot = self.snapshots.run(build).await?;
        tracing::info!(snapshot = snapshot.name(), "snapshot written");
        Ok(SnapshotOf { meta: snapshot.meta.clone(), snapshot })
    }
}
