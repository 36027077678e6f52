//! What the replicas of a topic hold, seen through the public API.

use std::collections::BTreeMap;

use quorate_metadata::ApiError;
use quorate_proto::error::{from_item, from_status};
use quorate_proto::log::log_client::LogClient;
use quorate_proto::log::{
    DescribeReplicasReply, DescribeReplicasRequest, FetchPartition, FetchRequest, ProduceRequest, ProducedBatch,
    ProducedPartition, Record, RecordBatch, Records,
};
use tokio::time::timeout;
use tonic::transport::Channel;

use crate::{Cluster, PATIENCE, wait};

pub type Log = LogClient<Channel>;

/// One record straight to one broker, for the first partition of a topic.
pub async fn produce(
    broker: &mut Log,
    topic_id: &str,
    acks: i32,
    record: Record,
) -> Result<ProducedPartition, ApiError> {
    let records = prost::Message::encode_to_vec(&Records { records: vec![record] }).into();
    let batch = RecordBatch { records, record_count: 1, ..RecordBatch::default() };
    let batch = ProducedBatch { topic_id: topic_id.to_owned(), batch: Some(batch), ..ProducedBatch::default() };
    let request = ProduceRequest { acks, timeout_ms: 5_000, batches: vec![batch] };
    let reply = broker.produce(request).await.map_err(|status| from_status(&status))?.into_inner();
    let produced = reply.partitions.into_iter().next().expect("one batch was sent");
    match &produced.error {
        Some(error) => Err(from_item(error)),
        None => Ok(produced),
    }
}

/// What one replica has committed.
#[derive(Debug, Clone, PartialEq)]
pub struct Committed {
    pub log_start: i64,
    pub high_watermark: i64,
    pub batches: Vec<RecordBatch>,
}

impl Committed {
    /// Offset and value of each record.
    pub fn values(&self) -> BTreeMap<i64, Vec<u8>> {
        let value = |record: Record| record.value.unwrap_or_default().to_vec();
        self.records().into_iter().map(|(offset, record)| (offset, value(record))).collect()
    }

    pub fn records(&self) -> BTreeMap<i64, Record> {
        self.batches.iter().flat_map(records_of).collect()
    }
}

fn records_of(batch: &RecordBatch) -> Vec<(i64, Record)> {
    let records: Records = prost::Message::decode(batch.records.clone()).expect("records can be decoded");
    (batch.base_offset..).zip(records.records).collect()
}

impl Cluster {
    /// One node's data plane, without retries.
    pub fn log_of(&self, id: i32) -> Log {
        LogClient::new(crate::call::channel(self.api(id))).max_decoding_message_size(64 << 20)
    }

    /// What the replica on `id` has up to the high watermark that it knows.
    pub async fn committed(&self, id: i32, topic_id: &str, partition: i32) -> Option<Committed> {
        let mut log = self.log_of(id);
        let (mut found, mut first): (Option<Committed>, i64) = (None, 0);
        loop {
            let offset = found.as_ref().map_or(first, next_offset);
            let asked =
                FetchPartition { topic_id: topic_id.to_owned(), partition, offset, ..FetchPartition::default() };
            let request = FetchRequest { partitions: vec![asked], from_follower: true, ..FetchRequest::default() };
            let reply = timeout(PATIENCE, log.fetch(request)).await.ok()?.ok()?.into_inner();
            let fetched = reply.partitions.into_iter().next()?;
            if fetched.error.is_some() && found.is_none() && fetched.log_start_offset > first {
                first = fetched.log_start_offset;
                continue;
            }
            if fetched.error.is_some() {
                return None;
            }
            let (log_start, high_watermark) = (fetched.log_start_offset, fetched.high_watermark);
            let found = found.get_or_insert(Committed { log_start, high_watermark, batches: Vec::new() });
            found.high_watermark = high_watermark;
            let is_done = fetched.batches.is_empty();
            found.batches.extend(fetched.batches);
            if is_done {
                return Some(found.clone());
            }
        }
    }

    /// Waits until every running replica of every partition of the topic has the same committed log, byte for byte,
    /// and returns the logs.
    pub async fn identical_logs(&self, topic: &str) -> Vec<Committed> {
        let described = self.topic(topic).await;
        let running = self.running();
        let mut logs = Vec::new();
        for partition in &described.partitions {
            let why = format!("identical logs of {topic}-{} on {running:?}", partition.partition);
            let replicas: Vec<i32> = partition.replicas.iter().copied().filter(|id| running.contains(id)).collect();
            let log = wait(&why, async || {
                let first = self.committed(replicas[0], &described.id, partition.partition).await?;
                for id in &replicas[1..] {
                    let other = self.committed(*id, &described.id, partition.partition).await?;
                    if other != first {
                        return None;
                    }
                }
                Some(first)
            })
            .await;
            logs.push(log);
        }
        logs
    }

    pub async fn replicas_on(&self, id: i32) -> Option<DescribeReplicasReply> {
        let mut log = self.log_of(id);
        let call = log.describe_replicas(DescribeReplicasRequest::default());
        timeout(PATIENCE, call).await.ok()?.ok().map(tonic::Response::into_inner)
    }
}

fn next_offset(found: &Committed) -> i64 {
    let after = |batch: &RecordBatch| batch.base_offset + i64::from(batch.record_count);
    found.batches.last().map_or(found.log_start, after)
}
