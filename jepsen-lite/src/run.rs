//! One run: a cluster is started and asked; when it answers at a minimum rate faults begin; when they have ended it must
//! become whole again within bounded time; then everything is asked once more, and the history is judged.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, ensure};
use quorate_client::network::Network;
use serde::{Deserialize, Serialize};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep};

use crate::checker::{self, Report, Verdict};
use crate::conductor::{Conducted, Conductor, Fired};
use crate::coverage;
use crate::db::{Db, Layout};
use crate::dumps;
use crate::environment::Environment;
use crate::health;
use crate::history::{self, Operation};
use crate::nemesis::{Nemesis, State};
use crate::network::Layer;
use crate::recorder::Recorder;
use crate::report;
use crate::schedule::Schedule;
use crate::workload::{self, Context, WorkloadName};

/// Before faults begin, a workload has had this part of the answers that make a test of it.
const WARM_UP_PART: usize = 4;

/// Until the cluster answers, and after the faults until it is whole. Not to become whole is a failure.
const PATIENCE: Duration = Duration::from_secs(60);

pub const HISTORY: &str = "history.jsonl";
/// It lacks what was under way, so that what others saw of that would have no origin: for people, not for checkers.
const CUT_OFF: &str = "history-cut-off.jsonl";
const RESULTS: &str = "results.json";

/// The report on whether the cluster came back.
const LIVENESS: &str = "liveness";

/// Between two looks.
const LOOK_AGAIN: Duration = Duration::from_millis(100);

/// What a run is made of beside its schedule.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Setup {
    pub workloads: Vec<WorkloadName>,
    /// `KEY=VALUE` of every node's configuration.
    pub settings: Vec<String>,
    pub layer: Layer,
}

impl Default for Setup {
    fn default() -> Self {
        Self { workloads: WorkloadName::ALL.to_vec(), settings: Vec::new(), layer: Layer::default() }
    }
}

#[derive(Debug, Clone)]
pub struct Plan {
    /// Where `quorate-node` is.
    pub binaries: PathBuf,
    /// Everything of the run goes there.
    pub folder: PathBuf,
    pub setup: Setup,
    pub schedule: Schedule,
}

impl Plan {
    /// Whether the cluster is asked more than it can do, now and then.
    fn is_overloaded(&self) -> bool {
        self.schedule.events.iter().any(|event| event.nemesis == Nemesis::Overload)
    }

    fn layout(&self) -> Layout {
        Layout {
            binaries: self.binaries.clone(),
            folder: self.folder.clone(),
            nodes: self.schedule.nodes,
            settings: self.setup.settings.clone(),
            layer: self.setup.layer,
            sets_clocks: self.schedule.events.iter().any(|event| event.fault.needs_clock()),
            limits_memory: self.schedule.events.iter().any(|event| event.fault.needs_limits()),
            silent_sockets: self.schedule.events.iter().map(|event| event.fault.sockets()).max().unwrap_or(0),
        }
    }
}

/// `results.json`.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Results {
    pub verdict: Verdict,
    pub reports: Vec<Report>,
    pub fired: Vec<Fired>,
    /// What could not be done here, and why.
    pub skipped: Vec<String>,
    pub operations: usize,
    /// How to do it again.
    pub again: String,
}

pub struct Done {
    pub results: Results,
    pub history: Vec<Operation>,
}

/// Carries the plan out and leaves history, schedule and results in its folder. An error is a failure of the harness, not
/// of the cluster, and so is what `stopped` resolves to, which ends it early.
pub async fn run(plan: &Plan, again: String, stopped: impl Future<Output = anyhow::Error>) -> anyhow::Result<Done> {
    let Plan { binaries, folder, setup, schedule } = plan;
    fs::create_dir_all(folder).with_context(|| format!("cannot make {}", folder.display()))?;
    fs::write(folder.join("schedule.json"), serde_json::to_string_pretty(schedule)?)?;
    let node = binaries.join("quorate-node");
    Environment::of(schedule, setup).with_versions(&[("quorate-node", &node)]).write(folder)?;
    report::write_script(&folder.join("repro.sh"), &again)?;
    let recorder = Arc::new(Recorder::new());
    let mut liveness = Report::new(LIVENESS);
    let mut db = Db::prepare(plan.layout())?;
    let outcome = tokio::select! {
        biased;
        why = stopped => Err(why),
        outcome = carry_out(plan, &mut db, &recorder, &mut liveness) => outcome,
    };
    let history = recorder.take();
    let name = if outcome.is_ok() { HISTORY } else { CUT_OFF };
    history::write(&folder.join(name), &history)?;
    let conducted = outcome?;
    let logs = dumps::take(&mut db)?;
    let results = judge(&setup.workloads, &history, conducted, vec![liveness, logs], again);
    fs::write(folder.join(RESULTS), serde_json::to_string_pretty(&results)?)?;
    report::write(&folder.join("timeline.html"), &results, &history)?;
    Ok(Done { results, history })
}

/// What the checkers say of a history.
pub fn judge(
    workloads: &[WorkloadName],
    history: &[Operation],
    conducted: Conducted,
    others: Vec<Report>,
    again: String,
) -> Results {
    let Conducted { fired, skipped } = conducted;
    let mut reports = checker::check_all(workloads, history);
    reports.extend(others);
    reports.push(coverage::check(workloads, history, &fired));
    let verdict = reports.iter().map(|report| report.verdict).max().unwrap_or(Verdict::Unknown);
    Results { verdict, reports, fired, skipped, operations: history.len(), again }
}

/// Judges a recorded run once more. What its history has no trace of, such as the nodes' own logs, is taken as it was told.
pub fn judge_again(folder: &Path) -> anyhow::Result<Results> {
    let file = folder.join(RESULTS);
    let text = fs::read(&file).with_context(|| format!("a run that was cut off has no {}", file.display()))?;
    let told: Results = serde_json::from_slice(&text).with_context(|| file.display().to_string())?;
    let environment =
        Environment::read(folder)?.with_context(|| format!("{}: a run without env.json", folder.display()))?;
    let file = folder.join(HISTORY);
    let history = history::read(&file).with_context(|| file.display().to_string())?;
    let (has, had) = (history.len(), told.operations);
    ensure!(has == had, "{}: {has} operations, of the {had} that the run had", file.display());
    let conducted = Conducted { fired: told.fired, skipped: told.skipped };
    let is_seen_only_then =
        |report: &Report| report.checker == LIVENESS || report.checker == checker::metadata_logs::NAME;
    let others = told.reports.into_iter().filter(is_seen_only_then).collect();
    Ok(judge(&environment.setup.workloads, &history, conducted, others, told.again))
}

async fn carry_out(
    plan: &Plan,
    db: &mut Db,
    recorder: &Arc<Recorder>,
    liveness: &mut Report,
) -> anyhow::Result<Conducted> {
    for id in db.ids() {
        db.start(id, -1)?;
    }
    if let Err(why) = whole(db).await {
        anyhow::bail!("the cluster does not come up: {why}");
    }
    let (stop, tempo) = (watch::Sender::new(false), watch::Sender::default());
    let nodes = db.ids().into_iter().map(|id| (id, db.api(id).to_owned())).collect();
    let (seed, stopped, network) = (plan.schedule.seed, stop.subscribe(), Network::default());
    let tempo_now = tempo.subscribe();
    let context = Context { recorder: recorder.clone(), nodes, seed, stop: stopped, tempo: tempo_now, network };
    let mut tasks = JoinSet::new();
    let overload = plan.is_overloaded().then_some(WorkloadName::Overload);
    for workload in plan.setup.workloads.iter().copied().chain(overload) {
        workload::start(workload, &context, &mut tasks).await?;
    }
    if let Some(cold) = answered(plan, recorder, |needed| needed / WARM_UP_PART).await {
        anyhow::bail!("{cold:?}: too few answers in {PATIENCE:?} of health");
    }
    let conducted = Conductor::new(db, recorder, &tempo, liveness).run(&plan.schedule).await?;
    if let Err(why) = whole(db).await {
        liveness.object("becomes-whole", format!("not whole when all faults were over: {why}"), &[]);
        return Ok(conducted);
    }
    // Slow ones are given time. Whether enough was asked while faults lasted is another question: see `coverage`.
    answered(plan, recorder, |needed| needed).await;
    stop.send_replace(true);
    while let Some(ended) = tasks.join_next().await {
        ended.context("a client panicked")?;
    }
    if let Err(why) = whole(db).await {
        liveness.object("becomes-whole", why, &[]);
        return Ok(conducted);
    }
    for workload in &plan.setup.workloads {
        workload::finish(*workload, &context).await?;
    }
    Ok(conducted)
}

async fn whole(db: &mut Db) -> Result<(), String> {
    health::reach(db, State::Whole, PATIENCE).await
}

/// Waits until every workload has the part of its answers that `of` takes. The first that does not get there.
async fn answered(plan: &Plan, recorder: &Recorder, of: impl Fn(usize) -> usize) -> Option<WorkloadName> {
    let deadline = Instant::now() + PATIENCE;
    let is_short = |workload: &&WorkloadName| recorder.answered(**workload) < of(workload.answers_min());
    while let Some(short) = plan.setup.workloads.iter().find(is_short) {
        if Instant::now() > deadline {
            return Some(*short);
        }
        sleep(LOOK_AGAIN).await;
    }
    None
}

/// Where the binaries are: beside this one.
pub fn binaries() -> anyhow::Result<PathBuf> {
    let this = std::env::current_exe()?;
    Ok(this.parent().context("a binary lies in a folder")?.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::synthetic;

    const SHAPE: synthetic::Shape =
        synthetic::Shape { operations: 2_000, processes: 5, operations_per_key: 100, lost_percent: 0 };

    /// Leaves behind what a run would have.
    fn record(folder: &Path, history: &[Operation], others: Vec<Report>) -> Results {
        let setup = Setup { workloads: vec![WorkloadName::MetaRegister], ..Setup::default() };
        Environment::of(&Schedule::draw(3, 7, &[Nemesis::Kill], 1_000), &setup).write(folder).unwrap();
        let until_us = history.last().unwrap().invoked_us + 1;
        let fired = Fired { nemesis: Nemesis::Kill, from_us: 0, until_us, targets: vec!["1".to_owned()] };
        let conducted = Conducted { fired: vec![fired], skipped: Vec::new() };
        let results = judge(&setup.workloads, history, conducted, others, "again".to_owned());
        history::write(&folder.join(HISTORY), history).unwrap();
        fs::write(folder.join(RESULTS), serde_json::to_string(&results).unwrap()).unwrap();
        results
    }

    #[test]
    fn a_recorded_run_is_judged_as_it_was_and_not_by_a_part_of_it() {
        let folder = tempfile::tempdir().unwrap();
        let mut history = synthetic::register(SHAPE, 1);
        let mut logs = Report::new(checker::metadata_logs::NAME);
        logs.object("same-content", "only the nodes' own logs show this".to_owned(), &[]);
        let told = record(folder.path(), &history, vec![Report::new(LIVENESS), logs]);
        let again = judge_again(folder.path()).unwrap();
        assert_eq!((again.verdict, &again.fired), (Verdict::Invalid, &told.fired));
        assert_eq!(again.reports, told.reports);

        history.pop();
        history::write(&folder.path().join(HISTORY), &history).unwrap();
        let error = judge_again(folder.path()).unwrap_err().to_string();
        assert!(error.contains("1999 operations, of the 2000"), "{error}");
    }
}
