//! How fast a replica that is being added may fetch: what its reassignment says, and no longer than that.

use std::collections::BTreeMap;

use quorate_metadata::MetadataImage;
use quorate_metadata::ids::{BrokerId, ReassignmentId, TopicPartition};
use quorate_metadata::image::Reassignment;

/// The operations that slow this directory's replicas down.
#[derive(Default)]
pub struct Pacing {
    /// When each operation may fetch again.
    free_at_ms: BTreeMap<ReassignmentId, i64>,
}

impl Pacing {
    /// The terms of the operation have changed: what was spent under another throttle is forgiven.
    pub fn forgive(&mut self, operation: ReassignmentId) {
        self.free_at_ms.remove(&operation);
    }

    /// The replica has fetched so much: when it may go on, if not at once.
    pub fn spend(
        &mut self,
        image: &MetadataImage,
        broker: BrokerId,
        id: TopicPartition,
        bytes: usize,
        now_ms: i64,
    ) -> Option<i64> {
        self.free_at_ms.retain(|operation, _| image.reassignments.contains_key(operation));
        let operation = adding(image, broker, id)?;
        let rate = operation.throttle_bytes_per_second?.max(1);
        let takes_ms = i64::try_from(bytes as u64 * 1_000 / rate).unwrap_or(i64::MAX);
        let free_at_ms = self.free_at_ms.entry(operation.id).or_insert(now_ms);
        *free_at_ms = (*free_at_ms).max(now_ms).saturating_add(takes_ms);
        Some(*free_at_ms)
    }
}

/// The operation that adds this broker's replica. One that is in sync is needed by producers, and not slowed down.
pub fn adding(image: &MetadataImage, broker: BrokerId, id: TopicPartition) -> Option<&Reassignment> {
    let partition = image.partition(id)?;
    let is_added = partition.adding().contains(&broker) && !partition.isr.contains(&broker);
    if is_added { image.reassignment_of(id) } else { None }
}
