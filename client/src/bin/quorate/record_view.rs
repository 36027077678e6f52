//! Records of the metadata log for programs: `{"type": "PartitionChange", …}`. In changes, an absent field is unchanged.

use std::collections::BTreeMap;

use quorate_metadata::Record;
use quorate_metadata::ids::{BrokerEpoch, BrokerId, TopicId};
use quorate_metadata::record::{
    BrokerRegistration, Endpoint, LeaderRecoveryState, PartitionChange, PartitionRegistration, ReassignedPartition,
};
use serde::Serialize;

/// What topics are called.
pub type TopicNames = BTreeMap<TopicId, String>;

#[derive(Debug, Serialize)]
#[serde(tag = "type")]
pub enum RecordView {
    ClusterCreated {
        cluster: String,
    },
    FeatureLevel {
        name: String,
        level: i16,
    },
    RegisterController {
        controller: i32,
        incarnation: String,
        endpoints: Vec<String>,
    },
    RegisterBroker(Broker),
    FenceBroker {
        broker: i32,
        epoch: i64,
    },
    UnfenceBroker {
        broker: i32,
        epoch: i64,
    },
    BeginControlledShutdown {
        broker: i32,
        epoch: i64,
    },
    UnregisterBroker {
        broker: i32,
        epoch: i64,
    },
    CreateTopic {
        topic: String,
        name: String,
        kind: String,
    },
    RemoveTopic {
        topic: String,
        name: Option<String>,
    },
    RemovedTopic {
        topic: String,
        offset: i64,
    },
    CreatePartition(Partition),
    PartitionChange(Change),
    Config {
        resource: String,
        key: String,
        value: Option<String>,
    },
    RequestApplied {
        client: String,
        request: u64,
    },
    Digest {
        digest: String,
    },
    BeginTransaction {
        name: String,
    },
    EndTransaction,
    AbortTransaction {
        reason: String,
    },
    ProducerIds {
        next: i64,
    },
    BeginReassignment {
        id: i64,
        partitions: Vec<Reassigned>,
        paused: bool,
        throttle_bytes_per_second: Option<u64>,
    },
    ChangeReassignment {
        id: i64,
        paused: bool,
        throttle_bytes_per_second: Option<u64>,
    },
    /// Of a newer version than this program.
    Unknown,
}

#[derive(Debug, Serialize)]
pub struct Broker {
    broker: i32,
    epoch: i64,
    incarnation: String,
    kind: String,
    endpoints: Vec<String>,
    rack: Option<String>,
    directories: Vec<String>,
    probed_endpoint: Option<String>,
    fenced: bool,
    in_controlled_shutdown: bool,
}

#[derive(Debug, Serialize)]
pub struct Partition {
    topic: String,
    name: Option<String>,
    partition: i32,
    replicas: Vec<i32>,
    isr: Vec<i32>,
    elr: Vec<i32>,
    leader: Option<i32>,
    leader_epoch: i32,
    partition_epoch: i32,
    leader_recovery_state: &'static str,
}

#[derive(Debug, Serialize)]
pub struct Reassigned {
    topic: String,
    name: Option<String>,
    partition: i32,
    original: Vec<i32>,
}

#[derive(Debug, Serialize)]
pub struct Change {
    topic: String,
    name: Option<String>,
    partition: i32,
    cause: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    cause_broker: Option<i32>,
    unclean: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    replicas: Option<Vec<i32>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    isr: Option<Vec<i32>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    elr: Option<Vec<i32>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    last_known_elr: Option<Vec<i32>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    adding: Option<Vec<i32>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    removing: Option<Vec<i32>>,
    /// Null: leaderless from here on.
    #[serde(skip_serializing_if = "Option::is_none")]
    leader: Option<Option<i32>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    leader_recovery_state: Option<&'static str>,
}

impl RecordView {
    pub fn new(record: &Record, names: &TopicNames) -> Self {
        let event = |broker: &BrokerId, epoch: &BrokerEpoch| (broker.get(), epoch.get());
        match record {
            Record::ClusterCreated { cluster } => Self::ClusterCreated { cluster: cluster.to_string() },
            Record::FeatureLevel { name, level } => Self::FeatureLevel { name: name.clone(), level: *level },
            Record::RegisterController(registration) => Self::RegisterController {
                controller: registration.controller.get(),
                incarnation: registration.incarnation.to_string(),
                endpoints: addresses(&registration.endpoints),
            },
            Record::RegisterBroker(registration) => Self::RegisterBroker(Broker::new(registration)),
            Record::FenceBroker { broker, epoch } => {
                let (broker, epoch) = event(broker, epoch);
                Self::FenceBroker { broker, epoch }
            }
            Record::UnfenceBroker { broker, epoch } => {
                let (broker, epoch) = event(broker, epoch);
                Self::UnfenceBroker { broker, epoch }
            }
            Record::BeginControlledShutdown { broker, epoch } => {
                let (broker, epoch) = event(broker, epoch);
                Self::BeginControlledShutdown { broker, epoch }
            }
            Record::UnregisterBroker { broker, epoch } => {
                let (broker, epoch) = event(broker, epoch);
                Self::UnregisterBroker { broker, epoch }
            }
            Record::CreateTopic { topic, name, kind } => {
                Self::CreateTopic { topic: topic.to_string(), name: name.clone(), kind: kind.to_string() }
            }
            Record::RemoveTopic { topic } => {
                Self::RemoveTopic { topic: topic.to_string(), name: names.get(topic).cloned() }
            }
            Record::RemovedTopic { topic, offset } => {
                Self::RemovedTopic { topic: topic.to_string(), offset: offset.get() }
            }
            Record::CreatePartition(registration) => Self::CreatePartition(Partition::new(registration, names)),
            Record::PartitionChange(change) => Self::PartitionChange(Change::new(change, names)),
            Record::Config { resource, key, value } => {
                Self::Config { resource: resource.to_string(), key: key.clone(), value: value.clone() }
            }
            Record::RequestApplied { client, request, .. } => {
                Self::RequestApplied { client: client.to_string(), request: *request }
            }
            Record::Digest { digest } => Self::Digest { digest: format!("{digest:032x}") },
            Record::BeginTransaction { name } => Self::BeginTransaction { name: name.clone() },
            Record::EndTransaction => Self::EndTransaction,
            Record::AbortTransaction { reason } => Self::AbortTransaction { reason: reason.clone() },
            Record::ProducerIds { next } => Self::ProducerIds { next: *next },
            Record::BeginReassignment(start) => Self::BeginReassignment {
                id: start.id.get(),
                partitions: start.partitions.iter().map(|moved| Reassigned::new(moved, names)).collect(),
                paused: start.paused,
                throttle_bytes_per_second: start.throttle_bytes_per_second,
            },
            Record::ChangeReassignment { reassignment, paused, throttle_bytes_per_second } => {
                Self::ChangeReassignment {
                    id: reassignment.get(),
                    paused: *paused,
                    throttle_bytes_per_second: *throttle_bytes_per_second,
                }
            }
        }
    }
}

impl Broker {
    fn new(registration: &BrokerRegistration) -> Self {
        Self {
            broker: registration.broker.get(),
            epoch: registration.epoch.get(),
            incarnation: registration.incarnation.to_string(),
            kind: registration.kind.to_string(),
            endpoints: addresses(&registration.endpoints),
            rack: registration.rack.clone(),
            directories: registration.directories.iter().map(ToString::to_string).collect(),
            probed_endpoint: registration.probed_endpoint().map(|endpoint| endpoint.name.clone()),
            fenced: registration.fenced,
            in_controlled_shutdown: registration.in_controlled_shutdown,
        }
    }
}

impl Partition {
    fn new(registration: &PartitionRegistration, names: &TopicNames) -> Self {
        let state = &registration.state;
        Self {
            topic: registration.id.topic.to_string(),
            name: names.get(&registration.id.topic).cloned(),
            partition: registration.id.partition.get(),
            replicas: numbers(&state.replicas),
            isr: numbers(&state.isr),
            elr: numbers(state.elr()),
            leader: state.leader.map(BrokerId::get),
            leader_epoch: state.leader_epoch.get(),
            partition_epoch: state.partition_epoch.get(),
            leader_recovery_state: recovery(state.recovery()),
        }
    }
}

impl Reassigned {
    fn new(moved: &ReassignedPartition, names: &TopicNames) -> Self {
        Self {
            topic: moved.id.topic.to_string(),
            name: names.get(&moved.id.topic).cloned(),
            partition: moved.id.partition.get(),
            original: numbers(&moved.original),
        }
    }
}

impl Change {
    fn new(change: &PartitionChange, names: &TopicNames) -> Self {
        let ids = |ids: &Option<Vec<BrokerId>>| ids.as_deref().map(numbers);
        Self {
            topic: change.id.topic.to_string(),
            name: names.get(&change.id.topic).cloned(),
            partition: change.id.partition.get(),
            cause: change.cause.name(),
            cause_broker: change.cause.broker().map(BrokerId::get),
            unclean: change.unclean,
            replicas: ids(&change.replicas),
            isr: ids(&change.isr),
            elr: ids(&change.elr),
            last_known_elr: ids(&change.last_known_elr),
            adding: ids(&change.adding),
            removing: ids(&change.removing),
            leader: change.leader.map(|leader| leader.map(BrokerId::get)),
            leader_recovery_state: change.recovery.map(recovery),
        }
    }
}

pub fn numbers(ids: &[BrokerId]) -> Vec<i32> {
    ids.iter().map(|id| id.get()).collect()
}

pub fn addresses(endpoints: &[Endpoint]) -> Vec<String> {
    endpoints.iter().map(Endpoint::authority).collect()
}

pub fn recovery(state: LeaderRecoveryState) -> &'static str {
    match state {
        LeaderRecoveryState::Recovered => "recovered",
        LeaderRecoveryState::Recovering => "recovering",
    }
}

#[cfg(test)]
mod tests {
    use quorate_metadata::ids::{PartitionId, TopicPartition};
    use quorate_metadata::record::Cause;

    use super::*;
    use crate::output::json;

    fn view(record: &Record) -> String {
        let names = TopicNames::from([(TopicId::from_bytes([1; 16]), "orders".to_owned())]);
        json(&RecordView::new(record, &names))
    }

    #[test]
    fn a_change_shows_only_what_changed_and_null_for_leaderless() {
        let id = TopicPartition::new(TopicId::from_bytes([1; 16]), PartitionId::new(0));
        let mut change = PartitionChange::none(id, Cause::BrokerFenced(BrokerId::new(1)));
        change.isr = Some(Vec::new());
        change.leader = Some(None);
        assert_eq!(
            view(&Record::PartitionChange(change)),
            concat!(
                r#"{"type":"PartitionChange","topic":"AQEBAQEBAQEBAQEBAQEBAQ","name":"orders","partition":0,"#,
                r#""cause":"broker-fenced","cause_broker":1,"unclean":false,"isr":[],"leader":null}"#
            )
        );
    }

    #[test]
    fn records_carry_their_type() {
        let fenced = Record::FenceBroker { broker: BrokerId::new(3), epoch: BrokerEpoch::new(12) };
        assert_eq!(view(&fenced), r#"{"type":"FenceBroker","broker":3,"epoch":12}"#);
        assert_eq!(view(&Record::EndTransaction), r#"{"type":"EndTransaction"}"#);
    }
}
