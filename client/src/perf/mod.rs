//! Load and timing against a real cluster: one file for each measurement, one JSON line for each result.
//!
//! Every measurement is bounded in time and count, says its parameters and its spread, and removes what it made.

pub mod alter_isr;
pub mod create;
pub mod curve;
pub mod dead_broker;
pub mod failover;
pub mod fence;
pub mod heartbeat;
pub mod mutate;
pub mod outage;
pub mod produce;
pub mod restart;
pub mod simulate;
pub mod watch;

mod background;
mod brokers;
mod load;
mod local;
mod report;
mod side_thread;
mod usage;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use clap::Args;
use quorate_metadata::ErrorName;
use quorate_proto::admin::{Assignment, CreatedTopic, DescribeQuorumReply, NewTopic, TopicRef};

pub use local::LocalCluster;
pub use report::{Report, Samples};
pub use usage::NodeUsage;

use usage::Observation;

use crate::{AdminClient, ClientError, Freshness, InvalidAddress, Mode, Options, check_item, world};

/// A measurement waits longer than any client should, so as to see bad cases in full.
const PATIENCE: Duration = Duration::from_secs(600);

/// Topics per request when a measurement removes what it made.
const DELETE_CHUNK: usize = 500;

#[derive(Debug, thiserror::Error)]
pub enum PerfError {
    #[error(transparent)]
    Client(#[from] ClientError),
    #[error(transparent)]
    Address(#[from] InvalidAddress),
    #[error("{what}: {source}")]
    Io { what: String, source: std::io::Error },
    /// The cluster is not such that this can be measured, or did not become so in time.
    #[error("{0}")]
    Cluster(String),
}

impl PerfError {
    fn cluster(message: impl Into<String>) -> Self {
        Self::Cluster(message.into())
    }
}

/// Where to measure.
#[derive(Debug, Clone)]
pub struct Target {
    pub bootstrap: Vec<String>,
    pub options: Options,
    /// Where the nodes run on this machine.
    local: Option<Arc<LocalCluster>>,
}

/// How clients find the cluster.
#[derive(Debug, Clone, Args)]
pub struct Routing {
    /// Ask the nodes in the order given, so that a standby may have to forward
    #[arg(long)]
    pub any_node: bool,
}

/// A cluster that `scripts/cluster` started.
#[derive(Debug, Clone, Args)]
pub struct LocalArgs {
    /// The folder of a cluster on this machine: it is measured instead of --bootstrap, and the results say what its
    /// nodes used [default where nodes are killed: .quorate]
    #[arg(long, global = true)]
    pub dir: Option<PathBuf>,
    /// The script that starts a node again
    #[arg(long, global = true, default_value = "scripts/cluster", value_name = "FILE")]
    pub cluster_script: PathBuf,
}

impl Target {
    pub fn new(bootstrap: Vec<String>, options: Options) -> Self {
        Self { bootstrap, options, local: None }
    }

    /// A cluster on this machine.
    pub fn local(cluster: LocalCluster, options: Options) -> Self {
        Self { bootstrap: cluster.bootstrap().to_vec(), options, local: Some(Arc::new(cluster)) }
    }

    /// Its nodes' processes, to be signalled and started.
    fn processes(&self) -> Result<&LocalCluster, PerfError> {
        self.local
            .as_deref()
            .ok_or_else(|| PerfError::cluster("--dir must name the folder of a cluster on this machine"))
    }

    /// What its nodes use from now on.
    fn observe(&self) -> Observation {
        Observation::start(self.local.as_deref())
    }

    async fn controller_epoch(&self) -> Result<i32, PerfError> {
        Ok(self.client()?.describe_quorum(Freshness::Linearizable).await?.epoch)
    }

    /// The same cluster, whose answers may take as long as they take.
    fn patient(&self) -> Self {
        let options = Options { timeout: PATIENCE, attempt_timeout: PATIENCE, ..self.options.clone() };
        Self { options, ..self.clone() }
    }

    pub fn client(&self) -> Result<AdminClient, PerfError> {
        Ok(AdminClient::connect(&self.bootstrap, self.options.clone())?)
    }

    /// The same cluster, with the active controller as the first to be asked.
    pub async fn controller_first(&self) -> Result<Self, PerfError> {
        let quorum = self.client()?.describe_quorum(Freshness::Linearizable).await?;
        let controller = controller_address(&quorum)?;
        let mut bootstrap = vec![controller.clone()];
        bootstrap.extend(self.bootstrap.iter().filter(|address| **address != controller).cloned());
        Ok(Self { bootstrap, ..self.clone() })
    }

    async fn routed(&self, routing: &Routing) -> Result<Self, PerfError> {
        if routing.any_node { Ok(self.clone()) } else { self.controller_first().await }
    }

    /// The same cluster without this node.
    fn without(&self, address: &str) -> Self {
        let others = self.bootstrap.iter().filter(|other| *other != address).cloned().collect();
        Self { bootstrap: others, ..self.clone() }
    }
}

/// The node that is the active controller.
async fn active_controller(target: &Target) -> Result<i32, PerfError> {
    controller_of(&target.client()?.describe_quorum(Freshness::Linearizable).await?)
}

fn controller_of(quorum: &DescribeQuorumReply) -> Result<i32, PerfError> {
    quorum.leader_id.ok_or_else(|| PerfError::cluster("there is no active controller"))
}

fn controller_address(quorum: &DescribeQuorumReply) -> Result<String, PerfError> {
    address_of(quorum, controller_of(quorum)?)
}

/// Where a node's API is.
fn address_of(quorum: &DescribeQuorumReply, node: i32) -> Result<String, PerfError> {
    let voter = quorum.voters.iter().find(|voter| voter.id == node);
    voter.map(|voter| voter.endpoint.clone()).ok_or_else(|| PerfError::cluster(format!("node {node} is no voter")))
}

/// Names that no other run uses.
fn names(measurement: &str, count: usize) -> Vec<String> {
    let run = world::uuid().simple().to_string();
    (0..count).map(|number| format!("perf-{measurement}-{}-{number}", &run[..8])).collect()
}

async fn create(client: &AdminClient, topic: NewTopic) -> Result<CreatedTopic, ClientError> {
    let created = create_all(client, vec![topic]).await?.into_iter().next();
    created.ok_or_else(|| ClientError::failed(ErrorName::UnknownServerError, "the reply names no topic"))
}

/// Creates the topics in one request.
async fn create_all(client: &AdminClient, topics: Vec<NewTopic>) -> Result<Vec<CreatedTopic>, ClientError> {
    let created = client.create_topics(topics, Mode::Apply).await?.topics;
    created.iter().try_for_each(|topic| check_item(topic.error.as_ref()))?;
    Ok(created)
}

fn assigned(name: String, replicas: impl IntoIterator<Item = Vec<i32>>) -> NewTopic {
    let assignment = (0..).zip(replicas).map(|(partition, replicas)| Assignment { partition, replicas }).collect();
    NewTopic { name, assignment, ..NewTopic::default() }
}

/// Deletes what a measurement made; what is not there does not matter.
async fn delete(client: &AdminClient, names: &[String]) -> Result<(), ClientError> {
    for chunk in names.chunks(DELETE_CHUNK) {
        let topics = chunk.iter().map(|name| TopicRef { name: Some(name.clone()), id: None }).collect();
        for deleted in client.delete_topics(topics, Mode::Apply).await?.topics {
            match check_item(deleted.error.as_ref()) {
                Err(error) if error.name() != ErrorName::UnknownTopicOrPartition => return Err(error),
                _ => {}
            }
        }
    }
    Ok(())
}

/// The measurement's own result, unless only the clean-up failed.
fn after_cleaning<T>(measured: Result<T, PerfError>, cleaned: Result<(), PerfError>) -> Result<T, PerfError> {
    let value = measured?;
    cleaned?;
    Ok(value)
}

fn seconds(elapsed: Duration) -> f64 {
    elapsed.as_secs_f64()
}
