//! What the metadata and the lease ask of the replicas on this broker: image in, calls out.
//!
//! Goals in order: nothing is led without a lease; nothing is deleted because of old metadata; an update costs the
//! partitions that have changed, and a change of the lease those that are led, not all that are hosted.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use quorate_metadata::MetadataImage;
use quorate_metadata::ids::{BrokerId, TopicPartition};
use quorate_metadata::record::Partition;

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
    /// Kept on disk, unknown to the metadata, and not yet deleted.
    strays: BTreeSet<TopicPartition>,
}

impl Duties {
    pub fn new(broker: BrokerId) -> Self {
        let image = MetadataImage::default();
        Self { broker, image, may_lead: None, held: BTreeMap::new(), strays: BTreeSet::new() }
    }

    /// The first calls, with what `hosted` names and the image does not know here. The image must be newer than the
    /// broker's own registration: of an older one nothing follows.
    pub fn begin(
        &mut self,
        hosted: impl IntoIterator<Item = TopicPartition>,
        image: &MetadataImage,
        may_lead: bool,
    ) -> Vec<Call> {
        let mut calls = self.update(image, may_lead);
        self.strays = hosted.into_iter().filter(|id| !self.held.contains_key(id)).collect();
        calls.extend(self.strays.iter().copied().map(Call::FoundStray));
        calls
    }

    /// What has to be called so that the host does what the image says.
    pub fn update(&mut self, image: &MetadataImage, may_lead: bool) -> Vec<Call> {
        let mut concerned =
            if image.next_offset >= self.image.next_offset { self.adopt(image) } else { BTreeMap::new() };
        if self.may_lead != Some(may_lead) {
            self.image.index.led_by(self.broker).for_each(|id| _ = concerned.entry(id).or_insert(Concern::Lease));
        }
        self.may_lead = Some(may_lead);
        let (mut calls, mut deletions) = (Vec::new(), Vec::new());
        for (id, concern) in concerned {
            match self.hosted(id) {
                Some(state) => calls.extend(self.assign(id, state, concern, may_lead)),
                None => deletions.extend(self.delete(id)),
            }
        }
        calls.extend(deletions);
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
            if changed.after.is_some_and(has_replica) || self.held.contains_key(&changed.id) {
                concerned.insert(changed.id, Concern::State);
            }
        });
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

    /// The grace period is over: the strays that are still unknown are deleted.
    pub fn delete_strays(&mut self) -> Vec<Call> {
        std::mem::take(&mut self.strays).into_iter().map(|id| Call::DeleteReplica(id, DeleteReason::Stray)).collect()
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

    /// None: the host does not have it.
    fn delete(&mut self, id: TopicPartition) -> Option<Call> {
        self.held.remove(&id)?;
        let moved = self.image.partition(id).is_some();
        let reason = if moved { DeleteReason::Reassigned } else { DeleteReason::TopicDeleted };
        Some(Call::DeleteReplica(id, reason))
    }
}

fn assignment(image: &MetadataImage, id: TopicPartition, state: Arc<Partition>) -> Assignment {
    let topic = image.topic(id.topic).map(|topic| topic.name.clone()).unwrap_or_default();
    Assignment { id, topic, state, offset: image.next_offset }
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
