use super::super::Verdict;
use super::*;
use crate::workload::WorkloadName;

fn operation(at: u64, outcome: Outcome, op: Op) -> Operation {
    let workload = WorkloadName::TopicSet;
    Operation { workload, process: 0, invoked_us: at, ended_us: at + 5, outcome, error: None, op }
}

fn create(at: u64, name: &str, offset: i64) -> Operation {
    operation(at, Outcome::Ok, Op::Create { name: name.to_owned(), offset: Some(offset) })
}

fn delete(at: u64, name: &str, offset: i64) -> Operation {
    operation(at, Outcome::Ok, Op::Delete { name: name.to_owned(), offset: Some(offset) })
}

fn unanswered(at: u64, outcome: Outcome, name: &str) -> Operation {
    operation(at, outcome, Op::Create { name: name.to_owned(), offset: None })
}

fn list(at: u64, stale: bool, names: &[&str], offset: i64) -> Operation {
    let names = names.iter().map(|name| (*name).to_owned()).collect();
    operation(at, Outcome::Ok, Op::List { stale, names: Some(names), offset: Some(offset) })
}

fn judge(history: &[Operation]) -> Report {
    check(&history.iter().enumerate().collect::<Vec<_>>())
}

fn assert_breaks(rule: &str, history: &[Operation]) {
    let report = judge(history);
    assert!(report.has(rule), "{rule} is not among {report:?}");
}

#[test]
fn what_is_in_order_is_valid() {
    let stale = list(50, true, &["a"], 1);
    let history = [create(0, "a", 1), create(10, "b", 3), list(20, false, &["a", "b"], 3), delete(30, "a", 5), stale];
    assert_eq!((judge(&history).verdict, judge(&history).findings), (Verdict::Valid, vec![]));
}

#[test]
fn a_created_topic_that_is_missing_is_lost() {
    assert_breaks("lost", &[create(0, "a", 1), list(20, false, &[], 3)]);
    assert_breaks("lost", &[create(0, "a", 1), list(20, true, &[], 3)]);
}

#[test]
fn a_list_of_the_past_is_fresh_only_where_that_is_asked_for() {
    assert_breaks("real-time", &[create(0, "a", 1), list(20, false, &[], 0)]);
    assert_eq!(judge(&[create(0, "a", 1), list(20, true, &[], 0)]).verdict, Verdict::Valid);
}

#[test]
fn a_deleted_topic_does_not_come_back() {
    let (created, deleted) = (create(0, "a", 1), delete(10, "a", 2));
    assert_breaks("revived", &[created.clone(), deleted, list(20, false, &["a"], 3)]);
    let lists = [list(20, true, &["a"], 2), list(30, true, &[], 3), list(40, true, &["a"], 4)];
    let open = operation(10, Outcome::Info, Op::Delete { name: "a".to_owned(), offset: None });
    assert_breaks("revived", &[&[created, open], &lists[..]].concat());
}

#[test]
fn what_nobody_created_or_what_was_refused_is_not_there() {
    assert_breaks("phantom", &[list(20, false, &["a"], 3)]);
    assert_breaks("refused-but-there", &[unanswered(0, Outcome::Fail, "a"), list(20, false, &["a"], 3)]);
    assert_eq!(judge(&[unanswered(0, Outcome::Info, "a"), list(20, false, &["a"], 3)]).verdict, Verdict::Valid);
    assert_breaks("too-early", &[list(0, true, &["a"], 3), create(20, "a", 4)]);
}

#[test]
fn one_offset_has_one_answer() {
    let open = unanswered(0, Outcome::Info, "a");
    assert_breaks("one-answer-per-offset", &[open, list(20, true, &["a"], 3), list(30, true, &[], 3)]);
}
