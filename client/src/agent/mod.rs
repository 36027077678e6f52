//! The broker's side of the control plane: register, heartbeat, follow the metadata, step down in time.
//!
//! Goals in order: never act as leader past the lease (P10); be unfenced as soon as the rules allow; survive any change
//! of controller without a person.
//!
//! ```text
//!   register ──► heartbeat stream to the active controller ──► lease, fenced or not
//!       ▲              │ stale epoch                               │
//!       └──────────────┘            metadata feed ──► image ──► what this broker leads and follows
//! ```

mod cache;
mod calls;
mod connect;
mod driver;
mod duties;
mod host;
mod isr_changes;
mod session;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use quorate_metadata::ids::{BrokerEpoch, BrokerId, ClusterId, DirectoryId, IncarnationId, Offset};
use quorate_metadata::record::{Endpoint, VersionRange};
use quorate_metadata::{ApiError, MetadataImage};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::Instant;

pub use cache::MetadataCache;
pub use calls::ControllerCalls;
pub use host::{Assignment, DeleteReason, OfflineReason, PartitionHost};
pub use isr_changes::{IsrChange, IsrChanges, IsrOutcome};

/// Which address to dial for an announced one.
pub type Resolve = Arc<dyn Fn(&str) -> String + Send + Sync>;

pub struct AgentConfig {
    pub broker: BrokerId,
    pub cluster: ClusterId,
    pub incarnation: IncarnationId,
    pub endpoints: Vec<Endpoint>,
    pub rack: Option<String>,
    pub features: BTreeMap<String, VersionRange>,
    pub directories: Vec<DirectoryId>,
    /// Known only after a clean stop.
    pub previous_epoch: Option<BrokerEpoch>,
    /// Nodes to ask, the nearest first.
    pub bootstrap: Vec<String>,
    pub resolve: Resolve,
    /// How long a registration may be refused as a duplicate, or find no controller, before the agent gives up.
    pub registration_timeout: Duration,
    /// How long a replica that the metadata does not know is kept before the host is told to delete it.
    pub stray_grace: Duration,
}

/// Where the broker stands with the controllers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Standing {
    /// None until registered.
    pub epoch: Option<BrokerEpoch>,
    pub fenced: bool,
    /// It may act as leader until then.
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

/// What the broker wants of the controllers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) enum Wish {
    #[default]
    Serve,
    ShutDown,
}

/// A running agent. Dropping it stops the agent without a goodbye.
pub struct BrokerAgent {
    broker: BrokerId,
    standing: watch::Receiver<Standing>,
    cache: MetadataCache,
    wish: watch::Sender<Wish>,
    offline: Arc<watch::Sender<BTreeSet<DirectoryId>>>,
    config: Arc<AgentConfig>,
    session: tokio::task::JoinHandle<ApiError>,
    /// The metadata follower, and what serves the host.
    tasks: JoinSet<()>,
}

impl BrokerAgent {
    /// Starts registering. Resolve the outcome by `standing` or `failed`.
    pub fn start(config: AgentConfig) -> Self {
        let config = Arc::new(config);
        let cache = MetadataCache::new();
        let (standing_sender, standing) = watch::channel(Standing::UNREGISTERED);
        let (wish, wishes) = watch::channel(Wish::Serve);
        let told = watch::Sender::new(Offset::default());
        let offline = Arc::new(watch::Sender::new(BTreeSet::new()));
        let mut tasks = JoinSet::new();
        tasks.spawn(cache::follow(config.clone(), cache.clone(), told.subscribe()));
        let wishes = session::Wishes { wish: wishes, offline: offline.subscribe() };
        let session = tokio::spawn(session::run(config.clone(), cache.clone(), told, standing_sender, wishes));
        Self { broker: config.broker, standing, cache, wish, offline, config, session, tasks }
    }

    /// From now on `host` is told what it leads and follows, until the agent is dropped: also while it shuts down,
    /// because a leader serves until others have taken over.
    pub fn drive(&mut self, host: Arc<dyn PartitionHost>) {
        let grace = self.config.stray_grace;
        self.tasks.spawn(driver::run(self.broker, host, grace, self.standing(), self.cache.changes()));
    }

    /// Asks the controllers for changes of the ISRs of partitions that this broker leads.
    pub fn isr_changes(&mut self) -> IsrChanges {
        let (changes, run) = isr_changes::start(self.calls(), self.standing(), self.cache.changes());
        self.tasks.spawn(run);
        changes
    }

    /// The other calls of a broker to its controllers.
    pub fn calls(&self) -> ControllerCalls {
        ControllerCalls::new(self.config.clone(), self.standing())
    }

    /// Tells the controllers which log directories have failed.
    pub fn offline_reports(&self) -> OfflineReports {
        OfflineReports { offline: self.offline.clone() }
    }

    pub fn standing(&self) -> watch::Receiver<Standing> {
        self.standing.clone()
    }

    pub fn metadata(&self) -> &MetadataCache {
        &self.cache
    }

    /// Waits until the agent cannot go on: its registration was refused for good.
    pub async fn failed(&mut self) -> ApiError {
        loop {
            tokio::select! {
                ended = &mut self.session => match ended {
                    Ok(error) => return error,
                    Err(error) => std::panic::resume_unwind(error.into_panic()),
                },
                Some(ended) = self.tasks.join_next() => {
                    // They end by themselves only together with the session, which knows why.
                    if let Err(error) = ended {
                        std::panic::resume_unwind(error.into_panic());
                    }
                }
            }
        }
    }

    /// Asks for a controlled shutdown and waits until the broker may stop; its last epoch when it did in time, the
    /// proof of a clean stop for the next start.
    pub async fn shut_down(mut self, deadline: Duration) -> Option<BrokerEpoch> {
        self.wish.send_replace(Wish::ShutDown);
        let stopped = self.standing.wait_for(|standing| standing.may_stop);
        match tokio::time::timeout(deadline, stopped).await {
            Ok(Ok(standing)) => standing.epoch,
            Ok(Err(_)) | Err(_) => None,
        }
    }

    pub fn broker(&self) -> BrokerId {
        self.broker
    }

    /// The metadata as this broker knows it.
    pub fn image(&self) -> MetadataImage {
        self.cache.image()
    }
}

/// A handle; clones are the same.
#[derive(Clone)]
pub struct OfflineReports {
    offline: Arc<watch::Sender<BTreeSet<DirectoryId>>>,
}

impl OfflineReports {
    /// All that have failed since the registration; said with every heartbeat from now on.
    pub fn send(&self, failed: BTreeSet<DirectoryId>) {
        self.offline.send_replace(failed);
    }
}

impl Drop for BrokerAgent {
    fn drop(&mut self) {
        self.session.abort();
    }
}
