//! Which partitions a broker has to do with, so that fencing one costs what it moves, not what there is.
//!
//! Derived from the partitions and kept as each one changes. `verify` compares it with one built from scratch.

use imbl::OrdMap;

use super::Topic;
use super::partition_set::PartitionSet;
use crate::ids::{BrokerId, PartitionId, TopicId, TopicPartition};
use crate::record::Partition;

#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct PartitionIndex {
    led: ByBroker,
    isr: ByBroker,
    elr: ByBroker,
    /// By the replica lists, whether or not the broker is registered.
    hosted: ByBroker,
    leaderless: TopicPartitionSet,
    /// Led, but not by the first replica.
    not_preferred: TopicPartitionSet,
}

impl PartitionIndex {
    pub fn led_by(&self, broker: BrokerId) -> impl Iterator<Item = TopicPartition> {
        self.led.of(broker)
    }

    pub fn in_isr(&self, broker: BrokerId) -> impl Iterator<Item = TopicPartition> {
        self.isr.of(broker)
    }

    pub fn in_elr(&self, broker: BrokerId) -> impl Iterator<Item = TopicPartition> {
        self.elr.of(broker)
    }

    /// The partitions that have a replica on `broker`.
    pub fn hosted_by(&self, broker: BrokerId) -> impl Iterator<Item = TopicPartition> {
        self.hosted.of(broker)
    }

    pub fn leaderless(&self) -> impl Iterator<Item = TopicPartition> {
        self.leaderless.iter()
    }

    /// The partitions that are led by another than their first replica. Those without a leader are `leaderless`.
    pub fn not_preferred(&self) -> impl Iterator<Item = TopicPartition> {
        self.not_preferred.iter()
    }

    pub fn led_count(&self, broker: BrokerId) -> usize {
        self.led.count(broker)
    }

    pub fn isr_count(&self, broker: BrokerId) -> usize {
        self.isr.count(broker)
    }

    pub fn replica_count(&self, broker: BrokerId) -> usize {
        self.hosted.count(broker)
    }

    pub fn leaderless_count(&self) -> usize {
        self.leaderless.len
    }

    pub fn not_preferred_count(&self) -> usize {
        self.not_preferred.len
    }

    pub(super) fn add(&mut self, id: TopicPartition, partition: &Partition) {
        self.led.update(id, &[], partition.leader.as_slice());
        self.isr.update(id, &[], &partition.isr);
        self.elr.update(id, &[], partition.elr());
        self.hosted.update(id, &[], &partition.replicas);
        mark(&mut self.leaderless, id, false, partition.leader.is_none());
        mark(&mut self.not_preferred, id, false, is_misplaced(partition));
    }

    pub(super) fn remove(&mut self, id: TopicPartition, partition: &Partition) {
        self.led.update(id, partition.leader.as_slice(), &[]);
        self.isr.update(id, &partition.isr, &[]);
        self.elr.update(id, partition.elr(), &[]);
        self.hosted.update(id, &partition.replicas, &[]);
        mark(&mut self.leaderless, id, partition.leader.is_none(), false);
        mark(&mut self.not_preferred, id, is_misplaced(partition), false);
    }

    /// Removes a topic with all its partitions. The cost is the smaller of its partitions and the brokers.
    pub(super) fn remove_topic(&mut self, topic: &Topic) {
        if topic.partitions.len() <= self.hosted.0.len() {
            topic.partitions().for_each(|(id, partition)| self.remove(id, partition));
            return;
        }
        let Self { led, isr, elr, hosted, leaderless, not_preferred } = self;
        for list in [led, isr, elr, hosted] {
            list.remove_topic(topic.id);
        }
        leaderless.remove_topic(topic.id);
        not_preferred.remove_topic(topic.id);
    }

    pub(super) fn update(&mut self, id: TopicPartition, before: &Partition, after: &Partition) {
        self.led.update(id, before.leader.as_slice(), after.leader.as_slice());
        self.isr.update(id, &before.isr, &after.isr);
        self.elr.update(id, before.elr(), after.elr());
        self.hosted.update(id, &before.replicas, &after.replicas);
        mark(&mut self.leaderless, id, before.leader.is_none(), after.leader.is_none());
        mark(&mut self.not_preferred, id, is_misplaced(before), is_misplaced(after));
    }

    /// The first list in which the two differ.
    pub(super) fn difference(&self, other: &Self) -> Option<&'static str> {
        let lists = [
            ("led", self.led == other.led),
            ("isr", self.isr == other.isr),
            ("elr", self.elr == other.elr),
            ("hosted", self.hosted == other.hosted),
            ("leaderless", self.leaderless == other.leaderless),
            ("not-preferred", self.not_preferred == other.not_preferred),
        ];
        lists.into_iter().find(|(_, is_equal)| !is_equal).map(|(list, _)| list)
    }
}

fn is_misplaced(partition: &Partition) -> bool {
    partition.leader.is_some() && !partition.has_preferred_leader()
}

fn mark(set: &mut TopicPartitionSet, id: TopicPartition, was: bool, is: bool) {
    if was && !is {
        set.remove(id);
    } else if is && !was {
        set.insert(id);
    }
}

/// A broker without partitions has no entry, so that equal contents are equal values.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct ByBroker(OrdMap<BrokerId, TopicPartitionSet>);

impl ByBroker {
    fn of(&self, broker: BrokerId) -> impl Iterator<Item = TopicPartition> {
        self.0.get(&broker).into_iter().flat_map(TopicPartitionSet::iter)
    }

    fn count(&self, broker: BrokerId) -> usize {
        self.0.get(&broker).map_or(0, |partitions| partitions.len)
    }

    fn update(&mut self, id: TopicPartition, before: &[BrokerId], after: &[BrokerId]) {
        if before == after {
            return;
        }
        for &broker in before.iter().filter(|broker| !after.contains(broker)) {
            self.remove_from(broker, |partitions| partitions.remove(id));
        }
        for &broker in after.iter().filter(|broker| !before.contains(broker)) {
            self.0.entry(broker).or_default().insert(id);
        }
    }

    fn remove_topic(&mut self, topic: TopicId) {
        let has_it = |partitions: &TopicPartitionSet| partitions.topics.contains_key(&topic);
        let brokers: Vec<_> = self.0.iter().filter(|(_, at)| has_it(at)).map(|(&broker, _)| broker).collect();
        for broker in brokers {
            self.remove_from(broker, |partitions| partitions.remove_topic(topic));
        }
    }

    fn remove_from(&mut self, broker: BrokerId, remove: impl FnOnce(&mut TopicPartitionSet)) {
        let Some(partitions) = self.0.get_mut(&broker) else { return };
        remove(partitions);
        if partitions.len == 0 {
            self.0.remove(&broker);
        }
    }
}

/// Partitions by topic, so that a topic goes as a whole. A topic without partitions has no entry.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct TopicPartitionSet {
    len: usize,
    topics: OrdMap<TopicId, PartitionSet>,
}

impl TopicPartitionSet {
    /// Sorted by topic and partition.
    fn iter(&self) -> impl Iterator<Item = TopicPartition> {
        let id = |topic, number: u32| TopicPartition::new(topic, PartitionId::new(number.cast_signed()));
        self.topics.iter().flat_map(move |(&topic, numbers)| numbers.iter().map(move |number| id(topic, number)))
    }

    fn insert(&mut self, id: TopicPartition) {
        let is_new = self.topics.entry(id.topic).or_default().insert(number_of(id));
        self.len += usize::from(is_new);
    }

    fn remove(&mut self, id: TopicPartition) {
        let Some(numbers) = self.topics.get_mut(&id.topic) else { return };
        let was_member = numbers.remove(number_of(id));
        if numbers.len() == 0 {
            self.topics.remove(&id.topic);
        }
        self.len -= usize::from(was_member);
    }

    fn remove_topic(&mut self, topic: TopicId) {
        self.len -= self.topics.remove(&topic).map_or(0, |numbers| numbers.len());
    }
}

/// Partitions are numbered from 0.
fn number_of(id: TopicPartition) -> u32 {
    id.partition.get().cast_unsigned()
}
