use super::*;
use proptest::prelude::*;

use crate::rng::Rng;

const RACKS: [&str; 4] = ["a", "b", "c", "d"];

fn empty(id: i32, rack: Option<&'static str>) -> Candidate<'static> {
    Candidate { id: BrokerId::new(id), rack, fenced: false, cluster: Load::default(), topic: Load::default() }
}

fn rackless(count: i32) -> Vec<Candidate<'static>> {
    (1..=count).map(|id| empty(id, None)).collect()
}

fn leaders(placed: &[Vec<BrokerId>]) -> BTreeMap<BrokerId, usize> {
    let mut leaders = BTreeMap::new();
    for replicas in placed {
        *leaders.entry(replicas[0]).or_default() += 1;
    }
    leaders
}

fn replicas(placed: &[Vec<BrokerId>]) -> BTreeMap<BrokerId, usize> {
    let mut replicas = BTreeMap::new();
    for replica in placed.iter().flatten() {
        *replicas.entry(*replica).or_default() += 1;
    }
    replicas
}

/// The difference between the broker that has most and the one that has least, of all brokers.
fn spread(counts: &BTreeMap<BrokerId, usize>, brokers: &[Candidate<'_>]) -> usize {
    let of = |broker: &Candidate<'_>| counts.get(&broker.id).copied().unwrap_or_default();
    let most = brokers.iter().map(of).max().unwrap_or_default();
    most - brokers.iter().map(of).min().unwrap_or_default()
}

/// Adds what was placed to the load of the cluster, as the next topic finds it.
fn settle(brokers: &mut [Candidate<'_>], placed: &[Vec<BrokerId>]) {
    for broker in brokers {
        broker.cluster.leaders += leaders(placed).get(&broker.id).copied().unwrap_or_default();
        broker.cluster.replicas += replicas(placed).get(&broker.id).copied().unwrap_or_default();
    }
}

#[test]
fn a_broker_that_is_new_gets_the_next_small_topics() {
    let mut brokers = rackless(4);
    for broker in &mut brokers[..3] {
        broker.cluster = Load { leaders: 10, replicas: 30 };
    }
    for seed in 0..10 {
        let placed = place(&brokers, 1, 1, &mut Rng::new(seed)).unwrap();
        assert_eq!(placed, [[BrokerId::new(4)]]);
        settle(&mut brokers, &placed);
    }
}

#[test]
fn a_large_topic_does_not_live_on_the_new_broker_alone() {
    let mut brokers = rackless(4);
    for broker in &mut brokers[..3] {
        broker.cluster = Load { leaders: 1_000, replicas: 3_000 };
    }
    let placed = place(&brokers, 40, 3, &mut Rng::new(1)).unwrap();
    assert!(leaders(&placed).values().all(|&count| count == 10));
}

#[test]
fn topics_of_one_partition_leave_the_cluster_even() {
    let mut brokers = rackless(5);
    for seed in 0..50 {
        let placed = place(&brokers, 1, 3, &mut Rng::new(seed)).unwrap();
        settle(&mut brokers, &placed);
    }
    assert!(brokers.iter().all(|broker| broker.cluster == Load { leaders: 10, replicas: 30 }), "{brokers:?}");
}

#[test]
fn a_fenced_broker_follows_only_where_the_rack_has_no_other() {
    let mut brokers = vec![empty(1, Some("a")), empty(2, Some("a")), empty(3, Some("b")), empty(4, Some("b"))];
    brokers[1].fenced = true;
    let two = place(&brokers, 20, 2, &mut Rng::new(1)).unwrap();
    assert!(two.iter().flatten().all(|&replica| replica != BrokerId::new(2)));
    let four = place(&brokers, 1, 4, &mut Rng::new(1)).unwrap();
    assert!(four[0].contains(&BrokerId::new(2)));
}

#[test]
fn the_followers_of_one_leader_are_all_over() {
    let brokers = rackless(6);
    let placed = place(&brokers, 120, 2, &mut Rng::new(1)).unwrap();
    let followers: std::collections::BTreeSet<BrokerId> =
        placed.iter().filter(|replicas| replicas[0] == BrokerId::new(1)).map(|replicas| replicas[1]).collect();
    assert!(followers.len() >= 4, "{followers:?}");
}

#[test]
fn what_cannot_be_placed_is_refused() {
    let refused = |brokers: &[Candidate<'_>], factor| place(brokers, 1, factor, &mut Rng::new(1)).unwrap_err().name;
    assert_eq!(refused(&rackless(2), 3), ErrorName::InvalidReplicationFactor);
    assert_eq!(refused(&rackless(2), 0), ErrorName::InvalidReplicationFactor);
    let fenced: Vec<_> = rackless(3).into_iter().map(|broker| Candidate { fenced: true, ..broker }).collect();
    assert_eq!(refused(&fenced, 1), ErrorName::InvalidReplicationFactor);
}

fn candidate(id: i32) -> impl Strategy<Value = Candidate<'static>> {
    (0..5usize, prop::bool::weighted(0.2), 0..20usize, 0..50usize).prop_map(move |(rack, fenced, leaders, replicas)| {
        let rack = RACKS.get(rack).copied();
        let cluster = Load { leaders, replicas };
        Candidate { id: BrokerId::new(id), rack, fenced, cluster, topic: Load::default() }
    })
}

fn candidates() -> impl Strategy<Value = Vec<Candidate<'static>>> {
    (1..10i32).prop_flat_map(|count| (1..=count).map(candidate).collect::<Vec<_>>())
}

proptest! {
    // Goals 1 to 3 are asserted by `place` itself, for every case.
    #[test]
    fn a_topic_is_even_over_the_unfenced_brokers(
        brokers in candidates(),
        partitions in 0..40usize,
        factor in 1..6usize,
        seed: u64,
    ) {
        let Ok(placed) = place(&brokers, partitions, factor, &mut Rng::new(seed)) else {
            prop_assert!(factor > brokers.len() || brokers.iter().all(|broker| broker.fenced));
            return Ok(());
        };
        let unfenced: Vec<_> = brokers.iter().filter(|broker| !broker.fenced).copied().collect();
        prop_assert!(spread(&leaders(&placed), &unfenced) <= 1, "{:?}", placed);
        for replicas in &placed {
            let has = |broker: &Candidate<'_>| replicas.contains(&broker.id);
            for fenced in brokers.iter().filter(|broker| broker.fenced && has(broker)) {
                let mut beside = unfenced.iter().filter(|broker| broker.rack == fenced.rack);
                prop_assert!(beside.all(has), "{:?} is used before an unfenced one: {:?}", fenced, replicas);
            }
        }
    }

    #[test]
    fn without_racks_replicas_are_even_as_well(
        count in 1..10i32,
        partitions in 0..40usize,
        factor in 1..6usize,
        seed: u64,
    ) {
        let brokers = rackless(count);
        let Ok(placed) = place(&brokers, partitions, factor, &mut Rng::new(seed)) else { return Ok(()) };
        prop_assert!(spread(&replicas(&placed), &brokers) <= 2, "{:?}", placed);
    }

    #[test]
    fn the_same_seed_places_the_same(
        brokers in candidates(),
        partitions in 0..10usize,
        factor in 1..4usize,
        seed: u64,
    ) {
        let place = || place(&brokers, partitions, factor, &mut Rng::new(seed));
        prop_assert_eq!(place(), place());
    }
}
