//! Partition logs: what was acknowledged is where it was said to be, on every replica; what was read stays; and a position
//! holds one record for ever.

use std::collections::{BTreeMap, HashMap};

use super::order::{Stand, real_time};
use super::{Placed, Report};
use crate::history::Outcome;
use crate::op::{Fetched, Op};

/// A record, and where the history first tells of it.
type Told = (i32, u64, usize);

#[derive(Default)]
struct Partition<'a> {
    acknowledged: Vec<(Placed<'a>, u64, Option<i64>, i32)>,
    refused: HashMap<u64, usize>,
    /// By position.
    told: BTreeMap<i64, Told>,
    read: Vec<(usize, &'a [Fetched])>,
    dumps: Vec<Dump<'a>>,
}

struct Dump<'a> {
    place: usize,
    broker: i32,
    start: i64,
    records: &'a [Fetched],
}

pub fn check(history: &[Placed<'_>]) -> Report {
    let mut report = Report::new("log");
    let mut partitions: BTreeMap<i32, Partition<'_>> = BTreeMap::new();
    for placed in history {
        gather(placed, &mut partitions);
    }
    for (number, mut partition) in partitions {
        report.count("acknowledged", partition.acknowledged.len());
        report.count("fetched", partition.read.iter().map(|(_, records)| records.len()).sum());
        report.count("dumps", partition.dumps.len());
        one_record_per_position(number, &mut partition, &mut report);
        contiguous(number, &partition, &mut report);
        if partition.dumps.is_empty() {
            report.doubt("no-dump", format!("partition {number}: nobody told at the end what is in it"));
        }
        for dump in &partition.dumps {
            nothing_lost(number, &partition, dump, &mut report);
            nothing_twice(number, &partition, dump, &mut report);
        }
        in_order(number, &partition, &mut report);
    }
    report
}

fn gather<'a>(placed: &Placed<'a>, partitions: &mut BTreeMap<i32, Partition<'a>>) {
    let (place, operation) = *placed;
    match &operation.op {
        Op::Produce { partition, value, position, epoch } => {
            let partition = partitions.entry(*partition).or_default();
            match (operation.outcome, epoch) {
                (Outcome::Ok, Some(epoch)) => partition.acknowledged.push((*placed, *value, *position, *epoch)),
                (Outcome::Fail, _) => _ = partition.refused.insert(*value, place),
                _ => {}
            }
        }
        Op::Fetch { partition, records: Some(records), .. } => {
            partitions.entry(*partition).or_default().read.push((place, records));
        }
        Op::Dump { partition, broker, start, records: Some(records) } => {
            let dump = Dump { place, broker: *broker, start: *start, records };
            partitions.entry(*partition).or_default().dumps.push(dump);
        }
        _ => {}
    }
}

/// Reads and dumps agree on what a position holds, and acknowledgements on the value: a record that was sent again is
/// acknowledged by a later leader than the one that took it.
fn one_record_per_position(number: i32, partition: &mut Partition<'_>, report: &mut Report) {
    let read = partition.read.iter().flat_map(|(place, records)| records.iter().map(|record| (*place, *record)));
    let dumped = partition.dumps.iter().flat_map(|dump| dump.records.iter().map(|record| (dump.place, *record)));
    for (place, (position, epoch, value)) in read.chain(dumped) {
        let (first_epoch, first, by) = *partition.told.entry(position).or_insert((epoch, value, place));
        if first != value {
            let message = format!("partition {number}: position {position} holds {first} and {value}");
            report.object("one-record-per-position", message, &[by, place]);
        } else if first_epoch != epoch {
            let message = format!("partition {number}: position {position} is of epoch {first_epoch} and of {epoch}");
            report.object("one-epoch-per-position", message, &[by, place]);
        }
    }
    for ((place, _), value, position, acknowledged_in) in &partition.acknowledged {
        let told = position.and_then(|position| Some((position, partition.told.get(&position)?)));
        let Some((position, (epoch, first, by))) = told else { continue };
        if first != value {
            let message = format!("partition {number}: position {position} holds {first}, not {value} as acknowledged");
            report.object("one-record-per-position", message, &[*by, *place]);
        } else if acknowledged_in < epoch {
            let message = format!(
                "partition {number}: position {position} of epoch {epoch} was acknowledged in {acknowledged_in}"
            );
            report.object("acknowledged-by-its-leader-or-later", message, &[*by, *place]);
        }
    }
}

/// No answer skips a record or goes back, and epochs only grow.
fn contiguous(number: i32, partition: &Partition<'_>, report: &mut Report) {
    let dumps = partition.dumps.iter().map(|dump| (dump.place, dump.records));
    for (place, records) in partition.read.iter().copied().chain(dumps) {
        for pair in records.windows(2) {
            let ((before, before_epoch, _), (after, epoch, _)) = (pair[0], pair[1]);
            if before.checked_add(1) != Some(after) {
                let message = format!("partition {number}: after position {before} comes {after}");
                report.object("contiguous", message, &[place]);
            }
            if epoch < before_epoch {
                let message = format!("partition {number}: epoch {epoch} at {after} follows epoch {before_epoch}");
                report.object("epochs-never-fall", message, &[place]);
            }
        }
    }
}

fn nothing_lost(number: i32, partition: &Partition<'_>, dump: &Dump<'_>, report: &mut Report) {
    let values: HashMap<u64, i64> = dump.records.iter().map(|(position, _, value)| (*value, *position)).collect();
    for ((place, _), value, position, _) in &partition.acknowledged {
        // What was deleted from the front was there.
        if position.is_some_and(|position| position < dump.start) || values.contains_key(value) {
            continue;
        }
        let message = format!("partition {number}: {value} was acknowledged, and broker {} lacks it", dump.broker);
        report.object("acknowledged-lost", message, &[*place, dump.place]);
    }
    for (place, records) in &partition.read {
        for (position, _, value) in records.iter().filter(|(position, ..)| *position >= dump.start) {
            if values.get(value) != Some(position) {
                let message =
                    format!("partition {number}: {value} was read at {position}, and broker {} lacks it", dump.broker);
                report.object("read-vanished", message, &[*place, dump.place]);
            }
        }
    }
}

fn nothing_twice(number: i32, partition: &Partition<'_>, dump: &Dump<'_>, report: &mut Report) {
    let mut seen: HashMap<u64, i64> = HashMap::new();
    for (position, _, value) in dump.records {
        if let Some(first) = seen.insert(*value, *position) {
            let message = format!("partition {number}: {value} is at {first} and at {position}");
            report.object("duplicate", message, &[dump.place]);
        }
        if let Some(place) = partition.refused.get(value) {
            let message = format!("partition {number}: {value} was refused, and is at {position}");
            report.object("refused-but-there", message, &[*place, dump.place]);
        }
    }
}

fn in_order(number: i32, partition: &Partition<'_>, report: &mut Report) {
    let told = partition.acknowledged.iter();
    let stands: Vec<(Placed<'_>, Stand)> = told
        .filter_map(|(placed, _, position, _)| Some((*placed, Stand { offset: (*position)?, is_write: true })))
        .collect();
    real_time(&format!("partition {number}"), &stands, report);
}

#[cfg(test)]
mod tests;
