//! The rules that every image keeps, each by name. Checked over the whole image in tests and simulation, and over what
//! a batch touched before that batch is proposed.

use std::collections::BTreeSet;
use std::fmt;

use crate::ids::{BrokerId, TopicId, TopicPartition};
use crate::limits::{CLIENTS_REMEMBERED_MAX, PARTITION_CHANGES_KEPT, REQUESTS_PER_CLIENT_MAX};
use crate::record::{Batch, Partition, Record};

use super::index::PartitionIndex;
use super::{MetadataImage, Topic};

/// A broken rule, with what breaks it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Violation {
    NoReplicas { partition: TopicPartition },
    RepeatedBroker { partition: TopicPartition, list: &'static str },
    NotAReplica { partition: TopicPartition, broker: BrokerId, list: &'static str },
    LeaderOutsideIsr { partition: TopicPartition, leader: BrokerId },
    /// The ISR and the ELR are disjoint.
    InIsrAndElr { partition: TopicPartition, broker: BrokerId },
    /// P5: a fenced broker is in no ISR and leads nothing.
    InactiveInIsr { partition: TopicPartition, broker: BrokerId },
    /// An ISR without a member has no leader, and remembers who could lead.
    LeaderlessWithActiveIsr { partition: TopicPartition, broker: BrokerId },
    DirectoriesNotParallel { partition: TopicPartition, replicas: usize, directories: usize },
    HistoryTooLong { partition: TopicPartition, notes: usize },
    NegativeEpoch { partition: TopicPartition },
    NameWithoutTopic { name: String, topic: TopicId },
    TopicWithoutName { topic: TopicId, name: String },
    /// A broker epoch is the offset of a record, so it lies in the past.
    BrokerEpochInFuture { broker: BrokerId },
    ConfigOfUnknownTopic { name: String },
    IndexDiffers,
    DigestDiffers { kept: u128, recomputed: u128 },
    TooManyClients { clients: usize },
    TooManyRequests { longest: usize },
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoReplicas { partition } => write!(f, "partition {partition} has no replicas"),
            Self::RepeatedBroker { partition, list } => {
                write!(f, "the {list} of partition {partition} names a broker twice")
            }
            Self::NotAReplica { partition, broker, list } => {
                write!(f, "broker {broker} is in the {list} of partition {partition} and not among its replicas")
            }
            Self::LeaderOutsideIsr { partition, leader } => {
                write!(f, "broker {leader} leads partition {partition} and is not in its ISR")
            }
            Self::InIsrAndElr { partition, broker } => {
                write!(f, "broker {broker} is in both ISR and ELR of partition {partition}")
            }
            Self::InactiveInIsr { partition, broker } => {
                write!(f, "broker {broker} is not active and is in the ISR of partition {partition}")
            }
            Self::LeaderlessWithActiveIsr { partition, broker } => {
                write!(f, "partition {partition} has no leader although broker {broker} is active in its ISR")
            }
            Self::DirectoriesNotParallel { partition, replicas, directories } => {
                write!(f, "partition {partition} has {replicas} replicas and {directories} directories")
            }
            Self::HistoryTooLong { partition, notes } => write!(f, "partition {partition} keeps {notes} changes"),
            Self::NegativeEpoch { partition } => write!(f, "partition {partition} has a negative epoch"),
            Self::NameWithoutTopic { name, topic } => write!(f, "the name {name:?} stands for {topic}, which is not there"),
            Self::TopicWithoutName { topic, name } => write!(f, "topic {topic} is called {name:?}, which stands for another"),
            Self::BrokerEpochInFuture { broker } => write!(f, "the epoch of broker {broker} lies in the future"),
            Self::ConfigOfUnknownTopic { name } => write!(f, "there are configs of topic {name:?}, which does not exist"),
            Self::IndexDiffers => f.write_str("the index differs from one made from scratch"),
            Self::DigestDiffers { kept, recomputed } => {
                write!(f, "the digest is {kept:032x}, and {recomputed:032x} when made from scratch")
            }
            Self::TooManyClients { clients } => write!(f, "{clients} clients are remembered"),
            Self::TooManyRequests { longest } => write!(f, "{longest} requests of one client are remembered"),
        }
    }
}

impl MetadataImage {
    /// Every rule over everything.
    pub fn verify(&self) -> Vec<Violation> {
        let mut found = Vec::new();
        for topic in self.topics.values() {
            self.verify_topic(topic, &mut found);
        }
        for (name, id) in &self.topic_names {
            if self.topic(*id).is_none_or(|topic| topic.name != *name) {
                found.push(Violation::NameWithoutTopic { name: name.clone(), topic: *id });
            }
        }
        self.brokers.keys().for_each(|broker| self.verify_broker(*broker, &mut found));
        self.verify_configs(&mut found);
        self.verify_derived(&mut found);
        found
    }

    /// The rules over what a batch touched, after it was replayed. The work is in proportion to the batch.
    pub fn verify_changed(&self, batch: &Batch) -> Vec<Violation> {
        let mut partitions = BTreeSet::new();
        let mut found = Vec::new();
        for record in &batch.records {
            match record {
                Record::CreatePartition(created) => {
                    partitions.insert(created.id);
                }
                Record::PartitionChange(change) => {
                    partitions.insert(change.id);
                }
                Record::RegisterBroker(registration) => self.verify_broker(registration.broker, &mut found),
                Record::FenceBroker { broker, .. }
                | Record::BeginControlledShutdown { broker, .. }
                | Record::UnregisterBroker { broker, .. } => partitions.extend(self.index.in_isr(*broker)),
                Record::ClusterCreated { .. }
                | Record::FeatureLevel { .. }
                | Record::RegisterController(_)
                | Record::UnfenceBroker { .. }
                | Record::CreateTopic { .. }
                | Record::RemoveTopic { .. }
                | Record::Config { .. }
                | Record::RequestApplied { .. }
                | Record::Digest { .. }
                | Record::BeginTransaction { .. }
                | Record::EndTransaction
                | Record::AbortTransaction { .. } => {}
            }
        }
        for id in partitions {
            if let Some(state) = self.partition(id) {
                self.verify_partition(id, state, &mut found);
            }
        }
        found
    }

    fn verify_topic(&self, topic: &Topic, found: &mut Vec<Violation>) {
        if self.topic_names.get(&topic.name) != Some(&topic.id) {
            found.push(Violation::TopicWithoutName { topic: topic.id, name: topic.name.clone() });
        }
        topic.partitions().for_each(|(id, state)| self.verify_partition(id, state, found));
    }

    fn verify_partition(&self, partition: TopicPartition, state: &Partition, found: &mut Vec<Violation>) {
        if state.replicas.is_empty() {
            found.push(Violation::NoReplicas { partition });
        }
        let lists = [
            ("replicas", &state.replicas),
            ("ISR", &state.isr),
            ("ELR", &state.elr),
            ("last known ELR", &state.last_known_elr),
            ("adding", &state.adding),
            ("removing", &state.removing),
        ];
        for (list, brokers) in lists {
            verify_list(partition, list, brokers, &state.replicas, found);
        }
        if let Some(leader) = state.leader
            && !state.isr.contains(&leader)
        {
            found.push(Violation::LeaderOutsideIsr { partition, leader });
        }
        if let Some(broker) = state.isr.iter().find(|broker| state.elr.contains(broker)) {
            found.push(Violation::InIsrAndElr { partition, broker: *broker });
        }
        for broker in &state.isr {
            if !self.is_active(*broker) {
                found.push(Violation::InactiveInIsr { partition, broker: *broker });
            } else if state.leader.is_none() {
                found.push(Violation::LeaderlessWithActiveIsr { partition, broker: *broker });
            }
        }
        if state.directories.len() != state.replicas.len() {
            let (replicas, directories) = (state.replicas.len(), state.directories.len());
            found.push(Violation::DirectoriesNotParallel { partition, replicas, directories });
        }
        if state.history.len() > PARTITION_CHANGES_KEPT {
            found.push(Violation::HistoryTooLong { partition, notes: state.history.len() });
        }
        if state.leader_epoch.get() < 0 || state.partition_epoch.get() < 0 {
            found.push(Violation::NegativeEpoch { partition });
        }
    }

    fn verify_broker(&self, broker: BrokerId, found: &mut Vec<Violation>) {
        if self.broker(broker).is_some_and(|known| known.epoch.get() >= self.next_offset.get()) {
            found.push(Violation::BrokerEpochInFuture { broker });
        }
    }

    fn verify_configs(&self, found: &mut Vec<Violation>) {
        for resource in self.configs.keys() {
            if let crate::record::ConfigResource::Topic(name) = resource
                && self.topic_named(name).is_none()
            {
                found.push(Violation::ConfigOfUnknownTopic { name: name.clone() });
            }
        }
    }

    fn verify_derived(&self, found: &mut Vec<Violation>) {
        let mut index = PartitionIndex::default();
        self.partitions().for_each(|(id, state)| index.update(id, None, Some(state)));
        if index != self.index {
            found.push(Violation::IndexDiffers);
        }
        let recomputed = self.recomputed_digest();
        if recomputed != self.digest() {
            found.push(Violation::DigestDiffers { kept: self.digest(), recomputed });
        }
        if self.requests.client_count() > CLIENTS_REMEMBERED_MAX {
            found.push(Violation::TooManyClients { clients: self.requests.client_count() });
        }
        if self.requests.longest() > REQUESTS_PER_CLIENT_MAX {
            found.push(Violation::TooManyRequests { longest: self.requests.longest() });
        }
    }
}

fn verify_list(
    partition: TopicPartition,
    list: &'static str,
    brokers: &[BrokerId],
    replicas: &[BrokerId],
    found: &mut Vec<Violation>,
) {
    let distinct: BTreeSet<&BrokerId> = brokers.iter().collect();
    if distinct.len() != brokers.len() {
        found.push(Violation::RepeatedBroker { partition, list });
    }
    if let Some(broker) = brokers.iter().find(|broker| !replicas.contains(broker)) {
        found.push(Violation::NotAReplica { partition, broker: *broker, list });
    }
}
