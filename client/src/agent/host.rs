//! What a partitioned system implements to be driven by the agent.

use std::collections::BTreeMap;
use std::sync::Arc;

use quorate_metadata::ids::{LeaderEpoch, Offset, TopicPartition};
use quorate_metadata::record::Partition;

/// What the metadata says of one partition that has a replica on this broker.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Assignment {
    pub id: TopicPartition,
    /// The topic's name: for people only, because a topic that is created again has the same name and another id.
    pub topic: String,
    pub state: Arc<Partition>,
    /// The topic's configs that its kind brings: those that begin with its name, such as `counter.window.ms`. The control
    /// plane does not know what they take, so a value may be anything.
    pub configs: Arc<BTreeMap<String, String>>,
    /// The metadata offset that this was read at.
    pub offset: Offset,
}

impl Assignment {
    pub fn leader_epoch(&self) -> LeaderEpoch {
        self.state.leader_epoch
    }
}

/// Why a replica has to stop.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OfflineReason {
    /// The partition has no leader.
    Leaderless,
    /// The metadata does not know the partition any more, and does not say that it was deleted.
    Unknown,
    /// This broker's lease has ended, or it is fenced: it leads nothing until it is told to lead again.
    LeaseEnded,
}

/// Why a replica is to be deleted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DeleteReason {
    /// The topic was deleted.
    TopicDeleted,
    /// The replica was moved to another broker.
    Reassigned,
}

/// The replicas on one broker. The agent calls one method at a time, in the order of the metadata; each should hand
/// its work over and return, because the next change waits for it.
///
/// Calls repeat: the same role is stated again, at the same leader epoch, whenever the partition's state has changed
/// (its ISR, say), or the topic's configs have. What was true before a call is replaced by what it says.
#[tonic::async_trait]
pub trait PartitionHost: Send + Sync + 'static {
    /// The replicas that this broker keeps on its disks: asked once, before the first call of another method.
    fn hosted(&self) -> Vec<TopicPartition>;

    async fn become_leader(&self, assignment: Assignment);

    /// `assignment.state.leader` is the one to follow, never this broker.
    async fn become_follower(&self, assignment: Assignment);

    /// Neither leads nor follows for now, and keeps its data.
    async fn become_offline(&self, assignment: Assignment, reason: OfflineReason);

    async fn delete_replica(&self, id: TopicPartition, reason: DeleteReason);

    /// The metadata does not know this replica, and does not say that it was deleted or moved: it neither leads nor follows,
    /// and keeps its data until an operator decides.
    async fn found_stray(&self, _id: TopicPartition) {}
}
