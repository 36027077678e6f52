//! How records become the image: total, dull, and the same on every node for ever. No policy, no choice, no default.
//!
//! Whatever a record leaves to derive is derived here: offsets, leader epoch (+1 iff the change states a leader),
//! partition epoch (+1 with every change), and the notes of why a partition changed.
//!
//! Errors are our own defects: a planner replays what it proposes on its draft first, so what is committed replays.

use std::sync::Arc;

use super::canonical::Entity;
use super::digest::Digest;
use super::partition_changes::PartitionChanges;
use super::requests::RequestOutcome;
use super::{LEVEL_OF_REMOVED_TOPICS, MetadataImage, Topic};
use crate::ids::{BrokerEpoch, BrokerId, ClientId, ClusterId, Offset, ReassignmentId, TopicId, TopicPartition};
use crate::limits;
use crate::mutant::Mutant;
use crate::record::{
    Batch, BrokerList, BrokerRegistration, Cause, ChangeNote, ConfigResource, ControllerRegistration, Kind, Partition,
    PartitionChange, PartitionRegistration, Record,
};

#[cfg(test)]
mod tests;

/// Why a record cannot be true of the image it was replayed on.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ReplayError {
    #[error("the cluster was already created as {0}")]
    ClusterExists(ClusterId),
    #[error("topic {0} is not known")]
    UnknownTopic(TopicId),
    #[error("topic {0:?} is not known")]
    UnknownTopicName(String),
    #[error("topic {name:?} or its id {topic} is already taken")]
    TopicExists { topic: TopicId, name: String },
    #[error("partition {0} is not known")]
    UnknownPartition(TopicPartition),
    #[error("partition {id} cannot be created: the next one is {next}")]
    PartitionOutOfOrder { id: TopicPartition, next: usize },
    #[error("producer ids below {before} were given away, the record says {next}")]
    ProducerIdsGivenTwice { next: i64, before: i64 },
    #[error("broker {0} is not known")]
    UnknownBroker(BrokerId),
    #[error("broker {broker} has epoch {current}, the record says {stated}")]
    BrokerEpochMismatch { broker: BrokerId, stated: BrokerEpoch, current: BrokerEpoch },
    #[error("request {request} of client {client} is applied a second time")]
    RequestRepeated { client: ClientId, request: u64 },
    #[error("digest differs at offset {offset}: expected {expected:032x}, this node has {actual:032x}")]
    DigestMismatch { offset: Offset, expected: u128, actual: u128 },
    #[error("a transaction begins at offset {0} while one is open")]
    TransactionOpen(Offset),
    #[error("a transaction ends at offset {0} while none is open")]
    NoTransaction(Offset),
    #[error("reassignment {0} has already begun")]
    ReassignmentExists(ReassignmentId),
    #[error("reassignment {0} is not known")]
    UnknownReassignment(ReassignmentId),
    #[error("a {0} record does not belong in a snapshot")]
    NotInSnapshot(&'static str),
    #[error("a {0} record is in the log, and belongs into snapshots alone")]
    NotInLog(&'static str),
}

impl MetadataImage {
    /// Replays a batch. After an error the image is of no more use: replay on a clone, which is cheap.
    ///
    /// Transactions mean nothing to an image: `Ledger` keeps what is open from readers.
    pub fn replay(&mut self, batch: &Batch) -> Result<(), ReplayError> {
        self.controller_epoch = batch.controller_epoch;
        self.timestamp_ms = batch.timestamp_ms;
        self.replay_records(&batch.records)
    }

    /// Replays records from `next_offset` on, under the epoch and time of the image.
    pub fn replay_records(&mut self, records: &[Record]) -> Result<(), ReplayError> {
        let mut changes = PartitionChanges::default();
        for record in records {
            self.apply(record, &mut changes)?;
            self.next_offset = self.next_offset.next();
        }
        self.index.update(changes);
        Ok(())
    }

    /// Applies a record, but for the index: that takes over `changes` later.
    pub(super) fn apply(&mut self, record: &Record, changes: &mut PartitionChanges) -> Result<(), ReplayError> {
        match record {
            Record::ClusterCreated { cluster } => self.create_cluster(*cluster)?,
            Record::FeatureLevel { name, level } => self.set_feature(name, *level),
            Record::RegisterController(registration) => self.set_controller(registration),
            Record::RegisterBroker(registration) => self.set_broker(registration.clone()),
            Record::FenceBroker { broker, epoch } => self.amend_broker(*broker, *epoch, |registration| {
                registration.fenced = true;
                registration.controlled_shutdown_offset = None;
            })?,
            Record::UnfenceBroker { broker, epoch } => self.amend_broker(*broker, *epoch, |registration| {
                registration.fenced = false;
                registration.in_controlled_shutdown = false;
                registration.controlled_shutdown_offset = None;
            })?,
            Record::BeginControlledShutdown { broker, epoch } => {
                let offset = self.next_offset;
                self.amend_broker(*broker, *epoch, |registration| {
                    registration.in_controlled_shutdown = true;
                    registration.controlled_shutdown_offset = Some(offset);
                })?;
            }
            Record::UnregisterBroker { broker, epoch } => self.remove_broker(*broker, *epoch)?,
            Record::CreateTopic { topic, name, kind } => self.create_topic(*topic, name, kind)?,
            Record::RemoveTopic { topic } => {
                self.index.update(std::mem::take(changes));
                self.remove_topic(*topic)?;
            }
            Record::RemovedTopic { .. } => return Err(ReplayError::NotInLog(record.kind())),
            Record::CreatePartition(registration) => self.create_partition(registration, changes)?,
            Record::PartitionChange(change) => self.change_partition(change, changes)?,
            Record::Config { resource, key, value } => self.set_config(resource, key, value.as_deref())?,
            Record::RequestApplied { client, request, reply, offset: _, forgotten_up_to: _ } => {
                self.remember_request(*client, *request, reply)?;
            }
            Record::Digest { digest } => self.check_digest(*digest)?,
            Record::BeginTransaction { .. } | Record::EndTransaction | Record::AbortTransaction { .. } => {}
            Record::ProducerIds { next } => self.set_next_producer_id(*next)?,
            Record::BeginReassignment(start) => self.begin_reassignment(start)?,
            Record::ChangeReassignment { reassignment, paused, throttle_bytes_per_second } => {
                self.change_reassignment(*reassignment, *paused, *throttle_bytes_per_second)?;
            }
        }
        Ok(())
    }

    fn create_cluster(&mut self, cluster: ClusterId) -> Result<(), ReplayError> {
        if let Some(existing) = self.cluster {
            return Err(ReplayError::ClusterExists(existing));
        }
        self.cluster = Some(cluster);
        self.digest.add(Entity::Cluster(cluster));
        Ok(())
    }

    fn set_next_producer_id(&mut self, next: i64) -> Result<(), ReplayError> {
        let before = self.next_producer_id;
        if next <= before {
            return Err(ReplayError::ProducerIdsGivenTwice { next, before });
        }
        if before > 0 {
            self.digest.remove(Entity::ProducerIds { next: before });
        }
        self.digest.add(Entity::ProducerIds { next });
        self.next_producer_id = next;
        Ok(())
    }

    fn set_feature(&mut self, name: &str, level: i16) {
        let before = match level {
            0 => self.features.remove(name),
            _ => {
                self.digest.add(Entity::Feature { name, level });
                self.features.insert(name.to_owned(), level)
            }
        };
        if let Some(level) = before {
            self.digest.remove(Entity::Feature { name, level });
        }
        self.fit_replies();
    }

    fn set_controller(&mut self, registration: &ControllerRegistration) {
        self.digest.add(Entity::Controller(registration));
        if let Some(before) = self.controllers.insert(registration.controller, Arc::new(registration.clone())) {
            self.digest.remove(Entity::Controller(&before));
        }
    }

    fn set_broker(&mut self, registration: BrokerRegistration) {
        self.digest.add(Entity::Broker(&registration));
        let after = Arc::new(registration);
        let before = self.brokers.insert(after.broker, after.clone());
        self.directories.replace(before.as_ref().map_or(&[], |before| &before.directories), &after.directories);
        if let Some(before) = before {
            self.digest.remove(Entity::Broker(&before));
        }
    }

    fn amend_broker(
        &mut self,
        broker: BrokerId,
        epoch: BrokerEpoch,
        amend: impl FnOnce(&mut BrokerRegistration),
    ) -> Result<(), ReplayError> {
        let mut registration = self.broker_at(broker, epoch)?.clone();
        amend(&mut registration);
        self.set_broker(registration);
        Ok(())
    }

    fn remove_broker(&mut self, broker: BrokerId, epoch: BrokerEpoch) -> Result<(), ReplayError> {
        self.broker_at(broker, epoch)?;
        if let Some(before) = self.brokers.remove(&broker) {
            self.directories.replace(&before.directories, &[]);
            self.digest.remove(Entity::Broker(&before));
        }
        Ok(())
    }

    fn broker_at(&self, broker: BrokerId, epoch: BrokerEpoch) -> Result<&BrokerRegistration, ReplayError> {
        let registration = self.broker(broker).ok_or(ReplayError::UnknownBroker(broker))?;
        if registration.epoch != epoch {
            let current = registration.epoch;
            return Err(ReplayError::BrokerEpochMismatch { broker, stated: epoch, current });
        }
        Ok(registration)
    }

    fn create_topic(&mut self, id: TopicId, name: &str, kind: &Kind) -> Result<(), ReplayError> {
        if self.topics.contains_key(&id) || self.topic_names.contains_key(name) {
            return Err(ReplayError::TopicExists { topic: id, name: name.to_owned() });
        }
        self.digest.add(Entity::Topic { id, name, kind });
        self.topic_names.insert(name.to_owned(), id);
        self.topics.insert(id, Arc::new(Topic::new(id, name.to_owned(), kind.clone())));
        Ok(())
    }

    fn remove_topic(&mut self, id: TopicId) -> Result<(), ReplayError> {
        let topic = self.topics.remove(&id).ok_or(ReplayError::UnknownTopic(id))?;
        self.topic_names.remove(&topic.name);
        self.digest.remove(Entity::Topic { id, name: &topic.name, kind: &topic.kind });
        self.digest.remove_sum(topic.partitions_digest);
        if self.level() >= LEVEL_OF_REMOVED_TOPICS {
            self.removed_topics.insert(&mut self.digest, id, self.next_offset);
        }
        self.index.remove_topic(&topic);
        self.leave_reassignments(id);
        let resource = ConfigResource::Topic(topic.name.clone());
        for (key, value) in self.configs.remove(&resource).unwrap_or_default() {
            self.digest.remove(Entity::Config { resource: &resource, key: &key, value: &value });
        }
        Ok(())
    }

    fn create_partition(
        &mut self,
        registration: &PartitionRegistration,
        changes: &mut PartitionChanges,
    ) -> Result<(), ReplayError> {
        let PartitionRegistration { id, state } = registration;
        let topic = self.topics.get_mut(&id.topic).ok_or(ReplayError::UnknownTopic(id.topic))?;
        let next = topic.partitions.len();
        if usize::try_from(id.partition.get()) != Ok(next) {
            return Err(ReplayError::PartitionOutOfOrder { id: *id, next });
        }
        let mut state = state.clone();
        state.directories.share(&self.directories);
        if state.history.is_empty() {
            // A new partition; one from a snapshot brings its history.
            note(&mut state, Cause::Created, false, self.next_offset, self.timestamp_ms);
        }
        let topic = Arc::make_mut(topic);
        let hash = Digest::of(Entity::Partition { id: *id, state: &state });
        topic.partitions_digest.add_sum(hash);
        self.digest.add_sum(hash);
        let state = Arc::new(state);
        topic.partitions.push_back(state.clone());
        changes.add(*id, None, Some(state));
        Ok(())
    }

    fn change_partition(
        &mut self,
        change: &PartitionChange,
        changes: &mut PartitionChanges,
    ) -> Result<(), ReplayError> {
        let id = change.id;
        let topic = self.topics.get_mut(&id.topic).ok_or(ReplayError::UnknownTopic(id.topic))?;
        let at = usize::try_from(id.partition.get()).ok().filter(|&at| at < topic.partitions.len());
        let at = at.ok_or(ReplayError::UnknownPartition(id))?;
        let Topic { partitions, partitions_digest, .. } = Arc::make_mut(topic);
        let slot = &mut partitions[at];
        let mut after = Partition::clone(slot);
        change_state(&mut after, change);
        if change.directories.is_some() {
            after.directories.share(&self.directories);
        }
        note(&mut after, change.cause, change.unclean, self.next_offset, self.timestamp_ms);
        let mut difference = Digest::of(Entity::Partition { id, state: &after });
        difference.remove(Entity::Partition { id, state: slot });
        partitions_digest.add_sum(difference);
        self.digest.add_sum(difference);
        let is_over = !after.is_reassigning();
        let after = Arc::new(after);
        let before = std::mem::replace(slot, after.clone());
        changes.add(id, Some(before), Some(after));
        if is_over {
            self.leave_reassignment(id);
        }
        Ok(())
    }

    fn set_config(&mut self, resource: &ConfigResource, key: &str, value: Option<&str>) -> Result<(), ReplayError> {
        if let ConfigResource::Topic(name) = resource
            && !self.topic_names.contains_key(name)
        {
            return Err(ReplayError::UnknownTopicName(name.clone()));
        }
        let before = match value {
            Some(value) => {
                self.digest.add(Entity::Config { resource, key, value });
                self.configs.entry(resource.clone()).or_default().insert(key.to_owned(), value.to_owned())
            }
            None => self.remove_config(resource, key),
        };
        if let Some(value) = before {
            self.digest.remove(Entity::Config { resource, key, value: &value });
        }
        Ok(())
    }

    /// Also drops the resource with its last entry, so that equal contents are equal values.
    fn remove_config(&mut self, resource: &ConfigResource, key: &str) -> Option<String> {
        let entries = self.configs.get_mut(resource)?;
        let before = entries.remove(key);
        if entries.is_empty() {
            self.configs.remove(resource);
        }
        before
    }

    fn remember_request(&mut self, client: ClientId, request: u64, reply: &[u8]) -> Result<(), ReplayError> {
        if self.requests.look_up(client, request) != RequestOutcome::New {
            return Err(ReplayError::RequestRepeated { client, request });
        }
        self.requests.apply(&mut self.digest, client, request, self.next_offset, reply);
        self.fit_replies();
        Ok(())
    }

    /// Drops what exceeds the bound on the bytes of replies, where every node knows of it.
    fn fit_replies(&mut self) {
        if self.level() >= limits::REMEMBERED_BYTES_BOUNDED_FROM_LEVEL {
            self.requests.fit(&mut self.digest);
        }
    }

    fn check_digest(&self, expected: u128) -> Result<(), ReplayError> {
        let actual = self.digest();
        if actual == expected {
            return Ok(());
        }
        Err(ReplayError::DigestMismatch { offset: self.next_offset, expected, actual })
    }
}

fn change_state(state: &mut Partition, change: &PartitionChange) {
    let PartitionChange {
        id: _,
        cause: _,
        unclean: _,
        replicas,
        directories,
        isr,
        elr,
        last_known_elr,
        adding,
        removing,
        leader,
        recovery,
    } = change;
    replace(&mut state.replicas, replicas);
    replace(&mut state.isr, isr);
    if let Some(directories) = directories {
        state.directories = directories.iter().copied().collect();
    }
    state.amend_rare(|rare| {
        replace(&mut rare.elr, elr);
        replace(&mut rare.last_known_elr, last_known_elr);
        replace(&mut rare.adding, adding);
        replace(&mut rare.removing, removing);
        rare.recovery = recovery.unwrap_or(rare.recovery);
    });
    if let Some(leader) = *leader {
        state.leader = leader;
        if !Mutant::SameLeaderEpoch.is_on() {
            state.leader_epoch = state.leader_epoch.next();
        }
    }
    state.partition_epoch = state.partition_epoch.next();
}

fn replace(field: &mut BrokerList, after: &Option<Vec<BrokerId>>) {
    if let Some(after) = after {
        *field = after[..].into();
    }
}

fn note(state: &mut Partition, cause: Cause, unclean: bool, offset: Offset, time_ms: i64) {
    let (leader, leader_epoch) = (state.leader, state.leader_epoch);
    let note = ChangeNote { cause, offset, time_ms, leader, leader_epoch, unclean };
    state.history.push(&note, limits::PARTITION_CHANGES_KEPT);
}
