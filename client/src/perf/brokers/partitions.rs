//! What the simulated brokers of a fleet know of the partitions: once for all of them.
//!
//! Each broker's feed has every record of its partitions in order, but feeds are not at the same point. A record is
//! applied by the first feed that has it and passed over by the others, since each partition keeps the offset that it
//! was last changed at.

use std::collections::{BTreeSet, HashMap, HashSet};

use quorate_metadata::Record;
use quorate_metadata::ids::{BrokerId, LeaderEpoch, Offset, PartitionEpoch, PartitionId, TopicId, TopicPartition};
use quorate_metadata::record::{Partition, PartitionChange};
use quorate_proto::broker::{IsrMember, PartitionAlteration};

#[derive(Default)]
pub(super) struct Partitions {
    topics: HashMap<TopicId, HashMap<PartitionId, Known>>,
    /// Ids are never used again, and a feed that lags may still create what is gone.
    removed: HashSet<TopicId>,
    /// With the offset that says so.
    unfenced: HashMap<BrokerId, (Offset, bool)>,
    /// By leader, by the member that is missing.
    missing: HashMap<BrokerId, HashMap<BrokerId, BTreeSet<TopicPartition>>>,
}

struct Known {
    changed_at: Offset,
    leader: Option<BrokerId>,
    leader_epoch: LeaderEpoch,
    partition_epoch: PartitionEpoch,
    replicas: Box<[BrokerId]>,
    isr: Vec<BrokerId>,
}

/// An ISR that its leader is to ask for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Addition {
    id: TopicPartition,
    leader_epoch: LeaderEpoch,
    partition_epoch: PartitionEpoch,
    isr: Vec<BrokerId>,
}

impl Addition {
    pub fn to_wire(&self) -> PartitionAlteration {
        PartitionAlteration {
            topic_id: self.id.topic.to_string(),
            partition: self.id.partition.get(),
            leader_epoch: self.leader_epoch.get(),
            partition_epoch: self.partition_epoch.get(),
            isr: self.isr.iter().map(|broker| IsrMember { broker: broker.get(), epoch: None }).collect(),
            recovery: 0,
            supersedes: false,
        }
    }
}

impl Known {
    fn new(offset: Offset, state: &Partition) -> Self {
        Self {
            changed_at: offset,
            leader: state.leader,
            leader_epoch: state.leader_epoch,
            partition_epoch: state.partition_epoch,
            replicas: state.replicas.iter().copied().collect(),
            isr: state.isr.to_vec(),
        }
    }

    fn change(&mut self, offset: Offset, change: &PartitionChange) {
        self.changed_at = offset;
        self.partition_epoch = self.partition_epoch.next();
        if let Some(leader) = change.leader {
            self.leader = leader;
            self.leader_epoch = self.leader_epoch.next();
        }
        if let Some(replicas) = &change.replicas {
            self.replicas = replicas.iter().copied().collect();
        }
        if let Some(isr) = &change.isr {
            self.isr = isr.to_vec();
        }
    }

    fn missing(&self) -> impl Iterator<Item = BrokerId> + '_ {
        self.replicas.iter().copied().filter(|replica| !self.isr.contains(replica))
    }
}

impl Partitions {
    pub fn apply(&mut self, offset: Offset, record: Record) {
        match record {
            Record::RegisterBroker(broker) => self.mark(broker.broker, offset, !broker.fenced),
            Record::FenceBroker { broker, .. }
            | Record::UnregisterBroker { broker, .. }
            | Record::BeginControlledShutdown { broker, .. } => self.mark(broker, offset, false),
            Record::UnfenceBroker { broker, .. } => self.mark(broker, offset, true),
            Record::CreatePartition(created) => self.create(offset, created.id, created.state),
            Record::PartitionChange(change) => self.change(offset, change),
            Record::RemoveTopic { topic } => self.remove(topic),
            _ => {}
        }
    }

    fn mark(&mut self, broker: BrokerId, offset: Offset, is_unfenced: bool) {
        let known = self.unfenced.entry(broker).or_insert((offset, is_unfenced));
        if offset >= known.0 {
            *known = (offset, is_unfenced);
        }
    }

    fn create(&mut self, offset: Offset, id: TopicPartition, state: Partition) {
        if self.removed.contains(&id.topic) || self.known(id).is_some_and(|known| known.changed_at >= offset) {
            return;
        }
        self.forget_missing(id);
        self.topics.entry(id.topic).or_default().insert(id.partition, Known::new(offset, &state));
        self.note_missing(id);
    }

    fn change(&mut self, offset: Offset, change: PartitionChange) {
        let id = change.id;
        if self.known(id).is_none_or(|known| known.changed_at >= offset) {
            return;
        }
        self.forget_missing(id);
        let partitions = self.topics.get_mut(&id.topic).expect("known above");
        partitions.get_mut(&id.partition).expect("known above").change(offset, &change);
        self.note_missing(id);
    }

    fn remove(&mut self, topic: TopicId) {
        self.removed.insert(topic);
        for partition in self.topics.remove(&topic).into_iter().flatten() {
            let id = TopicPartition::new(topic, partition.0);
            Self::forget(&mut self.missing, id, &partition.1);
        }
    }

    fn known(&self, id: TopicPartition) -> Option<&Known> {
        self.topics.get(&id.topic)?.get(&id.partition)
    }

    fn note_missing(&mut self, id: TopicPartition) {
        let Some(known) = self.topics.get(&id.topic).and_then(|partitions| partitions.get(&id.partition)) else {
            return;
        };
        let Some(leader) = known.leader else { return };
        for member in known.missing() {
            self.missing.entry(leader).or_default().entry(member).or_default().insert(id);
        }
    }

    fn forget_missing(&mut self, id: TopicPartition) {
        if let Some(known) = self.topics.get(&id.topic).and_then(|partitions| partitions.get(&id.partition)) {
            Self::forget(&mut self.missing, id, known);
        }
    }

    fn forget(
        missing: &mut HashMap<BrokerId, HashMap<BrokerId, BTreeSet<TopicPartition>>>,
        id: TopicPartition,
        known: &Known,
    ) {
        let Some(of_leader) = known.leader.and_then(|leader| missing.get_mut(&leader)) else { return };
        for member in known.missing() {
            if let Some(partitions) = of_leader.get_mut(&member) {
                partitions.remove(&id);
            }
        }
    }

    /// ISR changes that the leader owes, at most so many. They are not given again before the partition has changed, or
    /// they are given back.
    pub fn take_additions(&mut self, leader: BrokerId, max: usize) -> Vec<Addition> {
        let Some(of_leader) = self.missing.get_mut(&leader) else { return Vec::new() };
        let is_unfenced = |member: &BrokerId| self.unfenced.get(member).is_some_and(|(_, is_unfenced)| *is_unfenced);
        let owed = of_leader.iter().filter(|(member, _)| is_unfenced(member)).flat_map(|(_, partitions)| partitions);
        let taken: BTreeSet<TopicPartition> = owed.take(max).copied().collect();
        for (_, partitions) in of_leader.iter_mut().filter(|(member, _)| is_unfenced(member)) {
            for id in &taken {
                partitions.remove(id);
            }
        }
        taken.into_iter().filter_map(|id| self.addition(id)).collect()
    }

    fn addition(&self, id: TopicPartition) -> Option<Addition> {
        let known = self.known(id)?;
        let is_unfenced = |broker: &BrokerId| self.unfenced.get(broker).is_some_and(|(_, is_unfenced)| *is_unfenced);
        let isr: Vec<BrokerId> = known.isr.iter().copied().chain(known.missing().filter(is_unfenced)).collect();
        let (leader_epoch, partition_epoch) = (known.leader_epoch, known.partition_epoch);
        (isr.len() > known.isr.len()).then_some(Addition { id, leader_epoch, partition_epoch, isr })
    }

    /// They were not granted: those whose partition has not changed since are owed again.
    pub fn give_back(&mut self, additions: Vec<Addition>) {
        for addition in additions {
            if self.known(addition.id).is_some_and(|known| known.partition_epoch == addition.partition_epoch) {
                self.note_missing(addition.id);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use quorate_metadata::ids::{BrokerEpoch, DirectoryId};
    use quorate_metadata::record::{Cause, LeaderRecoveryState, PartitionRegistration, PartitionState};

    use super::*;

    fn broker(id: i32) -> BrokerId {
        BrokerId::new(id)
    }

    fn id(partition: i32) -> TopicPartition {
        TopicPartition::new(TopicId::default(), PartitionId::new(partition))
    }

    fn created(partition: i32) -> Record {
        let brokers = vec![broker(1), broker(2), broker(3)];
        Record::CreatePartition(PartitionRegistration {
            id: id(partition),
            state: PartitionState {
                replicas: brokers.clone(),
                directories: vec![DirectoryId::UNASSIGNED; brokers.len()],
                isr: brokers,
                elr: Vec::new(),
                last_known_elr: Vec::new(),
                adding: Vec::new(),
                removing: Vec::new(),
                leader: Some(broker(1)),
                recovery: LeaderRecoveryState::Recovered,
                leader_epoch: LeaderEpoch::new(0),
                partition_epoch: PartitionEpoch::new(0),
                history: Vec::new(),
            }
            .into(),
        })
    }

    /// Broker 3 leaves the ISR.
    fn shrunk(partition: i32) -> Record {
        let isr = Some(vec![broker(1), broker(2)]);
        let change = PartitionChange::none(id(partition), Cause::BrokerFenced(broker(3)));
        Record::PartitionChange(PartitionChange { isr, ..change })
    }

    fn unfenced(broker_id: i32) -> Record {
        Record::UnfenceBroker { broker: broker(broker_id), epoch: BrokerEpoch::new(1) }
    }

    fn fenced(broker_id: i32) -> Record {
        Record::FenceBroker { broker: broker(broker_id), epoch: BrokerEpoch::new(1) }
    }

    fn after(records: impl IntoIterator<Item = Record>) -> Partitions {
        let mut partitions = Partitions::default();
        (0..).zip(records).for_each(|(offset, record)| partitions.apply(Offset::new(offset), record));
        partitions
    }

    #[test]
    fn a_leader_asks_for_a_member_once_it_is_unfenced() {
        let mut partitions = after([created(0), fenced(3), shrunk(0)]);
        assert_eq!(partitions.take_additions(broker(1), 10), [], "a fenced broker may not be in an ISR");
        partitions.apply(Offset::new(3), unfenced(3));
        assert_eq!(partitions.take_additions(broker(2), 10), [], "broker 2 does not lead it");
        let taken = partitions.take_additions(broker(1), 10);
        assert_eq!(taken.len(), 1);
        assert_eq!(taken[0].isr, [broker(1), broker(2), broker(3)]);
        assert_eq!(taken[0].partition_epoch, PartitionEpoch::new(1), "each change adds one");
        assert_eq!(partitions.take_additions(broker(1), 10), [], "it is asked for once");
    }

    #[test]
    fn a_refused_change_is_owed_again_unless_the_partition_has_changed() {
        let mut partitions = after([created(0), created(1), unfenced(3), shrunk(0), shrunk(1)]);
        let taken = partitions.take_additions(broker(1), 10);
        assert_eq!(taken.len(), 2);
        let whole = Some(vec![broker(1), broker(2), broker(3)]);
        let change = PartitionChange::none(id(1), Cause::AlterPartition(broker(1)));
        partitions.apply(Offset::new(9), Record::PartitionChange(PartitionChange { isr: whole, ..change }));
        partitions.give_back(taken);
        let again = partitions.take_additions(broker(1), 10);
        assert_eq!(again.iter().map(|addition| addition.id).collect::<Vec<_>>(), [id(0)]);
    }

    #[test]
    fn a_feed_that_lags_changes_nothing() {
        let mut partitions = after([created(0), unfenced(3), shrunk(0)]);
        partitions.apply(Offset::new(0), created(0));
        partitions.apply(Offset::new(2), shrunk(0));
        let taken = partitions.take_additions(broker(1), 10);
        assert_eq!(taken[0].partition_epoch, PartitionEpoch::new(1));
        partitions.apply(Offset::new(5), Record::RemoveTopic { topic: TopicId::default() });
        partitions.apply(Offset::new(0), created(0));
        assert!(partitions.known(id(0)).is_none(), "a removed topic stays removed");
    }

    #[test]
    fn a_request_holds_no_more_than_was_asked() {
        let records = (0..5).map(created).chain([unfenced(3)]).chain((0..5).map(shrunk));
        let mut partitions = after(records);
        assert_eq!(partitions.take_additions(broker(1), 3).len(), 3);
        assert_eq!(partitions.take_additions(broker(1), 3).len(), 2);
    }
}
