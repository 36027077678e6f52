//! The broker's side of the control plane: register, heartbeat, follow the metadata, step down in time.
//!
//! Goals in order: never act as leader past the lease (P10); be unfenced as soon as the rules allow; survive any change
//! of controller without a person.
//!
//! ```text
//!   register ──► heartbeat stream to the active controller ──► lease, fenced or not ──┐
//!       ▲              │ stale epoch                                                  ├──► calls of the host
//!       └──────────────┘            metadata feed ──► image ──────────────────────────┘
//! ```
//!
//! # Building a partitioned system on it
//!
//! Implement [`PartitionHost`]: it is told what to do with each partition that has a replica here, in the order of the
//! metadata, from when the broker has read of its own registration. Then start the agent, and drive the host:
//!
//! ```no_run
//! use std::{sync::Arc, time::Duration};
//! use quorate_client::agent::{AgentConfig, BrokerAgent, PartitionHost};
//!
//! async fn serve(config: AgentConfig, host: Arc<dyn PartitionHost>) {
//!     let mut agent = BrokerAgent::start(config);
//!     agent.drive(host);
//!     tokio::select! {
//!         error = agent.failed() => return eprintln!("{error}"),
//!         _ = tokio::signal::ctrl_c() => {}
//!     }
//!     // The leaderships move first, and the host serves until then. The epoch proves a clean stop to the next start, if all
//!     // that the host has written is on stable storage.
//!     let stopped = agent.shut_down(Duration::from_secs(30)).await;
//!     println!("leaderships moved: {}, proof: {:?}", stopped.is_confirmed, stopped.epoch);
//! }
//! ```
//!
//! What the host has to heed:
//!
//! - **The lease.** `become_offline` is called when it ends, but a call can be late, behind another one that takes long
//!   or in a process that was paused. So before a leader acknowledges, or answers a read, it asks
//!   [`LeaderCheck::may_lead`] after the work is done, not before it. That compares the epoch with the newest metadata as
//!   well, because the call that ends a leadership can be as late as the one that ends the lease.
//! - **Epochs.** The leader epoch grows with every leader: stamp what is written with it, send it with every request
//!   between replicas, and refuse a smaller one. The partition epoch grows with every change: of two states of a
//!   partition the one with the greater partition epoch is the newer. The broker epoch tells one life of a broker from
//!   the next: a follower says it when it fetches, so that what it had before a restart is not counted.
//! - **Repeated calls.** The same role at the same leader epoch means that something else changed, such as the ISR.
//! - **The ISR.** A leader asks for another one by [`BrokerAgent::isr_changes`], one change of a partition at a time.
//!   Until the outcome is known it counts with the larger of both sets; after [`IsrOutcome::Pending`] until the host has
//!   been told a greater partition epoch; only after [`IsrOutcome::NotApplied`] it may go back.
//! - **Configs.** [`Assignment::configs`] has the topic's configs whose keys begin with the name of the kind. They come with each
//!   role, which is stated again when they change. Nothing has checked their values.
//! - **Deletion.** Only newer metadata than the broker's registration deletes, and only what it says was removed or moved. What
//!   the metadata does not know is a stray, and is kept: an operator decides.
//! - **Probes.** A controller that has no stream from a broker connects to the endpoint that its registration names for that,
//!   and fences the broker at once if the connection is refused; a new controller asks all brokers so. By default the agent
//!   opens a listener of its own for it ([`ProbedEndpoint`]). A host that names one of its endpoints instead listens there
//!   before it starts the agent, and as long as it runs.
//! - **Failed disks.** Report them by [`BrokerAgent::report_offline`], so that others can lead what was on them.
//!
//! The example `sharded_counter` is such a system in little more than a hundred lines.

mod cache;
mod calls;
mod connect;
mod driver;
mod duties;
#[cfg(test)]
mod fixture;
mod follow;
mod host;
mod isr_changes;
mod leader_check;
mod lease;
mod probe;
mod session;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};
use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use quorate_metadata::ids::{BrokerEpoch, BrokerId, ClusterId, DirectoryId, IncarnationId, Offset};
use quorate_metadata::record::{Endpoint, Kind, VersionRange};
use quorate_metadata::{ApiError, MetadataImage};
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep_until, timeout};

use crate::network::Network;

pub use cache::MetadataCache;
pub use calls::ControllerCalls;
pub use follow::LocalMetadata;
pub use host::{Assignment, DeleteReason, OfflineReason, PartitionHost};
pub use isr_changes::{AwaitedOutcome, IsrChange, IsrChanges, IsrOutcome};
pub use leader_check::{LeaderCheck, LeaderState};
pub use probe::{PROBE_ENDPOINT, ProbedEndpoint};

/// Which address to dial for an announced one.
pub type Resolve = Arc<dyn Fn(&str) -> String + Send + Sync>;

pub struct AgentConfig {
    pub broker: BrokerId,
    pub cluster: ClusterId,
    pub incarnation: IncarnationId,
    /// The system that it runs: it gets replicas of topics of this kind alone.
    pub kind: Kind,
    pub endpoints: Vec<Endpoint>,
    /// At which endpoint a refused connection proves to a controller that this process is gone: `ProbedEndpoint::default()`,
    /// unless the process listens at one of its endpoints all the time anyway.
    pub probe: ProbedEndpoint,
    pub rack: Option<String>,
    pub features: BTreeMap<String, VersionRange>,
    pub directories: Vec<DirectoryId>,
    /// The epoch that it had before, if its log directories still have all that it acknowledged then: after a clean stop, or a
    /// crash that took nothing from the disk. Without it, its replicas are trusted again when they have caught up with a leader: a
    /// partition of which all replicas came back so has no leader until an operator accepts a loss.
    pub previous_epoch: Option<BrokerEpoch>,
    /// Nodes to ask, the nearest first.
    pub bootstrap: Vec<String>,
    /// Committed metadata that this process has already; with `None` the agent follows the feed of a node.
    pub local_metadata: Option<Arc<dyn LocalMetadata>>,
    pub resolve: Resolve,
    pub network: Network,
    /// How long a registration may be refused as a duplicate before the agent gives up; `None`: it goes on trying.
    pub registration_timeout: Option<Duration>,
    /// How long a replica is kept that is found at the start, and whose topic was deleted or that was moved meanwhile:
    /// `STRAY_GRACE`, unless there is a reason.
    pub stray_grace: Duration,
}

/// Long enough that a person who has started a broker on the wrong disk, or against the wrong cluster, can stop it
/// before its replicas are deleted.
pub const STRAY_GRACE: Duration = Duration::from_secs(300);

/// How long after its last lease a broker that stops waits for a controller. With all of them gone there is nobody to hand
/// its leaderships over to.
const OUT_OF_REACH_AFTER: Duration = Duration::from_secs(3);

/// How an agent has stopped.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stopped {
    /// Its last one, if it was registered. With all that was written on stable storage it proves a clean stop to the next
    /// start, whether or not a controller has heard of it.
    pub epoch: Option<BrokerEpoch>,
    /// Its leaderships have moved, and every other broker has seen that.
    pub is_confirmed: bool,
}

/// Where the broker stands with the controllers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Standing {
    /// None until registered.
    pub epoch: Option<BrokerEpoch>,
    pub fenced: bool,
    /// It may act as leader until then. After a lapse it has read what the controllers decided meanwhile.
    pub lease_until: Option<Instant>,
    /// It may stop: its leaderships are elsewhere, and every broker has seen it.
    pub may_stop: bool,
}

impl Standing {
    const UNREGISTERED: Self = Self { epoch: None, fenced: true, lease_until: None, may_stop: false };

    /// Whether the broker may act as leader now. When the lease has ended it must not, whatever it last heard.
    pub fn may_lead(&self, now: Instant) -> bool {
        !self.fenced && self.lease_until.is_some_and(|until| now < until)
    }
}

/// What the broker tells the controllers with every heartbeat.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct Wish {
    shut_down: bool,
    /// Directories that have failed.
    offline: BTreeSet<DirectoryId>,
    /// What is wrong with the disks, for people.
    disk_problems: Vec<String>,
}

/// A running agent. Dropping it stops the agent without a goodbye.
pub struct BrokerAgent {
    config: Arc<AgentConfig>,
    standing: watch::Receiver<Standing>,
    refusal: watch::Receiver<Option<ApiError>>,
    cache: MetadataCache,
    wish: watch::Sender<Wish>,
    session: JoinHandle<ApiError>,
    follower: JoinHandle<Infallible>,
    isr_changes: IsrChanges,
    isr_changer: JoinHandle<Infallible>,
    driver: Option<JoinHandle<Infallible>>,
}

impl BrokerAgent {
    /// Starts registering. Resolve the outcome by `standing` or `failed`.
    pub fn start(config: AgentConfig) -> Self {
        let config = Arc::new(config);
        let cache = MetadataCache::new();
        let (standing_sender, standing) = watch::channel(Standing::UNREGISTERED);
        let (wish, wishes) = watch::channel(Wish::default());
        let told = watch::Sender::new(Offset::default());
        let follower = spawn(follow::follow(config.clone(), cache.clone(), told.subscribe()));
        let (refusal_sender, refusal) = watch::channel(None);
        let session = session::run(config.clone(), cache.clone(), told, standing_sender, refusal_sender, wishes);
        let session = tokio::spawn(session);
        let (isr_changes, changer) = isr_changes::start(config.clone(), standing.clone(), cache.changes());
        let isr_changer = spawn(changer);
        Self { config, standing, refusal, cache, wish, session, follower, isr_changes, isr_changer, driver: None }
    }

    /// Drives the replicas of `host` until the agent is dropped: during `shut_down` too, because a leader serves until
    /// its leaderships have moved. One agent drives one host.
    pub fn drive(&mut self, host: Arc<dyn PartitionHost>) {
        assert!(self.driver.is_none(), "the agent drives a host already");
        let driver =
            driver::run(self.broker(), self.config.stray_grace, host, self.standing.clone(), self.cache.changes());
        self.driver = Some(spawn(driver));
    }

    /// Where the leaders on this broker ask for changes of their ISR.
    pub fn isr_changes(&self) -> IsrChanges {
        self.isr_changes.clone()
    }

    /// What a leader asks before it acknowledges, or answers a read.
    pub fn leader_check(&self) -> LeaderCheck {
        LeaderCheck::new(self.broker(), self.standing(), self.cache.changes())
    }

    /// The other calls of a broker to its controllers.
    pub fn calls(&self) -> ControllerCalls {
        ControllerCalls::new(self.config.clone(), self.standing())
    }

    /// Directories that have failed, for as long as this agent lives: every heartbeat names them from now on, and one is sent at once.
    pub fn report_offline(&self, directories: BTreeSet<DirectoryId>) {
        self.wish.send_modify(|wish| wish.offline.extend(directories));
    }

    /// What is wrong with the disks of this node, a sentence each. It replaces what was reported before, and is sent at once.
    pub fn report_disk_problems(&self, problems: Vec<String>) {
        self.wish.send_if_modified(|wish| {
            let is_new = wish.disk_problems != problems;
            wish.disk_problems = problems;
            is_new
        });
    }

    pub fn standing(&self) -> watch::Receiver<Standing> {
        self.standing.clone()
    }

    /// Why it is not registered, while it tries.
    pub fn registration_refusal(&self) -> watch::Receiver<Option<ApiError>> {
        self.refusal.clone()
    }

    pub fn metadata(&self) -> &MetadataCache {
        &self.cache
    }

    /// Waits until the agent cannot go on: its registration was refused for good. A panic in one of its tasks, the
    /// host's calls among them, goes on here.
    pub async fn failed(&mut self) -> ApiError {
        tokio::select! {
            ended = &mut self.session => ended.unwrap_or_else(|error| std::panic::resume_unwind(error.into_panic())),
            error = panicked(Some(&mut self.follower)) => error,
            error = panicked(Some(&mut self.isr_changer)) => error,
            error = panicked(self.driver.as_mut()) => error,
        }
    }

    /// Asks for a controlled shutdown, and waits until the broker may stop, or no controller answers any more.
    pub async fn shut_down(mut self, deadline: Duration) -> Stopped {
        self.wish.send_modify(|wish| wish.shut_down = true);
        let left_alone = out_of_reach(self.standing.clone());
        let is_confirmed = tokio::select! {
            stopped = timeout(deadline, self.standing.wait_for(|standing| standing.may_stop)) => {
                matches!(stopped, Ok(Ok(_)))
            }
            () = left_alone => false,
        };
        let epoch = self.standing.borrow().epoch;
        Stopped { epoch, is_confirmed }
    }

    pub fn broker(&self) -> BrokerId {
        self.config.broker
    }

    /// The metadata as this broker knows it.
    pub fn image(&self) -> MetadataImage {
        self.cache.image()
    }
}

/// Until no controller has granted a lease for longer than an election takes, and some more.
async fn out_of_reach(mut standing: watch::Receiver<Standing>) {
    loop {
        let lease_until = standing.borrow_and_update().lease_until.unwrap_or_else(Instant::now);
        tokio::select! {
            () = sleep_until(lease_until + OUT_OF_REACH_AFTER) => return,
            changed = standing.changed() => if changed.is_err() { return },
        }
    }
}

impl Drop for BrokerAgent {
    fn drop(&mut self) {
        self.session.abort();
        self.follower.abort();
        self.isr_changer.abort();
        if let Some(driver) = &self.driver {
            driver.abort();
        }
    }
}

/// Starts a task that ends only by a panic or with the agent, so that it can be waited for again and again.
fn spawn(task: impl Future<Output = ()> + Send + 'static) -> JoinHandle<Infallible> {
    tokio::spawn(async {
        task.await;
        std::future::pending().await
    })
}

/// Goes on with a panic in the task.
async fn panicked(task: Option<&mut JoinHandle<Infallible>>) -> ApiError {
    match task {
        Some(task) => match task.await {
            Err(error) if error.is_panic() => std::panic::resume_unwind(error.into_panic()),
            Ok(_) | Err(_) => std::future::pending().await,
        },
        None => std::future::pending().await,
    }
}
