//! The facts that the metadata log holds. A record says what became true, never what was asked for;
//! the meaning of a record does not change once released, and a new fact is a new record.
//!
//! A change record carries only what changed: `None` means unchanged. Epochs of partitions are never
//! carried by a change, because replay derives them (leader epoch +1 iff `leader` is present,
//! partition epoch +1 always).

mod broker_list;
mod cause;
mod directory_list;
mod history;
mod kind;
mod partition;
mod probe;
mod reassignment;

use std::collections::BTreeMap;
use std::fmt::{self, Display};

use crate::ids::{
    BrokerEpoch, BrokerId, ClientId, ClusterId, ControllerEpoch, ControllerId, DirectoryId, IncarnationId, LeaderEpoch,
    Offset, ReassignmentId, TopicId, TopicPartition,
};

pub use broker_list::BrokerList;
pub use cause::Cause;
pub(crate) use directory_list::{DirectoryList, SharedDirectories};
pub use kind::Kind;
pub(crate) use partition::Rare;
pub use partition::{Partition, PartitionState};
pub use probe::Probe;
pub use reassignment::{ReassignedPartition, ReassignmentStart};

/// What one log entry carries: records planned together under one claim.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Batch {
    /// The epoch the planner had claimed. A batch whose claim is not its entry's term replays to nothing.
    pub controller_epoch: ControllerEpoch,
    /// Chosen by the planner, so that every node writes the same time.
    pub timestamp_ms: i64,
    pub records: Vec<Record>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Record {
    /// First record of a cluster.
    ClusterCreated {
        cluster: ClusterId,
    },
    /// A finalized feature; level 0 removes it.
    FeatureLevel {
        name: String,
        level: i16,
    },
    RegisterController(ControllerRegistration),

    /// A new incarnation is born fenced. The same incarnation again amends endpoints and the like,
    /// and keeps epoch and state.
    RegisterBroker(BrokerRegistration),
    FenceBroker {
        broker: BrokerId,
        epoch: BrokerEpoch,
    },
    UnfenceBroker {
        broker: BrokerId,
        epoch: BrokerEpoch,
    },
    BeginControlledShutdown {
        broker: BrokerId,
        epoch: BrokerEpoch,
    },
    UnregisterBroker {
        broker: BrokerId,
        epoch: BrokerEpoch,
    },

    CreateTopic {
        topic: TopicId,
        name: String,
        kind: Kind,
    },
    /// Removes the topic with its partitions and configs.
    RemoveTopic {
        topic: TopicId,
    },
    /// In snapshots only: the topic was removed at this offset.
    RemovedTopic {
        topic: TopicId,
        offset: Offset,
    },
    CreatePartition(PartitionRegistration),
    PartitionChange(PartitionChange),

    /// Sets a config, or removes it with `None`.
    Config {
        resource: ConfigResource,
        key: String,
        value: Option<String>,
    },

    /// Producer ids below this one have been given away, in blocks, for ever.
    ProducerIds {
        next: i64,
    },

    /// A mutation of this client was applied; `reply` is what it was answered, for its retries.
    /// The two options are set in snapshots only: where it was applied, and the client's highest request that is no
    /// longer remembered.
    RequestApplied {
        client: ClientId,
        request: u64,
        reply: Vec<u8>,
        offset: Option<Offset>,
        forgotten_up_to: Option<u64>,
    },

    /// The digest of the image before this record. A node whose own differs must stop.
    Digest {
        digest: u128,
    },

    /// Until the matching end, readers and watchers see the image from before.
    BeginTransaction {
        name: String,
    },
    EndTransaction,
    AbortTransaction {
        reason: String,
    },

    /// The changes of the partitions it names follow in the same batch. There is no record of its end: each of them
    /// leaves it with the change that ends its reassignment, or with its topic, or for a newer reassignment, and with
    /// its last partition it is gone.
    BeginReassignment(ReassignmentStart),
    /// How it is to go on.
    ChangeReassignment {
        reassignment: ReassignmentId,
        paused: bool,
        throttle_bytes_per_second: Option<u64>,
    },
}

impl Record {
    /// Every name that `kind` gives.
    pub const KINDS: &'static [&'static str] = &[
        "ClusterCreated",
        "FeatureLevel",
        "RegisterController",
        "RegisterBroker",
        "FenceBroker",
        "UnfenceBroker",
        "BeginControlledShutdown",
        "UnregisterBroker",
        "CreateTopic",
        "RemoveTopic",
        "RemovedTopic",
        "CreatePartition",
        "PartitionChange",
        "Config",
        "RequestApplied",
        "Digest",
        "BeginTransaction",
        "EndTransaction",
        "AbortTransaction",
        "BeginReassignment",
        "ChangeReassignment",
        "ProducerIds",
    ];

    /// The record's name on the wire, in `watch` and in logs.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::ClusterCreated { .. } => "ClusterCreated",
            Self::FeatureLevel { .. } => "FeatureLevel",
            Self::RegisterController(_) => "RegisterController",
            Self::RegisterBroker(_) => "RegisterBroker",
            Self::FenceBroker { .. } => "FenceBroker",
            Self::UnfenceBroker { .. } => "UnfenceBroker",
            Self::BeginControlledShutdown { .. } => "BeginControlledShutdown",
            Self::UnregisterBroker { .. } => "UnregisterBroker",
            Self::CreateTopic { .. } => "CreateTopic",
            Self::RemoveTopic { .. } => "RemoveTopic",
            Self::RemovedTopic { .. } => "RemovedTopic",
            Self::CreatePartition(_) => "CreatePartition",
            Self::PartitionChange(_) => "PartitionChange",
            Self::Config { .. } => "Config",
            Self::RequestApplied { .. } => "RequestApplied",
            Self::Digest { .. } => "Digest",
            Self::BeginTransaction { .. } => "BeginTransaction",
            Self::EndTransaction => "EndTransaction",
            Self::AbortTransaction { .. } => "AbortTransaction",
            Self::BeginReassignment(_) => "BeginReassignment",
            Self::ChangeReassignment { .. } => "ChangeReassignment",
            Self::ProducerIds { .. } => "ProducerIds",
        }
    }

    /// About how long it is when encoded, and seldom longer: what batches are filled by.
    pub fn approximate_bytes(&self) -> usize {
        const FRAME: usize = 8;
        const ID: usize = 18;
        const NUMBER: usize = 11;
        let body = match self {
            Self::ClusterCreated { .. } | Self::RemoveTopic { .. } | Self::Digest { .. } => ID,
            Self::FeatureLevel { name, .. } => name.len() + NUMBER,
            Self::RegisterController(controller) => {
                ID + NUMBER + bytes_of_endpoints(&controller.endpoints) + bytes_of_features(&controller.features)
            }
            Self::RegisterBroker(broker) => {
                let directories = broker.directories.len() + broker.cordoned_directories.iter().flatten().count();
                let rack = broker.rack.as_ref().map_or(0, String::len);
                let lists = bytes_of_endpoints(&broker.endpoints) + bytes_of_features(&broker.features);
                let probe = broker.probe.endpoint_name().map_or(0, str::len);
                ID + 7 * NUMBER + rack + broker.kind.as_str().len() + probe + lists + directories * ID
            }
            Self::FenceBroker { .. }
            | Self::UnfenceBroker { .. }
            | Self::BeginControlledShutdown { .. }
            | Self::UnregisterBroker { .. } => 2 * NUMBER,
            Self::RemovedTopic { .. } => ID + NUMBER,
            Self::CreateTopic { name, kind, .. } => ID + name.len() + kind.as_str().len(),
            Self::CreatePartition(partition) => bytes_of_partition(&partition.state),
            Self::PartitionChange(change) => bytes_of_change(change),
            Self::Config { resource, key, value } => {
                let resource = if let ConfigResource::Topic(name) = resource { name.len() } else { NUMBER };
                resource + key.len() + value.as_ref().map_or(0, String::len)
            }
            Self::RequestApplied { reply, .. } => ID + 3 * NUMBER + reply.len(),
            Self::BeginTransaction { name } => name.len(),
            Self::EndTransaction => 0,
            Self::AbortTransaction { reason } => reason.len(),
            Self::BeginReassignment(start) => start.approximate_bytes(),
            Self::ChangeReassignment { .. } => 3 * NUMBER,
            Self::ProducerIds { .. } => NUMBER,
        };
        FRAME + body
    }
}

fn bytes_of_endpoints(endpoints: &[Endpoint]) -> usize {
    endpoints.iter().map(|endpoint| 16 + endpoint.name.len() + endpoint.host.len()).sum()
}

fn bytes_of_features(features: &BTreeMap<String, VersionRange>) -> usize {
    features.keys().map(|name| 16 + name.len()).sum()
}

fn bytes_of_partition(partition: &Partition) -> usize {
    let brokers = partition.replicas.len()
        + partition.isr.len()
        + partition.elr().len()
        + partition.last_known_elr().len()
        + partition.adding().len()
        + partition.removing().len();
    64 + 6 * brokers + 18 * partition.directories().len() + 48 * partition.history.len()
}

fn bytes_of_change(change: &PartitionChange) -> usize {
    let lists = [&change.replicas, &change.isr, &change.elr, &change.last_known_elr, &change.adding, &change.removing];
    let brokers: usize = lists.into_iter().flatten().map(|list| 2 + 6 * list.len()).sum();
    64 + brokers + 18 * change.directories.as_ref().map_or(0, Vec::len)
}

/// Where a node can be reached, under which listener name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Endpoint {
    pub name: String,
    pub host: String,
    pub port: u16,
    pub security: SecurityProtocol,
}

impl Endpoint {
    pub fn authority(&self) -> String {
        authority(&self.host, self.port)
    }
}

/// `host:port`, as it is dialled: an IPv6 address is in brackets.
pub fn authority(host: &str, port: impl Display) -> String {
    if host.contains(':') { format!("[{host}]:{port}") } else { format!("{host}:{port}") }
}

/// Kafka's security protocols, by their wire numbers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(i16)]
pub enum SecurityProtocol {
    Plaintext = 0,
    Ssl = 1,
    SaslPlaintext = 2,
    SaslSsl = 3,
}

/// The levels of one feature that a node can work with, both ends included.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct VersionRange {
    pub min: i16,
    pub max: i16,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ControllerRegistration {
    pub controller: ControllerId,
    pub incarnation: IncarnationId,
    pub endpoints: Vec<Endpoint>,
    pub features: BTreeMap<String, VersionRange>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BrokerRegistration {
    pub broker: BrokerId,
    /// Equals the offset of the record that first registered this incarnation.
    pub epoch: BrokerEpoch,
    pub incarnation: IncarnationId,
    pub kind: Kind,
    /// What a controller connects to, to learn whether the process is gone.
    pub probe: Probe,
    pub endpoints: Vec<Endpoint>,
    pub rack: Option<String>,
    pub features: BTreeMap<String, VersionRange>,
    /// Online log directories, sorted.
    pub directories: Vec<DirectoryId>,
    /// Directories that take no new replicas; `None` is "does not say".
    pub cordoned_directories: Option<Vec<DirectoryId>>,
    pub fenced: bool,
    pub in_controlled_shutdown: bool,
    /// Where its controlled shutdown began: the barrier that the other brokers must pass.
    pub controlled_shutdown_offset: Option<Offset>,
}

impl BrokerRegistration {
    /// Whether it may lead and be in ISRs: not fenced, and not on its way out.
    pub fn is_active(&self) -> bool {
        !self.fenced && !self.in_controlled_shutdown
    }

    /// Whether a copy in `directory` is within reach. One that has no directory yet will be.
    pub fn has_online(&self, directory: DirectoryId) -> bool {
        directory == DirectoryId::UNASSIGNED || self.directories.contains(&directory)
    }
}

/// The whole state of a partition: written when it is created, and in snapshots.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PartitionRegistration {
    pub id: TopicPartition,
    pub state: Partition,
}

/// Why, when and to what a partition changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ChangeNote {
    pub cause: Cause,
    pub offset: Offset,
    pub time_ms: i64,
    pub leader: Option<BrokerId>,
    pub leader_epoch: LeaderEpoch,
    /// The leader was taken from outside ISR and ELR: records may be lost.
    pub unclean: bool,
}

/// Whether the leader was elected cleanly (Kafka's LeaderRecoveryState).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[repr(i8)]
pub enum LeaderRecoveryState {
    #[default]
    Recovered = 0,
    /// Elected uncleanly; the leader has yet to say that it is ready.
    Recovering = 1,
}

/// What changed in one partition; `None` is unchanged.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PartitionChange {
    pub id: TopicPartition,
    pub cause: Cause,
    /// The leader in this change was taken from outside ISR and ELR.
    pub unclean: bool,
    pub replicas: Option<Vec<BrokerId>>,
    pub directories: Option<Vec<DirectoryId>>,
    pub isr: Option<Vec<BrokerId>>,
    pub elr: Option<Vec<BrokerId>>,
    pub last_known_elr: Option<Vec<BrokerId>>,
    pub adding: Option<Vec<BrokerId>>,
    pub removing: Option<Vec<BrokerId>>,
    /// `Some(None)`: now leaderless. `Some(Some(same))`: re-stated, to bump the leader epoch.
    pub leader: Option<Option<BrokerId>>,
    pub recovery: Option<LeaderRecoveryState>,
}

impl PartitionChange {
    /// A change of nothing, to be filled in.
    pub fn none(id: TopicPartition, cause: Cause) -> Self {
        Self {
            id,
            cause,
            unclean: false,
            replicas: None,
            directories: None,
            isr: None,
            elr: None,
            last_known_elr: None,
            adding: None,
            removing: None,
            leader: None,
            recovery: None,
        }
    }
}

/// What a config belongs to. Topics are named, not identified: configs go with the name's topic.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum ConfigResource {
    Topic(String),
    Broker(BrokerId),
    /// The dynamic default of every broker (Kafka's empty broker name).
    BrokerDefault,
}

impl fmt::Display for ConfigResource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Topic(name) => write!(f, "topic/{name}"),
            Self::Broker(broker) => write!(f, "broker/{broker}"),
            Self::BrokerDefault => f.write_str("broker/default"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::authority;

    #[test]
    fn an_ipv6_address_is_in_brackets() {
        assert_eq!(authority("::1", 7001), "[::1]:7001");
        assert_eq!(authority("10.0.0.1", 7001), "10.0.0.1:7001");
        assert_eq!(authority("node-1", 7001), "node-1:7001");
    }
}
