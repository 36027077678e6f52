//! What a history may not show. A checker is a pure function of the history; it names every operation that it objects
//! to, and says `unknown` where there was too little to judge.

pub mod blind;
pub mod certificate;
pub mod feed;
pub mod leadership;
pub mod log;
pub mod metadata_logs;
pub mod moves;
pub mod once;
mod order;
pub mod recreate;
pub mod samples;
pub mod topic_set;
pub mod zombie;

use std::collections::BTreeMap;

use rayon::prelude::*;
use serde::{Deserialize, Serialize};

use crate::history::Operation;
use crate::workload::WorkloadName;

/// The worst one counts, so the order matters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Verdict {
    Valid,
    /// Nothing wrong was seen, but not enough was: too little load, a fault that did not fire, a search that was cut off.
    Unknown,
    Invalid,
}

/// One rule that a history breaks.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Finding {
    /// Which rule: a name that stays the same.
    pub rule: String,
    pub message: String,
    /// Lines of the history, from 1.
    pub lines: Vec<usize>,
}

/// What one checker says.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Report {
    pub checker: String,
    pub verdict: Verdict,
    pub findings: Vec<Finding>,
    /// What it looked at.
    pub counts: BTreeMap<String, u64>,
}

/// A finding too many says nothing new.
const FINDINGS_MAX: usize = 100;

impl Report {
    pub fn new(checker: &str) -> Self {
        Self { checker: checker.to_owned(), verdict: Verdict::Valid, findings: Vec::new(), counts: BTreeMap::new() }
    }

    pub fn count(&mut self, what: &str, number: usize) {
        *self.counts.entry(what.to_owned()).or_default() += number as u64;
    }

    /// `places`: of the operations in the history, from 0.
    pub fn object(&mut self, rule: &str, message: String, places: &[usize]) {
        self.add(Verdict::Invalid, rule, message, places);
    }

    pub fn doubt(&mut self, rule: &str, message: String) {
        self.add(Verdict::Unknown, rule, message, &[]);
    }

    fn add(&mut self, verdict: Verdict, rule: &str, message: String, places: &[usize]) {
        self.verdict = self.verdict.max(verdict);
        if self.findings.len() < FINDINGS_MAX {
            let lines = places.iter().map(|place| place + 1).collect();
            self.findings.push(Finding { rule: rule.to_owned(), message, lines });
        }
    }

    pub fn has(&self, rule: &str) -> bool {
        self.findings.iter().any(|finding| finding.rule == rule)
    }
}

/// An operation and its place in the history.
pub type Placed<'a> = (usize, &'a Operation);

/// Runs the checkers of all these workloads, side by side.
pub fn check_all(workloads: &[WorkloadName], history: &[Operation]) -> Vec<Report> {
    workloads.par_iter().flat_map_iter(|workload| check(*workload, history)).collect()
}

/// Runs every checker of the workload over its operations.
pub fn check(workload: WorkloadName, history: &[Operation]) -> Vec<Report> {
    let of = |names: &[WorkloadName]| -> Vec<Placed<'_>> {
        history.iter().enumerate().filter(|(_, operation)| names.contains(&operation.workload)).collect()
    };
    let own = of(&[workload]);
    match workload {
        WorkloadName::MetaRegister => vec![certificate::check(&own), blind::check(&own)],
        WorkloadName::TopicSet => vec![topic_set::check(&own)],
        WorkloadName::LeaderEpoch => vec![samples::check(&own)],
        WorkloadName::Log => vec![log::check(&own)],
        WorkloadName::OnceAdmin => vec![once::check(&own)],
        // Those who sample tell which image the nodes have.
        WorkloadName::WatchDelta => vec![feed::check(&of(&[workload, WorkloadName::LeaderEpoch]))],
        WorkloadName::ZombieFence => vec![zombie::check(&own)],
        WorkloadName::OneLeader => vec![leadership::one_leader(&own)],
        WorkloadName::IsrSafety => vec![leadership::isr_safety(&own)],
        WorkloadName::Reassign => vec![moves::check(&own)],
        WorkloadName::Recreate => vec![recreate::check(&own)],
        // Whether it was refused as it must be is a question of coverage.
        WorkloadName::Overload => Vec::new(),
    }
}

#[cfg(test)]
mod tests;
