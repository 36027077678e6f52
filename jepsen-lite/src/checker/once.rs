//! A request takes effect once, however often it is delivered, and every delivery gets the answer of the first one.

use std::collections::BTreeMap;

use super::{Placed, Report};
use crate::history::Outcome;
use crate::op::Op;

/// Who asked, and its how many-th request.
type Request = (u32, u64);

/// What was answered: topic and offset.
type Answer<'a> = (Option<&'a str>, Option<i64>);

pub fn check(history: &[Placed<'_>]) -> Report {
    let mut report = Report::new("once-admin");
    let mut answers: BTreeMap<Request, (Answer<'_>, usize)> = BTreeMap::new();
    // By name: its last request, whether that creates, and what it was answered.
    let mut last: BTreeMap<&str, (u64, bool, Option<Answer<'_>>)> = BTreeMap::new();
    for (place, operation) in history {
        let Op::Once { name, request, creates, id, offset } = &operation.op else { continue };
        report.count("deliveries", 1);
        let answer = operation.is_ok().then_some((id.as_deref(), *offset));
        if let Some(answer) = answer {
            let (first, by) = *answers.entry((operation.process, *request)).or_insert((answer, *place));
            if first != answer {
                let message = format!("request {request} for {name}: {first:?}, then {answer:?}");
                report.object("one-answer-per-request", message, &[by, *place]);
            }
        }
        // The name is this client's own, and it asks for nothing before it knows what became of what it asked.
        let again = if *creates { "TOPIC_ALREADY_EXISTS" } else { "UNKNOWN_TOPIC_OR_PARTITION" };
        if operation.outcome != Outcome::Ok && operation.error.as_deref() == Some(again) {
            report.object("no-second-effect", format!("request {request} for {name}: {again}"), &[*place]);
        }
        let known = last.entry(name).or_insert((*request, *creates, None));
        if *request > known.0 {
            *known = (*request, *creates, None);
        }
        if *request == known.0 {
            known.2 = known.2.or(answer);
        }
    }
    report.count("requests", answers.len());
    for (place, operation) in history {
        if let Op::Named { topics: Some(topics) } = &operation.op {
            let topics = topics.iter().map(|(name, id)| (name.as_str(), id.as_str())).collect();
            at_the_end(&topics, &last, *place, &mut report);
        }
    }
    report
}

fn at_the_end(
    topics: &BTreeMap<&str, &str>,
    last: &BTreeMap<&str, (u64, bool, Option<Answer<'_>>)>,
    place: usize,
    report: &mut Report,
) {
    for (name, (request, creates, answer)) in last {
        // What became of the last request is open.
        let Some((id, _)) = answer else { continue };
        let expected = if *creates { *id } else { None };
        let found = topics.get(name).copied();
        if found != expected {
            let message = format!("after request {request} {name} should be {expected:?}, and is {found:?}");
            report.object("effect-stays", message, &[place]);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::{Told, assert_breaks, assert_valid};
    use super::*;

    fn once(request: u64, creates: bool, id: &str) -> Told {
        let name = "a".to_owned();
        Told::ok(Op::Once { name, request, creates, id: Some(id.to_owned()), offset: Some(request as i64) })
    }

    fn refused(request: u64, creates: bool, error: &str) -> Told {
        Told::fail(Op::Once { name: "a".to_owned(), request, creates, id: None, offset: None }, error)
    }

    fn named(topics: &[(&str, &str)]) -> Told {
        let owned = topics.iter().map(|(name, id)| ((*name).to_owned(), (*id).to_owned()));
        Told::ok(Op::Named { topics: Some(owned.collect()) })
    }

    #[test]
    fn late_deliveries_change_nothing() {
        let told = [
            once(1, true, "x"),
            once(2, false, "x"),
            once(1, true, "x"),
            once(3, true, "y"),
            refused(2, false, "REQUEST_EXPIRED"),
        ];
        assert_valid(check, &[&told[..], &[named(&[("a", "y")])]].concat());
    }

    #[test]
    fn another_answer_is_found() {
        assert_breaks("one-answer-per-request", check, &[once(1, true, "x"), once(1, true, "y")]);
    }

    #[test]
    fn a_second_effect_is_found() {
        assert_breaks("no-second-effect", check, &[once(1, true, "x"), refused(1, true, "TOPIC_ALREADY_EXISTS")]);
        let gone = refused(2, false, "UNKNOWN_TOPIC_OR_PARTITION");
        assert_breaks("no-second-effect", check, &[once(1, true, "x"), gone]);
    }

    #[test]
    fn what_is_there_at_the_end_is_what_was_answered() {
        assert_breaks("effect-stays", check, &[once(1, true, "x"), named(&[])]);
        assert_breaks("effect-stays", check, &[once(1, true, "x"), named(&[("a", "y")])]);
        let revived = [once(1, true, "x"), once(2, false, "x"), named(&[("a", "z")])];
        assert_breaks("effect-stays", check, &revived);
    }
}
