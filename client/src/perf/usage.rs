//! What the nodes of a local cluster use while something is measured: processor time and memory, from `/proc`.

use std::collections::BTreeMap;
use std::time::Duration;

use serde::Serialize;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::{MissedTickBehavior, interval};

use super::local::LocalCluster;

/// Between two looks: what a process that is killed used since the last one is not counted.
const SAMPLE_INTERVAL: Duration = Duration::from_millis(100);

/// Linux shows processor time in units of USER_HZ, which is 100 a second on every architecture.
const TICKS_PER_SECOND: f64 = 100.0;

const BYTES_PER_MB: f64 = 1_000_000.0;

/// What the process of one node used; after a restart, what both processes did.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct NodeUsage {
    pub node: i32,
    pub cpu_seconds: f64,
    /// Resident memory at the end.
    pub rss_mb: f64,
    /// The most that was seen.
    pub rss_max_mb: f64,
}

/// A running observation. Dropping it ends it.
#[derive(Debug)]
pub(super) struct Observation {
    stop: watch::Sender<bool>,
    task: Option<JoinHandle<Vec<NodeUsage>>>,
}

impl Observation {
    /// Of nothing, where there is no local cluster.
    pub fn start(cluster: Option<&LocalCluster>) -> Self {
        let stop = watch::Sender::new(false);
        let task =
            cluster.map(|cluster| tokio::spawn(observe(cluster.clone(), Meters::start(cluster), stop.subscribe())));
        Self { stop, task }
    }

    /// What each node used since the start.
    pub async fn end(mut self) -> Vec<NodeUsage> {
        self.stop.send_replace(true);
        match self.task.take() {
            Some(task) => task.await.expect("the observer does not panic"),
            None => Vec::new(),
        }
    }
}

impl Drop for Observation {
    fn drop(&mut self) {
        if let Some(task) = &self.task {
            task.abort();
        }
    }
}

async fn observe(cluster: LocalCluster, mut meters: Meters, mut stop: watch::Receiver<bool>) -> Vec<NodeUsage> {
    let mut pace = interval(SAMPLE_INTERVAL);
    pace.set_missed_tick_behavior(MissedTickBehavior::Delay);
    while !*stop.borrow() {
        tokio::select! {
            _ = stop.changed() => {}
            _ = pace.tick() => meters.read(&cluster),
        }
    }
    meters.read(&cluster);
    meters.usage()
}

/// One meter for each node that has run.
struct Meters(BTreeMap<i32, Meter>);

impl Meters {
    fn start(cluster: &LocalCluster) -> Self {
        let meter = |(node, process): (i32, Process)| (node, Meter { last: process, ..Meter::default() });
        Self(processes(cluster).map(meter).collect())
    }

    fn read(&mut self, cluster: &LocalCluster) {
        let seen: BTreeMap<i32, Process> = processes(cluster).collect();
        for (node, meter) in &mut self.0 {
            meter.rss = seen.get(node).map_or(0, |process| process.rss);
        }
        for (node, process) in seen {
            self.0.entry(node).or_default().read(process);
        }
    }

    fn usage(&self) -> Vec<NodeUsage> {
        let usage = |(node, meter): (&i32, &Meter)| NodeUsage {
            node: *node,
            cpu_seconds: meter.ticks as f64 / TICKS_PER_SECOND,
            rss_mb: megabytes(meter.rss),
            rss_max_mb: megabytes(meter.rss_max),
        };
        self.0.iter().map(usage).collect()
    }
}

fn processes(cluster: &LocalCluster) -> impl Iterator<Item = (i32, Process)> {
    cluster.nodes().into_iter().filter_map(|node| Some((node, Process::read(cluster.running(node)?)?)))
}

fn megabytes(bytes: u64) -> f64 {
    (bytes as f64 / BYTES_PER_MB * 10.0).round() / 10.0
}

/// What a process has used in all its life.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
struct Process {
    pid: i32,
    ticks: u64,
    rss: u64,
}

impl Process {
    /// `None` when it has ended.
    fn read(pid: i32) -> Option<Self> {
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        let status = std::fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
        Some(Self { pid, ticks: ticks(&stat)?, rss: resident_bytes(&status)? })
    }
}

/// User and system time: the 14th and 15th field. The second is the program's name in brackets, and may hold anything.
fn ticks(stat: &str) -> Option<u64> {
    let (_, after_name) = stat.rsplit_once(')')?;
    let mut fields = after_name.split_whitespace().skip(11).map(str::parse::<u64>);
    Some(fields.next()?.ok()? + fields.next()?.ok()?)
}

fn resident_bytes(status: &str) -> Option<u64> {
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    let kib: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kib * 1024)
}

#[derive(Debug, Default)]
struct Meter {
    last: Process,
    ticks: u64,
    rss: u64,
    rss_max: u64,
}

impl Meter {
    /// A process that was not there at the last look has used all of its time since.
    fn read(&mut self, now: Process) {
        let before = if now.pid == self.last.pid { self.last.ticks } else { 0 };
        self.ticks += now.ticks.saturating_sub(before);
        self.rss = now.rss;
        self.rss_max = self.rss_max.max(now.rss);
        self.last = now;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn processor_time_is_read_behind_any_program_name() {
        let stat = "77 (a) b) S 1 77 77 0 -1 4194560 10 0 0 0 250 50 0 0 20 0 9 0 100 1000 200";
        assert_eq!(ticks(stat), Some(300));
        assert_eq!(ticks("77"), None);
    }

    #[test]
    fn resident_memory_is_read_in_bytes() {
        assert_eq!(resident_bytes("VmPeak:\t 10 kB\nVmRSS:\t  2048 kB\nThreads:\t9\n"), Some(2_097_152));
        assert_eq!(resident_bytes("Threads:\t1\n"), None, "a process that has ended has no memory");
    }

    #[test]
    fn a_restarted_node_counts_both_processes() {
        let mut meter = Meter { last: Process { pid: 10, ticks: 500, rss: 1 }, ..Meter::default() };
        meter.read(Process { pid: 10, ticks: 700, rss: 90 });
        meter.read(Process { pid: 11, ticks: 30, rss: 40 });
        meter.read(Process { pid: 11, ticks: 50, rss: 50 });
        assert_eq!((meter.ticks, meter.rss, meter.rss_max), (250, 50, 90));
    }
}
