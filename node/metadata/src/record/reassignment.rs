use crate::ids::{BrokerId, ReassignmentId, TopicPartition};

/// An operation that moves replicas, as it begins, or as it is in a snapshot.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ReassignmentStart {
    pub id: ReassignmentId,
    /// A partition of an older operation goes over to this one.
    pub partitions: Vec<ReassignedPartition>,
    /// New replicas are not filled while it is.
    pub paused: bool,
    /// How fast a broker may fill new replicas; `None` is as fast as it can.
    pub throttle_bytes_per_second: Option<u64>,
    /// Set in snapshots only: otherwise it is the time of the batch.
    pub started_ms: Option<i64>,
}

impl ReassignmentStart {
    pub(super) fn approximate_bytes(&self) -> usize {
        48 + self.partitions.iter().map(|partition| 36 + 6 * partition.original.len()).sum::<usize>()
    }
}

/// A partition that moves.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ReassignedPartition {
    pub id: TopicPartition,
    /// Its replicas from before: what cancelling leads back to.
    pub original: Vec<BrokerId>,
}
