//! Whether a run has shown anything: the faults that were asked for did happen, and the cluster was asked enough, also
//! while they lasted.

use std::collections::BTreeMap;

use crate::checker::Report;
use crate::conductor::Fired;
use crate::history::Operation;
use crate::nemesis::Nemesis;
use crate::workload::{WorkloadName, is_mutation};

/// Answers of each workload in a run, below which it has not been tested.
const ANSWERS_MIN: usize = 100;

/// A second of faults must see so many attempts of all workloads together.
const ATTEMPTS_PER_SECOND_MIN: usize = 20;

pub fn check(workloads: &[WorkloadName], history: &[Operation], fired: &[Fired]) -> Report {
    let mut report = Report::new("coverage");
    for workload in workloads {
        let answers = history.iter().filter(|operation| operation.workload == *workload && operation.is_ok()).count();
        report.count(&format!("answers of {workload:?}"), answers);
        if answers < ANSWERS_MIN {
            report.doubt("too-few-answers", format!("{workload:?}: {answers} answers, {ANSWERS_MIN} are needed"));
        }
    }
    if fired.is_empty() {
        report.doubt("no-fault", "no fault has happened".to_owned());
    }
    let (mut attempts, mut us) = (0, 0);
    for fault in fired {
        report.count(&format!("fired {:?}", fault.nemesis), 1);
        us += fault.until_us - fault.from_us;
        attempts += history.iter().filter(|operation| overlaps(operation, fault)).count();
        if fault.targets.is_empty() {
            report.doubt("no-target", format!("{:?} has hit nothing", fault.nemesis));
        }
    }
    report.count("attempts during faults", attempts);
    if attempts < ATTEMPTS_PER_SECOND_MIN * usize::try_from(us / 1_000_000).unwrap_or(usize::MAX) {
        report.doubt("too-few-attempts", format!("{attempts} attempts in {} s of faults", us / 1_000_000));
    }
    for (nemesis, us) in unavailability(history, fired) {
        report.counts.insert(format!("longest unavailability, ms, {nemesis:?}"), us / 1_000);
    }
    report
}

fn overlaps(operation: &Operation, fault: &Fired) -> bool {
    operation.invoked_us < fault.until_us && operation.ended_us > fault.from_us
}

/// By nemesis: the longest time without an acknowledged mutation that began during one of its visits.
pub fn unavailability(history: &[Operation], fired: &[Fired]) -> BTreeMap<Nemesis, u64> {
    let acknowledged = history.iter().filter(|operation| operation.is_ok() && is_mutation(&operation.op));
    let mut times: Vec<u64> = acknowledged.map(|operation| operation.ended_us).collect();
    times.sort_unstable();
    let mut longest = BTreeMap::new();
    for gap in times.windows(2) {
        for fault in fired.iter().filter(|fault| (fault.from_us..fault.until_us).contains(&gap[0])) {
            let known: &mut u64 = longest.entry(fault.nemesis).or_default();
            *known = (*known).max(gap[1] - gap[0]);
        }
    }
    longest
}
