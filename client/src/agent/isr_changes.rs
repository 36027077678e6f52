//! AlterPartition: what leaders want of their ISRs, in batches, until it is known what became of each.
//!
//! The one danger is to take a change for refused that was made: the leader would then commit records without a member
//! of the ISR. So only an answer that proves it says `NotApplied`; every other is asked again, or left to the metadata.

use std::collections::BTreeMap;
use std::future::Future;
use std::time::Duration;

use quorate_metadata::ids::{BrokerEpoch, BrokerId, LeaderEpoch, PartitionEpoch, TopicPartition};
use quorate_metadata::record::LeaderRecoveryState;
use quorate_metadata::{ApiError, ErrorName, MetadataImage};
use quorate_proto::broker::{AlterPartitionRequest, AlteredPartition, IsrMember, PartitionAlteration};
use quorate_proto::error;
use tokio::sync::{mpsc, oneshot, watch};
use tracing::debug;

use super::{ControllerCalls, Standing};

/// Changes that wait for their turn; the leaders wait beyond it.
const WAITING_MAX: usize = 1_024;

/// In one request: its batch stays far below what the log takes at once.
const CHANGES_PER_REQUEST_MAX: usize = 1_000;

const RETRY_MIN: Duration = Duration::from_millis(20);
const RETRY_MAX: Duration = Duration::from_secs(1);

/// A leader has one change under way for each partition.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct IsrChange {
    pub partition: TopicPartition,
    pub leader_epoch: LeaderEpoch,
    /// As the leader knows it: the change is refused if another was made meanwhile.
    pub partition_epoch: PartitionEpoch,
    /// Each with the epoch under which it fetched; `None`: not checked, for the leader itself.
    pub isr: Vec<(BrokerId, Option<BrokerEpoch>)>,
    pub recovery: LeaderRecoveryState,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum IsrOutcome {
    Applied {
        partition_epoch: PartitionEpoch,
        isr: Vec<BrokerId>,
    },
    /// Certainly not made: what was, is.
    NotApplied(ApiError),
    /// It may have been made, or was overtaken: the metadata tells.
    Pending(ApiError),
}

/// A handle; clones share the queue.
#[derive(Clone)]
pub struct IsrChanges {
    waiting: mpsc::Sender<Waiting>,
}

struct Waiting {
    change: IsrChange,
    reply: oneshot::Sender<IsrOutcome>,
}

impl IsrChanges {
    /// Resolves when it is known what became of the change, or that only the metadata can tell.
    pub async fn alter(&self, change: IsrChange) -> IsrOutcome {
        let (reply, outcome) = oneshot::channel();
        let ended = || IsrOutcome::Pending(ApiError::new(ErrorName::OutcomeUnknown, "the agent has ended"));
        if self.waiting.send(Waiting { change, reply }).await.is_err() {
            return ended();
        }
        outcome.await.unwrap_or_else(|_| ended())
    }
}

pub(super) fn start(
    calls: ControllerCalls,
    standing: watch::Receiver<Standing>,
    metadata: watch::Receiver<MetadataImage>,
) -> (IsrChanges, impl Future<Output = ()>) {
    let (sender, waiting) = mpsc::channel(WAITING_MAX);
    (IsrChanges { waiting: sender }, run(waiting, calls, standing, metadata))
}

async fn run(
    mut waiting: mpsc::Receiver<Waiting>,
    calls: ControllerCalls,
    standing: watch::Receiver<Standing>,
    metadata: watch::Receiver<MetadataImage>,
) {
    let mut open: BTreeMap<TopicPartition, Waiting> = BTreeMap::new();
    let mut pause = RETRY_MIN;
    loop {
        if open.is_empty() {
            let Some(first) = waiting.recv().await else { return };
            open.insert(first.change.partition, first);
        }
        while open.len() < CHANGES_PER_REQUEST_MAX
            && let Ok(next) = waiting.try_recv()
        {
            // The leader has forgotten the older one, or it would have waited.
            open.insert(next.change.partition, next);
        }
        let Some(epoch) = calls.epoch().await else { return };
        let answer = calls
            .call(request(calls.broker(), epoch, &open), async |mut client, request| {
                client.alter_partition(request).await
            })
            .await;
        let settled = match answer {
            Ok(reply) => take_answers(&mut open, &reply.partitions),
            Err(error) => {
                debug!(%error, changes = open.len(), "isr changes not answered");
                false
            }
        };
        drop_overtaken(&mut open, &metadata.borrow());
        pause = if settled { RETRY_MIN } else { (pause * 2).min(RETRY_MAX) };
        if !open.is_empty() {
            rest(pause, standing.clone(), epoch).await;
        }
    }
}

/// Until the pause is over, or the broker has another epoch.
async fn rest(pause: Duration, mut standing: watch::Receiver<Standing>, epoch: BrokerEpoch) {
    let another = standing.wait_for(|standing| standing.epoch.is_some_and(|now| now != epoch));
    // Both ends of the wait are reason enough to go on.
    let _ = tokio::time::timeout(pause, another).await;
}

fn request(broker: BrokerId, epoch: BrokerEpoch, open: &BTreeMap<TopicPartition, Waiting>) -> AlterPartitionRequest {
    let alteration = |change: &IsrChange| PartitionAlteration {
        topic_id: change.partition.topic.to_string(),
        partition: change.partition.partition.get(),
        leader_epoch: change.leader_epoch.get(),
        partition_epoch: change.partition_epoch.get(),
        isr: change
            .isr
            .iter()
            .map(|(broker, epoch)| IsrMember { broker: broker.get(), epoch: epoch.map(BrokerEpoch::get) })
            .collect(),
        recovery: change.recovery as i32,
    };
    AlterPartitionRequest {
        broker: broker.get(),
        broker_epoch: epoch.get(),
        partitions: open.values().map(|waiting| alteration(&waiting.change)).collect(),
    }
}

/// Says whether any was settled.
fn take_answers(open: &mut BTreeMap<TopicPartition, Waiting>, answers: &[AlteredPartition]) -> bool {
    let before = open.len();
    for answer in answers {
        let Ok(topic) = answer.topic_id.parse() else { continue };
        let id = TopicPartition::new(topic, quorate_metadata::ids::PartitionId::new(answer.partition));
        if let Some(outcome) = outcome(answer)
            && let Some(waiting) = open.remove(&id)
        {
            settle(waiting, outcome);
        }
    }
    open.len() < before
}

/// `None`: it proves nothing, and is asked again.
fn outcome(answer: &AlteredPartition) -> Option<IsrOutcome> {
    let Some(refused) = answer.error.as_ref().map(error::from_item) else {
        let isr = answer.isr.iter().copied().map(BrokerId::new).collect();
        return Some(IsrOutcome::Applied { partition_epoch: PartitionEpoch::new(answer.partition_epoch), isr });
    };
    match refused.name {
        ErrorName::IneligibleReplica => Some(IsrOutcome::NotApplied(refused)),
        ErrorName::FencedLeaderEpoch
        | ErrorName::InvalidRequest
        | ErrorName::InvalidUpdateVersion
        | ErrorName::UnknownTopicId
        | ErrorName::UnknownTopicOrPartition
        | ErrorName::NewLeaderElected => Some(IsrOutcome::Pending(refused)),
        _ => None,
    }
}

/// What the metadata has gone beyond needs no answer any more.
fn drop_overtaken(open: &mut BTreeMap<TopicPartition, Waiting>, image: &MetadataImage) {
    let is_overtaken = |change: &IsrChange| {
        image
            .partition(change.partition)
            .is_none_or(|now| now.leader_epoch > change.leader_epoch || now.partition_epoch > change.partition_epoch)
    };
    for (_, waiting) in open.extract_if(.., |_, waiting| is_overtaken(&waiting.change)) {
        settle(waiting, IsrOutcome::Pending(ApiError::new(ErrorName::OutcomeUnknown, "overtaken by the metadata")));
    }
}

/// Who asked may have gone.
fn settle(waiting: Waiting, outcome: IsrOutcome) {
    let _ = waiting.reply.send(outcome);
}
