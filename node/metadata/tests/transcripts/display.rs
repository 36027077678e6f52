//! What a record changed, as a line.

use std::fmt::{Display, Write};

use quorate_metadata::ids::{BrokerId, TopicPartition};
use quorate_metadata::image::Reassignment;
use quorate_metadata::record::{LeaderRecoveryState, Partition, PartitionChange, Probe};
use quorate_metadata::{MetadataImage, Record};

pub fn change(before: &MetadataImage, after: &MetadataImage, record: &Record) -> String {
    match record {
        Record::ClusterCreated { .. } => "cluster created".to_owned(),
        Record::FeatureLevel { name, level } => format!("feature {name} {level}"),
        Record::RegisterController(controller) => format!("controller {} registered", controller.controller),
        Record::RegisterBroker(broker) => {
            let known = before.broker(broker.broker).is_some_and(|known| known.incarnation == broker.incarnation);
            let verb = if known { "amended" } else { "registered" };
            let probe = probe(&broker.probe);
            format!("broker {} {verb} epoch {} {}{probe}", broker.broker, broker.epoch, state(after, broker.broker))
        }
        Record::FenceBroker { broker, .. } => format!("broker {broker} fenced"),
        Record::UnfenceBroker { broker, .. } => format!("broker {broker} unfenced"),
        Record::BeginControlledShutdown { broker, .. } => format!("broker {broker} in controlled shutdown"),
        Record::UnregisterBroker { broker, .. } => format!("broker {broker} unregistered"),
        Record::CreateTopic { name, .. } => format!("topic {name} created"),
        Record::RemoveTopic { topic } => format!("topic {} removed", before.topic(*topic).unwrap().name),
        Record::CreatePartition(partition) => {
            let named = name(after, partition.id);
            format!("partition {named} created {}", summary(&partition.state))
        }
        Record::PartitionChange(change) => partition_change(before, after, change),
        Record::Config { resource, key, value } => {
            let old = before.configs.get(resource).and_then(|configs| configs.get(key));
            format!("config {resource} {key} {}→{}", option(old.as_ref()), option(value.as_ref()))
        }
        Record::ProducerIds { next } => format!("producer ids up to {}", next - 1),
        Record::BeginReassignment(start) => operation(after, after.reassignments.get(&start.id).unwrap()),
        Record::ChangeReassignment { reassignment, .. } => {
            operation(after, after.reassignments.get(reassignment).unwrap())
        }
        Record::RemovedTopic { .. }
        | Record::RequestApplied { .. }
        | Record::Digest { .. }
        | Record::BeginTransaction { .. }
        | Record::EndTransaction
        | Record::AbortTransaction { .. } => record.kind().to_owned(),
    }
}

fn probe(probe: &Probe) -> String {
    match probe {
        Probe::Unstated => String::new(),
        Probe::None => " probe none".to_owned(),
        Probe::Endpoint(name) => format!(" probe {name}"),
    }
}

fn partition_change(before: &MetadataImage, after: &MetadataImage, change: &PartitionChange) -> String {
    let (was, is) = (before.partition(change.id).unwrap(), after.partition(change.id).unwrap());
    let mut line = format!("partition {}", name(after, change.id));
    differ(&mut line, "leader", option(was.leader), option(is.leader));
    differ(&mut line, "replicas", list(&was.replicas), list(&is.replicas));
    differ(&mut line, "isr", list(&was.isr), list(&is.isr));
    differ(&mut line, "elr", list(was.elr()), list(is.elr()));
    differ(&mut line, "last_known_elr", list(was.last_known_elr()), list(is.last_known_elr()));
    differ(&mut line, "adding", list(was.adding()), list(is.adding()));
    differ(&mut line, "removing", list(was.removing()), list(is.removing()));
    if !was.directories().eq(is.directories()) {
        line.push_str(" directories changed");
    }
    differ(&mut line, "recovery", recovery(was.recovery()), recovery(is.recovery()));
    differ(&mut line, "leader_epoch", was.leader_epoch, is.leader_epoch);
    differ(&mut line, "partition_epoch", was.partition_epoch, is.partition_epoch);
    write!(line, " ({}{})", change.cause, if change.unclean { ", UNCLEAN" } else { "" }).unwrap();
    line
}

/// Without its id, which depends on everything before it.
pub fn operation(image: &MetadataImage, reassignment: &Reassignment) -> String {
    let Reassignment { id: _, partitions, paused, throttle_bytes_per_second, started_ms: _ } = reassignment;
    let mut line = "reassignment of".to_owned();
    for (&id, original) in partitions {
        write!(line, " {} from {}", name(image, id), list(original)).unwrap();
    }
    if let Some(limit) = throttle_bytes_per_second {
        write!(line, " at {limit} bytes/s").unwrap();
    }
    if *paused {
        line.push_str(" paused");
    }
    line
}

fn differ<T: PartialEq + Display>(line: &mut String, what: &str, was: T, is: T) {
    if was != is {
        write!(line, " {what} {was}→{is}").unwrap();
    }
}

pub fn summary(state: &Partition) -> String {
    let mut line =
        format!("leader {} isr {} replicas {}", option(state.leader), list(&state.isr), list(&state.replicas));
    for (what, brokers) in [
        ("elr", state.elr()),
        ("last_known_elr", state.last_known_elr()),
        ("adding", state.adding()),
        ("removing", state.removing()),
    ] {
        if !brokers.is_empty() {
            write!(line, " {what} {}", list(brokers)).unwrap();
        }
    }
    if state.recovery() == LeaderRecoveryState::Recovering {
        line.push_str(" recovering");
    }
    line
}

pub fn state(image: &MetadataImage, broker: BrokerId) -> &'static str {
    match image.broker(broker) {
        None => "unregistered",
        Some(broker) if broker.fenced => "fenced",
        Some(broker) if broker.in_controlled_shutdown => "in controlled shutdown",
        Some(_) => "unfenced",
    }
}

pub fn name(image: &MetadataImage, id: TopicPartition) -> String {
    let topic = image.topic(id.topic).map_or("?", |topic| &topic.name);
    format!("{topic}-{}", id.partition)
}

pub fn list(brokers: &[BrokerId]) -> String {
    let ids: Vec<String> = brokers.iter().map(ToString::to_string).collect();
    format!("[{}]", ids.join(","))
}

pub fn option(value: Option<impl Display>) -> String {
    value.map_or_else(|| "none".to_owned(), |value| value.to_string())
}

pub fn recovery(state: LeaderRecoveryState) -> &'static str {
    match state {
        LeaderRecoveryState::Recovered => "recovered",
        LeaderRecoveryState::Recovering => "recovering",
    }
}
