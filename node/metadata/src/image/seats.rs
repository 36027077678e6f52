//! Which brokers host and lead which partitions, by topic and then by broker.
//!
//! Partitions are created and removed topic by topic, so a batch changes the seats of few topics. By broker there are only
//! sums, and the topics to look at.

use std::ops::Bound;

use imbl::{OrdMap, OrdSet};

use super::partition_set::PartitionSet;
use super::small_map::SmallMap;
use crate::ids::{BrokerId, PartitionId, TopicId, TopicPartition};

#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Seats {
    topics: OrdMap<TopicId, SmallMap<BrokerId, Seat>>,
    brokers: OrdMap<BrokerId, Held>,
}

/// What a broker has of one topic.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct Seat {
    hosted: PartitionSet,
    led: PartitionSet,
    /// How many partitions have the broker as their first replica, whoever leads.
    preferred: u32,
}

/// What a broker has of all topics. The sums are those of its seats.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct Held {
    hosted: usize,
    led: usize,
    preferred: usize,
    /// Those that it hosts or leads a partition of.
    topics: OrdSet<TopicId>,
    /// Those that it leads a partition of.
    led_topics: OrdSet<TopicId>,
}

/// The part of a partition that decides who has a seat.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Seated<'a> {
    pub replicas: &'a [BrokerId],
    pub leader: Option<BrokerId>,
}

impl<'a> Seated<'a> {
    fn preferred(self) -> Option<BrokerId> {
        self.replicas.first().copied()
    }

    /// Those that have a seat, each once: `verify` refuses a replica that is listed twice, but replay does not.
    fn brokers(self) -> impl Iterator<Item = BrokerId> {
        let replicas = self.replicas;
        let first = replicas.iter().enumerate().filter(|(at, broker)| !replicas[..*at].contains(broker));
        let elsewhere = self.leader.filter(|leader| !replicas.contains(leader));
        first.map(|(_, broker)| *broker).chain(elsewhere)
    }
}

impl Seats {
    pub(super) fn update(&mut self, id: TopicPartition, before: Seated<'_>, after: Seated<'_>) {
        if before == after {
            return;
        }
        if !self.topics.contains_key(&id.topic) {
            self.topics.insert(id.topic, SmallMap::default());
        }
        let topic = self.topics.get_mut(&id.topic).expect("it was just inserted");
        for broker in before.brokers().filter(|broker| !after.brokers().any(|other| other == *broker)) {
            take_seat(topic, &mut self.brokers, broker, id, before, after);
        }
        for broker in after.brokers() {
            take_seat(topic, &mut self.brokers, broker, id, before, after);
        }
        if topic.is_empty() {
            self.topics.remove(&id.topic);
        }
    }

    /// The cost is that of the brokers that have a seat.
    pub(super) fn remove_topic(&mut self, topic: TopicId) {
        let Some(seats) = self.topics.remove(&topic) else { return };
        for (broker, seat) in seats.iter() {
            let held = self.brokers.get_mut(broker).expect("a broker with a seat is held");
            held.hosted -= seat.hosted.len();
            held.led -= seat.led.len();
            held.preferred -= seat.preferred as usize;
            held.topics.remove(&topic);
            held.led_topics.remove(&topic);
            if held.topics.is_empty() {
                self.brokers.remove(broker);
            }
        }
    }

    pub(super) fn broker_count(&self) -> usize {
        self.brokers.len()
    }

    pub(super) fn hosted_count(&self, broker: BrokerId) -> usize {
        self.brokers.get(&broker).map_or(0, |held| held.hosted)
    }

    pub(super) fn led_count(&self, broker: BrokerId) -> usize {
        self.brokers.get(&broker).map_or(0, |held| held.led)
    }

    pub(super) fn preferred_count(&self, broker: BrokerId) -> usize {
        self.brokers.get(&broker).map_or(0, |held| held.preferred)
    }

    /// Sorted by topic and partition.
    pub(super) fn led_by(&self, broker: BrokerId) -> impl Iterator<Item = TopicPartition> {
        let topics = self.brokers.get(&broker).into_iter().flat_map(|held| &held.led_topics);
        topics.flat_map(move |&topic| {
            let seat = self.seat(topic, broker);
            seat.into_iter().flat_map(move |seat| seat.led.iter().map(move |number| id_of(topic, number)))
        })
    }

    /// Sorted by topic and partition.
    pub(super) fn hosted_by(&self, broker: BrokerId) -> impl Iterator<Item = TopicPartition> {
        self.hosted_without(broker, |_| None)
    }

    /// As `hosted_by`, of those that `others` does not have.
    pub(super) fn hosted_without<'a>(
        &'a self,
        broker: BrokerId,
        others: impl Fn(TopicId) -> Option<&'a PartitionSet>,
    ) -> impl Iterator<Item = TopicPartition> {
        let topics = self.brokers.get(&broker).into_iter().flat_map(|held| &held.topics);
        topics.flat_map(move |&topic| {
            let others = others(topic);
            let stays = move |number: &u32| others.is_none_or(|others| !others.contains(*number));
            let seat = self.seat(topic, broker).into_iter();
            seat.flat_map(|seat| seat.hosted.iter()).filter(stays).map(move |number| id_of(topic, number))
        })
    }

    fn seat(&self, topic: TopicId, broker: BrokerId) -> Option<&Seat> {
        self.topics.get(&topic).and_then(|seats| seats.get(&broker))
    }
}

/// Gives `broker` the seat in a partition that `after` says, where it had the one that `before` says.
fn take_seat(
    topic: &mut SmallMap<BrokerId, Seat>,
    brokers: &mut OrdMap<BrokerId, Held>,
    broker: BrokerId,
    id: TopicPartition,
    before: Seated<'_>,
    after: Seated<'_>,
) {
    let number = number_of(id);
    let (had_seat, had_led) = topic.get(&broker).map_or((false, false), |seat| (true, seat.led.len() > 0));
    let (has_seat, leads) = topic.change(broker, |seat| {
        set(&mut seat.hosted, number, after.replicas.contains(&broker));
        set(&mut seat.led, number, after.leader == Some(broker));
        seat.preferred += u32::from(after.preferred() == Some(broker));
        seat.preferred -= u32::from(before.preferred() == Some(broker));
        (*seat != Seat::default(), seat.led.len() > 0)
    });
    if !brokers.contains_key(&broker) {
        brokers.insert(broker, Held::default());
    }
    let held = brokers.get_mut(&broker).expect("it was just inserted");
    count(&mut held.hosted, before.replicas.contains(&broker), after.replicas.contains(&broker));
    count(&mut held.led, before.leader == Some(broker), after.leader == Some(broker));
    count(&mut held.preferred, before.preferred() == Some(broker), after.preferred() == Some(broker));
    enter(&mut held.topics, id.topic, had_seat, has_seat);
    enter(&mut held.led_topics, id.topic, had_led, leads);
    if held.topics.is_empty() {
        brokers.remove(&broker);
    }
}

fn set(numbers: &mut PartitionSet, number: u32, is_member: bool) {
    // A change of an equal set would copy what is shared.
    match (numbers.contains(number), is_member) {
        (false, true) => _ = numbers.insert(number),
        (true, false) => _ = numbers.remove(number),
        (false, false) | (true, true) => {}
    }
}

fn count(sum: &mut usize, was_counted: bool, is_counted: bool) {
    *sum += usize::from(is_counted);
    *sum -= usize::from(was_counted);
}

fn enter(topics: &mut OrdSet<TopicId>, topic: TopicId, was_member: bool, is_member: bool) {
    match (was_member, is_member) {
        (false, true) => _ = topics.insert(topic),
        (true, false) => _ = topics.remove(&topic),
        (false, false) | (true, true) => {}
    }
}

/// How many partitions have each key, by topic, so that a topic is taken out at the cost of its keys.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Tally<K: Ord + Copy> {
    topics: OrdMap<TopicId, SmallMap<K, u32>>,
    totals: OrdMap<K, usize>,
}

impl<K: Ord + Copy> Default for Tally<K> {
    fn default() -> Self {
        Self { topics: OrdMap::new(), totals: OrdMap::new() }
    }
}

impl<K: Ord + Copy> Tally<K> {
    pub(super) fn update(&mut self, topic: TopicId, before: &[K], after: &[K]) {
        if before == after {
            return;
        }
        if !self.topics.contains_key(&topic) {
            self.topics.insert(topic, SmallMap::default());
        }
        let counts = self.topics.get_mut(&topic).expect("it was just inserted");
        for &key in after {
            counts.change(key, |count| *count += 1);
            match self.totals.get_mut(&key) {
                Some(total) => *total += 1,
                None => _ = self.totals.insert(key, 1),
            }
        }
        for &key in before {
            counts.change(key, |count| *count -= 1);
            subtract(&mut self.totals, key, 1);
        }
        if counts.is_empty() {
            self.topics.remove(&topic);
        }
    }

    pub(super) fn remove_topic(&mut self, topic: TopicId) {
        let counts = self.topics.remove(&topic).unwrap_or_default();
        counts.iter().for_each(|(key, count)| subtract(&mut self.totals, *key, *count as usize));
    }

    pub(super) fn total(&self, key: K) -> usize {
        self.totals.get(&key).copied().unwrap_or(0)
    }

    /// The keys that are counted, from `first` on.
    pub(super) fn keys_from(&self, first: K) -> impl Iterator<Item = K> {
        self.totals.range((Bound::Included(first), Bound::Unbounded)).map(|(key, _)| *key)
    }
}

fn subtract<K: Ord + Copy>(totals: &mut OrdMap<K, usize>, key: K, count: usize) {
    let total = totals.get_mut(&key).expect("what is counted has a total");
    *total -= count;
    if *total == 0 {
        totals.remove(&key);
    }
}

pub(super) fn id_of(topic: TopicId, number: u32) -> TopicPartition {
    TopicPartition::new(topic, PartitionId::new(number.cast_signed()))
}

/// Partitions are numbered from 0.
pub(super) fn number_of(id: TopicPartition) -> u32 {
    id.partition.get().cast_unsigned()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;
    use uuid::Uuid;

    use super::*;

    /// The replicas and the leader of a partition; without a replica there is no partition.
    type State = (Vec<BrokerId>, Option<BrokerId>);

    fn seated((replicas, leader): &State) -> Seated<'_> {
        Seated { replicas, leader: *leader }
    }

    fn topic(number: u128) -> TopicId {
        TopicId::new(Uuid::from_u128(number))
    }

    fn states() -> impl Strategy<Value = State> {
        // More brokers than an array of seats takes, and replicas that repeat or do not lead.
        let broker = || (0..40).prop_map(BrokerId::new);
        (prop::collection::vec(broker(), 0..4), prop::option::of(broker()))
    }

    fn ids() -> impl Strategy<Value = TopicPartition> {
        (0..3_u128, 0..60).prop_map(|(at, partition)| TopicPartition::new(topic(at), PartitionId::new(partition)))
    }

    fn check(seats: &Seats, model: &BTreeMap<TopicPartition, State>) -> Result<(), TestCaseError> {
        for broker in (0..40).map(BrokerId::new) {
            let those = |has: fn(&State, &BrokerId) -> bool| -> Vec<TopicPartition> {
                model.iter().filter(|(_, state)| has(state, &broker)).map(|(id, _)| *id).collect()
            };
            let hosted = those(|state, broker| state.0.contains(broker));
            let led = those(|state, broker| state.1 == Some(*broker));
            let preferred = those(|state, broker| state.0.first() == Some(broker));
            prop_assert_eq!(seats.hosted_count(broker), hosted.len());
            prop_assert_eq!(seats.led_count(broker), led.len());
            prop_assert_eq!(seats.preferred_count(broker), preferred.len());
            prop_assert_eq!(seats.hosted_by(broker).collect::<Vec<_>>(), hosted);
            prop_assert_eq!(seats.led_by(broker).collect::<Vec<_>>(), led);
        }
        Ok(())
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(48))]

        #[test]
        fn seats_are_those_of_the_partitions(changes in prop::collection::vec((ids(), states()), 0..300)) {
            let (mut seats, mut model) = (Seats::default(), BTreeMap::<TopicPartition, State>::new());
            for (id, state) in changes {
                let before = model.insert(id, state.clone()).unwrap_or_default();
                seats.update(id, seated(&before), seated(&state));
            }
            check(&seats, &model)?;
            let mut again = Seats::default();
            model.iter().rev().for_each(|(id, state)| again.update(*id, Seated::default(), seated(state)));
            prop_assert_eq!(&seats, &again, "equal contents are equal values");
            seats.remove_topic(topic(1));
            model.retain(|id, _| id.topic != topic(1));
            check(&seats, &model)?;
            for (id, state) in &model {
                seats.update(*id, seated(state), Seated::default());
            }
            prop_assert_eq!(seats, Seats::default());
        }

        #[test]
        fn a_tally_counts_by_topic_and_in_all(changes in prop::collection::vec((0..3_u128, 0..40_i32, 1..4_usize), 0..200)) {
            let (mut tally, mut model) = (Tally::default(), BTreeMap::<(u128, i32), usize>::new());
            for (at, key, count) in changes {
                tally.update(topic(at), &[], &vec![key; count]);
                *model.entry((at, key)).or_default() += count;
            }
            let total = |model: &BTreeMap<(u128, i32), usize>, key| -> usize {
                model.iter().filter(|((_, other), _)| *other == key).map(|(_, count)| count).sum()
            };
            prop_assert!((0..40).all(|key| tally.total(key) == total(&model, key)));
            tally.remove_topic(topic(1));
            model.retain(|(at, _), _| *at != 1);
            prop_assert!((0..40).all(|key| tally.total(key) == total(&model, key)));
            for ((at, key), count) in model {
                tally.update(topic(at), &vec![key; count], &[]);
            }
            prop_assert_eq!(tally, Tally::default());
        }
    }
}
