//! A history is one or is refused, whatever its lines say; what is one is written again as the same; and of every one each
//! checker gives a verdict that names its lines. What the certificate accepts, the blind check accepts: an order by the
//! cluster's offsets that explains every answer is one that explains them without.

use arbitrary::{Result, Unstructured};
use jepsen_lite::checker::{Report, Verdict, check as verdicts};
use jepsen_lite::coverage;
use jepsen_lite::history::{Operation, Outcome, parse};
use jepsen_lite::op::Op;
use jepsen_lite::workload::WorkloadName;

/// The search for an order of operations takes exponential time: with these few, milliseconds.
const OPERATIONS_MAX: usize = 14;

/// `bytes`: the lines of a history, or a zero and what operations on registers are drawn from.
pub fn check(bytes: &[u8]) {
    match bytes.split_first() {
        Some((0, drawn)) => check_agreement(drawn),
        _ => check_lines(bytes),
    }
}

fn check_lines(lines: &[u8]) {
    let Ok(operations) = parse(lines) else { return };
    if operations.len() > OPERATIONS_MAX {
        return;
    }
    assert_eq!(parse(&written(&operations)).ok().as_ref(), Some(&operations));
    for workload in WorkloadName::ALL {
        verdicts(workload, &operations).iter().for_each(|report| check_report(report, operations.len()));
    }
    check_report(&coverage::check(&WorkloadName::ALL, &operations, &[]), operations.len());
}

fn written(operations: &[Operation]) -> Vec<u8> {
    let line = |operation| serde_json::to_string(operation).expect("an operation can be written") + "\n";
    operations.iter().map(line).collect::<String>().into_bytes()
}

fn check_report(report: &Report, lines: usize) {
    assert_eq!(report.verdict == Verdict::Valid, report.findings.is_empty(), "{report:?}");
    let named = report.findings.iter().flat_map(|finding| &finding.lines);
    named.for_each(|line| assert!((1..=lines).contains(line), "{report:?}"));
}

fn check_agreement(drawn: &[u8]) {
    let mut drawn = Unstructured::new(drawn);
    let draw = |value| register_operation(&mut drawn, value).ok();
    let operations: Vec<Operation> = (0..).map_while(draw).take(OPERATIONS_MAX).collect();
    let reports = verdicts(WorkloadName::MetaRegister, &operations);
    let [certificate, blind] = &reports[..] else { panic!("registers have two checkers: {reports:?}") };
    if certificate.verdict == Verdict::Valid {
        assert_eq!(blind.verdict, Verdict::Valid, "{}", String::from_utf8_lossy(&written(&operations)));
    }
}

/// Answered with an offset, or a write whose outcome is open. No value is written twice.
fn register_operation(drawn: &mut Unstructured<'_>, value: i64) -> Result<Operation> {
    let kind: u8 = drawn.arbitrary()?;
    let (key, seen) = (u32::from(kind >> 6 & 1), drawn.int_in_range(0..=OPERATIONS_MAX as i64)?);
    let (invoked_us, lasts_us) = (u64::from(drawn.arbitrary::<u8>()?), u64::from(drawn.arbitrary::<u8>()? % 32));
    let offset = Some(i64::from(drawn.arbitrary::<u8>()? % 32));
    let (op, outcome) = match kind % 5 {
        0 => (Op::Write { key, value, offset }, Outcome::Ok),
        1 => (Op::Cas { key, expected: seen, value, offset }, Outcome::Ok),
        2 => (Op::Write { key, value, offset: None }, Outcome::Info),
        _ => (Op::Read { key, value: Some(seen), offset }, Outcome::Ok),
    };
    let (workload, process, ended_us) = (WorkloadName::MetaRegister, 1, invoked_us + lasts_us);
    Ok(Operation { workload, process, invoked_us, ended_us, outcome, error: None, op })
}
