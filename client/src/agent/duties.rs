//! What a broker has to do for each partition, as a difference between what it was last told and what the metadata
//! says. Pure.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use quorate_metadata::MetadataImage;
use quorate_metadata::ids::{BrokerId, TopicPartition};
use quorate_metadata::record::Partition;

use super::host::{Assignment, DeleteReason, OfflineReason};

/// A call of [`super::PartitionHost`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Call {
    Lead(Assignment),
    Follow(Assignment),
    Offline(Assignment, OfflineReason),
    Delete(TopicPartition, DeleteReason),
    FoundStray(TopicPartition),
}

/// What the host was last told.
#[derive(Debug)]
pub struct Duties {
    broker: BrokerId,
    told: BTreeMap<TopicPartition, (Arc<Partition>, Role)>,
    /// On the disks since before the start, and not yet known to the metadata.
    found: BTreeSet<TopicPartition>,
    /// Of these, those that the host was told of.
    strays: BTreeSet<TopicPartition>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Role {
    Leader,
    Follower,
    Offline(OfflineReason),
}

impl Duties {
    /// `hosted`: the replicas that the broker found on its disks.
    pub fn new(broker: BrokerId, hosted: impl IntoIterator<Item = TopicPartition>) -> Self {
        Self { broker, told: BTreeMap::new(), found: hosted.into_iter().collect(), strays: BTreeSet::new() }
    }

    /// The calls that bring the host to what the image says. Said twice, it asks for nothing the second time.
    pub fn update(&mut self, image: &MetadataImage, may_lead: bool) -> Vec<Call> {
        let mut calls = self.deletions(image);
        for id in image.index.hosted_by(self.broker) {
            let Some(state) = image.partition(id) else { continue };
            let role = self.role(state, may_lead);
            let same = |(told, before): &(Arc<Partition>, Role)| *before == role && Arc::ptr_eq(told, state);
            if self.told.get(&id).is_some_and(same) {
                continue;
            }
            self.told.insert(id, (state.clone(), role));
            self.found.remove(&id);
            self.strays.remove(&id);
            calls.push(call(assignment(image, id, state), role));
        }
        calls
    }

    /// The broker is no member of the cluster, or does not know yet what it was made a member of: it leads nothing.
    pub fn step_down(&mut self, image: &MetadataImage) -> Vec<Call> {
        let offline = Role::Offline(OfflineReason::LeaseEnded);
        let led = self.told.iter_mut().filter(|(_, (_, role))| *role == Role::Leader);
        let step_down = |(id, (state, role)): (&TopicPartition, &mut (Arc<Partition>, Role))| {
            *role = offline;
            call(assignment(image, *id, state), offline)
        };
        led.map(step_down).collect()
    }

    /// The replicas that were found and that the metadata, complete up to this broker's registration, does not know
    /// here. Each is told once.
    pub fn strays(&mut self) -> Vec<Call> {
        let fresh: Vec<_> = self.found.difference(&self.strays).copied().collect();
        self.strays.extend(fresh.iter().copied());
        fresh.into_iter().map(Call::FoundStray).collect()
    }

    /// The grace period is over.
    pub fn delete_strays(&mut self) -> Vec<Call> {
        let strays = std::mem::take(&mut self.strays);
        self.found.retain(|id| !strays.contains(id));
        strays.into_iter().map(|id| Call::Delete(id, DeleteReason::Stray)).collect()
    }

    fn role(&self, state: &Partition, may_lead: bool) -> Role {
        match state.leader {
            None => Role::Offline(OfflineReason::Leaderless),
            Some(leader) if leader != self.broker => Role::Follower,
            Some(_) if may_lead => Role::Leader,
            Some(_) => Role::Offline(OfflineReason::LeaseEnded),
        }
    }

    fn deletions(&mut self, image: &MetadataImage) -> Vec<Call> {
        let is_here =
            |id: &TopicPartition| image.partition(*id).is_some_and(|state| state.replicas.contains(&self.broker));
        let gone: Vec<TopicPartition> = self.told.keys().filter(|id| !is_here(id)).copied().collect();
        let delete = |id| {
            self.told.remove(&id);
            let exists = image.partition(id).is_some();
            Call::Delete(id, if exists { DeleteReason::Reassigned } else { DeleteReason::TopicDeleted })
        };
        gone.into_iter().map(delete).collect()
    }
}

fn assignment(image: &MetadataImage, id: TopicPartition, state: &Arc<Partition>) -> Assignment {
    let topic = image.topic(id.topic).map(|topic| topic.name.clone()).unwrap_or_default();
    Assignment { id, topic, state: state.clone(), offset: image.next_offset }
}

fn call(assignment: Assignment, role: Role) -> Call {
    match role {
        Role::Leader => Call::Lead(assignment),
        Role::Follower => Call::Follow(assignment),
        Role::Offline(reason) => Call::Offline(assignment, reason),
    }
}
