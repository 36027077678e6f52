//! One seed: a cluster forms and is asked, is broken while it is asked, heals, and must serve again; then everything that
//! was said is judged.

use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use jepsen_lite::checker::{self, Verdict};
use jepsen_lite::generator::Tempo;
use jepsen_lite::history::{Operation, Outcome as Answer};
use jepsen_lite::nemesis::Nemesis;
use jepsen_lite::random::Random;
use jepsen_lite::recorder::Recorder;
use jepsen_lite::schedule::Schedule;
use jepsen_lite::workload::{self, Context, WorkloadName};
use quorate_client::network::Network;
use quorate_client::{Freshness, world};
use serde::{Deserialize, Serialize};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::sleep;
use turmoil::{Builder, Sim};

use crate::cluster::Cluster;
use crate::faults::{Faults, NEMESES, is_whole};
use crate::invariants;
use crate::network::SimulatedNetwork;
use crate::observe::{Seen, Trace};

/// Of simulated time, for a cluster to form, and to become whole when all faults are over.
const PATIENCE_MS: u64 = 60_000;

/// When all faults are over. A controller that was cut off may not know yet that it is none, and what it has replayed looks
/// whole: within this a successor is elected.
const SETTLES_MS: u64 = 1_000;

/// Of simulated time: beyond that a seed hangs.
const LONGEST: Duration = Duration::from_secs(600);

/// How far the seed of this process has come.
pub static AT_MS: AtomicU64 = AtomicU64::new(0);

const LOOK_AGAIN: Duration = Duration::from_millis(50);

/// When the simulated world begins.
const EPOCH_MS: i64 = 1_700_000_000_000;

/// What a seed draws.
#[derive(Debug)]
pub struct Shape {
    nodes: i32,
    workloads: Vec<WorkloadName>,
    nemeses: Vec<Nemesis>,
    faults_ms: u64,
    latency_ms: u64,
    flush_ms: u64,
    /// When the event loop of the active controller waits for ever, if it does.
    hold_at_ms: Option<u64>,
    settings: Vec<(String, String)>,
}

impl Shape {
    fn draw(random: &mut Random) -> Self {
        let mut workloads = WorkloadName::ALL.to_vec();
        random.shuffle(&mut workloads);
        workloads.truncate(2);
        let mut nemeses = NEMESES.to_vec();
        random.shuffle(&mut nemeses);
        nemeses.truncate(3);
        let mut settings = Vec::new();
        if random.percent(50) {
            settings.push(("log_flush".to_owned(), "always".to_owned()));
            // With every record synced the power may fail everywhere.
            if random.percent(40) {
                nemeses.push(Nemesis::PowerCutAll);
            }
        }
        if random.percent(40) {
            settings.push(("snapshot_log_bytes".to_owned(), "16384".to_owned()));
            settings.push(("log_entries_kept".to_owned(), "10".to_owned()));
        }
        Self {
            nodes: if random.percent(70) { 3 } else { 5 },
            workloads,
            nemeses,
            faults_ms: random.between(4_000, 8_000),
            latency_ms: *random.pick(&[1, 2, 5, 20]),
            flush_ms: *random.pick(&[0, 1, 5]),
            hold_at_ms: random.percent(25).then(|| random.between(500, 4_000)),
            settings,
        }
    }
}

#[derive(Debug, Default, Serialize, Deserialize)]
pub struct Outcome {
    pub seed: u64,
    pub shape: String,
    pub violations: Vec<String>,
    pub trace: Trace,
    pub simulated_ms: u64,
    pub acknowledged: usize,
    pub operations: usize,
    pub faults: u64,
}

impl Outcome {
    /// It did not come to an end.
    pub fn of_failure(seed: u64, why: String) -> Self {
        Self { seed, violations: vec![why], ..Self::default() }
    }
}

/// What the clients and the one who turns the clock share.
#[derive(Clone)]
struct Shared {
    recorder: Arc<Mutex<Option<Arc<Recorder>>>>,
    /// True when the workloads have begun.
    begun: Arc<watch::Sender<bool>>,
    stop: Arc<watch::Sender<bool>>,
}

pub fn run(seed: u64) -> Outcome {
    world::simulate(seed, || EPOCH_MS + turmoil::sim_elapsed().map_or(0, |elapsed| elapsed.as_millis() as i64));
    let mut random = Random::new(seed);
    let shape = Shape::draw(&mut random);
    let latency = Duration::from_millis(shape.latency_ms);
    let mut sim = Builder::new()
        .rng_seed(seed)
        .simulation_duration(LONGEST)
        .tick_duration(Duration::from_millis(1))
        .min_message_latency(Duration::ZERO)
        .max_message_latency(latency)
        .tcp_capacity(4096)
        .build();
    let cluster = Cluster::start(&mut sim, shape.nodes, &shape.settings, latency);
    cluster.nodes.values().for_each(|node| node.disks.raft.set_flush_time(Duration::from_millis(shape.flush_ms)));
    let shared = Shared {
        recorder: Arc::default(),
        begun: Arc::new(watch::Sender::new(false)),
        stop: Arc::new(watch::Sender::new(false)),
    };
    sim.client("clients", clients(cluster.addresses(), shape.workloads.clone(), seed, shared.clone()));
    let schedule = Schedule::draw(shape.nodes, random.draw(), &shape.nemeses, shape.faults_ms);
    let mut turned = Turned { trace: Trace::default(), at_ms: 0, faults: Faults::new(schedule, shape.hold_at_ms) };
    let turned_out = turned.turn(&mut sim, cluster, &shared);
    drop(sim);
    judge(seed, &shape, turned, turned_out, &shared)
}

struct Turned {
    trace: Trace,
    at_ms: u64,
    faults: Faults,
}

/// In which part of a run the clock stands.
enum Phase {
    Forming,
    /// Since when.
    Faults(u64),
    Healing(u64),
    Ending(u64),
}

impl Turned {
    /// Turns the clock until the clients have ended.
    fn turn(&mut self, sim: &mut Sim<'static>, mut cluster: Cluster, shared: &Shared) -> Result<(), String> {
        let mut invariants = invariants::all();
        let mut phase = Phase::Forming;
        loop {
            let is_over = sim.step().map_err(|error| error.to_string())?;
            self.at_ms += 1;
            AT_MS.store(self.at_ms, Ordering::Relaxed);
            let seen = Seen::of(&cluster);
            cluster.note(&seen);
            self.trace.note(self.at_ms, &seen);
            for invariant in &mut invariants {
                let checked = invariant.check(&seen);
                checked.map_err(|why| format!("at {} ms: {}: {why}", self.at_ms, invariant.name()))?;
            }
            if is_over {
                return Ok(());
            }
            phase = self.go_on(phase, &seen, &mut cluster, sim, shared)?;
        }
    }

    fn go_on(
        &mut self,
        phase: Phase,
        seen: &Seen,
        cluster: &mut Cluster,
        sim: &mut Sim<'static>,
        shared: &Shared,
    ) -> Result<Phase, String> {
        let now = self.at_ms;
        let is_late = |since: u64| now - since > PATIENCE_MS;
        Ok(match phase {
            Phase::Forming if *shared.begun.borrow() => Phase::Faults(now),
            Phase::Forming if is_late(0) => return Err("the cluster does not form".to_owned()),
            Phase::Faults(since) if !self.faults.step(now - since, seen, cluster, sim)? => Phase::Healing(now),
            Phase::Healing(since) if now - since > SETTLES_MS && is_whole(seen, cluster) => {
                shared.stop.send_replace(true);
                Phase::Ending(now)
            }
            Phase::Healing(since) if is_late(since) => {
                return Err(format!(
                    "not whole {PATIENCE_MS} ms after all faults were over: {}",
                    missing(seen, cluster)
                ));
            }
            Phase::Ending(since) if is_late(since) => return Err("the clients do not end".to_owned()),
            same => same,
        })
    }
}

fn missing(seen: &Seen, cluster: &Cluster) -> String {
    let Some(image) = seen.latest() else { return "nobody has metadata".to_owned() };
    let short = image.partitions().filter(|(_, partition)| cluster.is_short(partition));
    let offsets = seen.nodes.iter().map(|node| {
        let offset = node.inside.as_ref().map(|inside| inside.image.next_offset.get());
        format!("node {}: {offset:?}", node.id)
    });
    let away: Vec<i32> = cluster.ids().into_iter().filter(|id| !cluster.is_in(*id, image)).collect();
    format!(
        "controller {:?}; offsets {}; {} partitions are not in sync; brokers away {away:?}",
        seen.controller(),
        offsets.collect::<Vec<_>>().join(", "),
        short.count(),
    )
}

async fn clients(
    nodes: Vec<(i32, String)>,
    workloads: Vec<WorkloadName>,
    seed: u64,
    shared: Shared,
) -> turmoil::Result {
    let recorder = Arc::new(Recorder::new());
    *shared.recorder.lock().expect("no holder panics") = Some(recorder.clone());
    let network = Network::over(SimulatedNetwork);
    let (_, tempo) = watch::channel(Tempo::default());
    let context = Context { recorder, nodes, seed, stop: shared.stop.subscribe(), tempo, network };
    all_are_in(&context).await;
    let mut tasks = JoinSet::new();
    for workload in &workloads {
        workload::start(*workload, &context, &mut tasks).await.map_err(|error| format!("{workload:?}: {error:#}"))?;
    }
    shared.begun.send_replace(true);
    while let Some(ended) = tasks.join_next().await {
        ended?;
    }
    for workload in &workloads {
        workload::finish(*workload, &context).await.map_err(|error| format!("{workload:?}: {error:#}"))?;
    }
    Ok(())
}

/// Waits until replicas can be given to every broker.
async fn all_are_in(context: &Context) {
    let client = context.patient_client();
    loop {
        let unfenced = match client.list_brokers(Freshness::Linearizable).await {
            Ok(reply) => reply.brokers.iter().filter(|broker| broker.state == "unfenced").count(),
            Err(_) => 0,
        };
        if unfenced == context.nodes.len() {
            return;
        }
        sleep(LOOK_AGAIN).await;
    }
}

fn judge(seed: u64, shape: &Shape, turned: Turned, turned_out: Result<(), String>, shared: &Shared) -> Outcome {
    let recorder = shared.recorder.lock().expect("no holder panics").clone();
    let history: Vec<Operation> = recorder.map(|recorder| recorder.take()).unwrap_or_default();
    let mut trace = turned.trace;
    history.iter().for_each(|operation| trace.tell(&format!("{operation:?}")));
    let mut violations: Vec<String> = turned_out.err().into_iter().collect();
    for report in shape.workloads.iter().flat_map(|workload| checker::check(*workload, &history)) {
        if report.verdict == Verdict::Invalid {
            let told = report.findings.iter().take(3);
            violations.extend(told.map(|finding| format!("{}: {}: {}", report.checker, finding.rule, finding.message)));
        }
    }
    let is_ok = |operation: &&Operation| operation.outcome == Answer::Ok;
    Outcome {
        seed,
        shape: format!("{shape:?}"),
        violations,
        trace,
        simulated_ms: turned.at_ms,
        acknowledged: history.iter().filter(is_ok).count(),
        operations: history.len(),
        faults: turned.faults.fired,
    }
}

/// What all seeds come to.
pub fn sum(outcomes: &[Outcome]) -> impl fmt::Display {
    let total = |of: fn(&Outcome) -> u64| outcomes.iter().map(of).sum::<u64>();
    format!(
        "{} seeds, {} with a violation; {} s simulated, {} faults, {} operations, {} acknowledged",
        outcomes.len(),
        outcomes.iter().filter(|outcome| !outcome.violations.is_empty()).count(),
        total(|outcome| outcome.simulated_ms) / 1_000,
        total(|outcome| outcome.faults),
        total(|outcome| outcome.operations as u64),
        total(|outcome| outcome.acknowledged as u64),
    )
}
