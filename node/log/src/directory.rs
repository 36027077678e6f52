//! A directory of logs: one table, so that one write, and one fsync, covers changes of any number of logs.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;
use quorate_metadata::ids::{DirectoryId, IncarnationId, TopicPartition};
use quorate_metadata::mutant::Mutant;

use crate::error::LogError;
use crate::keys;
use crate::memory::MemoryLogs;
use crate::operations::Operations;
use crate::owner::Owner;
use crate::partition_log::PartitionLog;
use crate::rocks::RocksTable;
use crate::rows::Rows;
use crate::table::{Changes, Failure, Family, Table};

/// The format of a directory: 2 has frames of Kafka's record batch, and gaps. A directory of format 1, which is not written
/// down, has the frames of [`crate::frame_v1`]; they are read in format 2 as well.
pub const FORMAT: u32 = 2;

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
    table: Box<dyn Table>,
    path: PathBuf,
    flush: Flush,
    id: DirectoryId,
    operations: Operations,
}

/// Staged changes of any number of logs. Dropped without a commit, they are lost, and their logs must be opened again.
#[derive(Default)]
pub struct Writes {
    pub(crate) rows: Changes,
    pub(crate) logs: BTreeSet<TopicPartition>,
}

impl Writes {
    pub fn is_empty(&self) -> bool {
        self.rows.is_empty()
    }

    pub fn size_bytes(&self) -> usize {
        self.rows.size_bytes()
    }

    /// Whether something of the log is staged.
    pub fn touches(&self, log: TopicPartition) -> bool {
        self.logs.contains(&log)
    }
}

impl LogDirectory {
    /// Opens the directory, or creates it with a new id.
    pub fn open(path: &Path, flush: Flush) -> Result<Self, LogError> {
        let (table, id) = RocksTable::open(path, flush)?;
        let directory = Self::of(Box::new(table), path.to_owned(), flush, id);
        directory.check_format()?;
        Ok(directory)
    }

    /// Refuses a directory that a later release has written: its batches could be misread. One of an earlier release is
    /// upgraded batch by batch.
    fn check_format(&self) -> Result<(), LogError> {
        match self.format()? {
            Some(found) if found > FORMAT => {
                Err(LogError::UnknownFormat { path: self.inner.path.clone(), found, newest: FORMAT })
            }
            Some(_) | None => Ok(()),
        }
    }

    /// `None`: it is new, or of a release before the format had a version.
    fn format(&self) -> Result<Option<u32>, LogError> {
        self.meta(keys::FORMAT, |value| {
            let body = keys::unseal(keys::FORMAT, value)?;
            body.try_into().map(u32::from_be_bytes).map_err(|_| format!("the format has {} bytes", body.len()))
        })
    }

    /// In memory. Nobody else may have it open.
    pub fn in_memory(logs: &MemoryLogs, flush: Flush) -> Self {
        Self::of(Box::new(logs.clone()), PathBuf::from(format!("memory-{}", logs.id())), flush, logs.id())
    }

    fn of(table: Box<dyn Table>, path: PathBuf, flush: Flush, id: DirectoryId) -> Self {
        Self { inner: Arc::new(Inner { table, path, flush, id, operations: Operations::default() }) }
    }

    /// Refuses a directory of another broker or cluster: its logs would be strays here. A directory without an owner is new, or
    /// was written by an earlier release.
    pub fn check_owner(&self, expected: Owner) -> Result<(), LogError> {
        let path = self.inner.path.clone();
        match self.owner()? {
            Some(found) if found.cluster != expected.cluster && !Mutant::AcceptForeignDirectory.is_on() => {
                Err(LogError::OfAnotherCluster { path, found, expected })
            }
            Some(found) if found.broker != expected.broker => Err(LogError::OfAnotherBroker { path, found, expected }),
            Some(_) | None => Ok(()),
        }
    }

    /// Writes down the owner and the format of what is written from now on, durably.
    pub fn set_owner(&self, owner: Owner) -> Result<(), LogError> {
        if self.owner()? == Some(owner) && self.format()? == Some(FORMAT) {
            return Ok(());
        }
        let mut rows = Changes::default();
        rows.put(Family::Meta, keys::OWNER.to_vec(), owner.encode().into());
        rows.put(Family::Meta, keys::FORMAT.to_vec(), keys::seal(keys::FORMAT, &FORMAT.to_be_bytes()).into());
        self.table().commit(&rows, true).map_err(|failure| self.failed(failure))
    }

    fn owner(&self) -> Result<Option<Owner>, LogError> {
        self.meta(keys::OWNER, Owner::decode)
    }

    /// What is written down of the directory itself under this key.
    fn meta<T>(
        &self,
        key: &'static [u8],
        decode: impl FnOnce(&[u8]) -> Result<T, Failure>,
    ) -> Result<Option<T>, LogError> {
        let stored = self.table().get(Family::Meta, key).map_err(|failure| self.failed(failure))?;
        stored.map(|value: Bytes| decode(&value)).transpose().map_err(|failure| self.failed(failure))
    }

    /// The run of the broker that had the directory open last. None: it is new, or of a release before runs were written
    /// down.
    pub fn run(&self) -> Result<Option<IncarnationId>, LogError> {
        self.meta(keys::RUN, |value| {
            let body = keys::unseal(keys::RUN, value)?;
            body.try_into().map(IncarnationId::from_bytes).map_err(|_| format!("the run has {} bytes", body.len()))
        })
    }

    /// Writes down the run that has the directory open from now on, durably: an older copy of the directory has another.
    pub fn set_run(&self, run: IncarnationId) -> Result<(), LogError> {
        let mut rows = Changes::default();
        rows.put(Family::Meta, keys::RUN.to_vec(), keys::seal(keys::RUN, run.as_bytes()).into());
        let _operation = self.inner.operations.begin();
        self.table().commit(&rows, true).map_err(|failure| self.failed(failure))
    }

    /// The same for as long as the directory exists: a wiped disk has another one.
    pub fn id(&self) -> DirectoryId {
        self.inner.id
    }

    pub fn path(&self) -> &Path {
        &self.inner.path
    }

    /// What the disk is being asked for now: writes, syncs, and what an owner or a reader of a log reads.
    pub fn operations(&self) -> &Operations {
        &self.inner.operations
    }

    /// The logs in this directory.
    pub fn partitions(&self) -> Result<Vec<TopicPartition>, LogError> {
        let mut found = Vec::new();
        for row in self.table().scan(Family::Meta, Vec::new(), None) {
            let (key, _) = row.map_err(|failure| self.failed(failure))?;
            found.extend(keys::partition_of_state(&key));
        }
        Ok(found)
    }

    /// Opens the log at `now_ms`, or creates it. It has one owner at a time.
    pub fn log(&self, partition: TopicPartition, now_ms: i64) -> Result<PartitionLog, LogError> {
        let mut writes = self.begin();
        let log = self.open_log(&mut writes, partition, now_ms)?;
        self.commit(writes)?;
        Ok(log)
    }

    /// As `log`; a new one is staged, so that many are created by one commit. Nothing of it is staged before.
    pub fn open_log(
        &self,
        writes: &mut Writes,
        partition: TopicPartition,
        now_ms: i64,
    ) -> Result<PartitionLog, LogError> {
        let _operation = self.inner.operations.begin();
        PartitionLog::open(Rows::new(self.clone(), partition), writes, now_ms)
    }

    /// Removes the log with all that it has. Its owner is gone.
    pub fn remove(&self, partition: TopicPartition) -> Result<(), LogError> {
        let mut writes = self.begin();
        self.stage_removal(&mut writes, partition)?;
        self.commit(writes)
    }

    /// As `remove`, with the next commit. Nothing of the log is staged before.
    pub fn stage_removal(&self, writes: &mut Writes, partition: TopicPartition) -> Result<(), LogError> {
        let _operation = self.inner.operations.begin();
        Rows::new(self.clone(), partition).delete_found(writes)
    }

    pub fn begin(&self) -> Writes {
        Writes::default()
    }

    /// One write: after a crash either all of it is there or nothing.
    pub fn commit(&self, writes: Writes) -> Result<(), LogError> {
        if writes.is_empty() {
            return Ok(());
        }
        let _operation = self.inner.operations.begin();
        let sync = self.inner.flush == Flush::Always && !Mutant::UnsyncedLog.is_on();
        self.table().commit(&writes.rows, sync).map_err(|failure| self.failed(failure))
    }

    /// Everything that was committed is on stable storage, whatever `Flush` says.
    pub fn sync(&self) -> Result<(), LogError> {
        let _operation = self.inner.operations.begin();
        self.table().sync().map_err(|failure| self.failed(failure))
    }

    /// Writes what is in memory to files of its own, so that opening the directory again takes no further room.
    pub fn flush(&self) -> Result<(), LogError> {
        self.table().flush().map_err(|failure| self.failed(failure))
    }

    pub(crate) fn table(&self) -> &dyn Table {
        &*self.inner.table
    }

    pub(crate) fn failed(&self, reason: Failure) -> LogError {
        LogError::Io { path: self.inner.path.clone(), reason }
    }
}

#[cfg(test)]
mod tests;
