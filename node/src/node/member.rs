//! A node with a controller: part of the quorum.

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use quorate_client::agent::LocalMetadata;
use quorate_metadata::ApiError;
use tokio::sync::watch;
use tokio::task::{JoinError, JoinSet};
use tracing::{error, info, warn};

use super::{
    BrokerRole, Listeners, NodeError, Servers, assembly, dial_map, listen, log, registration, report, started,
};
use crate::api::{Api, ApiServer, Control, DataPlaneSlot, Gateway, Readiness};
use crate::broker::BrokerError;
use crate::config::{NodeConfig, Role};
use crate::controller::{EventLoop, Watchdog};
use crate::disks::DiskProblems;
use crate::http::HttpState;
use crate::machine::{Inside, Machine, TaskRunner, Worker};
use crate::metrics::Metrics;
use crate::raft::RaftNode;
use crate::replica::{MetadataReplica, MetadataView};

/// How long a stopping node looks for another controller to hand over to.
const HAND_OVER_TIMEOUT: Duration = Duration::from_secs(2);

/// How long the raft log may take to close: it ends what is being written, and begins nothing.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(10);

/// The event loop turns on a thread of its own; its probes share it, and wait for most of their time.
const CONTROLLER_THREADS: usize = 1;

pub async fn run(machine: Machine, config: NodeConfig, stop: impl Future<Output = ()>) -> Result<(), NodeError> {
    tokio::pin!(stop);
    // A voter that is not yet part of a cluster waits for the others, and can be told to stop meanwhile.
    let node = tokio::select! {
        node = Member::start(machine, config) => node?,
        () = &mut stop => return Ok(()),
    };
    node.run(stop).await
}

struct Member {
    raft: RaftNode,
    gateway: Gateway,
    event_loop: JoinSet<()>,
    stop_event_loop: watch::Sender<bool>,
    /// Becomes Some, with the reason, when the event loop has been held for too long.
    held: watch::Receiver<Option<String>>,
    _watchdog: Worker,
    _controller_runner: TaskRunner,
    /// Ends when the registration of this controller is refused for good.
    registration: JoinSet<ApiError>,
    servers: Servers,
    readiness: Readiness,
    broker: BrokerRole,
}

impl Member {
    async fn start(machine: Machine, config: NodeConfig) -> Result<Self, NodeError> {
        let dial = dial_map(&machine, &config)?;
        let raft_port = listen(&machine.network, &config.raft_listen).await?;
        let listeners = Listeners::bind(&machine.network, &config).await?;

        let (view, readiness, problems) = (MetadataView::new(), Readiness::default(), DiskProblems::default());
        let metrics = Arc::new(Metrics::new(problems.clone()));
        let http = HttpState { readiness: readiness.clone(), metrics: Some((metrics.clone(), view.clone())) };
        let mut servers = Servers::start(listeners.http, http);
        let raft_config = assembly::raft(&machine, &config, &dial)?;
        let replica = Box::new(MetadataReplica::new(view.clone(), machine.features()));
        let raft =
            RaftNode::start(raft_config, assembly::store(&machine, &config, &problems), raft_port, replica).await?;

        let controller_config = assembly::controller(&machine, &config, &dial);
        let registered = controller_config.registration.clone();
        let (event_loop, controller) = EventLoop::new(controller_config, raft.clone(), view.clone(), metrics.clone());
        // Each start has a window of its own, which nothing has filled before.
        let _ = machine.window.set(Inside { raft: raft.clone(), view: view.clone(), controller: controller.clone() });
        let (watchdog_ended, held) = watch::channel(None);
        let watchdog = Watchdog {
            pulse: event_loop.pulse(),
            raft: raft.clone(),
            metrics: metrics.clone(),
            claim: event_loop.published_claim(),
            step_down_after: Duration::from_millis(config.raft_election_max_ms),
            end_after: config.session_timeout(),
            disk_timeout: config.disk_timeout(),
            problems: problems.clone(),
            ended: watchdog_ended,
        };
        let node = config.controller_id();
        let gateway = Gateway::new(node, controller, raft.clone(), view.clone(), dial.clone());
        let server = ApiServer { gateway: gateway.clone(), heartbeat: assembly::heartbeat(&config) };
        let slot = DataPlaneSlot::default();
        let log = log(&config, &slot);
        readiness.controller_started(gateway.clone());
        let control = Control::Here(Box::new(server));
        servers.serve_api(listeners.api, Api { control, log, readiness: readiness.clone() });

        let stop_event_loop = watch::Sender::new(false);
        let mut event_loop_task = JoinSet::new();
        let controller_runner = machine.workers.task_runner("controller", CONTROLLER_THREADS);
        controller_runner.spawn(&mut event_loop_task, event_loop.run(stop_event_loop.subscribe()));
        let watchdog = machine.workers.start("watchdog".to_owned(), watchdog.run(stop_event_loop.subscribe()));
        let mut registration = JoinSet::new();
        registration.spawn(registration::run(gateway.clone(), registered));
        let broker = if config.has(Role::Broker) {
            readiness.has_broker(config.broker_id(), slot.clone());
            let local_metadata = Some(Arc::new(view) as Arc<dyn LocalMetadata>);
            let broker = assembly::broker(&machine, &config, &dial, raft.cluster(), local_metadata, (slot, problems))?;
            BrokerRole::start(&machine, broker)
        } else {
            BrokerRole::none()
        };
        started(&config, raft.cluster());
        Ok(Self {
            raft,
            gateway,
            event_loop: event_loop_task,
            stop_event_loop,
            held,
            _watchdog: watchdog,
            _controller_runner: controller_runner,
            registration,
            servers,
            readiness,
            broker,
        })
    }

    async fn run(mut self, stop: impl Future<Output = ()>) -> Result<(), NodeError> {
        tokio::pin!(stop);
        let mut raft_stopped = self.raft.stopped();
        let outcome = loop {
            break tokio::select! {
                () = &mut stop => Ok(()),
                reason = reason(&mut raft_stopped, "raft ended without a reason") => Err(NodeError::Stopped(reason)),
                reason = reason(&mut self.held, "the watchdog ended") => Err(NodeError::Stopped(reason)),
                error = self.broker.ended() => match self.without_broker(error) {
                    Ok(()) => continue,
                    Err(error) => Err(error),
                },
                error = self.servers.ended() => Err(error),
                Some(ended) = self.registration.join_next() => Err(unregistered(ended)),
                Some(ended) = self.event_loop.join_next() => {
                    Err(NodeError::Stopped(format!("the controller's event loop ended: {ended:?}")))
                }
            };
        };
        let outcome = report(outcome);
        match &outcome {
            Ok(()) => self.shut_down().await,
            Err(_) => self.give_up().await,
        }
        outcome
    }

    /// A broker that is refused, or has lost its disks, leaves the voter to the quorum.
    fn without_broker(&self, error: NodeError) -> Result<(), NodeError> {
        match &error {
            NodeError::Broker(BrokerError::Register(_) | BrokerError::Directory { .. } | BrokerError::Reopen(_)) => {
                error!(%error, "the broker cannot go on; the controller does");
                self.readiness.broker_failed(error.to_string());
                Ok(())
            }
            _ => Err(error),
        }
    }

    /// Whoever cannot go on is gone at once, so that others take over.
    async fn give_up(self) {
        self.stop_event_loop.send_replace(true);
        // The slot of the data plane is in each of the first two.
        drop((self.servers, self.readiness, self.registration, self.event_loop));
        self.broker.abort().await;
        close(&self.raft).await;
    }

    /// Leaderships first, then the controller's office, then the servers, and the log at the very end.
    async fn shut_down(mut self) {
        self.readiness.stops();
        self.broker.stop().await;
        hand_over(&self.gateway).await;
        self.stop_event_loop.send_replace(true);
        while self.event_loop.join_next().await.is_some() {}
        self.servers.stop().await;
        close(&self.raft).await;
        info!(node = %self.gateway.node(), "stopped");
    }
}

fn unregistered(ended: Result<ApiError, JoinError>) -> NodeError {
    NodeError::Stopped(match ended {
        Ok(refusal) => format!("the controller cannot register: {refusal}"),
        Err(panic) => format!("a task panicked: {panic}"),
    })
}

/// A disk that does not answer must not keep the process.
async fn close(raft: &RaftNode) {
    if tokio::time::timeout(CLOSE_TIMEOUT, raft.shutdown()).await.is_err() {
        error!("the disk of the raft log does not answer: it is not closed");
    }
}

async fn hand_over(gateway: &Gateway) {
    if gateway.claimed().is_none() {
        return;
    }
    match tokio::time::timeout(HAND_OVER_TIMEOUT, gateway.raft.transfer_leadership(None)).await {
        Ok(Ok(())) => info!("controller handed over"),
        Ok(Err(error)) => warn!(%error, "nobody to hand the controller over to"),
        Err(_) => warn!("handing the controller over took too long"),
    }
}

async fn reason(stopped: &mut watch::Receiver<Option<String>>, without: &str) -> String {
    let reason = stopped.wait_for(Option::is_some).await.ok().and_then(|reason| reason.clone());
    reason.unwrap_or_else(|| without.to_owned())
}
