//! The set of topics: what was created is there until it is deleted, and nothing else ever is.
//!
//! Once by the clock, for lists that ask the quorum, and once by offsets, for all: a list at an offset is exactly what
//! was created and not deleted up to there, so that a stale list is a prefix of the truth and never something else.

use std::collections::{BTreeMap, HashMap, HashSet};

use super::order::{Stand, real_time};
use super::{Placed, Report};
use crate::history::{Operation, Outcome};
use crate::op::Op;

/// What was done to one name.
#[derive(Default)]
struct Life<'a> {
    created: Option<Placed<'a>>,
    deleted: Option<Placed<'a>>,
}

struct List<'a> {
    place: usize,
    operation: &'a Operation,
    is_stale: bool,
    offset: i64,
    names: HashSet<&'a str>,
}

pub fn check(history: &[Placed<'_>]) -> Report {
    let mut report = Report::new("topic-set");
    let mut lives: HashMap<&str, Life<'_>> = HashMap::new();
    let mut lists = Vec::new();
    for (place, operation) in history {
        match &operation.op {
            Op::Create { name, .. } => lives.entry(name).or_default().created = Some((*place, *operation)),
            Op::Delete { name, .. } => lives.entry(name).or_default().deleted = Some((*place, *operation)),
            Op::List { stale, names: Some(names), offset: Some(offset) } if operation.is_ok() => {
                let names = names.iter().map(String::as_str).collect();
                lists.push(List { place: *place, operation, is_stale: *stale, offset: *offset, names });
            }
            _ => {}
        }
    }
    report.count("names", lives.len());
    report.count("lists", lists.len());
    for list in &lists {
        unknown_names(list, &lives, &mut report);
        for (name, life) in &lives {
            by_offset(list, name, life, &mut report);
            if !list.is_stale {
                by_clock(list, name, life, &mut report);
            }
        }
    }
    one_life(&lists, &mut report);
    let stands: Vec<(Placed<'_>, Stand)> = history.iter().filter_map(stand).collect();
    real_time("metadata", &stands, &mut report);
    report
}

fn stand<'a>(placed: &Placed<'a>) -> Option<(Placed<'a>, Stand)> {
    let (offset, is_write) = match placed.1.op {
        Op::Create { offset, .. } | Op::Delete { offset, .. } => (offset?, true),
        Op::List { stale: false, offset, .. } => (offset?, false),
        _ => return None,
    };
    placed.1.is_ok().then_some((*placed, Stand { offset, is_write }))
}

/// The offset of a mutation that was acknowledged.
fn offset_of(placed: Option<Placed<'_>>) -> Option<i64> {
    match placed?.1 {
        Operation { outcome: Outcome::Ok, op: Op::Create { offset, .. } | Op::Delete { offset, .. }, .. } => *offset,
        _ => None,
    }
}

fn unknown_names(list: &List<'_>, lives: &HashMap<&str, Life<'_>>, report: &mut Report) {
    for name in list.names.iter().filter(|name| !lives.contains_key(*name)) {
        report.object("phantom", format!("nobody has created {name}"), &[list.place]);
    }
}

fn by_offset(list: &List<'_>, name: &str, life: &Life<'_>, report: &mut Report) {
    let is_there = list.names.contains(name);
    let (created, deleted) = (offset_of(life.created), offset_of(life.deleted));
    let places = |life: Option<Placed<'_>>| [life.map_or(list.place, |(place, _)| place), list.place];
    if is_there && created.is_some_and(|created| list.offset < created) {
        let message = format!("{name} is in a list at offset {}, before it was created", list.offset);
        report.object("too-early", message, &places(life.created));
    }
    if is_there && deleted.is_some_and(|deleted| list.offset >= deleted) {
        let message = format!("{name} is in a list at offset {}, after it was deleted", list.offset);
        report.object("revived", message, &places(life.deleted));
    }
    // An open deletion may have taken place at any offset.
    let is_alive = life.deleted.is_none_or(|(_, deletion)| match deletion.outcome {
        Outcome::Fail => true,
        Outcome::Ok => deleted.is_some_and(|deleted| list.offset < deleted),
        Outcome::Info => false,
    });
    if !is_there && is_alive && created.is_some_and(|created| list.offset >= created) {
        let message = format!("{name} is missing from a list at offset {}", list.offset);
        report.object("lost", message, &places(life.created));
    }
}

fn by_clock(list: &List<'_>, name: &str, life: &Life<'_>, report: &mut Report) {
    let is_there = list.names.contains(name);
    let (from_us, until_us) = (list.operation.invoked_us, list.operation.ended_us);
    if let Some((place, creation)) = life.created {
        let nobody_deletes = life
            .deleted
            .is_none_or(|(_, deletion)| deletion.outcome == Outcome::Fail || deletion.invoked_us > until_us);
        if !is_there && creation.is_ok() && creation.ended_us < from_us && nobody_deletes {
            report.object("lost", format!("{name} was created, and is not in a later list"), &[place, list.place]);
        }
        if is_there && creation.outcome == Outcome::Fail {
            report.object("refused-but-there", format!("the creation of {name} was refused"), &[place, list.place]);
        }
        if is_there && creation.invoked_us > until_us {
            report.object("too-early", format!("{name} is in a list from before its creation"), &[place, list.place]);
        }
    }
    if let Some((place, deletion)) = life.deleted
        && is_there
        && deletion.is_ok()
        && deletion.ended_us < from_us
    {
        report.object("revived", format!("{name} was deleted, and is in a later list"), &[place, list.place]);
    }
}

/// In the order of offsets a name comes once and goes once, and one offset has one answer.
fn one_life(lists: &[List<'_>], report: &mut Report) {
    let mut ordered: Vec<&List<'_>> = lists.iter().collect();
    ordered.sort_by_key(|list| list.offset);
    let mut gone: BTreeMap<&str, usize> = BTreeMap::new();
    for pair in ordered.windows(2) {
        let (before, after) = (pair[0], pair[1]);
        if before.offset == after.offset && before.names != after.names {
            let message = format!("two lists at offset {} differ", after.offset);
            report.object("one-answer-per-offset", message, &[before.place, after.place]);
        }
        for name in after.names.difference(&before.names) {
            if let Some(place) = gone.get(name) {
                report.object("revived", format!("{name} had gone, and is back"), &[*place, after.place]);
            }
        }
        gone.extend(before.names.difference(&after.names).map(|name| (*name, after.place)));
    }
}

#[cfg(test)]
mod tests;
