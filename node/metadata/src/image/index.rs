//! Which partitions a broker has to do with, so that fencing one costs what it moves, not what there is.
//!
//! Derived from the partitions and kept as each one changes. `verify` compares it with one built from scratch.

use imbl::OrdMap;

use super::Topic;
use super::partition_set::PartitionSet;
use crate::ids::{BrokerId, PartitionId, TopicId, TopicPartition};
use crate::record::{BrokerList, Partition};

#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct PartitionIndex {
    led: ByBroker,
    /// By the replica lists, whether or not the broker is registered.
    hosted: ByBroker,
    /// Hosted, and not in the ISR. Nearly all that is hosted is in the ISR, so this is the smaller part.
    out_of_sync: ByBroker,
    /// In the ISR, and not hosted: `verify` refuses it, but replay does not.
    strays: ByBroker,
    elr: ByBroker,
    leaderless: TopicPartitionSet,
    /// Led, but not by the first replica.
    not_preferred: TopicPartitionSet,
}

impl PartitionIndex {
    pub fn led_by(&self, broker: BrokerId) -> impl Iterator<Item = TopicPartition> {
        self.led.of(broker)
    }

    pub fn in_isr(&self, broker: BrokerId) -> impl Iterator<Item = TopicPartition> {
        let hosted = self.hosted.0.get(&broker).into_iter();
        let in_sync = hosted.flat_map(move |hosted| hosted.without(self.out_of_sync.0.get(&broker)));
        in_sync.chain(self.strays.of(broker))
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
        self.hosted.count(broker) - self.out_of_sync.count(broker) + self.strays.count(broker)
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
        self.replace(id, &Seats::default(), &Seats::of(partition));
    }

    pub(super) fn remove(&mut self, id: TopicPartition, partition: &Partition) {
        self.replace(id, &Seats::of(partition), &Seats::default());
    }

    pub(super) fn update(&mut self, id: TopicPartition, before: &Partition, after: &Partition) {
        self.replace(id, &Seats::of(before), &Seats::of(after));
    }

    /// Removes a topic with all its partitions. The cost is the smaller of its partitions and the brokers.
    pub(super) fn remove_topic(&mut self, topic: &Topic) {
        // A partition is looked up in about seven sets, a broker in three.
        if 2 * topic.partitions.len() <= self.hosted.0.len() {
            topic.partitions().for_each(|(id, partition)| self.remove(id, partition));
            return;
        }
        let Self { led, hosted, out_of_sync, strays, elr, leaderless, not_preferred } = self;
        for list in [led, hosted, out_of_sync, strays, elr] {
            list.remove_topic(topic.id);
        }
        leaderless.remove_topic(topic.id);
        not_preferred.remove_topic(topic.id);
    }

    fn replace(&mut self, id: TopicPartition, before: &Seats<'_>, after: &Seats<'_>) {
        self.led.update(id, before.led, after.led);
        self.hosted.update(id, before.hosted, after.hosted);
        self.out_of_sync.update(id, &before.out_of_sync, &after.out_of_sync);
        self.strays.update(id, &before.strays, &after.strays);
        self.elr.update(id, before.elr, after.elr);
        self.leaderless.update(id, before.is_leaderless, after.is_leaderless);
        self.not_preferred.update(id, before.is_misplaced, after.is_misplaced);
    }

    /// The first list in which the two differ.
    pub(super) fn difference(&self, other: &Self) -> Option<&'static str> {
        let lists = [
            ("led", self.led == other.led),
            ("hosted", self.hosted == other.hosted),
            ("out-of-sync", self.out_of_sync == other.out_of_sync),
            ("strays", self.strays == other.strays),
            ("elr", self.elr == other.elr),
            ("leaderless", self.leaderless == other.leaderless),
            ("not-preferred", self.not_preferred == other.not_preferred),
        ];
        lists.into_iter().find(|(_, is_equal)| !is_equal).map(|(list, _)| list)
    }
}

/// Where a partition belongs in the index; by default nowhere.
#[derive(Default)]
struct Seats<'a> {
    led: &'a [BrokerId],
    hosted: &'a [BrokerId],
    out_of_sync: BrokerList,
    strays: BrokerList,
    elr: &'a [BrokerId],
    is_leaderless: bool,
    is_misplaced: bool,
}

impl<'a> Seats<'a> {
    fn of(partition: &'a Partition) -> Self {
        Self {
            led: partition.leader.as_slice(),
            hosted: &partition.replicas,
            out_of_sync: difference(&partition.replicas, &partition.isr),
            strays: difference(&partition.isr, &partition.replicas),
            elr: partition.elr(),
            is_leaderless: partition.leader.is_none(),
            is_misplaced: partition.leader.is_some() && !partition.has_preferred_leader(),
        }
    }
}

fn difference(brokers: &[BrokerId], others: &[BrokerId]) -> BrokerList {
    brokers.iter().copied().filter(|broker| !others.contains(broker)).collect()
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
        self.without(None)
    }

    /// As `iter`, of those that `others` does not have.
    fn without<'a>(&'a self, others: Option<&'a Self>) -> impl Iterator<Item = TopicPartition> + 'a {
        self.topics.iter().flat_map(move |(&topic, numbers)| {
            let others = others.and_then(|others| others.topics.get(&topic));
            let stays = move |number: &u32| others.is_none_or(|others| !others.contains(*number));
            numbers.iter().filter(stays).map(move |number| id_of(topic, number))
        })
    }

    fn update(&mut self, id: TopicPartition, was_member: bool, is_member: bool) {
        if was_member && !is_member {
            self.remove(id);
        } else if is_member && !was_member {
            self.insert(id);
        }
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

fn id_of(topic: TopicId, number: u32) -> TopicPartition {
    TopicPartition::new(topic, PartitionId::new(number.cast_signed()))
}

/// Partitions are numbered from 0.
fn number_of(id: TopicPartition) -> u32 {
    id.partition.get().cast_unsigned()
}

#[cfg(test)]
mod tests {
    use crate::image::fixture::{batch, broker, change, image, partition_id};
    use crate::record::{PartitionChange, Record};

    #[test]
    fn in_isr_has_those_in_sync_and_no_other() {
        let mut image = image();
        let list = |ids: &[i32]| Some(ids.iter().map(|&id| broker(id)).collect());
        let records = [
            Record::PartitionChange(PartitionChange { isr: list(&[3, 1]), ..change(partition_id(0)) }),
            Record::PartitionChange(PartitionChange { isr: list(&[2, 4]), ..change(partition_id(1)) }),
        ];
        image.replay(&batch(2, &records)).expect("the records of this test replay");
        for (id, expected) in [(1, &[0][..]), (2, &[1]), (3, &[0]), (4, &[1])] {
            let found: Vec<i32> = image.index.in_isr(broker(id)).map(|id| id.partition.get()).collect();
            assert_eq!(found, expected, "broker {id}");
            assert_eq!(image.index.isr_count(broker(id)), expected.len(), "broker {id}");
        }
        assert_eq!(image.index.replica_count(broker(2)), 2);
    }
}
