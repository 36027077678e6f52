//! From records to the image. Total and dull: a record says what became true, and this writes it down.
//!
//! No policy here, so that replicas cannot disagree. A record that does not fit the image is a broken invariant.

use std::sync::Arc;

use crate::ids::{BrokerEpoch, BrokerId, ClusterId, Offset, TopicId, TopicPartition};
use crate::limits::PARTITION_CHANGES_KEPT;
use crate::record::{
    Batch, BrokerRegistration, Cause, ChangeNote, ConfigResource, ControllerRegistration, Partition, PartitionChange,
    PartitionRegistration, Record,
};

use super::{MetadataImage, Topic, canonical};

/// A record that does not fit the image it is replayed on.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ReplayError {
    #[error("the cluster is {found} already")]
    ClusterExists { found: ClusterId },
    #[error("topic {name:?} exists already")]
    TopicExists { name: String },
    #[error("topic {0} does not exist")]
    UnknownTopic(TopicId),
    #[error("partition {0} does not exist")]
    UnknownPartition(TopicPartition),
    #[error("partition {0} is not the next one of its topic")]
    PartitionNotNext(TopicPartition),
    #[error("broker {0} is not registered")]
    UnknownBroker(BrokerId),
    #[error("broker {broker} has epoch {found}, and the record is for epoch {expected}")]
    BrokerEpochMismatch { broker: BrokerId, expected: BrokerEpoch, found: BrokerEpoch },
    #[error("the digest at offset {offset} is {actual:032x} here and {expected:032x} in the log: this node has diverged")]
    DigestMismatch { offset: Offset, expected: u128, actual: u128 },
    #[error("a transaction begins within another")]
    TransactionWithinTransaction,
    #[error("a transaction ends that did not begin")]
    NoTransaction,
}

/// When and where a record was written.
#[derive(Clone, Copy)]
struct At {
    offset: Offset,
    time_ms: i64,
}

impl MetadataImage {
    /// Replays a batch. After an error the image is unusable: replay on a clone.
    pub fn replay(&mut self, batch: &Batch) -> Result<(), ReplayError> {
        self.controller_epoch = batch.controller_epoch;
        self.timestamp_ms = batch.timestamp_ms;
        for record in &batch.records {
            self.replay_record(record, batch.timestamp_ms)?;
        }
        Ok(())
    }

    pub(super) fn replay_record(&mut self, record: &Record, time_ms: i64) -> Result<(), ReplayError> {
        let at = At { offset: self.next_offset, time_ms };
        match record {
            Record::ClusterCreated { cluster } => self.create_cluster(*cluster)?,
            Record::FeatureLevel { name, level } => self.set_feature(name, *level),
            Record::RegisterController(registration) => self.register_controller(registration),
            Record::RegisterBroker(registration) => self.put_broker(registration.clone()),
            Record::FenceBroker { broker, epoch } => self.change_broker(*broker, *epoch, |registration| {
                registration.fenced = true;
                registration.controlled_shutdown_offset = None;
            })?,
            Record::UnfenceBroker { broker, epoch } => self.change_broker(*broker, *epoch, |registration| {
                registration.fenced = false;
                registration.in_controlled_shutdown = false;
                registration.controlled_shutdown_offset = None;
            })?,
            Record::BeginControlledShutdown { broker, epoch } => {
                self.change_broker(*broker, *epoch, |registration| {
                    registration.in_controlled_shutdown = true;
                    registration.controlled_shutdown_offset = Some(at.offset);
                })?;
            }
            Record::UnregisterBroker { broker, epoch } => self.remove_broker(*broker, *epoch)?,
            Record::CreateTopic { topic, name } => self.create_topic(*topic, name)?,
            Record::RemoveTopic { topic } => self.remove_topic(*topic)?,
            Record::CreatePartition(registration) => self.create_partition(registration, at)?,
            Record::PartitionChange(change) => self.change_partition(change, at)?,
            Record::Config { resource, key, value } => self.set_config(resource, key, value.as_deref()),
            Record::RequestApplied { client, request, reply, offset, forgotten_up_to } => {
                let applied_at = offset.unwrap_or(at.offset);
                let change = self.requests.apply(*client, *request, applied_at, reply, *forgotten_up_to);
                self.digest = self.digest.wrapping_add(change);
            }
            Record::Digest { digest } if *digest != self.digest => {
                return Err(ReplayError::DigestMismatch { offset: at.offset, expected: *digest, actual: self.digest });
            }
            // The ledger gives transactions their meaning; for the image they only take an offset.
            Record::Digest { .. }
            | Record::BeginTransaction { .. }
            | Record::EndTransaction
            | Record::AbortTransaction { .. } => {}
        }
        self.next_offset = self.next_offset.next();
        Ok(())
    }

    fn create_cluster(&mut self, cluster: ClusterId) -> Result<(), ReplayError> {
        if let Some(found) = self.cluster {
            return Err(ReplayError::ClusterExists { found });
        }
        self.cluster = Some(cluster);
        self.exchange(None, Some(canonical::cluster(cluster)));
        Ok(())
    }

    fn set_feature(&mut self, name: &str, level: i16) {
        let before = if level == 0 {
            self.features.remove(name)
        } else {
            self.features.insert(name.to_owned(), level)
        };
        let after = (level != 0).then_some(level);
        self.exchange(
            before.map(|level| canonical::feature(name, level)),
            after.map(|level| canonical::feature(name, level)),
        );
    }

    fn register_controller(&mut self, registration: &ControllerRegistration) {
        let after = canonical::controller(registration);
        let before = self.controllers.insert(registration.controller, Arc::new(registration.clone()));
        self.exchange(before.map(|before| canonical::controller(&before)), Some(after));
    }

    fn put_broker(&mut self, registration: BrokerRegistration) {
        let after = canonical::broker(&registration);
        let before = self.brokers.insert(registration.broker, Arc::new(registration));
        self.exchange(before.map(|before| canonical::broker(&before)), Some(after));
    }

    fn known_broker(&self, broker: BrokerId, epoch: BrokerEpoch) -> Result<&Arc<BrokerRegistration>, ReplayError> {
        let known = self.broker(broker).ok_or(ReplayError::UnknownBroker(broker))?;
        if known.epoch != epoch {
            return Err(ReplayError::BrokerEpochMismatch { broker, expected: epoch, found: known.epoch });
        }
        Ok(known)
    }

    fn change_broker(
        &mut self,
        broker: BrokerId,
        epoch: BrokerEpoch,
        change: impl FnOnce(&mut BrokerRegistration),
    ) -> Result<(), ReplayError> {
        let mut registration = BrokerRegistration::clone(self.known_broker(broker, epoch)?);
        change(&mut registration);
        self.put_broker(registration);
        Ok(())
    }

    fn remove_broker(&mut self, broker: BrokerId, epoch: BrokerEpoch) -> Result<(), ReplayError> {
        let before = canonical::broker(self.known_broker(broker, epoch)?);
        self.brokers.remove(&broker);
        self.exchange(Some(before), None);
        Ok(())
    }

    fn create_topic(&mut self, id: TopicId, name: &str) -> Result<(), ReplayError> {
        if self.topic_names.contains_key(name) || self.topics.contains_key(&id) {
            return Err(ReplayError::TopicExists { name: name.to_owned() });
        }
        let topic = Topic { id, name: name.to_owned(), partitions: imbl::Vector::new() };
        self.topics.insert(id, Arc::new(topic));
        self.topic_names.insert(name.to_owned(), id);
        self.exchange(None, Some(canonical::topic(id, name)));
        Ok(())
    }

    fn remove_topic(&mut self, id: TopicId) -> Result<(), ReplayError> {
        let topic = self.topics.remove(&id).ok_or(ReplayError::UnknownTopic(id))?;
        self.topic_names.remove(&topic.name);
        self.exchange(Some(canonical::topic(id, &topic.name)), None);
        for (partition, state) in topic.partitions() {
            self.index.update(partition, Some(state), None);
            self.exchange(Some(canonical::partition(partition, state)), None);
        }
        let resource = ConfigResource::Topic(topic.name.clone());
        for (key, value) in self.configs.remove(&resource).unwrap_or_default() {
            self.exchange(Some(canonical::config(&resource, &key, &value)), None);
        }
        Ok(())
    }

    fn create_partition(&mut self, registration: &PartitionRegistration, at: At) -> Result<(), ReplayError> {
        let id = registration.id;
        let topic = self.topics.get_mut(&id.topic).ok_or(ReplayError::UnknownTopic(id.topic))?;
        if usize::try_from(id.partition.get()) != Ok(topic.partitions.len()) {
            return Err(ReplayError::PartitionNotNext(id));
        }
        let mut state = registration.state.clone();
        // A snapshot brings the history along; that of a new partition begins here.
        if state.history.is_empty() {
            state.history.push(ChangeNote {
                cause: Cause::Created,
                offset: at.offset,
                time_ms: at.time_ms,
                leader: state.leader,
                leader_epoch: state.leader_epoch,
                unclean: false,
            });
        }
        let state = Arc::new(state);
        Arc::make_mut(topic).partitions.push_back(state.clone());
        self.index.update(id, None, Some(&state));
        self.exchange(None, Some(canonical::partition(id, &state)));
        Ok(())
    }

    fn change_partition(&mut self, change: &PartitionChange, at: At) -> Result<(), ReplayError> {
        let id = change.id;
        let topic = self.topics.get_mut(&id.topic).ok_or(ReplayError::UnknownTopic(id.topic))?;
        let slot = usize::try_from(id.partition.get())
            .ok()
            .and_then(|at| Arc::make_mut(topic).partitions.get_mut(at))
            .ok_or(ReplayError::UnknownPartition(id))?;
        let before = slot.clone();
        let after = Arc::new(merge(&before, change, at));
        *slot = after.clone();
        self.index.update(id, Some(&before), Some(&after));
        self.exchange(Some(canonical::partition(id, &before)), Some(canonical::partition(id, &after)));
        Ok(())
    }

    fn set_config(&mut self, resource: &ConfigResource, key: &str, value: Option<&str>) {
        let mut configs = self.configs.get(resource).cloned().unwrap_or_default();
        let before = match value {
            Some(value) => configs.insert(key.to_owned(), value.to_owned()),
            None => configs.remove(key),
        };
        if configs.is_empty() {
            self.configs.remove(resource);
        } else {
            self.configs.insert(resource.clone(), configs);
        }
        self.exchange(
            before.map(|before| canonical::config(resource, key, &before)),
            value.map(|value| canonical::config(resource, key, value)),
        );
    }

    /// Replaces one entity's hash in the digest.
    fn exchange(&mut self, before: Option<u128>, after: Option<u128>) {
        self.digest = self.digest.wrapping_sub(before.unwrap_or(0)).wrapping_add(after.unwrap_or(0));
    }

    /// The digest from scratch.
    pub(super) fn recomputed_digest(&self) -> u128 {
        let mut digest = Self::default();
        let mut add = |hash| digest.exchange(None, Some(hash));
        self.cluster.into_iter().map(canonical::cluster).for_each(&mut add);
        self.features.iter().map(|(name, level)| canonical::feature(name, *level)).for_each(&mut add);
        self.controllers.values().map(|registration| canonical::controller(registration)).for_each(&mut add);
        self.brokers.values().map(|registration| canonical::broker(registration)).for_each(&mut add);
        self.topics.values().map(|topic| canonical::topic(topic.id, &topic.name)).for_each(&mut add);
        self.partitions().map(|(id, state)| canonical::partition(id, state)).for_each(&mut add);
        for (resource, configs) in &self.configs {
            configs.iter().map(|(key, value)| canonical::config(resource, key, value)).for_each(&mut add);
        }
        add(self.requests.digest());
        digest.digest
    }
}

/// The partition after the change: what is present is taken over, and the epochs follow from that.
fn merge(before: &Partition, change: &PartitionChange, at: At) -> Partition {
    let mut after = before.clone();
    let take = |field: &mut Vec<BrokerId>, change: &Option<Vec<BrokerId>>| {
        if let Some(value) = change {
            field.clone_from(value);
        }
    };
    take(&mut after.replicas, &change.replicas);
    take(&mut after.isr, &change.isr);
    take(&mut after.elr, &change.elr);
    take(&mut after.last_known_elr, &change.last_known_elr);
    take(&mut after.adding, &change.adding);
    take(&mut after.removing, &change.removing);
    if let Some(directories) = &change.directories {
        after.directories.clone_from(directories);
    }
    if let Some(recovery) = change.recovery {
        after.recovery = recovery;
    }
    if let Some(leader) = change.leader {
        after.leader = leader;
        after.leader_epoch = before.leader_epoch.next();
    }
    after.partition_epoch = before.partition_epoch.next();
    if after.history.len() == PARTITION_CHANGES_KEPT {
        after.history.remove(0);
    }
    after.history.push(ChangeNote {
        cause: change.cause,
        offset: at.offset,
        time_ms: at.time_ms,
        leader: after.leader,
        leader_epoch: after.leader_epoch,
        unclean: change.unclean,
    });
    after
}
