//! One suite for both stores, so that the twin in memory stays honest: openraft's own, and what it leaves out: crashes,
//! torn tails, damage, and disks that fail.

use std::fs;
use std::io::{self, Read};
use std::path::PathBuf;
use std::sync::{Arc, Mutex};

use openraft::storage::{IOFlushed, RaftLogReader, RaftLogStorage, RaftLogStorageExt};
use openraft::testing::log::{StoreBuilder, Suite};
use openraft::{EntryPayload, StorageError};
use tempfile::TempDir;
use tokio::sync::{Notify, oneshot};

use quorate_metadata::ids::{ControllerEpoch, ControllerId, Offset};

use super::super::identity::LocalVoter;
use super::super::replay::Replay;
use super::super::state_machine::StateMachine;
use super::super::types::{Entry, LeaderId, LogId, Payload, Types, Vote};
use super::super::{FrozenReplica, Outcome, RaftError, Replica, ReplicaError, wire};
use super::{LogStore, MemoryStore, Opened, RocksStore, Store};

/// A replica that only counts.
struct Count(u64);

impl Replica for Count {
    fn replay(&mut self, _: ControllerEpoch, _: &bytes::Bytes) -> Result<Outcome, ReplicaError> {
        self.0 += 1;
        Ok(Outcome::Replayed { next_offset: Offset::new(0) })
    }

    fn publish(&mut self) {}

    fn freeze(&self) -> Box<dyn FrozenReplica> {
        Box::new(Count(self.0))
    }

    fn install(&mut self, content: &mut dyn Read) -> Result<(), ReplicaError> {
        let mut bytes = [0; 8];
        content.read_exact(&mut bytes).map_err(|error| ReplicaError(error.to_string()))?;
        self.0 = u64::from_le_bytes(bytes);
        Ok(())
    }
}

impl FrozenReplica for Count {
    fn write_to(&self, out: &mut dyn io::Write) -> io::Result<()> {
        out.write_all(&self.0.to_le_bytes())
    }
}

struct Builder<F> {
    make: F,
    flushers: Flushers,
}

/// The flushers of the stores that a test has made. It waits for them: a process must not end while one has the database.
#[derive(Clone, Default)]
struct Flushers(Arc<Mutex<Vec<oneshot::Receiver<()>>>>);

impl Flushers {
    async fn ended(self) {
        let all = std::mem::take(&mut *self.0.lock().unwrap());
        for ended in all {
            // It ends without a word.
            let _ = ended.await;
        }
    }
}

async fn pass_openrafts_suite<S: Store>(make: impl Fn() -> (S, Option<TempDir>) + Send + Sync) {
    let flushers = Flushers::default();
    Suite::test_all(Builder { make, flushers: flushers.clone() }).await.unwrap();
    flushers.ended().await;
}

impl<F, S> StoreBuilder<Types, LogStore, StateMachine, Option<TempDir>> for Builder<F>
where
    F: Fn() -> (S, Option<TempDir>) + Send + Sync,
    S: Store,
{
    async fn build(&self) -> Result<(Option<TempDir>, LogStore, StateMachine), StorageError<Types>> {
        let (store, guard) = (self.make)();
        let store: Arc<dyn Store> = Arc::new(store);
        let local = LocalVoter::load(store.clone(), ControllerId::new(0), PathBuf::new(), None, true).unwrap();
        let opened = store.open().unwrap();
        let loaded = opened.disk.load().unwrap();
        let (log, flusher) = LogStore::start(opened.disk, loaded);
        self.flushers.0.lock().unwrap().push(flusher);
        let state_machine = StateMachine::new(
            Replay::here(Box::new(Count(0))),
            opened.snapshots,
            local,
            u64::MAX,
            Arc::new(Notify::new()),
        );
        Ok((guard, log, state_machine))
    }
}

#[tokio::test]
async fn openrafts_suite_passes_on_disk() {
    // The suite removes the folder of a store before its flusher has ended; this one is removed after all of them.
    let root = tempfile::tempdir().unwrap();
    let builder = || {
        let data = tempfile::tempdir_in(&root).unwrap();
        (RocksStore::new(data.path()), Some(data))
    };
    pass_openrafts_suite(builder).await;
}

#[tokio::test]
async fn openrafts_suite_passes_in_memory() {
    pass_openrafts_suite(|| (MemoryStore::new(), None)).await;
}

fn start(opened: Result<Opened, RaftError>) -> io::Result<(LogStore, oneshot::Receiver<()>)> {
    let disk = opened.map_err(io::Error::other)?.disk;
    let loaded = disk.load()?;
    Ok(LogStore::start(disk, loaded))
}

/// A store that can lose its power.
trait Crashing {
    fn open(&self) -> io::Result<(LogStore, oneshot::Receiver<()>)>;
    /// Ends the process that has it open, without its leave.
    async fn crash(&self, log: LogStore, flusher: oneshot::Receiver<()>);
}

impl Crashing for MemoryStore {
    fn open(&self) -> io::Result<(LogStore, oneshot::Receiver<()>)> {
        start(Store::open(self))
    }

    async fn crash(&self, _: LogStore, _: oneshot::Receiver<()>) {
        MemoryStore::crash(self, 0);
    }
}

impl Crashing for TempDir {
    fn open(&self) -> io::Result<(LogStore, oneshot::Receiver<()>)> {
        start(RocksStore::new(self.path()).open())
    }

    /// What a process that dies leaves behind: no memtable is flushed at close, the write-ahead log is all there is.
    async fn crash(&self, log: LogStore, flusher: oneshot::Receiver<()>) {
        drop(log);
        let _ = flusher.await;
    }
}

fn entry(term: u64, index: u64) -> Entry {
    let payload = EntryPayload::Normal(Payload(format!("payload {term}.{index}").into()));
    Entry { log_id: wire::log_id(term, index), payload }
}

fn vote(term: u64, node: u64) -> Vote {
    use openraft::vote::RaftLeaderId;
    Vote { leader_id: LeaderId::new(term, node), committed: false }
}

async fn entries(log: &mut LogStore) -> Vec<LogId> {
    log.try_get_log_entries(..).await.unwrap().into_iter().map(|entry| entry.log_id).collect()
}

async fn a_crash_loses_nothing_acknowledged(store: &impl Crashing) {
    let (mut log, flusher) = store.open().unwrap();
    log.save_vote(&vote(3, 1)).await.unwrap();
    log.blocking_append((0..10).map(|index| entry(3, index))).await.unwrap();
    log.truncate_after(Some(wire::log_id(3, 6))).await.unwrap();
    log.blocking_append([entry(4, 7)]).await.unwrap();
    log.purge(wire::log_id(3, 1)).await.unwrap();
    log.save_vote(&vote(5, 2)).await.unwrap();
    store.crash(log, flusher).await;
    let (mut log, flusher) = store.open().unwrap();
    let expected: Vec<LogId> = (2..7).map(|index| wire::log_id(3, index)).chain([wire::log_id(4, 7)]).collect();
    assert_eq!(entries(&mut log).await, expected);
    assert_eq!(log.read_vote().await.unwrap(), Some(vote(5, 2)));
    let state = log.get_log_state().await.unwrap();
    assert_eq!((state.last_purged_log_id, state.last_log_id), (Some(wire::log_id(3, 1)), Some(wire::log_id(4, 7))));
    store.crash(log, flusher).await;
}

#[tokio::test]
async fn a_crash_loses_nothing_acknowledged_on_disk() {
    a_crash_loses_nothing_acknowledged(&tempfile::tempdir().unwrap()).await;
}

#[tokio::test]
async fn a_crash_loses_nothing_acknowledged_in_memory() {
    a_crash_loses_nothing_acknowledged(&MemoryStore::new()).await;
}

async fn a_purge_beyond_the_log_counts_as_the_log(store: &impl Crashing) {
    let (mut log, flusher) = store.open().unwrap();
    log.blocking_append((0..3).map(|index| entry(1, index))).await.unwrap();
    log.purge(wire::log_id(2, 10)).await.unwrap();
    log.blocking_append([entry(2, 11)]).await.unwrap();
    store.crash(log, flusher).await;
    let (mut log, flusher) = store.open().unwrap();
    assert_eq!(entries(&mut log).await, [wire::log_id(2, 11)]);
    store.crash(log, flusher).await;
}

#[tokio::test]
async fn a_purge_beyond_the_log_counts_as_the_log_in_both() {
    a_purge_beyond_the_log_counts_as_the_log(&tempfile::tempdir().unwrap()).await;
    a_purge_beyond_the_log_counts_as_the_log(&MemoryStore::new()).await;
}

#[tokio::test]
async fn an_append_in_flight_when_memory_crashes_is_lost_or_whole() {
    for kept in 0.. {
        let store = MemoryStore::new();
        let (mut log, _flusher) = Crashing::open(&store).unwrap();
        log.blocking_append([entry(1, 0)]).await.unwrap();
        store.set_flush_time(std::time::Duration::from_secs(3600));
        log.append([entry(1, 1)], IOFlushed::noop()).await.unwrap();
        while store.pending_bytes() == 0 {
            tokio::task::yield_now().await;
        }
        let pending = store.pending_bytes();
        MemoryStore::crash(&store, kept);
        let (mut log, _flusher) = Crashing::open(&store).unwrap();
        let expected =
            if kept < pending { vec![wire::log_id(1, 0)] } else { vec![wire::log_id(1, 0), wire::log_id(1, 1)] };
        assert_eq!(entries(&mut log).await, expected, "{kept} of {pending} bytes kept");
        if kept == pending {
            return;
        }
    }
}

#[tokio::test]
async fn every_flipped_bit_in_memory_is_refused_by_place() {
    let store = MemoryStore::new();
    let (mut log, _flusher) = Crashing::open(&store).unwrap();
    log.save_vote(&vote(1, 1)).await.unwrap();
    log.blocking_append([entry(1, 0), entry(1, 1)]).await.unwrap();
    for byte in 0..store.durable_bytes() {
        store.flip_bit(byte);
        let refused = Store::open(&store).err().expect("refused").to_string();
        assert!(refused.contains("offset"), "byte {byte}: {refused}");
        store.flip_bit(byte);
    }
}

/// The newest write-ahead log: numbers grow.
fn wal(data: &TempDir) -> PathBuf {
    let files = fs::read_dir(data.path().join("raft")).unwrap().map(|entry| entry.unwrap().path());
    files.filter(|path| path.extension().is_some_and(|extension| extension == "log")).max().unwrap()
}

fn copy_of(data: &TempDir) -> TempDir {
    let copy = tempfile::tempdir().unwrap();
    fs::create_dir(copy.path().join("raft")).unwrap();
    for file in fs::read_dir(data.path().join("raft")).unwrap() {
        let file = file.unwrap();
        fs::copy(file.path(), copy.path().join("raft").join(file.file_name())).unwrap();
    }
    copy
}

/// A disk with entries 0 and 1 acknowledged, and the length its log had after the first.
async fn two_acknowledged() -> (TempDir, u64) {
    let data = tempfile::tempdir().unwrap();
    let (mut log, flusher) = data.open().unwrap();
    log.save_vote(&vote(1, 1)).await.unwrap();
    log.blocking_append([entry(1, 0)]).await.unwrap();
    let first = fs::metadata(wal(&data)).unwrap().len();
    log.blocking_append([entry(1, 1)]).await.unwrap();
    data.crash(log, flusher).await;
    (data, first)
}

#[tokio::test]
async fn a_record_torn_at_any_byte_recovers_what_was_acknowledged_before() {
    let (data, first) = two_acknowledged().await;
    let whole = fs::metadata(wal(&data)).unwrap().len();
    for length in first..=whole {
        let torn = copy_of(&data);
        fs::File::options().write(true).open(wal(&torn)).unwrap().set_len(length).unwrap();
        let (mut log, flusher) = torn.open().unwrap_or_else(|error| panic!("cut at {length} of {whole}: {error}"));
        let expected =
            if length < whole { vec![wire::log_id(1, 0)] } else { vec![wire::log_id(1, 0), wire::log_id(1, 1)] };
        assert_eq!(entries(&mut log).await, expected, "cut at {length} of {whole}");
        assert_eq!(log.read_vote().await.unwrap(), Some(vote(1, 1)));
        torn.crash(log, flusher).await;
    }
}

#[tokio::test]
async fn a_byte_flipped_before_the_last_record_is_refused_by_file_and_offset() {
    let (data, first) = two_acknowledged().await;
    let good = fs::read(wal(&data)).unwrap();
    for byte in 0..usize::try_from(first).unwrap() {
        let damaged = copy_of(&data);
        let mut bytes = good.clone();
        bytes[byte] ^= 0x40;
        fs::write(wal(&damaged), &bytes).unwrap();
        let refused = damaged.open().map(|_| ()).expect_err("refused").to_string();
        assert!(refused.contains(".log") && refused.contains("offset"), "byte {byte}: {refused}");
    }
}

#[tokio::test]
async fn a_disk_that_fails_once_takes_no_more_writes() {
    let store = MemoryStore::new();
    let (mut log, _flusher) = Crashing::open(&store).unwrap();
    log.blocking_append([entry(1, 0)]).await.unwrap();
    store.break_disk();
    assert!(log.blocking_append([entry(1, 1)]).await.is_err());
    assert!(log.save_vote(&vote(2, 1)).await.is_err());
    let reason = log.failure().borrow().clone().unwrap();
    assert!(reason.contains("os error 5"), "{reason}");
    MemoryStore::crash(&store, 0);
    let (mut log, _flusher) = Crashing::open(&store).unwrap();
    assert_eq!(entries(&mut log).await, [wire::log_id(1, 0)]);
    assert_eq!(log.read_vote().await.unwrap(), None);
}

#[tokio::test]
async fn what_is_asked_for_in_one_piece_is_capped_but_never_empty() {
    let data = tempfile::tempdir().unwrap();
    let (mut log, flusher) = data.open().unwrap();
    let large = |index| Entry {
        log_id: wire::log_id(1, index),
        payload: EntryPayload::Normal(Payload(vec![0; 700 << 10].into())),
    };
    log.blocking_append((0..4).map(large)).await.unwrap();
    assert_eq!(log.limited_get_log_entries(0, 4).await.unwrap().len(), 2);
    assert_eq!(log.limited_get_log_entries(3, 4).await.unwrap().len(), 1);
    data.crash(log, flusher).await;
    // The same from the disk, without the tail.
    let (mut log, flusher) = data.open().unwrap();
    assert_eq!(log.limited_get_log_entries(0, 4).await.unwrap().len(), 2);
    assert_eq!(log.try_get_log_entries(1..=2).await.unwrap().len(), 2);
    data.crash(log, flusher).await;
}

#[tokio::test]
async fn the_committed_index_rides_along() {
    let data = tempfile::tempdir().unwrap();
    let (mut log, flusher) = data.open().unwrap();
    log.blocking_append([entry(1, 0), entry(1, 1)]).await.unwrap();
    log.save_committed(Some(wire::log_id(1, 0))).await.unwrap();
    log.save_vote(&vote(2, 1)).await.unwrap();
    log.save_committed(Some(wire::log_id(1, 1))).await.unwrap();
    data.crash(log, flusher).await;
    let (mut log, flusher) = data.open().unwrap();
    assert_eq!(log.read_committed().await.unwrap(), Some(wire::log_id(1, 1)));
    data.crash(log, flusher).await;
}
