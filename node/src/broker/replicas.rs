//! The replicas on this broker, for whoever has to find one.

use std::collections::BTreeMap;
use std::sync::{Arc, RwLock};

use quorate_log::LogReader;
use quorate_metadata::ids::TopicPartition;
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
    by_id: Arc<RwLock<BTreeMap<TopicPartition, ReplicaHandle>>>,
}

impl Replicas {
    pub fn get(&self, id: TopicPartition) -> Option<ReplicaHandle> {
        self.by_id.read().expect(UNPOISONED).get(&id).cloned()
    }

    pub fn ids(&self) -> Vec<TopicPartition> {
        self.by_id.read().expect(UNPOISONED).keys().copied().collect()
    }

    pub fn insert(&self, id: TopicPartition, handle: ReplicaHandle) {
        self.by_id.write().expect(UNPOISONED).insert(id, handle);
    }

    pub fn remove(&self, id: TopicPartition) {
        self.by_id.write().expect(UNPOISONED).remove(&id);
    }

    /// How many replicas the directory of `shard` has.
    pub fn count_in(&self, shard: &ShardHandle) -> usize {
        let by_id = self.by_id.read().expect(UNPOISONED);
        by_id.values().filter(|replica| replica.shard.directory() == shard.directory()).count()
    }
}

const UNPOISONED: &str = "no one panics while holding the replicas";
