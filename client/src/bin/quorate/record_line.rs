//! Records of the metadata log for people, one line each. Where the state before a change is known, the line says
//! from what to what: `partition orders-0 leader 1→2 isr [1,2,3]→[2,3]`.

use std::collections::BTreeMap;
use std::fmt::Write;

use quorate_metadata::Record;
use quorate_metadata::ids::{BrokerId, TopicId, TopicPartition};
use quorate_metadata::record::{BrokerRegistration, PartitionChange, PartitionRegistration, ReassignmentStart};
use quorate_proto::admin::PartitionDescription;

use crate::output::{list, optional};
use crate::record_view::{TopicNames, addresses, numbers, recovery};

/// What is known around the records.
#[derive(Debug, Default)]
pub struct Known {
    pub names: TopicNames,
    /// Partitions as they are before the records.
    pub before: BTreeMap<TopicPartition, PartitionDescription>,
}

impl Known {
    /// Takes note of what a record says about names.
    pub fn learn(&mut self, record: &Record) {
        if let Record::CreateTopic { topic, name, .. } = record {
            self.names.insert(*topic, name.clone());
        }
    }

    /// Forgets what is gone: after the record was shown.
    pub fn forget(&mut self, record: &Record) {
        if let Record::RemoveTopic { topic } = record {
            self.names.remove(topic);
        }
    }

    fn topic(&self, topic: TopicId) -> String {
        self.names.get(&topic).cloned().unwrap_or_else(|| topic.to_string())
    }

    fn partition(&self, id: TopicPartition) -> String {
        format!("{}-{}", self.topic(id.topic), id.partition)
    }
}

pub fn record_line(record: &Record, known: &Known) -> String {
    match record {
        Record::ClusterCreated { cluster } => format!("cluster {cluster} created"),
        Record::FeatureLevel { name, level } => format!("feature {name} level {level}"),
        Record::RegisterController(controller) => {
            format!("controller {} registered at {}", controller.controller, addresses(&controller.endpoints).join(" "))
        }
        Record::RegisterBroker(broker) => registered(broker),
        Record::FenceBroker { broker, epoch } => format!("broker {broker} fenced (epoch {epoch})"),
        Record::UnfenceBroker { broker, epoch } => format!("broker {broker} unfenced (epoch {epoch})"),
        Record::BeginControlledShutdown { broker, epoch } => {
            format!("broker {broker} begins its controlled shutdown (epoch {epoch})")
        }
        Record::UnregisterBroker { broker, epoch } => format!("broker {broker} unregistered (epoch {epoch})"),
        Record::CreateTopic { topic, name, kind } if kind.is_log() => format!("topic {name} created ({topic})"),
        Record::CreateTopic { topic, name, kind } => format!("topic {name} of kind {kind} created ({topic})"),
        Record::RemoveTopic { topic } => {
            format!("topic {} removed with its partitions and configs", known.topic(*topic))
        }
        Record::RemovedTopic { topic, offset } => format!("topic {topic} was removed at offset {offset}"),
        Record::CreatePartition(partition) => created(partition, known),
        Record::PartitionChange(change) => changed(change, known),
        Record::Config { resource, key, value: Some(value) } => format!("config {resource} {key}={value}"),
        Record::Config { resource, key, value: None } => format!("config {resource} {key} removed"),
        Record::RequestApplied { client, request, .. } => format!("request {request} of client {client} applied"),
        Record::Digest { digest } => format!("digest {digest:032x}"),
        Record::BeginTransaction { name } => format!("transaction {name} begins"),
        Record::EndTransaction => "transaction ends".to_owned(),
        Record::AbortTransaction { reason } => format!("transaction aborted: {reason}"),
        Record::ProducerIds { next } => format!("producer ids below {next} are given away"),
        Record::BeginReassignment(start) => reassignment_begun(start, known),
        Record::ChangeReassignment { reassignment, paused, throttle_bytes_per_second } => {
            format!("reassignment {reassignment} goes on{}", pace(*paused, *throttle_bytes_per_second))
        }
    }
}

fn registered(broker: &BrokerRegistration) -> String {
    let mut line = format!(
        "broker {} registered at {} epoch {}",
        broker.broker,
        addresses(&broker.endpoints).join(" "),
        broker.epoch
    );
    if !broker.kind.is_log() {
        line.push_str(" kind ");
        line.push_str(broker.kind.as_str());
    }
    if let Some(rack) = &broker.rack {
        line.push_str(" rack ");
        line.push_str(rack);
    }
    line.push_str(if broker.fenced { " fenced" } else { " unfenced" });
    line
}

fn reassignment_begun(start: &ReassignmentStart, known: &Known) -> String {
    let partitions: Vec<String> = start.partitions.iter().map(|moved| known.partition(moved.id)).collect();
    let pace = pace(start.paused, start.throttle_bytes_per_second);
    format!("reassignment {} of {} begins{pace}", start.id, partitions.join(" "))
}

fn pace(paused: bool, throttle_bytes_per_second: Option<u64>) -> String {
    let throttle = throttle_bytes_per_second.map(|limit| format!(" at {limit} bytes/s at most"));
    format!("{}{}", throttle.unwrap_or_else(|| " unthrottled".to_owned()), if paused { ", paused" } else { "" })
}

fn created(partition: &PartitionRegistration, known: &Known) -> String {
    let state = &partition.state;
    format!(
        "partition {} replicas {} isr {} leader {} leader_epoch {}",
        known.partition(partition.id),
        list(&numbers(&state.replicas)),
        list(&numbers(&state.isr)),
        leader(state.leader.map(BrokerId::get)),
        state.leader_epoch,
    )
}

fn changed(change: &PartitionChange, known: &Known) -> String {
    let before = known.before.get(&change.id);
    let mut line = format!("partition {}", known.partition(change.id));
    if let Some(now) = change.leader {
        push(&mut line, "leader", before.map(|before| leader(before.leader)), leader(now.map(BrokerId::get)));
    }
    let lists = [
        ("replicas", &change.replicas, before.map(|before| &before.replicas)),
        ("isr", &change.isr, before.map(|before| &before.isr)),
        ("elr", &change.elr, before.map(|before| &before.elr)),
        ("last_known_elr", &change.last_known_elr, before.map(|before| &before.last_known_elr)),
        ("adding", &change.adding, before.map(|before| &before.adding)),
        ("removing", &change.removing, before.map(|before| &before.removing)),
    ];
    for (name, now, was) in lists {
        if let Some(now) = now {
            push(&mut line, name, was.map(|ids| list(ids)), list(&numbers(now)));
        }
    }
    if let Some(now) = change.recovery {
        push(
            &mut line,
            "recovery",
            before.map(|before| before.leader_recovery_state.clone()),
            recovery(now).to_owned(),
        );
    }
    if let Some(before) = before {
        epochs(&mut line, before, change.leader.is_some());
    }
    if change.unclean {
        line.push_str(" UNCLEAN");
    }
    write!(line, " ({})", change.cause).expect("writing to a string cannot fail");
    line
}

/// Replay grows the leader epoch when the leader is written, and the partition epoch always.
fn epochs(line: &mut String, before: &PartitionDescription, leader_written: bool) {
    let grown = |epoch: i32| (Some(epoch.to_string()), (i64::from(epoch) + 1).to_string());
    if leader_written {
        let (was, now) = grown(before.leader_epoch);
        push(line, "leader_epoch", was, now);
    }
    let (was, now) = grown(before.partition_epoch);
    push(line, "partition_epoch", was, now);
}

fn push(line: &mut String, name: &str, was: Option<String>, now: String) {
    let change = was.map_or_else(|| now.clone(), |was| format!("{was}→{now}"));
    write!(line, " {name} {change}").expect("writing to a string cannot fail");
}

fn leader(id: Option<i32>) -> String {
    if id.is_none() { "none".to_owned() } else { optional(id) }
}

#[cfg(test)]
mod tests {
    use quorate_metadata::ids::{PartitionId, ReassignmentId};
    use quorate_metadata::record::{Cause, ReassignedPartition};

    use super::*;

    fn change() -> PartitionChange {
        let id = TopicPartition::new(TopicId::from_bytes([1; 16]), PartitionId::new(0));
        let mut change = PartitionChange::none(id, Cause::BrokerFenced(BrokerId::new(1)));
        change.isr = Some(vec![BrokerId::new(2), BrokerId::new(3)]);
        change.leader = Some(Some(BrokerId::new(2)));
        change
    }

    fn known() -> Known {
        let names = [(TopicId::from_bytes([1; 16]), "orders".to_owned())].into();
        Known { names, before: BTreeMap::new() }
    }

    #[test]
    fn a_change_says_from_what_to_what_where_that_is_known() {
        let before = PartitionDescription {
            leader: Some(1),
            isr: vec![1, 2, 3],
            partition_epoch: 4,
            ..PartitionDescription::default()
        };
        let known = Known { before: [(change().id, before)].into(), ..known() };
        assert_eq!(
            record_line(&Record::PartitionChange(change()), &known),
            "partition orders-0 leader 1→2 isr [1,2,3]→[2,3] leader_epoch 0→1 partition_epoch 4→5 (broker-fenced 1)"
        );
    }

    #[test]
    fn a_reassignment_says_what_it_moves_and_how_fast() {
        let reassignment = ReassignmentId::new(7);
        let start = ReassignmentStart {
            id: reassignment,
            partitions: vec![ReassignedPartition { id: change().id, original: Vec::new() }],
            paused: false,
            throttle_bytes_per_second: Some(1_000),
            started_ms: None,
        };
        let begin = Record::BeginReassignment(start);
        assert_eq!(record_line(&begin, &known()), "reassignment 7 of orders-0 begins at 1000 bytes/s at most");
        let paused = Record::ChangeReassignment { reassignment, paused: true, throttle_bytes_per_second: None };
        assert_eq!(record_line(&paused, &known()), "reassignment 7 goes on unthrottled, paused");
    }

    #[test]
    fn a_change_says_what_became_true_otherwise() {
        let mut change = change();
        change.leader = Some(None);
        change.unclean = true;
        assert_eq!(
            record_line(&Record::PartitionChange(change), &known()),
            "partition orders-0 leader none isr [2,3] UNCLEAN (broker-fenced 1)"
        );
    }
}
