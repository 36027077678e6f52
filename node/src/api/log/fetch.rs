//! Records for consumers: committed ones only, waited for where there are none yet.

use std::collections::BTreeMap;
use std::time::Duration;

use futures::future::select_all;
use quorate_log::{LogError, LogOffset, LogReader};
use quorate_metadata::ids::{DirectoryId, LeaderEpoch, TopicPartition};
use quorate_metadata::{ApiError, ErrorName};
use quorate_proto::error::to_item;
use quorate_proto::log::{EpochEnd, FetchPartition, FetchReply, FetchRequest, FetchedPartition, RecordBatch};
use tokio::sync::watch;
use tokio::time::{Instant, timeout_at};
use tracing::warn;

use super::partition;
use super::records::ForReader;
use crate::api::request::invalid;
use crate::broker::{DataPlane, Published};

const MAX_WAIT: Duration = Duration::from_secs(30);
const DEFAULT_BYTES: usize = 8 << 20;
const BYTES_MAX: usize = 32 << 20;
const PARTITIONS_MAX: usize = 10_000;

pub async fn fetch(plane: &DataPlane, request: FetchRequest) -> Result<FetchReply, ApiError> {
    if request.partitions.len() > PARTITIONS_MAX {
        return Err(invalid(format!("more than {PARTITIONS_MAX} partitions in one fetch")));
    }
    let deadline = Instant::now() + Duration::from_millis(request.max_wait_ms.into()).min(MAX_WAIT);
    let max_bytes = match request.max_bytes {
        0 => DEFAULT_BYTES,
        bytes => usize::try_from(bytes).unwrap_or(usize::MAX).min(BYTES_MAX),
    };
    loop {
        let mut found = look(plane, &request);
        let reads = std::mem::take(&mut found.reads);
        let led: Vec<_> = reads.iter().map(|read| (read.index, read.id, read.epoch)).collect();
        let bytes = read(plane, &mut found.partitions, reads, max_bytes).await;
        if !request.from_follower {
            // A leadership may have ended meanwhile.
            for (index, id, _) in led.into_iter().filter(|(_, id, epoch)| !plane.may_lead(*id, *epoch)) {
                found.is_urgent = true;
                refuse(plane, id, &mut found.partitions[index], &partition::not_here(id));
            }
        }
        let is_enough = found.is_urgent || bytes >= usize::try_from(request.min_bytes).unwrap_or(usize::MAX).max(1);
        if is_enough || Instant::now() >= deadline || found.watched.is_empty() {
            return Ok(FetchReply { partitions: found.partitions });
        }
        wait(found.watched, deadline).await;
    }
}

#[derive(Default)]
struct Found {
    partitions: Vec<FetchedPartition>,
    reads: Vec<Read>,
    watched: Vec<watch::Receiver<Published>>,
    /// There is something to tell that is not worth waiting with.
    is_urgent: bool,
}

struct Read {
    /// In the reply.
    index: usize,
    id: TopicPartition,
    epoch: LeaderEpoch,
    reader: LogReader,
    from: LogOffset,
    below: LogOffset,
    max_bytes: usize,
}

fn look(plane: &DataPlane, request: &FetchRequest) -> Found {
    let mut found = Found::default();
    for asked in &request.partitions {
        let index = found.partitions.len();
        let mut fetched = FetchedPartition {
            topic_id: asked.topic_id.clone(),
            partition: asked.partition,
            high_watermark: -1,
            log_start_offset: -1,
            ..FetchedPartition::default()
        };
        let id = partition::parse(&asked.topic_id, asked.partition);
        let looked = id.and_then(|id| look_at(plane, id, asked, request.from_follower, &mut fetched));
        match looked {
            Ok((read, watched)) => {
                found.is_urgent |= fetched.diverging.is_some();
                found.reads.extend(read.map(|read| Read { index, ..read }));
                found.watched.push(watched);
            }
            Err(error) => {
                found.is_urgent = true;
                match partition::parse(&asked.topic_id, asked.partition) {
                    Ok(id) => refuse(plane, id, &mut fetched, &error),
                    Err(error) => fetched.error = Some(to_item(&error)),
                }
            }
        }
        found.partitions.push(fetched);
    }
    found
}

/// Answers for a partition with the error and the leader to ask instead.
fn refuse(plane: &DataPlane, id: TopicPartition, fetched: &mut FetchedPartition, error: &ApiError) {
    fetched.batches.clear();
    fetched.current_leader = partition::current_leader(plane, id, error);
    fetched.error = Some(to_item(error));
}

fn look_at(
    plane: &DataPlane,
    id: TopicPartition,
    asked: &FetchPartition,
    any_replica: bool,
    fetched: &mut FetchedPartition,
) -> Result<(Option<Read>, watch::Receiver<Published>), ApiError> {
    let replica = partition::hosted(plane, id)?;
    let mut watched = replica.published;
    let now = watched.borrow_and_update().clone();
    partition::check(plane, id, &now, asked.leader_epoch, any_replica)?;
    fetched.high_watermark = now.high_watermark.0;
    fetched.log_start_offset = now.log_start.0;
    let from = LogOffset(asked.offset);
    if let Some(end) = asked.last_fetched_epoch.and_then(|last| diverging(&now, LeaderEpoch::new(last), from)) {
        fetched.diverging = Some(end);
        return Ok((None, watched));
    }
    if from < now.log_start || from > now.log_end {
        let message = format!("offset {from} is not within {} and {}", now.log_start, now.log_end);
        return Err(ApiError::new(ErrorName::OffsetOutOfRange, message));
    }
    let max_bytes = usize::try_from(asked.max_bytes).ok().filter(|bytes| *bytes > 0).unwrap_or(usize::MAX);
    let below = now.high_watermark;
    let read = (from < below).then_some(Read {
        index: 0,
        id,
        epoch: now.leader_epoch,
        reader: replica.reader,
        from,
        below,
        max_bytes,
    });
    Ok((read, watched))
}

/// Where a reader whose last record has the epoch `last` and ends at `end` has left this log (KIP-320).
fn diverging(replica: &Published, last: LeaderEpoch, end: LogOffset) -> Option<EpochEnd> {
    let (epoch, own_end) = replica.epochs.end_of(last, replica.log_end)?;
    let is_other = epoch != last || own_end < end;
    is_other.then(|| EpochEnd { leader_epoch: epoch.get(), end_offset: own_end.0 })
}

/// Returns how many bytes were read. Directory by directory, of each by one job.
async fn read(plane: &DataPlane, partitions: &mut [FetchedPartition], reads: Vec<Read>, max_bytes: usize) -> usize {
    let mut by_directory: BTreeMap<DirectoryId, Vec<Read>> = BTreeMap::new();
    for read in reads {
        by_directory.entry(read.reader.directory()).or_default().push(read);
    }
    let mut left = max_bytes;
    for (directory, reads) in by_directory {
        let indexes: Vec<usize> = reads.iter().map(|read| read.index).collect();
        let done = match plane.read_for_consumer(directory, move || read_all(reads, left)).await {
            Ok(done) => done,
            Err(error) => {
                indexes.into_iter().for_each(|index| partitions[index].error = Some(to_item(&error)));
                continue;
            }
        };
        for (index, read) in done {
            match read {
                Ok((bytes, batches)) => {
                    left = left.saturating_sub(bytes);
                    partitions[index].batches = batches;
                }
                Err(error) => {
                    warn!(%error, "cannot read for a consumer");
                    let error = ApiError::new(ErrorName::KafkaStorageError, error.to_string());
                    partitions[index].error = Some(to_item(&error));
                }
            }
        }
    }
    max_bytes - left
}

/// Batches and their bytes: those of the log, which have more where the reader is sent no record of them.
type ReadBatches = (usize, Vec<RecordBatch>);

/// Up to so many bytes, and the batch that goes beyond.
fn read_all(reads: Vec<Read>, max_bytes: usize) -> Vec<(usize, Result<ReadBatches, LogError>)> {
    let mut left = max_bytes;
    let mut done = Vec::new();
    for read in reads {
        if left == 0 {
            break;
        }
        let batches = read_one(&read, read.max_bytes.min(left));
        left = left.saturating_sub(batches.as_ref().map_or(0, |(bytes, _)| *bytes));
        done.push((read.index, batches));
    }
    done
}

fn read_one(read: &Read, max_bytes: usize) -> Result<ReadBatches, LogError> {
    let stored = read.reader.read(read.from, read.below, max_bytes)?;
    let mut for_reader = ForReader::new(max_bytes);
    for batch in &stored {
        if !for_reader.add(batch, read.from).map_err(|error| read.reader.corrupt(batch, error))? {
            return Ok((for_reader.bytes(), for_reader.cut()));
        }
    }
    let bytes: usize = stored.iter().map(|batch| batch.frame().len()).sum();
    let bytes = bytes.max(for_reader.bytes());
    Ok((bytes, stored.last().map_or_else(Vec::new, |last| for_reader.end(last))))
}

/// Until one of the replicas has changed, or the time is up.
async fn wait(mut watched: Vec<watch::Receiver<Published>>, deadline: Instant) {
    let changes = watched.iter_mut().map(|replica| Box::pin(replica.changed()));
    // A replica that is gone is a change as well, and the time being up an answer.
    let _ = timeout_at(deadline, select_all(changes)).await;
}
