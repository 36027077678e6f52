//! Changes of ISRs, sent in the name of the leader with something of the past in them; and records that too few replicas
//! can have.

use std::time::Duration;

use quorate_client::{AdminClient, ClientError, Freshness, check_item};
use quorate_metadata::{ApiError, ErrorName};
use quorate_proto::admin::PartitionDescription;
use quorate_proto::broker::{AlterPartitionRequest, IsrMember, PartitionAlteration};
use tokio::task::JoinSet;

use super::direct::ask;
use super::leaders::append_to_all;
use super::{Context, WorkloadName, create, describe, describe_at};
use crate::generator::Asker;
use crate::history::{Operation, Outcome};
use crate::op::{Op, Stale};

const TOPIC: &str = "isr";
const PARTITIONS: i32 = 3;
/// As many as must be in sync for acks=all.
const REPLICAS: u32 = 3;
const CLIENTS: u32 = 3;
const PACE: Duration = Duration::from_millis(120);

pub async fn start(context: &Context, tasks: &mut JoinSet<()>) -> anyhow::Result<()> {
    create(context, TOPIC, PARTITIONS, REPLICAS).await?;
    for number in 0..CLIENTS {
        let asker = context.asker(WorkloadName::IsrSafety, number, PACE);
        tasks.spawn(ask_on(context.clone(), context.client(), asker));
    }
    Ok(())
}

async fn ask_on(context: Context, client: AdminClient, mut asker: Asker) {
    while asker.turn().await {
        let number = asker.random.below(PARTITIONS as u64) as usize;
        let Ok((offset, topic)) = describe_at(&client, TOPIC).await else { continue };
        let Some(partition) = topic.partitions.get(number) else { continue };
        if partition.isr.len() < REPLICAS as usize && asker.random.percent(70) {
            squeeze(&context, &client, &topic.id, partition, offset, asker.process).await;
        } else {
            ask_stale(&context, &client, &topic.id, partition, &mut asker).await;
        }
    }
}

async fn ask_stale(
    context: &Context,
    client: &AdminClient,
    topic: &str,
    partition: &PartitionDescription,
    asker: &mut Asker,
) {
    let stale = *asker.random.pick(&[Stale::BrokerEpoch, Stale::PartitionEpoch, Stale::LeaderEpoch]);
    let node = context.any(&mut asker.random);
    let Ok(brokers) = client.list_brokers(Freshness::Linearizable).await else { return };
    let leader = brokers.brokers.iter().find(|broker| Some(broker.id) == partition.leader);
    let Some(leader) = leader else { return };
    let request = stale_change(topic, partition, leader.id, leader.epoch, stale);
    let address = &context.nodes[node].1;
    let call = async {
        let reply = ask(context.broker(address).alter_partition(request)).await?;
        let missing = || ClientError::Unknown(ApiError::new(ErrorName::UnknownServerError, "an empty answer"));
        let altered = reply.partitions.into_iter().next().ok_or_else(missing)?;
        check_item(altered.error.as_ref())?;
        Ok(Op::StaleIsr { partition: partition.partition, stale, isr: Some(altered.isr) })
    };
    let asked = Op::StaleIsr { partition: partition.partition, stale, isr: None };
    context.recorder.record(WorkloadName::IsrSafety, asker.process, asked, call).await;
}

/// The leader alone shall be in sync, says somebody who is one epoch behind.
fn stale_change(
    topic: &str,
    of: &PartitionDescription,
    leader: i32,
    epoch: i64,
    stale: Stale,
) -> AlterPartitionRequest {
    let behind = |what: Stale| i32::from(stale == what);
    let alteration = PartitionAlteration {
        topic_id: topic.to_owned(),
        partition: of.partition,
        leader_epoch: of.leader_epoch - behind(Stale::LeaderEpoch),
        // One that is behind by one may be a repetition, which is answered.
        partition_epoch: of.partition_epoch - 2 * behind(Stale::PartitionEpoch),
        isr: vec![IsrMember { broker: leader, epoch: None }],
        recovery: 0,
        supersedes: false,
    };
    let broker_epoch = epoch - i64::from(behind(Stale::BrokerEpoch));
    AlterPartitionRequest { broker: leader, broker_epoch, partitions: vec![alteration] }
}

/// Hands a record to the leader of a partition with too few replicas in sync. It counts only where the leader knew that,
/// and nothing changed meanwhile.
async fn squeeze(
    context: &Context,
    client: &AdminClient,
    topic: &str,
    before: &PartitionDescription,
    offset: i64,
    process: u32,
) -> Option<()> {
    let node = context.nodes.iter().position(|(node, _)| Some(*node) == before.leader)?;
    let knows = context.client_of(node).describe_quorum(Freshness::Stale).await.ok()?.metadata_offset >= offset;
    let invoked_us = context.recorder.now_us();
    let appended = append_to_all(context, &context.nodes[node].1, topic, before.partition).await;
    let ended_us = context.recorder.now_us();
    let after = describe(client, TOPIC).await.ok()?;
    let is_same = after
        .partitions
        .iter()
        .any(|after| (after.partition, after.partition_epoch) == (before.partition, before.partition_epoch));
    if knows && is_same {
        let (outcome, error) = match &appended {
            Ok(_) => (Outcome::Ok, None),
            Err(error) if error.is_definite() => (Outcome::Fail, Some(error.name().to_string())),
            Err(error) => (Outcome::Info, Some(error.name().to_string())),
        };
        let op = Op::Squeezed { partition: before.partition, position: appended.ok() };
        let workload = WorkloadName::IsrSafety;
        context.recorder.add(Operation { workload, process, invoked_us, ended_us, outcome, error, op });
    }
    Some(())
}
