//! What is asked of the cluster while it is being broken. Each workload has a file for what it asks here, and one for
//! what must hold in `checker/`.

mod direct;
mod feed;
mod isr;
mod leaders;
mod log;
mod moves;
mod once;
mod overload;
mod recreate;
mod register;
mod samples;
mod topics;
mod zombie;

use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use clap::ValueEnum;
use quorate_client::network::Network;
use quorate_client::{AdminClient, ClientError, Freshness, Mode, Options, check_item};
use quorate_metadata::ErrorName;
use quorate_metadata::config::UNCLEAN_LEADER_ELECTION;
use quorate_proto::admin::{NewTopic, TopicDescription, TopicRef};
use serde::{Deserialize, Serialize};
use tokio::sync::watch;
use tokio::task::JoinSet;

use crate::generator::{Asker, PROCESSES_MAX, Tempo};
use crate::history::Outcome;
use crate::op::Op;
use crate::random::Random;
use crate::recorder::Recorder;

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum WorkloadName {
    /// Registers in the configs of topics: reads, writes, compare-and-set
    MetaRegister,
    /// Topics are created, deleted and listed
    TopicSet,
    /// What every node has is sampled
    LeaderEpoch,
    /// Records are produced and fetched, acks=all
    Log,
    /// Requests are sent again, to other nodes, when others have followed
    OnceAdmin,
    /// The feed is broken off and resumed elsewhere
    WatchDelta,
    /// Brokers that have been replaced speak on
    ZombieFence,
    /// Every broker is handed records, whoever leads
    OneLeader,
    /// ISR changes that name something of the past
    IsrSafety,
    /// Partitions move while records are produced to them
    Reassign,
    /// Topics go and others come under their names, each with its records
    Recreate,
    /// Large requests without a pause: part of the nemesis of this name, so that it is not chosen like the others
    #[value(skip)]
    Overload,
}

impl WorkloadName {
    pub const ALL: [Self; 11] = [
        Self::MetaRegister,
        Self::TopicSet,
        Self::LeaderEpoch,
        Self::Log,
        Self::OnceAdmin,
        Self::WatchDelta,
        Self::ZombieFence,
        Self::OneLeader,
        Self::IsrSafety,
        Self::Reassign,
        Self::Recreate,
    ];
}

impl WorkloadName {
    /// Answers in a run, below which it has not been tested.
    pub fn answers_min(self) -> usize {
        match self {
            // It is there to be refused.
            Self::Overload => 0,
            // Moves take their time.
            Self::Reassign => 12,
            // An answer is a whole stream, or comes from one node of all.
            Self::WatchDelta | Self::ZombieFence => 30,
            _ => 100,
        }
    }

    /// Whether this is what the workload asks for.
    pub fn is_answer(self, outcome: Outcome) -> bool {
        match self {
            // It asks for what must be refused.
            Self::IsrSafety => outcome != Outcome::Info,
            _ => outcome == Outcome::Ok,
        }
    }
}

/// What every workload works with.
#[derive(Clone)]
pub struct Context {
    pub recorder: Arc<Recorder>,
    /// Each node's id and address.
    pub nodes: Vec<(i32, String)>,
    pub seed: u64,
    pub stop: watch::Receiver<bool>,
    pub tempo: watch::Receiver<Tempo>,
    pub network: Network,
}

/// A call that takes longer is given up, and its outcome is open. Longer than any election, shorter than most faults.
const CALL_TIMEOUT: Duration = Duration::from_secs(4);

/// Of what is asked before faults begin and after they have ended.
const PATIENT_TIMEOUT: Duration = Duration::from_secs(20);

impl Context {
    /// A client that knows only this node, so that it is seen what this node says.
    pub fn client_of(&self, node: usize) -> AdminClient {
        self.connect(&[self.nodes[node % self.nodes.len()].1.clone()], CALL_TIMEOUT)
    }

    /// The same with time for a cluster that has just become whole.
    pub fn patient_client_of(&self, node: usize) -> AdminClient {
        self.client_of(node).with_timeout(PATIENT_TIMEOUT)
    }

    /// A client that knows all nodes.
    pub fn client(&self) -> AdminClient {
        self.connect(&self.addresses(), CALL_TIMEOUT)
    }

    pub fn patient_client(&self) -> AdminClient {
        self.connect(&self.addresses(), PATIENT_TIMEOUT)
    }

    fn connect(&self, addresses: &[String], timeout: Duration) -> AdminClient {
        client_over(self.network.clone(), addresses, timeout)
    }

    pub fn addresses(&self) -> Vec<String> {
        self.nodes.iter().map(|(_, address)| address.clone()).collect()
    }

    /// Any node.
    fn any(&self, random: &mut Random) -> usize {
        random.below(self.nodes.len() as u64) as usize
    }

    fn asker(&self, workload: WorkloadName, number: u32, pace: Duration) -> Asker {
        let listed = WorkloadName::ALL.iter().position(|name| *name == workload);
        let place = listed.unwrap_or(WorkloadName::ALL.len());
        let process = u32::try_from(place).expect("there are few") * PROCESSES_MAX * 1_000 + number;
        let random = Random::new(self.seed ^ u64::from(process) << 20);
        Asker::new(random, process, pace, self.stop.clone(), self.tempo.clone())
    }
}

pub fn client(addresses: &[String], timeout: Duration) -> AdminClient {
    client_over(Network::default(), addresses, timeout)
}

fn client_over(network: Network, addresses: &[String], timeout: Duration) -> AdminClient {
    let attempt_timeout = (timeout / 2).min(Options::default().attempt_timeout);
    let options = Options { timeout, attempt_timeout, network, ..Options::default() };
    AdminClient::connect(addresses, options).expect("the addresses are our own")
}

/// Starts to ask, until the context says stop. The tasks end when what they asked is answered or given up.
pub async fn start(workload: WorkloadName, context: &Context, tasks: &mut JoinSet<()>) -> anyhow::Result<()> {
    match workload {
        WorkloadName::MetaRegister => register::start(context, tasks),
        WorkloadName::TopicSet => topics::start(context, tasks),
        WorkloadName::LeaderEpoch => samples::start(context, tasks),
        WorkloadName::Log => log::start(context, tasks).await?,
        WorkloadName::OnceAdmin => once::start(context, tasks),
        WorkloadName::WatchDelta => feed::start(context, tasks),
        WorkloadName::ZombieFence => zombie::start(context, tasks).await?,
        WorkloadName::OneLeader => leaders::start(context, tasks).await?,
        WorkloadName::IsrSafety => isr::start(context, tasks).await?,
        WorkloadName::Reassign => moves::start(context, tasks).await?,
        WorkloadName::Recreate => recreate::start(context, tasks),
        WorkloadName::Overload => overload::start(context, tasks),
    }
    Ok(())
}

/// What is asked once more when the cluster is whole again and nothing else is under way.
pub async fn finish(workload: WorkloadName, context: &Context) -> anyhow::Result<()> {
    match workload {
        WorkloadName::TopicSet => topics::finish(context).await,
        WorkloadName::LeaderEpoch => samples::finish(context).await,
        WorkloadName::Log => log::finish(context).await,
        WorkloadName::OnceAdmin => once::finish(context).await,
        WorkloadName::WatchDelta => feed::finish(context).await,
        WorkloadName::ZombieFence => zombie::finish(context).await,
        WorkloadName::MetaRegister | WorkloadName::OneLeader | WorkloadName::IsrSafety | WorkloadName::Overload => {
            Ok(())
        }
        WorkloadName::Reassign => moves::finish(context).await,
        WorkloadName::Recreate => recreate::finish(context).await,
    }
}

/// Where one replica in sync is enough, a loss of power may take what was acknowledged. Such a topic goes on without it.
fn that_may_lose_records(mut topic: NewTopic) -> NewTopic {
    topic.configs.insert(UNCLEAN_LEADER_ELECTION.to_owned(), "true".to_owned());
    topic
}

/// A topic of one partition of which nothing but the metadata counts.
fn small_topic(name: String, replication_factor: i32) -> NewTopic {
    let (partitions, replication_factor) = (Some(1), Some(replication_factor));
    that_may_lose_records(NewTopic { name, partitions, replication_factor, ..NewTopic::default() })
}

/// A topic that a workload has for itself.
async fn create(context: &Context, name: &str, partitions: i32, min_isr: u32) -> anyhow::Result<()> {
    let client = context.patient_client();
    let configs = [("min.insync.replicas".to_owned(), min_isr.to_string())].into();
    let (name, partitions, replication_factor) = (name.to_owned(), Some(partitions), Some(3));
    let topic = NewTopic { name, partitions, replication_factor, configs, ..NewTopic::default() };
    let topic = if min_isr == 1 { that_may_lose_records(topic) } else { topic };
    let reply = client.create_topics(vec![topic], Mode::Apply).await.context("cannot create a topic")?;
    Ok(check_item(reply.topics.first().and_then(|topic| topic.error.as_ref()))?)
}

async fn describe(client: &AdminClient, name: &str) -> Result<TopicDescription, ClientError> {
    describe_at(client, name).await.map(|(_, topic)| topic)
}

/// And up to which metadata offset that is so.
async fn describe_at(client: &AdminClient, name: &str) -> Result<(i64, TopicDescription), ClientError> {
    let topic = TopicRef { name: Some(name.to_owned()), id: None };
    let mut reply = client.describe_topics(vec![topic], Freshness::Linearizable).await?;
    let missing = || ClientError::failed(ErrorName::UnknownTopicOrPartition, "an answer without the topic");
    let topic = reply.topics.pop().ok_or_else(missing)?;
    check_item(topic.error.as_ref())?;
    Ok((reply.offset, topic))
}

/// Whether it has taken effect while faults lasted; reads of what one node has always do.
pub fn is_mutation(op: &Op) -> bool {
    matches!(op, Op::Write { .. } | Op::Cas { .. } | Op::Create { .. } | Op::Delete { .. } | Op::Produce { .. })
}
