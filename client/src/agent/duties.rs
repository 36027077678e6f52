//! What the metadata and the lease ask of the replicas on this broker: image in, calls out.
//!
//! Goals in order: nothing is led without a lease; nothing is deleted because of old metadata, nor because the metadata does
//! not know it; an update costs the partitions that have changed, and a change of the lease those that are led, not all that
//! are hosted.
//!
//! A replica is deleted where the metadata says that its topic was removed, or that the partition is elsewhere. What the
//! metadata does not know is a stray, which an operator decides on: the metadata may be that of another cluster, or may have
//! forgotten when the topic was removed.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::RangeInclusive;
use std::sync::Arc;

use quorate_metadata::ids::{BrokerId, Offset, PartitionId, TopicId, TopicPartition};
use quorate_metadata::image::LEVEL_OF_REMOVED_TOPICS;
use quorate_metadata::record::Partition;
use quorate_metadata::{MetadataImage, config};

use super::host::{Assignment, DeleteReason, OfflineReason};

/// One call of the host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Call {
    BecomeLeader(Assignment),
    BecomeFollower(Assignment),
    BecomeOffline(Assignment, OfflineReason),
    DeleteReplica(TopicPartition, DeleteReason),
    FoundStray(TopicPartition),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Role {
    Leader,
    Follower,
    Offline(OfflineReason),
}

impl Role {
    fn of(broker: BrokerId, state: &Partition, may_lead: bool) -> Self {
        match state.leader {
            None => Self::Offline(OfflineReason::Leaderless),
            Some(leader) if leader != broker => Self::Follower,
            Some(_) if may_lead => Self::Leader,
            Some(_) => Self::Offline(OfflineReason::LeaseEnded),
        }
    }
}

/// Why the host may have to be called for a partition.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Concern {
    /// Its state has changed.
    State,
    /// Only the lease has: the role may be the same.
    Lease,
}

/// What the host was told of every partition that it holds.
pub struct Duties {
    broker: BrokerId,
    /// The newest image seen. An older one, as a node that lags may send after a reconnect, never takes its place: what
    /// it does not know yet would be deleted.
    image: MetadataImage,
    /// What the last calls were made for. None: they have to be thought over, whatever comes.
    may_lead: Option<bool>,
    held: BTreeMap<TopicPartition, Role>,
    /// Kept on disk, and unknown to the metadata.
    strays: BTreeSet<TopicPartition>,
    /// Found at the start, and known to be wanted no longer.
    left_over: Vec<TopicPartition>,
}

impl Duties {
    pub fn new(broker: BrokerId) -> Self {
        let image = MetadataImage::default();
        let (held, strays, left_over) = (BTreeMap::new(), BTreeSet::new(), Vec::new());
        Self { broker, image, may_lead: None, held, strays, left_over }
    }

    /// The first calls, with the strays among what `hosted` names. The image must be newer than the broker's own registration:
    /// of an older one nothing follows.
    pub fn begin(
        &mut self,
        hosted: impl IntoIterator<Item = TopicPartition>,
        image: &MetadataImage,
        may_lead: bool,
    ) -> Vec<Call> {
        let mut calls = self.update(image, may_lead);
        for id in hosted.into_iter().filter(|id| !self.held.contains_key(id)) {
            if self.end_of(id).is_some() {
                self.left_over.push(id);
            } else {
                self.strays.insert(id);
            }
        }
        calls.extend(self.strays.iter().copied().map(Call::FoundStray));
        calls
    }

    /// What has to be called so that the host does what the image says.
    pub fn update(&mut self, image: &MetadataImage, may_lead: bool) -> Vec<Call> {
        let before = self.image.clone();
        let seen = before.next_offset;
        let mut concerned = if image.next_offset >= seen { self.adopt(image) } else { BTreeMap::new() };
        if self.may_lead != Some(may_lead) {
            self.image.index.led_by(self.broker).for_each(|id| _ = concerned.entry(id).or_insert(Concern::Lease));
        }
        self.may_lead = Some(may_lead);
        let (mut calls, mut deletions) = (Vec::new(), Vec::new());
        for (id, concern) in concerned {
            match self.hosted(id) {
                Some(state) => calls.extend(self.assign(id, state, concern, may_lead)),
                None => deletions.extend(self.release(id, &before)),
            }
        }
        calls.extend(deletions);
        calls.extend(self.removed_strays(seen));
        // What must stop, stops before anything else begins.
        calls.sort_by_key(|call| !matches!(call, Call::BecomeOffline(..)));
        calls
    }

    /// Takes the newer image. Returns the partitions that it changes for this broker.
    fn adopt(&mut self, image: &MetadataImage) -> BTreeMap<TopicPartition, Concern> {
        let before = std::mem::replace(&mut self.image, image.clone());
        let has_replica = |state: &Arc<Partition>| state.replicas.contains(&self.broker);
        let mut concerned = BTreeMap::new();
        image.visit_changed_partitions(&before, |changed| {
            let is_here = self.held.contains_key(&changed.id) || self.strays.contains(&changed.id);
            if is_here || changed.after.is_some_and(has_replica) {
                concerned.insert(changed.id, Concern::State);
            }
        });
        for topic in config::topics_configured_anew(&before, &self.image) {
            let held = self.held.range(partitions_of(topic)).map(|(id, _)| (*id, Concern::State));
            concerned.extend(held);
        }
        concerned
    }

    /// The lease ended before the host could be told to lead: what it is told instead.
    pub fn too_late(&mut self, assignment: Assignment) -> Call {
        if let Some(held) = self.held.get_mut(&assignment.id) {
            *held = Role::Offline(OfflineReason::LeaseEnded);
        }
        // By the next update the lease may be back.
        self.may_lead = None;
        Call::BecomeOffline(assignment, OfflineReason::LeaseEnded)
    }

    /// How many there are.
    pub fn strays(&self) -> usize {
        self.strays.len()
    }

    /// How many replicas were found at the start that are wanted no longer, and are not yet deleted.
    pub fn left_over(&self) -> usize {
        self.left_over.len()
    }

    /// The grace period is over: what was found at the start, and is still known to be wanted no longer, is deleted.
    pub fn delete_left_over(&mut self) -> Vec<Call> {
        let mut calls = Vec::new();
        for id in std::mem::take(&mut self.left_over) {
            match self.end_of(id) {
                _ if self.held.contains_key(&id) => {}
                Some(reason) => calls.push(Call::DeleteReplica(id, reason)),
                None => {
                    self.strays.insert(id);
                    calls.push(Call::FoundStray(id));
                }
            }
        }
        calls
    }

    /// A stray that the metadata has come to know: it says now that the partition is elsewhere.
    fn end_stray(&mut self, id: TopicPartition) -> Option<Call> {
        let reason = self.end_of(id)?;
        self.strays.remove(&id).then_some(Call::DeleteReplica(id, reason))
    }

    /// The strays whose topics turn out to have been removed since `offset`.
    fn removed_strays(&mut self, offset: Offset) -> Vec<Call> {
        if self.strays.is_empty() {
            return Vec::new();
        }
        let of_topic = |topic| self.strays.range(partitions_of(topic)).copied();
        let removed: Vec<_> = self.image.removed_topics.since(offset).flat_map(of_topic).collect();
        for id in &removed {
            self.strays.remove(id);
        }
        removed.into_iter().map(|id| Call::DeleteReplica(id, DeleteReason::TopicDeleted)).collect()
    }

    /// Why this broker is to have no replica of the partition, if the metadata says so.
    fn end_of(&self, id: TopicPartition) -> Option<DeleteReason> {
        if self.image.partition(id).is_some() {
            return Some(DeleteReason::Reassigned);
        }
        self.image.removed_topics.contains(id.topic).then_some(DeleteReason::TopicDeleted)
    }

    /// The state of the partition, if it has a replica here.
    fn hosted(&self, id: TopicPartition) -> Option<Arc<Partition>> {
        self.image.partition(id).filter(|state| state.replicas.contains(&self.broker)).cloned()
    }

    /// None: the host does it already.
    fn assign(&mut self, id: TopicPartition, state: Arc<Partition>, concern: Concern, may_lead: bool) -> Option<Call> {
        let role = Role::of(self.broker, &state, may_lead);
        let before = self.held.insert(id, role);
        if concern == Concern::Lease && before == Some(role) {
            return None;
        }
        self.strays.remove(&id);
        Some(call(assignment(&self.image, id, state), role))
    }

    /// Nothing where the host does not have it. `before` is the image in which it had it.
    fn release(&mut self, id: TopicPartition, before: &MetadataImage) -> Vec<Call> {
        if self.held.remove(&id).is_none() {
            return self.end_stray(id).into_iter().collect();
        }
        // A cluster of a lower level remembers no removed topics. A level is never lowered: where it seems to be, the metadata
        // has forgotten that as well.
        let remembers = before.level().max(self.image.level()) >= LEVEL_OF_REMOVED_TOPICS;
        let reason = self.end_of(id).or((!remembers).then_some(DeleteReason::TopicDeleted));
        if let Some(reason) = reason {
            return vec![Call::DeleteReplica(id, reason)];
        }
        self.strays.insert(id);
        let last = before.partition(id).map(|state| assignment(before, id, state.clone()));
        let stopped = last.map(|last| Call::BecomeOffline(last, OfflineReason::Unknown));
        stopped.into_iter().chain([Call::FoundStray(id)]).collect()
    }
}

fn assignment(image: &MetadataImage, id: TopicPartition, state: Arc<Partition>) -> Assignment {
    let topic = image.topic(id.topic);
    let configs = Arc::new(topic.map(|topic| config::handed_to_host(image, topic)).unwrap_or_default());
    let topic = topic.map(|topic| topic.name.clone()).unwrap_or_default();
    Assignment { id, topic, state, configs, offset: image.next_offset }
}

fn partitions_of(topic: TopicId) -> RangeInclusive<TopicPartition> {
    let [first, last] = [0, i32::MAX].map(|id| TopicPartition::new(topic, PartitionId::new(id)));
    first..=last
}

fn call(assignment: Assignment, role: Role) -> Call {
    match role {
        Role::Leader => Call::BecomeLeader(assignment),
        Role::Follower => Call::BecomeFollower(assignment),
        Role::Offline(reason) => Call::BecomeOffline(assignment, reason),
    }
}

#[cfg(test)]
mod tests;
