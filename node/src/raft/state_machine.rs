//! Committed entries on their way to the replica: cut into pieces for replay, counted for the next snapshot.

use std::io;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use futures::{Stream, TryStreamExt};
use openraft::storage::{EntryResponder, RaftSnapshotBuilder, RaftStateMachine};
use openraft::{EntryPayload, OptionalSend};
use tokio::sync::{Notify, oneshot};

use super::identity::LocalVoter;
use super::replay::{self, PIECE_BYTES_MAX, PIECE_ENTRIES_MAX, Replay};
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
    /// A snapshot that is being installed, which everything else waits for.
    installing: Option<oneshot::Receiver<io::Result<()>>>,
}

/// Makes a snapshot due when the log since the last one is larger than it, and than `floor`: so snapshots cost at most
/// twice the bytes of the log, whatever the size of the cluster.
struct LogGrowth {
    /// Bytes of log since the last snapshot.
    bytes: u64,
    floor: u64,
    snapshot_bytes: SnapshotBytes,
    /// A snapshot is due and was asked for: once, since a second request would outlive the snapshot.
    is_due: bool,
    grown: Arc<Notify>,
}

/// The size of the last snapshot, which is known when it has been written.
type SnapshotBytes = Arc<AtomicU64>;

impl LogGrowth {
    fn add(&mut self, bytes: usize) {
        self.bytes += bytes as u64;
        if !self.is_due && self.bytes > self.floor.max(self.snapshot_bytes.load(Ordering::Relaxed)) {
            self.is_due = true;
            self.grown.notify_one();
        }
    }

    fn begin_again(&mut self) {
        self.bytes = 0;
        self.is_due = false;
    }
}

impl StateMachine {
    /// `grown` is notified when a snapshot is due: never before `snapshot_log_bytes` of log.
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
            installing: None,
            growth: LogGrowth {
                bytes: 0,
                floor: snapshot_log_bytes,
                snapshot_bytes: SnapshotBytes::default(),
                is_due: false,
                grown,
            },
        }
    }

    async fn installed(&mut self) -> io::Result<()> {
        match self.installing.take() {
            Some(installing) => installing.await.map_err(|_| replay::ended())?,
            None => Ok(()),
        }
    }

    async fn freeze(&mut self) -> io::Result<Box<dyn FrozenReplica>> {
        self.installed().await?;
        self.replay.run(|state| state.freeze()).await
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
        // At a start a snapshot that cannot be installed is found here.
        self.installed().await?;
        Ok((self.applied, self.membership.clone()))
    }

    async fn apply<S>(&mut self, mut entries: S) -> io::Result<()>
    where
        S: Stream<Item = io::Result<EntryResponder<Types>>> + Unpin + OptionalSend,
    {
        fail::fail_point!("raft.apply", |_| Err(io::Error::other("failpoint raft.apply")));
        self.installed().await?;
        loop {
            let (piece, is_last) = self.next_piece(&mut entries).await?;
            let end = self.applied.filter(|_| is_last);
            self.replay.run(move |state| state.replay(piece, end)).await??;
            if is_last {
                return Ok(());
            }
        }
    }

    async fn get_snapshot_builder(&mut self) -> SnapshotBuilder {
        self.growth.begin_again();
        let frozen = self.freeze().await;
        let (meta, snapshots, local) = (self.meta(), self.snapshots.clone(), self.local.clone());
        let snapshot_bytes = self.growth.snapshot_bytes.clone();
        SnapshotBuilder { frozen: Mutex::new(Some(frozen)), meta, snapshots, local, snapshot_bytes }
    }

    /// Returns when the snapshot is kept, before the replica has read it: openraft writes no entry and answers no call before
    /// it returns.
    async fn install_snapshot(&mut self, meta: &SnapshotMeta, snapshot: Snapshot) -> io::Result<()> {
        self.refuse_foreign(&snapshot)?;
        self.installed().await?;
        let snapshots = self.snapshots.clone();
        let snapshot = self.snapshots.run(move || snapshots.adopt(snapshot)).await?;
        self.growth.snapshot_bytes.store(snapshot.bytes, Ordering::Relaxed);
        self.installing = Some(self.replay.begin(move |state| state.install(&snapshot)).await?);
        self.applied = meta.last_log_id;
        self.membership = meta.last_membership.clone();
        self.growth.begin_again();
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
    snapshot_bytes: SnapshotBytes,
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
        self.snapshot_bytes.store(snapshot.bytes, Ordering::Relaxed);
        tracing::info!(snapshot = snapshot.name(), bytes = snapshot.bytes, "snapshot written");
        Ok(SnapshotOf { meta: snapshot.meta.clone(), snapshot })
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::path::PathBuf;

    use bytes::Bytes;
    use futures::{FutureExt, stream};
    use quorate_metadata::ids::{ControllerEpoch, ControllerId, Offset};
    use tokio::sync::watch;

    use super::super::store::{MemoryStore, Store};
    use super::super::types::Payload;
    use super::super::{Outcome, Replica, ReplicaError, wire};
    use super::*;
    use crate::machine::Workers;

    const FLOOR: u64 = 1_000;
    const SNAPSHOT: usize = 10_000;

    /// A replica whose snapshots have one size. It counts how often it is published.
    #[derive(Clone, Default)]
    struct Large(Arc<AtomicU64>);

    impl Replica for Large {
        fn replay(&mut self, _: ControllerEpoch, _: &Bytes) -> Result<Outcome, ReplicaError> {
            Ok(Outcome::Replayed { next_offset: Offset::new(0) })
        }

        fn publish(&mut self) {
            self.0.fetch_add(1, Ordering::Relaxed);
        }

        fn freeze(&self) -> Box<dyn FrozenReplica> {
            Box::new(self.clone())
        }

        fn install(&mut self, _: &mut dyn Read) -> Result<(), ReplicaError> {
            Ok(())
        }
    }

    impl FrozenReplica for Large {
        fn write_to(&self, out: &mut dyn Write) -> io::Result<()> {
            out.write_all(&[0; SNAPSHOT])
        }
    }

    struct Log {
        state_machine: StateMachine,
        grown: Arc<Notify>,
        published: Arc<AtomicU64>,
        next: u64,
    }

    impl Log {
        fn new(snapshots: Snapshots) -> Self {
            let replica = Large::default();
            let published = replica.0.clone();
            Self { published, ..Self::of(Replay::here(Box::new(replica)), snapshots) }
        }

        fn of(replay: Replay, snapshots: Snapshots) -> Self {
            let store = Arc::new(MemoryStore::new()) as Arc<dyn Store>;
            let local = LocalVoter::load(store, ControllerId::new(1), PathBuf::new(), None, true).unwrap();
            let grown = Arc::new(Notify::new());
            let state_machine = StateMachine::new(replay, snapshots, local, FLOOR, grown.clone());
            Self { state_machine, grown, published: Arc::default(), next: 0 }
        }

        /// Applies entries of so many bytes together; true when a snapshot is due.
        async fn grow(&mut self, bytes: usize) -> bool {
            let entries: Vec<_> = (0..bytes / 100).map(|_| Ok((self.entry(100), None))).collect();
            self.state_machine.apply(stream::iter(entries)).await.unwrap();
            self.grown.notified().now_or_never().is_some()
        }

        fn entry(&mut self, bytes: usize) -> Entry {
            let log_id = wire::log_id(1, self.next);
            self.next += 1;
            Entry { log_id, payload: EntryPayload::Normal(Payload(vec![0; bytes].into())) }
        }

        /// The entries in each piece of a run of so many, each of so many bytes.
        async fn pieces(&mut self, count: usize, bytes: usize) -> Vec<usize> {
            let run: Vec<io::Result<EntryResponder<Types>>> =
                (0..count).map(|_| Ok((self.entry(bytes), None))).collect();
            let mut run = stream::iter(run);
            let mut pieces = Vec::new();
            loop {
                let (piece, is_last) = self.state_machine.next_piece(&mut run).await.unwrap();
                pieces.push(piece.len());
                if is_last {
                    return pieces;
                }
            }
        }

        async fn snapshot(&mut self) {
            self.state_machine.get_snapshot_builder().await.build_snapshot().await.unwrap();
        }
    }

    #[tokio::test]
    async fn a_snapshot_is_due_when_the_log_outgrows_the_last_one() {
        let snapshots = Snapshots::default();
        let mut log = Log::new(snapshots.clone());
        assert!(!log.grow(500).await, "below the floor");
        assert!(log.grow(9_000).await, "there is no snapshot yet");
        log.snapshot().await;
        assert!(!log.grow(5_000).await, "half of the snapshot");
        assert!(log.grow(5_000).await, "larger than the snapshot");
        log.snapshot().await;

        let mut restarted = Log::new(snapshots);
        let latest = restarted.state_machine.get_current_snapshot().await.unwrap().unwrap();
        restarted.state_machine.install_snapshot(&latest.meta, latest.snapshot).await.unwrap();
        assert!(!restarted.grow(5_000).await, "half of the snapshot that it started from");
        assert!(restarted.grow(5_000).await, "larger than it");
    }

    #[tokio::test]
    async fn a_snapshot_that_is_due_is_asked_for_once() {
        let mut log = Log::new(Snapshots::default());
        let grown = log.grown.clone();
        let waiting = tokio::spawn(async move { grown.notified().await });
        tokio::task::yield_now().await;
        assert!(!log.grow(50_000).await, "the request has gone to what waits for it, and there is no second one");
        waiting.await.unwrap();
    }

    #[tokio::test]
    async fn a_run_of_any_length_is_replayed_in_pieces() {
        let mut log = Log::new(Snapshots::default());
        log.grow(100 * 3 * PIECE_ENTRIES_MAX).await;
        let (applied, _) = log.state_machine.applied_state().await.unwrap();
        assert_eq!(applied, Some(wire::log_id(1, 3 * PIECE_ENTRIES_MAX as u64 - 1)));
        assert_eq!(log.published.load(Ordering::Relaxed), 1, "it becomes visible as a whole");
    }

    /// A replica that no snapshot can be installed in.
    struct Broken;

    impl Replica for Broken {
        fn replay(&mut self, _: ControllerEpoch, _: &Bytes) -> Result<Outcome, ReplicaError> {
            Ok(Outcome::Replayed { next_offset: Offset::new(0) })
        }

        fn publish(&mut self) {}

        fn freeze(&self) -> Box<dyn FrozenReplica> {
            Box::new(Large::default())
        }

        fn install(&mut self, _: &mut dyn Read) -> Result<(), ReplicaError> {
            Err(ReplicaError("broken".to_owned()))
        }
    }

    #[tokio::test]
    async fn nothing_is_replayed_after_a_snapshot_that_cannot_be_installed() {
        let snapshots = Snapshots::default();
        let mut log = Log::new(snapshots.clone());
        log.grow(100).await;
        log.snapshot().await;
        let latest = log.state_machine.get_current_snapshot().await.unwrap().unwrap();
        let replay = Replay::here(Box::new(Broken));
        let failure = replay.progress().failure;
        let mut broken = Log::of(replay, snapshots);
        broken.state_machine.install_snapshot(&latest.meta, latest.snapshot).await.unwrap();
        assert!(failure.borrow().as_ref().is_some_and(|reason| reason.contains("broken")));
        let entry = Ok((broken.entry(100), None));
        assert!(broken.state_machine.apply(stream::iter([entry])).await.is_err());
    }

    #[tokio::test]
    async fn a_panic_of_replay_becomes_the_reason_of_the_failure() {
        let (finished, _) = watch::channel(());
        let mut replay = Replay::start(Box::new(Broken), Workers::Threads, finished).unwrap();
        let mut failure = replay.progress().failure;
        assert!(replay.run::<()>(|_| panic!("a test")).await.is_err());
        failure.wait_for(Option::is_some).await.unwrap();
    }

    #[tokio::test]
    async fn a_piece_is_bounded_in_entries_and_in_bytes() {
        let mut log = Log::new(Snapshots::default());
        assert_eq!(log.pieces(2 * PIECE_ENTRIES_MAX + 7, 1).await, [PIECE_ENTRIES_MAX, PIECE_ENTRIES_MAX, 7]);
        assert_eq!(log.pieces(5, PIECE_BYTES_MAX).await, [1, 1, 1, 1, 1, 0]);
        assert_eq!(log.pieces(5, PIECE_BYTES_MAX * 2 / 3).await, [2, 2, 1]);
    }
}
