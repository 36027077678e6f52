//! Where the replicas of new partitions go.
//!
//! Goals, in order:
//! 1. racks: the replicas of a partition are spread over as many racks as there are, as evenly as brokers allow;
//! 2. brokers: a partition has at most one replica on a broker;
//! 3. the first replica, which will lead, is on an unfenced broker; the others are too, unless the rack has none left;
//! 4. the topic is even: each unfenced broker leads as many of its partitions as any other, give or take one, and
//!    followers go where the topic has fewest replicas;
//! 5. the cluster becomes even: among equals, the broker with fewer leaders (for a leader) or replicas (for a
//!    follower) of all topics is taken. So new topics fill an empty broker, without one topic living on it alone;
//! 6. what is still equal is left to chance, so that the leaders of a broker have followers all over.
//!
//! Goals 1 to 3 hold for every result and are asserted. Racks of unequal size are used equally, by goal 1: a small
//! rack's brokers hold more. Brokers without a rack count as one rack of their own.
//!
//! Example: brokers 1a 2a 3b 4b (racks a and b), all empty but 1, which leads two partitions of other topics; three
//! partitions, replication factor 2. The leaders are 2, 3 and 4 in some order, since 1 has led enough; the partition
//! that 2 leads has its follower on 3 or 4, those that 3 and 4 lead have theirs on 1 and 2.

use std::collections::BTreeMap;

use crate::error::{ApiError, ErrorName};
use crate::ids::BrokerId;
use crate::rng::Rng;

/// A broker that may get replicas.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Candidate<'a> {
    pub id: BrokerId,
    pub rack: Option<&'a str>,
    pub fenced: bool,
    /// What it has of all topics.
    pub cluster: Load,
    /// What it has of the topic that is being placed.
    pub topic: Load,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Load {
    /// Partitions of which it is the preferred leader.
    pub leaders: usize,
    pub replicas: usize,
}

impl Candidate<'_> {
    /// Counts a replica that it gets.
    fn take(&mut self, leads: bool) {
        for load in [&mut self.cluster, &mut self.topic] {
            load.replicas += 1;
            load.leaders += usize::from(leads);
        }
    }
}

/// Places `partitions` partitions of one topic. The first replica of each is its preferred leader.
pub fn place(
    brokers: &[Candidate<'_>],
    partitions: usize,
    replication_factor: usize,
    rng: &mut Rng,
) -> Result<Vec<Vec<BrokerId>>, ApiError> {
    check(brokers, replication_factor)?;
    let mut placer = Placer::new(brokers, rng);
    let placed: Vec<Vec<BrokerId>> = (0..partitions).map(|_| placer.place_one(replication_factor, rng)).collect();
    assert_spread(brokers, &placed, replication_factor);
    Ok(placed)
}

fn check(brokers: &[Candidate<'_>], replication_factor: usize) -> Result<(), ApiError> {
    let refuse = |message| Err(ApiError::new(ErrorName::InvalidReplicationFactor, message));
    if replication_factor == 0 {
        return refuse("the replication factor must be at least 1".to_owned());
    }
    if replication_factor > brokers.len() {
        return refuse(format!(
            "replication factor {replication_factor} needs as many brokers, and {} can take replicas",
            brokers.len()
        ));
    }
    if brokers.iter().all(|broker| broker.fenced) {
        return refuse("all brokers are fenced".to_owned());
    }
    Ok(())
}

struct Placer<'a> {
    brokers: Vec<Candidate<'a>>,
    /// The rack of each broker, as a number.
    racks: Vec<usize>,
    /// Replicas of the partition in hand, by rack.
    in_rack: Vec<usize>,
    /// Brokers of the partition in hand, as positions in `brokers`.
    chosen: Vec<usize>,
}

impl<'a> Placer<'a> {
    fn new(brokers: &[Candidate<'a>], rng: &mut Rng) -> Self {
        let mut brokers = brokers.to_vec();
        rng.shuffle(&mut brokers);
        let mut numbers = BTreeMap::new();
        let mut number = |rack: Option<&'a str>| {
            let next = numbers.len();
            *numbers.entry(rack).or_insert(next)
        };
        let racks: Vec<usize> = brokers.iter().map(|broker| number(broker.rack)).collect();
        Self { in_rack: vec![0; numbers.len()], racks, brokers, chosen: Vec::new() }
    }

    fn place_one(&mut self, replication_factor: usize, rng: &mut Rng) -> Vec<BrokerId> {
        self.chosen.clear();
        self.in_rack.fill(0);
        let leader = self.lightest(rng, |_, broker| {
            (!broker.fenced).then_some((
                broker.topic.leaders,
                broker.cluster.leaders,
                broker.topic.replicas,
                broker.cluster.replicas,
            ))
        });
        self.choose(leader.expect("one broker is unfenced"), true);
        while self.chosen.len() < replication_factor {
            let follower = self.lightest(rng, |copies_in_rack, broker| {
                Some((copies_in_rack, broker.fenced, broker.topic.replicas, broker.cluster.replicas))
            });
            self.choose(follower.expect("there are at least as many brokers as replicas"), false);
        }
        self.chosen.iter().map(|&at| self.brokers[at].id).collect()
    }

    fn choose(&mut self, at: usize, leads: bool) {
        self.brokers[at].take(leads);
        self.in_rack[self.racks[at]] += 1;
        self.chosen.push(at);
    }

    /// Of the brokers not chosen yet, the one of the least weight; the first from a random start, among equals.
    fn lightest<W: Ord>(&self, rng: &mut Rng, weight: impl Fn(usize, &Candidate<'_>) -> Option<W>) -> Option<usize> {
        let start = rng.below(self.brokers.len());
        let from_start = (start..self.brokers.len()).chain(0..start);
        let open = from_start.filter(|at| !self.chosen.contains(at));
        let weighed = open.filter_map(|at| Some((weight(self.in_rack[self.racks[at]], &self.brokers[at])?, at)));
        weighed.reduce(|best, next| if next.0 < best.0 { next } else { best }).map(|(_, at)| at)
    }
}

/// Goals 1 to 3, for every partition placed.
fn assert_spread(brokers: &[Candidate<'_>], placed: &[Vec<BrokerId>], replication_factor: usize) {
    let by_id: BTreeMap<BrokerId, &Candidate<'_>> = brokers.iter().map(|broker| (broker.id, broker)).collect();
    let mut sizes: BTreeMap<Option<&str>, usize> = BTreeMap::new();
    for broker in brokers {
        *sizes.entry(broker.rack).or_default() += 1;
    }
    for replicas in placed {
        assert_eq!(replicas.len(), replication_factor, "a replica is missing: {replicas:?}");
        assert!(!by_id[&replicas[0]].fenced, "the leader is fenced: {replicas:?}");
        let mut copies: BTreeMap<Option<&str>, usize> = sizes.keys().map(|&rack| (rack, 0)).collect();
        for (at, replica) in replicas.iter().enumerate() {
            assert!(!replicas[..at].contains(replica), "a broker is there twice: {replicas:?}");
            *copies.entry(by_id[replica].rack).or_default() += 1;
        }
        let most = copies.values().max().copied().unwrap_or_default();
        let is_fair = |(rack, copies): (&Option<&str>, &usize)| copies + 1 >= most || *copies == sizes[rack];
        assert!(copies.iter().all(is_fair), "a rack has room and fewer replicas than another: {replicas:?}");
    }
}

#[cfg(test)]
mod tests;
