//! The changes whose outcome is not known yet: which are due, what the next request asks for, and which the metadata has
//! overtaken. Pure: time and metadata are arguments.
//!
//! A broker that starts with 100 000 partitions has as many changes waiting. So each step costs the changes that are due,
//! or the partitions that the metadata has changed, and never all that wait.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use prost::Message;
use quorate_metadata::ids::TopicPartition;
use quorate_metadata::{ApiError, ErrorName, MetadataImage};
use quorate_proto::broker::PartitionAlteration;
use tokio::sync::oneshot;
use tokio::time::Instant;

use super::wire::to_wire;
use super::{IsrChange, IsrOutcome};

/// Changes in one request. The controller plans so many in less than 10 ms of its event loop, and their records, of about
/// 100 bytes each, fit into one batch of the log.
pub const CHANGES_PER_REQUEST_MAX: usize = 2_000;

/// Bytes of one request: an eighth of gRPC's default limit of 4 MiB, because an answer that refuses every change with a
/// message is several times as large. With three replicas a change has about 100 bytes, so this bounds long replica lists.
pub const REQUEST_BYTES_MAX: usize = 512 * 1024;

/// Tag and length of an item of the request.
const ITEM_FRAME_BYTES: usize = 6;

/// The first pause before a change is asked for again: a new controller is there in about this time.
const BACKOFF_MIN: Duration = Duration::from_millis(20);

/// The longest pause: nobody waits longer than that for a controller that is there again.
const BACKOFF_MAX: Duration = Duration::from_secs(1);

pub struct Asked {
    pub change: IsrChange,
    pub answer: oneshot::Sender<IsrOutcome>,
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
    fn new(asked: Asked, now: Instant) -> Self {
        Self { asked, due: now, backoff: BACKOFF_MIN, phase: Phase::NoCopies }
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

/// The changes of one request.
#[derive(Default)]
pub struct DueChanges {
    /// Those that were due, also where there is nothing to ask for yet.
    pub ids: Vec<TopicPartition>,
    pub alterations: Vec<PartitionAlteration>,
}

#[derive(Default)]
pub struct WaitingChanges {
    by_id: BTreeMap<TopicPartition, Waiting>,
    /// Each of them once.
    by_due: BTreeSet<(Instant, TopicPartition)>,
    /// The newest seen. An older one, as a node that lags may send, would lack partitions.
    image: MetadataImage,
}

impl WaitingChanges {
    pub fn len(&self) -> usize {
        self.by_id.len()
    }

    pub fn is_empty(&self) -> bool {
        self.by_id.is_empty()
    }

    pub fn next_due(&self) -> Option<Instant> {
        self.by_due.first().map(|(due, _)| *due)
    }

    pub fn admit(&mut self, asked: Asked, now: Instant) {
        let id = asked.change.partition;
        if self.by_id.contains_key(&id) {
            let message = format!("a change of the ISR of {id} is in flight");
            return answer(asked, IsrOutcome::NotApplied(ApiError::new(ErrorName::InvalidRequest, message)));
        }
        if let Some(error) = overtaken(&self.image, &asked.change) {
            return answer(asked, IsrOutcome::Pending(error));
        }
        self.by_due.insert((now, id));
        self.by_id.insert(id, Waiting::new(asked, now));
    }

    /// Settles what the metadata has overtaken. Returns how many changes were compared with it.
    pub fn observe(&mut self, image: &MetadataImage) -> usize {
        if image.next_offset <= self.image.next_offset {
            return 0;
        }
        let before = std::mem::replace(&mut self.image, image.clone());
        if self.by_id.is_empty() {
            return 0;
        }
        let concerned = self.concerned(&before);
        for id in &concerned {
            let waiting = self.by_id.get(id);
            if let Some(error) = waiting.and_then(|waiting| overtaken(&self.image, &waiting.asked.change)) {
                self.settle(*id, IsrOutcome::Pending(error));
            }
        }
        concerned.len()
    }

    /// The waiting changes whose partitions are not what they were before. The first metadata concerns all: it may lack
    /// partitions, and what nobody had seen is not missed by a comparison.
    fn concerned(&self, before: &MetadataImage) -> Vec<TopicPartition> {
        if before.cluster.is_none() {
            return self.by_id.keys().copied().collect();
        }
        let mut concerned = Vec::new();
        self.image.visit_changed_partitions(before, |changed| {
            if self.by_id.contains_key(&changed.id) {
                concerned.push(changed.id);
            }
        });
        concerned
    }

    /// What the next request asks for, those first that have been due for longest.
    pub fn due(&self, now: Instant) -> DueChanges {
        let mut due = DueChanges::default();
        let mut bytes = 0;
        for (at, id) in self.by_due.iter().take(CHANGES_PER_REQUEST_MAX) {
            if *at > now {
                break;
            }
            if let Some(alteration) = self.by_id[id].request(&self.image) {
                bytes += alteration.encoded_len() + ITEM_FRAME_BYTES;
                if bytes > REQUEST_BYTES_MAX && !due.alterations.is_empty() {
                    break;
                }
                due.alterations.push(alteration);
            }
            due.ids.push(*id);
        }
        due
    }

    /// Takes the answer to a change; None: there was none that settles it.
    pub fn judge(&mut self, id: TopicPartition, outcome: Option<IsrOutcome>) {
        let Some(waiting) = self.by_id.get_mut(&id) else { return };
        if let Some(outcome) = waiting.judge(outcome) {
            self.settle(id, outcome);
        }
    }

    /// Those that still wait are asked for again later.
    pub fn postpone(&mut self, ids: &[TopicPartition], now: Instant) {
        for id in ids {
            let Some(waiting) = self.by_id.get_mut(id) else { continue };
            self.by_due.remove(&(waiting.due, *id));
            waiting.due = now + waiting.backoff;
            waiting.backoff = (2 * waiting.backoff).min(BACKOFF_MAX);
            self.by_due.insert((waiting.due, *id));
        }
    }

    fn settle(&mut self, id: TopicPartition, outcome: IsrOutcome) {
        if let Some(waiting) = self.by_id.remove(&id) {
            self.by_due.remove(&(waiting.due, id));
            answer(waiting.asked, outcome);
        }
    }
}

fn answer(asked: Asked, outcome: IsrOutcome) {
    // The caller may have gone.
    let _ = asked.answer.send(outcome);
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

#[cfg(test)]
mod tests;
