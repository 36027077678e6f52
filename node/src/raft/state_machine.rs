//! Committed entries on their way to the replica: cut into pieces for replay, counted for the next snapshot.

use std::io;
use std::sync::{Arc, Mutex};

use futures::{Stream, TryStreamExt};
use openraft::storage::{EntryResponder, RaftSnapshotBuilder, RaftStateMachine};
use openraft::{EntryPayload, OptionalSend};
use tokio::sync::Notify;

use super::identity::LocalVoter;
use super::replay::{PIECE_BYTES_MAX, PIECE_ENTRIES_MAX, Replay};
use super::store::{Snapshot, Snapshots, entry_bytes};
use super::types::{Entry, LogId, SnapshotMeta, StoredMembership, Types};
use super::{FrozenReplica, RaftError};

type SnapshotOf = openraft::alias::SnapshotOf<Types, Snapshot>;

pub struct StateMachine {
    replay: Replay,
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
        replay: Replay,
        snapshots: Snapshots,
        local: LocalVoter,
        snapshot_log_bytes: u64,
        grown: Arc<Notify>,
    ) -> Self {
        Self {
            replay,
            snapshots,
            local,
            applied: None,
            membership: StoredMembership::default(),
            growth: LogGrowth { bytes: 0, limit: snapshot_log_bytes, grown },
        }
    }

    /// The next piece of a run, and whether the run ends with it.
    async fn next_piece<S>(&mut self, entries: &mut S) -> io::Result<(Vec<EntryResponder<Types>>, bool)>
    where
        S: Stream<Item = io::Result<EntryResponder<Types>>> + Unpin + OptionalSend,
    {
        let (mut piece, mut bytes) = (Vec::new(), 0);
        while piece.len() < PIECE_ENTRIES_MAX && bytes < PIECE_BYTES_MAX {
            let Some((entry, responder)) = entries.try_next().await? else {
                return Ok((piece, true));
            };
            bytes += entry_bytes(&entry);
            self.note(&entry);
            piece.push((entry, responder));
        }
        Ok((piece, false))
    }

    /// What an entry means to Raft itself.
    fn note(&mut self, entry: &Entry) {
        self.growth.add(entry_bytes(entry));
        if let EntryPayload::Membership(membership) = &entry.payload {
            self.membership = StoredMembership::new(Some(entry.log_id), membership.clone());
        }
        self.applied = Some(entry.log_id);
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
        loop {
            let (piece, is_last) = self.next_piece(&mut entries).await?;
            self.replay.run(move |state| state.replay(piece, is_last)).await??;
            if is_last {
                return Ok(());
            }
        }
    }

    async fn get_snapshot_builder(&mut self) -> SnapshotBuilder {
        self.growth.bytes = 0;
        let frozen = self.replay.run(|state| state.freeze()).await;
        let (meta, snapshots, local) = (self.meta(), self.snapshots.clone(), self.local.clone());
        SnapshotBuilder { frozen: Mutex::new(Some(frozen)), meta, snapshots, local }
    }

    async fn install_snapshot(&mut self, meta: &SnapshotMeta, snapshot: Snapshot) -> io::Result<()> {
        self.refuse_foreign(&snapshot)?;
        let (name, snapshots) = (snapshot.name(), self.snapshots.clone());
        let snapshot = self.snapshots.run(move || snapshots.adopt(snapshot)).await?;
        self.replay.run(move |state| state.install(&snapshot)).await??;
        tracing::info!(snapshot = name, index = meta.last_log_id.map(|id| id.index), "snapshot installed");
        self.applied = meta.last_log_id;
        self.membership = meta.last_membership.clone();
        self.growth.bytes = 0;
        Ok(())
    }

    async fn get_current_snapshot(&mut self) -> io::Result<Option<SnapshotOf>> {
        let snapshots = self.snapshots.clone();
        let latest = self.snapshots.run(move || snapshots.latest()).await?;
        Ok(latest.map(|snapshot| SnapshotOf { meta: snapshot.meta.clone(), snapshot }))
    }
}

/// Writes a frozen view out while the replica goes on.
pub struct SnapshotBuilder {
    /// Never contended: openraft wants `Sync`, a mutex gives it.
    frozen: Mutex<Option<io::Result<Box<dyn FrozenReplica>>>>,
    meta: SnapshotMeta,
    snapshots: Snapshots,
    local: LocalVoter,
}

impl RaftSnapshotBuilder<Types> for SnapshotBuilder {
    type SnapshotData = Snapshot;

    async fn build_snapshot(&mut self) -> io::Result<SnapshotOf> {
        fail::fail_point!("raft.snapshot", |_| Err(io::Error::other("failpoint raft.snapshot")));
        let frozen = self.frozen.get_mut().expect("no holder panics").take().expect("a builder builds once")?;
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
