//! What a node runs on: a network, disks, and threads beside the runtime that it is started on. All real, unless a
//! simulation gives others; the clock is tokio's, and time of day and chance come from `quorate_client::world`.

use std::collections::BTreeMap;
use std::future::Future;
use std::sync::{Arc, OnceLock};
use std::thread::JoinHandle;
use std::time::Duration;

use quorate_client::network::Network;
use quorate_log::MemoryLogs;
use quorate_metadata::image::{LEVEL_HIGHEST, LEVEL_LOWEST};
use quorate_metadata::plan::features;
use quorate_metadata::record::VersionRange;
use tokio::runtime::Runtime;
use tokio::sync::oneshot;
use tokio::task::JoinSet;
use tracing::error;

use crate::controller::ControllerHandle;
use crate::note::Note;
use crate::raft::{MemoryStore, RaftNode};
use crate::replica::MetadataView;

/// Cheap to clone. Real, by default.
#[derive(Clone, Default)]
pub struct Machine {
    pub network: Network,
    pub disks: Disks,
    pub workers: Workers,
    /// Filled by a node with a controller as soon as it is part of a cluster. Nobody looks, by default.
    pub window: Window,
    /// Makes the node pass for an earlier release, which supports `metadata.version` up to here: for tests of clusters
    /// whose nodes run different releases.
    pub level_max: Option<i16>,
}

impl Machine {
    /// The highest `metadata.version` that this node supports.
    pub fn level_max(&self) -> i16 {
        self.level_max.unwrap_or(LEVEL_HIGHEST).clamp(LEVEL_LOWEST, LEVEL_HIGHEST)
    }

    /// Every feature, with the levels that this node supports.
    pub fn features(&self) -> BTreeMap<String, VersionRange> {
        features::supported_up_to(self.level_max())
    }
}

/// For simulations, which watch a node from inside, and change nothing but to hold its event loop.
pub type Window = Arc<OnceLock<Inside>>;

pub struct Inside {
    pub raft: RaftNode,
    pub view: MetadataView,
    pub controller: ControllerHandle,
}

#[derive(Clone, Default)]
pub enum Disks {
    /// Where the configuration says.
    #[default]
    Files,
    Memory(MemoryDisks),
}

/// The disks of one node, which outlive its processes.
#[derive(Clone)]
pub struct MemoryDisks {
    pub raft: MemoryStore,
    pub logs: Vec<MemoryLogs>,
    /// See `broker/run_record.rs`.
    pub last_run: Note,
    /// Another one after each loss of power.
    pub boot_id: Note,
}

/// Who does what must not hold up the runtime that serves calls.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Workers {
    /// A thread each.
    #[default]
    Threads,
    /// Tasks of the one runtime there is, so that a seed decides who goes on when.
    Tasks,
}

/// Dropped, it is waited for where it has a thread: a process that ends while a thread is in a database dies in it. A thread
/// that waits for a disk which does not answer is left behind in the end.
#[derive(Debug, Default)]
pub struct Worker {
    thread: Option<JoinHandle<()>>,
}

impl Workers {
    /// Does the work on a runtime of its own that has timers, and nothing else.
    pub fn start(self, name: String, work: impl Future<Output = ()> + Send + 'static) -> Worker {
        match self {
            Self::Tasks => {
                tokio::spawn(work);
                Worker::default()
            }
            Self::Threads => {
                let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build();
                let runtime = runtime.expect("a runtime of one thread and a timer opens nothing");
                Worker::thread(name, move || runtime.block_on(work))
            }
        }
    }
}

/// How often, and how many times, an ending thread is looked at: ten seconds, in which a database closes.
const END_LOOK_INTERVAL: Duration = Duration::from_millis(1);
const END_LOOKS_MAX: u32 = 10_000;

/// Where the tasks of one part of a node run, so that work of another part does not hold them up.
#[derive(Default)]
pub struct TaskRunner(Option<Runtime>);

impl Workers {
    /// Does what may wait for a disk, and holds up nobody else meanwhile.
    pub async fn run<T: Send + 'static>(self, name: &str, work: impl FnOnce() -> T + Send + 'static) -> T {
        if self == Self::Tasks {
            return work();
        }
        let (reply, done) = oneshot::channel();
        // It ends by itself, also when nobody waits any more.
        let thread = std::thread::Builder::new().name(name.to_owned()).spawn(move || drop(reply.send(work())));
        drop(thread.expect("the process may start a few threads"));
        done.await.expect("the work does not panic")
    }

    /// A runtime with so many threads of its own, or the one runtime there is.
    pub fn task_runner(self, name: &str, threads: usize) -> TaskRunner {
        match self {
            Self::Tasks => TaskRunner(None),
            Self::Threads => {
                let mut builder = tokio::runtime::Builder::new_multi_thread();
                let runtime = builder.worker_threads(threads).thread_name(name).enable_all().build();
                TaskRunner(Some(runtime.expect("the process may start a few threads")))
            }
        }
    }
}

impl TaskRunner {
    /// Spawns a task that `tasks` waits for.
    pub fn spawn<T: Send + 'static>(&self, tasks: &mut JoinSet<T>, task: impl Future<Output = T> + Send + 'static) {
        match &self.0 {
            Some(runtime) => tasks.spawn_on(task, runtime.handle()),
            None => tasks.spawn(task),
        };
    }
}

impl Drop for TaskRunner {
    fn drop(&mut self) {
        if let Some(runtime) = self.0.take() {
            // Its tasks have ended, unless something holds one for ever: that must not hold the rest of the node.
            runtime.shutdown_background();
        }
    }
}

impl Worker {
    pub fn thread(name: String, work: impl FnOnce() + Send + 'static) -> Self {
        let thread = std::thread::Builder::new().name(name).spawn(work);
        Self { thread: Some(thread.expect("the process may start a few threads")) }
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        let Some(thread) = self.thread.take() else { return };
        let name = thread.thread().name().unwrap_or_default().to_owned();
        let mut looks = 0;
        while !thread.is_finished() {
            if looks == END_LOOKS_MAX {
                error!(thread = name, "it does not end, and is left behind");
                return;
            }
            looks += 1;
            std::thread::park_timeout(END_LOOK_INTERVAL);
        }
        if thread.join().is_err() {
            error!(thread = name, "it has panicked");
        }
    }
}
