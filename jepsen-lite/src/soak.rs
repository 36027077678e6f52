//! Many runs, one after the other, each with the next seed; and what they come to.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use serde::Serialize;

use crate::checker::Verdict;
use crate::coverage;
use crate::history::{Operation, Outcome};
use crate::run::{Done, Results};

/// What all runs come to.
#[derive(Debug, Default, Serialize)]
pub struct Sum {
    pub runs: u32,
    pub verdicts: BTreeMap<String, u32>,
    pub operations: usize,
    pub acknowledged: usize,
    pub refused: usize,
    pub open: usize,
    /// By rule: what was broken, and how often.
    pub findings: BTreeMap<String, usize>,
    pub faults: BTreeMap<String, usize>,
    /// By what was unavailable and what was to blame.
    pub longest_unavailability_ms: BTreeMap<String, u64>,
    /// How to do again what was not valid, and where it lies.
    pub not_valid: Vec<(String, PathBuf)>,
}

impl Sum {
    pub fn add(&mut self, done: &Done, folder: PathBuf) {
        let Results { verdict, reports, fired, again, .. } = &done.results;
        self.runs += 1;
        *self.verdicts.entry(format!("{verdict:?}").to_lowercase()).or_default() += 1;
        self.count(&done.history);
        for finding in reports.iter().flat_map(|report| &report.findings) {
            *self.findings.entry(finding.rule.clone()).or_default() += 1;
        }
        for fault in fired {
            *self.faults.entry(format!("{:?}", fault.nemesis)).or_default() += 1;
        }
        for ((service, nemesis), us) in coverage::unavailability(&done.history, fired) {
            let longest = self.longest_unavailability_ms.entry(format!("{service}, {nemesis:?}")).or_default();
            *longest = (*longest).max(us / 1_000);
        }
        if *verdict != Verdict::Valid {
            self.not_valid.push((again.clone(), folder));
        }
    }

    /// The harness could not carry a run out.
    pub fn fail(&mut self, why: String, folder: PathBuf) {
        self.runs += 1;
        *self.verdicts.entry("unknown".to_owned()).or_default() += 1;
        self.not_valid.push((why, folder));
    }

    fn count(&mut self, history: &[Operation]) {
        self.operations += history.len();
        for operation in history {
            match operation.outcome {
                Outcome::Ok => self.acknowledged += 1,
                Outcome::Fail => self.refused += 1,
                Outcome::Info => self.open += 1,
            }
        }
    }

    /// The worst of all, where nothing at all is unknown.
    pub fn verdict(&self) -> Verdict {
        let has = |verdict: &str| self.verdicts.contains_key(verdict);
        match () {
            () if has("invalid") => Verdict::Invalid,
            () if has("unknown") || self.runs == 0 => Verdict::Unknown,
            () => Verdict::Valid,
        }
    }
}

/// What a valid run has left behind is of no more use.
pub fn clean_up(verdict: Verdict, folder: &Path) -> std::io::Result<()> {
    if verdict == Verdict::Valid { fs::remove_dir_all(folder) } else { Ok(()) }
}
