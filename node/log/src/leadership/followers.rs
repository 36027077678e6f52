//! The followers of a leadership, by broker. Few, and kept for each of very many partitions: a sorted array has room for
//! just those, where the smallest tree has room for eleven.

use quorate_metadata::ids::{BrokerEpoch, BrokerId};

use crate::LogOffset;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Follower {
    /// None until it has fetched from this leader.
    pub end: Option<LogOffset>,
    /// The epoch under which it last fetched.
    pub broker_epoch: Option<BrokerEpoch>,
    /// When it last had everything there was; None: never under this leader.
    pub caught_up_ms: Option<i64>,
    /// When it last fetched, and where the leader's log ended then.
    pub last_fetch: Option<(i64, LogOffset)>,
}

/// Ascending by broker.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Followers(Vec<(BrokerId, Follower)>);

impl Followers {
    pub fn get(&self, broker: BrokerId) -> Option<&Follower> {
        self.position(broker).ok().map(|at| &self.0[at].1)
    }

    pub fn get_mut(&mut self, broker: BrokerId) -> Option<&mut Follower> {
        self.position(broker).ok().map(|at| &mut self.0[at].1)
    }

    pub fn iter(&self) -> impl Iterator<Item = (BrokerId, &Follower)> {
        self.0.iter().map(|(broker, follower)| (*broker, follower))
    }

    pub fn iter_mut(&mut self) -> impl Iterator<Item = (BrokerId, &mut Follower)> {
        self.0.iter_mut().map(|(broker, follower)| (*broker, follower))
    }

    pub fn brokers(&self) -> impl Iterator<Item = BrokerId> {
        self.0.iter().map(|(broker, _)| *broker)
    }

    /// Adds a follower; one that is there stays as it is.
    pub fn add(&mut self, broker: BrokerId, follower: Follower) {
        if let Err(at) = self.position(broker) {
            self.0.reserve_exact(1);
            self.0.insert(at, (broker, follower));
        }
    }

    pub fn retain(&mut self, stays: impl Fn(BrokerId) -> bool) {
        self.0.retain(|(broker, _)| stays(*broker));
    }

    /// Where the broker is, or else where it belongs.
    fn position(&self, broker: BrokerId) -> Result<usize, usize> {
        self.0.binary_search_by_key(&broker, |(other, _)| *other)
    }
}
