//! Partitions move to other replicas, and now and then back, while records are handed to them.

use std::time::Duration;

use quorate_client::{AdminClient, ClientError, Mode, check_item};
use quorate_proto::admin::{CancelReassignmentRequest, PartitionTarget, TopicPartition};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep};

use super::leaders::append_to_all;
use super::{Context, WorkloadName, create, describe};
use crate::generator::Asker;
use crate::op::Op;

const TOPIC: &str = "moved";
const PARTITIONS: i32 = 3;
const REPLICAS: usize = 3;
const PACE: Duration = Duration::from_millis(700);
const PRODUCE_PACE: Duration = Duration::from_millis(50);

/// For a healthy cluster to end what was begun.
const PATIENCE: Duration = Duration::from_secs(30);

pub async fn start(context: &Context, tasks: &mut JoinSet<()>) -> anyhow::Result<()> {
    create(context, TOPIC, PARTITIONS, 2).await?;
    let topic = describe(&context.client(), TOPIC).await?.id;
    tasks.spawn(move_about(context.clone(), context.client(), context.asker(WorkloadName::Reassign, 0, PACE)));
    tasks.spawn(produce(context.clone(), topic, context.asker(WorkloadName::Reassign, 1, PRODUCE_PACE)));
    Ok(())
}

fn named(partition: i32) -> TopicPartition {
    TopicPartition { topic: TOPIC.to_owned(), partition }
}

async fn move_about(context: Context, client: AdminClient, mut asker: Asker) {
    while asker.turn().await {
        let partition = i32::try_from(asker.random.below(PARTITIONS as u64)).expect("there are few");
        let mut replicas: Vec<i32> = context.nodes.iter().map(|(node, _)| *node).collect();
        asker.random.shuffle(&mut replicas);
        replicas.truncate(REPLICAS);
        let cancels = asker.random.percent(25);
        let asked = if cancels {
            Op::CancelMove { partition, offset: None }
        } else {
            Op::Move { partition, replicas: replicas.clone(), offset: None }
        };
        let call = async {
            if cancels { cancel(&client, partition).await } else { begin(&client, partition, replicas).await }
        };
        context.recorder.record(WorkloadName::Reassign, asker.process, asked, call).await;
    }
}

async fn begin(client: &AdminClient, partition: i32, replicas: Vec<i32>) -> Result<Op, ClientError> {
    let target = PartitionTarget { partition: Some(named(partition)), replicas: replicas.clone() };
    let reply = client.start_reassignment(vec![target], None, Mode::Apply).await?;
    check_item(reply.partitions.first().and_then(|started| started.error.as_ref()))?;
    Ok(Op::Move { partition, replicas, offset: reply.result.map(|result| result.offset) })
}

async fn cancel(client: &AdminClient, partition: i32) -> Result<Op, ClientError> {
    let what = CancelReassignmentRequest { partitions: vec![named(partition)], ..CancelReassignmentRequest::default() };
    let reply = client.cancel_reassignment(what, Mode::Apply).await?;
    check_item(reply.partitions.first().and_then(|cancelled| cancelled.error.as_ref()))?;
    Ok(Op::CancelMove { partition, offset: reply.result.map(|result| result.offset) })
}

/// So that there is something to move.
async fn produce(context: Context, topic: String, mut asker: Asker) {
    while asker.turn().await {
        let partition = i32::try_from(asker.random.below(PARTITIONS as u64)).expect("there are few");
        let node = context.any(&mut asker.random);
        // Whoever does not lead refuses it, and that is as well.
        let _ = append_to_all(&context, &context.nodes[node].1, &topic, partition).await;
    }
}

/// Everything that was begun ends when nothing is broken any more.
pub async fn finish(context: &Context) -> anyhow::Result<()> {
    let client = context.patient_client();
    let deadline = Instant::now() + PATIENCE;
    let process = context.asker(WorkloadName::Reassign, 2, PACE).process;
    loop {
        let topic = describe(&client, TOPIC).await?;
        let is_moving =
            |at: usize| !topic.partitions[at].adding.is_empty() || !topic.partitions[at].removing.is_empty();
        let all = 0..topic.partitions.len();
        if all.clone().any(is_moving) && Instant::now() < deadline {
            sleep(Duration::from_millis(100)).await;
            continue;
        }
        let partitions =
            all.map(|at| (topic.partitions[at].partition, topic.partitions[at].replicas.clone(), is_moving(at)));
        let op = Op::Replicas { partitions: Some(partitions.collect()) };
        context
            .recorder
            .record(WorkloadName::Reassign, process, Op::Replicas { partitions: None }, async { Ok(op) })
            .await;
        return Ok(());
    }
}
