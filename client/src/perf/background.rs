//! Small mutations that go on while something else is measured.
//!
//! Each is due at a fixed time, is sent then even if earlier ones are not answered, and takes from when it was due until
//! it is answered: a cluster that stands still for a second shows in as many samples as were due in that second.

use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use quorate_proto::admin::NewTopic;
use tokio::sync::{Semaphore, watch};
use tokio::task::{JoinHandle, JoinSet};
use tokio::time::{Instant, MissedTickBehavior, interval};

use super::mutate::set;
use super::side_thread::SideThread;
use super::{PerfError, Report, Samples, Target, create, delete, names};
use crate::AdminClient;

/// Sent and not yet answered, at most: below the 256 that a node serves on a connection at once, so that none waits here
/// for the connection.
const IN_FLIGHT_MAX: usize = 200;

/// Mutations of one phase.
#[derive(Debug, Clone, Default)]
pub(super) struct Phase {
    pub samples: Samples,
    /// Not acknowledged within the client's timeout. They are among the samples, with the time that they took.
    pub failed: u64,
    /// The error of the first that failed.
    pub error: Option<String>,
}

impl Phase {
    pub fn merge(&mut self, other: &Self) {
        self.samples.merge(&other.samples);
        self.failed += other.failed;
        self.error = self.error.take().or_else(|| other.error.clone());
    }

    pub fn report(&self, measurement: &'static str, parameters: serde_json::Value) -> Report {
        let report = Report::new(measurement, &self.samples, parameters).with_result("failed", self.failed);
        match &self.error {
            Some(error) => report.with_result("first_error", error.as_str()),
            None => report,
        }
    }
}

pub(super) struct Background {
    shared: Arc<Shared>,
    stop: watch::Sender<bool>,
    task: JoinHandle<()>,
    /// Of the mutations and of their connections.
    _thread: SideThread,
}

struct Shared {
    client: AdminClient,
    topic: Vec<String>,
    next: AtomicU64,
    /// The phase in which a mutation is due counts it.
    current: AtomicUsize,
    phases: Mutex<Vec<Phase>>,
}

impl Background {
    /// One mutation every so often, of a topic of its own.
    pub async fn start(target: &Target, every: Duration) -> Result<Self, PerfError> {
        let client = target.client()?;
        let topic = names("background", 1);
        let phases = Mutex::new(vec![Phase::default()]);
        let shared = Shared { client, topic, next: AtomicU64::new(0), current: AtomicUsize::new(0), phases };
        let shared = Arc::new(shared);
        let thread = SideThread::start("mutations")?;
        let first = shared.clone();
        // A connection belongs to the thread that opens it.
        let created = thread.handle().spawn(async move { first.create_topic().await });
        created.await.expect("a creation does not panic")?;
        let stop = watch::Sender::new(false);
        let task = thread.handle().spawn(mutate(shared.clone(), every, stop.subscribe()));
        Ok(Self { shared, stop, task, _thread: thread })
    }

    /// What is due from now on counts in another phase.
    pub fn next_phase(&self) {
        self.shared.phases.lock().expect(UNPOISONED).push(Phase::default());
        self.shared.current.fetch_add(1, Ordering::Relaxed);
    }

    /// Waits for what was sent, removes the topic, and returns the phases.
    pub async fn stop(self) -> Result<Vec<Phase>, PerfError> {
        self.stop.send_replace(true);
        self.task.await.expect("the background does not panic");
        delete(&self.shared.client, &self.shared.topic).await?;
        Ok(self.shared.phases.lock().expect(UNPOISONED).clone())
    }
}

const UNPOISONED: &str = "no one panics while holding the phases";

async fn mutate(shared: Arc<Shared>, every: Duration, mut stop: watch::Receiver<bool>) {
    let room = Arc::new(Semaphore::new(IN_FLIGHT_MAX));
    let mut pace = interval(every);
    pace.set_missed_tick_behavior(MissedTickBehavior::Burst);
    let mut sent = JoinSet::new();
    loop {
        let due = tokio::select! {
            biased;
            _ = stop.changed() => break,
            due = pace.tick() => due,
        };
        let permit = room.clone().acquire_owned().await.expect("it is never closed");
        let (phase, shared) = (shared.current.load(Ordering::Relaxed), shared.clone());
        sent.spawn(async move {
            shared.mutate(phase, due).await;
            drop(permit);
        });
        while let Some(done) = sent.try_join_next() {
            done.expect("a mutation does not panic");
        }
    }
    while let Some(done) = sent.join_next().await {
        done.expect("a mutation does not panic");
    }
}

impl Shared {
    async fn create_topic(&self) -> Result<(), PerfError> {
        let topic = NewTopic { name: self.topic[0].clone(), partitions: Some(1), ..NewTopic::default() };
        create(&self.client, topic).await?;
        Ok(())
    }

    async fn mutate(&self, phase: usize, due: Instant) {
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        let outcome = set(&self.client, &self.topic[0], number).await;
        let mut phases = self.phases.lock().expect(UNPOISONED);
        phases[phase].samples.record(due.elapsed());
        if let Err(error) = outcome {
            phases[phase].failed += 1;
            phases[phase].error.get_or_insert_with(|| error.to_string());
        }
    }
}
