//! One node: starts what its roles need, and stops it in the right order.

use std::future::Future;
use std::io;
use std::net::TcpListener as StdListener;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use quorate_client::agent::Resolve;
use quorate_metadata::ApiError;
use quorate_metadata::ids::{BrokerId, IncarnationId};
use quorate_metadata::plan::features;
use quorate_metadata::record::{ControllerRegistration, Endpoint, SecurityProtocol};
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tracing::{error, info, warn};
use uuid::Uuid;

use crate::api::{self, ApiServer, Gateway, HeartbeatTerms};
use crate::broker::{self, BrokerConfig};
use crate::config::{ConfigError, NodeConfig, Role, host_and_port};
use crate::controller::{ControllerConfig, EventLoop};
use crate::http::{self, HttpState};
use crate::metrics::Metrics;
use crate::raft::{DialMap, RaftConfig, RaftError, RaftNode, RocksStore, VoterAddress};
use crate::replica::{MetadataReplica, MetadataView};

/// How long a stopping node looks for another controller to hand over to.
const HAND_OVER_TIMEOUT: Duration = Duration::from_secs(2);

/// How long calls under way may take to end.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(2);

#[derive(Debug, thiserror::Error)]
pub enum NodeError {
    #[error(transparent)]
    Config(#[from] ConfigError),
    #[error(transparent)]
    Raft(#[from] RaftError),
    #[error("cannot listen on {address}: {source}")]
    Listen { address: String, source: io::Error },
    #[error("cannot read the dial map {path:?}: {source}")]
    DialMap { path: PathBuf, source: io::Error },
    #[error("cannot serve: {0}")]
    Serve(String),
    #[error("the broker cannot register: {0}")]
    Broker(ApiError),
    #[error("stopped: {0}")]
    Stopped(String),
}

/// Runs the node until `stop` resolves or it cannot go on.
pub async fn run(config: NodeConfig, stop: impl Future<Output = ()>) -> Result<(), NodeError> {
    let node = Node::start(config).await?;
    node.run(stop).await
}

struct Node {
    config: NodeConfig,
    raft: RaftNode,
    gateway: Gateway,
    tasks: JoinSet<Result<(), NodeError>>,
    /// Each is told to stop on its own, because the order matters.
    stop_broker: watch::Sender<bool>,
    stop_controller: watch::Sender<bool>,
    stop_servers: watch::Sender<bool>,
}

impl Node {
    async fn start(config: NodeConfig) -> Result<Self, NodeError> {
        let dial = dial_map(&config)?;
        // Bound before anything is written: a port in use must not leave a half-made data directory behind.
        let raft_listener = listen_std(&config.raft_listen)?;
        let api_listener = listen(&config.api_listen).await?;
        let http_listener =
            if config.http_listen.is_empty() { None } else { Some(listen(&config.http_listen).await?) };

        let view = MetadataView::new();
        let metrics = Arc::new(Metrics::new());
        let store = RocksStore::new(&config.data_dir);
        let replica = Box::new(MetadataReplica::new(view.clone()));
        let raft = RaftNode::start(raft_config(&config, &dial)?, store, raft_listener, replica).await?;
        let (event_loop, controller) =
            EventLoop::new(controller_config(&config, &dial), raft.clone(), view.clone(), metrics.clone());
        let gateway = Gateway::new(
            config.controller_id(),
            controller.clone(),
            raft.clone(),
            view,
            dial.clone(),
            config.lease_reads,
        );
        let mut node = Self {
            config,
            raft,
            gateway,
            tasks: JoinSet::new(),
            stop_broker: watch::Sender::new(false),
            stop_controller: watch::Sender::new(false),
            stop_servers: watch::Sender::new(false),
        };
        let stop = node.stop_controller.subscribe();
        node.tasks.spawn(async move {
            event_loop.run(stop).await;
            Ok(())
        });
        node.spawn_api(api_listener);
        if let Some(listener) = http_listener {
            node.spawn_http(listener, metrics);
        }
        Ok(node)
    }

    fn spawn_api(&mut self, listener: TcpListener) {
        let server = ApiServer { gateway: self.gateway.clone(), heartbeat: heartbeat_terms(&self.config) };
        let stop = told(self.stop_servers.subscribe());
        self.tasks.spawn(async move {
            api::serve(server, listener, stop).await.map_err(|error| NodeError::Serve(error.to_string()))
        });
    }

    fn spawn_http(&mut self, listener: TcpListener, metrics: Arc<Metrics>) {
        let state = HttpState { gateway: self.gateway.clone(), metrics };
        let stop = told(self.stop_servers.subscribe());
        self.tasks.spawn(async move {
            http::serve(state, listener, stop).await.map_err(|error| NodeError::Serve(error.to_string()))
        });
    }

    async fn run(mut self, stop: impl Future<Output = ()>) -> Result<(), NodeError> {
        let mut broker = JoinSet::new();
        if self.config.has(Role::Broker) {
            let config = broker_config(&self.config, &self.gateway)?;
            let stop = self.stop_broker.subscribe();
            broker.spawn(async move { broker::run(config, stop).await.map_err(NodeError::Broker) });
        }
        info!(node = self.config.node_id, api = %self.config.api_listen, raft = %self.config.raft_listen, cluster = %self.raft.cluster(), "started");
        let mut raft_stopped = self.raft.stopped();
        let outcome = tokio::select! {
            () = stop => Ok(()),
            reason = raft_stopped.wait_for(Option::is_some) => Err(NodeError::Stopped(reason_of(reason))),
            Some(ended) = broker.join_next() => flatten(ended),
            Some(ended) = self.tasks.join_next() => flatten(ended),
        };
        if let Err(error) = &outcome {
            error!(%error, "cannot go on");
        }
        self.shut_down(broker, outcome.is_ok()).await;
        outcome
    }

    /// Leaderships first, then the controller's office, then the servers, and the log at the very end.
    async fn shut_down(mut self, mut broker: JoinSet<Result<(), NodeError>>, graceful: bool) {
        if graceful {
            self.stop_broker.send_replace(true);
            while let Some(ended) = broker.join_next().await {
                if let Err(error) = flatten(ended) {
                    warn!(%error, "broker");
                }
            }
            self.hand_over().await;
        }
        self.stop_controller.send_replace(true);
        self.stop_servers.send_replace(true);
        let drained = async { while self.tasks.join_next().await.is_some() {} };
        if tokio::time::timeout(DRAIN_TIMEOUT, drained).await.is_err() {
            self.tasks.abort_all();
        }
        self.raft.shutdown().await;
        info!(node = self.config.node_id, "stopped");
    }

    async fn hand_over(&self) {
        if self.gateway.claimed().is_none() {
            return;
        }
        match tokio::time::timeout(HAND_OVER_TIMEOUT, self.raft.transfer_leadership(None)).await {
            Ok(Ok(())) => info!("controller handed over"),
            Ok(Err(error)) => warn!(%error, "nobody to hand the controller over to"),
            Err(_) => warn!("handing the controller over took too long"),
        }
    }
}

fn raft_config(config: &NodeConfig, dial: &DialMap) -> Result<RaftConfig, NodeError> {
    Ok(RaftConfig {
        node: config.controller_id(),
        voters: config.voter_addresses()?,
        data: config.data_dir.clone(),
        cluster: config.cluster()?,
        dial: dial.clone(),
        auto_format: config.may_auto_format()?,
        heartbeat_ms: config.raft_heartbeat_ms,
        election_min_ms: config.raft_election_min_ms,
        election_max_ms: config.raft_election_max_ms,
        fast_election: config.fast_election,
        snapshot_log_bytes: config.snapshot_log_bytes,
        log_entries_kept: config.log_entries_kept,
    })
}

fn controller_config(config: &NodeConfig, dial: &DialMap) -> ControllerConfig {
    ControllerConfig {
        registration: ControllerRegistration {
            controller: config.controller_id(),
            incarnation: IncarnationId::new(Uuid::new_v4()),
            endpoints: vec![endpoint(config)],
            features: features::supported(),
        },
        session_timeout: config.session_timeout(),
        dial: dial.clone(),
        seed: Uuid::new_v4().as_u64_pair().0,
    }
}

fn heartbeat_terms(config: &NodeConfig) -> HeartbeatTerms {
    HeartbeatTerms {
        interval: Duration::from_millis(config.broker_heartbeat_interval_ms),
        lease: config.lease(),
        quorum_silence_max: Duration::from_millis(config.raft_election_max_ms),
    }
}

fn broker_config(config: &NodeConfig, gateway: &Gateway) -> Result<BrokerConfig, NodeError> {
    let voters = config.voter_addresses()?;
    let own = config.api_address().to_owned();
    let others = voters.iter().map(|voter| voter.api.clone()).filter(|api| *api != own);
    Ok(BrokerConfig {
        broker: BrokerId::new(config.node_id),
        cluster: gateway.raft.cluster(),
        incarnation: IncarnationId::new(Uuid::new_v4()),
        endpoint: endpoint(config),
        rack: (!config.rack.is_empty()).then(|| config.rack.clone()),
        directory: gateway.raft.directory(),
        data: config.data_dir.clone(),
        bootstrap: std::iter::once(own.clone()).chain(others).collect(),
        resolve: resolve(voters, dial_map(config)?),
        registration_timeout: Duration::from_millis(config.broker_registration_timeout_ms),
        controlled_shutdown_timeout: Duration::from_millis(config.controlled_shutdown_timeout_ms),
    })
}

/// The broker dials controllers through the same map as everyone on this node.
fn resolve(voters: Vec<VoterAddress>, dial: DialMap) -> Resolve {
    Arc::new(move |announced: &str| match voters.iter().find(|voter| voter.api == announced) {
        Some(voter) => dial.api(voter.id, announced),
        None => announced.to_owned(),
    })
}

fn endpoint(config: &NodeConfig) -> Endpoint {
    let (host, port) = host_and_port(config.api_address()).expect("the configuration was checked");
    Endpoint { name: "API".to_owned(), host: host.to_owned(), port, security: SecurityProtocol::Plaintext }
}

fn dial_map(config: &NodeConfig) -> Result<DialMap, NodeError> {
    if config.dial_map.is_empty() {
        return Ok(DialMap::none());
    }
    let path = PathBuf::from(&config.dial_map);
    DialMap::file(&path).map_err(|source| NodeError::DialMap { path, source })
}

fn listen_std(address: &str) -> Result<StdListener, NodeError> {
    StdListener::bind(address).map_err(|source| NodeError::Listen { address: address.to_owned(), source })
}

async fn listen(address: &str) -> Result<TcpListener, NodeError> {
    TcpListener::bind(address).await.map_err(|source| NodeError::Listen { address: address.to_owned(), source })
}

async fn told(mut stop: watch::Receiver<bool>) {
    // A dropped sender means that the node is gone, which is a reason to stop as well.
    let _ = stop.wait_for(|stop| *stop).await;
}

fn reason_of(reason: Result<watch::Ref<'_, Option<String>>, watch::error::RecvError>) -> String {
    reason.ok().and_then(|reason| reason.clone()).unwrap_or_else(|| "raft ended without a reason".to_owned())
}

fn flatten(ended: Result<Result<(), NodeError>, tokio::task::JoinError>) -> Result<(), NodeError> {
    ended.unwrap_or_else(|error| Err(NodeError::Stopped(format!("a task panicked: {error}"))))
}
