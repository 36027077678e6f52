//! The part of `quorate.admin.v1.Admin` that moves replicas.

use std::time::Duration;

use prost::Message;
use quorate_metadata::ApiError;
use quorate_metadata::ids::{BrokerId, PartitionId, ReassignmentId};
use quorate_metadata::plan::reassignment::{
    self, Cancelled, ChangeReassignment, MoveReplica, PartitionRef, Progress, StartReassignment,
};
use quorate_proto::admin::*;
use tonic::{Request, Response, Status};

use super::admin::remote;
use super::gateway::Gateway;
use super::request::{invalid, item_error, passage, result, terms};

pub async fn start(
    gateway: &Gateway,
    request: Request<StartReassignmentRequest>,
) -> Result<Response<StartReassignmentReply>, Status> {
    let forwarded = Gateway::was_forwarded(&request);
    let body = request.into_inner();
    let terms = terms(body.options.as_ref()).map_err(|error| gateway.status(&error))?;
    let local = |body: StartReassignmentRequest, left: Duration| async move {
        let wanted = StartReassignment {
            targets: body.partitions.iter().map(target).collect::<Result<_, _>>()?,
            throttle_bytes_per_second: body.throttle_bytes_per_second,
        };
        let terms = terms.weighing(body.encoded_len(), wanted.targets.len());
        gateway
            .controller
            .mutate(
                "start-reassignment",
                terms.within(left),
                move |image, _| reassignment::start(image, &wanted),
                move |started, position, planned| StartReassignmentReply {
                    result: result(position, planned),
                    id: started.id.map(ReassignmentId::get),
                    partitions: body
                        .partitions
                        .iter()
                        .cloned()
                        .zip(started.partitions)
                        .map(|(asked, started)| StartedPartition {
                            partition: asked.partition,
                            error: item_error(&started),
                            progress: started.map_or("", progress).to_owned(),
                        })
                        .collect(),
                },
            )
            .await
    };
    let remote = |channel, request| async move { remote(channel).start_reassignment(request).await };
    gateway.route(passage(forwarded, &terms), body, local, remote).await
}

pub async fn cancel(
    gateway: &Gateway,
    request: Request<CancelReassignmentRequest>,
) -> Result<Response<CancelReassignmentReply>, Status> {
    let forwarded = Gateway::was_forwarded(&request);
    let body = request.into_inner();
    let terms = terms(body.options.as_ref()).map_err(|error| gateway.status(&error))?;
    let local = |body: CancelReassignmentRequest, left: Duration| async move {
        let what = cancelled(&body)?;
        gateway
            .controller
            .mutate(
                "cancel-reassignment",
                terms.within(left),
                move |image, _| reassignment::cancel(image, &what, body.force),
                |cancelled, position, planned| CancelReassignmentReply {
                    result: result(position, planned),
                    partitions: cancelled
                        .into_iter()
                        .map(|(asked, cancelled)| CancelledPartition {
                            partition: Some(quorate_proto::admin::TopicPartition {
                                topic: asked.topic,
                                partition: asked.partition.get(),
                            }),
                            error: item_error(&cancelled),
                        })
                        .collect(),
                },
            )
            .await
    };
    let remote = |channel, request| async move { remote(channel).cancel_reassignment(request).await };
    gateway.route(passage(forwarded, &terms), body, local, remote).await
}

pub async fn change(
    gateway: &Gateway,
    request: Request<ChangeReassignmentRequest>,
) -> Result<Response<ChangeReassignmentReply>, Status> {
    let forwarded = Gateway::was_forwarded(&request);
    let body = request.into_inner();
    let terms = terms(body.options.as_ref()).map_err(|error| gateway.status(&error))?;
    let local = |body: ChangeReassignmentRequest, left: Duration| async move {
        let wanted = ChangeReassignment {
            paused: body.paused,
            throttle_bytes_per_second: body.throttle_bytes_per_second.map(|limit| (limit > 0).then_some(limit)),
        };
        gateway
            .controller
            .mutate(
                "change-reassignment",
                terms.within(left),
                move |image, _| reassignment::change(image, ReassignmentId::new(body.id), wanted),
                |(), position, planned| ChangeReassignmentReply { result: result(position, planned) },
            )
            .await
    };
    let remote = |channel, request| async move { remote(channel).change_reassignment(request).await };
    gateway.route(passage(forwarded, &terms), body, local, remote).await
}

pub async fn move_replica(
    gateway: &Gateway,
    request: Request<MoveReplicaRequest>,
) -> Result<Response<MoveReplicaReply>, Status> {
    let forwarded = Gateway::was_forwarded(&request);
    let body = request.into_inner();
    let terms = terms(body.options.as_ref()).map_err(|error| gateway.status(&error))?;
    let local = |body: MoveReplicaRequest, left: Duration| async move {
        let wanted = relocation(&body)?;
        gateway
            .controller
            .mutate(
                "move-replica",
                terms.within(left),
                move |image, _| reassignment::move_replica(image, &wanted),
                |(), position, planned| MoveReplicaReply { result: result(position, planned) },
            )
            .await
    };
    let remote = |channel, request| async move { remote(channel).move_replica(request).await };
    gateway.route(passage(forwarded, &terms), body, local, remote).await
}

fn relocation(body: &MoveReplicaRequest) -> Result<MoveReplica, ApiError> {
    let partition = body.partition.as_ref().ok_or_else(|| invalid("the partition is missing"))?;
    let directory = &body.directory;
    let directory = directory.parse().map_err(|error| invalid(format!("directory {directory:?}: {error}")))?;
    Ok(MoveReplica { partition: partition_ref(partition), broker: BrokerId::new(body.broker), directory })
}

fn target(asked: &PartitionTarget) -> Result<(PartitionRef, Vec<BrokerId>), ApiError> {
    let partition = asked.partition.as_ref().ok_or_else(|| invalid("a partition is missing"))?;
    Ok((partition_ref(partition), asked.replicas.iter().copied().map(BrokerId::new).collect()))
}

fn partition_ref(partition: &quorate_proto::admin::TopicPartition) -> PartitionRef {
    PartitionRef { topic: partition.topic.clone(), partition: PartitionId::new(partition.partition) }
}

fn cancelled(body: &CancelReassignmentRequest) -> Result<Cancelled, ApiError> {
    match (body.id, &body.partitions[..]) {
        (Some(id), []) => Ok(Cancelled::Operation(ReassignmentId::new(id))),
        (None, partitions @ [_, ..]) => Ok(Cancelled::Partitions(partitions.iter().map(partition_ref).collect())),
        (Some(_), [_, ..]) | (None, []) => Err(invalid("either the id of a reassignment or a list of partitions")),
    }
}

fn progress(progress: Progress) -> &'static str {
    match progress {
        Progress::Moving => "moving",
        Progress::Done => "done",
        Progress::Unchanged => "unchanged",
    }
}
