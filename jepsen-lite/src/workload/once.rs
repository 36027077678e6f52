//! Requests with an id, delivered by a hostile client: several times at once, to any node, over new connections, and
//! again when others have followed.

use std::time::Duration;

use futures::future::join_all;
use quorate_client::{ClientError, Freshness, check_item, world};
use quorate_metadata::ids::ClientId;
use quorate_proto::admin::{CreateTopicsRequest, DeleteTopicsRequest, MutationOptions, TopicRef};
use tokio::task::JoinSet;

use super::direct::ask;
use super::{Context, WorkloadName, small_topic};
use crate::generator::Asker;
use crate::history::Operation;
use crate::op::Op;

const CLIENTS: u32 = 3;
const PACE: Duration = Duration::from_millis(120);
/// What the names begin with.
pub const PREFIX: &str = "once-";

/// Deliveries of one request before it is given up.
const DELIVERIES_MAX: usize = 12;

pub fn start(context: &Context, tasks: &mut JoinSet<()>) {
    for number in 0..CLIENTS {
        let asker = context.asker(WorkloadName::OnceAdmin, number, PACE);
        tasks.spawn(Client { context: context.clone(), asker, id: ClientId::new(world::uuid()), last: 0 }.run(number));
    }
}

struct Client {
    context: Context,
    asker: Asker,
    id: ClientId,
    last: u64,
}

impl Client {
    async fn run(mut self, number: u32) {
        for turn in 0.. {
            if !self.asker.turn().await {
                break;
            }
            let name = format!("{PREFIX}{number}-{turn}");
            if self.life(&name).await.is_none() {
                // What became of a request is open: a client with another id goes on.
                self.asker.retire();
                (self.id, self.last) = (ClientId::new(world::uuid()), 0);
            }
        }
    }

    /// A topic comes and goes, and comes back under another id. Nothing if the outcome of a request is open.
    async fn life(&mut self, name: &str) -> Option<()> {
        let created = self.request(name, true);
        self.until_answered(&created).await?;
        if self.asker.random.percent(40) {
            self.deliver(&created, 1).await;
            return Some(());
        }
        let deleted = self.request(name, false);
        self.until_answered(&deleted).await?;
        self.deliver(&created, 2).await;
        let again = self.request(name, true);
        self.until_answered(&again).await?;
        self.deliver(&deleted, 2).await;
        self.deliver(&created, 1).await;
        let gone = self.request(name, false);
        self.until_answered(&gone).await?;
        self.deliver(&again, 1).await;
        Some(())
    }

    fn request(&mut self, name: &str, creates: bool) -> Op {
        self.last += 1;
        Op::Once { name: name.to_owned(), request: self.last, creates, id: None, offset: None }
    }

    async fn until_answered(&mut self, request: &Op) -> Option<()> {
        for _ in 0..DELIVERIES_MAX {
            let times = 1 + self.asker.random.below(3);
            let answers = self.deliver(request, times).await;
            if answers.iter().any(Operation::is_ok) {
                return Some(());
            }
            if !self.asker.turn().await {
                return None;
            }
        }
        None
    }

    async fn deliver(&mut self, request: &Op, times: u64) -> Vec<Operation> {
        let nodes: Vec<usize> = (0..times).map(|_| self.context.any(&mut self.asker.random)).collect();
        let deliveries = nodes.into_iter().map(|node| {
            let call = send(&self.context, &self.context.nodes[node].1, self.id, request.clone());
            self.context.recorder.record(WorkloadName::OnceAdmin, self.asker.process, request.clone(), call)
        });
        join_all(deliveries).await
    }
}

async fn send(context: &Context, address: &str, client: ClientId, op: Op) -> Result<Op, ClientError> {
    let Op::Once { name, request, creates, .. } = op else { unreachable!("{op:?} has no request id") };
    let options = Some(MutationOptions {
        client_id: client.to_string(),
        request_id: request,
        timeout_ms: 2_000,
        ..MutationOptions::default()
    });
    let mut admin = context.admin(address);
    let (id, result) = if creates {
        let topic = small_topic(name.clone(), 1);
        let reply = ask(admin.create_topics(CreateTopicsRequest { options, topics: vec![topic] })).await?;
        let topic = reply.topics.into_iter().next();
        check_item(topic.as_ref().and_then(|topic| topic.error.as_ref()))?;
        (topic.map(|topic| topic.id), reply.result)
    } else {
        let topic = TopicRef { name: Some(name.clone()), id: None };
        let reply = ask(admin.delete_topics(DeleteTopicsRequest { options, topics: vec![topic] })).await?;
        let topic = reply.topics.into_iter().next();
        check_item(topic.as_ref().and_then(|topic| topic.error.as_ref()))?;
        (topic.map(|topic| topic.id), reply.result)
    };
    Ok(Op::Once { name, request, creates, id, offset: result.map(|result| result.offset) })
}

pub async fn finish(context: &Context) -> anyhow::Result<()> {
    let client = context.patient_client();
    let asker = context.asker(WorkloadName::OnceAdmin, CLIENTS, PACE);
    let named = async {
        let reply = client.list_topics(Freshness::Linearizable).await?;
        let topics = reply.topics.into_iter().filter(|topic| topic.name.starts_with(PREFIX));
        Ok(Op::Named { topics: Some(topics.map(|topic| (topic.name, topic.id)).collect()) })
    };
    let done = context.recorder.record(WorkloadName::OnceAdmin, asker.process, Op::Named { topics: None }, named).await;
    anyhow::ensure!(done.is_ok(), "the topics cannot be listed at the end: {:?}", done.error);
    Ok(())
}
