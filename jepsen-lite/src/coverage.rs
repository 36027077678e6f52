//! Whether a run has shown anything: the faults that were asked for did happen, and the cluster was asked enough, also
//! while they lasted.

use std::collections::BTreeMap;

use quorate_metadata::ErrorName;

use crate::checker::Report;
use crate::conductor::Fired;
use crate::history::Operation;
use crate::nemesis::Nemesis;
use crate::op::Op;
use crate::workload::{WorkloadName, is_mutation};

/// A second of faults must see so many attempts of all workloads together.
const ATTEMPTS_PER_SECOND_MIN: usize = 20;

pub fn check(workloads: &[WorkloadName], history: &[Operation], fired: &[Fired]) -> Report {
    let mut report = Report::new("coverage");
    for workload in workloads {
        let is_answer =
            |operation: &&Operation| operation.workload == *workload && workload.is_answer(operation.outcome);
        let answers = history.iter().filter(is_answer).count();
        report.count(&format!("answers of {workload:?}"), answers);
        let needed = workload.answers_min();
        if answers < needed {
            report.doubt("too-few-answers", format!("{workload:?}: {answers} answers, {needed} are needed"));
        }
    }
    if fired.is_empty() {
        report.doubt("no-fault", "no fault has happened".to_owned());
    }
    // The load of an overload asks far more than all workloads, and sees nothing of other faults.
    let usual: Vec<&Operation> = history.iter().filter(|asked| asked.workload != WorkloadName::Overload).collect();
    let (mut attempts, mut us) = (0, 0);
    for fault in fired {
        report.count(&format!("fired {:?}", fault.nemesis), 1);
        us += fault.until_us - fault.from_us;
        attempts += usual.iter().filter(|operation| overlaps(operation, fault)).count();
        if fault.targets.is_empty() {
            report.doubt("no-target", format!("{:?} has hit nothing", fault.nemesis));
        }
        if fault.nemesis == Nemesis::SyncLies && !history.iter().any(|operation| is_written_during(operation, fault)) {
            report.doubt("no-lie", "nothing was acknowledged that a lying disk could have lost".to_owned());
        }
    }
    check_overload(history, fired, &mut report);
    report.count("attempts during faults", attempts);
    if attempts < ATTEMPTS_PER_SECOND_MIN * usize::try_from(us / 1_000_000).unwrap_or(usize::MAX) {
        report.doubt("too-few-attempts", format!("{attempts} attempts in {} s of faults", us / 1_000_000));
    }
    for ((service, nemesis), us) in unavailability(history, fired) {
        report.counts.insert(format!("longest unavailability of {service}, ms, {nemesis:?}"), us / 1_000);
    }
    report
}

/// As many large requests must see a refusal. Of fewer, from an overload that was cut short, nothing follows.
const LARGE_REQUESTS_MIN: usize = 500;

/// More than a cluster can do is refused with THROTTLED, also where it is asked for what changes nothing.
fn check_overload(history: &[Operation], fired: &[Fired], report: &mut Report) {
    let overloads: Vec<&Fired> = fired.iter().filter(|fault| fault.nemesis == Nemesis::Overload).collect();
    let is_within = |operation: &&Operation| overloads.iter().any(|fault| overlaps(operation, fault));
    let burdens = history.iter().filter(|operation| operation.workload == WorkloadName::Overload);
    let (mut all, mut throttled) = (0, 0);
    for operation in burdens.filter(is_within) {
        all += 1;
        throttled += usize::from(operation.error.as_deref() == Some(ErrorName::Throttled.as_str()));
    }
    report.count("large requests in overload", all);
    report.count("throttled in overload", throttled);
    if all >= LARGE_REQUESTS_MIN && throttled == 0 {
        report.doubt("not-throttled", format!("none of {all} large requests was refused with THROTTLED"));
    }
}

fn overlaps(operation: &Operation, fault: &Fired) -> bool {
    operation.invoked_us < fault.until_us && operation.ended_us > fault.from_us
}

/// What may be unavailable: the metadata as a whole, and the records of each partition.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Service {
    Metadata,
    Partition(i32),
}

impl Service {
    fn of(op: &Op) -> Option<Self> {
        match op {
            Op::Produce { partition, .. } => Some(Self::Partition(*partition)),
            op if is_mutation(op) => Some(Self::Metadata),
            _ => None,
        }
    }

    pub fn name(self) -> &'static str {
        match self {
            Self::Metadata => "metadata",
            Self::Partition(_) => "a partition",
        }
    }
}

/// By what was unavailable and by nemesis: the longest time in which nothing was acknowledged that began while the
/// nemesis was at work, or in which it came.
pub fn unavailability(history: &[Operation], fired: &[Fired]) -> BTreeMap<(&'static str, Nemesis), u64> {
    let mut acknowledged: BTreeMap<Service, Vec<u64>> = BTreeMap::new();
    for operation in history.iter().filter(|operation| operation.is_ok()) {
        if let Some(service) = Service::of(&operation.op) {
            acknowledged.entry(service).or_default().push(operation.ended_us);
        }
    }
    let mut longest = BTreeMap::new();
    for (service, mut times) in acknowledged {
        times.sort_unstable();
        for gap in times.windows(2) {
            for nemesis in blamed(gap[0], gap[1], fired) {
                let known: &mut u64 = longest.entry((service.name(), nemesis)).or_default();
                *known = (*known).max(gap[1] - gap[0]);
            }
        }
    }
    longest
}

/// Those that lasted when the gap began; where there was none, the first that came in it.
fn blamed(from_us: u64, until_us: u64, fired: &[Fired]) -> Vec<Nemesis> {
    let lasted = |fault: &&Fired| (fault.from_us..fault.until_us).contains(&from_us);
    let lasting: Vec<Nemesis> = fired.iter().filter(lasted).map(|fault| fault.nemesis).collect();
    if !lasting.is_empty() {
        return lasting;
    }
    let came = fired.iter().filter(|fault| (from_us..until_us).contains(&fault.from_us));
    came.min_by_key(|fault| fault.from_us).map(|fault| fault.nemesis).into_iter().collect()
}

fn is_written_during(operation: &Operation, fault: &Fired) -> bool {
    let is_within = operation.invoked_us >= fault.from_us && operation.ended_us <= fault.until_us;
    is_within && operation.is_ok() && is_mutation(&operation.op)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::history::Outcome;

    fn fired(nemesis: Nemesis, from_us: u64, until_us: u64) -> Fired {
        Fired { nemesis, from_us, until_us, targets: vec!["1".to_owned()] }
    }

    #[test]
    fn a_gap_is_blamed_on_what_lasted_or_else_on_what_came() {
        let faults = [fired(Nemesis::Kill, 100, 200), fired(Nemesis::Pause, 150, 300)];
        assert_eq!(blamed(120, 400, &faults), [Nemesis::Kill]);
        assert_eq!(blamed(160, 400, &faults), [Nemesis::Kill, Nemesis::Pause]);
        assert_eq!(blamed(90, 400, &faults), [Nemesis::Kill], "it came first");
        assert!(blamed(300, 400, &faults).is_empty());
    }

    #[test]
    fn an_overload_without_a_refusal_shows_nothing() {
        let doubts_of = |requests: usize, error: Option<&str>, ended_us| {
            let (workload, outcome) = (WorkloadName::Overload, Outcome::Info);
            let (error, op) = (error.map(str::to_owned), Op::Burden { node: 1 });
            let told = Operation { workload, process: 0, invoked_us: 80, ended_us, outcome, error, op };
            check(&[], &vec![told; requests], &[fired(Nemesis::Overload, 100, 200)]).has("not-throttled")
        };
        let doubts = |error, ended_us| doubts_of(LARGE_REQUESTS_MIN, error, ended_us);
        assert!(doubts(None, 130));
        assert!(doubts(Some("REQUEST_TIMED_OUT"), 130));
        let few = doubts_of(LARGE_REQUESTS_MIN - 1, None, 130);
        assert!(!few, "nothing follows from an overload that was cut short");
        assert!(!doubts(Some("THROTTLED"), 130));
        assert!(!check(&[], &[], &[fired(Nemesis::Kill, 100, 200)]).has("not-throttled"));
    }

    #[test]
    fn a_lie_that_nothing_rested_on_shows_nothing() {
        let doubts = |op| {
            let (workload, outcome) = (WorkloadName::MetaRegister, Outcome::Ok);
            let told = Operation { workload, process: 0, invoked_us: 120, ended_us: 130, outcome, error: None, op };
            check(&[], &[told], &[fired(Nemesis::SyncLies, 100, 200)]).has("no-lie")
        };
        assert!(doubts(Op::Read { key: 0, value: Some(1), offset: Some(2) }));
        assert!(!doubts(Op::Write { key: 0, value: 1, offset: Some(2) }));
    }
}
