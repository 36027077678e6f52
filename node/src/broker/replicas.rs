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

/// Where a replica has its place, or is about to get it.
#[derive(Clone)]
pub struct Place {
    pub shard: ShardHandle,
    pub claim: Claim,
}

/// The last request for a place. A deletion names the claim that it ends: a place that was claimed again meanwhile is kept,
/// because changes of role for it are waiting behind the deletion.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Claim(u64);

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
    /// Of each replica that has a place, open or not.
    claims: BTreeMap<TopicPartition, Claim>,
    claimed: u64,
    /// How many replicas each directory has, open or not.
    counts: BTreeMap<DirectoryId, usize>,
}

impl Replicas {
    /// One that is open.
    pub fn get(&self, id: TopicPartition) -> Option<ReplicaHandle> {
        self.read().open.get(&id).cloned()
    }

    /// The place of the replica, whether or not it is open.
    pub fn place_of(&self, id: TopicPartition) -> Option<Place> {
        let table = self.read();
        let shard = table.shard_of(id)?.clone();
        Some(Place { shard, claim: *table.claims.get(&id)? })
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

    /// Claims a place in the directory of `shard` for replicas that are there, or about to be created there: what changes or
    /// deletes them has to stand in line there, also before they are open. A replica that has its place keeps it, and a
    /// deletion that was sent before takes it away no more.
    pub fn place(&self, ids: impl IntoIterator<Item = TopicPartition>, shard: &ShardHandle) {
        let mut table = self.write();
        for id in ids {
            if table.shard_of(id).is_none() {
                table.unopened.insert(id, shard.clone());
                *table.counts.entry(shard.directory()).or_default() += 1;
            }
            table.claim(id);
        }
    }

    /// Opened where it has its place.
    pub fn insert(&self, id: TopicPartition, handle: ReplicaHandle) {
        let mut table = self.write();
        let directory = handle.shard.directory();
        debug_assert!(table.shard_of(id).is_none_or(|shard| shard.directory() == directory), "{id} has another place");
        let was_counted = table.unopened.remove(&id).is_some() | table.open.insert(id, handle).is_some();
        if !was_counted {
            *table.counts.entry(directory).or_default() += 1;
            table.claim(id);
        }
    }

    /// The replica is gone from the directory that it had its place in, and so is the place if `claim` was the last one.
    pub fn remove(&self, id: TopicPartition, claim: Claim) {
        let mut table = self.write();
        let open = table.open.remove(&id).map(|replica| replica.shard);
        let Some(shard) = open.or_else(|| table.unopened.remove(&id)) else { return };
        if table.claims.get(&id) != Some(&claim) {
            table.unopened.insert(id, shard);
            return;
        }
        table.claims.remove(&id);
        if let Some(count) = table.counts.get_mut(&shard.directory()) {
            *count -= 1;
        }
    }

    /// The directories are closed.
    pub fn clear(&self) {
        *self.write() = Table::default();
    }

    fn read(&self) -> RwLockReadGuard<'_, Table> {
        self.table.read().expect(UNPOISONED)
    }

    fn write(&self) -> RwLockWriteGuard<'_, Table> {
        self.table.write().expect(UNPOISONED)
    }
}

impl Table {
    fn shard_of(&self, id: TopicPartition) -> Option<&ShardHandle> {
        self.open.get(&id).map(|replica| &replica.shard).or_else(|| self.unopened.get(&id))
    }

    fn claim(&mut self, id: TopicPartition) {
        self.claimed += 1;
        self.claims.insert(id, Claim(self.claimed));
    }
}

const UNPOISONED: &str = "no one panics while holding the replicas";

#[cfg(test)]
mod tests {
    use quorate_log::{Flush, LogDirectory, MemoryLogs};
    use quorate_metadata::ids::{PartitionId, TopicId};

    use super::*;

    #[test]
    fn a_replica_keeps_its_place_until_its_last_claim_ends() {
        let id = TopicPartition::new(TopicId::default(), PartitionId::new(0));
        let [here, elsewhere] = [1, 2].map(|id| {
            let logs = MemoryLogs::new(DirectoryId::from_bytes([id; 16]));
            ShardHandle::new(&LogDirectory::in_memory(&logs, Flush::Os)).0
        });
        let replicas = Replicas::default();
        let claim = || replicas.place_of(id).expect("it has its place").claim;
        replicas.place([id], &here);
        let first = claim();
        replicas.place([id], &elsewhere);
        replicas.remove(id, first);
        assert_eq!((replicas.count_in(&here), replicas.count_in(&elsewhere)), (1, 0));
        assert_eq!(replicas.place_of(id).map(|place| place.shard.directory()), Some(here.directory()));
        replicas.remove(id, claim());
        assert!(replicas.place_of(id).is_none() && replicas.all_ids().is_empty());
        assert_eq!(replicas.count_in(&here), 0);
    }
}
