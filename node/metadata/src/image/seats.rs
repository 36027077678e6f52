//! Which brokers host and lead which partitions, by topic and then by broker.
//!
//! Partitions are created and removed topic by topic, so a batch changes the seats of few topics. What a broker has is
//! found by way of buckets of topics: a list of topics by broker would be copied for each of them by every batch.

use std::ops::{Bound, RangeInclusive};

use imbl::OrdMap;

use super::partition_set::PartitionSet;
use super::small_map::SmallMap;
use crate::ids::{BrokerId, PartitionId, TopicId, TopicPartition};

#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Seats {
    topics: OrdMap<TopicId, SmallMap<BrokerId, Seat>>,
    buckets: OrdMap<Bucket, SmallMap<BrokerId, SeatedTopics>>,
    brokers: OrdMap<BrokerId, Held>,
}

/// Topics whose ids begin alike. Ids are random, so that a bucket has one topic of a thousand, and 15 of a million.
type Bucket = u16;

/// How many topics of a bucket a broker has a seat in.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct SeatedTopics {
    /// Where it hosts or leads a partition.
    any: u32,
    /// Where it leads a partition.
    led: u32,
}

/// What a broker has of one topic.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct Seat {
    hosted: PartitionSet,
    led: PartitionSet,
    /// How many partitions have the broker as their first replica, whoever leads.
    preferred: u32,
}

impl SeatedTopics {
    /// The counts of a single topic.
    fn of(seat: &Seat) -> Self {
        Self { any: u32::from(*seat != Seat::default()), led: u32::from(seat.led.len() > 0) }
    }
}

/// What a broker has of all topics. The sums are those of its seats.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Held {
    hosted: usize,
    led: usize,
    preferred: usize,
}

/// The part of a partition that decides who has a seat.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Seated<'a> {
    pub replicas: &'a [BrokerId],
    pub leader: Option<BrokerId>,
}

impl<'a> Seated<'a> {
    fn role_of(self, broker: BrokerId) -> Role {
        Role {
            hosts: self.replicas.contains(&broker),
            leads: self.leader == Some(broker),
            is_preferred: self.replicas.first() == Some(&broker),
        }
    }

    /// Those that have a seat, each once: `verify` refuses a replica that is listed twice, but replay does not.
    fn brokers(self) -> impl Iterator<Item = BrokerId> {
        let replicas = self.replicas;
        let first = replicas.iter().enumerate().filter(|(at, broker)| !replicas[..*at].contains(broker));
        let elsewhere = self.leader.filter(|leader| !replicas.contains(leader));
        first.map(|(_, broker)| *broker).chain(elsewhere)
    }
}

/// What a broker is for a partition.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Role {
    hosts: bool,
    leads: bool,
    is_preferred: bool,
}

/// What one change of a partition makes of one broker's seat in it.
#[derive(Debug)]
pub(super) struct SeatChange {
    broker: BrokerId,
    number: u32,
    before: Role,
    after: Role,
}

impl SeatChange {
    /// Those of a partition that was seated like `before`, and is like `after` now.
    pub(super) fn collect(id: TopicPartition, before: Seated<'_>, after: Seated<'_>, into: &mut Vec<Self>) {
        if before == after {
            return;
        }
        let left = before.brokers().filter(|broker| !after.brokers().any(|other| other == *broker));
        for broker in left.chain(after.brokers()) {
            let [before, after] = [before, after].map(|seated| seated.role_of(broker));
            if before != after {
                into.push(Self { broker, number: number_of(id), before, after });
            }
        }
    }
}

impl Seats {
    /// Changes the seats of one topic, broker by broker.
    pub(super) fn update(&mut self, topic: TopicId, mut changes: Vec<SeatChange>) {
        if changes.is_empty() {
            return;
        }
        // Stable: the changes of a partition keep their order.
        changes.sort_by_key(|change| change.broker);
        let seats = self.topics.entry(topic).or_default();
        let bucket = self.buckets.entry(bucket_of(topic)).or_default();
        for changes in changes.chunk_by(|one, next| one.broker == next.broker) {
            take_seats(seats, bucket, &mut self.brokers, changes);
        }
        let (is_empty, is_empty_bucket) = (seats.is_empty(), bucket.is_empty());
        if is_empty {
            self.topics.remove(&topic);
        }
        if is_empty_bucket {
            self.buckets.remove(&bucket_of(topic));
        }
    }

    /// The cost is that of the brokers that have a seat.
    pub(super) fn remove_topic(&mut self, topic: TopicId) {
        let Some(seats) = self.topics.remove(&topic) else { return };
        let bucket = self.buckets.entry(bucket_of(topic)).or_default();
        for (broker, seat) in seats.iter() {
            let held = self.brokers.get_mut(broker).expect("a broker with a seat is held");
            held.hosted -= seat.hosted.len();
            held.led -= seat.led.len();
            held.preferred -= seat.preferred as usize;
            if *held == Held::default() {
                self.brokers.remove(broker);
            }
            bucket.change(*broker, |topics| {
                topics.any -= 1;
                topics.led -= u32::from(seat.led.len() > 0);
            });
        }
        if bucket.is_empty() {
            self.buckets.remove(&bucket_of(topic));
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
        let leads = self.led_count(broker) > 0;
        let seats = leads.then(|| self.seats_from(None, broker, |topics| topics.led > 0)).into_iter().flatten();
        seats.flat_map(|(topic, seat)| seat.led.iter().map(move |number| id_of(topic, number)))
    }

    /// Sorted by topic and partition.
    pub(super) fn hosted_by(&self, broker: BrokerId) -> impl Iterator<Item = TopicPartition> {
        self.hosted_without(broker, None, |_| None)
    }

    /// As `hosted_by`, of those behind `after` that `others` does not have.
    pub(super) fn hosted_without<'a>(
        &'a self,
        broker: BrokerId,
        after: Option<TopicPartition>,
        others: impl Fn(TopicId) -> Option<&'a PartitionSet>,
    ) -> impl Iterator<Item = TopicPartition> {
        self.seats_from(after.map(|id| id.topic), broker, |_| true).flat_map(move |(topic, seat)| {
            let behind = after.filter(|id| id.topic == topic);
            let first = behind.map_or(0, |id| number_of(id).saturating_add(1));
            seat.hosted.iter_without(others(topic), first).map(move |number| id_of(topic, number))
        })
    }

    /// The seats of a broker by topic, from the topic `first` on, in those buckets that `counts` asks for.
    fn seats_from(
        &self,
        first: Option<TopicId>,
        broker: BrokerId,
        counts: impl Fn(&SeatedTopics) -> bool,
    ) -> impl Iterator<Item = (TopicId, &Seat)> {
        let first = first.unwrap_or(TopicId::from_bytes([0; 16]));
        let buckets = self.brokers.get(&broker).into_iter().flat_map(move |_| self.buckets.range(bucket_of(first)..));
        let buckets = buckets.filter(move |(_, brokers)| brokers.get(&broker).is_some_and(&counts));
        let topics = buckets.flat_map(move |(bucket, _)| {
            let (begin, end) = topics_in(*bucket).into_inner();
            self.topics.range(begin.max(first)..=end)
        });
        topics.filter_map(move |(topic, seats)| seats.get(&broker).map(|seat| (*topic, seat)))
    }
}

fn bucket_of(topic: TopicId) -> Bucket {
    let [first, second, ..] = *topic.as_bytes();
    Bucket::from_be_bytes([first, second])
}

fn topics_in(bucket: Bucket) -> RangeInclusive<TopicId> {
    let [first, second] = bucket.to_be_bytes();
    let bound = |rest: u8| {
        let mut bytes = [rest; 16];
        bytes[..2].copy_from_slice(&[first, second]);
        TopicId::from_bytes(bytes)
    };
    bound(0)..=bound(u8::MAX)
}

/// Makes the changes of one broker's seats in one topic.
fn take_seats(
    seats: &mut SmallMap<BrokerId, Seat>,
    bucket: &mut SmallMap<BrokerId, SeatedTopics>,
    brokers: &mut OrdMap<BrokerId, Held>,
    changes: &[SeatChange],
) {
    let broker = changes[0].broker;
    let held = brokers.entry(broker).or_default();
    let (before, after) = seats.change(broker, |seat| {
        let seated = SeatedTopics::of(seat);
        for SeatChange { number, before, after, .. } in changes {
            set(&mut seat.hosted, *number, after.hosts);
            set(&mut seat.led, *number, after.leads);
            seat.preferred += u32::from(after.is_preferred);
            seat.preferred -= u32::from(before.is_preferred);
            count(&mut held.hosted, before.hosts, after.hosts);
            count(&mut held.led, before.leads, after.leads);
            count(&mut held.preferred, before.is_preferred, after.is_preferred);
        }
        (seated, SeatedTopics::of(seat))
    });
    if *held == Held::default() {
        brokers.remove(&broker);
    }
    if before != after {
        bucket.change(broker, |topics| {
            topics.any = topics.any + after.any - before.any;
            topics.led = topics.led + after.led - before.led;
        });
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
    /// Adds to the counts of one topic, or takes away.
    pub(super) fn update(&mut self, topic: TopicId, mut changes: Vec<(K, i32)>) {
        if changes.is_empty() {
            return;
        }
        changes.sort_unstable_by_key(|(key, _)| *key);
        let counts = self.topics.entry(topic).or_default();
        for changes in changes.chunk_by(|one, next| one.0 == next.0) {
            let key = changes[0].0;
            let sum: i32 = changes.iter().map(|(_, change)| change).sum();
            if sum != 0 {
                counts.change(key, |count| *count = count.checked_add_signed(sum).expect(NOT_NEGATIVE));
                add(&mut self.totals, key, sum as isize);
            }
        }
        if counts.is_empty() {
            self.topics.remove(&topic);
        }
    }

    pub(super) fn remove_topic(&mut self, topic: TopicId) {
        let counts = self.topics.remove(&topic).unwrap_or_default();
        counts.iter().for_each(|(key, count)| add(&mut self.totals, *key, -(*count as isize)));
    }

    pub(super) fn total(&self, key: K) -> usize {
        self.totals.get(&key).copied().unwrap_or(0)
    }

    /// The keys that are counted, from `first` on.
    pub(super) fn keys_from(&self, first: K) -> impl Iterator<Item = K> {
        self.totals.range((Bound::Included(first), Bound::Unbounded)).map(|(key, _)| *key)
    }
}

const NOT_NEGATIVE: &str = "what is taken away was counted before";

fn add<K: Ord + Copy>(totals: &mut OrdMap<K, usize>, key: K, change: isize) {
    let total = totals.entry(key).or_default();
    *total = total.checked_add_signed(change).expect(NOT_NEGATIVE);
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

    fn update(seats: &mut Seats, id: TopicPartition, before: Seated<'_>, after: Seated<'_>) {
        let mut changes = Vec::new();
        SeatChange::collect(id, before, after, &mut changes);
        seats.update(id.topic, changes);
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
            let (mut at_once, mut collected) = (Seats::default(), BTreeMap::<TopicId, Vec<SeatChange>>::new());
            for (id, state) in changes {
                let before = model.insert(id, state.clone()).unwrap_or_default();
                update(&mut seats, id, seated(&before), seated(&state));
                SeatChange::collect(id, seated(&before), seated(&state), collected.entry(id.topic).or_default());
            }
            check(&seats, &model)?;
            collected.into_iter().for_each(|(topic, changes)| at_once.update(topic, changes));
            prop_assert_eq!(&seats, &at_once, "one by one and all at once is the same");
            let mut again = Seats::default();
            model.iter().rev().for_each(|(id, state)| update(&mut again, *id, Seated::default(), seated(state)));
            prop_assert_eq!(&seats, &again, "equal contents are equal values");
            seats.remove_topic(topic(1));
            model.retain(|id, _| id.topic != topic(1));
            check(&seats, &model)?;
            for (id, state) in &model {
                update(&mut seats, *id, seated(state), Seated::default());
            }
            prop_assert_eq!(seats, Seats::default());
        }

        #[test]
        fn a_tally_counts_by_topic_and_in_all(changes in prop::collection::vec((0..3_u128, 0..40_i32, 1..4_usize), 0..200)) {
            let (mut tally, mut model) = (Tally::default(), BTreeMap::<(u128, i32), usize>::new());
            for (at, key, count) in changes {
                tally.update(topic(at), vec![(key, 1); count]);
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
                tally.update(topic(at), vec![(key, -1); count]);
            }
            prop_assert_eq!(tally, Tally::default());
        }
    }
}
