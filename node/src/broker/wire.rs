//! Between the messages of replication and what they mean.

use quorate_log::LogOffset;
use quorate_metadata::ids::{LeaderEpoch, PartitionId, TopicId, TopicPartition};
use quorate_metadata::{ApiError, ErrorName};
use quorate_proto::log;

use super::replica::Position;

pub fn replica_to_wire(id: TopicPartition) -> log::ReplicaRef {
    let topic_id = bytes::Bytes::copy_from_slice(id.topic.as_bytes());
    log::ReplicaRef { topic_id, partition: id.partition.get() }
}

pub fn replica_from_wire(replica: Option<&log::ReplicaRef>) -> Result<TopicPartition, ApiError> {
    let invalid = || ApiError::new(ErrorName::InvalidRequest, "a replica is missing, or its topic id is not 16 bytes");
    let replica = replica.ok_or_else(invalid)?;
    let topic: [u8; 16] = replica.topic_id.as_ref().try_into().map_err(|_| invalid())?;
    Ok(TopicPartition::new(TopicId::from_bytes(topic), PartitionId::new(replica.partition)))
}

pub fn position_to_wire(position: &Position) -> log::ReplicaPosition {
    log::ReplicaPosition {
        replica: Some(replica_to_wire(position.id)),
        leader_epoch: position.leader_epoch.get(),
        fetch_offset: position.fetch_offset.0,
        last_fetched_epoch: position.last_fetched_epoch.map(LeaderEpoch::get),
        max_bytes: u32::try_from(position.max_bytes).unwrap_or(u32::MAX),
        high_watermark: position.high_watermark.0,
    }
}

pub fn position_from_wire(position: &log::ReplicaPosition) -> Result<Position, ApiError> {
    if position.fetch_offset < 0 {
        let message = format!("fetch offset {} is negative", position.fetch_offset);
        return Err(ApiError::new(ErrorName::InvalidRequest, message));
    }
    Ok(Position {
        id: replica_from_wire(position.replica.as_ref())?,
        leader_epoch: LeaderEpoch::new(position.leader_epoch),
        fetch_offset: LogOffset(position.fetch_offset),
        last_fetched_epoch: position.last_fetched_epoch.map(LeaderEpoch::new),
        max_bytes: usize::try_from(position.max_bytes).unwrap_or(usize::MAX),
        high_watermark: LogOffset(position.high_watermark),
    })
}
