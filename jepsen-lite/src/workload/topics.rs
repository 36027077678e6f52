//! The set of topics: each client creates topics under names of its own, deletes the older ones, and lists them all.

use std::collections::VecDeque;
use std::time::Duration;

use quorate_client::{AdminClient, ClientError, Freshness, Mode, check_item};
use quorate_proto::admin::TopicRef;
use tokio::task::JoinSet;

use super::{Context, WorkloadName, small_topic};
use crate::generator::Asker;
use crate::history::Outcome;
use crate::op::Op;

const CLIENTS: u32 = 4;
const PACE: Duration = Duration::from_millis(60);

/// Topics that a client has at a time, so that lists stay short.
const TOPICS_MAX: usize = 12;

/// What the names begin with: other workloads have topics as well.
const PREFIX: &str = "set-";

pub fn start(context: &Context, tasks: &mut JoinSet<()>) {
    for number in 0..CLIENTS {
        let asker = context.asker(WorkloadName::TopicSet, number, PACE);
        tasks.spawn(ask(context.clone(), number, asker));
    }
}

async fn ask(context: Context, number: u32, mut asker: Asker) {
    let everybody = context.client();
    let (mut mine, mut made) = (VecDeque::new(), 0);
    while asker.turn().await {
        let stale = asker.random.percent(50);
        let node = context.any(&mut asker.random);
        let one = context.client_of(node);
        let (op, client) = match asker.random.below(10) {
            0..4 => (Op::List { stale, names: None, offset: None }, &one),
            4..8 if mine.len() < TOPICS_MAX => {
                made += 1;
                (Op::Create { name: format!("{PREFIX}{number}-{made}"), offset: None }, &everybody)
            }
            _ => match mine.pop_front() {
                Some(name) => (Op::Delete { name, offset: None }, &everybody),
                None => continue,
            },
        };
        let call = carry_out(client, op.clone());
        let done = context.recorder.record(WorkloadName::TopicSet, asker.process, op, call).await;
        match (done.op, done.outcome) {
            (Op::Create { name, .. }, Outcome::Ok) => mine.push_back(name),
            // Whether it is there is for the checker to find out.
            (Op::Create { .. } | Op::Delete { .. }, Outcome::Info) => asker.retire(),
            _ => {}
        }
    }
}

async fn carry_out(client: &AdminClient, op: Op) -> Result<Op, ClientError> {
    match op {
        Op::Create { name, .. } => {
            let topic = small_topic(name.clone(), 1);
            let reply = client.create_topics(vec![topic], Mode::Apply).await?;
            check_item(reply.topics.first().and_then(|topic| topic.error.as_ref()))?;
            Ok(Op::Create { name, offset: reply.result.map(|result| result.offset) })
        }
        Op::Delete { name, .. } => {
            let topic = TopicRef { name: Some(name.clone()), id: None };
            let reply = client.delete_topics(vec![topic], Mode::Apply).await?;
            check_item(reply.topics.first().and_then(|topic| topic.error.as_ref()))?;
            Ok(Op::Delete { name, offset: reply.result.map(|result| result.offset) })
        }
        Op::List { stale, .. } => {
            let freshness = if stale { Freshness::Stale } else { Freshness::Linearizable };
            let reply = client.list_topics(freshness).await?;
            let names = reply.topics.into_iter().map(|topic| topic.name).filter(|name| name.starts_with(PREFIX));
            Ok(Op::List { stale, names: Some(names.collect()), offset: Some(reply.offset) })
        }
        other => unreachable!("{other:?} is no operation on topics"),
    }
}

/// Every node says at the end what there is.
pub async fn finish(context: &Context) -> anyhow::Result<()> {
    for (number, (_, address)) in context.nodes.iter().enumerate() {
        let client = context.patient_client_of(number);
        let op = Op::List { stale: false, names: None, offset: None };
        let asker = context.asker(WorkloadName::TopicSet, CLIENTS, PACE);
        let call = carry_out(&client, op.clone());
        let done = context.recorder.record(WorkloadName::TopicSet, asker.process, op, call).await;
        anyhow::ensure!(done.is_ok(), "{address} does not list the topics at the end: {:?}", done.error);
    }
    Ok(())
}
