//! The partitions that a batch changes, until the index takes the changes over.

use std::sync::Arc;

use crate::ids::TopicPartition;
use crate::record::Partition;

/// In the order of the records.
#[derive(Debug, Default)]
pub(super) struct PartitionChanges(Vec<ChangedState>);

#[derive(Debug)]
pub(super) struct ChangedState {
    pub id: TopicPartition,
    /// `None` before it is created.
    pub before: Option<Arc<Partition>>,
    /// `None` when it is gone.
    pub after: Option<Arc<Partition>>,
}

impl PartitionChanges {
    pub(super) fn len(&self) -> usize {
        self.0.len()
    }

    pub(super) fn add(&mut self, id: TopicPartition, before: Option<Arc<Partition>>, after: Option<Arc<Partition>>) {
        self.0.push(ChangedState { id, before, after });
    }

    /// A slice for each topic, never empty. The changes of a partition keep their order.
    pub(super) fn by_topic(&mut self) -> impl Iterator<Item = &[ChangedState]> {
        self.0.sort_by_key(|change| change.id.topic);
        self.0.chunk_by(|one, next| one.id.topic == next.id.topic)
    }
}
