//! Changes of the ISR that leaders on this broker ask for: batched, and asked again until their outcome is known.
//!
//! A leader may go back to the ISR that it had only when the change was certainly not applied. Very few answers prove
//! that; after all others the metadata decides, so a change ends here when the metadata has overtaken it.
//!
//! A refusal proves nothing while an earlier copy of the request, which nobody answered, may be under way: it may be granted
//! when the replica is eligible again, long after the leader has committed without it. Then the change is taken back: the
//! leader asks for the ISR that is. That moves the partition epoch, and the metadata overtakes all copies.

mod waiting;
mod wire;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use quorate_metadata::ids::{BrokerEpoch, BrokerId, LeaderEpoch, PartitionEpoch, TopicPartition};
use quorate_metadata::record::LeaderRecoveryState;
use quorate_metadata::{ApiError, ErrorName, MetadataImage};
use quorate_proto::broker::broker_client::BrokerClient;
use quorate_proto::broker::{AlterPartitionReply, AlterPartitionRequest};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::Instant;
use tonic::transport::Channel;
use tonic::{Request, Status};
use tracing::{debug, trace};

use super::connect::{Candidates, connect};
use super::session::at;
use super::{AgentConfig, Standing};
use waiting::{Asked, WaitingChanges};

/// Changes that wait for their outcome, of about 500 bytes each: one for each partition of a broker that leads 100 000.
/// Further submissions wait in `submit`.
const WAITING_MAX: usize = 100_000;

/// Submissions not yet taken over by the task.
const QUEUE_MAX: usize = 1_000;

const CALL_TIMEOUT: Duration = Duration::from_secs(2);

/// What a leader wants the ISR of its partition to be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct IsrChange {
    pub partition: TopicPartition,
    pub leader_epoch: LeaderEpoch,
    /// Of the state that is to be changed.
    pub partition_epoch: PartitionEpoch,
    /// Each member with the broker epoch of its fetches; without one it is not checked.
    pub isr: Vec<(BrokerId, Option<BrokerEpoch>)>,
    pub recovery: LeaderRecoveryState,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum IsrOutcome {
    Applied {
        partition_epoch: PartitionEpoch,
        isr: Vec<BrokerId>,
        recovery: LeaderRecoveryState,
    },
    /// Certainly not applied: the leader goes back to the state that it has from the metadata.
    NotApplied(ApiError),
    /// Applied or not: the leader goes on counting with both ISRs until the metadata tells it. It may have told the host
    /// already, so the leader compares partition epochs.
    Pending(ApiError),
}

/// Asks for changes of the ISR. Cheap to clone.
#[derive(Clone)]
pub struct IsrChanges {
    submissions: mpsc::Sender<Vec<Asked>>,
}

impl IsrChanges {
    /// Waits until the outcome is known, or is for the metadata to tell. One change of a partition at a time: a second
    /// one is refused as not applied, without being sent, while the first has no outcome. To drop the future does not
    /// take the change back.
    pub async fn alter(&self, change: IsrChange) -> IsrOutcome {
        let outcomes = self.submit(vec![change]).await;
        outcomes.into_iter().next().expect("one change has one outcome").known().await
    }

    /// Hands over changes that came up together, and returns where to wait for the outcome of each, in their order. They
    /// travel in one request with all others that wait, as far as its bounds allow.
    pub async fn submit(&self, changes: Vec<IsrChange>) -> Vec<AwaitedOutcome> {
        let (submission, outcomes): (Vec<_>, Vec<_>) = changes
            .into_iter()
            .map(|change| {
                let (answer, outcome) = oneshot::channel();
                (Asked { change, answer }, AwaitedOutcome(outcome))
            })
            .unzip();
        // Where the agent has stopped, the answers are dropped with the submission.
        let _ = self.submissions.send(submission).await;
        outcomes
    }
}

/// The outcome of a change that was handed over. Dropped, it does not take the change back.
pub struct AwaitedOutcome(oneshot::Receiver<IsrOutcome>);

impl AwaitedOutcome {
    /// Waits until the outcome is known, or is for the metadata to tell.
    pub async fn known(self) -> IsrOutcome {
        let stopped = |_| IsrOutcome::Pending(ApiError::new(ErrorName::ControllerUnavailable, "the agent has stopped"));
        self.0.await.unwrap_or_else(stopped)
    }
}

/// The handle, and the task that it asks.
pub(super) fn start(
    config: Arc<AgentConfig>,
    standing: watch::Receiver<Standing>,
    metadata: watch::Receiver<MetadataImage>,
) -> (IsrChanges, impl Future<Output = ()>) {
    let (submissions, queue) = mpsc::channel(QUEUE_MAX);
    let task = Task {
        candidates: Candidates::new(&config),
        config,
        channel: None,
        queue,
        standing,
        metadata,
        waiting: WaitingChanges::default(),
    };
    (IsrChanges { submissions }, task.run())
}

struct Task {
    config: Arc<AgentConfig>,
    candidates: Candidates,
    /// Of the node that answered last.
    channel: Option<(String, Channel)>,
    queue: mpsc::Receiver<Vec<Asked>>,
    standing: watch::Receiver<Standing>,
    metadata: watch::Receiver<MetadataImage>,
    waiting: WaitingChanges,
}

impl Task {
    /// Ends with the session: what still waits is then pending.
    async fn run(mut self) {
        loop {
            self.observe();
            while !self.is_full()
                && let Ok(submission) = self.queue.try_recv()
            {
                self.admit(submission);
            }
            let now = Instant::now();
            let is_due = self.waiting.next_due().is_some_and(|due| due <= now);
            let epoch = self.standing.borrow().epoch;
            match epoch {
                Some(epoch) if is_due => self.ask(epoch, now).await,
                _ => {
                    if !self.wait(epoch.is_some()).await {
                        return;
                    }
                }
            }
        }
    }

    fn is_full(&self) -> bool {
        self.waiting.len() >= WAITING_MAX
    }

    /// What changes are compared with must not be older than what their leaders know.
    fn admit(&mut self, submission: Vec<Asked>) {
        self.observe();
        let now = Instant::now();
        submission.into_iter().for_each(|asked| self.waiting.admit(asked, now));
    }

    fn observe(&mut self) {
        let image = self.metadata.borrow_and_update();
        let compared = self.waiting.observe(&image);
        trace!(compared, waiting = self.waiting.len(), offset = %image.next_offset, "metadata observed");
    }

    /// Until there may be something to do; false when there never will be again.
    async fn wait(&mut self, is_registered: bool) -> bool {
        let next_due = self.waiting.next_due().filter(|_| is_registered);
        let (is_idle, is_full) = (self.waiting.is_empty(), self.is_full());
        tokio::select! {
            submission = self.queue.recv(), if !is_full => submission.map(|asked| self.admit(asked)).is_some(),
            changed = self.standing.changed(), if !is_idle => changed.is_ok(),
            changed = self.metadata.changed(), if !is_idle => changed.is_ok(),
            () = at(next_due) => true,
        }
    }

    async fn ask(&mut self, epoch: BrokerEpoch, now: Instant) {
        let due = self.waiting.due(now);
        let request = AlterPartitionRequest {
            broker: self.config.broker.get(),
            broker_epoch: epoch.get(),
            partitions: due.alterations,
        };
        let channel = if request.partitions.is_empty() { None } else { self.channel().await };
        let Some((address, channel)) = channel else {
            // Nothing was sent, so nothing is under way.
            return self.waiting.postpone(&due.ids, Instant::now());
        };
        debug!(changes = request.partitions.len(), waiting = self.waiting.len(), "ISR changes asked for");
        let answered = match call(channel.clone(), request).await {
            Ok(reply) => {
                self.channel = Some((address, channel));
                reply.partitions
            }
            Err(status) => {
                debug!(%status, "ISR changes not answered");
                self.candidates.learn(&status);
                Vec::new()
            }
        };
        let mut outcomes: BTreeMap<_, _> =
            answered.iter().filter_map(|answer| Some((wire::named(answer)?, wire::outcome(answer)?))).collect();
        due.ids.iter().for_each(|id| self.waiting.judge(*id, outcomes.remove(id)));
        self.waiting.postpone(&due.ids, Instant::now());
    }

    /// Of the node that answered last, or of another one. Whoever gets it puts it back when it has answered.
    async fn channel(&mut self) -> Option<(String, Channel)> {
        if let Some(known) = self.channel.take() {
            return Some(known);
        }
        let address = self.candidates.next().await;
        match connect(&self.config, &address).await {
            Ok(channel) => Some((address, channel)),
            Err(error) => {
                debug!(%address, %error, "not connected");
                None
            }
        }
    }
}

async fn call(channel: Channel, request: AlterPartitionRequest) -> Result<AlterPartitionReply, Status> {
    let mut request = Request::new(request);
    request.set_timeout(CALL_TIMEOUT);
    let mut client = BrokerClient::new(channel);
    let answered = tokio::time::timeout(CALL_TIMEOUT, client.alter_partition(request)).await;
    Ok(answered.map_err(|_| Status::deadline_exceeded("the node does not answer"))??.into_inner())
}
