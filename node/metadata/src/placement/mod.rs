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

use std::collections::{BTreeMap, BTreeSet};

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
    fn as_leader(&self) -> LeaderWeight {
        LeaderWeight {
            topic_leaders: self.topic.leaders,
            cluster_leaders: self.cluster.leaders,
            topic_replicas: self.topic.replicas,
            cluster_replicas: self.cluster.replicas,
        }
    }

    fn as_follower(&self) -> FollowerWeight {
        FollowerWeight {
            is_fenced: self.fenced,
            topic_replicas: self.topic.replicas,
            cluster_replicas: self.cluster.replicas,
        }
    }

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

/// The brokers in the order in which they come to be chosen: one is found in logarithmic time, however many there are.
struct Placer<'a> {
    brokers: Vec<Candidate<'a>>,
    /// The rack of each broker, as a number.
    racks: Vec<usize>,
    /// Goals 4 to 6 for the leader, of the unfenced brokers.
    leaders: BTreeSet<(LeaderWeight, Place)>,
    /// Goals 3 to 6 for the followers, by rack.
    followers: Vec<BTreeSet<(FollowerWeight, Place)>>,
    /// Where each broker is among its equals.
    places: Vec<Place>,
    /// Replicas of the partition in hand, by rack.
    in_rack: Vec<usize>,
    /// Brokers of the partition in hand, as positions in `brokers`.
    chosen: Vec<usize>,
}

/// Less is better, field by field.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct LeaderWeight {
    topic_leaders: usize,
    cluster_leaders: usize,
    topic_replicas: usize,
    cluster_replicas: usize,
}

/// Less is better, field by field.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct FollowerWeight {
    is_fenced: bool,
    topic_replicas: usize,
    cluster_replicas: usize,
}

/// A broker among those of the same weight: in an order left to chance, which each choice changes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Place {
    chance: u64,
    at: usize,
}

impl<'a> Placer<'a> {
    fn new(brokers: &[Candidate<'a>], rng: &mut Rng) -> Self {
        let mut numbers = BTreeMap::new();
        let mut number = |rack: Option<&'a str>| {
            let next = numbers.len();
            *numbers.entry(rack).or_insert(next)
        };
        let racks: Vec<usize> = brokers.iter().map(|broker| number(broker.rack)).collect();
        let places = (0..brokers.len()).map(|at| Place { chance: rng.next_u64(), at }).collect();
        let mut placer = Self {
            leaders: BTreeSet::new(),
            followers: vec![BTreeSet::new(); numbers.len()],
            in_rack: vec![0; numbers.len()],
            brokers: brokers.to_vec(),
            racks,
            places,
            chosen: Vec::new(),
        };
        (0..brokers.len()).for_each(|at| placer.enter(at));
        placer
    }

    fn place_one(&mut self, replication_factor: usize, rng: &mut Rng) -> Vec<BrokerId> {
        self.chosen.clear();
        self.in_rack.fill(0);
        let (_, leader) = *self.leaders.first().expect("one broker is unfenced");
        self.choose(leader.at, true, rng);
        while self.chosen.len() < replication_factor {
            let follower = self.next_follower().expect("there are at least as many brokers as replicas");
            self.choose(follower, false, rng);
        }
        self.chosen.iter().map(|&at| self.brokers[at].id).collect()
    }

    /// Of the brokers not chosen yet, the one whose rack has the fewest replicas, and among those the lightest.
    fn next_follower(&self) -> Option<usize> {
        let of_rack = |(rack, brokers): (usize, &BTreeSet<(FollowerWeight, Place)>)| {
            let (weight, place) = brokers.iter().find(|(_, place)| !self.chosen.contains(&place.at))?;
            Some((self.in_rack[rack], *weight, *place))
        };
        self.followers.iter().enumerate().filter_map(of_rack).min().map(|(_, _, place)| place.at)
    }

    fn choose(&mut self, at: usize, leads: bool, rng: &mut Rng) {
        self.leave(at);
        self.brokers[at].take(leads);
        self.places[at].chance = rng.next_u64();
        self.enter(at);
        self.in_rack[self.racks[at]] += 1;
        self.chosen.push(at);
    }

    fn enter(&mut self, at: usize) {
        let (broker, place) = (&self.brokers[at], self.places[at]);
        if !broker.fenced {
            self.leaders.insert((broker.as_leader(), place));
        }
        self.followers[self.racks[at]].insert((broker.as_follower(), place));
    }

    fn leave(&mut self, at: usize) {
        let (broker, place) = (&self.brokers[at], self.places[at]);
        self.leaders.remove(&(broker.as_leader(), place));
        self.followers[self.racks[at]].remove(&(broker.as_follower(), place));
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
