//! What the metadata and the lease ask of the replicas on this broker: image in, calls out.
//!
//! Goals in order: nothing is led without a lease; nothing is deleted because of old metadata; a partition that has not
//! changed costs a comparison of two pointers.

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

struct Held {
    state: Arc<Partition>,
    role: Role,
}

/// What the host was told of every partition that it holds.
pub struct Duties {
    broker: BrokerId,
    /// The newest image seen. An older one, as a node that lags may send after a reconnect, never takes its place: what
    /// it does not know yet would be deleted.
    image: MetadataImage,
    /// What the last calls were made for. None: they have to be thought over, whatever comes.
    may_lead: Option<bool>,
    held: BTreeMap<TopicPartition, Held>,
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
        let is_newer = image.next_offset >= self.image.next_offset;
        let is_changed = is_newer && !image.topics.ptr_eq(&self.image.topics);
        if is_newer {
            self.image = image.clone();
        }
        if !is_changed && self.may_lead == Some(may_lead) {
            return Vec::new();
        }
        self.may_lead = Some(may_lead);
        let mut calls = self.assignments(may_lead);
        calls.extend(self.deletions());
        // What must stop, stops before anything else begins.
        calls.sort_by_key(|call| !matches!(call, Call::BecomeOffline(..)));
        calls
    }

    /// The lease ended before the host could be told to lead: what it is told instead.
    pub fn too_late(&mut self, assignment: Assignment) -> Call {
        if let Some(held) = self.held.get_mut(&assignment.id) {
            held.role = Role::Offline(OfflineReason::LeaseEnded);
        }
        // By the next update the lease may be back.
        self.may_lead = None;
        Call::BecomeOffline(assignment, OfflineReason::LeaseEnded)
    }

    pub fn has_strays(&self) -> bool {
        !self.strays.is_empty()
    }

    /// The grace period is over: the strays that are still unknown are deleted.
    pub fn delete_strays(&mut self) -> Vec<Call> {
        std::mem::take(&mut self.strays).into_iter().map(|id| Call::DeleteReplica(id, DeleteReason::Stray)).collect()
    }

    fn assignments(&mut self, may_lead: bool) -> Vec<Call> {
        let mut calls = Vec::new();
        for id in self.image.index.hosted_by(self.broker) {
            let state = self.image.partition(id).expect("the index names partitions of the image");
            let role = Role::of(self.broker, state, may_lead);
            if let Some(held) = self.held.get_mut(&id)
                && held.role == role
                && (Arc::ptr_eq(&held.state, state) || held.state == *state)
            {
                held.state = state.clone();
                continue;
            }
            self.strays.remove(&id);
            self.held.insert(id, Held { state: state.clone(), role });
            calls.push(call(assignment(&self.image, id, state), role));
        }
        calls
    }

    fn deletions(&mut self) -> Vec<Call> {
        let (image, broker) = (&self.image, self.broker);
        let is_hosted = |id| image.partition(id).is_some_and(|state| state.replicas.contains(&broker));
        let gone: Vec<TopicPartition> = self.held.keys().copied().filter(|id| !is_hosted(*id)).collect();
        gone.into_iter()
            .map(|id| {
                self.held.remove(&id);
                let moved = self.image.partition(id).is_some();
                let reason = if moved { DeleteReason::Reassigned } else { DeleteReason::TopicDeleted };
                Call::DeleteReplica(id, reason)
            })
            .collect()
    }
}

fn assignment(image: &MetadataImage, id: TopicPartition, state: &Arc<Partition>) -> Assignment {
    let topic = image.topic(id.topic).map(|topic| topic.name.clone()).unwrap_or_default();
    Assignment { id, topic, state: state.clone(), offset: image.next_offset }
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
