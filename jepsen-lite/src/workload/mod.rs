//! What is asked of the cluster while it is being broken. Each workload has a file for what it asks here, and one for
//! what must hold in `checker/`.

mod log;
mod register;
mod samples;
mod topics;

use std::sync::Arc;
use std::time::Duration;

use clap::ValueEnum;
use quorate_client::{AdminClient, Options};
use serde::{Deserialize, Serialize};
use tokio::sync::watch;
use tokio::task::JoinSet;

use crate::generator::{Asker, PROCESSES_MAX};
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
}

impl WorkloadName {
    pub const ALL: [Self; 4] = [Self::MetaRegister, Self::TopicSet, Self::LeaderEpoch, Self::Log];
}

/// What every workload works with.
#[derive(Clone)]
pub struct Context {
    pub recorder: Arc<Recorder>,
    /// Each node's id and address.
    pub nodes: Vec<(i32, String)>,
    pub seed: u64,
    pub stop: watch::Receiver<bool>,
}

/// A call that takes longer is given up, and its outcome is open. Longer than any election, shorter than most faults.
const CALL_TIMEOUT: Duration = Duration::from_secs(4);

impl Context {
    /// A client that knows only this node, so that it is seen what this node says.
    pub fn client_of(&self, node: usize) -> AdminClient {
        client(&[self.nodes[node % self.nodes.len()].1.clone()], CALL_TIMEOUT)
    }

    /// A client that knows all nodes.
    pub fn client(&self) -> AdminClient {
        client(&self.addresses(), CALL_TIMEOUT)
    }

    pub fn addresses(&self) -> Vec<String> {
        self.nodes.iter().map(|(_, address)| address.clone()).collect()
    }

    fn asker(&self, workload: WorkloadName, number: u32, pace: Duration) -> Asker {
        let place = WorkloadName::ALL.iter().position(|name| *name == workload).expect("all are listed");
        let process = u32::try_from(place).expect("there are few") * PROCESSES_MAX * 1_000 + number;
        Asker::new(Random::new(self.seed ^ u64::from(process) << 20), process, pace, self.stop.clone())
    }
}

pub fn client(addresses: &[String], timeout: Duration) -> AdminClient {
    let attempt_timeout = (timeout / 2).min(Options::default().attempt_timeout);
    let options = Options { timeout, attempt_timeout, ..Options::default() };
    AdminClient::connect(addresses, options).expect("the addresses are our own")
}

/// Starts to ask, until the context says stop. The tasks end when what they asked is answered or given up.
pub async fn start(workload: WorkloadName, context: &Context, tasks: &mut JoinSet<()>) -> anyhow::Result<()> {
    match workload {
        WorkloadName::MetaRegister => register::start(context, tasks),
        WorkloadName::TopicSet => topics::start(context, tasks),
        WorkloadName::LeaderEpoch => samples::start(context, tasks),
        WorkloadName::Log => log::start(context, tasks).await?,
    }
    Ok(())
}

/// What is asked once more when the cluster is whole again and nothing else is under way.
pub async fn finish(workload: WorkloadName, context: &Context) -> anyhow::Result<()> {
    match workload {
        WorkloadName::MetaRegister => Ok(()),
        WorkloadName::TopicSet => topics::finish(context).await,
        WorkloadName::LeaderEpoch => samples::finish(context).await,
        WorkloadName::Log => log::finish(context).await,
    }
}

/// Whether it has taken effect while faults lasted; reads of what one node has always do.
pub fn is_mutation(op: &Op) -> bool {
    matches!(op, Op::Write { .. } | Op::Cas { .. } | Op::Create { .. } | Op::Delete { .. } | Op::Produce { .. })
}
