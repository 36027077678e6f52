//! The leader's side of replication: carries a follower's positions to the owners of the logs, and their answers back.

use bytes::Bytes;
use quorate_log::{CorruptBatch, FORMAT, LogOffset, StoredBatch, frame_v1};
use quorate_metadata::ids::{BrokerEpoch, BrokerId};
use quorate_metadata::{ApiError, ErrorName};
use quorate_proto::error::to_item;
use quorate_proto::log::{EpochEnd, ReplicateReply, ReplicateRequest, ReplicatedPartition};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Status, Streaming};
use tracing::{debug, warn};

use super::status;
use crate::broker::{Answer, Batches, Command, DataPlane, Position, Refused, ShardHandle, Sink, wire};

/// Answers on their way to the follower; the owners of the logs hold no more than its positions.
const REPLIES_MAX: usize = 4;

/// What one message carries at most, save that each answer is whole.
const REPLY_BYTES_MAX: usize = 8 << 20;

pub fn serve(
    plane: DataPlane,
    requests: Streaming<ReplicateRequest>,
) -> ReceiverStream<Result<ReplicateReply, Status>> {
    let (replies, outbound) = mpsc::channel(REPLIES_MAX);
    // It ends with its stream, which ends with the server.
    tokio::spawn(async move {
        let over = run(&plane, requests, &replies).await;
        if let Err(status) = over {
            debug!(%status, "replication stream over");
            // The follower may be gone.
            let _ = replies.send(Err(status)).await;
        }
    });
    ReceiverStream::new(outbound)
}

async fn run(
    plane: &DataPlane,
    mut requests: Streaming<ReplicateRequest>,
    replies: &mpsc::Sender<Result<ReplicateReply, Status>>,
) -> Result<(), Status> {
    let (sink, mut answers) = mpsc::unbounded_channel();
    // The broker may open its directories again: then its followers need a stream to what it has then.
    let closed = plane.ended();
    tokio::pin!(closed);
    let mut frame_version = 0;
    loop {
        tokio::select! {
            () = &mut closed => return Err(Status::unavailable("the log directories are closed")),
            request = requests.message() => match request? {
                Some(request) => {
                    frame_version = request.frame_version;
                    take(plane, request, &sink).await.map_err(|error| status(&error))?;
                }
                None => return Ok(()),
            },
            Some(answer) = answers.recv() => {
                let reply = collect(plane, frame_version, answer, &mut answers).await;
                if replies.send(Ok(reply)).await.is_err() {
                    return Ok(());
                }
            }
        }
    }
}

async fn take(plane: &DataPlane, request: ReplicateRequest, sink: &Sink) -> Result<(), ApiError> {
    let follower = (BrokerId::new(request.broker), BrokerEpoch::new(request.broker_epoch));
    let mut by_shard: Vec<(ShardHandle, Vec<Position>)> = Vec::new();
    for position in &request.positions {
        let position = wire::position_from_wire(position)?;
        let Some(replica) = plane.replica(position.id) else {
            refuse(sink, &position, ErrorName::NotLeaderOrFollower);
            continue;
        };
        match by_shard.iter_mut().find(|(shard, _)| shard.directory() == replica.shard.directory()) {
            Some((_, positions)) => positions.push(position),
            None => by_shard.push((replica.shard, vec![position])),
        }
    }
    for (shard, positions) in by_shard {
        let command = Command::Positions { follower, positions: positions.clone(), sink: sink.clone() };
        match shard.send(command).await {
            // The other directories go on.
            Err(error) if error.name == ErrorName::KafkaStorageError => {
                positions.iter().for_each(|position| refuse(sink, position, error.name));
            }
            sent => sent?,
        }
    }
    Ok(())
}

fn refuse(sink: &Sink, position: &Position, error: ErrorName) {
    let refused = Refused { error, log_start: LogOffset(0) };
    // Its receiver is this very stream.
    let _ = sink.send(Answer { id: position.id, said: Err(refused) });
}

/// Puts into one message what is there to say.
async fn collect(
    plane: &DataPlane,
    frame_version: u32,
    first: Answer,
    answers: &mut mpsc::UnboundedReceiver<Answer>,
) -> ReplicateReply {
    let mut partitions = Vec::new();
    let mut bytes = 0;
    let mut next = Some(first);
    while let Some(answer) = next {
        let partition = to_wire(plane, frame_version, answer).await;
        bytes += partition.batches.iter().map(Bytes::len).sum::<usize>();
        partitions.push(partition);
        next = if bytes < REPLY_BYTES_MAX { answers.try_recv().ok() } else { None };
    }
    ReplicateReply { partitions }
}

async fn to_wire(plane: &DataPlane, frame_version: u32, answer: Answer) -> ReplicatedPartition {
    let replica = Some(wire::replica_to_wire(answer.id));
    let refused = |error: ErrorName, log_start_offset| {
        let error = ApiError::new(error, format!("cannot fetch {}", answer.id));
        ReplicatedPartition {
            replica: replica.clone(),
            error: Some(to_item(&error)),
            log_start_offset,
            ..ReplicatedPartition::default()
        }
    };
    let supply = match answer.said {
        Ok(supply) => supply,
        Err(Refused { error, log_start }) => return refused(error, log_start.0),
    };
    let (batches, gaps_below) = match frames(plane, supply.batches).await {
        Ok(frames) => frames,
        Err(error) => {
            warn!(partition = %answer.id, %error, "cannot read for a follower");
            return refused(ErrorName::KafkaStorageError, supply.log_start.0);
        }
    };
    if frame_version < FORMAT && gaps_below > LogOffset(0) {
        debug!(partition = %answer.id, "a follower of an earlier release cannot read a compacted log");
        return refused(ErrorName::UnsupportedVersion, supply.log_start.0);
    }
    let batches = if frame_version < FORMAT { batches.into_iter().map(downgrade).collect() } else { Ok(batches) };
    let batches = match batches {
        Ok(batches) => batches,
        Err(error) => {
            debug!(partition = %answer.id, %error, "not read by a follower of an earlier release");
            return refused(ErrorName::UnsupportedVersion, supply.log_start.0);
        }
    };
    ReplicatedPartition {
        replica: replica.clone(),
        error: None,
        high_watermark: supply.high_watermark.0,
        log_start_offset: supply.log_start.0,
        log_end_offset: supply.log_end.0,
        diverging: supply.diverging.map(|(epoch, end)| EpochEnd { leader_epoch: epoch.get(), end_offset: end.0 }),
        batches,
        gaps_below_offset: gaps_below.0,
    }
}

/// Frames, and below which offset batches may be missing among them.
async fn frames(plane: &DataPlane, batches: Batches) -> Result<(Vec<Bytes>, LogOffset), ApiError> {
    match batches {
        Batches::None => Ok((Vec::new(), LogOffset(0))),
        // What is not committed is not compacted.
        Batches::Here(frames) => Ok((frames, LogOffset(0))),
        Batches::OnDisk { reader, from, below, max_bytes } => {
            let (directory, of_thread) = (reader.directory(), reader.clone());
            let read = plane.read_for_follower(directory, move || of_thread.read(from, below, max_bytes)).await?;
            let read = read.map_err(|error| ApiError::new(ErrorName::KafkaStorageError, error.to_string()))?;
            let gaps_below = Some(reader.gaps_below()).filter(|end| from < *end).unwrap_or_default();
            Ok((read.iter().map(|batch| batch.frame().clone()).collect(), gaps_below))
        }
    }
}

/// As an earlier release reads it, if it has a frame there.
fn downgrade(frame: Bytes) -> Result<Bytes, CorruptBatch> {
    frame_v1::encode(&StoredBatch::decode(frame)?)
}
