//! What each node has of all partitions, again and again.

use std::time::Duration;

use quorate_client::{AdminClient, ClientError, Freshness};
use quorate_proto::admin::{ListPartitionsRequest, PartitionDescription};
use tokio::task::JoinSet;

use super::{Context, WorkloadName, once, recreate};
use crate::generator::Asker;
use crate::op::{Op, PartitionState, Sample};

const PACE: Duration = Duration::from_millis(150);

pub fn start(context: &Context, tasks: &mut JoinSet<()>) {
    for (number, (node, _)) in (0u32..).zip(&context.nodes) {
        let asker = context.asker(WorkloadName::LeaderEpoch, number, PACE);
        tasks.spawn(ask(context.clone(), *node, context.client_of(number as usize), asker));
    }
}

async fn ask(context: Context, node: i32, client: AdminClient, mut asker: Asker) {
    while asker.turn().await {
        sample(&context, node, &client, asker.process).await;
    }
}

async fn sample(context: &Context, node: i32, client: &AdminClient, process: u32) {
    let asked = || Op::Sample { node, seen: None };
    let digest = async {
        let quorum = client.describe_quorum(Freshness::Stale).await?;
        let (offset, digest) = (quorum.metadata_offset, Some(quorum.digest));
        Ok(Op::Sample { node, seen: Some(Sample { offset, digest, partitions: Vec::new() }) })
    };
    context.recorder.record(WorkloadName::LeaderEpoch, process, asked(), digest).await;
    let partitions = async {
        let all = ListPartitionsRequest::default();
        let reply = client.list_partitions(all, Freshness::Stale).await?;
        // Theirs come back under the same name, as other topics.
        let comes_again = |topic: &str| [once::PREFIX, recreate::PREFIX].iter().any(|prefix| topic.starts_with(prefix));
        let is_other = |partition: &PartitionDescription| !comes_again(&partition.topic);
        let partitions = reply.partitions.into_iter().filter(is_other).map(state).collect();
        Ok::<_, ClientError>(Op::Sample { node, seen: Some(Sample { offset: reply.offset, digest: None, partitions }) })
    };
    context.recorder.record(WorkloadName::LeaderEpoch, process, asked(), partitions).await;
}

fn state(partition: PartitionDescription) -> PartitionState {
    PartitionState {
        topic: partition.topic,
        partition: partition.partition,
        leader: partition.leader,
        leader_epoch: partition.leader_epoch,
        partition_epoch: partition.partition_epoch,
        isr: partition.isr,
        elr: partition.elr,
    }
}

/// At the end all are at one offset, and say so.
pub async fn finish(context: &Context) -> anyhow::Result<()> {
    for (number, (node, _)) in context.nodes.iter().enumerate() {
        let process = context.asker(WorkloadName::LeaderEpoch, 0, PACE).process;
        sample(context, *node, &context.client_of(number), process).await;
    }
    Ok(())
}
