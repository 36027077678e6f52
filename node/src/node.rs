//! One node: starts what its roles need, and stops it in the right order.

mod assembly;
mod member;
mod outside;
mod registration;

use std::future::Future;
use std::io;
use std::path::PathBuf;
use std::time::Duration;

use quorate_client::network::{Network, Port};
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tracing::{error, info, warn};

use crate::api::{self, Api, DataPlaneSlot};
use crate::broker::{self, BrokerConfig, BrokerError};
use crate::config::{ConfigError, NodeConfig, Role};
use crate::http::{self, HttpState};
use crate::machine::{Machine, TaskRunner};
use crate::raft::{DialMap, RaftError};

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
    #[error(transparent)]
    Broker(#[from] BrokerError),
    #[error("stopped: {0}")]
    Stopped(String),
}

/// Runs the node on a machine until `stop` resolves or it cannot go on.
pub async fn run_on(machine: Machine, config: NodeConfig, stop: impl Future<Output = ()>) -> Result<(), NodeError> {
    if config.has(Role::Controller) {
        member::run(machine, config, stop).await
    } else {
        outside::run(machine, config, stop).await
    }
}

/// The ports of a node, bound before anything is written: one in use must not leave a half-made data directory behind.
struct Listeners {
    api: Port,
    http: Option<TcpListener>,
}

impl Listeners {
    async fn bind(network: &Network, config: &NodeConfig) -> Result<Self, NodeError> {
        let api = listen(network, &config.api_listen).await?;
        let http = if config.http_listen.is_empty() { None } else { Some(listen_socket(&config.http_listen).await?) };
        Ok(Self { api, http })
    }
}

/// The servers of a node, and how to tell them to stop.
struct Servers {
    tasks: JoinSet<Result<(), NodeError>>,
    /// Answers until the end, and is not told to stop.
    http: JoinSet<Result<(), NodeError>>,
    stop: watch::Sender<bool>,
}

impl Servers {
    /// The HTTP port answers while the rest of the node starts.
    fn start(listener: Option<TcpListener>, state: HttpState) -> Self {
        let mut servers = Self { tasks: JoinSet::new(), http: JoinSet::new(), stop: watch::Sender::new(false) };
        if let Some(listener) = listener {
            servers.http.spawn(async move {
                http::serve(state, listener).await.map_err(|error| NodeError::Serve(error.to_string()))
            });
        }
        servers
    }

    fn serve_api(&mut self, port: Port, api: Api) {
        let stop = told(self.stop.subscribe());
        self.tasks.spawn(async move {
            api::serve(api, port, stop).await.map_err(|error| NodeError::Serve(error.to_string()))
        });
    }

    /// Waits until a server ends, which none does unasked.
    async fn ended(&mut self) -> NodeError {
        let ended = tokio::select! {
            Some(ended) = self.tasks.join_next() => ended,
            Some(ended) = self.http.join_next() => ended,
            else => return std::future::pending().await,
        };
        flatten(ended).err().unwrap_or_else(|| NodeError::Stopped("a server ended".to_owned()))
    }

    /// The HTTP port goes on until this value is dropped.
    async fn stop(&mut self) {
        self.stop.send_replace(true);
        let drained = async { while self.tasks.join_next().await.is_some() {} };
        if tokio::time::timeout(DRAIN_TIMEOUT, drained).await.is_err() {
            self.tasks.abort_all();
        }
    }
}

/// The broker role, where the node has it.
struct BrokerRole {
    task: JoinSet<Result<(), NodeError>>,
    stop: watch::Sender<bool>,
    _runner: TaskRunner,
}

/// A change of very many partitions keeps a thread busy for long: heartbeats go on by another one.
const BROKER_THREADS: usize = 2;

impl BrokerRole {
    fn none() -> Self {
        Self { task: JoinSet::new(), stop: watch::Sender::new(false), _runner: TaskRunner::default() }
    }

    /// On threads of its own: it must hold up neither the node's API nor its controller.
    fn start(machine: &Machine, config: BrokerConfig) -> Self {
        let runner = machine.workers.task_runner("broker", BROKER_THREADS);
        let (mut task, stop) = (JoinSet::new(), watch::Sender::new(false));
        let stopped = stop.subscribe();
        runner.spawn(&mut task, async move { broker::run(config, stopped).await.map_err(NodeError::Broker) });
        Self { task, stop, _runner: runner }
    }

    /// Gives its leaderships up without handing them over, and waits until its logs are closed.
    async fn abort(mut self) {
        if tokio::time::timeout(DRAIN_TIMEOUT, self.task.shutdown()).await.is_err() {
            warn!("the broker does not end");
        }
    }

    /// Waits until the broker ends, which it does unasked only when it cannot go on.
    async fn ended(&mut self) -> NodeError {
        match self.task.join_next().await {
            Some(ended) => flatten(ended).err().unwrap_or_else(|| NodeError::Stopped("the broker ended".to_owned())),
            None => std::future::pending().await,
        }
    }

    /// Hands the leaderships over first.
    async fn stop(mut self) {
        self.stop.send_replace(true);
        while let Some(ended) = self.task.join_next().await {
            if let Err(error) = flatten(ended) {
                warn!(%error, "broker");
            }
        }
    }
}

/// The data plane is served where there is a broker.
fn log(config: &NodeConfig, slot: &DataPlaneSlot) -> Option<DataPlaneSlot> {
    config.has(Role::Broker).then(|| slot.clone())
}

/// Logs why the node ends, if not because it was told to.
fn report(outcome: Result<(), NodeError>) -> Result<(), NodeError> {
    if let Err(error) = &outcome {
        error!(%error, "cannot go on");
    }
    outcome
}

fn started(config: &NodeConfig, cluster: impl std::fmt::Display) {
    info!(node = config.node_id, roles = ?config.roles, api = %config.api_listen, %cluster, "started");
}

fn dial_map(machine: &Machine, config: &NodeConfig) -> Result<DialMap, NodeError> {
    let map = if config.dial_map.is_empty() {
        DialMap::none()
    } else {
        let path = PathBuf::from(&config.dial_map);
        DialMap::file(&path).map_err(|source| NodeError::DialMap { path, source })?
    };
    Ok(map.over(machine.network.clone()))
}

async fn listen(network: &Network, address: &str) -> Result<Port, NodeError> {
    network.listen(address).await.map_err(|source| NodeError::Listen { address: address.to_owned(), source })
}

async fn listen_socket(address: &str) -> Result<TcpListener, NodeError> {
    TcpListener::bind(address).await.map_err(|source| NodeError::Listen { address: address.to_owned(), source })
}

async fn told(mut stop: watch::Receiver<bool>) {
    // A dropped sender means that the node is gone, which is a reason to stop as well.
    let _ = stop.wait_for(|stop| *stop).await;
}

fn flatten(ended: Result<Result<(), NodeError>, tokio::task::JoinError>) -> Result<(), NodeError> {
    ended.unwrap_or_else(|error| Err(NodeError::Stopped(format!("a task panicked: {error}"))))
}
