//! Where a log begins and ends, where a time is in it, and where an epoch ends.

use quorate_log::{CorruptBatch, LogOffset, StoredBatch};
use quorate_metadata::ids::{LeaderEpoch, TopicPartition};
use quorate_metadata::{ApiError, ErrorName};
use quorate_proto::error::to_item;
use quorate_proto::log::offset_query::At;
use quorate_proto::log::{EpochAnswer, EpochEnd, EpochQuery, ListedOffset, OffsetQuery};

use super::partition;
use crate::api::request::invalid;
use crate::broker::DataPlane;

pub async fn list(plane: &DataPlane, query: OffsetQuery) -> ListedOffset {
    let id = partition::parse(&query.topic_id, query.partition);
    let outcome = match id.clone() {
        Ok(id) => look_up(plane, id, &query).await,
        Err(error) => Err(error),
    };
    let nothing = ListedOffset { topic_id: query.topic_id, partition: query.partition, ..ListedOffset::default() };
    match outcome {
        Ok((found, leader_epoch)) => ListedOffset {
            offset: found.map(|(offset, _)| offset.0),
            timestamp_ms: found.and_then(|(_, timestamp)| timestamp),
            leader_epoch: leader_epoch.get(),
            ..nothing
        },
        Err(error) => ListedOffset {
            current_leader: id.ok().and_then(|id| partition::current_leader(plane, id, &error)),
            error: Some(to_item(&error)),
            ..nothing
        },
    }
}

type Place = (LogOffset, Option<i64>);

async fn look_up(
    plane: &DataPlane,
    id: TopicPartition,
    query: &OffsetQuery,
) -> Result<(Option<Place>, LeaderEpoch), ApiError> {
    let replica = partition::hosted(plane, id)?;
    let now = replica.published.borrow().clone();
    partition::check(plane, id, &now, query.leader_epoch, false)?;
    let found = match query.at.as_ref() {
        Some(At::Earliest(true)) => Some((now.log_start, None)),
        Some(At::Latest(true)) => Some((now.high_watermark, None)),
        Some(At::TimestampMs(timestamp)) => {
            let (timestamp, below) = (*timestamp, now.high_watermark);
            let batch = replica.shard.ask(id, move |replica, _| replica.log().find_timestamp(timestamp, below)).await?;
            let batch = batch.map_err(|error| ApiError::new(ErrorName::KafkaStorageError, error.to_string()))?;
            batch.map(|batch| first_at(&batch, timestamp)).transpose()?
        }
        Some(At::Earliest(false) | At::Latest(false)) | None => {
            return Err(invalid("say earliest, latest or a timestamp"));
        }
    };
    // The lease may have ended meanwhile.
    partition::check(plane, id, &now, query.leader_epoch, false)?;
    Ok((found, now.leader_epoch))
}

/// The first record of the batch with this timestamp or a later one.
fn first_at(batch: &StoredBatch, timestamp_ms: i64) -> Result<Place, ApiError> {
    let corrupt = |error: CorruptBatch| ApiError::new(ErrorName::CorruptMessage, error.to_string());
    let records = batch.decode_records().map_err(corrupt)?;
    let found = records.iter().find(|record| record.timestamp_ms >= timestamp_ms);
    let (at, timestamp) =
        found.map_or((0, batch.max_timestamp_ms()), |record| (record.offset_delta, record.timestamp_ms));
    Ok((LogOffset(batch.base_offset().0 + i64::from(at)), Some(timestamp)))
}

pub fn epoch_end(plane: &DataPlane, query: EpochQuery) -> EpochAnswer {
    let id = partition::parse(&query.topic_id, query.partition);
    let outcome = id.clone().and_then(|id| end_of(plane, id, &query));
    let nothing = EpochAnswer { topic_id: query.topic_id, partition: query.partition, ..EpochAnswer::default() };
    match outcome {
        Ok(end) => EpochAnswer { end, ..nothing },
        Err(error) => EpochAnswer {
            current_leader: id.ok().and_then(|id| partition::current_leader(plane, id, &error)),
            error: Some(to_item(&error)),
            ..nothing
        },
    }
}

fn end_of(plane: &DataPlane, id: TopicPartition, query: &EpochQuery) -> Result<Option<EpochEnd>, ApiError> {
    let replica = partition::hosted(plane, id)?;
    let now = replica.published.borrow().clone();
    partition::check(plane, id, &now, query.current_leader_epoch, false)?;
    let end = now.epochs.end_of(LeaderEpoch::new(query.leader_epoch), now.log_end);
    Ok(end.map(|(epoch, end)| EpochEnd { leader_epoch: epoch.get(), end_offset: end.0 }))
}
