//! Carries a schedule of `jepsen-lite` out on a simulated cluster.

use jepsen_lite::conductor::turns;
use jepsen_lite::disk::Mode;
use jepsen_lite::link::Port;
use jepsen_lite::nemesis::{Injuries, Injury, Nemesis, Situation, State, Whole};
use jepsen_lite::random::Random;
use jepsen_lite::schedule::Schedule;
use turmoil::Sim;

use crate::cluster::Cluster;
use crate::observe::Seen;

/// How long a fault waits for the state that it needs.
const STATE_PATIENCE_MS: u64 = 20_000;

/// A node that was told to stop has ended within this: its broker waits ten seconds for its leaderships to move.
const STOP_PATIENCE_MS: u64 = 20_000;

/// A node whose event loop is held has ended within this: its watchdog waits for a session timeout.
const HELD_PATIENCE_MS: u64 = 20_000;

/// What the simulated network and disks can do.
pub const NEMESES: [Nemesis; 13] = [
    Nemesis::Kill,
    Nemesis::Stop,
    Nemesis::Partition,
    Nemesis::OneWay,
    Nemesis::Bridge,
    Nemesis::MajoritiesRing,
    Nemesis::SlowLink,
    Nemesis::Flap,
    Nemesis::RestartStorm,
    Nemesis::LastReplicas,
    Nemesis::SwizzleClog,
    Nemesis::PowerCut,
    Nemesis::SyncFails,
];

pub struct Faults {
    schedule: Schedule,
    /// When, which event, and whether it begins.
    turns: Vec<(u64, usize, bool)>,
    next: usize,
    injuries: Injuries,
    skipped: Vec<usize>,
    random: Random,
    /// How much has been waited for states.
    late_ms: u64,
    waiting_since_ms: Option<u64>,
    /// Nodes that were told to stop, and when.
    stopping: Vec<(i32, u64)>,
    /// When the event loop of the active controller is to be held, if it is.
    hold_at_ms: Option<u64>,
    held: Option<Held>,
    pub fired: u64,
}

/// A process whose event loop is held.
#[derive(Clone, Copy)]
struct Held {
    node: i32,
    incarnation: u32,
    since_ms: u64,
}

impl Faults {
    pub fn new(schedule: Schedule, hold_at_ms: Option<u64>) -> Self {
        let turns = turns(&schedule);
        Self {
            random: Random::new(schedule.seed),
            schedule,
            turns,
            next: 0,
            injuries: Injuries::default(),
            skipped: Vec::new(),
            late_ms: 0,
            waiting_since_ms: None,
            stopping: Vec::new(),
            hold_at_ms,
            held: None,
            fired: 0,
        }
    }

    /// What is due at this time since the faults began. False when all is over and healed.
    pub fn step(
        &mut self,
        at_ms: u64,
        seen: &Seen,
        cluster: &mut Cluster,
        sim: &mut Sim<'static>,
    ) -> Result<bool, String> {
        self.held_has_ended(at_ms, cluster, sim)?;
        self.stopped(at_ms, cluster, sim)?;
        self.hold(at_ms, seen, cluster);
        while let Some((due_ms, number, begins)) = self.turns.get(self.next).copied() {
            if due_ms + self.late_ms > at_ms || !self.is_ready(at_ms, number, begins, seen, cluster) {
                return Ok(true);
            }
            self.next += 1;
            if !begins {
                self.end(number, cluster, sim);
            } else if !self.skipped.contains(&number) {
                self.begin(number, at_ms, seen, cluster, sim);
            }
        }
        if at_ms < self.schedule.faults_ms + self.late_ms || !self.stopping.is_empty() || self.held.is_some() {
            return Ok(true);
        }
        for number in self.injuries.lasting() {
            self.end(number, cluster, sim);
        }
        Ok(false)
    }

    /// Whether the state that the event waits for is there. Waited for too long, it is left out.
    fn is_ready(&mut self, at_ms: u64, number: usize, begins: bool, seen: &Seen, cluster: &Cluster) -> bool {
        let Some(state) = self.schedule.events[number].until.filter(|_| begins) else { return true };
        let is_reached = match state {
            State::Whole => is_whole(seen, cluster),
            State::IsrShrunk => {
                let is_short = |image: &quorate_metadata::MetadataImage| {
                    image.partitions().any(|(_, partition)| cluster.is_short(partition))
                };
                seen.latest().is_some_and(is_short)
            }
        };
        let since = *self.waiting_since_ms.get_or_insert(at_ms);
        let gives_up = at_ms - since > STATE_PATIENCE_MS;
        if !is_reached && !gives_up {
            return false;
        }
        if gives_up {
            self.skipped.push(number);
        }
        self.late_ms += at_ms - since;
        self.waiting_since_ms = None;
        true
    }

    fn begin(&mut self, number: usize, at_ms: u64, seen: &Seen, cluster: &mut Cluster, sim: &mut Sim<'static>) {
        let injury = self.schedule.events[number].fault.resolve(&situation(seen, cluster));
        self.fired += 1;
        match &injury {
            Injury::Stopped(nodes) => {
                // One that is held ends by its watchdog.
                let is_held = |node: &i32| self.held.as_ref().is_some_and(|held| held.node == *node);
                for node in nodes.iter().filter(|node| cluster.nodes[node].is_up && !is_held(node)) {
                    cluster.tell_to_stop(*node);
                    self.stopping.push((*node, at_ms));
                }
            }
            Injury::Dark(nodes) => {
                for node in nodes {
                    cluster.kill(sim, *node, Some(&mut self.random));
                }
            }
            Injury::Disk(nodes, Mode::SyncFails) => nodes.iter().for_each(|node| cluster.break_disk(*node)),
            _ => {}
        }
        self.injuries.begin(number, injury);
        self.apply(cluster, sim);
    }

    fn end(&mut self, number: usize, cluster: &mut Cluster, sim: &mut Sim<'static>) {
        if let Some(Injury::Disk(nodes, Mode::SyncFails)) = self.injuries.end(number) {
            // What was not synced when the disk failed is gone for good.
            for node in nodes {
                cluster.kill(sim, node, Some(&mut self.random));
            }
        }
        self.apply(cluster, sim);
    }

    fn apply(&self, cluster: &mut Cluster, sim: &mut Sim<'static>) {
        for id in cluster.ids() {
            let is_stopping = self.stopping.iter().any(|(node, _)| *node == id);
            match self.injuries.node(id) {
                _ if is_stopping => {}
                Whole::Down => cluster.kill(sim, id, None),
                Whole::Running | Whole::Paused => cluster.bring_up(sim, id),
            }
        }
        for from in cluster.ids() {
            for to in cluster.ids().into_iter().filter(|to| *to != from) {
                cluster.set_link(sim, from, to, self.injuries.link((from, to, Port::Api)));
            }
        }
    }

    /// Holds the event loop of the active controller once it is time, unless that node is stopping.
    fn hold(&mut self, at_ms: u64, seen: &Seen, cluster: &Cluster) {
        if self.hold_at_ms.is_none_or(|due_ms| due_ms > at_ms) {
            return;
        }
        let is_stopping = |node: &i32| self.stopping.iter().any(|(stopping, _)| stopping == node);
        let Some(node) = seen.controller().filter(|node| !is_stopping(node)) else { return };
        self.hold_at_ms = None;
        self.held = Some(Held { node, incarnation: cluster.nodes[&node].incarnation, since_ms: at_ms });
        cluster.hold_event_loop(node);
        self.fired += 1;
    }

    /// The watchdog ends a node that is held, unless another fault has done so; then it is started again.
    fn held_has_ended(&mut self, at_ms: u64, cluster: &mut Cluster, sim: &mut Sim<'static>) -> Result<(), String> {
        let Some(Held { node, incarnation, since_ms }) = self.held else { return Ok(()) };
        let process = &cluster.nodes[&node];
        if !process.is_up || process.incarnation != incarnation {
            self.held = None;
            return Ok(());
        }
        match process.ended() {
            Some(_) => {
                self.held = None;
                cluster.kill(sim, node, None);
                self.apply(cluster, sim);
                Ok(())
            }
            None if at_ms - since_ms > HELD_PATIENCE_MS => Err(format!("node {node} is held, and does not end")),
            None => Ok(()),
        }
    }

    /// Who was told to stop is down when it has ended. No other node may end, but one with a broken disk.
    fn stopped(&mut self, at_ms: u64, cluster: &mut Cluster, sim: &mut Sim<'static>) -> Result<(), String> {
        let mut has_ended = false;
        for id in cluster.ids() {
            let told = self.stopping.iter().position(|(node, _)| *node == id);
            let is_broken = self.injuries.disk(id) == Mode::SyncFails;
            match (cluster.nodes[&id].ended().filter(|_| cluster.nodes[&id].is_up), told) {
                (Some(why), None) if !is_broken => return Err(format!("node {id} has ended by itself: {why}")),
                (Some(why), Some(_)) if !why.is_empty() && !is_broken => {
                    return Err(format!("node {id} did not end well after it was told to stop: {why}"));
                }
                (Some(_), Some(place)) => {
                    self.stopping.remove(place);
                    cluster.kill(sim, id, None);
                    has_ended = true;
                }
                // Down by now for another reason, which may be over: nobody else brings it up then.
                (None, Some(place)) if !cluster.nodes[&id].is_up => {
                    self.stopping.remove(place);
                    has_ended = true;
                }
                (None, Some(place)) if at_ms - self.stopping[place].1 > STOP_PATIENCE_MS => {
                    return Err(format!("node {id} does not stop"));
                }
                _ => {}
            }
        }
        if has_ended {
            self.apply(cluster, sim);
        }
        Ok(())
    }
}

/// Every node runs and is let in, and all replicas are in sync.
pub fn is_whole(seen: &Seen, cluster: &Cluster) -> bool {
    let Some(image) = seen.latest() else { return false };
    let runs = |node: &crate::observe::NodeSeen| {
        node.inside.as_ref().is_some_and(|inside| inside.image.next_offset == image.next_offset)
    };
    seen.controller().is_some()
        && seen.nodes.iter().all(runs)
        && cluster.ids().into_iter().all(|id| cluster.is_in(id, image))
        && image.partitions().all(|(_, partition)| partition.leader.is_some() && !cluster.is_short(partition))
}

fn situation(seen: &Seen, cluster: &Cluster) -> Situation {
    let leaders = seen.latest().into_iter().flat_map(|image| image.partitions().map(|(_, partition)| partition.leader));
    let partition_leaders = leaders.flatten().map(|leader| leader.get()).collect();
    Situation { nodes: cluster.ids(), controller: seen.controller(), partition_leaders }
}
