//! Carries a schedule out: each fault is given its targets when it begins, and everything is healed at the end, whatever
//! happened in between.

mod hang;
mod lasting;
mod refusals;
mod trials;

use std::collections::BTreeMap;
use std::time::Duration;

use quorate_client::Freshness;
use serde::{Deserialize, Serialize};
use tokio::sync::watch;
use tokio::time::{Instant, sleep, sleep_until, timeout};

use crate::checker::Report;
use crate::db::Db;
use crate::disk::Mode;
use crate::generator::Tempo;
use crate::health;
use crate::nemesis::{Injuries, Injury, Nemesis, Situation, State, Whole};
use crate::recorder::Recorder;
use crate::schedule::{Event, Schedule};
use crate::stranger::Stranger;
use crate::workload::client;

/// Asking who is in office must not hold up the schedule for long.
const LOOK_TIMEOUT: Duration = Duration::from_millis(800);

/// How long a fault waits for the state that it needs.
const STATE_PATIENCE: Duration = Duration::from_secs(60);

/// A cluster that is whole again is asked for that long before it is broken again.
const HEALTHY: Duration = Duration::from_millis(800);

/// A fault as it was, with times in microseconds since the run began.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Fired {
    pub nemesis: Nemesis,
    pub from_us: u64,
    pub until_us: u64,
    /// What was hit: nodes, or links from one to another.
    pub targets: Vec<String>,
}

/// What came of a schedule.
#[derive(Debug, Default)]
pub struct Conducted {
    pub fired: Vec<Fired>,
    /// What could not be done here, and why.
    pub skipped: Vec<String>,
}

/// Why a fault cannot begin.
enum Obstacle {
    /// This machine cannot do it, or the cluster is not in the state that it is for.
    Cannot(String),
    /// What was done before has broken the cluster for good.
    NotWhole(String),
}

pub struct Conductor<'a> {
    db: &'a mut Db,
    recorder: &'a Recorder,
    tempo: &'a watch::Sender<Tempo>,
    /// What the cluster did that no fault excuses.
    report: &'a mut Report,
    injuries: Injuries,
    /// By event.
    fired: BTreeMap<usize, Fired>,
    skipped: Vec<String>,
    /// How much has been waited for states: everything that follows is so much later.
    late: Duration,
    /// By node: another cluster, whose disk is put in the place of that of the node.
    strangers: BTreeMap<i32, Stranger>,
}

impl<'a> Conductor<'a> {
    pub fn new(
        db: &'a mut Db,
        recorder: &'a Recorder,
        tempo: &'a watch::Sender<Tempo>,
        report: &'a mut Report,
    ) -> Self {
        Self {
            db,
            recorder,
            tempo,
            report,
            injuries: Injuries::default(),
            fired: BTreeMap::new(),
            skipped: Vec::new(),
            late: Duration::ZERO,
            strangers: BTreeMap::new(),
        }
    }

    /// Carries out the whole schedule, heals, and tells what was done. A node that ends by itself ends the faults, and so
    /// does a cluster that does not become whole again.
    pub async fn run(mut self, schedule: &Schedule) -> anyhow::Result<Conducted> {
        let carried_out = self.carry_out(schedule, Instant::now()).await;
        for event in self.injuries.lasting() {
            self.end(event).await?;
        }
        carried_out?;
        for id in self.db.ids() {
            object_to_kills(self.report, id, self.db.kills_for_memory(id)?);
        }
        Ok(Conducted { fired: self.fired.into_values().collect(), skipped: self.skipped })
    }

    async fn carry_out(&mut self, schedule: &Schedule, began: Instant) -> anyhow::Result<()> {
        for (at_ms, number, begins) in turns(schedule) {
            sleep_until(began + Duration::from_millis(at_ms) + self.late).await;
            if !self.all_live()? {
                return Ok(());
            }
            let event = &schedule.events[number];
            if !begins {
                self.end(number).await?;
                continue;
            }
            match self.obstacle(event).await {
                None => self.begin(number, event).await?,
                Some(Obstacle::Cannot(why)) => self.skip(event, &why),
                Some(Obstacle::NotWhole(why)) => {
                    self.skip(event, &format!("the cluster is not whole {why}"));
                    self.report.object("becomes-whole", why, &[]);
                    // Whatever is done to it now shows nothing more.
                    return Ok(());
                }
            }
        }
        sleep_until(began + Duration::from_millis(schedule.faults_ms) + self.late).await;
        self.all_live().map(drop)
    }

    /// Why the event cannot begin, after waiting for the state that it needs.
    async fn obstacle(&mut self, event: &Event) -> Option<Obstacle> {
        if let Some(why) = self.db.cannot(&event.fault) {
            return Some(Obstacle::Cannot(why));
        }
        let state = event.until?;
        let from = Instant::now();
        let reached = health::reach(self.db, state, STATE_PATIENCE).await;
        if state == State::Whole {
            sleep(HEALTHY).await;
        }
        self.late += from.elapsed();
        let why = reached.err()?;
        Some(match state {
            State::Whole => Obstacle::NotWhole(why),
            other => Obstacle::Cannot(format!("the cluster is not {other:?} {why}")),
        })
    }

    fn skip(&mut self, event: &Event, why: &str) {
        self.skipped.push(format!("{:?} at {} ms: {why}", event.nemesis, event.at_ms));
    }

    async fn begin(&mut self, number: usize, event: &Event) -> anyhow::Result<()> {
        let injury = event.fault.resolve(&self.situation().await);
        if let Injury::Stopped(nodes) = &injury {
            for node in nodes {
                if self.injuries.node(*node) == Whole::Running {
                    let status = self.db.stop(*node).await?;
                    anyhow::ensure!(status.success(), "node {node} did not end well after SIGTERM: {status}");
                }
            }
        }
        let (from_us, mut targets) = (self.recorder.now_us(), targets(&injury));
        self.injuries.begin(number, injury.clone());
        self.apply()?;
        if let Injury::Dark(nodes) = &injury {
            for node in nodes {
                self.db.cut_power(*node)?;
            }
        }
        if let Injury::Damaged(nodes) | Injury::Torn(nodes) | Injury::Wiped(nodes) | Injury::Foreign(nodes) = &injury {
            targets.clear();
            for node in nodes {
                targets.extend(self.try_out(*node, &event.fault).await?);
            }
        }
        let fired = Fired { nemesis: event.nemesis, from_us, until_us: u64::MAX, targets };
        self.fired.insert(number, fired);
        Ok(())
    }

    async fn end(&mut self, number: usize) -> anyhow::Result<()> {
        // It was skipped.
        let Some(fired) = self.fired.get(&number) else { return Ok(()) };
        let lasted = Duration::from_micros(self.recorder.now_us() - fired.from_us);
        match self.injuries.end(number) {
            Some(Injury::Disk(nodes, mode)) => self.mend_disks(&nodes, mode, lasted).await?,
            Some(Injury::Stderr(nodes, _)) => self.look_at_unlogged(&nodes).await,
            Some(Injury::Crowded(nodes, sockets)) => self.look_at_crowded(&nodes, sockets).await,
            _ => {}
        }
        self.apply()?;
        if let Some(fired) = self.fired.get_mut(&number) {
            fired.until_us = self.recorder.now_us();
        }
        Ok(())
    }

    /// Brings links and nodes into the state that the injuries say.
    fn apply(&mut self) -> anyhow::Result<()> {
        let injuries = &self.injuries;
        self.db.network.set(|direction| injuries.link(direction))?;
        self.tempo.send_replace(injuries.tempo());
        for id in self.db.ids() {
            self.db.break_disk(id, self.injuries.disk(id))?;
            self.db.set_clock(id, self.injuries.clock(id))?;
            self.db.set_stderr(id, self.injuries.stderr(id))?;
            match self.injuries.node(id) {
                Whole::Running => {
                    self.db.resume(id)?;
                    self.db.start(id, self.recorder.last_offset())?;
                }
                Whole::Paused => {
                    self.db.start(id, self.recorder.last_offset())?;
                    self.db.pause(id)?;
                }
                Whole::Down => self.db.kill(id)?,
            }
            self.db.limit_memory(id, self.injuries.memory(id))?;
            self.db.crowd(id, self.injuries.sockets(id));
        }
        Ok(())
    }

    /// A node with a broken disk may end. No other may, nor one that has no room for records alone.
    fn all_live(&mut self) -> anyhow::Result<bool> {
        for (id, status, log) in self.db.ended()? {
            if matches!(self.injuries.disk(id), Mode::Sound | Mode::LogsFull) {
                self.report.object("node-ended", format!("node {id} has ended by itself ({status}):\n{log}"), &[]);
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// As far as anybody can tell within a moment.
    async fn situation(&self) -> Situation {
        let nodes = self.db.ids();
        let up: Vec<String> = self.db.up().iter().map(|id| self.db.api(*id).to_owned()).collect();
        if up.is_empty() {
            return Situation { nodes, ..Situation::default() };
        }
        let client = client(&up, LOOK_TIMEOUT);
        let look = async {
            let quorum = client.describe_quorum(Freshness::Linearizable).await.ok();
            let partitions = client.list_partitions(Default::default(), Freshness::Stale).await.ok();
            (quorum, partitions)
        };
        let (quorum, partitions) = timeout(2 * LOOK_TIMEOUT, look).await.unwrap_or_default();
        let leaders =
            partitions.into_iter().flat_map(|reply| reply.partitions).filter_map(|partition| partition.leader);
        let controller = quorum.and_then(|quorum| quorum.leader_id);
        Situation { nodes, controller, partition_leaders: leaders.collect() }
    }
}

/// A node bounds what it holds: one that is killed for its memory does not.
fn object_to_kills(report: &mut Report, node: i32, kills: u64) {
    if kills > 0 {
        report.object("killed-for-memory", format!("node {node} had no memory left, {kills} times"), &[]);
    }
}

/// When each event begins and ends, in order; what ends does so before anything begins.
pub fn turns(schedule: &Schedule) -> Vec<(u64, usize, bool)> {
    let begins = schedule.events.iter().enumerate().map(|(number, event)| (event.at_ms, true, number));
    let ends = schedule.events.iter().enumerate().map(|(number, event)| (event.at_ms + event.for_ms, false, number));
    let mut turns: Vec<(u64, bool, usize)> = begins.chain(ends).collect();
    turns.sort_unstable();
    turns.into_iter().map(|(at_ms, begins, number)| (at_ms, number, begins)).collect()
}

fn targets(injury: &Injury) -> Vec<String> {
    match injury {
        Injury::Killed(nodes)
        | Injury::Stopped(nodes)
        | Injury::Paused(nodes)
        | Injury::Dark(nodes)
        | Injury::Damaged(nodes)
        | Injury::Torn(nodes)
        | Injury::Wiped(nodes)
        | Injury::Foreign(nodes)
        | Injury::Disk(nodes, _)
        | Injury::Squeezed(nodes, _) => nodes.iter().map(i32::to_string).collect(),
        Injury::Stderr(nodes, stderr) => nodes.iter().map(|node| format!("{node} {stderr:?}")).collect(),
        Injury::Crowded(nodes, sockets) => nodes.iter().map(|node| format!("{node} {sockets} sockets")).collect(),
        Injury::Clock(nodes, offset_ms) => nodes.iter().map(|node| format!("{node} {offset_ms:+} ms")).collect(),
        Injury::Asked(tempo) => vec![format!("clients {tempo:?}")],
        Injury::Links(links) => links.keys().map(|(from, to)| format!("{from}>{to}")).collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::checker::Verdict;

    #[test]
    fn a_node_that_was_killed_for_its_memory_makes_a_run_invalid() {
        let mut report = Report::new("liveness");
        object_to_kills(&mut report, 1, 0);
        assert_eq!(report.verdict, Verdict::Valid);
        object_to_kills(&mut report, 2, 1);
        assert!(report.verdict == Verdict::Invalid && report.has("killed-for-memory"));
    }
}
