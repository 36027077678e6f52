//! Whether the fault runs find bugs: each of twenty-seven, made on purpose, must turn a run invalid that is valid without it.
//!
//! The binaries must have been built with the feature `mutants`; `scripts/mutants` does that.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, ensure};
use tokio::time::Instant;

use crate::run::Results;

/// A bug, and the run that must find it.
#[derive(Debug, Clone, Copy)]
pub struct Trial {
    /// `MUTANT` in the environment of everything that runs.
    pub mutant: &'static str,
    pub what: &'static str,
    pub nemeses: &'static str,
    pub workloads: &'static str,
    pub settings: &'static [&'static str],
    pub seconds: u64,
}

const fn trial(mutant: &'static str, what: &'static str, nemeses: &'static str, workloads: &'static str) -> Trial {
    Trial { mutant, what, nemeses, workloads, settings: &[], seconds: 15 }
}

impl Trial {
    const fn with(self, settings: &'static [&'static str]) -> Self {
        Self { settings, ..self }
    }

    const fn lasting(self, seconds: u64) -> Self {
        Self { seconds, ..self }
    }
}

const FLUSH: &[&str] = &["log_flush=always"];

/// So that nodes begin with a snapshot again and again.
const SNAPSHOTS: &[&str] = &["snapshot_log_bytes=16384", "log_entries_kept=10"];

pub const TRIALS: [Trial; 27] = [
    trial("M1", "answered when proposed, not when committed", "partition,kill", "meta-register,topic-set").lasting(20),
    trial("M2", "commits are not synced", "power-cut-all", "topic-set,log").with(FLUSH).lasting(3),
    trial("M3", "a vote is given, and not written down", "restart-storm,kill,partition", "meta-register,leader-epoch")
        .lasting(40),
    trial("M4", "what a node has is served as the latest", "partition,pause", "meta-register"),
    trial("M5", "the lease of reads outlasts an election", "partition,pause", "meta-register").lasting(30),
    trial("M6", "the broker epoch is not checked", "kill,broker-zombie", "zombie-fence,isr-safety,topic-set,log"),
    trial("M7", "the partition epoch is not checked", "kill", "isr-safety,topic-set,log"),
    trial("M8", "a leader is elected from outside the ISR", "kill,partition", "watch-delta,log"),
    trial("M9", "the high watermark does not wait for the ISR", "kill,power-cut", "log"),
    trial(
        "M10",
        "a new leader has the epoch of the last one",
        "kill,partition",
        "leader-epoch,one-leader,watch-delta,topic-set",
    ),
    trial("M11", "a follower truncates to its high watermark", "kill,slow-link,restart-storm", "log").lasting(40),
    trial("M12", "a snapshot lacks the answered requests", "kill,restart-storm", "once-admin,topic-set")
        .with(SNAPSHOTS),
    trial("M13", "a resumed feed leaves a batch out", "kill,reset", "watch-delta,leader-epoch,topic-set"),
    trial("M14", "a resumed feed tells a batch twice", "kill,reset", "watch-delta,leader-epoch,topic-set"),
    trial("M15", "a resumed feed swaps two batches", "kill,reset", "watch-delta,leader-epoch,topic-set"),
    trial("M16", "a snapshot lacks a partition", "kill,partition", "topic-set,log,leader-epoch").with(SNAPSHOTS),
    trial("M17", "the quorum is one too small", "partition,kill", "meta-register,topic-set").lasting(30),
    trial("M18", "a client that asks again does not say so", "kill,reset,partition", "meta-register,topic-set"),
    trial("M19", "damaged bytes are taken as they are", "corruption", "topic-set,log"),
    trial("M20", "a partition without a leader stays so", "kill", "log,topic-set"),
    trial("M21", "a controller that is held leads on", "kill", "meta-register,topic-set").lasting(20),
    trial("M22", "a log directory of another cluster is taken", "foreign-disk", "topic-set,log").lasting(20),
    trial("M23", "a line of the log that is not written ends the node", "stderr-gone", "topic-set"),
    trial("M24", "silent connections are all kept", "descriptors", "topic-set"),
    trial("M25", "a disk that does not answer is waited for", "disk-hangs", "log,topic-set").lasting(40),
    trial("M26", "a log directory that was full stays offline", "logs-full", "log,topic-set").lasting(20),
    trial("M27", "a voter that lost its log starts with an empty one", "partial-wipe", "topic-set,log"),
];

/// What became of a mutant.
#[derive(Debug, Clone)]
pub struct Fate {
    pub trial: Trial,
    /// Without it, the same run was valid.
    pub control: bool,
    /// How many seeds it took, and how long. None: it survived.
    pub killed: Option<(u64, Duration)>,
    /// The rules that it broke.
    pub rules: Vec<String>,
}

/// Runs the trial with one seed after the other until it turns invalid, or the time is up.
pub fn hunt(trial: Trial, budget: Duration, folder: &Path) -> anyhow::Result<Fate> {
    ensure!(!folder.exists(), "{} exists already: name another --out", folder.display());
    let control = one(trial, None, 1, &folder.join("control"))?.0 == Some(0);
    let began = Instant::now();
    let mut seed = 0;
    while began.elapsed() < budget {
        seed += 1;
        let (status, rules) = one(trial, Some(trial.mutant), seed, &folder.join(seed.to_string()))?;
        if status == Some(1) {
            return Ok(Fate { trial, control, killed: Some((seed, began.elapsed())), rules });
        }
    }
    Ok(Fate { trial, control, killed: None, rules: Vec::new() })
}

/// Exit status, and the rules that were broken.
fn one(trial: Trial, mutant: Option<&str>, seed: u64, out: &Path) -> anyhow::Result<(Option<i32>, Vec<String>)> {
    let mut command = Command::new(std::env::current_exe()?);
    command.args(["run", "--nemesis", trial.nemeses, "--workload", trial.workloads]);
    command.args(["--seed", &seed.to_string(), "--time", &format!("{}s", trial.seconds)]).arg("--out").arg(out);
    for setting in trial.settings {
        command.args(["--set", setting]);
    }
    command.env_remove("MUTANT").envs(mutant.map(|mutant| ("MUTANT", mutant)));
    let status = command.stdout(Stdio::null()).stderr(Stdio::null()).status().context("cannot start a run")?;
    ensure!(status.code() != Some(3), "{}: the trial is wrongly written", trial.mutant);
    let rules = read(&out.join("results.json")).map(|results| rules(&results)).unwrap_or_default();
    // What stays is what nobody expects: a control that is not valid, and what could not be judged.
    if status.code() == Some(0) || status.code() == Some(1) && mutant.is_some() {
        std::fs::remove_dir_all(out)?;
    }
    Ok((status.code(), rules))
}

fn read(path: &PathBuf) -> anyhow::Result<Results> {
    Ok(serde_json::from_str(&std::fs::read_to_string(path)?)?)
}

fn rules(results: &Results) -> Vec<String> {
    let findings = results.reports.iter().flat_map(|report| &report.findings);
    let mut rules: Vec<String> = findings.map(|finding| finding.rule.clone()).collect();
    rules.sort_unstable();
    rules.dedup();
    rules
}

/// As Markdown.
pub fn table(fates: &[Fate]) -> String {
    let mut lines = vec![
        "| mutant | what is broken | nemeses | workloads | seeds | seconds | found by |".to_owned(),
        "|---|---|---|---|---|---|---|".to_owned(),
    ];
    for Fate { trial, control, killed, rules } in fates {
        let (seeds, seconds) = match killed {
            Some((seeds, time)) => (seeds.to_string(), time.as_secs().to_string()),
            None => ("survived".to_owned(), "-".to_owned()),
        };
        let rules = if *control { rules.join(", ") } else { "the control run was not valid".to_owned() };
        let Trial { mutant, what, nemeses, workloads, .. } = trial;
        lines.push(format!("| {mutant} | {what} | {nemeses} | {workloads} | {seeds} | {seconds} | {rules} |"));
    }
    lines.join("\n")
}

#[cfg(test)]
mod tests {
    use quorate_metadata::mutant::Mutant;

    use super::*;

    #[test]
    fn every_mutant_has_its_trial() {
        let names: Vec<String> = (1..=Mutant::AcceptLostState as u8).map(|number| format!("M{number}")).collect();
        assert!(TRIALS.iter().map(|trial| trial.mutant).eq(names.iter().map(String::as_str)));
    }
}
