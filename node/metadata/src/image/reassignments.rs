//! The operations that move replicas, each with the partitions that it still moves.
//!
//! A partition leaves its operation with the record that ends its reassignment, whichever plan that record is of, and an
//! operation is gone with its last partition: neither it nor its throttle can be left over.

use std::sync::Arc;

use imbl::OrdMap;

use super::canonical::Entity;
use super::verify::Violation;
use super::{MetadataImage, ReplayError};
use crate::ids::{BrokerId, PartitionId, ReassignmentId, TopicId, TopicPartition};
use crate::record::{ReassignedPartition, ReassignmentStart, Record};

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reassignment {
    pub id: ReassignmentId,
    /// Those under way, each with the replicas it had before.
    pub partitions: OrdMap<TopicPartition, Vec<BrokerId>>,
    /// New replicas are not filled while it is.
    pub paused: bool,
    /// How fast a broker may fill new replicas; `None` is as fast as it can.
    pub throttle_bytes_per_second: Option<u64>,
    pub started_ms: i64,
}

impl Reassignment {
    /// What of it changes as a whole, beside its partitions.
    fn terms(&self) -> Entity<'_> {
        let Self { id, partitions: _, paused, throttle_bytes_per_second, started_ms } = *self;
        Entity::Reassignment { id, paused, throttle_bytes_per_second, started_ms }
    }

    pub(super) fn entities<'a>(&'a self) -> impl Iterator<Item = Entity<'a>> {
        let entity = |(&partition, original): (&TopicPartition, &'a Vec<BrokerId>)| Entity::Reassigned {
            id: self.id,
            partition,
            original,
        };
        std::iter::once(self.terms()).chain(self.partitions.iter().map(entity))
    }

    pub(super) fn to_record(&self) -> Record {
        let partition = |(&id, original): (&TopicPartition, &Vec<BrokerId>)| {
            let original = original.clone();
            ReassignedPartition { id, original }
        };
        Record::BeginReassignment(ReassignmentStart {
            id: self.id,
            partitions: self.partitions.iter().map(partition).collect(),
            paused: self.paused,
            throttle_bytes_per_second: self.throttle_bytes_per_second,
            started_ms: Some(self.started_ms),
        })
    }
}

impl MetadataImage {
    /// The operation that moves this partition, if one does.
    pub fn reassignment_of(&self, partition: TopicPartition) -> Option<&Reassignment> {
        let id = self.reassigning.get(&partition)?;
        self.reassignments.get(id).map(AsRef::as_ref)
    }

    pub(super) fn begin_reassignment(&mut self, start: &ReassignmentStart) -> Result<(), ReplayError> {
        let ReassignmentStart { id, partitions, paused, throttle_bytes_per_second, started_ms } = start;
        if self.reassignments.contains_key(id) {
            return Err(ReplayError::ReassignmentExists(*id));
        }
        let mut begun = Reassignment {
            id: *id,
            partitions: OrdMap::new(),
            paused: *paused,
            throttle_bytes_per_second: *throttle_bytes_per_second,
            started_ms: started_ms.unwrap_or(self.timestamp_ms),
        };
        for ReassignedPartition { id: partition, original } in partitions {
            if self.partition(*partition).is_none() {
                return Err(ReplayError::UnknownPartition(*partition));
            }
            self.leave_reassignment(*partition);
            self.reassigning.insert(*partition, *id);
            begun.partitions.insert(*partition, original.clone());
        }
        begun.entities().for_each(|entity| self.digest.add(entity));
        self.reassignments.insert(*id, Arc::new(begun));
        Ok(())
    }

    pub(super) fn change_reassignment(
        &mut self,
        id: ReassignmentId,
        paused: bool,
        throttle_bytes_per_second: Option<u64>,
    ) -> Result<(), ReplayError> {
        let operation = self.reassignments.get_mut(&id).ok_or(ReplayError::UnknownReassignment(id))?;
        self.digest.remove(operation.terms());
        let operation = Arc::make_mut(operation);
        operation.paused = paused;
        operation.throttle_bytes_per_second = throttle_bytes_per_second;
        self.digest.add(operation.terms());
        Ok(())
    }

    /// The partition no longer moves, or no longer for the operation that it belongs to.
    pub(super) fn leave_reassignment(&mut self, partition: TopicPartition) {
        let Some(id) = self.reassigning.remove(&partition) else { return };
        // While an operation begins it is not there yet: a partition that it names twice has nothing to leave.
        let Some(operation) = self.reassignments.get_mut(&id) else { return };
        let operation = Arc::make_mut(operation);
        if let Some(original) = operation.partitions.remove(&partition) {
            self.digest.remove(Entity::Reassigned { id, partition, original: &original });
        }
        if operation.partitions.is_empty() {
            self.digest.remove(operation.terms());
            self.reassignments.remove(&id);
        }
    }

    /// As `leave_reassignment`, of every partition of the topic. The cost is that of those which move.
    pub(super) fn leave_reassignments(&mut self, topic: TopicId) {
        let (first, last) = (PartitionId::new(0), PartitionId::new(i32::MAX));
        let all = TopicPartition::new(topic, first)..=TopicPartition::new(topic, last);
        let moving: Vec<TopicPartition> = self.reassigning.range(all).map(|(&id, _)| id).collect();
        moving.into_iter().for_each(|id| self.leave_reassignment(id));
    }

    /// That a partition belongs to an operation exactly if it is being reassigned.
    pub(super) fn check_reassigning(&self, id: TopicPartition, found: &mut Vec<Violation>) {
        let is_reassigning = self.partition(id).is_some_and(|partition| partition.is_reassigning());
        match self.reassigning.get(&id) {
            Some(&reassignment) if !is_reassigning => found.push(Violation::ReassignmentIsOver { id, reassignment }),
            None if is_reassigning => found.push(Violation::ReassignmentOfNobody(id)),
            Some(_) | None => {}
        }
    }

    pub(super) fn check_reassignment(&self, id: ReassignmentId, found: &mut Vec<Violation>) {
        let Some(operation) = self.reassignments.get(&id) else { return };
        if operation.partitions.is_empty() {
            found.push(Violation::ReassignmentOfNothing(id));
        }
        if id.get() >= self.next_offset.get() {
            found.push(Violation::ReassignmentAhead { id, next_offset: self.next_offset });
        }
    }

    /// That the index of partitions under way is the one that the operations make.
    pub(super) fn check_reassignment_index(&self, found: &mut Vec<Violation>) {
        let of = |operation: &Arc<Reassignment>| {
            let id = operation.id;
            operation.partitions.keys().map(move |&partition| (partition, id)).collect::<Vec<_>>()
        };
        let built: OrdMap<TopicPartition, ReassignmentId> = self.reassignments.values().flat_map(of).collect();
        if built != self.reassigning {
            found.push(Violation::IndexDiffers { list: "reassigning" });
        }
    }
}
