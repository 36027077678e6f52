//! Records and batches between their domain form and their encoded form.
//!
//! Encoding cannot fail. Decoding can: whatever arrives from a disk or a peer is checked, and named when wrong.

mod reassignment;

use std::collections::BTreeMap;

use prost::Message;
use quorate_metadata::ids::{
    BrokerEpoch, BrokerId, ClientId, ClusterId, ControllerEpoch, ControllerId, DirectoryId, IncarnationId, LeaderEpoch,
    Offset, PartitionEpoch, PartitionId, ReassignmentId, TopicId, TopicPartition,
};
use quorate_metadata::record::{
    BrokerRegistration, Cause, ChangeNote, ConfigResource, ControllerRegistration, Endpoint, Kind, LeaderRecoveryState,
    Partition, PartitionChange, PartitionRegistration, PartitionState, Probe, SecurityProtocol, VersionRange,
};
use quorate_metadata::{Batch, Record};

use crate::metadata as wire;
use crate::metadata::record::Record as Wire;

/// Bytes that are not what they should be.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DecodeError {
    #[error("malformed protobuf: {0}")]
    Malformed(String),
    #[error("{0} is missing")]
    Missing(&'static str),
    #[error("{field} has {length} bytes instead of 16")]
    IdLength { field: &'static str, length: usize },
    #[error("{field} is out of range: {value}")]
    OutOfRange { field: &'static str, value: i64 },
    #[error("a record of a type that this version does not know")]
    UnknownRecord,
}

/// A batch as one log entry's payload.
pub mod batch {
    use super::*;

    pub fn encode(base_offset: Offset, batch: &Batch) -> bytes::Bytes {
        wire::Batch { base_offset: base_offset.get(), ..to_wire(batch) }.encode_to_vec().into()
    }

    /// The offset that the batch was planned for, and the batch.
    pub fn decode(bytes: &[u8]) -> Result<(Offset, Batch), DecodeError> {
        let wire = wire::Batch::decode(bytes).map_err(|error| DecodeError::Malformed(error.to_string()))?;
        Ok((Offset::new(wire.base_offset), from_wire(wire)?))
    }

    pub(crate) fn to_wire(batch: &Batch) -> wire::Batch {
        wire::Batch {
            controller_epoch: batch.controller_epoch.get(),
            timestamp_ms: batch.timestamp_ms,
            records: batch.records.iter().map(record::to_wire).collect(),
            base_offset: 0,
        }
    }

    pub(crate) fn from_wire(wire: wire::Batch) -> Result<Batch, DecodeError> {
        Ok(Batch {
            controller_epoch: ControllerEpoch::new(wire.controller_epoch),
            timestamp_ms: wire.timestamp_ms,
            records: wire.records.into_iter().map(record::from_wire).collect::<Result<_, _>>()?,
        })
    }
}

/// A record and its encoded form.
pub mod record {
    use super::*;

    pub fn to_wire(record: &Record) -> wire::Record {
        let event =
            |broker: &BrokerId, epoch: &BrokerEpoch| wire::BrokerEvent { broker: broker.get(), epoch: epoch.get() };
        let record = match record {
            Record::ClusterCreated { cluster } => {
                Wire::ClusterCreated(wire::ClusterCreated { cluster: cluster.as_bytes().to_vec() })
            }
            Record::FeatureLevel { name, level } => {
                Wire::FeatureLevel(wire::FeatureLevel { name: name.clone(), level: i32::from(*level) })
            }
            Record::RegisterController(registration) => Wire::RegisterController(controller_to_wire(registration)),
            Record::RegisterBroker(registration) => Wire::RegisterBroker(broker_to_wire(registration)),
            Record::FenceBroker { broker, epoch } => Wire::FenceBroker(event(broker, epoch)),
            Record::UnfenceBroker { broker, epoch } => Wire::UnfenceBroker(event(broker, epoch)),
            Record::BeginControlledShutdown { broker, epoch } => Wire::BeginControlledShutdown(event(broker, epoch)),
            Record::UnregisterBroker { broker, epoch } => Wire::UnregisterBroker(event(broker, epoch)),
            Record::CreateTopic { topic, name, kind } => Wire::CreateTopic(wire::CreateTopic {
                topic: topic.as_bytes().to_vec(),
                name: name.clone(),
                kind: kind.to_recorded(),
            }),
            Record::RemoveTopic { topic } => Wire::RemoveTopic(wire::RemoveTopic { topic: topic.as_bytes().to_vec() }),
            Record::RemovedTopic { topic, offset } => {
                Wire::RemovedTopic(wire::RemovedTopic { topic: topic.as_bytes().to_vec(), offset: offset.get() })
            }
            Record::CreatePartition(registration) => Wire::CreatePartition(partition_to_wire(registration)),
            Record::PartitionChange(change) => Wire::PartitionChange(change_to_wire(change)),
            Record::Config { resource, key, value } => Wire::Config(wire::Config {
                resource: Some(resource_to_wire(resource)),
                key: key.clone(),
                value: value.clone(),
            }),
            Record::RequestApplied { client, request, reply, offset, forgotten_up_to } => {
                Wire::RequestApplied(wire::RequestApplied {
                    client: client.as_bytes().to_vec(),
                    request: *request,
                    reply: reply.clone(),
                    offset: offset.map(Offset::get),
                    forgotten_up_to: *forgotten_up_to,
                })
            }
            Record::Digest { digest } => Wire::Digest(wire::Digest { digest: digest.to_be_bytes().to_vec() }),
            Record::BeginTransaction { name } => Wire::BeginTransaction(wire::BeginTransaction { name: name.clone() }),
            Record::EndTransaction => Wire::EndTransaction(wire::EndTransaction {}),
            Record::AbortTransaction { reason } => {
                Wire::AbortTransaction(wire::AbortTransaction { reason: reason.clone() })
            }
            Record::ProducerIds { next } => Wire::ProducerIds(wire::ProducerIds { next: *next }),
            Record::BeginReassignment(start) => Wire::BeginReassignment(reassignment::start_to_wire(start)),
            Record::ChangeReassignment { reassignment, paused, throttle_bytes_per_second } => {
                Wire::ChangeReassignment(wire::ChangeReassignment {
                    id: reassignment.get(),
                    paused: *paused,
                    throttle_bytes_per_second: *throttle_bytes_per_second,
                })
            }
        };
        wire::Record { record: Some(record) }
    }

    pub fn from_wire(record: wire::Record) -> Result<Record, DecodeError> {
        let event = |event: wire::BrokerEvent| (BrokerId::new(event.broker), BrokerEpoch::new(event.epoch));
        Ok(match record.record.ok_or(DecodeError::UnknownRecord)? {
            Wire::ClusterCreated(record) => {
                Record::ClusterCreated { cluster: ClusterId::from_bytes(id("cluster", &record.cluster)?) }
            }
            Wire::FeatureLevel(record) => {
                Record::FeatureLevel { name: record.name, level: narrow("level", record.level)? }
            }
            Wire::RegisterController(record) => Record::RegisterController(controller_from_wire(record)?),
            Wire::RegisterBroker(record) => Record::RegisterBroker(broker_from_wire(record)?),
            Wire::FenceBroker(record) => {
                let (broker, epoch) = event(record);
                Record::FenceBroker { broker, epoch }
            }
            Wire::UnfenceBroker(record) => {
                let (broker, epoch) = event(record);
                Record::UnfenceBroker { broker, epoch }
            }
            Wire::BeginControlledShutdown(record) => {
                let (broker, epoch) = event(record);
                Record::BeginControlledShutdown { broker, epoch }
            }
            Wire::UnregisterBroker(record) => {
                let (broker, epoch) = event(record);
                Record::UnregisterBroker { broker, epoch }
            }
            Wire::CreateTopic(record) => Record::CreateTopic {
                topic: TopicId::from_bytes(id("topic", &record.topic)?),
                name: record.name,
                kind: kind_from_wire(record.kind),
            },
            Wire::RemoveTopic(record) => {
                Record::RemoveTopic { topic: TopicId::from_bytes(id("topic", &record.topic)?) }
            }
            Wire::RemovedTopic(record) => Record::RemovedTopic {
                topic: TopicId::from_bytes(id("topic", &record.topic)?),
                offset: Offset::new(record.offset),
            },
            Wire::CreatePartition(record) => Record::CreatePartition(partition_from_wire(record)?),
            Wire::PartitionChange(record) => Record::PartitionChange(change_from_wire(record)?),
            Wire::Config(record) => Record::Config {
                resource: resource_from_wire(record.resource.ok_or(DecodeError::Missing("resource"))?),
                key: record.key,
                value: record.value,
            },
            Wire::RequestApplied(record) => Record::RequestApplied {
                client: ClientId::from_bytes(id("client", &record.client)?),
                request: record.request,
                reply: record.reply,
                offset: record.offset.map(Offset::new),
                forgotten_up_to: record.forgotten_up_to,
            },
            Wire::Digest(record) => Record::Digest { digest: u128::from_be_bytes(id("digest", &record.digest)?) },
            Wire::BeginTransaction(record) => Record::BeginTransaction { name: record.name },
            Wire::EndTransaction(_) => Record::EndTransaction,
            Wire::AbortTransaction(record) => Record::AbortTransaction { reason: record.reason },
            Wire::ProducerIds(record) => Record::ProducerIds { next: record.next },
            Wire::BeginReassignment(record) => Record::BeginReassignment(reassignment::start_from_wire(record)?),
            Wire::ChangeReassignment(record) => Record::ChangeReassignment {
                reassignment: ReassignmentId::new(record.id),
                paused: record.paused,
                throttle_bytes_per_second: record.throttle_bytes_per_second,
            },
        })
    }
}

fn id(field: &'static str, bytes: &[u8]) -> Result<[u8; 16], DecodeError> {
    bytes.try_into().map_err(|_| DecodeError::IdLength { field, length: bytes.len() })
}

fn narrow<T: TryFrom<i64>>(field: &'static str, value: impl Into<i64>) -> Result<T, DecodeError> {
    let value = value.into();
    T::try_from(value).map_err(|_| DecodeError::OutOfRange { field, value })
}

fn brokers(ids: &[BrokerId]) -> Vec<i32> {
    ids.iter().map(|id| id.get()).collect()
}

fn broker_ids(ids: &[i32]) -> Vec<BrokerId> {
    ids.iter().copied().map(BrokerId::new).collect()
}

fn directories(ids: impl IntoIterator<Item = DirectoryId>) -> Vec<Vec<u8>> {
    ids.into_iter().map(|id| id.as_bytes().to_vec()).collect()
}

fn directory_ids(ids: &[Vec<u8>]) -> Result<Vec<DirectoryId>, DecodeError> {
    ids.iter().map(|bytes| id("directory", bytes).map(DirectoryId::from_bytes)).collect()
}

pub fn endpoint_to_wire(endpoint: &Endpoint) -> wire::Endpoint {
    wire::Endpoint {
        name: endpoint.name.clone(),
        host: endpoint.host.clone(),
        port: u32::from(endpoint.port),
        security: i32::from(endpoint.security as i16),
    }
}

pub fn endpoint_from_wire(endpoint: wire::Endpoint) -> Result<Endpoint, DecodeError> {
    let security = match endpoint.security {
        0 => SecurityProtocol::Plaintext,
        1 => SecurityProtocol::Ssl,
        2 => SecurityProtocol::SaslPlaintext,
        3 => SecurityProtocol::SaslSsl,
        value => return Err(DecodeError::OutOfRange { field: "security", value: value.into() }),
    };
    Ok(Endpoint { name: endpoint.name, host: endpoint.host, port: narrow("port", endpoint.port)?, security })
}

pub fn features_from_wire(
    features: impl IntoIterator<Item = (String, wire::VersionRange)>,
) -> Result<BTreeMap<String, VersionRange>, DecodeError> {
    let range = |(name, range): (String, wire::VersionRange)| {
        Ok((name, VersionRange { min: narrow("min", range.min)?, max: narrow("max", range.max)? }))
    };
    features.into_iter().map(range).collect()
}

pub fn features_to_wire(
    features: &BTreeMap<String, VersionRange>,
) -> std::collections::HashMap<String, wire::VersionRange> {
    let range = |range: &VersionRange| wire::VersionRange { min: range.min.into(), max: range.max.into() };
    features.iter().map(|(name, versions)| (name.clone(), range(versions))).collect()
}

fn controller_to_wire(registration: &ControllerRegistration) -> wire::RegisterController {
    wire::RegisterController {
        controller: registration.controller.get(),
        incarnation: registration.incarnation.as_bytes().to_vec(),
        endpoints: registration.endpoints.iter().map(endpoint_to_wire).collect(),
        features: features_to_wire(&registration.features),
    }
}

fn controller_from_wire(record: wire::RegisterController) -> Result<ControllerRegistration, DecodeError> {
    Ok(ControllerRegistration {
        controller: ControllerId::new(record.controller),
        incarnation: IncarnationId::from_bytes(id("incarnation", &record.incarnation)?),
        endpoints: record.endpoints.into_iter().map(endpoint_from_wire).collect::<Result<_, _>>()?,
        features: features_from_wire(record.features)?,
    })
}

fn broker_to_wire(registration: &BrokerRegistration) -> wire::RegisterBroker {
    wire::RegisterBroker {
        broker: registration.broker.get(),
        epoch: registration.epoch.get(),
        incarnation: registration.incarnation.as_bytes().to_vec(),
        endpoints: registration.endpoints.iter().map(endpoint_to_wire).collect(),
        rack: registration.rack.clone(),
        features: features_to_wire(&registration.features),
        directories: directories(registration.directories.iter().copied()),
        cordoned_directories: registration
            .cordoned_directories
            .as_deref()
            .map(|ids| wire::DirectoryIds { ids: directories(ids.iter().copied()) }),
        fenced: registration.fenced,
        in_controlled_shutdown: registration.in_controlled_shutdown,
        controlled_shutdown_offset: registration.controlled_shutdown_offset.map(Offset::get),
        kind: registration.kind.to_recorded(),
        probe: probe_to_wire(&registration.probe),
    }
}

fn broker_from_wire(record: wire::RegisterBroker) -> Result<BrokerRegistration, DecodeError> {
    Ok(BrokerRegistration {
        broker: BrokerId::new(record.broker),
        epoch: BrokerEpoch::new(record.epoch),
        incarnation: IncarnationId::from_bytes(id("incarnation", &record.incarnation)?),
        endpoints: record.endpoints.into_iter().map(endpoint_from_wire).collect::<Result<_, _>>()?,
        rack: record.rack,
        features: features_from_wire(record.features)?,
        directories: directory_ids(&record.directories)?,
        cordoned_directories: record.cordoned_directories.map(|list| directory_ids(&list.ids)).transpose()?,
        fenced: record.fenced,
        in_controlled_shutdown: record.in_controlled_shutdown,
        controlled_shutdown_offset: record.controlled_shutdown_offset.map(Offset::new),
        kind: kind_from_wire(record.kind),
        probe: probe_from_wire(record.probe),
    })
}

pub fn probe_to_wire(probe: &Probe) -> Option<wire::Probe> {
    let endpoint = probe.endpoint_name().map(str::to_owned);
    (*probe != Probe::Unstated).then_some(wire::Probe { endpoint })
}

pub fn probe_from_wire(probe: Option<wire::Probe>) -> Probe {
    match probe {
        None => Probe::Unstated,
        Some(wire::Probe { endpoint: None }) => Probe::None,
        Some(wire::Probe { endpoint: Some(name) }) => Probe::Endpoint(name),
    }
}

fn kind_from_wire(kind: Option<String>) -> Kind {
    kind.as_deref().map_or(Kind::LOG, Kind::from)
}

fn recovery_from_wire(value: i32) -> Result<LeaderRecoveryState, DecodeError> {
    match value {
        0 => Ok(LeaderRecoveryState::Recovered),
        1 => Ok(LeaderRecoveryState::Recovering),
        value => Err(DecodeError::OutOfRange { field: "recovery", value: value.into() }),
    }
}

fn partition_to_wire(registration: &PartitionRegistration) -> wire::CreatePartition {
    let state = &registration.state;
    wire::CreatePartition {
        topic: registration.id.topic.as_bytes().to_vec(),
        partition: registration.id.partition.get(),
        replicas: brokers(&state.replicas),
        directories: directories(state.directories()),
        isr: brokers(&state.isr),
        elr: brokers(state.elr()),
        last_known_elr: brokers(state.last_known_elr()),
        adding: brokers(state.adding()),
        removing: brokers(state.removing()),
        leader: state.leader.map(BrokerId::get),
        recovery: i32::from(state.recovery() as i8),
        leader_epoch: state.leader_epoch.get(),
        partition_epoch: state.partition_epoch.get(),
        history: state.history().map(|note| note_to_wire(&note)).collect(),
    }
}

fn partition_from_wire(record: wire::CreatePartition) -> Result<PartitionRegistration, DecodeError> {
    let topic = TopicId::from_bytes(id("topic", &record.topic)?);
    Ok(PartitionRegistration {
        id: TopicPartition::new(topic, PartitionId::new(record.partition)),
        state: Partition::from(PartitionState {
            replicas: broker_ids(&record.replicas),
            directories: directory_ids(&record.directories)?,
            isr: broker_ids(&record.isr),
            elr: broker_ids(&record.elr),
            last_known_elr: broker_ids(&record.last_known_elr),
            adding: broker_ids(&record.adding),
            removing: broker_ids(&record.removing),
            leader: record.leader.map(BrokerId::new),
            recovery: recovery_from_wire(record.recovery)?,
            leader_epoch: LeaderEpoch::new(record.leader_epoch),
            partition_epoch: PartitionEpoch::new(record.partition_epoch),
            history: record.history.into_iter().map(note_from_wire).collect::<Result<_, _>>()?,
        }),
    })
}

fn note_to_wire(note: &ChangeNote) -> wire::ChangeNote {
    wire::ChangeNote {
        cause: Some(cause_to_wire(note.cause)),
        offset: note.offset.get(),
        time_ms: note.time_ms,
        leader: note.leader.map(BrokerId::get),
        leader_epoch: note.leader_epoch.get(),
        unclean: note.unclean,
    }
}

fn note_from_wire(note: wire::ChangeNote) -> Result<ChangeNote, DecodeError> {
    Ok(ChangeNote {
        cause: cause_from_wire(note.cause)?,
        offset: Offset::new(note.offset),
        time_ms: note.time_ms,
        leader: note.leader.map(BrokerId::new),
        leader_epoch: LeaderEpoch::new(note.leader_epoch),
        unclean: note.unclean,
    })
}

fn cause_to_wire(cause: Cause) -> wire::Cause {
    let kind = match cause {
        Cause::Created => wire::CauseKind::CauseCreated,
        Cause::BrokerFenced(_) => wire::CauseKind::CauseBrokerFenced,
        Cause::BrokerUnfenced(_) => wire::CauseKind::CauseBrokerUnfenced,
        Cause::ControlledShutdown(_) => wire::CauseKind::CauseControlledShutdown,
        Cause::BrokerUnregistered(_) => wire::CauseKind::CauseBrokerUnregistered,
        Cause::UncleanRestart(_) => wire::CauseKind::CauseUncleanRestart,
        Cause::AlterPartition(_) => wire::CauseKind::CauseAlterPartition,
        Cause::ElectionRequested => wire::CauseKind::CauseElectionRequested,
        Cause::PreferredElection => wire::CauseKind::CausePreferredElection,
        Cause::UncleanElection => wire::CauseKind::CauseUncleanElection,
        Cause::MinIsrChanged => wire::CauseKind::CauseMinIsrChanged,
        Cause::Reassignment => wire::CauseKind::CauseReassignment,
        Cause::DirectoryFailed(_) => wire::CauseKind::CauseDirectoryFailed,
    };
    wire::Cause { kind: kind.into(), broker: cause.broker().map(BrokerId::get) }
}

fn cause_from_wire(cause: Option<wire::Cause>) -> Result<Cause, DecodeError> {
    let cause = cause.ok_or(DecodeError::Missing("cause"))?;
    let broker = || cause.broker.map(BrokerId::new).ok_or(DecodeError::Missing("cause.broker"));
    Ok(match cause.kind() {
        wire::CauseKind::CauseUnspecified => return Err(DecodeError::Missing("cause.kind")),
        wire::CauseKind::CauseCreated => Cause::Created,
        wire::CauseKind::CauseBrokerFenced => Cause::BrokerFenced(broker()?),
        wire::CauseKind::CauseBrokerUnfenced => Cause::BrokerUnfenced(broker()?),
        wire::CauseKind::CauseControlledShutdown => Cause::ControlledShutdown(broker()?),
        wire::CauseKind::CauseBrokerUnregistered => Cause::BrokerUnregistered(broker()?),
        wire::CauseKind::CauseUncleanRestart => Cause::UncleanRestart(broker()?),
        wire::CauseKind::CauseAlterPartition => Cause::AlterPartition(broker()?),
        wire::CauseKind::CauseElectionRequested => Cause::ElectionRequested,
        wire::CauseKind::CausePreferredElection => Cause::PreferredElection,
        wire::CauseKind::CauseUncleanElection => Cause::UncleanElection,
        wire::CauseKind::CauseMinIsrChanged => Cause::MinIsrChanged,
        wire::CauseKind::CauseReassignment => Cause::Reassignment,
        wire::CauseKind::CauseDirectoryFailed => Cause::DirectoryFailed(broker()?),
    })
}

fn change_to_wire(change: &PartitionChange) -> wire::PartitionChange {
    let list = |ids: &Option<Vec<BrokerId>>| ids.as_deref().map(|ids| wire::BrokerIds { ids: brokers(ids) });
    wire::PartitionChange {
        topic: change.id.topic.as_bytes().to_vec(),
        partition: change.id.partition.get(),
        cause: Some(cause_to_wire(change.cause)),
        unclean: change.unclean,
        replicas: list(&change.replicas),
        directories: change
            .directories
            .as_deref()
            .map(|ids| wire::DirectoryIds { ids: directories(ids.iter().copied()) }),
        isr: list(&change.isr),
        elr: list(&change.elr),
        last_known_elr: list(&change.last_known_elr),
        adding: list(&change.adding),
        removing: list(&change.removing),
        leader: change.leader.map(|leader| wire::LeaderChange { leader: leader.map(BrokerId::get) }),
        recovery: change.recovery.map(|state| i32::from(state as i8)),
    }
}

fn change_from_wire(record: wire::PartitionChange) -> Result<PartitionChange, DecodeError> {
    let topic = TopicId::from_bytes(id("topic", &record.topic)?);
    let list = |list: Option<wire::BrokerIds>| list.map(|list| broker_ids(&list.ids));
    Ok(PartitionChange {
        id: TopicPartition::new(topic, PartitionId::new(record.partition)),
        cause: cause_from_wire(record.cause)?,
        unclean: record.unclean,
        replicas: list(record.replicas),
        directories: record.directories.map(|list| directory_ids(&list.ids)).transpose()?,
        isr: list(record.isr),
        elr: list(record.elr),
        last_known_elr: list(record.last_known_elr),
        adding: list(record.adding),
        removing: list(record.removing),
        leader: record.leader.map(|change| change.leader.map(BrokerId::new)),
        recovery: record.recovery.map(recovery_from_wire).transpose()?,
    })
}

fn resource_to_wire(resource: &ConfigResource) -> wire::config::Resource {
    match resource {
        ConfigResource::Topic(name) => wire::config::Resource::Topic(name.clone()),
        ConfigResource::Broker(broker) => wire::config::Resource::Broker(broker.get()),
        ConfigResource::BrokerDefault => wire::config::Resource::BrokerDefault(true),
    }
}

fn resource_from_wire(resource: wire::config::Resource) -> ConfigResource {
    match resource {
        wire::config::Resource::Topic(name) => ConfigResource::Topic(name),
        wire::config::Resource::Broker(broker) => ConfigResource::Broker(BrokerId::new(broker)),
        wire::config::Resource::BrokerDefault(_) => ConfigResource::BrokerDefault,
    }
}
