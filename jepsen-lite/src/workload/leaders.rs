//! Who leads: every broker is handed records of every partition. Only one of them may take any in one epoch.

use std::time::Duration;

use bytes::Bytes;
use prost::Message;
use quorate_client::{ClientError, check_item};
use quorate_metadata::{ApiError, ErrorName};
use quorate_proto::log::{ProduceRequest, ProducedBatch, Record, RecordBatch, Records};
use tokio::task::JoinSet;

use super::direct::ask;
use super::{Context, WorkloadName, create, describe};
use crate::generator::Asker;
use crate::op::Op;

const TOPIC: &str = "led";
const PARTITIONS: i32 = 3;
const CLIENTS: u32 = 3;
const PACE: Duration = Duration::from_millis(30);

pub async fn start(context: &Context, tasks: &mut JoinSet<()>) -> anyhow::Result<()> {
    create(context, TOPIC, PARTITIONS, 1).await?;
    let topic = describe(&context.client(), TOPIC).await?.id;
    for number in 0..CLIENTS {
        let asker = context.asker(WorkloadName::OneLeader, number, PACE);
        tasks.spawn(hand_out(context.clone(), topic.clone(), asker));
    }
    Ok(())
}

async fn hand_out(context: Context, topic: String, mut asker: Asker) {
    let mut clients: Vec<_> = context.nodes.iter().map(|(node, address)| (*node, context.log(address))).collect();
    while asker.turn().await {
        let node = context.any(&mut asker.random);
        let partition = i32::try_from(asker.random.below(PARTITIONS as u64)).expect("there are few");
        let (broker, client) = &mut clients[node];
        let broker = *broker;
        let request = ProduceRequest { acks: 1, timeout_ms: 2_000, batches: vec![batch(&topic, partition)] };
        let call = async {
            let reply = ask(client.produce(request)).await?;
            let taken = reply.partitions.into_iter().next();
            check_item(taken.as_ref().and_then(|taken| taken.error.as_ref()))?;
            Ok(Op::Append { partition, broker, epoch: taken.map(|taken| taken.leader_epoch) })
        };
        let asked = Op::Append { partition, broker, epoch: None };
        context.recorder.record(WorkloadName::OneLeader, asker.process, asked, call).await;
    }
}

/// One record without a value.
pub fn batch(topic: &str, partition: i32) -> ProducedBatch {
    let records = Records { records: vec![Record::default()] };
    let batch =
        RecordBatch { record_count: 1, records: Bytes::from(records.encode_to_vec()), ..RecordBatch::default() };
    ProducedBatch { topic_id: topic.to_owned(), partition, leader_epoch: None, batch: Some(batch) }
}

/// Hands one record to a broker for all in-sync replicas; its position.
pub async fn append_to_all(context: &Context, address: &str, topic: &str, partition: i32) -> Result<i64, ClientError> {
    let request = ProduceRequest { acks: -1, timeout_ms: 2_000, batches: vec![batch(topic, partition)] };
    let reply = ask(context.log(address).produce(request)).await?;
    let missing =
        || ClientError::Unknown(ApiError::new(ErrorName::UnknownServerError, "an answer without the partition"));
    let taken = reply.partitions.into_iter().next().ok_or_else(missing)?;
    check_item(taken.error.as_ref())?;
    Ok(taken.base_offset)
}
