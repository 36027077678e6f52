//! The node's configuration: built-in defaults, one TOML file, `QUORATE_*` variables, flags; the later wins.
//!
//! Flat on purpose: the key `raft_listen` of the file is `QUORATE_RAFT_LISTEN` in the environment and
//! `--raft-listen` (or `--set raft_listen=…`) on the command line.

use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use quorate_metadata::ids::{ClusterId, ControllerId};
use serde::{Deserialize, Serialize};
use toml::{Table, Value};

use crate::raft::VoterAddress;

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
    /// How long a node tries to register its broker while the id is registered by a process that lives; then it ends. A
    /// broker that reaches no controller goes on trying, and one that is refused for good ends at once.
    pub broker_registration_timeout_ms: u64,
    /// How long SIGTERM waits for leaderships to move before the node stops anyway.
    pub controlled_shutdown_timeout_ms: u64,

    /// Where the broker keeps records; empty: `logs` in the data directory. One that fails takes only its replicas away.
    pub log_dirs: Vec<PathBuf>,
    /// When a record counts as written on one replica.
    pub log_flush: LogFlush,
    /// How long a replica that the metadata does not know is kept.
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

#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    #[error("cannot read {path:?}: {source}")]
    Read { path: PathBuf, source: std::io::Error },
    #[error("{origin}: {message}")]
    Parse { origin: String, message: String },
    #[error("{origin}: unknown key {key:?}{}", suggestion(.key, .nearest.as_deref()))]
    UnknownKey { origin: String, key: String, nearest: Option<String> },
    #[error("{key}: {message}")]
    Invalid { key: &'static str, message: String },
}

/// Keys of earlier releases, each with the reason why it was removed.
const REMOVED_KEYS: &[(&str, &str)] = &[("lease_reads", "every linearizable read is confirmed by a majority")];

fn suggestion(key: &str, nearest: Option<&str>) -> String {
    if let Some((_, reason)) = REMOVED_KEYS.iter().find(|(removed, _)| *removed == key) {
        return format!("; it was removed: {reason}");
    }
    nearest.map(|key| format!("; did you mean {key:?}?")).unwrap_or_default()
}

/// Puts the sources together: a file if there is one, the environment, then `KEY=VALUE` settings.
pub fn load(
    file: Option<&Path>,
    environment: impl Iterator<Item = (String, String)>,
    settings: &[(String, String)],
) -> Result<NodeConfig, ConfigError> {
    let Some(path) = file else { return merge("", "", environment, settings) };
    let text = std::fs::read_to_string(path).map_err(|source| ConfigError::Read { path: path.to_owned(), source })?;
    merge(&path.display().to_string(), &text, environment, settings)
}

/// As `load`, of a file's text; `origin` is what errors call it.
pub fn merge(
    origin: &str,
    text: &str,
    environment: impl Iterator<Item = (String, String)>,
    settings: &[(String, String)],
) -> Result<NodeConfig, ConfigError> {
    let mut merged = defaults();
    let table: Table = text.parse().map_err(|error: toml::de::Error| ConfigError::Parse {
        origin: origin.to_owned(),
        message: error.message().to_owned(),
    })?;
    for (key, value) in table {
        put(&mut merged, origin, key, value)?;
    }
    for (name, text) in environment {
        if let Some(key) = name.strip_prefix("QUORATE_")
            && !FOREIGN_VARIABLES.iter().any(|foreign| name.starts_with(foreign))
        {
            let key = key.to_ascii_lowercase();
            let value = typed(&merged, &key, &text);
            put(&mut merged, &name, key, value)?;
        }
    }
    for (key, text) in settings {
        let value = typed(&merged, key, text);
        put(&mut merged, "command line", key.clone(), value)?;
    }
    let config: NodeConfig = Value::Table(merged).try_into().map_err(|error: toml::de::Error| ConfigError::Parse {
        origin: "configuration".to_owned(),
        message: error.message().to_owned(),
    })?;
    config.check()?;
    Ok(config)
}

/// Beginnings of variables that are the command line tool's or the tests', and that a shell may carry along.
const FOREIGN_VARIABLES: &[&str] = &["QUORATE_BOOTSTRAP", "QUORATE_CONTEXT", "QUORATE_BIN", "QUORATE_TEST"];

fn defaults() -> Table {
    match Value::try_from(NodeConfig::default()) {
        Ok(Value::Table(table)) => table,
        other => unreachable!("the default configuration is a table, not {other:?}"),
    }
}

fn put(merged: &mut Table, origin: &str, key: String, value: Value) -> Result<(), ConfigError> {
    if !merged.contains_key(&key) {
        let nearest = merged
            .keys()
            .map(|known| (strsim::damerau_levenshtein(known, &key), known))
            .min()
            .filter(|(distance, _)| *distance <= 4)
            .map(|(_, known)| known.clone());
        return Err(ConfigError::UnknownKey { origin: origin.to_owned(), key, nearest });
    }
    merged.insert(key, value);
    Ok(())
}

/// A text as the type that its key has; lists are separated by commas.
fn typed(merged: &Table, key: &str, text: &str) -> Value {
    let parsed = |value: Option<Value>| value.unwrap_or_else(|| Value::String(text.to_owned()));
    match merged.get(key) {
        Some(Value::Array(_)) => Value::Array(
            text.split(',').filter(|item| !item.is_empty()).map(|item| Value::String(item.trim().to_owned())).collect(),
        ),
        Some(Value::Integer(_)) => parsed(text.parse().ok().map(Value::Integer)),
        Some(Value::Boolean(_)) => parsed(text.parse().ok().map(Value::Boolean)),
        _ => Value::String(text.to_owned()),
    }
}

impl NodeConfig {
    pub fn has(&self, role: Role) -> bool {
        self.roles.contains(&role)
    }

    pub fn controller_id(&self) -> ControllerId {
        ControllerId::new(self.node_id)
    }

    pub fn session_timeout(&self) -> Duration {
        Duration::from_millis(self.broker_session_timeout_ms)
    }

    /// The lease ends a tenth before the session: it runs from an earlier moment, on another clock.
    pub fn lease(&self) -> Duration {
        self.session_timeout() * 9 / 10
    }

    pub fn api_address(&self) -> &str {
        if self.api_advertised.is_empty() { &self.api_listen } else { &self.api_advertised }
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
        self.cluster()?;
        self.check_exposure(&voters)
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

fn is_loopback(address: &str) -> bool {
    host_and_port(address)
        .is_some_and(|(host, _)| host == "localhost" || host.parse::<IpAddr>().is_ok_and(|ip| ip.is_loopback()))
}

#[cfg(test)]
mod tests {
    use super::*;

    const MINIMAL: [(&str, &str); 3] =
        [("node_id", "1"), ("data_dir", "/tmp/q"), ("voters", "1@127.0.0.1:7101/127.0.0.1:7001")];

    fn with(more: &[(&str, &str)]) -> Result<NodeConfig, ConfigError> {
        let settings: Vec<(String, String)> =
            MINIMAL.iter().chain(more).map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect();
        load(None, std::iter::empty(), &settings)
    }

    fn refusal(more: &[(&str, &str)]) -> String {
        with(more).expect_err("should be refused").to_string()
    }

    #[test]
    fn an_unknown_key_is_refused_with_the_nearest_name() {
        assert_eq!(
            refusal(&[("raft_lisen", "x")]),
            "command line: unknown key \"raft_lisen\"; did you mean \"raft_listen\"?"
        );
        assert_eq!(refusal(&[("entirely_different", "x")]), "command line: unknown key \"entirely_different\"");
    }

    #[test]
    fn a_removed_key_is_refused_with_the_reason() {
        let text = "lease_reads = false\n";
        let refused = merge("node.toml", text, std::iter::empty(), &[]).expect_err("should be refused").to_string();
        assert_eq!(
            refused,
            "node.toml: unknown key \"lease_reads\"; it was removed: every linearizable read is confirmed by a majority"
        );
    }

    #[test]
    fn a_non_loopback_address_needs_insecure_spelled_out() {
        assert!(refusal(&[("api_listen", "0.0.0.0:7001")]).contains("--insecure"));
        assert!(refusal(&[("voters", "1@10.0.0.1:7101/127.0.0.1:7001")]).contains("--insecure"));
        assert!(with(&[("api_listen", "0.0.0.0:7001"), ("insecure", "true")]).is_ok());
    }

    #[test]
    fn the_later_source_wins() {
        let environment =
            [("QUORATE_RACK".to_owned(), "b".to_owned()), ("QUORATE_BOOTSTRAP".to_owned(), "x:1".to_owned())];
        let settings: Vec<(String, String)> = MINIMAL.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
        let config = load(None, environment.into_iter(), &settings).expect("valid");
        assert_eq!(config.rack, "b");
        assert_eq!(with(&[("rack", "c")]).expect("valid").rack, "c");
    }

    #[test]
    fn only_a_loopback_cluster_formats_itself() {
        assert!(with(&[]).expect("valid").may_auto_format().expect("valid"));
        let production = with(&[("voters", "1@10.0.0.1:7101/10.0.0.1:7001"), ("insecure", "true")]).expect("valid");
        assert!(!production.may_auto_format().expect("valid"));
        let decided = with(&[("auto_format", "never")]).expect("valid");
        assert!(!decided.may_auto_format().expect("valid"));
    }

    #[test]
    fn contradictions_are_named() {
        assert!(refusal(&[("node_id", "2")]).contains("must be listed exactly when"));
        assert!(refusal(&[("voters", "1@a/b")]).contains("is not ID@RAFT_HOST:PORT/API_HOST:PORT"));
        assert!(refusal(&[("broker_session_timeout_ms", "300")]).contains("two heartbeat intervals"));
        assert!(refusal(&[("raft_heartbeat_ms", "soon")]).contains("invalid type"));
    }
}
