//! Changes of the ISR that leaders on this broker ask for: batched, and asked again until their outcome is known.
//!
//! A leader may go back to the ISR that it had only when the change was certainly not applied. Very few answers prove
//! that; after all others the metadata decides, so a change ends here when the metadata has overtaken it.
//!
//! A refusal proves nothing while an earlier copy of the request, which nobody answered, may be under way: it may be granted
//! when the replica is eligible again, long after the leader has committed without it. Then the change is taken back: the
//! leader asks for the ISR that is. That moves the partition epoch, and the metadata overtakes all copies.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use quorate_metadata::ids::{BrokerEpoch, BrokerId, LeaderEpoch, PartitionEpoch, PartitionId, TopicPartition};
use quorate_metadata::record::LeaderRecoveryState;
use quorate_metadata::{ApiError, ErrorName, MetadataImage};
use quorate_proto::broker::broker_client::BrokerClient;
use quorate_proto::broker::{
    AlterPartitionReply, AlterPartitionRequest, AlteredPartition, IsrMember, PartitionAlteration,
};
use quorate_proto::error;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::Instant;
use tonic::transport::Channel;
use tonic::{Request, Status};
use tracing::debug;

use super::connect::{Candidates, connect};
use super::session::at;
use super::{AgentConfig, Standing};

/// Of changes in one request: a leader of thousands of partitions that loses a follower asks in a few calls, each of
/// which fits into one batch of records.
const CHANGES_PER_CALL_MAX: usize = 1_000;

/// Of changes that wait for their outcome. Further ones wait in `alter`.
const WAITING_MAX: usize = 10_000;

/// Of changes not yet taken over by the task.
const QUEUE_MAX: usize = 1_000;

const CALL_TIMEOUT: Duration = Duration::from_secs(2);

/// The first pause before a change is asked for again: a new controller is there in about this time.
const BACKOFF_MIN: Duration = Duration::from_millis(20);

/// The longest pause: nobody waits longer than that for a controller that is there again.
const BACKOFF_MAX: Duration = Duration::from_secs(1);

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
    asked: mpsc::Sender<Asked>,
}

impl IsrChanges {
    /// Waits until the outcome is known, or is for the metadata to tell. One change of a partition at a time: a second
    /// one is refused as not applied, without being sent, while the first has no outcome. To drop the future does not
    /// take the change back.
    pub async fn alter(&self, change: IsrChange) -> IsrOutcome {
        let (answer, outcome) = oneshot::channel();
        let sent = self.asked.send(Asked { change, answer }).await;
        match (sent, outcome.await) {
            (Ok(()), Ok(outcome)) => outcome,
            (Err(_), _) | (_, Err(_)) => {
                IsrOutcome::Pending(ApiError::new(ErrorName::ControllerUnavailable, "the agent has stopped"))
            }
        }
    }
}

struct Asked {
    change: IsrChange,
    answer: oneshot::Sender<IsrOutcome>,
}

struct Waiting {
    asked: Asked,
    due: Instant,
    backoff: Duration,
    phase: Phase,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    /// Every copy of the request was answered, if it was sent at all.
    NoCopies,
    /// Copies that nobody answered may be.
    CopiesUnderWay,
    /// It was refused while copies were under way: now the ISR that is is asked for.
    TakenBack,
}

impl Waiting {
    fn new(asked: Asked) -> Self {
        Self { asked, due: Instant::now(), backoff: BACKOFF_MIN, phase: Phase::NoCopies }
    }

    fn postpone(&mut self, now: Instant) {
        self.due = now + self.backoff;
        self.backoff = (2 * self.backoff).min(BACKOFF_MAX);
    }

    /// What to ask for; None until the metadata tells what it is.
    fn request(&self, image: &MetadataImage) -> Option<PartitionAlteration> {
        let change = &self.asked.change;
        if self.phase != Phase::TakenBack {
            return Some(to_wire(change));
        }
        let current = image.partition(change.partition).filter(|it| it.partition_epoch == change.partition_epoch)?;
        let isr = current.isr.iter().map(|&broker| (broker, None)).collect();
        let unchanged = IsrChange { isr, recovery: current.recovery(), ..change.clone() };
        Some(PartitionAlteration { supersedes: true, ..to_wire(&unchanged) })
    }

    /// What the answer means for the change as it was asked for; None: it is to be asked for again.
    fn judge(&mut self, outcome: Option<IsrOutcome>) -> Option<IsrOutcome> {
        self.phase = match (self.phase, outcome) {
            (Phase::CopiesUnderWay | Phase::TakenBack, Some(IsrOutcome::NotApplied(_))) => Phase::TakenBack,
            // What was applied is that it is taken back, which the metadata is about to tell: unless the controller is of a
            // release that knows no such thing.
            (Phase::TakenBack, Some(IsrOutcome::Applied { partition_epoch, .. })) => {
                let is_known = partition_epoch > self.asked.change.partition_epoch;
                if is_known { Phase::TakenBack } else { Phase::CopiesUnderWay }
            }
            (Phase::NoCopies | Phase::CopiesUnderWay, None) => Phase::CopiesUnderWay,
            (Phase::TakenBack, None) => Phase::TakenBack,
            (_, settled @ Some(_)) => return settled,
        };
        None
    }
}

/// The handle, and the task that it asks.
pub(super) fn start(
    config: Arc<AgentConfig>,
    standing: watch::Receiver<Standing>,
    metadata: watch::Receiver<MetadataImage>,
) -> (IsrChanges, impl Future<Output = ()>) {
    let (asked, queue) = mpsc::channel(QUEUE_MAX);
    let task = Task {
        candidates: Candidates::new(&config),
        config,
        channel: None,
        queue,
        standing,
        metadata,
        image: MetadataImage::default(),
        waiting: BTreeMap::new(),
    };
    (IsrChanges { asked }, task.run())
}

struct Task {
    config: Arc<AgentConfig>,
    candidates: Candidates,
    /// Of the node that answered last.
    channel: Option<(String, Channel)>,
    queue: mpsc::Receiver<Asked>,
    standing: watch::Receiver<Standing>,
    metadata: watch::Receiver<MetadataImage>,
    /// The newest seen. An older one, as a node that lags may send, would lack partitions.
    image: MetadataImage,
    waiting: BTreeMap<TopicPartition, Waiting>,
}

impl Task {
    /// Ends with the session: what still waits is then pending.
    async fn run(mut self) {
        loop {
            while self.waiting.len() < WAITING_MAX
                && let Ok(asked) = self.queue.try_recv()
            {
                self.admit(asked);
            }
            self.settle_overtaken();
            let (due, epoch) = (self.due(Instant::now()), self.standing.borrow().epoch);
            match epoch {
                Some(epoch) if !due.is_empty() => self.ask(epoch, &due).await,
                _ => {
                    if !self.wait(epoch.is_some()).await {
                        return;
                    }
                }
            }
        }
    }

    fn admit(&mut self, asked: Asked) {
        let id = asked.change.partition;
        if self.waiting.contains_key(&id) {
            let message = format!("a change of the ISR of {id} is in flight");
            // The caller may have gone.
            let _ = asked.answer.send(IsrOutcome::NotApplied(ApiError::new(ErrorName::InvalidRequest, message)));
            return;
        }
        self.waiting.insert(id, Waiting::new(asked));
    }

    fn settle_overtaken(&mut self) {
        let image = self.metadata.borrow_and_update();
        if image.next_offset >= self.image.next_offset {
            self.image = image.clone();
        }
        drop(image);
        let overtaken: Vec<_> = self
            .waiting
            .values()
            .filter_map(|waiting| overtaken(&self.image, &waiting.asked.change).map(|error| (waiting, error)))
            .map(|(waiting, error)| (waiting.asked.change.partition, error))
            .collect();
        for (id, error) in overtaken {
            self.settle(id, IsrOutcome::Pending(error));
        }
    }

    fn due(&self, now: Instant) -> Vec<TopicPartition> {
        let due = self.waiting.iter().filter(|(_, waiting)| waiting.due <= now);
        due.map(|(id, _)| *id).take(CHANGES_PER_CALL_MAX).collect()
    }

    /// Until there may be something to do; false when there never will be again.
    async fn wait(&mut self, is_registered: bool) -> bool {
        let next_due = self.waiting.values().map(|waiting| waiting.due).min().filter(|_| is_registered);
        let (is_idle, is_full) = (self.waiting.is_empty(), self.waiting.len() >= WAITING_MAX);
        tokio::select! {
            asked = self.queue.recv(), if !is_full => asked.map(|asked| self.admit(asked)).is_some(),
            changed = self.standing.changed(), if !is_idle => changed.is_ok(),
            changed = self.metadata.changed(), if !is_idle => changed.is_ok(),
            () = at(next_due) => true,
        }
    }

    async fn ask(&mut self, epoch: BrokerEpoch, due: &[TopicPartition]) {
        let changes = due.iter().filter_map(|id| self.waiting.get(id)?.request(&self.image));
        let request = AlterPartitionRequest {
            broker: self.config.broker.get(),
            broker_epoch: epoch.get(),
            partitions: changes.collect(),
        };
        let channel = if request.partitions.is_empty() { None } else { self.channel().await };
        let Some((address, channel)) = channel else {
            // Nothing was sent, so nothing is under way.
            return self.postpone(due);
        };
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
        let mut outcomes: BTreeMap<_, _> = answered.iter().filter_map(|it| Some((named(it)?, outcome(it)?))).collect();
        for id in due {
            let Some(waiting) = self.waiting.get_mut(id) else { continue };
            if let Some(outcome) = waiting.judge(outcomes.remove(id)) {
                self.settle(*id, outcome);
            }
        }
        self.postpone(due);
    }

    /// What still waits is asked for again later.
    fn postpone(&mut self, due: &[TopicPartition]) {
        let now = Instant::now();
        for id in due {
            if let Some(waiting) = self.waiting.get_mut(id) {
                waiting.postpone(now);
            }
        }
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

    fn settle(&mut self, id: TopicPartition, outcome: IsrOutcome) {
        if let Some(waiting) = self.waiting.remove(&id) {
            // The caller may have gone.
            let _ = waiting.asked.answer.send(outcome);
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

/// Why the change has no meaning any more, when the metadata has moved on; whether it was applied is to be read there.
fn overtaken(image: &MetadataImage, change: &IsrChange) -> Option<ApiError> {
    // Before the first metadata nothing can be missing.
    image.cluster?;
    let Some(state) = image.partition(change.partition) else {
        let message = format!("{} is gone", change.partition);
        return Some(ApiError::new(ErrorName::UnknownTopicOrPartition, message));
    };
    if state.leader_epoch > change.leader_epoch {
        let message = format!("leader epoch {} has been followed by {}", change.leader_epoch, state.leader_epoch);
        return Some(ApiError::new(ErrorName::FencedLeaderEpoch, message));
    }
    (state.partition_epoch > change.partition_epoch).then(|| {
        let (asked, current) = (change.partition_epoch, state.partition_epoch);
        let message = format!("partition epoch {asked} has been followed by {current}");
        ApiError::new(ErrorName::InvalidUpdateVersion, message)
    })
}

/// What the answer settles; None: the change has to be asked for again.
fn outcome(answer: &AlteredPartition) -> Option<IsrOutcome> {
    let Some(error) = answer.error.as_ref().map(error::from_item) else {
        return Some(IsrOutcome::Applied {
            partition_epoch: PartitionEpoch::new(answer.partition_epoch),
            isr: answer.isr.iter().copied().map(BrokerId::new).collect(),
            recovery: recovery(answer.recovery)?,
        });
    };
    match error.name {
        ErrorName::IneligibleReplica => Some(IsrOutcome::NotApplied(error)),
        ErrorName::FencedLeaderEpoch
        | ErrorName::InvalidRequest
        | ErrorName::InvalidUpdateVersion
        | ErrorName::UnknownTopicOrPartition
        | ErrorName::UnknownTopicId
        | ErrorName::NewLeaderElected => Some(IsrOutcome::Pending(error)),
        _ => None,
    }
}

fn recovery(wire: i32) -> Option<LeaderRecoveryState> {
    [LeaderRecoveryState::Recovered, LeaderRecoveryState::Recovering].into_iter().find(|state| *state as i32 == wire)
}

fn named(answer: &AlteredPartition) -> Option<TopicPartition> {
    answer.topic_id.parse().ok().map(|topic| TopicPartition::new(topic, PartitionId::new(answer.partition)))
}

fn to_wire(change: &IsrChange) -> PartitionAlteration {
    let member = |(broker, epoch): &(BrokerId, Option<BrokerEpoch>)| IsrMember {
        broker: broker.get(),
        epoch: epoch.map(BrokerEpoch::get),
    };
    PartitionAlteration {
        topic_id: change.partition.topic.to_string(),
        partition: change.partition.partition.get(),
        leader_epoch: change.leader_epoch.get(),
        partition_epoch: change.partition_epoch.get(),
        isr: change.isr.iter().map(member).collect(),
        recovery: change.recovery as i32,
        supersedes: false,
    }
}

#[cfg(test)]
mod tests {
    use super::super::fixture::{id, image, lead, remove_topic, shrink};
    use super::*;

    fn change() -> IsrChange {
        IsrChange {
            partition: id(0),
            leader_epoch: LeaderEpoch::default(),
            partition_epoch: PartitionEpoch::default(),
            isr: vec![(BrokerId::new(1), None)],
            recovery: LeaderRecoveryState::Recovered,
        }
    }

    /// What an error of the item makes of the change.
    fn verdict(name: ErrorName) -> &'static str {
        let error = Some(error::to_item(&ApiError::new(name, "refused")));
        match outcome(&AlteredPartition { error, ..Default::default() }) {
            Some(IsrOutcome::Applied { .. }) => "applied",
            Some(IsrOutcome::NotApplied(_)) => "not applied",
            Some(IsrOutcome::Pending(_)) => "pending",
            None => "again",
        }
    }

    #[test]
    fn one_error_proves_that_nothing_was_applied_and_few_leave_it_to_the_metadata() {
        use ErrorName as N;
        let pending = [
            N::FencedLeaderEpoch,
            N::InvalidRequest,
            N::InvalidUpdateVersion,
            N::UnknownTopicOrPartition,
            N::UnknownTopicId,
            N::NewLeaderElected,
        ];
        for name in N::ALL.iter().copied() {
            let expected = match name {
                N::IneligibleReplica => "not applied",
                name if pending.contains(&name) => "pending",
                _ => "again",
            };
            assert_eq!(verdict(name), expected, "{name}");
        }
    }

    fn refused() -> Option<IsrOutcome> {
        Some(IsrOutcome::NotApplied(ApiError::new(ErrorName::IneligibleReplica, "broker 2 is fenced")))
    }

    fn applied(epoch: i32) -> Option<IsrOutcome> {
        let (isr, recovery) = (vec![BrokerId::new(1)], LeaderRecoveryState::Recovered);
        Some(IsrOutcome::Applied { partition_epoch: PartitionEpoch::new(epoch), isr, recovery })
    }

    fn waiting() -> Waiting {
        Waiting::new(Asked { change: change(), answer: oneshot::channel().0 })
    }

    #[test]
    fn a_refusal_of_the_only_copy_is_the_outcome() {
        assert_eq!(waiting().judge(refused()), refused());
    }

    #[test]
    fn a_change_that_is_refused_while_a_copy_is_under_way_is_taken_back() {
        let image = image(&[&[1, 2]]);
        let mut waiting = waiting();
        assert_eq!(waiting.request(&image), Some(to_wire(&change())));
        assert_eq!(waiting.judge(None), None);
        assert_eq!(waiting.request(&image), Some(to_wire(&change())));
        assert_eq!(waiting.judge(refused()), None);
        let taken_back = waiting.request(&image).unwrap();
        assert!(taken_back.supersedes);
        assert_eq!(taken_back.isr.iter().map(|member| member.broker).collect::<Vec<_>>(), [1, 2]);
        assert_eq!(taken_back.partition_epoch, change().partition_epoch.get());
        // That this was applied says nothing of the change itself, which the metadata overtakes now.
        assert_eq!(waiting.judge(applied(1)), None);
        let mut moved = image;
        shrink(&mut moved, 0, &[1]);
        assert_eq!(waiting.request(&moved), None);
    }

    #[test]
    fn a_controller_that_cannot_take_a_change_back_is_asked_for_it_again() {
        let image = image(&[&[1, 2]]);
        let mut waiting = waiting();
        assert_eq!([waiting.judge(None), waiting.judge(refused()), waiting.judge(applied(0))], [None, None, None]);
        assert_eq!(waiting.request(&image), Some(to_wire(&change())));
    }

    #[test]
    fn a_change_is_overtaken_by_a_newer_partition_epoch_another_leader_and_the_end_of_the_topic() {
        let name = |image: &MetadataImage| overtaken(image, &change()).map(|error| error.name);
        let start = image(&[&[1, 2]]);
        assert_eq!(name(&start), None);
        assert_eq!(name(&MetadataImage::default()), None);
        let (mut shrunk, mut led, mut removed) = (start.clone(), start.clone(), start);
        shrink(&mut shrunk, 0, &[1]);
        assert_eq!(name(&shrunk), Some(ErrorName::InvalidUpdateVersion));
        lead(&mut led, 0, Some(2));
        assert_eq!(name(&led), Some(ErrorName::FencedLeaderEpoch));
        remove_topic(&mut removed);
        assert_eq!(name(&removed), Some(ErrorName::UnknownTopicOrPartition));
    }
}
