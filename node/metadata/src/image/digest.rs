//! A number that two images share if they hold the same, kept at the cost of what changes.
//!
//! The sum, without carry out, of the hash of every entity: the order in which they came does not matter, and one that
//! goes is subtracted. It finds bugs and rot, not forgery: an attacker could search for a collision.

use std::fmt;

use xxhash_rust::xxh3::xxh3_128;

use super::canonical::Entity;
use super::{MetadataImage, Topic};

#[derive(Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Digest(u128);

impl Digest {
    pub(super) fn get(self) -> u128 {
        self.0
    }

    pub(super) fn of(entity: Entity<'_>) -> Self {
        Self(xxh3_128(&entity.encode()))
    }

    pub(super) fn add(&mut self, entity: Entity<'_>) {
        self.add_sum(Self::of(entity));
    }

    pub(super) fn remove(&mut self, entity: Entity<'_>) {
        self.remove_sum(Self::of(entity));
    }

    /// Adds all that `sum` was made of.
    pub(super) fn add_sum(&mut self, sum: Self) {
        self.0 = self.0.wrapping_add(sum.0);
    }

    pub(super) fn remove_sum(&mut self, sum: Self) {
        self.0 = self.0.wrapping_sub(sum.0);
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:032x}", self.0)
    }
}

impl Topic {
    /// The sum of the partitions' hashes, computed from nothing but the partitions.
    pub(super) fn recompute_digest(&self) -> Digest {
        let mut digest = Digest::default();
        for (id, state) in self.partitions() {
            digest.add(Entity::Partition { id, state });
        }
        digest
    }
}

impl MetadataImage {
    /// The digest computed from the contents and the topics' sums, for comparison with the one that was kept.
    pub(super) fn recompute_digest(&self) -> Digest {
        let mut digest = Digest::default();
        self.cluster.into_iter().map(Entity::Cluster).for_each(|entity| digest.add(entity));
        for (name, &level) in &self.features {
            digest.add(Entity::Feature { name, level });
        }
        self.controllers.values().for_each(|controller| digest.add(Entity::Controller(controller)));
        self.brokers.values().for_each(|broker| digest.add(Entity::Broker(broker)));
        for topic in self.topics.values() {
            digest.add(Entity::Topic { id: topic.id, name: &topic.name, kind: &topic.kind });
            digest.add_sum(topic.partitions_digest);
        }
        self.removed_topics.entities().for_each(|entity| digest.add(entity));
        for (resource, entries) in &self.configs {
            for (key, value) in entries {
                digest.add(Entity::Config { resource, key, value });
            }
        }
        if self.next_producer_id > 0 {
            digest.add(Entity::ProducerIds { next: self.next_producer_id });
        }
        for operation in self.reassignments.values() {
            operation.entities().for_each(|entity| digest.add(entity));
        }
        self.requests.for_each_entity(|entity| digest.add(entity));
        digest
    }
}

#[cfg(test)]
mod tests {
    use super::{Digest, Entity};
    use crate::ids::DirectoryId;
    use crate::image::METADATA_VERSION;
    use crate::image::fixture::{batch, broker, change, feature, image, partition_id};
    use crate::record::{LeaderRecoveryState, PartitionChange, Record};

    /// Nodes of different builds compare digests, and snapshots carry them: the bytes that are hashed never change.
    #[test]
    fn digest_of_a_known_image_never_changes() {
        let mut image = image();
        assert_eq!(format!("{:032x}", image.digest()), "89ed2f3d73ecef8b22daf1b57bde68c5");
        let list = |ids: &[i32]| Some(ids.iter().map(|&id| broker(id)).collect());
        let moved = PartitionChange {
            replicas: list(&[1, 2, 3, 4]),
            directories: Some((0..4).map(|at| DirectoryId::from_bytes([at; 16])).collect()),
            isr: list(&[2, 1]),
            elr: list(&[3]),
            adding: list(&[4]),
            removing: list(&[1]),
            leader: Some(Some(broker(2))),
            recovery: Some(LeaderRecoveryState::Recovering),
            unclean: true,
            ..change(partition_id(0))
        };
        let lost = PartitionChange {
            isr: list(&[]),
            leader: Some(None),
            last_known_elr: list(&[2]),
            ..change(partition_id(1))
        };
        let records = [Record::PartitionChange(moved), Record::PartitionChange(lost)];
        image.replay(&batch(2, &records)).expect("the records of this test replay");
        assert_eq!(format!("{:032x}", image.digest()), "87f57b4136bcc8645f9ccf9d16d9c5c9");
    }

    /// Otherwise nodes would hash a large image while the cluster waits, and earlier releases could not follow.
    #[test]
    fn a_raised_level_changes_its_own_part_of_the_digest_alone() {
        let mut image = image();
        let part = |level| Digest::of(Entity::Feature { name: METADATA_VERSION, level }).get();
        let expected = image.digest().wrapping_sub(part(1)).wrapping_add(part(2));
        image.replay(&batch(2, &[feature(METADATA_VERSION, 2)])).expect("a feature level always replays");
        assert_eq!(image.digest(), expected);
    }
}
