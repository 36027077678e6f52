//! The node's configuration: its keys, their defaults, and what is refused. `sources` puts it together.
//!
//! Flat on purpose: the key `raft_listen` of the file is `QUORATE_RAFT_LISTEN` in the environment and
//! `--set raft_listen=…` on the command line.

mod sources;

use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Duration;

use quorate_metadata::ids::{BrokerId, ClusterId, ControllerId};
use serde::{Deserialize, Serialize};

use crate::raft::VoterAddress;

pub use sources::{is_service_variable, load, merge};

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct NodeConfig {
    /// Shared by the controller and the broker of this node.
    pub node_id: i32,
    /// `controller`, `broker`, or both.
    pub roles: Vec<Role>,
    /// Where log, vote, snapshots and identity live.
    pub data_dir: PathBuf,
    /// 22 characters; empty: given by the node that bootstraps, or read from the data directory.
    pub cluster_id: String,
    /// The controllers: `ID@RAFT_HOST:PORT/API_HOST:PORT`.
    pub voters: Vec<String>,
    pub raft_listen: String,
    pub api_listen: String,
    /// `/metrics`, `/healthz`, `/readyz`; empty: none.
    pub http_listen: String,
    /// What others dial to reach `api_listen`; empty: the same address.
    pub api_advertised: String,
    pub rack: String,
    /// Per-peer addresses to dial instead of the announced ones; empty: none.
    pub dial_map: String,
    /// Accept non-loopback addresses without TLS.
    pub insecure: bool,
    /// When to give an empty data directory an identity without `quorate-node format`.
    pub auto_format: AutoFormat,

    pub broker_heartbeat_interval_ms: u64,
    pub broker_session_timeout_ms: u64,
    /// How long a node without a controller tries to register its broker while the id is registered by a process that
    /// lives; then it ends. A broker that reaches no controller goes on trying, and one that is refused for good ends at
    /// once. A node with a controller stays in the quorum, and its broker goes on trying or stays away.
    pub broker_registration_timeout_ms: u64,
    /// How long SIGTERM waits for leaderships to move before the node stops anyway.
    pub controlled_shutdown_timeout_ms: u64,

    /// Where the broker keeps records; empty: `logs` in the data directory. One that fails takes only its replicas away.
    pub log_dirs: Vec<PathBuf>,
    /// When a record counts as written on one replica.
    pub log_flush: LogFlush,
    /// A file that is another after each start of the machine. A broker whose process ended without warning keeps its place in
    /// the ELR if the file is still the same: what it wrote is with the operating system.
    pub boot_id_file: PathBuf,
    /// Producers are refused while the disk of a log directory has less room than this, or than a quarter of its file
    /// system if that is less. Followers fetch until half of it is left. 0: never.
    pub log_dir_free_bytes_min: u64,
    /// Room that is kept for the raft log: given up when its disk is full, so that topics can be deleted. At most an eighth
    /// of the file system. 0: none.
    pub raft_reserve_bytes: u64,
    /// How long the disk of a log directory or of the raft log may take to answer. Then the directory is offline, or the
    /// node leads no longer, until it answers.
    pub disk_timeout_ms: u64,
    /// How long a replica is kept that is found at the start, and whose topic was deleted or that was moved meanwhile.
    pub stray_grace_ms: u64,

    pub raft_heartbeat_ms: u64,
    pub raft_election_min_ms: u64,
    pub raft_election_max_ms: u64,
    /// Elect at once when the active controller's process is gone, instead of waiting out its lease.
    pub fast_election: bool,
    /// Bytes of log after which a snapshot is taken.
    pub snapshot_log_bytes: u64,
    /// Entries kept behind a snapshot for followers that lag a little.
    pub log_entries_kept: u64,

    pub log_format: LogFormat,
    /// A level, or filters as in `RUST_LOG`.
    pub log_level: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    Controller,
    Broker,
}

/// `never` is for production: an empty disk must not become an empty voter by accident.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum AutoFormat {
    /// Only where every voter is on loopback: a development cluster.
    Loopback,
    Always,
    Never,
}

/// `os` is Kafka's policy: a crash of the process loses nothing, and other replicas are the safety against a loss of
/// power. `always` syncs before each acknowledgement.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LogFlush {
    Os,
    Always,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    Text,
    Json,
}

impl Default for NodeConfig {
    fn default() -> Self {
        Self {
            node_id: 0,
            roles: vec![Role::Controller, Role::Broker],
            data_dir: PathBuf::new(),
            cluster_id: String::new(),
            voters: Vec::new(),
            raft_listen: "127.0.0.1:7101".to_owned(),
            api_listen: "127.0.0.1:7001".to_owned(),
            http_listen: "127.0.0.1:7201".to_owned(),
            api_advertised: String::new(),
            rack: String::new(),
            dial_map: String::new(),
            insecure: false,
            auto_format: AutoFormat::Loopback,
            broker_heartbeat_interval_ms: 250,
            broker_session_timeout_ms: 3_000,
            broker_registration_timeout_ms: 30_000,
            controlled_shutdown_timeout_ms: 10_000,
            log_dirs: Vec::new(),
            log_flush: LogFlush::Os,
            boot_id_file: PathBuf::from("/proc/sys/kernel/random/boot_id"),
            log_dir_free_bytes_min: 256 * 1024 * 1024,
            raft_reserve_bytes: 64 * 1024 * 1024,
            disk_timeout_ms: 3_000,
            stray_grace_ms: 60_000,
            raft_heartbeat_ms: 50,
            raft_election_min_ms: 150,
            raft_election_max_ms: 300,
            fast_election: true,
            snapshot_log_bytes: 20 * 1024 * 1024,
            log_entries_kept: 2_000,
            log_format: LogFormat::Text,
            log_level: "info".to_owned(),
        }
    }
}

/// A disk that works takes longer now and then: a shorter timeout would end leaderships for nothing.
const DISK_TIMEOUT_MS_MIN: u64 = 100;

#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    #[error("cannot read {path:?}: {source}")]
    Read { path: PathBuf, source: std::io::Error },
    #[error("{origin}: {message}")]
    Parse { origin: String, message: String },
    #[error("{origin}: unknown key {key:?}{}", sources::suggestion(.key, .nearest.as_deref()))]
    UnknownKey { origin: String, key: String, nearest: Option<String> },
    #[error("{origin}: {key}: {message}")]
    Value { origin: String, key: String, message: String },
    #[error("{key}: {message}")]
    Invalid { key: &'static str, message: String },
}

impl NodeConfig {
    pub fn has(&self, role: Role) -> bool {
        self.roles.contains(&role)
    }

    pub fn controller_id(&self) -> ControllerId {
        ControllerId::new(self.node_id)
    }

    pub fn broker_id(&self) -> BrokerId {
        BrokerId::new(self.node_id)
    }

    pub fn session_timeout(&self) -> Duration {
        Duration::from_millis(self.broker_session_timeout_ms)
    }

    pub fn disk_timeout(&self) -> Duration {
        Duration::from_millis(self.disk_timeout_ms)
    }

    /// The lease ends a tenth before the session: it runs from an earlier moment, on another clock.
    pub fn lease(&self) -> Duration {
        self.session_timeout() * 9 / 10
    }

    /// What others dial: the advertised address, or for a voter its own in `voters`, or the one that is listened on.
    pub fn api_address(&self) -> Result<String, ConfigError> {
        if !self.api_advertised.is_empty() {
            return Ok(self.api_advertised.clone());
        }
        let own = self.voter_addresses()?.into_iter().find(|voter| voter.id.get() == self.node_id);
        Ok(own.map_or_else(|| self.api_listen.clone(), |voter| voter.api))
    }

    pub fn log_directories(&self) -> Vec<PathBuf> {
        if self.log_dirs.is_empty() { vec![self.data_dir.join("logs")] } else { self.log_dirs.clone() }
    }

    pub fn cluster(&self) -> Result<Option<ClusterId>, ConfigError> {
        if self.cluster_id.is_empty() {
            return Ok(None);
        }
        let parsed = self.cluster_id.parse();
        parsed.map(Some).map_err(|error| ConfigError::Invalid { key: "cluster_id", message: format!("{error}") })
    }

    pub fn voter_addresses(&self) -> Result<Vec<VoterAddress>, ConfigError> {
        self.voters.iter().map(|text| voter(text)).collect()
    }

    /// Whether an empty data directory may be given an identity without being asked to.
    pub fn may_auto_format(&self) -> Result<bool, ConfigError> {
        match self.auto_format {
            AutoFormat::Always => Ok(true),
            AutoFormat::Never => Ok(false),
            AutoFormat::Loopback => Ok(self.voter_addresses()?.iter().all(|voter| is_loopback(&voter.raft))),
        }
    }

    fn check(&self) -> Result<(), ConfigError> {
        let invalid = |key, message: String| Err(ConfigError::Invalid { key, message });
        if self.node_id <= 0 {
            return invalid("node_id", format!("{} is not positive; every node needs its own", self.node_id));
        }
        if self.data_dir.as_os_str().is_empty() {
            return invalid("data_dir", "is not set".to_owned());
        }
        if self.roles.is_empty() {
            return invalid("roles", "a node has at least one of controller, broker".to_owned());
        }
        let voters = self.voter_addresses()?;
        if voters.is_empty() {
            return invalid("voters", "is empty; list the controllers as ID@RAFT_HOST:PORT/API_HOST:PORT".to_owned());
        }
        let mut ids: Vec<i32> = voters.iter().map(|voter| voter.id.get()).collect();
        ids.sort_unstable();
        if ids.windows(2).any(|pair| pair[0] == pair[1]) {
            return invalid("voters", "lists an id twice".to_owned());
        }
        if self.has(Role::Controller) != ids.contains(&self.node_id) {
            return invalid(
                "voters",
                format!("node {} must be listed exactly when it has the role controller", self.node_id),
            );
        }
        if self.broker_heartbeat_interval_ms == 0
            || self.broker_session_timeout_ms < 2 * self.broker_heartbeat_interval_ms
        {
            return invalid("broker_session_timeout_ms", "must be at least two heartbeat intervals".to_owned());
        }
        if self.disk_timeout_ms < DISK_TIMEOUT_MS_MIN {
            let message = format!("invalid value {}: expected at least {DISK_TIMEOUT_MS_MIN}", self.disk_timeout_ms);
            return invalid("disk_timeout_ms", message);
        }
        self.cluster()?;
        self.check_dialled(&voters)?;
        self.check_exposure(&voters)
    }

    /// Others could not dial a wildcard address or port 0: a node would dial itself.
    fn check_dialled(&self, voters: &[VoterAddress]) -> Result<(), ConfigError> {
        let refuse = |key, address: &str, remedy: &str| {
            Err(ConfigError::Invalid { key, message: format!("others cannot dial {address}; {remedy}") })
        };
        for voter in voters {
            if let Some(address) = [&voter.raft, &voter.api].into_iter().find(|address| !can_be_dialled(address)) {
                return refuse("voters", address, "list each voter with a host and a port of its own");
            }
        }
        if !self.api_advertised.is_empty() && !can_be_dialled(&self.api_advertised) {
            return refuse("api_advertised", &self.api_advertised, "expected HOST:PORT");
        }
        let address = self.api_address()?;
        if !can_be_dialled(&address) {
            return refuse("api_listen", &address, "set api_advertised to the address that reaches this node");
        }
        Ok(())
    }

    fn check_exposure(&self, voters: &[VoterAddress]) -> Result<(), ConfigError> {
        if self.insecure {
            return Ok(());
        }
        let own =
            [("raft_listen", &self.raft_listen), ("api_listen", &self.api_listen), ("http_listen", &self.http_listen)];
        let exposed = own
            .into_iter()
            .filter(|(_, address)| !address.is_empty())
            .find(|(_, address)| !is_loopback(address))
            .or_else(|| {
                let foreign = voters.iter().find(|voter| !is_loopback(&voter.raft) || !is_loopback(&voter.api));
                foreign.map(|voter| ("voters", &voter.raft))
            });
        match exposed {
            Some((key, address)) => Err(ConfigError::Invalid {
                key,
                message: format!(
                    "{address} is not a loopback address, and the connection would be neither encrypted nor \
                     authenticated; spell out --insecure to accept that"
                ),
            }),
            None => Ok(()),
        }
    }
}

fn voter(text: &str) -> Result<VoterAddress, ConfigError> {
    let invalid =
        || ConfigError::Invalid { key: "voters", message: format!("{text:?} is not ID@RAFT_HOST:PORT/API_HOST:PORT") };
    let (id, addresses) = text.split_once('@').ok_or_else(invalid)?;
    let (raft, api) = addresses.split_once('/').ok_or_else(invalid)?;
    let id = id.parse::<i32>().ok().filter(|id| *id > 0).ok_or_else(invalid)?;
    if [raft, api].iter().any(|address| host_and_port(address).is_none()) {
        return Err(invalid());
    }
    Ok(VoterAddress { id: ControllerId::new(id), raft: raft.to_owned(), api: api.to_owned() })
}

/// The two halves of `host:port`.
pub fn host_and_port(address: &str) -> Option<(&str, u16)> {
    let (host, port) = address.rsplit_once(':')?;
    let port = port.parse().ok()?;
    (!host.is_empty()).then(|| (host.trim_start_matches('[').trim_end_matches(']'), port))
}

fn can_be_dialled(address: &str) -> bool {
    let is_wildcard = |host: &str| host.parse::<IpAddr>().is_ok_and(|ip| ip.is_unspecified());
    host_and_port(address).is_some_and(|(host, port)| port != 0 && !is_wildcard(host))
}

fn is_loopback(address: &str) -> bool {
    host_and_port(address)
        .is_some_and(|(host, _)| host == "localhost" || host.parse::<IpAddr>().is_ok_and(|ip| ip.is_loopback()))
}

#[cfg(test)]
mod tests;
