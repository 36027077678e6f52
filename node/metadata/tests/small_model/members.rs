//! A set of the three brokers, in a byte.

use quorate_metadata::ids::BrokerId;

pub const REPLICAS: [BrokerId; 3] = [BrokerId::new(1), BrokerId::new(2), BrokerId::new(3)];

/// Where what belongs to `broker` is kept.
pub fn at(broker: BrokerId) -> usize {
    usize::try_from(broker.get() - 1).unwrap()
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct Members(u8);

impl Members {
    pub const ONE_AND_TWO: Self = Self(0b011);

    pub fn of(brokers: &[BrokerId]) -> Self {
        brokers.iter().fold(Self::default(), |members, &broker| members.with(broker))
    }

    pub fn with(self, broker: BrokerId) -> Self {
        Self(self.0 | 1 << at(broker))
    }

    pub fn without(self, broker: BrokerId) -> Self {
        Self(self.0 & !(1 << at(broker)))
    }

    pub fn and(self, others: Self) -> Self {
        Self(self.0 | others.0)
    }

    pub fn contains(self, broker: BrokerId) -> bool {
        self.0 & 1 << at(broker) != 0
    }

    pub fn contains_all(self, others: Self) -> bool {
        others.0 & !self.0 == 0
    }

    pub fn len(self) -> usize {
        self.0.count_ones() as usize
    }

    pub fn iter(self) -> impl Iterator<Item = BrokerId> {
        REPLICAS.into_iter().filter(move |&broker| self.contains(broker))
    }
}
