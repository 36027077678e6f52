//! The replicas on this broker, for whoever has to find one.

use std::collections::BTreeMap;
use std::sync::{Arc, RwLock, RwLockReadGuard, RwLockWriteGuard};

use quorate_log::LogReader;
use quorate_metadata::ids::{DirectoryId, TopicPartition};
use tokio::sync::watch;

use super::replica::Published;
use super::shard::ShardHandle;

#[derive(Clone)]
pub struct ReplicaHandle {
    pub shard: ShardHandle,
    pub published: watch::Receiver<Published>,
    pub reader: LogReader,
}

/// Cheap to clone; all clones see the same. Written when a replica comes or goes, never held for long.
#[derive(Clone, Default)]
pub struct Replicas {
    table: Arc<RwLock<Table>>,
}

#[derive(Default)]
struct Table {
    open: BTreeMap<TopicPartition, ReplicaHandle>,
    /// On the disk or about to be created, and not open yet: nothing is served of them.
    unopened: BTreeMap<TopicPartition, ShardHandle>,
    /// How many replicas each directory has, open or not.
    counts: BTreeMap<DirectoryId, usize>,
}

impl Replicas {
    /// One that is open.
    pub fn get(&self, id: TopicPartition) -> Option<ReplicaHandle> {
        self.read().open.get(&id).cloned()
    }

    /// The owner of the directory that has the replica, whether or not it is open.
    pub fn shard_of(&self, id: TopicPartition) -> Option<ShardHandle> {
        let table = self.read();
        table.open.get(&id).map(|replica| &replica.shard).or_else(|| table.unopened.get(&id)).cloned()
    }

    /// Those that are open.
    pub fn ids(&self) -> Vec<TopicPartition> {
        self.read().open.keys().copied().collect()
    }

    /// All that have their place here.
    pub fn all_ids(&self) -> Vec<TopicPartition> {
        let table = self.read();
        table.open.keys().chain(table.unopened.keys()).copied().collect()
    }

    /// How many replicas the directory of `shard` has.
    pub fn count_in(&self, shard: &ShardHandle) -> usize {
        self.read().counts.get(&shard.directory()).copied().unwrap_or(0)
    }

    /// The replica is in the directory of `shard`, or about to be created there: whoever wants it changed or deleted has to
    /// stand in line there, also before it is open. One that has its place keeps it.
    pub fn place(&self, ids: impl IntoIterator<Item = TopicPartition>, shard: &ShardHandle) {
        let mut table = self.write();
        for id in ids {
            if table.open.contains_key(&id) || table.unopened.contains_key(&id) {
                continue;
            }
            table.unopened.insert(id, shard.clone());
            *table.counts.entry(shard.directory()).or_default() += 1;
        }
    }

    pub fn insert(&self, id: TopicPartition, handle: ReplicaHandle) {
        let mut table = self.write();
        let directory = handle.shard.directory();
        let was_counted = table.unopened.remove(&id).is_some() | table.open.insert(id, handle).is_some();
        if !was_counted {
            *table.counts.entry(directory).or_default() += 1;
        }
    }

    /// It is gone from the directory of `shard`.
    pub fn remove(&self, id: TopicPartition, shard: &ShardHandle) {
        let directory = shard.directory();
        let mut table = self.write();
        let Table { open, unopened, counts } = &mut *table;
        let is_there = |other: &ShardHandle| other.directory() == directory;
        let was_open = open.get(&id).is_some_and(|replica| is_there(&replica.shard)) && open.remove(&id).is_some();
        let was_unopened = unopened.get(&id).is_some_and(is_there) && unopened.remove(&id).is_some();
        if (was_open || was_unopened)
            && let Some(count) = counts.get_mut(&directory)
        {
            *count -= 1;
        }
    }

    fn read(&self) -> RwLockReadGuard<'_, Table> {
        self.table.read().expect(UNPOISONED)
    }

    fn write(&self) -> RwLockWriteGuard<'_, Table> {
        self.table.write().expect(UNPOISONED)
    }
}

const UNPOISONED: &str = "no one panics while holding the replicas";
