//! Linearizability of registers without believing any offset: is there an order of the operations that keeps to the clock
//! and explains every value? Wing and Gong's search in Lowe's form: operations that are open at the front are tried in
//! turn, and a set of done operations that led to the same value before is not tried again.
//!
//! The search can take exponential time, so keys are kept small by the generator (see `workload/register.rs`), and a
//! search that grows beyond `CONFIGURATIONS_MAX` ends as unknown.

use std::collections::{BTreeMap, BTreeSet, HashSet};

use rayon::prelude::*;

use super::{Placed, Report};
use crate::history::Outcome;
use crate::op::Op;

/// About 100 MB of them at 200 operations a key; on each core one key is searched.
const CONFIGURATIONS_MAX: usize = 1_000_000;

/// What an operation does to the register, or says of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Effect {
    Write(i64),
    Read(i64),
    /// It had the first value, and has the second one since.
    Swap(i64, i64),
    /// It did not have this value.
    Differs(i64),
    /// Whatever it had, it has the second value if it had the first: a swap that nobody heard of again.
    MaybeSwap(i64, i64),
}

/// An operation on one key, and when it may have taken effect.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Interval {
    pub from_us: u64,
    /// `u64::MAX`: nobody knows.
    pub until_us: u64,
    pub effect: Effect,
}

/// A register that nobody has written holds nothing that could be read.
type Value = Option<i64>;

impl Effect {
    /// What the register holds afterwards, if this can happen now. The first read of all may see anything.
    pub fn apply(self, value: Value) -> Option<Value> {
        let is = |wanted: i64| value.is_none_or(|value| value == wanted);
        match self {
            Self::Write(new) => Some(Some(new)),
            Self::Read(seen) => is(seen).then_some(Some(seen)),
            Self::Swap(old, new) => is(old).then_some(Some(new)),
            Self::Differs(other) => (value != Some(other)).then_some(value),
            Self::MaybeSwap(old, new) => Some(if value == Some(old) { Some(new) } else { value }),
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Answer {
    Linearizable,
    Not,
    /// The search was cut off.
    Unknown,
}

pub fn check(history: &[Placed<'_>]) -> Report {
    let mut report = Report::new("blind");
    let mut keys: BTreeMap<u32, Vec<Placed<'_>>> = BTreeMap::new();
    for placed in history {
        if let Op::Write { key, .. } | Op::Cas { key, .. } | Op::Read { key, .. } = placed.1.op {
            keys.entry(key).or_default().push(*placed);
        }
    }
    report.count("keys", keys.len());
    let keys: Vec<_> = keys.into_iter().collect();
    let searched: Vec<_> = keys.par_iter().map(|(_, operations)| search_key(operations)).collect();
    for ((key, operations), (count, answer)) in keys.iter().zip(searched) {
        report.count("operations", count);
        match answer {
            Answer::Linearizable => {}
            Answer::Not => {
                let places: Vec<usize> = operations.iter().map(|(place, _)| *place).collect();
                report.object("linearizable", format!("key {key}: no order explains its operations"), &places);
            }
            Answer::Unknown => {
                report.doubt("search-cut-off", format!("key {key}: more than {CONFIGURATIONS_MAX} states"))
            }
        }
    }
    report
}

/// How many operations have to be explained, and whether they can be.
fn search_key(operations: &[Placed<'_>]) -> (usize, Answer) {
    let intervals = intervals(operations);
    (intervals.len(), search(&intervals, CONFIGURATIONS_MAX))
}

/// What has to be explained: all but open reads, refused writes, and open writes that nobody can have seen.
fn intervals(operations: &[Placed<'_>]) -> Vec<Interval> {
    let mut seen = BTreeSet::new();
    let mut somebody_differed = false;
    for (_, operation) in operations {
        match (&operation.op, operation.outcome) {
            (Op::Read { value: Some(value), .. }, Outcome::Ok) => _ = seen.insert(*value),
            (Op::Cas { expected, .. }, Outcome::Ok | Outcome::Info) => _ = seen.insert(*expected),
            (Op::Cas { .. }, Outcome::Fail) => somebody_differed = true,
            _ => {}
        }
    }
    // Next to a refused swap even a write that nobody read may matter: the swap may have met its value.
    let is_seen = |value: i64| somebody_differed || seen.contains(&value);
    let effect = |operation: &Placed<'_>| match (&operation.1.op, operation.1.outcome) {
        (Op::Read { value, .. }, Outcome::Ok) => value.map(Effect::Read),
        (Op::Write { value, .. }, Outcome::Ok) => Some(Effect::Write(*value)),
        (Op::Write { value, .. }, Outcome::Info) if is_seen(*value) => Some(Effect::Write(*value)),
        (Op::Cas { expected, value, .. }, Outcome::Ok) => Some(Effect::Swap(*expected, *value)),
        (Op::Cas { expected, value, .. }, Outcome::Info) if is_seen(*value) => {
            Some(Effect::MaybeSwap(*expected, *value))
        }
        (Op::Cas { expected, .. }, Outcome::Fail) if met_another(operation.1.error.as_deref()) => {
            Some(Effect::Differs(*expected))
        }
        _ => None,
    };
    let interval = |placed: &Placed<'_>| {
        let (_, operation) = placed;
        let until_us = if operation.outcome == Outcome::Info { u64::MAX } else { operation.ended_us };
        Some(Interval { from_us: operation.invoked_us, until_us, effect: effect(placed)? })
    };
    operations.iter().filter_map(interval).collect()
}

/// A swap that was refused for what it met, rather than because nobody could be asked.
fn met_another(error: Option<&str>) -> bool {
    error == Some("INVALID_UPDATE_VERSION")
}

/// A set of operations, by their places.
type Done = Box<[u64]>;

/// Whether some order keeps to the clock and explains all.
pub fn search(operations: &[Interval], configurations_max: usize) -> Answer {
    let mut order: Vec<Interval> = operations.to_vec();
    order.sort_unstable_by_key(|operation| operation.from_us);
    let mut tried: HashSet<(Done, Value)> = HashSet::new();
    let mut done: Done = vec![0; order.len().div_ceil(64)].into();
    // What was done, the value before it, and where the search for the next one goes on.
    let mut path: Vec<(usize, Value)> = Vec::new();
    let mut value: Value = None;
    let mut next = 0;
    loop {
        if path.len() == order.len() {
            return Answer::Linearizable;
        }
        match candidate(&order, &done, value, next) {
            Some((place, after)) => {
                done[place / 64] |= 1 << (place % 64);
                if tried.insert((done.clone(), after)) {
                    if tried.len() > configurations_max {
                        return Answer::Unknown;
                    }
                    path.push((place, value));
                    (value, next) = (after, 0);
                } else {
                    done[place / 64] &= !(1 << (place % 64));
                    next = place + 1;
                }
            }
            None => {
                let Some((place, before)) = path.pop() else { return Answer::Not };
                done[place / 64] &= !(1 << (place % 64));
                (value, next) = (before, place + 1);
            }
        }
    }
}

/// The first operation from `next` on that can be the next one: nothing that is left ended before it began, and what it
/// saw fits.
fn candidate(order: &[Interval], done: &Done, value: Value, next: usize) -> Option<(usize, Value)> {
    let mut first_end = u64::MAX;
    // Most of what is done lies before all that is not.
    let skipped = 64 * done.iter().take_while(|word| **word == u64::MAX).count();
    for (place, operation) in order.iter().enumerate().skip(skipped) {
        if done[place / 64] & (1 << (place % 64)) != 0 {
            continue;
        }
        if operation.from_us > first_end {
            return None;
        }
        first_end = first_end.min(operation.until_us);
        if place >= next
            && let Some(after) = operation.effect.apply(value)
        {
            return Some((place, after));
        }
    }
    None
}

#[cfg(test)]
mod tests;
