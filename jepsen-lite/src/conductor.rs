//! Carries a schedule out: each fault is given its targets when it begins, and everything is healed at the end, whatever
//! happened in between.

use std::collections::BTreeMap;
use std::time::Duration;

use quorate_client::Freshness;
use serde::{Deserialize, Serialize};
use tokio::time::{Instant, sleep_until, timeout};

use crate::db::Db;
use crate::nemesis::{Injuries, Injury, Nemesis, Situation, Whole};
use crate::recorder::Recorder;
use crate::schedule::{Event, Schedule};
use crate::workload::client;

/// Asking who is in office must not hold up the schedule for long.
const LOOK_TIMEOUT: Duration = Duration::from_millis(800);

/// A fault as it was, with times in microseconds since the run began.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Fired {
    pub nemesis: Nemesis,
    pub from_us: u64,
    pub until_us: u64,
    /// What was hit: nodes, or links from one to another.
    pub targets: Vec<String>,
}

pub struct Conductor<'a> {
    db: &'a mut Db,
    recorder: &'a Recorder,
    injuries: Injuries,
    /// By event.
    fired: BTreeMap<usize, Fired>,
}

impl<'a> Conductor<'a> {
    pub fn new(db: &'a mut Db, recorder: &'a Recorder) -> Self {
        Self { db, recorder, injuries: Injuries::default(), fired: BTreeMap::new() }
    }

    /// Carries out the whole schedule, heals, and tells what was done. A node that ends by itself ends the run.
    pub async fn run(mut self, schedule: &Schedule) -> anyhow::Result<Vec<Fired>> {
        let began = Instant::now();
        let carried_out = self.carry_out(schedule, began).await;
        self.injuries.end_all();
        self.apply().await?;
        let now_us = self.recorder.now_us();
        carried_out?;
        for fired in self.fired.values_mut() {
            fired.until_us = fired.until_us.min(now_us);
        }
        Ok(self.fired.into_values().collect())
    }

    async fn carry_out(&mut self, schedule: &Schedule, began: Instant) -> anyhow::Result<()> {
        for (at_ms, event, begins) in turns(schedule) {
            sleep_until(began + Duration::from_millis(at_ms)).await;
            self.assert_alive()?;
            if begins {
                self.begin(event, &schedule.events[event]).await?;
            } else {
                self.end(event).await?;
            }
        }
        sleep_until(began + Duration::from_millis(schedule.faults_ms)).await;
        self.assert_alive()
    }

    async fn begin(&mut self, number: usize, event: &Event) -> anyhow::Result<()> {
        let injury = event.fault.resolve(&self.situation().await);
        let targets = targets(&injury);
        if let Injury::Stopped(nodes) = &injury {
            for node in nodes {
                if self.injuries.node(*node) == Whole::Running {
                    let status = self.db.stop(*node).await?;
                    anyhow::ensure!(status.success(), "node {node} did not end well after SIGTERM: {status}");
                }
            }
        }
        let from_us = self.recorder.now_us();
        self.injuries.begin(number, injury);
        self.apply().await?;
        let fired = Fired { nemesis: event.nemesis, from_us, until_us: u64::MAX, targets };
        self.fired.insert(number, fired);
        Ok(())
    }

    async fn end(&mut self, number: usize) -> anyhow::Result<()> {
        self.injuries.end(number);
        self.apply().await?;
        if let Some(fired) = self.fired.get_mut(&number) {
            fired.until_us = self.recorder.now_us();
        }
        Ok(())
    }

    /// Brings links and nodes into the state that the injuries say.
    async fn apply(&mut self) -> anyhow::Result<()> {
        let injuries = &self.injuries;
        self.db.links.set(|direction| injuries.link(direction));
        for id in self.db.ids() {
            match self.injuries.node(id) {
                Whole::Running => {
                    self.db.resume(id)?;
                    self.db.start(id)?;
                }
                Whole::Paused => {
                    self.db.start(id)?;
                    self.db.pause(id)?;
                }
                Whole::Down => self.db.kill(id)?,
            }
        }
        Ok(())
    }

    fn assert_alive(&mut self) -> anyhow::Result<()> {
        match self.db.ended()?.first() {
            None => Ok(()),
            Some((id, status, log)) => anyhow::bail!("node {id} has ended by itself ({status}):\n{log}"),
        }
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
fn turns(schedule: &Schedule) -> Vec<(u64, usize, bool)> {
    let begins = schedule.events.iter().enumerate().map(|(number, event)| (event.at_ms, true, number));
    let ends = schedule.events.iter().enumerate().map(|(number, event)| (event.at_ms + event.for_ms, false, number));
    let mut turns: Vec<(u64, bool, usize)> = begins.chain(ends).collect();
    turns.sort_unstable();
    turns.into_iter().map(|(at_ms, begins, number)| (at_ms, number, begins)).collect()
}

fn targets(injury: &Injury) -> Vec<String> {
    match injury {
        Injury::Killed(nodes) | Injury::Stopped(nodes) | Injury::Paused(nodes) => {
            nodes.iter().map(i32::to_string).collect()
        }
        Injury::Links(links) => links.keys().map(|(from, to)| format!("{from}>{to}")).collect(),
    }
}
