//! Finding the replica that a call is about, and saying where else to ask.

use quorate_metadata::ids::{LeaderEpoch, PartitionId, TopicId, TopicPartition};
use quorate_metadata::record::Endpoint;
use quorate_metadata::{ApiError, ErrorName};
use quorate_proto::log::CurrentLeader;

use crate::api::request::topic_id;
use crate::broker::{DataPlane, Published, ReplicaHandle, RoleName, check_epoch};

pub fn parse(topic: &str, partition: i32) -> Result<TopicPartition, ApiError> {
    Ok(TopicPartition::new(topic_id(topic)?, PartitionId::new(partition)))
}

/// The replica on this broker.
pub fn hosted(plane: &DataPlane, id: TopicPartition) -> Result<ReplicaHandle, ApiError> {
    plane.replica(id).ok_or_else(|| {
        let image = plane.metadata().image();
        if image.topic(id.topic).is_none() {
            unknown_topic(id.topic)
        } else if image.partition(id).is_none() {
            ApiError::new(ErrorName::UnknownTopicOrPartition, format!("the topic has no partition {}", id.partition))
        } else {
            not_here(id)
        }
    })
}

/// Whether this broker may answer for the leader of the partition, or where `any_replica` will do, for a replica.
pub fn check(
    plane: &DataPlane,
    id: TopicPartition,
    replica: &Published,
    leader_epoch: Option<i32>,
    any_replica: bool,
) -> Result<(), ApiError> {
    let leads = replica.role == RoleName::Leader && plane.may_lead(id, replica.leader_epoch);
    let follows = any_replica && replica.role == RoleName::Follower;
    if !leads && !follows {
        return Err(not_here(id));
    }
    check_epoch(leader_epoch.map(LeaderEpoch::new), replica.leader_epoch)
}

pub fn unknown_topic(topic: TopicId) -> ApiError {
    ApiError::new(ErrorName::UnknownTopicId, format!("no topic has the id {topic}"))
}

pub fn not_here(id: TopicPartition) -> ApiError {
    ApiError::new(ErrorName::NotLeaderOrFollower, format!("this broker does not lead {id}"))
}

/// Where a caller who came to the wrong broker should go (KIP-951).
pub fn current_leader(plane: &DataPlane, id: TopicPartition, error: &ApiError) -> Option<CurrentLeader> {
    let is_about_leader = matches!(
        error.name,
        ErrorName::NotLeaderOrFollower
            | ErrorName::FencedLeaderEpoch
            | ErrorName::KafkaStorageError
            | ErrorName::OutcomeUnknown
    );
    if !is_about_leader {
        return None;
    }
    let image = plane.metadata().image();
    let partition = image.partition(id)?;
    let registered = partition.leader.and_then(|leader| image.broker(leader));
    let endpoint = registered.and_then(|broker| broker.endpoints.first()).map(Endpoint::authority).unwrap_or_default();
    Some(CurrentLeader {
        broker: partition.leader.map(|leader| leader.get()),
        leader_epoch: partition.leader_epoch.get(),
        endpoint,
    })
}
