//! What the nodes say of partitions, each from what it has: all of them tell one story, and its epochs never go back.

use std::collections::{BTreeMap, HashMap};

use super::{Placed, Report};
use crate::op::{Op, PartitionState, Sample};

/// A partition's states, each with its offset and where the history tells of it.
type Story<'a> = Vec<(i64, &'a PartitionState, usize)>;

pub fn check(history: &[Placed<'_>]) -> Report {
    let mut report = Report::new("leader-epoch");
    let mut digests: HashMap<i64, (&str, usize)> = HashMap::new();
    let mut stories: BTreeMap<(&str, i32), Story<'_>> = BTreeMap::new();
    for (place, operation) in history {
        let Op::Sample { seen: Some(sample), .. } = &operation.op else { continue };
        report.count("samples", 1);
        same_digest(sample, *place, &mut digests, &mut report);
        for state in &sample.partitions {
            let story = stories.entry((&state.topic, state.partition)).or_default();
            story.push((sample.offset, state, *place));
        }
    }
    report.count("offsets with a digest", digests.len());
    report.count("partitions", stories.len());
    for ((topic, partition), mut story) in stories {
        story.sort_by_key(|(offset, ..)| *offset);
        report.count("states", story.len());
        let name = format!("{topic}-{partition}");
        one_story(&name, &story, &mut report);
        one_leader(&name, &story, &mut report);
    }
    report
}

fn same_digest<'a>(
    sample: &'a Sample,
    place: usize,
    digests: &mut HashMap<i64, (&'a str, usize)>,
    report: &mut Report,
) {
    let Some(digest) = &sample.digest else { return };
    let (first, by) = *digests.entry(sample.offset).or_insert((digest, place));
    if first != digest {
        let message = format!("two images at offset {}: {first} and {digest}", sample.offset);
        report.object("one-image-per-offset", message, &[by, place]);
    }
}

fn one_story(name: &str, story: &[(i64, &PartitionState, usize)], report: &mut Report) {
    for pair in story.windows(2) {
        let ((before_offset, before, by), (offset, after, place)) = (pair[0], pair[1]);
        if before_offset == offset && before != after {
            report.object("one-state-per-offset", format!("{name}: two states at offset {offset}"), &[by, place]);
        }
        let went_back = |what: &str, from: i32, to: i32| {
            (to < from).then(|| format!("{name}: its {what} went from {from} back to {to} at offset {offset}"))
        };
        let epochs = [
            went_back("leader epoch", before.leader_epoch, after.leader_epoch),
            went_back("partition epoch", before.partition_epoch, after.partition_epoch),
        ];
        for message in epochs.into_iter().flatten() {
            report.object("epochs-never-fall", message, &[by, place]);
        }
        if before.partition_epoch == after.partition_epoch && before != after {
            let message =
                format!("{name}: changed at offset {offset} within partition epoch {}", after.partition_epoch);
            report.object("one-state-per-partition-epoch", message, &[by, place]);
        }
    }
}

fn one_leader(name: &str, story: &[(i64, &PartitionState, usize)], report: &mut Report) {
    let mut leaders: BTreeMap<i32, (i32, usize)> = BTreeMap::new();
    for (offset, state, place) in story {
        let Some(leader) = state.leader else { continue };
        let (first, by) = *leaders.entry(state.leader_epoch).or_insert((leader, *place));
        if first != leader {
            let message = format!("{name}: {first} and {leader} both lead in epoch {}", state.leader_epoch);
            report.object("one-leader-per-epoch", message, &[by, *place]);
        }
        if !state.isr.contains(&leader) {
            let message = format!("{name}: {leader} leads at offset {offset}, and is not in sync: {:?}", state.isr);
            report.object("leader-in-sync", message, &[*place]);
        }
    }
}

#[cfg(test)]
mod tests;
