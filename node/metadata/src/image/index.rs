//! Where brokers stand in partitions, kept as partitions change: fencing touches the partitions affected, not all.

use std::sync::Arc;

use imbl::{OrdMap, OrdSet};

use crate::ids::{BrokerId, TopicPartition};
use crate::record::Partition;

#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct PartitionIndex {
    by_broker: OrdMap<BrokerId, Places>,
    leaderless: OrdSet<TopicPartition>,
    not_preferred: OrdSet<TopicPartition>,
}

/// The partitions in which one broker stands, by how.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct Places {
    led: OrdSet<TopicPartition>,
    isr: OrdSet<TopicPartition>,
    elr: OrdSet<TopicPartition>,
    hosted: OrdSet<TopicPartition>,
}

impl Places {
    fn is_empty(&self) -> bool {
        self.led.is_empty() && self.isr.is_empty() && self.elr.is_empty() && self.hosted.is_empty()
    }
}

/// How a broker stands in a partition.
#[derive(Clone, Copy)]
enum Place {
    Led,
    Isr,
    Elr,
    Hosted,
}

impl PartitionIndex {
    pub fn led_by(&self, broker: BrokerId) -> impl Iterator<Item = TopicPartition> + '_ {
        self.at(broker, |places| &places.led)
    }

    pub fn in_isr(&self, broker: BrokerId) -> impl Iterator<Item = TopicPartition> + '_ {
        self.at(broker, |places| &places.isr)
    }

    pub fn in_elr(&self, broker: BrokerId) -> impl Iterator<Item = TopicPartition> + '_ {
        self.at(broker, |places| &places.elr)
    }

    /// Partitions that have the broker in their replica list.
    pub fn hosted_by(&self, broker: BrokerId) -> impl Iterator<Item = TopicPartition> + '_ {
        self.at(broker, |places| &places.hosted)
    }

    pub fn leaderless(&self) -> impl Iterator<Item = TopicPartition> + '_ {
        self.leaderless.iter().copied()
    }

    /// Partitions that another than their first replica leads.
    pub fn not_preferred(&self) -> impl Iterator<Item = TopicPartition> + '_ {
        self.not_preferred.iter().copied()
    }

    pub fn led_count(&self, broker: BrokerId) -> usize {
        self.by_broker.get(&broker).map_or(0, |places| places.led.len())
    }

    pub fn isr_count(&self, broker: BrokerId) -> usize {
        self.by_broker.get(&broker).map_or(0, |places| places.isr.len())
    }

    pub fn replica_count(&self, broker: BrokerId) -> usize {
        self.by_broker.get(&broker).map_or(0, |places| places.hosted.len())
    }

    pub fn leaderless_count(&self) -> usize {
        self.leaderless.len()
    }

    pub fn not_preferred_count(&self) -> usize {
        self.not_preferred.len()
    }

    /// Takes over a change of one partition; `None` is "not there".
    pub(super) fn update(&mut self, id: TopicPartition, before: Option<&Arc<Partition>>, after: Option<&Arc<Partition>>) {
        self.move_places(id, before, after, Place::Hosted, |state| &state.replicas);
        self.move_places(id, before, after, Place::Isr, |state| &state.isr);
        self.move_places(id, before, after, Place::Elr, |state| &state.elr);
        self.move_places(id, before, after, Place::Led, |state| state.leader.as_slice());
        mark(&mut self.leaderless, id, before, after, |state| state.leader.is_none());
        mark(&mut self.not_preferred, id, before, after, |state| {
            state.leader.is_some() && !state.has_preferred_leader()
        });
    }

    fn at<'a>(
        &'a self,
        broker: BrokerId,
        which: impl Fn(&'a Places) -> &'a OrdSet<TopicPartition>,
    ) -> impl Iterator<Item = TopicPartition> + 'a {
        self.by_broker.get(&broker).map(which).into_iter().flat_map(|set| set.iter().copied())
    }

    fn move_places<'a>(
        &mut self,
        id: TopicPartition,
        before: Option<&'a Arc<Partition>>,
        after: Option<&'a Arc<Partition>>,
        place: Place,
        members: impl Fn(&'a Partition) -> &'a [BrokerId],
    ) {
        let old = before.map_or(&[][..], |state| members(state));
        let new = after.map_or(&[][..], |state| members(state));
        if old == new {
            return;
        }
        for broker in old.iter().filter(|broker| !new.contains(broker)) {
            self.remove(*broker, place, id);
        }
        for broker in new.iter().filter(|broker| !old.contains(broker)) {
            self.set(*broker, place).insert(id);
        }
    }

    fn remove(&mut self, broker: BrokerId, place: Place, id: TopicPartition) {
        self.set(broker, place).remove(&id);
        if self.by_broker.get(&broker).is_some_and(Places::is_empty) {
            self.by_broker.remove(&broker);
        }
    }

    fn set(&mut self, broker: BrokerId, place: Place) -> &mut OrdSet<TopicPartition> {
        let places = self.by_broker.entry(broker).or_default();
        match place {
            Place::Led => &mut places.led,
            Place::Isr => &mut places.isr,
            Place::Elr => &mut places.elr,
            Place::Hosted => &mut places.hosted,
        }
    }
}

fn mark(
    set: &mut OrdSet<TopicPartition>,
    id: TopicPartition,
    before: Option<&Arc<Partition>>,
    after: Option<&Arc<Partition>>,
    holds: impl Fn(&Partition) -> bool,
) {
    let was = before.is_some_and(|state| holds(state));
    let is = after.is_some_and(|state| holds(state));
    match (was, is) {
        (false, true) => {
            set.insert(id);
        }
        (true, false) => {
            set.remove(&id);
        }
        (false, false) | (true, true) => {}
    }
}
