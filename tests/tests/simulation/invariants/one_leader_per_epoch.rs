//! P2: at most one leader per partition and leader epoch, and neither leader epoch nor partition epoch goes back.

use std::collections::HashMap;

use quorate_metadata::ids::{BrokerId, LeaderEpoch, PartitionEpoch, TopicPartition};

use super::Invariant;
use crate::observe::{Images, Seen};

#[derive(Default)]
pub struct OneLeaderPerEpoch {
    images: Images,
    last: HashMap<TopicPartition, (LeaderEpoch, PartitionEpoch)>,
    leaders: HashMap<(TopicPartition, LeaderEpoch), BrokerId>,
}

impl Invariant for OneLeaderPerEpoch {
    fn name(&self) -> &'static str {
        "one leader per epoch"
    }

    fn check(&mut self, seen: &Seen) -> Result<(), String> {
        let Some(image) = self.images.next(seen) else { return Ok(()) };
        for (id, partition) in image.partitions() {
            let now = (partition.leader_epoch, partition.partition_epoch);
            let before = self.last.insert(id, now).unwrap_or(now);
            if now.0 < before.0 || now.1 < before.1 {
                return Err(format!("{id}: its epochs went from {before:?} back to {now:?}"));
            }
            let Some(leader) = partition.leader else { continue };
            let first = *self.leaders.entry((id, now.0)).or_insert(leader);
            if first != leader {
                return Err(format!("{id}: {first} and {leader} both lead in epoch {}", now.0));
            }
        }
        Ok(())
    }
}
