//! The feed: every watcher hears the same batches, in order, without a hole or a repeat, from whichever node and offset;
//! replaying them gives the image that the nodes have; and who is elected was in sync.

use std::collections::HashMap;

use super::{Placed, Report};
use crate::op::{Election, Heard, Op};

/// `history`: of those who watch and of those who sample.
pub fn check(history: &[Placed<'_>]) -> Report {
    let mut report = Report::new("watch-delta");
    let mut batches: HashMap<i64, (&Heard, usize)> = HashMap::new();
    let mut digests: HashMap<i64, (&str, usize)> = HashMap::new();
    let mut leaders: HashMap<(&str, i32), (i32, usize)> = HashMap::new();
    for (place, operation) in history {
        match &operation.op {
            Op::Watch { from, heard: Some(heard), .. } => {
                report.count("streams", 1);
                report.count("batches", heard.len());
                in_order(*from, heard, *place, &mut report);
                for told in heard {
                    same_batch(told, *place, &mut batches, &mut report);
                    same_image(told.next, &told.digest, *place, &mut digests, &mut report);
                    told.elections.iter().for_each(|election| elected(election, *place, &mut leaders, &mut report));
                }
            }
            Op::Watch { from, .. } if operation.error.as_deref() == Some("CORRUPT_MESSAGE") => {
                report.object("replays", format!("what follows {from:?} cannot be replayed"), &[*place]);
            }
            Op::Sample { seen: Some(seen), .. } => {
                if let Some(digest) = &seen.digest {
                    same_image(seen.offset, digest, *place, &mut digests, &mut report);
                }
            }
            _ => {}
        }
    }
    report.count("elections", leaders.len());
    report
}

fn in_order(from: Option<i64>, heard: &[Heard], place: usize, report: &mut Report) {
    let mut expected = from;
    for told in heard {
        match (expected, told.first) {
            (Some(expected), Some(first)) if first > expected => {
                report.object("no-hole", format!("{first} follows, and {expected} is due"), &[place]);
            }
            (Some(expected), Some(first)) if first < expected => {
                report.object("no-repeat", format!("{first} comes once more: {expected} is due"), &[place]);
            }
            (None, Some(first)) => report.object("no-hole", format!("{first} comes without a snapshot"), &[place]),
            _ => {}
        }
        expected = Some(told.next);
    }
}

fn same_batch<'a>(told: &'a Heard, place: usize, batches: &mut HashMap<i64, (&'a Heard, usize)>, report: &mut Report) {
    let Some(first) = told.first else { return };
    let (known, by) = *batches.entry(first).or_insert((told, place));
    if (known.next, known.checksum) != (told.next, told.checksum) {
        let message = format!("the batch at {first} ends at {} or {}, or holds other records", known.next, told.next);
        report.object("one-batch-per-offset", message, &[by, place]);
    }
}

fn same_image<'a>(
    offset: i64,
    digest: &'a str,
    place: usize,
    digests: &mut HashMap<i64, (&'a str, usize)>,
    report: &mut Report,
) {
    let (known, by) = *digests.entry(offset).or_insert((digest, place));
    if known != digest {
        report.object("one-image-per-offset", format!("at {offset}: {known} and {digest}"), &[by, place]);
    }
}

fn elected<'a>(
    election: &'a Election,
    place: usize,
    leaders: &mut HashMap<(&'a str, i32), (i32, usize)>,
    report: &mut Report,
) {
    let Election { partition, leader, epoch, cause, was_eligible, unclean, unclean_allowed } = election;
    let (known, by) = *leaders.entry((partition, *epoch)).or_insert((*leader, place));
    if known != *leader {
        let message = format!("{partition}: {known} and {leader} are elected in epoch {epoch}");
        report.object("one-leader-per-epoch", message, &[by, place]);
    }
    // No workload asks for an unclean election by hand.
    let is_allowed = *was_eligible || (*unclean && *unclean_allowed);
    if !is_allowed {
        let how = if *unclean { "recorded as unclean" } else { "not recorded as unclean" };
        let message = format!(
            "{partition}: {leader} is elected in epoch {epoch} ({cause}, {how}), and was in neither ISR nor ELR"
        );
        report.object("leader-was-in-sync", message, &[place]);
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::{Told, assert_breaks, assert_valid};
    use super::*;
    use crate::op::Sample;

    fn heard(first: Option<i64>, next: i64) -> Heard {
        Heard { first, next, checksum: next as u32, digest: format!("at {next}"), elections: Vec::new() }
    }

    fn watch(from: Option<i64>, heard: &[Heard]) -> Told {
        Told::ok(Op::Watch { node: 1, from, heard: Some(heard.to_vec()) })
    }

    fn elects(leader: i32, epoch: i32, was_eligible: bool) -> Told {
        elects_by(Election { was_eligible, ..election(leader, epoch) })
    }

    fn election(leader: i32, epoch: i32) -> Election {
        let (partition, cause) = ("t-0".to_owned(), "broker-fenced".to_owned());
        Election { partition, leader, epoch, cause, was_eligible: true, unclean: false, unclean_allowed: false }
    }

    fn elects_by(election: Election) -> Told {
        watch(Some(5), &[Heard { elections: vec![election], ..heard(Some(5), 6) }])
    }

    #[test]
    fn watchers_may_come_and_go() {
        let told = [
            watch(None, &[heard(None, 5), heard(Some(5), 7)]),
            watch(Some(7), &[heard(Some(7), 8)]),
            watch(Some(5), &[heard(Some(5), 7), heard(Some(7), 8)]),
            elects(1, 1, true),
        ];
        assert_valid(check, &told[..3]);
        assert_valid(check, &told[3..]);
    }

    #[test]
    fn holes_and_repeats_are_found() {
        assert_breaks("no-hole", check, &[watch(Some(5), &[heard(Some(6), 7)])]);
        assert_breaks("no-hole", check, &[watch(None, &[heard(Some(6), 7)])]);
        assert_breaks("no-repeat", check, &[watch(Some(5), &[heard(Some(5), 7), heard(Some(5), 7)])]);
    }

    #[test]
    fn two_stories_are_found() {
        let other = Heard { checksum: 0, ..heard(Some(5), 7) };
        assert_breaks("one-batch-per-offset", check, &[watch(Some(5), &[heard(Some(5), 7)]), watch(Some(5), &[other])]);
        let other = Heard { digest: "other".to_owned(), ..heard(Some(5), 7) };
        assert_breaks("one-image-per-offset", check, &[watch(Some(5), &[heard(Some(5), 7)]), watch(Some(5), &[other])]);
        let seen = Sample { offset: 7, digest: Some("other".to_owned()), partitions: Vec::new() };
        let sample = Told::ok(Op::Sample { node: 2, seen: Some(seen) });
        assert_breaks("one-image-per-offset", check, &[watch(Some(5), &[heard(Some(5), 7)]), sample]);
    }

    #[test]
    fn what_does_not_replay_is_found() {
        let broken = Told::fail(Op::Watch { node: 1, from: Some(5), heard: None }, "CORRUPT_MESSAGE");
        assert_breaks("replays", check, &[broken]);
    }

    #[test]
    fn whoever_is_elected_was_in_sync_and_is_alone() {
        assert_breaks("leader-was-in-sync", check, &[elects(1, 1, false)]);
        let unclean = Election { was_eligible: false, unclean: true, ..election(1, 1) };
        assert_valid(check, &[elects_by(Election { unclean_allowed: true, ..unclean.clone() })]);
        assert_breaks("leader-was-in-sync", check, &[elects_by(unclean)]);
        assert_breaks("one-leader-per-epoch", check, &[elects(1, 1, true), elects(2, 1, true)]);
    }
}
