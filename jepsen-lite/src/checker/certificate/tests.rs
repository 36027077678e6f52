use proptest::prelude::*;

use super::super::{Verdict, blind};
use super::*;
use crate::synthetic::{Shape, register};
use crate::workload::WorkloadName;

fn operation(invoked_us: u64, ended_us: u64, outcome: Outcome, op: Op) -> Operation {
    let workload = WorkloadName::MetaRegister;
    Operation { workload, process: 0, invoked_us, ended_us, outcome, error: None, op }
}

fn write(at: u64, value: i64, offset: i64) -> Operation {
    operation(at, at + 5, Outcome::Ok, Op::Write { key: 0, value, offset: Some(offset) })
}

fn open_write(at: u64, value: i64) -> Operation {
    operation(at, at + 5, Outcome::Info, Op::Write { key: 0, value, offset: None })
}

fn read(at: u64, value: i64, offset: i64) -> Operation {
    operation(at, at + 5, Outcome::Ok, Op::Read { key: 0, value: Some(value), offset: Some(offset) })
}

fn swap(at: u64, expected: i64, value: i64, offset: i64) -> Operation {
    operation(at, at + 5, Outcome::Ok, Op::Cas { key: 0, expected, value, offset: Some(offset) })
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
    let report = judge(&[write(0, 1, 10), read(10, 1, 10), write(20, 2, 11), read(30, 2, 15), swap(40, 2, 3, 16)]);
    assert_eq!((report.verdict, report.findings), (Verdict::Valid, vec![]));
}

#[test]
fn a_stale_read_goes_against_the_clock() {
    assert_breaks("real-time", &[write(0, 1, 10), write(10, 2, 11), read(20, 1, 10)]);
}

#[test]
fn a_lost_write_is_seen_by_the_next_read() {
    assert_breaks("read-sees-the-last-write", &[write(0, 1, 10), write(10, 2, 11), read(20, 1, 12)]);
}

#[test]
fn two_writes_do_not_share_an_offset() {
    assert_breaks("one-offset-per-write", &[write(0, 1, 10), write(3, 2, 10)]);
}

#[test]
fn a_write_needs_an_offset_that_nobody_has_read_at() {
    assert_breaks("real-time", &[read(0, 1, 10), write(10, 2, 10)]);
}

#[test]
fn two_swaps_of_one_value_do_not_both_succeed() {
    assert_breaks("compare-and-set", &[write(0, 1, 10), swap(10, 1, 2, 11), swap(11, 1, 3, 12)]);
}

#[test]
fn an_open_write_explains_what_is_read_from_then_on_and_only_once() {
    let valid = [write(0, 1, 10), open_write(10, 2), read(20, 1, 10), read(30, 2, 11), write(40, 3, 12)];
    assert_eq!(judge(&valid).verdict, Verdict::Valid);
    let returns = [write(0, 1, 10), open_write(10, 2), read(30, 2, 11), write(40, 3, 12), read(50, 2, 13)];
    assert_breaks("read-sees-the-last-write", &returns);
}

#[test]
fn an_open_write_is_not_read_before_it_began() {
    assert_breaks("real-time", &[write(0, 1, 10), read(8, 2, 11), read(20, 2, 11), open_write(30, 2)]);
}

fn shape(operations: usize, lost_percent: u64) -> Shape {
    Shape { operations, processes: 5, operations_per_key: 60, lost_percent }
}

/// One thing changed, of those that a broken cluster changes.
fn edited(mut history: Vec<Operation>, place: usize, what: u8) -> Vec<Operation> {
    let place = place % history.len();
    let other_value = history.iter().find_map(|operation| match operation.op {
        Op::Write { value, .. } => Some(value),
        _ => None,
    });
    let operation = &mut history[place];
    match (&mut operation.op, what) {
        (Op::Read { value: Some(value), .. }, 0) => *value = other_value.unwrap_or(*value),
        (Op::Read { offset: Some(offset), .. }, 1) => *offset -= 3,
        (Op::Write { offset: Some(offset), .. } | Op::Cas { offset: Some(offset), .. }, 0 | 1) => *offset += 4,
        (Op::Write { value, .. }, 2) => *value += 1_000_000,
        _ => (),
    }
    history
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    #[test]
    fn a_register_is_valid_to_both_checkers(seed: u64, lost in 0..4u64) {
        let history = register(shape(240, lost), seed);
        let placed: Vec<Placed<'_>> = history.iter().enumerate().collect();
        prop_assert_eq!(check(&placed).findings, vec![]);
        prop_assert_eq!(blind::check(&placed).findings, vec![]);
    }

    /// An order by offsets that the certificate accepts is an order, and the blind search must find one too.
    #[test]
    fn what_the_certificate_accepts_the_blind_check_accepts(seed: u64, place: usize, what in 0..3u8) {
        let history = edited(register(shape(120, 2), seed), place, what);
        let placed: Vec<Placed<'_>> = history.iter().enumerate().collect();
        let (certificate, blind) = (check(&placed), blind::check(&placed));
        // What a refused swap met is the blind check's alone to judge.
        let swaps_refused = history.iter().any(|operation| operation.outcome == Outcome::Fail);
        if certificate.verdict == Verdict::Valid && !swaps_refused {
            prop_assert_eq!(blind.findings, vec![]);
        }
    }
}
