//! The nodes of a simulation: real ones, each on a host with disks in memory that outlive its processes.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use jepsen_lite::link::Condition;
use jepsen_lite::random::Random;
use quorate_client::network::Network;
use quorate_client::world;
use quorate_log::MemoryLogs;
use quorate_metadata::MetadataImage;
use quorate_metadata::ids::{BrokerId, DirectoryId, Offset};
use quorate_metadata::record::Partition;
use quorate_node::config;
use quorate_node::machine::{Disks, Machine, MemoryDisks, Window, Workers};
use quorate_node::node;
use quorate_node::note::Note;
use quorate_node::raft::MemoryStore;
use tokio::sync::watch;
use turmoil::Sim;

use crate::network::SimulatedNetwork;
use crate::observe::Seen;

const API_PORT: u16 = 7001;
const RAFT_PORT: u16 = 7101;

pub struct Cluster {
    pub nodes: BTreeMap<i32, Node>,
    /// Where the metadata log ended, as far as anybody had replayed it.
    log_end: Offset,
    links: BTreeMap<(i32, i32), Condition>,
    latency: Duration,
}

pub struct Node {
    pub disks: MemoryDisks,
    pub is_up: bool,
    /// Grows with every start.
    pub incarnation: u32,
    /// Where the metadata log ended then: a registration from before is one of an earlier process.
    since: Offset,
    running: Arc<Running>,
}

/// What a process and those who watch it share.
struct Running {
    window: Mutex<Window>,
    stop: watch::Sender<bool>,
    ended: Mutex<Option<String>>,
}

impl Node {
    pub fn window(&self) -> Window {
        lock(&self.running.window).clone()
    }

    /// How the process ended, if it did so by itself or was told to: an empty text is a good end.
    pub fn ended(&self) -> Option<String> {
        lock(&self.running.ended).clone()
    }
}

impl Cluster {
    /// Starts them all.
    pub fn start(sim: &mut Sim<'static>, size: i32, settings: &[(String, String)], latency: Duration) -> Self {
        let (nodes, log_end, links) = (BTreeMap::new(), Offset::default(), BTreeMap::new());
        let mut cluster = Self { nodes, log_end, links, latency };
        for id in 1..=size {
            let disks = disks();
            let stop = watch::Sender::new(false);
            let running = Arc::new(Running { window: Mutex::default(), stop, ended: Mutex::default() });
            let settings = [configuration(id, size), settings.to_vec()].concat();
            let (machine_disks, shared) = (disks.clone(), running.clone());
            sim.host(host(id), move || process(machine_disks.clone(), shared.clone(), settings.clone()));
            cluster.nodes.insert(id, Node { disks, is_up: true, incarnation: 1, since: log_end, running });
        }
        cluster
    }

    pub fn ids(&self) -> Vec<i32> {
        self.nodes.keys().copied().collect()
    }

    /// To be told at every tick.
    pub fn note(&mut self, seen: &Seen) {
        let end = seen.latest().map_or(self.log_end, |image| image.next_offset);
        self.log_end = self.log_end.max(end);
    }

    /// Unfenced as the process that it is now; or as the one before, if that one's registration was still under way then.
    /// jepsen-lite's `is_back` is the same rule for what the API answers.
    pub fn is_in(&self, id: i32, image: &MetadataImage) -> bool {
        let (broker, since) = (BrokerId::new(id), self.nodes[&id].since.get());
        image.is_active(broker) && image.broker(broker).is_some_and(|known| known.epoch.get() >= since)
    }

    /// Whether a replica on one of the nodes is not in sync. One on a broker without a process never is.
    /// jepsen-lite's `lacks_a_node` is the same rule for what the API answers.
    pub fn is_short(&self, partition: &Partition) -> bool {
        let mut replicas = partition.replicas.iter().filter(|replica| self.nodes.contains_key(&replica.get()));
        replicas.any(|replica| !partition.isr.contains(replica))
    }

    pub fn addresses(&self) -> Vec<(i32, String)> {
        self.nodes.keys().map(|id| (*id, format!("{}:{API_PORT}", host(*id)))).collect()
    }

    /// kill -9; or the power goes, and what was not synced is gone but for a part that is drawn.
    pub fn kill(&mut self, sim: &mut Sim<'static>, id: i32, lost_power: Option<&mut Random>) {
        let node = self.nodes.get_mut(&id).expect("targets are nodes of this cluster");
        if !node.is_up {
            return;
        }
        node.is_up = false;
        sim.crash(host(id));
        let disks = &node.disks;
        match lost_power {
            // The operating system lives on, and writes what it was given.
            None => {
                disks.raft.crash(usize::MAX);
                disks.logs.iter().for_each(|logs| logs.crash(usize::MAX));
            }
            Some(random) => {
                let some = |random: &mut Random, all: usize| random.below(all as u64 + 1) as usize;
                disks.raft.crash(some(random, disks.raft.pending_bytes()));
                disks.logs.iter().for_each(|logs| logs.crash(some(random, logs.pending())));
                boot(disks, node.incarnation);
            }
        }
    }

    pub fn bring_up(&mut self, sim: &mut Sim<'static>, id: i32) {
        let node = self.nodes.get_mut(&id).expect("targets are nodes of this cluster");
        if node.is_up {
            return;
        }
        node.is_up = true;
        node.incarnation += 1;
        node.since = self.log_end;
        *lock(&node.running.window) = Window::default();
        *lock(&node.running.ended) = None;
        node.running.stop.send_replace(false);
        sim.bounce(host(id));
    }

    /// SIGTERM.
    pub fn tell_to_stop(&self, id: i32) {
        self.nodes[&id].running.stop.send_replace(true);
    }

    /// The node's event loop waits for ever, as if a plan did not return. Its watchdog ends it.
    pub fn hold_event_loop(&self, id: i32) {
        if let Some(inside) = self.nodes[&id].window().get() {
            inside.controller.hold_event_loop();
        }
    }

    pub fn break_disk(&self, id: i32) {
        let disks = &self.nodes[&id].disks;
        disks.raft.break_disk();
        disks.logs.iter().for_each(MemoryLogs::break_disk);
    }

    /// Puts the link from one node to another into a condition, as far as the simulated network knows it.
    pub fn set_link(&mut self, sim: &Sim<'static>, from: i32, to: i32, condition: Condition) {
        let before = self.links.insert((from, to), condition).unwrap_or_default();
        if before == condition {
            return;
        }
        if is_cut(condition) != is_cut(before) {
            if is_cut(condition) {
                sim.partition_oneway(host(from), host(to));
            } else {
                sim.repair_oneway(host(from), host(to));
            }
        }
        let slowest = [(from, to), (to, from)].map(|at| delay(self.links.get(&at).copied().unwrap_or_default()));
        let longest = slowest.into_iter().max().flatten().unwrap_or(self.latency);
        sim.set_link_max_message_latency(host(from), host(to), longest);
    }
}

/// Nothing gets through.
fn is_cut(condition: Condition) -> bool {
    matches!(
        condition,
        Condition::Silent
            | Condition::Refusing
            | Condition::Resetting
            | Condition::Stalling { .. }
            | Condition::HalfClosed
    )
}

fn delay(condition: Condition) -> Option<Duration> {
    match condition {
        Condition::Slow { delay_ms, jitter_ms } => Some(Duration::from_millis(delay_ms + jitter_ms)),
        Condition::Limited { .. } => Some(Duration::from_millis(200)),
        _ => None,
    }
}

async fn process(disks: MemoryDisks, running: Arc<Running>, settings: Vec<(String, String)>) -> turmoil::Result {
    let window = Window::default();
    *lock(&running.window) = window.clone();
    let machine = Machine {
        network: Network::over(SimulatedNetwork),
        disks: Disks::Memory(disks),
        workers: Workers::Tasks,
        window,
        level_max: None,
    };
    let config = config::load(None, std::iter::empty(), &settings)?;
    let mut told = running.stop.subscribe();
    let stop = async move {
        // Whoever could tell is gone with the simulation.
        let _ = told.wait_for(|stop| *stop).await;
    };
    let ended = node::run_on(machine, config, stop).await.err().map(|error| error.to_string());
    *lock(&running.ended) = Some(ended.unwrap_or_default());
    Ok(())
}

fn disks() -> MemoryDisks {
    let logs = MemoryLogs::new(DirectoryId::new(world::uuid()));
    let disks = MemoryDisks {
        raft: MemoryStore::new(),
        logs: vec![logs],
        last_run: Note::in_memory(),
        boot_id: Note::in_memory(),
    };
    boot(&disks, 0);
    disks
}

/// The machine is started for the so-many-th time.
fn boot(disks: &MemoryDisks, number: u32) {
    disks.boot_id.write(&number.to_string()).expect("memory can be written");
}

fn host(id: i32) -> String {
    format!("node-{id}")
}

fn configuration(id: i32, size: i32) -> Vec<(String, String)> {
    let voter = |id: i32| format!("{id}@{0}:{RAFT_PORT}/{0}:{API_PORT}", host(id));
    let voters: Vec<String> = (1..=size).map(voter).collect();
    let settings = [
        ("node_id", id.to_string()),
        ("data_dir", format!("/simulated/{}", host(id))),
        ("voters", voters.join(",")),
        ("raft_listen", format!("0.0.0.0:{RAFT_PORT}")),
        ("api_listen", format!("0.0.0.0:{API_PORT}")),
        ("api_advertised", format!("{}:{API_PORT}", host(id))),
        ("http_listen", String::new()),
        ("insecure", "true".to_owned()),
        ("auto_format", "always".to_owned()),
    ];
    settings.map(|(key, value)| (key.to_owned(), value)).into()
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().expect("no holder panics")
}
