//! Carries a schedule out: each fault is given its targets when it begins, and everything is healed at the end, whatever
//! happened in between.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use quorate_client::Freshness;
use serde::{Deserialize, Serialize};
use tokio::time::{Instant, sleep, sleep_until, timeout};

use crate::checker::Report;
use crate::db::Db;
use crate::disk::Mode;
use crate::disk::damage::Damage;
use crate::health;
use crate::nemesis::{Injuries, Injury, Nemesis, Situation, State, Whole};
use crate::recorder::Recorder;
use crate::schedule::{Event, Schedule};
use crate::workload::client;

/// Asking who is in office must not hold up the schedule for long.
const LOOK_TIMEOUT: Duration = Duration::from_millis(800);

/// How long a fault waits for the state that it needs.
const STATE_PATIENCE: Duration = Duration::from_secs(60);

/// A cluster that is whole again is asked for that long before it is broken again.
const HEALTHY: Duration = Duration::from_millis(800);

/// Under load every node syncs something within that.
const SYNC_SURELY: Duration = Duration::from_millis(900);

/// Within that a node has read its log.
const START_SURELY: Duration = Duration::from_secs(3);

/// Between two looks.
const LOOK_AGAIN: Duration = Duration::from_millis(20);

/// Until what a full disk has done is seen.
const AFTERMATH: Duration = Duration::from_millis(500);

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

pub struct Conductor<'a> {
    db: &'a mut Db,
    recorder: &'a Recorder,
    /// What the cluster did that no fault excuses.
    report: &'a mut Report,
    injuries: Injuries,
    /// By event.
    fired: BTreeMap<usize, Fired>,
    skipped: Vec<String>,
    /// How much has been waited for states: everything that follows is so much later.
    late: Duration,
}

impl<'a> Conductor<'a> {
    pub fn new(db: &'a mut Db, recorder: &'a Recorder, report: &'a mut Report) -> Self {
        let (injuries, fired) = (Injuries::default(), BTreeMap::new());
        Self { db, recorder, report, injuries, fired, skipped: Vec::new(), late: Duration::ZERO }
    }

    /// Carries out the whole schedule, heals, and tells what was done. A node that ends by itself ends the faults.
    pub async fn run(mut self, schedule: &Schedule) -> anyhow::Result<Conducted> {
        let carried_out = self.carry_out(schedule, Instant::now()).await;
        for event in self.injuries.lasting() {
            self.end(event).await?;
        }
        carried_out?;
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
            } else if let Some(why) = self.obstacle(event).await {
                self.skipped.push(format!("{:?} at {at_ms} ms: {why}", event.nemesis));
            } else {
                self.begin(number, event).await?;
            }
        }
        sleep_until(began + Duration::from_millis(schedule.faults_ms) + self.late).await;
        self.all_live().map(drop)
    }

    /// Why the event cannot begin, after waiting for the state that it needs.
    async fn obstacle(&mut self, event: &Event) -> Option<String> {
        if event.fault.needs_shim()
            && let Some(why) = &self.db.no_shim
        {
            return Some(why.clone());
        }
        let state = event.until?;
        let from = Instant::now();
        let reached = health::reach(self.db, state, STATE_PATIENCE).await;
        if state == State::Whole {
            sleep(HEALTHY).await;
        }
        self.late += from.elapsed();
        let why = reached.err()?;
        if state == State::Whole {
            self.report.object("becomes-whole", why.clone(), &[]);
        }
        Some(format!("the cluster is not {state:?} {why}"))
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
        let (from_us, targets) = (self.recorder.now_us(), targets(&injury));
        self.injuries.begin(number, injury.clone());
        self.apply()?;
        if let Injury::Dark(nodes) = &injury {
            for node in nodes {
                self.db.cut_power(*node)?;
            }
        }
        if let Injury::Damaged(nodes) = &injury {
            for node in nodes {
                self.try_damaged(*node).await?;
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
        let injury = self.injuries.end(number);
        if let Some(Injury::Disk(nodes, mode)) = &injury {
            self.mend_disks(nodes, *mode, lasted).await?;
        }
        self.apply()?;
        if let Some(fired) = self.fired.get_mut(&number) {
            fired.until_us = self.recorder.now_us();
        }
        Ok(())
    }

    /// Starts a node that is down with a byte of its log changed, which it must notice; then all is as before.
    async fn try_damaged(&mut self, node: i32) -> anyhow::Result<()> {
        let Some(damage) = Damage::inflict(&self.db.data(node).join("raft"))? else {
            self.skipped.push(format!("Corruption of node {node}: its log is too short yet"));
            return Ok(());
        };
        let from = Instant::now();
        self.db.start(node, self.recorder.last_offset())?;
        while !self.db.ended()?.iter().any(|(id, ..)| *id == node) {
            if from.elapsed() > START_SURELY {
                let message = format!("node {node} runs with a changed byte in {}", damage.file.display());
                self.report.object("refuses-damage", message, &[]);
                self.db.kill(node)?;
                break;
            }
            sleep(LOOK_AGAIN).await;
        }
        self.late += from.elapsed();
        Ok(damage.mend()?)
    }

    /// A disk whose fsync covered nothing shows it when the power is gone.
    async fn mend_disks(&mut self, nodes: &BTreeSet<i32>, mode: Mode, lasted: Duration) -> anyhow::Result<()> {
        if mode == Mode::SyncFails {
            for node in nodes.iter().filter(|node| lasted > SYNC_SURELY && !self.db.is_down(**node)) {
                let message = format!("node {node} went on for {lasted:?} after its disk had failed");
                self.report.object("stops-when-fsync-fails", message, &[]);
            }
        }
        if matches!(mode, Mode::SyncFails | Mode::SyncLies) {
            nodes.iter().try_for_each(|node| self.db.kill(*node))?;
            nodes.iter().try_for_each(|node| self.db.cut_power(*node).map(drop))?;
        }
        nodes.iter().try_for_each(|node| self.db.break_disk(*node, Mode::Sound))?;
        if mode == Mode::Full {
            // Whoever cannot go on without room has met that by now.
            sleep(AFTERMATH).await;
            self.db.ended()?;
        }
        Ok(())
    }

    /// Brings links and nodes into the state that the injuries say.
    fn apply(&mut self) -> anyhow::Result<()> {
        let injuries = &self.injuries;
        self.db.links.set(|direction| injuries.link(direction));
        for id in self.db.ids() {
            self.db.break_disk(id, self.injuries.disk(id))?;
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
        }
        Ok(())
    }

    /// A node with a broken disk may end. No other may.
    fn all_live(&mut self) -> anyhow::Result<bool> {
        for (id, status, log) in self.db.ended()? {
            if self.injuries.disk(id) == Mode::Sound {
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
        | Injury::Disk(nodes, _) => nodes.iter().map(i32::to_string).collect(),
        Injury::Links(links) => links.keys().map(|(from, to)| format!("{from}>{to}")).collect(),
    }
}
