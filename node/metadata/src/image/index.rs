//! Which partitions a broker has to do with, so that fencing one costs what it moves, not what there is.
//!
//! Derived from the partitions and kept as each one changes. `verify` compares it with one built from scratch.

use std::ops::Bound;

use imbl::OrdMap;

use super::Topic;
use super::partition_changes::PartitionChanges;
use super::partition_set::PartitionSet;
use super::seats::{SeatChange, Seated, Seats, Tally, id_of, number_of};
use crate::ids::{BrokerId, DirectoryId, TopicId, TopicPartition};
use crate::record::{BrokerList, DirectoryList, Partition};

#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct PartitionIndex {
    /// By the replica lists and leaders, whether or not the broker is registered.
    seats: Seats,
    /// Hosted, and not in the ISR. Nearly all that is hosted is in the ISR, so this is the smaller part.
    out_of_sync: ByBroker,
    /// In the ISR, and not hosted: `verify` refuses it, but replay does not.
    strays: ByBroker,
    elr: ByBroker,
    leaderless: TopicPartitionSet,
    /// The leaderless ones, by each of their replicas.
    leaderless_on: ByBroker,
    /// Not led by the first replica; by that replica.
    not_preferred: ByBroker,
    /// Those of them that have a leader.
    misplaced: TopicPartitionSet,
    /// How many replicas each log directory has; those without one are not counted.
    directories: Tally<(BrokerId, DirectoryId)>,
}

impl PartitionIndex {
    pub fn led_by(&self, broker: BrokerId) -> impl Iterator<Item = TopicPartition> {
        self.seats.led_by(broker)
    }

    pub fn in_isr(&self, broker: BrokerId) -> impl Iterator<Item = TopicPartition> {
        self.in_isr_after(broker, None)
    }

    /// As `in_isr`, of the partitions behind `after`. What lies before it costs nothing, nor does a broker in no ISR.
    pub fn in_isr_after(
        &self,
        broker: BrokerId,
        after: Option<TopicPartition>,
    ) -> impl Iterator<Item = TopicPartition> {
        let out_of_sync = self.out_of_sync.0.get(&broker);
        let out_of_topic = move |topic| out_of_sync.and_then(|out| out.topics.get(&topic));
        let is_in_any = self.isr_count(broker) > 0;
        let seats = is_in_any.then(|| self.seats.hosted_without(broker, after, out_of_topic));
        seats.into_iter().flatten().chain(self.strays.of_after(broker, after))
    }

    pub fn in_elr(&self, broker: BrokerId) -> impl Iterator<Item = TopicPartition> {
        self.elr.of(broker)
    }

    /// The partitions of a topic that have an ELR, once for each of its members. Costs the brokers that are in an ELR of any
    /// topic, which are those that are gone.
    pub fn in_elr_of(&self, topic: TopicId) -> impl Iterator<Item = TopicPartition> {
        let of_topic = self.elr.0.values().filter_map(move |partitions| partitions.topics.get(&topic));
        of_topic.flat_map(move |numbers| numbers.iter().map(move |number| id_of(topic, number)))
    }

    /// The topics that have partitions with an ELR, once for each broker that is in one.
    pub fn topics_with_elr(&self) -> impl Iterator<Item = TopicId> {
        self.elr.0.values().flat_map(|partitions| partitions.topics.keys().copied())
    }

    /// The partitions that have a replica on `broker`.
    pub fn hosted_by(&self, broker: BrokerId) -> impl Iterator<Item = TopicPartition> {
        self.seats.hosted_by(broker)
    }

    pub fn leaderless(&self) -> impl Iterator<Item = TopicPartition> {
        self.leaderless.iter()
    }

    /// The leaderless partitions that have a replica on `broker`, after `after` where that is given.
    pub fn leaderless_on(
        &self,
        broker: BrokerId,
        after: Option<TopicPartition>,
    ) -> impl Iterator<Item = TopicPartition> {
        self.leaderless_on.of_after(broker, after)
    }

    /// The partitions that are led by another than their first replica, or not at all; by that replica.
    pub fn not_preferred(&self) -> impl Iterator<Item = TopicPartition> {
        self.not_preferred.0.values().flat_map(TopicPartitionSet::iter)
    }

    /// Those of them whose first replica is on `broker`, after `after` where that is given.
    pub fn not_preferred_of(
        &self,
        broker: BrokerId,
        after: Option<TopicPartition>,
    ) -> impl Iterator<Item = TopicPartition> {
        self.not_preferred.of_after(broker, after)
    }

    /// The log directories of `broker` that have replicas, as the partitions say it.
    pub fn directories_of(&self, broker: BrokerId) -> impl Iterator<Item = DirectoryId> {
        let keys = self.directories.keys_from((broker, DirectoryId::UNASSIGNED));
        keys.take_while(move |key| key.0 == broker).map(|key| key.1)
    }

    /// How many replicas on `broker` are in `directory`.
    pub fn directory_count(&self, broker: BrokerId, directory: DirectoryId) -> usize {
        self.directories.total((broker, directory))
    }

    /// How many partitions have `broker` as their first replica, whoever leads them now.
    pub fn preferred_count(&self, broker: BrokerId) -> usize {
        self.seats.preferred_count(broker)
    }

    pub fn led_count(&self, broker: BrokerId) -> usize {
        self.seats.led_count(broker)
    }

    pub fn isr_count(&self, broker: BrokerId) -> usize {
        self.seats.hosted_count(broker) - self.out_of_sync.count(broker) + self.strays.count(broker)
    }

    /// In how many partitions something may change when `broker` comes or goes: those that have it in the ISR or the ELR,
    /// and those that it hosts and nobody leads.
    pub fn seat_count(&self, broker: BrokerId) -> usize {
        self.isr_count(broker) + self.elr.count(broker) + self.leaderless_on.count(broker)
    }

    pub fn replica_count(&self, broker: BrokerId) -> usize {
        self.seats.hosted_count(broker)
    }

    pub fn leaderless_count(&self) -> usize {
        self.leaderless.len
    }

    /// How many partitions are led by another than their first replica.
    pub fn misplaced_count(&self) -> usize {
        self.misplaced.len
    }

    /// Takes over what a batch has changed, topic by topic, so that each list is looked up once for all of it.
    pub(super) fn update(&mut self, mut changes: PartitionChanges) {
        for changes in changes.by_topic() {
            let topic = changes[0].id.topic;
            let (mut seats, mut directories) = (Vec::new(), Vec::new());
            for change in changes {
                let [before, after] = [&change.before, &change.after].map(|at| Place::of(at.as_deref()));
                SeatChange::collect(change.id, before.seated(), after.seated(), &mut seats);
                if before.hosted != after.hosted || before.directories != after.directories {
                    directories.extend(before.places().map(|place| (place, -1)));
                    directories.extend(after.places().map(|place| (place, 1)));
                }
                self.replace(change.id, &before, &after);
            }
            self.seats.update(topic, seats);
            self.directories.update(topic, directories);
        }
    }

    /// Removes a topic with all its partitions. The cost is the smaller of its partitions and the brokers.
    pub(super) fn remove_topic(&mut self, topic: &Topic) {
        // The lists of few partitions are looked through broker by broker.
        if 2 * topic.partitions.len() <= self.seats.broker_count() {
            let mut changes = PartitionChanges::default();
            topic.partitions().for_each(|(id, partition)| changes.add(id, Some(partition.clone()), None));
            return self.update(changes);
        }
        let Self { out_of_sync, strays, elr, leaderless, leaderless_on, not_preferred, misplaced, .. } = self;
        for list in [out_of_sync, strays, elr, leaderless_on, not_preferred] {
            list.remove_topic(topic.id);
        }
        self.seats.remove_topic(topic.id);
        self.directories.remove_topic(topic.id);
        leaderless.remove_topic(topic.id);
        misplaced.remove_topic(topic.id);
    }

    /// In the lists that few partitions are in.
    fn replace(&mut self, id: TopicPartition, before: &Place<'_>, after: &Place<'_>) {
        self.out_of_sync.update(id, &before.out_of_sync, &after.out_of_sync);
        self.strays.update(id, &before.strays, &after.strays);
        self.elr.update(id, before.elr, after.elr);
        self.leaderless.update(id, before.is_leaderless, after.is_leaderless);
        self.leaderless_on.update(id, before.waiting(), after.waiting());
        self.not_preferred.update(id, before.not_preferred(), after.not_preferred());
        self.misplaced.update(id, before.is_misplaced(), after.is_misplaced());
    }

    /// The first list in which the two differ.
    pub(super) fn difference(&self, other: &Self) -> Option<&'static str> {
        let lists = [
            ("seats", self.seats == other.seats),
            ("out-of-sync", self.out_of_sync == other.out_of_sync),
            ("strays", self.strays == other.strays),
            ("elr", self.elr == other.elr),
            ("leaderless", self.leaderless == other.leaderless),
            ("leaderless-on", self.leaderless_on == other.leaderless_on),
            ("not-preferred", self.not_preferred == other.not_preferred),
            ("misplaced", self.misplaced == other.misplaced),
            ("directories", self.directories == other.directories),
        ];
        lists.into_iter().find(|(_, is_equal)| !is_equal).map(|(list, _)| list)
    }
}

/// Where a partition belongs in the index; by default nowhere.
#[derive(Default)]
struct Place<'a> {
    led: &'a [BrokerId],
    hosted: &'a [BrokerId],
    out_of_sync: BrokerList,
    strays: BrokerList,
    elr: &'a [BrokerId],
    directories: Option<&'a DirectoryList>,
    is_leaderless: bool,
}

impl<'a> Place<'a> {
    fn of(partition: Option<&'a Partition>) -> Self {
        let Some(partition) = partition else { return Self::default() };
        Self {
            led: partition.leader.as_slice(),
            hosted: &partition.replicas,
            out_of_sync: difference(&partition.replicas, &partition.isr),
            strays: difference(&partition.isr, &partition.replicas),
            elr: partition.elr(),
            is_leaderless: partition.leader.is_none(),
            directories: Some(&partition.directories),
        }
    }

    fn seated(&self) -> Seated<'a> {
        Seated { replicas: self.hosted, leader: self.led.first().copied() }
    }

    /// The replicas, where none of them leads.
    fn waiting(&self) -> &'a [BrokerId] {
        if self.is_leaderless { self.hosted } else { &[] }
    }

    fn preferred(&self) -> &'a [BrokerId] {
        self.hosted.get(..1).unwrap_or_default()
    }

    /// The first replica, where it does not lead.
    fn not_preferred(&self) -> &'a [BrokerId] {
        if self.led == self.preferred() { &[] } else { self.preferred() }
    }

    fn is_misplaced(&self) -> bool {
        !self.led.is_empty() && self.led != self.preferred()
    }

    fn places(&self) -> impl Iterator<Item = (BrokerId, DirectoryId)> {
        let directories = self.directories.into_iter().flat_map(DirectoryList::iter);
        let places = self.hosted.iter().copied().zip(directories);
        places.filter(|(_, directory)| *directory != DirectoryId::UNASSIGNED)
    }
}

fn difference(brokers: &[BrokerId], others: &[BrokerId]) -> BrokerList {
    brokers.iter().copied().filter(|broker| !others.contains(broker)).collect()
}

type ByBroker = By<BrokerId>;

/// A key without partitions has no entry, so that equal contents are equal values.
#[derive(Debug, Clone, PartialEq, Eq)]
struct By<K: Ord + Clone>(OrdMap<K, TopicPartitionSet>);

impl<K: Ord + Clone> Default for By<K> {
    fn default() -> Self {
        Self(OrdMap::new())
    }
}

impl<K: Ord + Copy> By<K> {
    fn of(&self, key: K) -> impl Iterator<Item = TopicPartition> {
        self.0.get(&key).into_iter().flat_map(TopicPartitionSet::iter)
    }

    fn of_after(&self, key: K, after: Option<TopicPartition>) -> impl Iterator<Item = TopicPartition> {
        self.0.get(&key).into_iter().flat_map(move |partitions| partitions.after(after))
    }

    fn count(&self, key: K) -> usize {
        self.0.get(&key).map_or(0, |partitions| partitions.len)
    }

    fn update(&mut self, id: TopicPartition, before: &[K], after: &[K]) {
        if before == after {
            return;
        }
        for &key in before.iter().filter(|key| !after.contains(key)) {
            self.remove_from(key, |partitions| partitions.remove(id));
        }
        for &key in after.iter().filter(|key| !before.contains(key)) {
            self.0.entry(key).or_default().insert(id);
        }
    }

    fn remove_topic(&mut self, topic: TopicId) {
        let has_it = |partitions: &TopicPartitionSet| partitions.topics.contains_key(&topic);
        let keys: Vec<_> = self.0.iter().filter(|(_, at)| has_it(at)).map(|(&key, _)| key).collect();
        for key in keys {
            self.remove_from(key, |partitions| partitions.remove_topic(topic));
        }
    }

    fn remove_from(&mut self, key: K, remove: impl FnOnce(&mut TopicPartitionSet)) {
        let Some(partitions) = self.0.get_mut(&key) else { return };
        remove(partitions);
        if partitions.len == 0 {
            self.0.remove(&key);
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

    /// As `iter`, of those behind `after`. What lies before it costs nothing.
    fn after(&self, after: Option<TopicPartition>) -> impl Iterator<Item = TopicPartition> {
        let from = after.map_or(Bound::Unbounded, |id| Bound::Included(id.topic));
        let topics = self.topics.range((from, Bound::Unbounded));
        topics.flat_map(move |(&topic, numbers)| {
            let behind = after.filter(|id| id.topic == topic);
            let first = behind.map_or(0, |id| number_of(id).saturating_add(1));
            numbers.iter_from(first).map(move |number| id_of(topic, number))
        })
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

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use crate::ids::{BrokerId, PartitionId, TopicPartition};
    use crate::image::fixture::{batch, broker, change, create_partition, image, partition_id, topic};
    use crate::record::{Kind, PartitionChange, Record};

    #[test]
    fn an_elr_is_found_by_its_topic() {
        let mut image = image();
        let other = topic(2);
        let elsewhere = TopicPartition::new(other, PartitionId::new(0));
        let records = [
            Record::CreateTopic { topic: other, name: "payments".to_owned(), kind: Kind::LOG },
            create_partition(other, 0, &[4, 3]),
            Record::PartitionChange(PartitionChange { isr: list(&[4]), elr: list(&[3]), ..change(elsewhere) }),
            Record::PartitionChange(PartitionChange { isr: list(&[1]), elr: list(&[2, 3]), ..change(partition_id(1)) }),
        ];
        image.replay(&batch(2, &records)).expect("the records of this test replay");
        let found: Vec<_> = image.index.in_elr_of(topic(1)).collect();
        assert_eq!(found, [partition_id(1), partition_id(1)], "once for each member");
        assert_eq!(image.index.in_elr_of(other).collect::<Vec<_>>(), [elsewhere]);
        assert_eq!(image.index.in_elr_of(topic(3)).count(), 0);
        let topics: BTreeSet<_> = image.index.topics_with_elr().collect();
        assert_eq!(topics, [topic(1), other].into());
    }

    fn list(ids: &[i32]) -> Option<Vec<BrokerId>> {
        Some(ids.iter().map(|&id| broker(id)).collect())
    }

    #[test]
    fn in_isr_has_those_in_sync_and_no_other() {
        let mut image = image();
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
