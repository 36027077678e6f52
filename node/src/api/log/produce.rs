//! Records of producers, checked and handed to the owners of their logs.

use std::sync::Arc;
use std::time::Duration;

use futures::future::join_all;
use prost::Message;
use quorate_client::world;
use quorate_log::{NewBatch, Producer};
use quorate_metadata::config;
use quorate_metadata::ids::{BrokerId, LeaderEpoch, TopicPartition};
use quorate_metadata::{ApiError, ErrorName, MetadataImage};
use quorate_proto::error::to_item;
use quorate_proto::log::{
    ProduceReply, ProduceRequest, ProducedBatch, ProducedPartition, Record, RecordBatch, Records,
};
use tokio::sync::{Semaphore, oneshot};
use tokio::time::{Instant, timeout_at};

use super::partition;
use super::records::to_batch;
use super::timestamps::Timestamps;
use crate::broker::{Acks, Command, DataPlane, NewRecords, Produced, ShardHandle};

const DEFAULT_TIMEOUT: Duration = Duration::from_secs(30);
const MAX_TIMEOUT: Duration = Duration::from_secs(120);

/// What was sent to the owner of a directory.
struct Waiting {
    shard: ShardHandle,
    answer: oneshot::Receiver<Result<Produced, ApiError>>,
}

pub async fn produce(
    plane: &DataPlane,
    room: &Arc<Semaphore>,
    request: ProduceRequest,
) -> Result<ProduceReply, ApiError> {
    let acks = acks(request.acks)?;
    let timeout = match request.timeout_ms {
        0 => DEFAULT_TIMEOUT,
        ms => Duration::from_millis(ms.into()).min(MAX_TIMEOUT),
    };
    let deadline = Instant::now() + timeout;
    let bytes: usize = request.batches.iter().map(bytes_of).sum();
    let _room = enter(room, bytes, deadline).await?;
    let mut sent = Vec::with_capacity(request.batches.len());
    for batch in request.batches {
        let place = (batch.topic_id.clone(), batch.partition);
        sent.push((place, send(plane, acks, batch).await));
    }
    let answers = sent.into_iter().map(|(place, sent)| answer(plane, place, sent, acks, deadline));
    Ok(ProduceReply { partitions: join_all(answers).await })
}

fn acks(acks: i32) -> Result<Acks, ApiError> {
    match acks {
        0 => Ok(Acks::None),
        1 => Ok(Acks::Leader),
        -1 => Ok(Acks::All),
        other => {
            let message = format!("acks {other} is none of 0, 1 and -1 (all)");
            Err(ApiError::new(ErrorName::InvalidRequiredAcks, message))
        }
    }
}

fn bytes_of(batch: &ProducedBatch) -> usize {
    batch.batch.as_ref().map_or(0, |batch| batch.records.len())
}

/// Waits while too much is under way already.
async fn enter(
    room: &Arc<Semaphore>,
    bytes: usize,
    deadline: Instant,
) -> Result<tokio::sync::OwnedSemaphorePermit, ApiError> {
    let bytes = u32::try_from(bytes).map_err(|_| too_large("the request", bytes, super::REQUEST_BYTES_MAX))?;
    match timeout_at(deadline, room.clone().acquire_many_owned(bytes)).await {
        Ok(permit) => Ok(permit.expect("it is never closed")),
        Err(_) => Err(ApiError::new(ErrorName::Throttled, "too many records are on their way to the replicas")),
    }
}

async fn send(plane: &DataPlane, acks: Acks, produced: ProducedBatch) -> Result<(TopicPartition, Waiting), ApiError> {
    let id = partition::parse(&produced.topic_id, produced.partition)?;
    let replica = partition::hosted(plane, id)?;
    replica.shard.check_producers()?;
    let batch = produced.batch.ok_or_else(|| ApiError::new(ErrorName::InvalidRecord, "there is no batch"))?;
    let batch = checked(batch, &Wanted::of(plane, id)?)?;
    let (reply, answer) = oneshot::channel();
    let leader_epoch = produced.leader_epoch.map(LeaderEpoch::new);
    replica.shard.send(Command::Produce(id, NewRecords { leader_epoch, batch, acks, reply })).await?;
    Ok((id, Waiting { shard: replica.shard, answer }))
}

/// What a topic wants of the batches of its producers.
#[derive(Debug)]
pub(super) struct Wanted {
    bytes_max: usize,
    timestamps: Timestamps,
    /// The topic is compacted, and what is compacted has a key.
    keys: bool,
}

impl Wanted {
    fn of(plane: &DataPlane, id: TopicPartition) -> Result<Self, ApiError> {
        let image = plane.metadata().image();
        let topic = image.topic(id.topic).ok_or_else(|| partition::unknown_topic(id.topic))?;
        Ok(Self::on(&image, plane.broker(), &topic.name))
    }

    /// As this broker goes by the topic's configs.
    pub(super) fn on(image: &MetadataImage, broker: BrokerId, topic: &str) -> Self {
        Self {
            bytes_max: config::topic_value(image, broker, topic, config::MAX_MESSAGE_BYTES),
            timestamps: Timestamps::of(image, broker, topic),
            keys: config::has_cleanup_policy(image, broker, topic, config::COMPACT),
        }
    }

    fn check_keys(&self, records: &[Record]) -> Result<(), ApiError> {
        match records.iter().position(|record| record.key.is_none()) {
            Some(at) if self.keys => {
                let message =
                    format!("record {at} of the batch has no key: expected one, since the topic is compacted");
                Err(ApiError::new(ErrorName::InvalidRecord, message))
            }
            Some(_) | None => Ok(()),
        }
    }

    fn check_size(&self, bytes: usize) -> Result<(), ApiError> {
        if bytes > self.bytes_max { Err(too_large("the batch", bytes, self.bytes_max)) } else { Ok(()) }
    }
}

fn too_large(what: &str, bytes: usize, max: usize) -> ApiError {
    ApiError::new(ErrorName::MessageTooLarge, format!("{what} has {bytes} bytes, more than {max}"))
}

/// What the producer says of its records must be true, because readers and followers rely on it.
fn checked(batch: RecordBatch, wanted: &Wanted) -> Result<NewBatch, ApiError> {
    wanted.check_size(batch.records.len())?;
    let invalid = |message: String| ApiError::new(ErrorName::InvalidRecord, message);
    if batch.crc.is_some_and(|crc| crc != crc32fast::hash(&batch.records)) {
        return Err(ApiError::new(
            ErrorName::CorruptMessage,
            "the records do not have the checksum that came with them",
        ));
    }
    let mut records = Records::decode(batch.records.clone())
        .map_err(|error| invalid(format!("the records cannot be decoded: {error}")))?;
    let record_count = u32::try_from(records.records.len()).unwrap_or(u32::MAX);
    if i64::from(batch.record_count) != i64::from(record_count) {
        return Err(invalid(format!("the batch has {record_count} records and says {}", batch.record_count)));
    }
    wanted.check_keys(&records.records)?;
    if wanted.timestamps.apply(&mut records.records, world::wall_ms())? {
        wanted.check_size(records.encoded_len())?;
    }
    if records.records.is_empty() {
        return Err(invalid("the batch has no record".to_owned()));
    }
    let producer = batch.producer.map(|stamp| {
        let epoch =
            i16::try_from(stamp.epoch).map_err(|_| invalid(format!("producer epoch {} is too large", stamp.epoch)))?;
        Ok(Producer { id: stamp.id, epoch, base_sequence: stamp.base_sequence })
    });
    to_batch(records.records, producer.transpose()?).map_err(|error| invalid(error.to_string()))
}

async fn answer(
    plane: &DataPlane,
    (topic_id, partition): (String, i32),
    sent: Result<(TopicPartition, Waiting), ApiError>,
    acks: Acks,
    deadline: Instant,
) -> ProducedPartition {
    let id = sent.as_ref().ok().map(|(id, _)| *id).or_else(|| partition::parse(&topic_id, partition).ok());
    let outcome = match sent {
        Ok(_) if acks == Acks::None => Ok(None),
        Ok((_, waiting)) => wait(waiting, deadline).await.map(Some),
        Err(error) => Err(error),
    };
    let nothing = ProducedPartition { topic_id, partition, base_offset: -1, ..ProducedPartition::default() };
    match outcome {
        Ok(None) => nothing,
        Ok(Some(produced)) => ProducedPartition {
            base_offset: produced.base_offset.0,
            leader_epoch: produced.leader_epoch.get(),
            log_start_offset: produced.log_start.0,
            ..nothing
        },
        Err(error) => ProducedPartition {
            error: Some(to_item(&error)),
            current_leader: id.and_then(|id| partition::current_leader(plane, id, &error)),
            ..nothing
        },
    }
}

async fn wait(Waiting { shard, answer }: Waiting, deadline: Instant) -> Result<Produced, ApiError> {
    let unknown = |why: &str| Err(ApiError::new(ErrorName::OutcomeUnknown, why));
    let outcome = async {
        tokio::select! {
            biased;
            // Dropped: the owner of the log is gone, and with it what it may have appended.
            answer = answer => answer.unwrap_or_else(|_| unknown("the broker stopped before it could answer")),
            () = shard.failed() => unknown("the log directory went offline before it could answer"),
        }
    };
    timeout_at(deadline, outcome).await.unwrap_or_else(|_| {
        let message = "appended, but not on every in-sync replica in time";
        Err(ApiError::new(ErrorName::RequestTimedOut, message))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(keys: bool, records: Vec<Record>) -> Result<NewBatch, ApiError> {
        let timestamps = Timestamps::Append;
        let record_count = i32::try_from(records.len()).unwrap();
        let records = Records { records }.encode_to_vec().into();
        checked(
            RecordBatch { record_count, records, ..RecordBatch::default() },
            &Wanted { bytes_max: 1_000, timestamps, keys },
        )
    }

    #[test]
    fn what_is_compacted_needs_keys() {
        let with = Record { key: Some("k".into()), ..Record::default() };
        let records = || vec![with.clone(), Record::default()];
        assert!(check(false, records()).is_ok() && check(true, vec![with.clone()]).is_ok());
        let refused = check(true, records()).unwrap_err();
        assert_eq!(refused.name, ErrorName::InvalidRecord);
        assert_eq!(refused.message, "record 1 of the batch has no key: expected one, since the topic is compacted");
        assert_eq!(check(false, Vec::new()).unwrap_err().name, ErrorName::InvalidRecord);
    }
}
