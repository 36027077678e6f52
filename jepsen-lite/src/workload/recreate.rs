//! Names that are given again: each client lets a topic come, have a few records and go, and the next one come under the
//! same name, while anybody is asked who has it.

use std::collections::BTreeMap;
use std::time::Duration;

use bytes::Bytes;
use prost::Message;
use quorate_client::{AdminClient, ClientError, Freshness, Mode, check_item};
use quorate_metadata::{ApiError, ErrorName};
use quorate_proto::admin::{TopicDescription, TopicRef};
use quorate_proto::log::{FetchPartition, FetchRequest, ProduceRequest, ProducedBatch, Record, RecordBatch, Records};
use tokio::task::JoinSet;

use super::direct::ask;
use super::{Context, WorkloadName, small_topic};
use crate::generator::Asker;
use crate::history::{Operation, Outcome};
use crate::op::Op;

const CLIENTS: u32 = 4;
const PACE: Duration = Duration::from_millis(60);

/// What the names begin with.
pub const PREFIX: &str = "again-";

pub fn start(context: &Context, tasks: &mut JoinSet<()>) {
    for number in 0..CLIENTS {
        let asker = context.asker(WorkloadName::Recreate, number, PACE);
        tasks.spawn(Client { context: context.clone(), asker, name: String::new(), told: 0 }.run(number));
    }
}

struct Client {
    context: Context,
    asker: Asker,
    name: String,
    /// Values begin with the number of the client, so that none is told twice.
    told: u64,
}

impl Client {
    async fn run(mut self, number: u32) {
        self.told = u64::from(number) << 32;
        for turn in 0.. {
            self.name = format!("{PREFIX}{number}-{turn}");
            // A name is given up when it is open whether anybody has it.
            while self.life().await.is_some() {}
            if !self.asker.turn().await {
                break;
            }
            self.asker.retire();
        }
    }

    /// Of one topic under the name, until it is gone. None where that is open, or nothing shall be asked any more.
    async fn life(&mut self) -> Option<()> {
        let everybody = self.context.client();
        let name = self.name.clone();
        let born = Op::Born { name: name.clone(), id: None, offset: None };
        let born = self.ask(born, |op| carry_out(&everybody, op)).await?;
        let Op::Born { id: Some(id), .. } = born.op else { return None };
        for _ in 0..2 + self.asker.random.below(4) {
            self.look(&id).await?;
        }
        let gone = Op::Gone { name, id, offset: None };
        let gone = self.ask(gone, |op| carry_out(&everybody, op)).await?;
        self.look_for_name().await?;
        gone.is_ok().then_some(())
    }

    async fn look(&mut self, id: &str) -> Option<()> {
        let (name, id) = (self.name.clone(), id.to_owned());
        match self.asker.random.below(3) {
            0 => return self.look_for_name().await,
            1 => {
                self.told += 1;
                let told = Op::Told { name, id, value: self.told, position: None };
                let (context, leader) = (self.context.clone(), self.leader().await);
                self.ask(told, |op| on_broker(&context, &leader, op)).await?;
            }
            _ => {
                let retold = Op::Retold { name, id, values: None };
                let (context, leader) = (self.context.clone(), self.leader().await);
                self.ask(retold, |op| on_broker(&context, &leader, op)).await?;
            }
        }
        Some(())
    }

    async fn look_for_name(&mut self) -> Option<()> {
        let stale = self.asker.random.percent(50);
        let node = self.context.any(&mut self.asker.random);
        let client = self.context.client_of(node);
        let who = Op::Who { name: self.name.clone(), stale, id: None, offset: None };
        self.ask(who, |op| carry_out(&client, op)).await.map(drop)
    }

    /// Whoever leads, as far as any node knows; anybody where none does.
    async fn leader(&mut self) -> String {
        let node = self.context.any(&mut self.asker.random);
        let (topic, _) = described(&self.context.client_of(node), &self.name, true).await.unwrap_or_default();
        let leader = topic.and_then(|topic| topic.partitions.first().and_then(|partition| partition.leader));
        let known = self.context.nodes.iter().find(|(node, _)| Some(*node) == leader);
        known.unwrap_or(&self.context.nodes[node]).1.clone()
    }

    /// None where nothing shall be asked any more, or it is open whether the name was given or given up.
    async fn ask<F>(&mut self, op: Op, call: impl FnOnce(Op) -> F) -> Option<Operation>
    where
        F: Future<Output = Result<Op, ClientError>>,
    {
        if !self.asker.turn().await {
            return None;
        }
        let call = call(op.clone());
        let done = self.context.recorder.record(WorkloadName::Recreate, self.asker.process, op, call).await;
        let matters = matches!(done.op, Op::Born { .. } | Op::Gone { .. });
        (!matters || done.outcome != Outcome::Info).then_some(done)
    }
}

async fn carry_out(client: &AdminClient, op: Op) -> Result<Op, ClientError> {
    match op {
        Op::Born { name, .. } => {
            let topic = small_topic(name.clone(), 3);
            let reply = client.create_topics(vec![topic], Mode::Apply).await?;
            let topic = reply.topics.into_iter().next();
            check_item(topic.as_ref().and_then(|topic| topic.error.as_ref()))?;
            Ok(Op::Born { name, id: topic.map(|topic| topic.id), offset: reply.result.map(|result| result.offset) })
        }
        Op::Gone { name, id, .. } => {
            let topic = TopicRef { name: None, id: Some(id.clone()) };
            let reply = client.delete_topics(vec![topic], Mode::Apply).await?;
            check_item(reply.topics.first().and_then(|topic| topic.error.as_ref()))?;
            Ok(Op::Gone { name, id, offset: reply.result.map(|result| result.offset) })
        }
        Op::Who { name, stale, .. } => {
            let (topic, offset) = described(client, &name, stale).await?;
            Ok(Op::Who { name, stale, id: topic.map(|topic| topic.id), offset: Some(offset) })
        }
        other => unreachable!("{other:?} is not about a topic's life"),
    }
}

/// Nothing where nobody has the name, which is an answer; and up to which offset that is so.
async fn described(
    client: &AdminClient,
    name: &str,
    stale: bool,
) -> Result<(Option<TopicDescription>, i64), ClientError> {
    let freshness = if stale { Freshness::Stale } else { Freshness::Linearizable };
    let topic = TopicRef { name: Some(name.to_owned()), id: None };
    let reply = client.describe_topics(vec![topic], freshness).await?;
    let topic = reply.topics.into_iter().next();
    match check_item(topic.as_ref().and_then(|topic| topic.error.as_ref())) {
        Err(error) if error.name() == ErrorName::UnknownTopicOrPartition => Ok((None, reply.offset)),
        checked => checked.map(|()| (topic, reply.offset)),
    }
}

async fn on_broker(context: &Context, address: &str, op: Op) -> Result<Op, ClientError> {
    let missing =
        || ClientError::Unknown(ApiError::new(ErrorName::UnknownServerError, "an answer without the partition"));
    match op {
        Op::Told { name, id, value, .. } => {
            let value_bytes = Some(Bytes::copy_from_slice(&value.to_be_bytes()));
            let records = Records { records: vec![Record { value: value_bytes, ..Record::default() }] };
            let records = Bytes::from(records.encode_to_vec());
            let batch = Some(RecordBatch { record_count: 1, records, ..RecordBatch::default() });
            let batches = vec![ProducedBatch { topic_id: id.clone(), partition: 0, leader_epoch: None, batch }];
            let request = ProduceRequest { acks: -1, timeout_ms: 2_000, batches };
            let reply = ask(context.log(address).produce(request)).await?;
            let taken = reply.partitions.into_iter().next().ok_or_else(missing)?;
            check_item(taken.error.as_ref())?;
            Ok(Op::Told { name, id, value, position: Some(taken.base_offset) })
        }
        Op::Retold { name, id, .. } => {
            let partition = FetchPartition { topic_id: id.clone(), partition: 0, ..FetchPartition::default() };
            let request = FetchRequest { partitions: vec![partition], ..FetchRequest::default() };
            let reply = ask(context.log(address).fetch(request)).await?;
            let fetched = reply.partitions.into_iter().next().ok_or_else(missing)?;
            check_item(fetched.error.as_ref())?;
            let mut values = Vec::new();
            for batch in fetched.batches {
                // What cannot be read is nobody's.
                let records = Records::decode(batch.records).unwrap_or_default().records;
                values.extend(records.iter().map(|record| record.value.as_deref().map_or(0, number)));
            }
            Ok(Op::Retold { name, id, values: Some(values) })
        }
        other => unreachable!("{other:?} is not about records"),
    }
}

/// A value that is not one of ours is 0, which none of ours is.
fn number(bytes: &[u8]) -> u64 {
    bytes.try_into().map_or(0, u64::from_be_bytes)
}

/// Every node says at the end who has the names that are taken.
pub async fn finish(context: &Context) -> anyhow::Result<()> {
    let everybody = context.patient_client();
    let listed = everybody.list_topics(Freshness::Linearizable).await?.topics;
    let taken: BTreeMap<String, String> = listed.into_iter().map(|topic| (topic.name, topic.id)).collect();
    let process = context.asker(WorkloadName::Recreate, CLIENTS, PACE).process;
    for name in taken.into_keys().filter(|name| name.starts_with(PREFIX)) {
        for (node, (_, address)) in context.nodes.iter().enumerate() {
            let client = context.patient_client_of(node);
            let who = Op::Who { name: name.clone(), stale: false, id: None, offset: None };
            let call = carry_out(&client, who.clone());
            let done = context.recorder.record(WorkloadName::Recreate, process, who, call).await;
            anyhow::ensure!(done.is_ok(), "{address} does not say who has {name} at the end: {:?}", done.error);
        }
    }
    Ok(())
}
