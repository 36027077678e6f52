//! Brokers without a process: each incarnation goes on after the next one has registered.

use std::time::Duration;

use anyhow::Context as _;
use quorate_client::{ClientError, Freshness, world};
use quorate_metadata::ids::{DirectoryId, IncarnationId};
use quorate_metadata::plan::features;
use quorate_metadata::{ApiError, ErrorName};
use quorate_proto::broker::{HeartbeatRequest, RegisterRequest};
use quorate_proto::features_to_wire;
use quorate_proto::metadata::Endpoint;
use tokio::task::JoinSet;
use tokio::time::timeout;
use tokio_stream::wrappers::ReceiverStream;

use super::direct::ask;
use super::{CALL_TIMEOUT, Context, WorkloadName};
use crate::generator::Asker;
use crate::history::Operation;
use crate::op::Op;

/// They want to be fenced, so that no replica is given to them.
const BROKERS: [i32; 2] = [101, 102];
/// Where nobody listens.
const NOBODYS_PORT: u32 = 1;
const PACE: Duration = Duration::from_millis(100);

pub async fn start(context: &Context, tasks: &mut JoinSet<()>) -> anyhow::Result<()> {
    let cluster = context.client().describe_quorum(Freshness::Linearizable).await.context("which cluster is it?")?;
    for (number, id) in (0..).zip(BROKERS) {
        let asker = context.asker(WorkloadName::ZombieFence, number, PACE);
        tasks.spawn(live(context.clone(), cluster.cluster_id.clone(), id, asker));
    }
    Ok(())
}

async fn live(context: Context, cluster: String, id: i32, mut asker: Asker) {
    let mut epochs: Vec<i64> = Vec::new();
    while asker.turn().await {
        if epochs.is_empty() || asker.random.percent(5) {
            let done = register(&context, &cluster, id, asker.process, false).await;
            if let Op::Register { epoch: Some(epoch), .. } = done.op {
                epochs.push(epoch);
            }
        }
        // The last one mostly; one that was replaced now and then.
        let recent = epochs.len().saturating_sub(3);
        let Some(last) = epochs.last() else { continue };
        let epoch = if asker.random.percent(70) { *last } else { *asker.random.pick(&epochs[recent..]) };
        beat(&context, id, epoch, &mut asker).await;
    }
}

async fn register(context: &Context, cluster: &str, id: i32, process: u32, live: bool) -> Operation {
    let client = context.client();
    let (name, host) = ("API".to_owned(), "127.0.0.1".to_owned());
    let request = RegisterRequest {
        cluster_id: cluster.to_owned(),
        broker: id,
        incarnation: IncarnationId::new(world::uuid()).to_string(),
        endpoints: vec![Endpoint { name, host, port: NOBODYS_PORT, security: 0 }],
        kind: None,
        probe: None,
        rack: None,
        features: features_to_wire(&features::supported()),
        directories: vec![DirectoryId::new(world::uuid()).to_string()],
        previous_epoch: None,
    };
    let call = async {
        let reply = client.register_broker(request).await?;
        Ok(Op::Register { broker: id, live, epoch: Some(reply.broker_epoch) })
    };
    let asked = Op::Register { broker: id, live, epoch: None };
    context.recorder.record(WorkloadName::ZombieFence, process, asked, call).await
}

/// A stream with one heartbeat, to whoever is the active controller.
async fn beat(context: &Context, id: i32, epoch: i64, asker: &mut Asker) {
    let node = context.any(&mut asker.random);
    let address = context.nodes[node].1.clone();
    let call = async {
        let (beats, sent) = tokio::sync::mpsc::channel(1);
        let request =
            HeartbeatRequest { broker: id, broker_epoch: epoch, want_fence: true, sequence: 1, ..Default::default() };
        let silent = || ClientError::Unknown(ApiError::new(ErrorName::RequestTimedOut, "no answer"));
        beats.send(request).await.map_err(|_| silent())?;
        let mut replies = ask(context.broker(&address).heartbeat(ReceiverStream::new(sent))).await?;
        let reply = async { Ok(tonic::Response::new(replies.message().await?)) };
        match timeout(CALL_TIMEOUT, ask(reply)).await {
            Ok(reply) => {
                reply?.map(|reply| Op::Beat { broker: id, epoch, fenced: Some(reply.fenced) }).ok_or_else(silent)
            }
            Err(_) => Err(silent()),
        }
    };
    let asked = Op::Beat { broker: id, epoch, fenced: None };
    context.recorder.record(WorkloadName::ZombieFence, asker.process, asked, call).await;
}

/// Nothing is broken any more: a broker that lives cannot be replaced.
pub async fn finish(context: &Context) -> anyhow::Result<()> {
    let client = context.patient_client();
    let cluster = client.describe_quorum(Freshness::Linearizable).await?.cluster_id;
    let process = context.asker(WorkloadName::ZombieFence, 9, PACE).process;
    let (alive, _) = context.nodes.first().context("there are nodes")?;
    register(context, &cluster, *alive, process, true).await;
    Ok(())
}
