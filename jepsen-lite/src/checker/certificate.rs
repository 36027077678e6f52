//! Linearizability of registers by certificate: the cluster says at which offset each operation took place, and an order
//! by these offsets that explains every answer and contradicts no clock *is* a linearization. So an accepted history
//! is proven, in linear time; whether the cluster lies about offsets in a way that still looks right, the blind check
//! asks without them.
//!
//! For each key, in the order of offsets: a write is in effect from its offset on; a read at that offset or later sees
//! it. A write of unknown outcome took place just before the first read that saw it, or never. For all keys together:
//! an operation that began after another one had ended stands behind it.

use std::collections::{BTreeMap, HashMap};

use super::order::{Stand, real_time};
use super::{Placed, Report};
use crate::history::{Operation, Outcome};
use crate::op::Op;

/// What happens to a key at an offset. At one offset writes come before reads.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Step {
    Write { expected: Option<i64>, value: i64 },
    Read { value: i64 },
}

/// By place in the history.
type Stands = HashMap<usize, Stand>;

pub fn check(history: &[Placed<'_>]) -> Report {
    let mut report = Report::new("certificate");
    let mut keys: BTreeMap<u32, Vec<(i64, Step, usize)>> = BTreeMap::new();
    let mut open: HashMap<(u32, i64), Placed<'_>> = HashMap::new();
    for (place, operation) in history {
        match step(operation) {
            Some((key, offset, step)) => keys.entry(key).or_default().push((offset, step, *place)),
            None if operation.outcome == Outcome::Info => {
                if let Op::Write { key, value, .. } | Op::Cas { key, value, .. } = operation.op {
                    open.insert((key, value), (*place, *operation));
                }
            }
            None => {}
        }
    }
    report.count("operations", history.len());
    report.count("placed", keys.values().map(Vec::len).sum());
    let mut placed = Stands::new();
    for (key, mut steps) in keys {
        steps.sort_unstable();
        replay(key, &steps, &mut open, &mut placed, &mut report);
    }
    let placed: Vec<(Placed<'_>, Stand)> =
        history.iter().filter_map(|operation| Some((*operation, *placed.get(&operation.0)?))).collect();
    real_time("metadata", &placed, &mut report);
    report
}

/// Key, offset and effect of an operation that the cluster has given an offset.
fn step(operation: &Operation) -> Option<(u32, i64, Step)> {
    if !operation.is_ok() {
        return None;
    }
    match operation.op {
        Op::Write { key, value, offset } => Some((key, offset?, Step::Write { expected: None, value })),
        Op::Cas { key, expected, value, offset } => {
            Some((key, offset?, Step::Write { expected: Some(expected), value }))
        }
        Op::Read { key, value, offset } => Some((key, offset?, Step::Read { value: value? })),
        _ => None,
    }
}

/// Replays one key. `placed` gets where each operation stands.
fn replay(
    key: u32,
    steps: &[(i64, Step, usize)],
    open: &mut HashMap<(u32, i64), Placed<'_>>,
    placed: &mut Stands,
    report: &mut Report,
) {
    // What the key had before the first operation is whatever the first read says.
    let mut current: Option<(i64, usize)> = None;
    let mut last_write = None;
    for (offset, step, place) in steps {
        match *step {
            Step::Write { expected, value } => {
                if last_write == Some(*offset) {
                    let message = format!("key {key}: two writes at offset {offset}");
                    report.object("one-offset-per-write", message, &[*place]);
                }
                if let (Some(expected), Some((found, by))) = (expected, current)
                    && expected != found
                    && !admit(key, expected, *offset, open, placed)
                {
                    let message =
                        format!("key {key}: {expected} was replaced at offset {offset}, where it was {found}");
                    report.object("compare-and-set", message, &[by, *place]);
                }
                last_write = Some(*offset);
                placed.insert(*place, Stand { offset: *offset, is_write: true });
                current = Some((value, *place));
            }
            Step::Read { value } => {
                placed.insert(*place, Stand { offset: *offset, is_write: false });
                if let Some((found, by)) = current
                    && found != value
                    && !admit(key, value, *offset, open, placed)
                {
                    let message = format!("key {key}: read {value} at offset {offset}, where it was {found}");
                    report.object("read-sees-the-last-write", message, &[by, *place]);
                }
                current = Some((value, *place));
            }
        }
    }
}

/// Whether an open write explains that the key has this value from this offset on. It explains it once.
fn admit(key: u32, value: i64, offset: i64, open: &mut HashMap<(u32, i64), Placed<'_>>, placed: &mut Stands) -> bool {
    let Some((place, _)) = open.remove(&(key, value)) else { return false };
    placed.insert(place, Stand { offset, is_write: true });
    true
}

#[cfg(test)]
mod tests;
