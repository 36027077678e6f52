//! What the replicas on this broker are doing.

use quorate_metadata::ids::TopicPartition;
use quorate_metadata::{ApiError, ErrorName};
use quorate_proto::error::to_item;
use quorate_proto::log::{
    DescribeReplicasReply, DescribeReplicasRequest, EpochStart, FollowerProgress, LogDirectory, ReplicaDescription,
};

use super::partition;
use crate::broker::{DataPlane, Description, Progress};

pub async fn describe(plane: &DataPlane, request: DescribeReplicasRequest) -> DescribeReplicasReply {
    let mut replicas = Vec::new();
    if request.partitions.is_empty() {
        let mut ids = plane.replicas().ids();
        ids.sort_unstable();
        for id in ids {
            replicas.push(one(plane, id.topic.to_string(), id.partition.get()).await);
        }
    }
    for asked in request.partitions {
        replicas.push(one(plane, asked.topic_id, asked.partition).await);
    }
    DescribeReplicasReply { broker: plane.broker().get(), replicas, directories: directories(plane) }
}

fn directories(plane: &DataPlane) -> Vec<LogDirectory> {
    let directories = plane
        .shards()
        .iter()
        .map(|shard| LogDirectory { id: shard.directory().to_string(), path: shard.path().display().to_string() });
    directories.collect()
}

async fn one(plane: &DataPlane, topic_id: String, partition: i32) -> ReplicaDescription {
    let outcome = match partition::parse(&topic_id, partition) {
        Ok(id) => look_at(plane, id).await,
        Err(error) => Err(error),
    };
    match outcome {
        Ok(described) => ReplicaDescription { topic_id, partition, ..described },
        Err(error) => ReplicaDescription {
            topic_id,
            partition,
            error: Some(to_item(&error)),
            role: "offline".to_owned(),
            ..ReplicaDescription::default()
        },
    }
}

async fn look_at(plane: &DataPlane, id: TopicPartition) -> Result<ReplicaDescription, ApiError> {
    let none = || ApiError::new(ErrorName::ReplicaNotAvailable, format!("this broker has no replica of {id}"));
    let replica = plane.replica(id).ok_or_else(none)?;
    let described = replica.shard.describe(id).await?;
    let Description { published, bytes, epochs, followers } = described;
    Ok(ReplicaDescription {
        role: published.role.as_str().to_owned(),
        leader_epoch: published.leader_epoch.get(),
        log_start_offset: published.log_start.0,
        high_watermark: published.high_watermark.0,
        log_end_offset: published.log_end.0,
        bytes: i64::try_from(bytes).unwrap_or(i64::MAX),
        directory: replica.shard.directory().to_string(),
        epochs: epochs
            .into_iter()
            .map(|(epoch, start)| EpochStart { leader_epoch: epoch.get(), start_offset: start.0 })
            .collect(),
        followers: followers.into_iter().map(progress).collect(),
        stray: plane.is_stray(id),
        ..ReplicaDescription::default()
    })
}

fn progress(progress: Progress) -> FollowerProgress {
    FollowerProgress {
        broker: progress.broker.get(),
        in_sync: progress.in_sync,
        log_end_offset: progress.log_end.map(|end| end.0),
        offsets_left: progress.offsets_left,
        bytes_left: i64::try_from(progress.bytes_left).unwrap_or(i64::MAX),
        bytes_per_second: progress.bytes_per_second.map(|rate| i64::try_from(rate).unwrap_or(i64::MAX)),
        caught_up_ms_ago: progress.caught_up_ms_ago,
    }
}
