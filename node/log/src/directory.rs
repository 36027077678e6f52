//! A directory of logs: one RocksDB, so that one write, and one fsync, covers changes of any number of logs.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use quorate_metadata::ids::{DirectoryId, TopicPartition};
use quorate_metadata::mutant::Mutant;
use rocksdb::{
    ColumnFamily, ColumnFamilyDescriptor, DB, DBCompressionType, DBRecoveryMode, ErrorKind, IteratorMode, LogLevel,
    Options, WriteBatch, WriteOptions,
};
use uuid::Uuid;

use crate::durable;
use crate::error::LogError;
use crate::keys;
use crate::partition_log::PartitionLog;
use crate::rows::Rows;

const BATCHES: &str = "batches";
const META: &str = "meta";
/// In the default family, where nothing else is.
const ID: &[u8] = b"directory-id";

/// Few large memtables: records are written once, and mostly read soon after.
const MEMTABLE_BYTES: usize = 32 << 20;
/// Bounds what a restart has to recover.
const WAL_BYTES_MAX: u64 = 128 << 20;

/// When a commit is durable.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Flush {
    /// Against a crash of the process; the system writes to the disk when it likes. Replicas are the safety.
    Os,
    /// Against a loss of power: each commit is synced.
    Always,
}

/// A handle; clones share the directory.
#[derive(Clone)]
pub struct LogDirectory {
    inner: Arc<Inner>,
}

struct Inner {
    db: DB,
    path: PathBuf,
    flush: Flush,
    id: DirectoryId,
}

/// Staged changes of any number of logs. Dropped without a commit, they are lost, and their logs must be opened again.
#[derive(Default)]
pub struct Writes {
    pub(crate) rows: WriteBatch,
    pub(crate) logs: BTreeSet<TopicPartition>,
}

impl Writes {
    pub fn is_empty(&self) -> bool {
        self.rows.is_empty()
    }

    pub fn size_bytes(&self) -> usize {
        self.rows.size_in_bytes()
    }
}

impl LogDirectory {
    /// Opens the directory, or creates it with a new id.
    pub fn open(path: &Path, flush: Flush) -> Result<Self, LogError> {
        let io = |reason: String| LogError::Io { path: path.to_owned(), reason };
        durable::create_directory(path).map_err(|error| io(error.to_string()))?;
        let db = DB::open_cf_descriptors(&database_options(flush), path, families()).map_err(|error| {
            let is_locked = error.kind() == ErrorKind::IOError && error.to_string().contains("lock");
            if is_locked { LogError::Locked { path: path.to_owned() } } else { io(error.to_string()) }
        })?;
        let id = identify(&db).map_err(io)?;
        Ok(Self { inner: Arc::new(Inner { db, path: path.to_owned(), flush, id }) })
    }

    /// The same for as long as the directory exists: a wiped disk has another one.
    pub fn id(&self) -> DirectoryId {
        self.inner.id
    }

    pub fn path(&self) -> &Path {
        &self.inner.path
    }

    /// The logs in this directory.
    pub fn partitions(&self) -> Result<Vec<TopicPartition>, LogError> {
        let mut found = Vec::new();
        for row in self.db().iterator_cf(self.meta(), IteratorMode::Start) {
            let (key, _) = row.map_err(|error| self.failed(&error))?;
            found.extend(keys::partition_of_state(&key));
        }
        Ok(found)
    }

    /// Opens the log, or creates it. It has one owner at a time.
    pub fn log(&self, partition: TopicPartition) -> Result<PartitionLog, LogError> {
        PartitionLog::open(Rows::new(self.clone(), partition))
    }

    /// Removes the log with all that it has. Its owner is gone, and nothing of it is staged.
    pub fn remove(&self, partition: TopicPartition) -> Result<(), LogError> {
        let mut writes = self.begin();
        Rows::new(self.clone(), partition).delete_all(&mut writes);
        self.commit(writes)
    }

    pub fn begin(&self) -> Writes {
        Writes::default()
    }

    /// One write: after a crash either all of it is there or nothing.
    pub fn commit(&self, writes: Writes) -> Result<(), LogError> {
        if writes.is_empty() {
            return Ok(());
        }
        let mut options = WriteOptions::default();
        options.set_sync(self.inner.flush == Flush::Always && !Mutant::UnsyncedLog.is_on());
        self.db().write_opt(writes.rows, &options).map_err(|error| self.failed(&error))
    }

    /// Everything that was committed is on stable storage, whatever `Flush` says.
    pub fn sync(&self) -> Result<(), LogError> {
        self.db().flush_wal(true).map_err(|error| self.failed(&error))
    }

    pub(crate) fn db(&self) -> &DB {
        &self.inner.db
    }

    pub(crate) fn batches(&self) -> &ColumnFamily {
        self.db().cf_handle(BATCHES).expect("opened with both families")
    }

    pub(crate) fn meta(&self) -> &ColumnFamily {
        self.db().cf_handle(META).expect("opened with both families")
    }

    pub(crate) fn failed(&self, error: &rocksdb::Error) -> LogError {
        LogError::Io { path: self.inner.path.clone(), reason: error.to_string() }
    }
}

fn identify(db: &DB) -> Result<DirectoryId, String> {
    if let Some(value) = db.get(ID).map_err(|error| error.to_string())? {
        let body = keys::unseal(ID, &value)?;
        return Ok(DirectoryId::new(Uuid::from_slice(body).map_err(|error| error.to_string())?));
    }
    let id = DirectoryId::new(Uuid::new_v4());
    let mut options = WriteOptions::default();
    options.set_sync(true);
    db.put_opt(ID, keys::seal(ID, id.as_bytes()), &options).map_err(|error| error.to_string())?;
    Ok(id)
}

fn database_options(flush: Flush) -> Options {
    let mut options = Options::default();
    options.create_if_missing(true);
    options.create_missing_column_families(true);
    options.set_paranoid_checks(true);
    // A record cut by a crash was acknowledged to nobody. Unsynced, a loss of power may cut earlier than at the tail.
    options.set_wal_recovery_mode(match flush {
        Flush::Os => DBRecoveryMode::PointInTime,
        Flush::Always => DBRecoveryMode::TolerateCorruptedTailRecords,
    });
    // A log's batches and its meta data are never of different ages.
    options.set_atomic_flush(true);
    options.set_max_total_wal_size(WAL_BYTES_MAX);
    options.set_max_background_jobs(2);
    options.set_keep_log_file_num(2);
    options.set_max_log_file_size(1 << 20);
    options.set_log_level(LogLevel::Warn);
    options.set_stats_dump_period_sec(0);
    options
}

fn families() -> Vec<ColumnFamilyDescriptor> {
    let mut options = Options::default();
    options.set_compression_type(DBCompressionType::None);
    options.set_write_buffer_size(MEMTABLE_BYTES);
    options.set_max_write_buffer_number(2);
    options.set_paranoid_checks(true);
    [BATCHES, META].map(|name| ColumnFamilyDescriptor::new(name, options.clone())).into()
}
