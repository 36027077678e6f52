use super::super::Verdict;
use super::*;
use crate::history::Operation;
use crate::workload::WorkloadName;

fn operation(at: u64, outcome: Outcome, op: Op) -> Operation {
    let workload = WorkloadName::Log;
    Operation { workload, process: 0, invoked_us: at, ended_us: at + 5, outcome, error: None, op }
}

fn produce(at: u64, value: u64, position: i64) -> Operation {
    operation(at, Outcome::Ok, Op::Produce { partition: 0, value, position: Some(position), epoch: Some(0) })
}

fn refused(at: u64, value: u64) -> Operation {
    operation(at, Outcome::Fail, Op::Produce { partition: 0, value, position: None, epoch: None })
}

fn records(values: &[(i64, u64)]) -> Option<Vec<Fetched>> {
    Some(values.iter().map(|(position, value)| (*position, 0, *value)).collect())
}

fn fetch(at: u64, values: &[(i64, u64)]) -> Operation {
    operation(at, Outcome::Ok, Op::Fetch { partition: 0, from: 0, records: records(values) })
}

fn dump(broker: i32, values: &[(i64, u64)]) -> Operation {
    operation(1_000, Outcome::Ok, Op::Dump { partition: 0, broker, start: 0, records: records(values) })
}

fn judge(history: &[Operation]) -> Report {
    check(&history.iter().enumerate().collect::<Vec<_>>())
}

fn assert_breaks(rule: &str, history: &[Operation]) {
    let report = judge(history);
    assert!(report.has(rule), "{rule} is not among {report:?}");
}

const LOG: [(i64, u64); 3] = [(0, 7), (1, 8), (2, 9)];

#[test]
fn what_is_in_order_is_valid() {
    let history = [produce(0, 7, 0), produce(10, 9, 2), fetch(20, &LOG[..2]), dump(1, &LOG), dump(2, &LOG)];
    assert_eq!((judge(&history).verdict, judge(&history).findings), (Verdict::Valid, vec![]));
}

#[test]
fn nothing_is_known_without_a_dump() {
    assert_eq!(judge(&[produce(0, 7, 0)]).verdict, Verdict::Unknown);
}

#[test]
fn an_acknowledged_record_is_on_every_replica() {
    assert_breaks("acknowledged-lost", &[produce(0, 7, 0), produce(9, 9, 2), dump(1, &LOG), dump(2, &LOG[..2])]);
}

#[test]
fn what_was_read_stays() {
    assert_breaks("read-vanished", &[fetch(20, &LOG), dump(1, &LOG[..2])]);
}

#[test]
fn a_position_holds_one_record() {
    assert_breaks("one-record-per-position", &[produce(0, 5, 0), dump(1, &LOG)]);
    assert_breaks("one-record-per-position", &[dump(1, &LOG), dump(2, &[(0, 7), (1, 9)])]);
    let other_epoch = Op::Dump { partition: 0, broker: 2, start: 0, records: Some(vec![(0, 1, 7)]) };
    assert_breaks("one-epoch-per-position", &[operation(0, Outcome::Ok, other_epoch), dump(1, &LOG[..1])]);
}

#[test]
fn a_record_that_was_sent_again_is_acknowledged_by_a_later_leader_but_not_by_an_earlier_one() {
    let acknowledged = |epoch| {
        operation(0, Outcome::Ok, Op::Produce { partition: 0, value: 7, position: Some(0), epoch: Some(epoch) })
    };
    let in_epoch = |epoch| Op::Dump { partition: 0, broker: 1, start: 0, records: Some(vec![(0, epoch, 7)]) };
    let history = |acknowledged_in, epoch| [acknowledged(acknowledged_in), operation(9, Outcome::Ok, in_epoch(epoch))];
    assert_eq!(judge(&history(3, 2)).verdict, Verdict::Valid);
    assert_breaks("acknowledged-by-its-leader-or-later", &history(1, 2));
}

#[test]
fn a_record_is_there_once_and_only_if_it_was_not_refused() {
    assert_breaks("duplicate", &[dump(1, &[(0, 7), (1, 7)])]);
    assert_breaks("refused-but-there", &[refused(0, 7), dump(1, &LOG)]);
}

#[test]
fn nothing_is_skipped_and_epochs_do_not_fall() {
    assert_breaks("contiguous", &[fetch(20, &[(0, 7), (2, 9)]), dump(1, &LOG)]);
    assert_breaks("contiguous", &[fetch(20, &[(i64::MAX, 7), (i64::MIN, 9)]), dump(1, &LOG)]);
    let falls = Op::Dump { partition: 0, broker: 1, start: 0, records: Some(vec![(0, 2, 7), (1, 1, 8)]) };
    assert_breaks("epochs-never-fall", &[operation(0, Outcome::Ok, falls)]);
}

#[test]
fn positions_do_not_go_against_the_clock() {
    assert_breaks("real-time", &[produce(0, 9, 2), produce(10, 7, 0), dump(1, &LOG)]);
}
