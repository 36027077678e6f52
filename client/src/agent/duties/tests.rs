use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

use super::super::fixture::{
    broker, configure, create, finalize, id, image, image_of, lead, reassign, remove_topic, shrink,
};
use super::*;
use quorate_metadata::ids::TopicId;
use quorate_metadata::record::Kind;

/// A call in one line.
fn named(calls: &[Call]) -> Vec<String> {
    let number = |id: &TopicPartition| id.partition;
    calls
        .iter()
        .map(|call| match call {
            Call::BecomeLeader(it) => format!("lead {} at {}", number(&it.id), it.leader_epoch()),
            Call::BecomeFollower(it) => format!("follow {} at {}", number(&it.id), it.leader_epoch()),
            Call::BecomeOffline(it, reason) => format!("offline {} {reason:?}", number(&it.id)),
            Call::DeleteReplica(id, reason) => format!("delete {} {reason:?}", number(id)),
            Call::FoundStray(id) => format!("stray {}", number(id)),
        })
        .collect()
}

#[test]
fn each_partition_is_told_its_role_and_again_only_when_its_state_changes() {
    let mut image = image(&[&[1, 2], &[2, 1], &[2, 3]]);
    let mut duties = Duties::new(broker(1));
    assert_eq!(named(&duties.begin([], &image, true)), ["lead 0 at 0", "follow 1 at 0"]);
    assert_eq!(duties.update(&image, true), []);
    shrink(&mut image, 0, &[1]);
    assert_eq!(named(&duties.update(&image, true)), ["lead 0 at 0"]);
    lead(&mut image, 0, Some(2));
    lead(&mut image, 1, None);
    assert_eq!(named(&duties.update(&image, true)), ["offline 1 Leaderless", "follow 0 at 1"]);
}

#[test]
fn configs_of_the_kind_come_with_the_role() {
    let mut image = image_of(Kind::from("counter"), &[&[1, 2], &[2, 1], &[2, 3]]);
    let mut duties = Duties::new(broker(1));
    let calls = duties.begin([], &image, true);
    assert!(matches!(&calls[0], Call::BecomeLeader(it) if it.configs.is_empty()), "{calls:?}");
    configure(&mut image, "counter.window.ms", Some("5"));
    let calls = duties.update(&image, true);
    assert_eq!(named(&calls), ["lead 0 at 0", "follow 1 at 0"]);
    for call in calls {
        let (Call::BecomeLeader(it) | Call::BecomeFollower(it)) = call else { panic!("{call:?}") };
        assert_eq!(*it.configs, [("counter.window.ms".to_owned(), "5".to_owned())].into());
    }
    configure(&mut image, "min.insync.replicas", Some("2"));
    assert_eq!(duties.update(&image, true), [], "it is not for the host");
    configure(&mut image, "counter.window.ms", None);
    assert_eq!(named(&duties.update(&image, true)), ["lead 0 at 0", "follow 1 at 0"]);
}

#[test]
fn what_is_led_stops_with_the_lease_and_goes_on_with_the_next() {
    let image = image(&[&[1, 2], &[2, 1]]);
    let mut duties = Duties::new(broker(1));
    assert_eq!(named(&duties.begin([], &image, false)), ["offline 0 LeaseEnded", "follow 1 at 0"]);
    assert_eq!(named(&duties.update(&image, true)), ["lead 0 at 0"]);
    assert_eq!(named(&duties.update(&image, false)), ["offline 0 LeaseEnded"]);
    assert_eq!(named(&duties.update(&image, true)), ["lead 0 at 0"]);
}

#[test]
fn when_the_lease_ends_between_two_calls_both_partitions_step_down_and_both_come_back() {
    let image = image(&[&[1, 2], &[1, 2]]);
    for lease_is_back in [false, true] {
        let mut duties = Duties::new(broker(1));
        let calls = duties.begin([], &image, true);
        let Some(Call::BecomeLeader(second)) = calls.into_iter().nth(1) else { panic!("both are led") };
        assert_eq!(named(&[duties.too_late(second)]), ["offline 1 LeaseEnded"]);
        let expected = if lease_is_back { "lead 1 at 0" } else { "offline 0 LeaseEnded" };
        assert_eq!(named(&duties.update(&image, lease_is_back)), [expected]);
    }
}

#[test]
fn a_replica_that_was_moved_and_one_of_a_deleted_topic_are_deleted_for_their_reasons() {
    let mut image = image(&[&[1, 2], &[2, 1]]);
    let mut duties = Duties::new(broker(1));
    duties.begin([], &image, true);
    reassign(&mut image, 0, &[2, 3]);
    assert_eq!(named(&duties.update(&image, true)), ["delete 0 Reassigned"]);
    remove_topic(&mut image);
    assert_eq!(named(&duties.update(&image, true)), ["delete 1 TopicDeleted"]);
}

#[test]
fn older_metadata_deletes_nothing_but_the_lease_is_heeded_all_the_same() {
    let old = image(&[&[1, 2]]);
    let mut new = old.clone();
    create(&mut new, &[1, 2]);
    let mut duties = Duties::new(broker(1));
    duties.begin([], &new, true);
    assert_eq!(duties.update(&old, true), []);
    assert_eq!(named(&duties.update(&old, false)), ["offline 0 LeaseEnded", "offline 1 LeaseEnded"]);
}

#[test]
fn the_same_metadata_from_another_snapshot_changes_nothing() {
    let image = image(&[&[1, 2], &[2, 1]]);
    let mut duties = Duties::new(broker(1));
    duties.begin([], &image, true);
    let again = MetadataImage::from_snapshot(image.header(), image.to_records()).expect("a whole snapshot");
    assert_eq!(duties.update(&again, true), []);
}

#[test]
fn a_replica_that_was_moved_away_is_deleted_after_the_grace() {
    let mut image = image(&[&[1, 2], &[2, 3], &[2, 3]]);
    let mut duties = Duties::new(broker(1));
    assert_eq!(named(&duties.begin([id(0), id(1), id(2)], &image, true)), ["lead 0 at 0"]);
    assert_eq!((duties.left_over(), duties.strays()), (2, 0));
    reassign(&mut image, 1, &[2, 1]);
    assert_eq!(named(&duties.update(&image, true)), ["follow 1 at 1"]);
    assert_eq!(named(&duties.delete_left_over()), ["delete 2 Reassigned"]);
    assert_eq!(duties.left_over(), 0);
}

#[test]
fn a_stray_is_kept_until_its_topic_is_seen_to_be_removed() {
    let mut image = image(&[&[1, 2]]);
    finalize(&mut image, LEVEL_OF_REMOVED_TOPICS);
    let foreign = TopicPartition::new(TopicId::from_bytes([9; 16]), PartitionId::new(0));
    let mut duties = Duties::new(broker(1));
    assert_eq!(named(&duties.begin([id(7), foreign], &image, true)), ["lead 0 at 0", "stray 7", "stray 0"]);
    assert_eq!(duties.delete_left_over(), []);
    remove_topic(&mut image);
    assert_eq!(named(&duties.update(&image, true)), ["delete 0 TopicDeleted", "delete 7 TopicDeleted"]);
    assert_eq!(duties.strays(), 1);
}

#[test]
fn a_topic_removed_while_the_broker_was_away_is_deleted() {
    let mut image = image(&[&[1, 2]]);
    finalize(&mut image, LEVEL_OF_REMOVED_TOPICS);
    remove_topic(&mut image);
    let mut duties = Duties::new(broker(1));
    assert_eq!(duties.begin([id(0)], &image, true), []);
    assert_eq!(named(&duties.delete_left_over()), ["delete 0 TopicDeleted"]);
}

/// Such as the metadata of controllers that were restored from an old copy: the topic is not there, and was not removed.
#[test]
fn a_replica_that_the_metadata_has_forgotten_becomes_a_stray() {
    for forgets_the_level in [false, true] {
        let mut image = image(&[&[1, 2]]);
        finalize(&mut image, LEVEL_OF_REMOVED_TOPICS);
        let mut duties = Duties::new(broker(1));
        duties.begin([], &image, true);
        let mut other = MetadataImage::default();
        if !forgets_the_level {
            finalize(&mut other, LEVEL_OF_REMOVED_TOPICS);
        }
        other.next_offset = image.next_offset.next();
        assert_eq!(named(&duties.update(&other, true)), ["offline 0 Unknown", "stray 0"]);
        assert_eq!(duties.strays(), 1);
    }
}

#[test]
fn a_stray_whose_partition_turns_out_to_be_elsewhere_is_deleted() {
    let mut image = image(&[&[1, 2]]);
    finalize(&mut image, LEVEL_OF_REMOVED_TOPICS);
    let mut duties = Duties::new(broker(1));
    assert_eq!(named(&duties.begin([id(1)], &image, true)), ["lead 0 at 0", "stray 1"]);
    create(&mut image, &[2, 3]);
    assert_eq!(named(&duties.update(&image, true)), ["delete 1 Reassigned"]);
    assert_eq!(duties.strays(), 0);
}

#[test]
fn a_replica_that_is_forgotten_within_the_grace_period_is_kept() {
    let mut image = image(&[&[2, 3]]);
    finalize(&mut image, LEVEL_OF_REMOVED_TOPICS);
    let mut duties = Duties::new(broker(1));
    duties.begin([id(0)], &image, true);
    let mut other = MetadataImage::default();
    other.next_offset = image.next_offset.next();
    duties.update(&other, true);
    assert_eq!(named(&duties.delete_left_over()), ["stray 0"]);
    assert_eq!((duties.left_over(), duties.strays()), (0, 1));
}

#[test]
fn an_update_concerns_the_partitions_that_have_changed() {
    let mut image = image(&[&[1, 2][..]; 1_000]);
    reassign(&mut image, 500, &[2, 3]);
    let mut duties = Duties::new(broker(1));
    duties.begin([], &image, true);
    assert!(duties.adopt(&image.clone()).is_empty());
    shrink(&mut image, 700, &[1]);
    // It has no replica here.
    shrink(&mut image, 500, &[2]);
    let mut concerned = duties.adopt(&image);
    assert_eq!(concerned.pop_first(), Some((id(700), Concern::State)));
    assert!(concerned.is_empty());
}

/// What a host does with the calls: the partitions it leads, by leader epoch, and those it has.
#[derive(Default)]
struct Told {
    leads: BTreeSet<TopicPartition>,
    has: BTreeSet<TopicPartition>,
}

impl Told {
    fn obey(&mut self, calls: &[Call]) {
        for call in calls {
            let id = match call {
                Call::BecomeLeader(it) | Call::BecomeFollower(it) | Call::BecomeOffline(it, _) => it.id,
                Call::DeleteReplica(id, _) | Call::FoundStray(id) => *id,
            };
            self.leads.remove(&id);
            self.has.insert(id);
            match call {
                Call::BecomeLeader(_) => _ = self.leads.insert(id),
                Call::DeleteReplica(..) => _ = self.has.remove(&id),
                Call::BecomeFollower(_) | Call::BecomeOffline(..) | Call::FoundStray(_) => {}
            }
        }
    }
}

fn change(image: &mut MetadataImage, random: &mut StdRng) {
    let partition = random.random_range(0..4);
    let replicas = image.partition(id(partition)).expect("one of four").replicas.clone();
    let one = replicas[random.random_range(0..replicas.len())].get();
    match random.random_range(0..5) {
        0 => lead(image, partition, None),
        1 => shrink(image, partition, &[one]),
        2 => reassign(image, partition, &[one, one % 4 + 1]),
        _ => lead(image, partition, Some(one)),
    }
}

/// Whatever happens: the host leads exactly what the image and the lease allow, has exactly what the image puts there,
/// and is told nothing a second time.
#[test]
fn the_host_always_ends_where_the_metadata_and_the_lease_are() {
    for seed in 0..200 {
        let mut random = StdRng::seed_from_u64(seed);
        let mut image = image(&[&[1, 2], &[2, 1], &[3, 4], &[1, 4]]);
        let mut duties = Duties::new(broker(1));
        let mut told = Told::default();
        for _ in 0..40 {
            (0..random.random_range(0..3)).for_each(|_| change(&mut image, &mut random));
            let may_lead = random.random_bool(0.7);
            told.obey(&duties.update(&image, may_lead));
            let led: BTreeSet<_> = image.index.led_by(broker(1)).filter(|_| may_lead).collect();
            assert_eq!(told.leads, led, "seed {seed}");
            assert_eq!(told.has, image.index.hosted_by(broker(1)).collect(), "seed {seed}");
            assert_eq!(duties.update(&image, may_lead), [], "seed {seed}");
        }
    }
}
