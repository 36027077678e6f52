//! Records: produced with acks=all, every value once; consumed all the time; and read from every replica at the end.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use anyhow::{Context as _, ensure};
use bytes::Bytes;
use prost::Message;
use quorate_client::log::{
    ConsumedRecord, Consumer, ConsumerOptions, Partition, ProducedRecord, Producer, ProducerOptions, Start,
};
use quorate_client::{AdminClient, ClientError, check_item};
use quorate_proto::admin::TopicDescription;
use quorate_proto::log::{FetchPartition, FetchRequest, RecordBatch, Records};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, timeout};

use super::{Context, WorkloadName, create, describe};
use crate::generator::Asker;
use crate::history::{Operation, Outcome};
use crate::op::{Fetched, Op};

const PRODUCERS: u32 = 2;
/// Between two records of a producer.
const PACE: Duration = Duration::from_millis(10);
const TOPIC: &str = "log";
const PARTITIONS: i32 = 6;

/// Longer than any fault and the way back from it.
const DELIVERY_TIMEOUT: Duration = Duration::from_secs(40);

/// For a replica that cannot tell what it has: its broker may have lost the lease a moment ago.
const DUMP_PATIENCE: Duration = Duration::from_secs(20);

pub async fn start(context: &Context, tasks: &mut JoinSet<()>) -> anyhow::Result<()> {
    create(context, TOPIC, PARTITIONS, 2).await?;
    let last_value = Arc::new(AtomicU64::new(0));
    for number in 0..PRODUCERS {
        let options = ProducerOptions {
            delivery_timeout: DELIVERY_TIMEOUT,
            network: context.network.clone(),
            ..ProducerOptions::default()
        };
        let producer = Producer::start(&context.addresses(), options)?;
        let asker = context.asker(WorkloadName::Log, number, PACE);
        tasks.spawn(produce(context.clone(), producer, asker, last_value.clone()));
    }
    let asker = context.asker(WorkloadName::Log, PRODUCERS, PACE);
    tasks.spawn(consume(context.clone(), context.client(), asker));
    Ok(())
}

async fn produce(context: Context, producer: Producer, mut asker: Asker, last_value: Arc<AtomicU64>) {
    let mut deliveries = JoinSet::new();
    while asker.turn().await {
        let value = last_value.fetch_add(1, Ordering::Relaxed) + 1;
        let partition = i32::try_from(asker.random.below(PARTITIONS as u64)).expect("there are few");
        let asked = Op::Produce { partition, value, position: None, epoch: None };
        let (producer, context, process) = (producer.clone(), context.clone(), asker.process);
        deliveries.spawn(async move {
            let delivered = async {
                let value_bytes = Some(Bytes::copy_from_slice(&value.to_be_bytes()));
                let record = ProducedRecord { value: value_bytes, ..ProducedRecord::default() };
                let acknowledged = producer.send(TOPIC, Some(partition), record).await?.acknowledged().await?;
                let (position, epoch) = (acknowledged.offset, Some(acknowledged.leader_epoch));
                Ok(Op::Produce { partition, value, position, epoch })
            };
            context.recorder.record(WorkloadName::Log, process, asked, delivered).await;
        });
        while deliveries.try_join_next().is_some() {}
    }
    while deliveries.join_next().await.is_some() {}
}

async fn consume(context: Context, client: AdminClient, mut asker: Asker) {
    let mut consumer = Consumer::new(client, ConsumerOptions::default());
    (0..PARTITIONS).for_each(|partition| consumer.assign(TOPIC, partition, Start::Beginning));
    while asker.turn().await {
        let invoked_us = context.recorder.now_us();
        let polled = consumer.poll(Duration::from_millis(500)).await;
        let (process, ended_us) = (asker.process, context.recorder.now_us());
        let workload = WorkloadName::Log;
        let operation = |outcome, error, op| Operation { workload, process, invoked_us, ended_us, outcome, error, op };
        match polled {
            Ok(records) => {
                for (partition, records) in by_partition(records) {
                    let from = records[0].0;
                    let op = Op::Fetch { partition, from, records: Some(records) };
                    context.recorder.add(operation(Outcome::Ok, None, op));
                }
            }
            Err(error) => {
                let op = Op::Fetch { partition: partition_named(&error), from: 0, records: None };
                context.recorder.add(operation(Outcome::Fail, Some(error.name().to_string()), op));
            }
        }
    }
}

/// The consumer says of which partition it speaks, where it speaks of one.
fn partition_named(error: &ClientError) -> i32 {
    let said = &error.error().message;
    let is_said =
        |partition: &i32| said.starts_with(&Partition { topic: TOPIC.into(), partition: *partition }.to_string());
    (0..PARTITIONS).find(is_said).unwrap_or(-1)
}

fn by_partition(records: Vec<ConsumedRecord>) -> Vec<(i32, Vec<Fetched>)> {
    let mut grouped = std::collections::BTreeMap::<i32, Vec<Fetched>>::new();
    for record in records {
        let value = record.value.as_deref().map_or(0, number);
        grouped.entry(record.partition).or_default().push((record.offset, record.leader_epoch, value));
    }
    grouped.into_iter().collect()
}

/// A value that is not one of ours is 0, which none of ours is.
fn number(bytes: &[u8]) -> u64 {
    bytes.try_into().map_or(0, u64::from_be_bytes)
}

/// Every in-sync replica tells all that it has.
pub async fn finish(context: &Context) -> anyhow::Result<()> {
    let client = context.patient_client();
    let topic = describe(&client, TOPIC).await?;
    for partition in &topic.partitions {
        ensure!(!partition.isr.is_empty(), "nobody has partition {}", partition.partition);
        for broker in &partition.isr {
            dump(context, &topic, partition.partition, *broker).await?;
        }
    }
    Ok(())
}

async fn dump(context: &Context, topic: &TopicDescription, partition: i32, broker: i32) -> anyhow::Result<()> {
    let (_, address) = context.nodes.iter().find(|(node, _)| *node == broker).context("a replica on no node")?;
    let mut log = context.log(address);
    let invoked_us = context.recorder.now_us();
    let until = Instant::now() + DUMP_PATIENCE;
    let (mut start, mut next, mut records) = (0, 0, Vec::<Fetched>::new());
    loop {
        let offset = start.max(next);
        let asked = FetchPartition { topic_id: topic.id.clone(), partition, offset, ..FetchPartition::default() };
        let request = FetchRequest { partitions: vec![asked], from_follower: true, ..FetchRequest::default() };
        let reply = timeout(Duration::from_secs(20), log.fetch(request)).await??.into_inner();
        let fetched = reply.partitions.into_iter().next().context("an answer without the partition")?;
        let refused = check_item(fetched.error.as_ref()).err();
        if refused.as_ref().is_some_and(|error| error.error().is_retryable()) && Instant::now() < until {
            sleep(PACE).await;
            continue;
        }
        refused.map_or(Ok(()), Err).with_context(|| format!("{TOPIC}-{partition} on broker {broker}"))?;
        start = fetched.log_start_offset;
        if fetched.batches.is_empty() {
            break;
        }
        for batch in &fetched.batches {
            records.extend(fetched_of(batch)?);
            next = batch.base_offset + i64::from(batch.record_count);
        }
    }
    let process = context.asker(WorkloadName::Log, PRODUCERS + 1, PACE).process;
    let op = Op::Dump { partition, broker, start, records: Some(records) };
    let (workload, ended_us, outcome) = (WorkloadName::Log, context.recorder.now_us(), Outcome::Ok);
    context.recorder.add(Operation { workload, process, invoked_us, ended_us, outcome, error: None, op });
    Ok(())
}

fn fetched_of(batch: &RecordBatch) -> anyhow::Result<Vec<Fetched>> {
    let records = Records::decode(batch.records.clone()).context("a batch cannot be decoded")?;
    let value = |record: &quorate_proto::log::Record| record.value.as_deref().map_or(0, number);
    Ok((batch.base_offset..)
        .zip(&records.records)
        .map(|(at, record)| (at, batch.leader_epoch, value(record)))
        .collect())
}
