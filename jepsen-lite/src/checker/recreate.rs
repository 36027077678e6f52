//! Of the topics that have had one name, one after the other, each has its own id, its own time and its own records.

use std::collections::{BTreeMap, BTreeSet};

use super::order::{Stand, real_time};
use super::{Placed, Report};
use crate::history::Outcome;
use crate::op::Op;

/// One topic, by its id.
#[derive(Default)]
struct Life {
    name: String,
    born: i64,
    born_at: usize,
    /// Where it goes, once that was asked; no offset where the outcome is open.
    gone: Option<Option<i64>>,
    told: BTreeSet<u64>,
}

pub fn check(history: &[Placed<'_>]) -> Report {
    let mut report = Report::new("recreate");
    let (lives, open) = lives(history, &mut report);
    report.count("topics", lives.len());
    for (place, operation) in history.iter().filter(|(_, operation)| operation.is_ok()) {
        match &operation.op {
            Op::Who { name, id: Some(id), offset: Some(offset), .. } => {
                report.count("looks", 1);
                found(&lives, &open, (name, id, *offset), *place, &mut report);
            }
            Op::Who { name, id: None, offset: Some(offset), .. } => {
                report.count("looks", 1);
                not_found(&lives, (name, *offset), *place, &mut report);
            }
            Op::Retold { id, values: Some(values), .. } => {
                report.count("records read", values.len());
                records(lives.get(id.as_str()), (id, values), *place, &mut report);
            }
            _ => {}
        }
    }
    let stands: Vec<(Placed<'_>, Stand)> = history.iter().filter_map(stand).collect();
    real_time("metadata", &stands, &mut report);
    report
}

/// The topics, and the names of which it is open whether one has come.
fn lives<'a>(history: &[Placed<'a>], report: &mut Report) -> (BTreeMap<&'a str, Life>, BTreeSet<&'a str>) {
    let (mut lives, mut open) = (BTreeMap::<&str, Life>::new(), BTreeSet::new());
    for (place, operation) in history {
        match (&operation.op, operation.outcome) {
            (Op::Born { name, id: Some(id), offset: Some(offset) }, Outcome::Ok) => {
                let life = Life { name: name.clone(), born: *offset, born_at: *place, ..Life::default() };
                if let Some(other) = lives.insert(id, life) {
                    let message = format!("{name} and, before it, {} have the id {id}", other.name);
                    report.object("one-life-per-id", message, &[other.born_at, *place]);
                }
            }
            (Op::Born { name, .. }, Outcome::Info) => drop(open.insert(name.as_str())),
            _ => {}
        }
    }
    for (_, operation) in history {
        match (&operation.op, operation.outcome) {
            (Op::Gone { id, offset, .. }, Outcome::Ok | Outcome::Info) => {
                if let Some(life) = lives.get_mut(id.as_str()) {
                    life.gone = Some(*offset);
                }
            }
            (Op::Told { id, value, .. }, _) => {
                if let Some(life) = lives.get_mut(id.as_str()) {
                    life.told.insert(*value);
                }
            }
            _ => {}
        }
    }
    (lives, open)
}

fn stand<'a>(placed: &Placed<'a>) -> Option<(Placed<'a>, Stand)> {
    let (offset, is_write) = match placed.1.op {
        Op::Born { offset, .. } | Op::Gone { offset, .. } => (offset?, true),
        Op::Who { stale: false, offset, .. } => (offset?, false),
        _ => return None,
    };
    placed.1.is_ok().then_some((*placed, Stand { offset, is_write }))
}

fn found(
    lives: &BTreeMap<&str, Life>,
    open: &BTreeSet<&str>,
    (name, id, offset): (&str, &str, i64),
    place: usize,
    report: &mut Report,
) {
    let Some(life) = lives.get(id) else {
        if !open.contains(name) {
            report.object("phantom", format!("{name} is {id}, which nobody has created"), &[place]);
        }
        return;
    };
    let mut object = |rule: &str, what: String| {
        report.object(rule, format!("at offset {offset} {name} is {id}, {what}"), &[life.born_at, place]);
    };
    if life.name != name {
        object("another-name", format!("which was called {}", life.name));
    }
    if offset < life.born {
        object("too-early", format!("which came at {}", life.born));
    }
    if let Some(Some(gone)) = life.gone
        && offset >= gone
    {
        object("revived", format!("which went at {gone}"));
    }
}

fn not_found(lives: &BTreeMap<&str, Life>, (name, offset): (&str, i64), place: usize, report: &mut Report) {
    for (id, life) in lives.iter().filter(|(_, life)| life.name == name && life.born <= offset) {
        let has_gone = life.gone.is_some_and(|gone| gone.is_none_or(|gone| gone <= offset));
        if !has_gone {
            let message = format!("at offset {offset} nobody is {name}, and {id} came at {}", life.born);
            report.object("lost", message, &[life.born_at, place]);
        }
    }
}

fn records(life: Option<&Life>, (id, values): (&str, &[u64]), place: usize, report: &mut Report) {
    let told = |value: &u64| life.is_some_and(|life| life.told.contains(value));
    for value in values.iter().filter(|value| !told(value)) {
        report.object("records-of-another-life", format!("{id} has {value}, which it was never told"), &[place]);
    }
    if values.iter().collect::<BTreeSet<_>>().len() < values.len() {
        report.object("told-once", format!("{id} has a record twice"), &[place]);
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::{Told, assert_breaks, assert_valid};
    use super::*;

    fn born(id: &str, offset: i64) -> Told {
        let (name, id, offset) = ("a".to_owned(), Some(id.to_owned()), Some(offset));
        Told::ok(Op::Born { name, id, offset })
    }

    fn gone(id: &str, offset: i64) -> Told {
        Told::ok(Op::Gone { name: "a".to_owned(), id: id.to_owned(), offset: Some(offset) })
    }

    fn who(id: Option<&str>, offset: i64) -> Told {
        let id = id.map(str::to_owned);
        Told::ok(Op::Who { name: "a".to_owned(), stale: true, id, offset: Some(offset) })
    }

    fn told(id: &str, value: u64) -> Told {
        Told::ok(Op::Told { name: "a".to_owned(), id: id.to_owned(), value, position: Some(0) })
    }

    fn retold(id: &str, values: &[u64]) -> Told {
        Told::ok(Op::Retold { name: "a".to_owned(), id: id.to_owned(), values: Some(values.to_vec()) })
    }

    /// Two topics after each other, at offsets 10 to 20 and from 30 on.
    fn two(then: &[Told]) -> Vec<Told> {
        let lives = [born("x", 10), told("x", 1), gone("x", 20), born("y", 30), told("y", 2)];
        [&lives[..], then].concat()
    }

    #[test]
    fn each_has_its_time_and_its_records() {
        let looks = [who(None, 5), who(Some("x"), 10), who(Some("x"), 19), who(None, 25), who(Some("y"), 99)];
        assert_valid(check, &two(&looks));
        assert_valid(check, &two(&[retold("x", &[1]), retold("y", &[2]), retold("y", &[])]));
    }

    #[test]
    fn whoever_has_the_name_out_of_time_is_found() {
        assert_breaks("too-early", check, &two(&[who(Some("y"), 25)]));
        assert_breaks("revived", check, &two(&[who(Some("x"), 20)]));
        assert_breaks("lost", check, &two(&[who(None, 40)]));
        assert_breaks("phantom", check, &two(&[who(Some("z"), 40)]));
    }

    #[test]
    fn records_of_another_life_are_found_and_so_are_those_told_twice() {
        assert_breaks("records-of-another-life", check, &two(&[retold("y", &[1, 2])]));
        assert_breaks("told-once", check, &two(&[retold("y", &[2, 2])]));
    }

    #[test]
    fn an_id_that_is_given_again_is_found_and_so_is_one_under_another_name() {
        assert_breaks("one-life-per-id", check, &two(&[born("x", 50)]));
        let name = "b".to_owned();
        let other = Op::Who { name, stale: true, id: Some("y".to_owned()), offset: Some(40) };
        assert_breaks("another-name", check, &two(&[Told::ok(other)]));
    }

    #[test]
    fn offsets_go_with_the_clock() {
        assert_breaks("real-time", check, &[born("x", 10).at(5), gone("x", 9).at(7)]);
    }
}
