//! What the tests of all checkers share: histories told by hand.

use super::*;
use crate::history::Outcome;
use crate::op::Op;

/// An operation of a made-up history.
#[derive(Debug, Clone)]
pub struct Told(Operation);

impl Told {
    pub fn ok(op: Op) -> Self {
        Self::with(op, Outcome::Ok, None)
    }

    pub fn fail(op: Op, error: &str) -> Self {
        Self::with(op, Outcome::Fail, Some(error.to_owned()))
    }

    fn with(op: Op, outcome: Outcome, error: Option<String>) -> Self {
        let (workload, process) = (WorkloadName::Log, 0);
        Self(Operation { workload, process, invoked_us: 0, ended_us: 0, outcome, error, op })
    }

    /// At this time, in no time.
    pub fn at(mut self, us: u64) -> Self {
        (self.0.invoked_us, self.0.ended_us) = (us, us);
        self
    }
}

type Check = fn(&[Placed<'_>]) -> Report;

fn judge(check: Check, told: &[Told]) -> Report {
    check(&told.iter().map(|told| &told.0).enumerate().collect::<Vec<_>>())
}

pub fn assert_valid(check: Check, told: &[Told]) {
    let report = judge(check, told);
    assert_eq!((report.verdict, report.findings), (Verdict::Valid, vec![]));
}

pub fn assert_breaks(rule: &str, check: Check, told: &[Told]) {
    let report = judge(check, told);
    assert!(report.has(rule), "{rule} is not among {report:?}");
}
