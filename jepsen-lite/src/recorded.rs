//! Runs by a schedule that was written down: the same once more, or with less and less of it.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::Context;
use jepsen_lite::checker::Verdict;
use jepsen_lite::environment::Environment;
use jepsen_lite::run::Setup;
use jepsen_lite::schedule::Schedule;
use jepsen_lite::shrink::{Odds, shrink};
use tokio::time::Instant;

use super::stop::Stopped;
use super::{ClusterArgs, ShrinkArgs, run_once, show};

pub fn replay(recorded: &Path, times: u32, cluster: &ClusterArgs) -> anyhow::Result<Verdict> {
    let (file, schedule, setup) = read(recorded, cluster)?;
    let (mut worst, mut hits) = (Verdict::Valid, 0);
    for time in 1..=times {
        let folder = cluster.out.join(time.to_string());
        let done = run_once(setup.clone(), &folder, schedule.clone(), again(&file, &setup))?;
        show::show(&done.results, &folder);
        let verdict = done.results.verdict;
        hits += u32::from(verdict == Verdict::Invalid);
        worst = worst.max(verdict);
    }
    println!("invalid in {hits} of {times} runs");
    Ok(worst)
}

/// Invalid where the schedule fails, and then with the smallest one that does in the folder.
pub fn reduce(arguments: &ShrinkArgs) -> anyhow::Result<Verdict> {
    let out = &arguments.cluster.out;
    let (_, schedule, setup) = read(&arguments.recorded, &arguments.cluster)?;
    anyhow::ensure!(!out.exists(), "{} exists already: name another --out", out.display());
    fs::create_dir_all(out)?;
    let search = Search { arguments, setup: setup.clone(), until: Instant::now() + arguments.budget };
    let mut tries = 0;
    let mut broken = None;
    let mut fails = |candidate: &Schedule| {
        tries += 1;
        // A search that was stopped, or that has lost its folder, ends with what it has.
        broken.is_none()
            && search.fails(candidate, tries).unwrap_or_else(|error| {
                broken = Some(error);
                false
            })
    };
    if !fails(&schedule) {
        broken.map_or(Ok(()), Err)?;
        println!("it did not fail in {} of {} runs: there is nothing to shrink", arguments.hits, arguments.runs);
        return Ok(Verdict::Unknown);
    }
    let smallest = shrink(schedule, fails);
    let file = out.join("schedule.json");
    fs::write(&file, serde_json::to_string_pretty(&smallest)?)?;
    Environment::of(&smallest, &setup).write(out)?;
    if let Some(error) = broken {
        println!("the search ended early: {error:#}");
    }
    println!("{} events on {} nodes are left, after {tries} schedules", smallest.events.len(), smallest.nodes);
    println!("again: {}", again(&file, &setup));
    Ok(Verdict::Invalid)
}

struct Search<'a> {
    arguments: &'a ShrinkArgs,
    setup: Setup,
    until: Instant,
}

impl Search<'_> {
    fn fails(&self, candidate: &Schedule, number: u32) -> anyhow::Result<bool> {
        if Instant::now() > self.until {
            return Ok(false);
        }
        let mut broken = Ok(());
        let (mut run, mut invalid) = (0, 0);
        let odds = Odds { hits: self.arguments.hits, runs: self.arguments.runs };
        let fails = odds.are_met(|| {
            run += 1;
            let is_invalid = broken.is_ok()
                && self.is_invalid(candidate, number, run).unwrap_or_else(|error| {
                    broken = Err(error);
                    false
                });
            invalid += u32::from(is_invalid);
            is_invalid
        });
        let events = candidate.events.len();
        println!("{number}: {events} events on {} nodes: invalid in {invalid} of {run} runs", candidate.nodes);
        broken.map(|()| fails)
    }

    /// What is left behind by a run that is not invalid is of no use, nor is the error of a run that was not carried out.
    fn is_invalid(&self, candidate: &Schedule, number: u32, run: u32) -> anyhow::Result<bool> {
        let folder = self.arguments.cluster.out.join(format!("{number}-{run}"));
        let again = again(&folder, &self.setup);
        let done = match run_once(self.setup.clone(), &folder, candidate.clone(), again) {
            Err(error) if error.is::<Stopped>() => return Err(error),
            done => done,
        };
        let is_invalid = done.is_ok_and(|done| done.results.verdict == Verdict::Invalid);
        if !is_invalid && folder.exists() {
            fs::remove_dir_all(&folder)?;
        }
        Ok(is_invalid)
    }
}

/// The schedule, its file, and what it was carried out on: as it was, unless the arguments say otherwise.
fn read(recorded: &Path, cluster: &ClusterArgs) -> anyhow::Result<(PathBuf, Schedule, Setup)> {
    let file = if recorded.is_dir() { recorded.join("schedule.json") } else { recorded.to_owned() };
    let text = fs::read_to_string(&file).with_context(|| format!("cannot read {}", file.display()))?;
    let schedule = serde_json::from_str(&text).with_context(|| format!("{} is no schedule", file.display()))?;
    let folder = file.parent().context("a file lies in a folder")?;
    let setup = Environment::read(folder)?.map(|environment| environment.setup).unwrap_or_default();
    Ok((file, schedule, cluster.change(setup)))
}

fn again(recorded: &Path, setup: &Setup) -> String {
    format!("jepsen-lite replay {}{}", recorded.display(), show::flags(setup))
}
