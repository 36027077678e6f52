//! The rules that every image keeps, each with a name. A plan whose records break one is refused before it is proposed.
//!
//! Not here: what a type already rules out (partitions are dense because their position is their id), and what depends
//! on configs (how long an ELR may be), which is the planner's.

use std::fmt;
use std::sync::Arc;

use super::partition_changes::PartitionChanges;
use super::{MetadataImage, PartitionIndex, Topic};
use crate::ids::{BrokerEpoch, BrokerId, ClientId, Offset, ReassignmentId, TopicId, TopicPartition};
use crate::limits;
use crate::record::{Batch, BrokerRegistration, ConfigResource, Kind, Partition, Record};

/// A rule that is broken, and by what.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Violation {
    #[error("partition {0} has no replicas")]
    NoReplicas(TopicPartition),
    #[error("partition {id} names broker {broker} twice in its {list}")]
    Duplicate { id: TopicPartition, list: Seats, broker: BrokerId },
    #[error("partition {id} has broker {broker} in its {list}, but not in its replicas")]
    NotAReplica { id: TopicPartition, list: Seats, broker: BrokerId },
    #[error("partition {id} has {replicas} replicas in {directories} directories")]
    DirectoriesNotParallel { id: TopicPartition, replicas: usize, directories: usize },
    #[error("partition {id} is led by broker {leader}, which is not in its ISR")]
    LeaderOutsideIsr { id: TopicPartition, leader: BrokerId },
    #[error("partition {id} has broker {broker} in its ISR and in its ELR")]
    IsrAndElrOverlap { id: TopicPartition, broker: BrokerId },
    #[error("partition {0} has an empty ISR, an empty ELR, and no last leader to wait for")]
    NobodyLeft(TopicPartition),
    #[error("partition {0} keeps a last known leader although it has a leader")]
    LastKnownBesideLeader(TopicPartition),
    #[error("partition {id} has broker {broker} in its ISR, which is fenced or shutting down")]
    InactiveInIsr { id: TopicPartition, broker: BrokerId },
    #[error("partition {id} is led by broker {broker}, which is fenced or shutting down")]
    InactiveLeads { id: TopicPartition, broker: BrokerId },
    #[error("partition {id} has broker {broker} in its {list}, which is not registered")]
    Unregistered { id: TopicPartition, list: Seats, broker: BrokerId },
    #[error("partition {id} remembers {changes} changes, more than {max}")]
    HistoryTooLong { id: TopicPartition, changes: usize, max: usize },
    #[error("partition {id} of kind {kind} has a replica on broker {broker}, which is of kind {other}")]
    OtherKind { id: TopicPartition, kind: Kind, broker: BrokerId, other: Kind },
    #[error("broker {broker} has epoch {epoch}, but the log only reaches {next_offset}")]
    BrokerEpochAhead { broker: BrokerId, epoch: BrokerEpoch, next_offset: Offset },
    #[error("broker {registered} is filed as broker {filed}")]
    BrokerMisfiled { filed: BrokerId, registered: BrokerId },
    #[error("topic {topic} is called {name:?}, but that name leads to {}", or_nothing(*.leads_to))]
    TopicNameAstray { topic: TopicId, name: String, leads_to: Option<TopicId> },
    #[error("name {name:?} leads to topic {topic}, which does not exist")]
    NameOfNoTopic { name: String, topic: TopicId },
    #[error("there are configs of topic {0:?}, which does not exist")]
    ConfigOfNoTopic(String),
    #[error("{clients} clients are remembered, more than {max}")]
    TooManyClients { clients: usize, max: usize },
    #[error("{requests} requests of client {client} are remembered, more than {max}")]
    TooManyRequests { client: ClientId, requests: usize, max: usize },
    #[error("the order of clients by their last request, or the bytes of their replies, are wrong")]
    RequestsMiscounted,
    #[error("partition {0} is being reassigned, but no reassignment names it")]
    ReassignmentOfNobody(TopicPartition),
    #[error("reassignment {reassignment} names partition {id}, which is not being reassigned")]
    ReassignmentIsOver { id: TopicPartition, reassignment: ReassignmentId },
    #[error("reassignment {0} has no partition")]
    ReassignmentOfNothing(ReassignmentId),
    #[error("reassignment {id} is of an offset ahead, the log only reaches {next_offset}")]
    ReassignmentAhead { id: ReassignmentId, next_offset: Offset },
    #[error("a {kind} record belongs to level {level} of metadata.version, {finalized} is finalized")]
    RecordAboveLevel { kind: &'static str, level: i16, finalized: i16 },
    #[error("the {list} index differs from one built from scratch")]
    IndexDiffers { list: &'static str },
    #[error("the digest of the partitions of topic {0} differs from the sum of their hashes")]
    TopicDigestDiffers(TopicId),
    #[error("the digest was kept as {kept:032x}, but computes to {computed:032x}")]
    DigestDiffers { kept: u128, computed: u128 },
}

fn or_nothing(topic: Option<TopicId>) -> String {
    topic.map_or_else(|| "nothing".to_owned(), |topic| format!("topic {topic}"))
}

/// A list of brokers in a partition.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Seats {
    Replicas,
    Isr,
    Elr,
    Adding,
    Removing,
}

impl fmt::Display for Seats {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Replicas => "replicas",
            Self::Isr => "ISR",
            Self::Elr => "ELR",
            Self::Adding => "adding replicas",
            Self::Removing => "removing replicas",
        })
    }
}

impl MetadataImage {
    /// Every rule on everything, and what is derived against what it is derived from.
    pub fn verify(&self) -> Vec<Violation> {
        let mut found = Vec::new();
        self.partitions().for_each(|(id, partition)| self.check_partition(id, partition, &mut found));
        for (&filed, registration) in &self.brokers {
            self.check_broker(filed, registration, &mut found);
        }
        self.topics.values().for_each(|topic| self.check_topic(topic, &mut found));
        self.check_names(&mut found);
        self.reassignments.keys().for_each(|&id| self.check_reassignment(id, &mut found));
        self.check_requests(&mut found);
        self.check_derived(&mut found);
        found
    }

    /// The rules on what the batch, which this image has just replayed, has touched. The cost is that of the batch.
    pub fn verify_changed(&self, batch: &Batch) -> Vec<Violation> {
        let mut found = Vec::new();
        let above = batch.records.iter().filter(|record| !self.may_write(record));
        found.extend(above.map(|record| self.above_level(record)));
        for id in self.touched_partitions(batch) {
            self.partition(id).into_iter().for_each(|partition| self.check_partition(id, partition, &mut found));
        }
        for record in &batch.records {
            match record {
                Record::RegisterBroker(registration) => {
                    self.check_broker(registration.broker, registration, &mut found);
                }
                Record::CreateTopic { topic, .. } => {
                    self.topic(*topic).into_iter().for_each(|topic| self.check_topic(topic, &mut found));
                }
                Record::BeginReassignment(start) => self.check_reassignment(start.id, &mut found),
                _ => {}
            }
        }
        found
    }

    /// Nodes of an earlier release do not know such a record.
    fn above_level(&self, record: &Record) -> Violation {
        Violation::RecordAboveLevel { kind: record.kind(), level: record.level(), finalized: self.level() }
    }

    /// Those the batch names, and those in which a broker it names has a seat that it must not have.
    fn touched_partitions(&self, batch: &Batch) -> Vec<TopicPartition> {
        let mut touched = Vec::with_capacity(batch.records.len());
        for record in &batch.records {
            match record {
                Record::CreatePartition(partition) => touched.push(partition.id),
                Record::PartitionChange(change) => touched.push(change.id),
                Record::BeginReassignment(start) => touched.extend(start.partitions.iter().map(|moved| moved.id)),
                Record::RegisterBroker(BrokerRegistration { broker, kind, .. }) => {
                    touched.extend(self.hosted_of_another(kind, *broker));
                    touched.extend(self.seats_forbidden(*broker));
                }
                Record::FenceBroker { broker, .. }
                | Record::UnfenceBroker { broker, .. }
                | Record::BeginControlledShutdown { broker, .. }
                | Record::UnregisterBroker { broker, .. } => touched.extend(self.seats_forbidden(*broker)),
                _ => {}
            }
        }
        touched.sort_unstable();
        touched.dedup();
        touched
    }

    /// What the broker hosts, if that is of another kind. All of it is of one kind.
    fn hosted_of_another(&self, kind: &Kind, broker: BrokerId) -> impl Iterator<Item = TopicPartition> {
        let first = self.index.hosted_by(broker).next().and_then(|id| self.topic(id.topic));
        let is_of_another = first.is_some_and(|topic| topic.kind != *kind);
        is_of_another.then(|| self.index.hosted_by(broker)).into_iter().flatten()
    }

    fn seats_forbidden(&self, broker: BrokerId) -> impl Iterator<Item = TopicPartition> {
        // Decided before the walk: an active broker may have a seat in very many partitions.
        let (may_sit, may_wait) = (self.is_active(broker), self.broker(broker).is_some());
        let sits = (!may_sit).then(|| self.index.in_isr(broker).chain(self.index.led_by(broker)));
        let waits = (!may_wait).then(|| self.index.in_elr(broker));
        sits.into_iter().flatten().chain(waits.into_iter().flatten())
    }

    fn check_partition(&self, id: TopicPartition, partition: &Partition, found: &mut Vec<Violation>) {
        check_lists(id, partition, found);
        check_leadership(id, partition, found);
        let (replicas, directories) = (partition.replicas.len(), partition.directories().len());
        if replicas != directories {
            found.push(Violation::DirectoriesNotParallel { id, replicas, directories });
        }
        let (changes, max) = (partition.history.len(), limits::PARTITION_CHANGES_KEPT);
        if changes > max {
            found.push(Violation::HistoryTooLong { id, changes, max });
        }
        self.check_seats(id, partition, found);
        self.check_kinds(id, partition, found);
        self.check_reassigning(id, found);
    }

    /// That the replicas are on brokers of the topic's kind.
    fn check_kinds(&self, id: TopicPartition, partition: &Partition, found: &mut Vec<Violation>) {
        let Some(Topic { kind, .. }) = self.topic(id.topic).map(AsRef::as_ref) else { return };
        for known in partition.replicas.iter().filter_map(|&broker| self.broker(broker)) {
            if known.kind != *kind {
                let (kind, broker, other) = (kind.clone(), known.broker, known.kind.clone());
                found.push(Violation::OtherKind { id, kind, broker, other });
            }
        }
    }

    /// That nobody sits where only an active, or at least a registered, broker may.
    fn check_seats(&self, id: TopicPartition, partition: &Partition, found: &mut Vec<Violation>) {
        for &broker in partition.isr.iter() {
            match self.broker(broker) {
                None => found.push(Violation::Unregistered { id, list: Seats::Isr, broker }),
                Some(known) if !known.is_active() => found.push(Violation::InactiveInIsr { id, broker }),
                Some(_) => {}
            }
        }
        let unregistered = partition.elr().iter().filter(|&&broker| self.broker(broker).is_none());
        found.extend(unregistered.map(|&broker| Violation::Unregistered { id, list: Seats::Elr, broker }));
        let is_inactive = |leader: &BrokerId| self.broker(*leader).is_some_and(|known| !known.is_active());
        let leader = partition.leader.filter(is_inactive);
        found.extend(leader.map(|broker| Violation::InactiveLeads { id, broker }));
    }

    fn check_broker(&self, filed: BrokerId, registration: &BrokerRegistration, found: &mut Vec<Violation>) {
        let BrokerRegistration { broker, epoch, .. } = *registration;
        let next_offset = self.next_offset;
        if epoch.get() >= next_offset.get() {
            found.push(Violation::BrokerEpochAhead { broker, epoch, next_offset });
        }
        if filed != broker {
            found.push(Violation::BrokerMisfiled { filed, registered: broker });
        }
    }

    fn check_topic(&self, topic: &Topic, found: &mut Vec<Violation>) {
        let leads_to = self.topic_names.get(&topic.name).copied();
        if leads_to != Some(topic.id) {
            found.push(Violation::TopicNameAstray { topic: topic.id, name: topic.name.clone(), leads_to });
        }
    }

    fn check_names(&self, found: &mut Vec<Violation>) {
        for (name, &topic) in &self.topic_names {
            if !self.topics.contains_key(&topic) {
                found.push(Violation::NameOfNoTopic { name: name.clone(), topic });
            }
        }
        for resource in self.configs.keys() {
            if let ConfigResource::Topic(name) = resource
                && !self.topic_names.contains_key(name)
            {
                found.push(Violation::ConfigOfNoTopic(name.clone()));
            }
        }
    }

    fn check_requests(&self, found: &mut Vec<Violation>) {
        found.extend(self.requests.verify());
        if !self.requests.is_consistent() {
            found.push(Violation::RequestsMiscounted);
        }
    }

    fn check_derived(&self, found: &mut Vec<Violation>) {
        let mut index = PartitionIndex::default();
        for topic in self.topics.values() {
            let mut changes = PartitionChanges::default();
            topic.partitions().for_each(|(id, partition)| changes.add(id, None, Some(partition.clone())));
            index.update(changes);
        }
        found.extend(self.index.difference(&index).map(|list| Violation::IndexDiffers { list }));
        self.check_reassignment_index(found);
        let differs = |topic: &&Arc<Topic>| topic.partitions_digest != topic.recompute_digest();
        found.extend(self.topics.values().filter(differs).map(|topic| Violation::TopicDigestDiffers(topic.id)));
        let (kept, computed) = (self.digest(), self.recompute_digest().get());
        if kept != computed {
            found.push(Violation::DigestDiffers { kept, computed });
        }
    }
}

fn check_lists(id: TopicPartition, partition: &Partition, found: &mut Vec<Violation>) {
    if partition.replicas.is_empty() {
        found.push(Violation::NoReplicas(id));
    }
    let lists = [
        (Seats::Replicas, &partition.replicas[..]),
        (Seats::Isr, &partition.isr),
        (Seats::Elr, partition.elr()),
        (Seats::Adding, partition.adding()),
        (Seats::Removing, partition.removing()),
    ];
    for (list, brokers) in lists {
        for (at, &broker) in brokers.iter().enumerate() {
            if brokers[..at].contains(&broker) {
                found.push(Violation::Duplicate { id, list, broker });
            }
            if !partition.replicas.contains(&broker) {
                found.push(Violation::NotAReplica { id, list, broker });
            }
        }
    }
}

fn check_leadership(id: TopicPartition, partition: &Partition, found: &mut Vec<Violation>) {
    let leader = partition.leader.filter(|leader| !partition.isr.contains(leader));
    found.extend(leader.map(|leader| Violation::LeaderOutsideIsr { id, leader }));
    let both = partition.isr.iter().filter(|broker| partition.elr().contains(broker));
    found.extend(both.map(|&broker| Violation::IsrAndElrOverlap { id, broker }));
    if partition.isr.is_empty() && partition.elr().is_empty() && partition.last_known_elr().is_empty() {
        found.push(Violation::NobodyLeft(id));
    }
    if partition.leader.is_some() && !partition.last_known_elr().is_empty() {
        found.push(Violation::LastKnownBesideLeader(id));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::DirectoryId;
    use crate::image::METADATA_VERSION;
    use crate::image::fixture::{batch, broker, change, feature, image, partition_id, registration, topic};
    use crate::record::{PartitionChange, ReassignedPartition, ReassignmentStart};

    /// What is found after a change of partition 0, which has replicas and ISR [1, 2, 3] and is led by 1. Both ways of
    /// verifying must find the same.
    fn after_change(shape: impl FnOnce(&mut PartitionChange)) -> Vec<Violation> {
        let mut image = image();
        let mut change = change(partition_id(0));
        shape(&mut change);
        let batch = batch(2, &[Record::PartitionChange(change)]);
        image.replay(&batch).expect("replay has no opinion");
        let found = image.verify();
        assert_eq!(image.verify_changed(&batch), found);
        found
    }

    /// As `after_change`, of a record about a broker.
    fn after(record: Record) -> Vec<Violation> {
        let mut image = image();
        let batch = batch(2, &[record]);
        image.replay(&batch).expect("replay has no opinion");
        let found = image.verify();
        assert_eq!(image.verify_changed(&batch), found);
        found
    }

    fn after_damage(damage: impl FnOnce(&mut MetadataImage)) -> Vec<Violation> {
        let mut image = image();
        damage(&mut image);
        image.verify()
    }

    fn brokers(ids: &[i32]) -> Option<Vec<BrokerId>> {
        Some(ids.iter().copied().map(BrokerId::new).collect())
    }

    #[test]
    fn a_sound_image_breaks_no_rule() {
        assert_eq!(image().verify(), []);
        assert_eq!(after_change(|_| {}), []);
    }

    #[test]
    fn seats_are_for_replicas_and_once_each() {
        let id = partition_id(0);
        let is_stranger = |list| Violation::NotAReplica { id, list, broker: broker(4) };
        assert_eq!(after_change(|change| change.isr = brokers(&[1, 4])), [is_stranger(Seats::Isr)]);
        assert_eq!(after_change(|change| change.elr = brokers(&[4])), [is_stranger(Seats::Elr)]);
        let nobodys = Violation::ReassignmentOfNobody(id);
        assert_eq!(after_change(|change| change.adding = brokers(&[4])), [is_stranger(Seats::Adding), nobodys.clone()]);
        assert_eq!(after_change(|change| change.removing = brokers(&[4])), [is_stranger(Seats::Removing), nobodys]);
        let twice = Violation::Duplicate { id, list: Seats::Isr, broker: broker(1) };
        assert_eq!(after_change(|change| change.isr = brokers(&[1, 2, 1])), [twice]);
        let both = Violation::IsrAndElrOverlap { id, broker: broker(2) };
        assert_eq!(after_change(|change| change.elr = brokers(&[2])), [both]);
    }

    #[test]
    fn a_record_is_of_a_level_that_is_finalized() {
        let mut image = image();
        let written = batch(2, &[Record::EndTransaction]);
        assert_eq!(image.verify_changed(&written), []);
        // Below the lowest: to this image every record is of a later release.
        image.features.insert(METADATA_VERSION.to_owned(), 0);
        let above = Violation::RecordAboveLevel { kind: "EndTransaction", level: 1, finalized: 0 };
        assert_eq!(image.verify_changed(&written), [above]);
    }

    #[test]
    fn replicas_have_directories_and_there_are_some() {
        let id = partition_id(0);
        let directories = Some(vec![DirectoryId::UNASSIGNED; 2]);
        let violation = Violation::DirectoriesNotParallel { id, replicas: 3, directories: 2 };
        assert_eq!(after_change(|change| change.directories = directories), [violation]);
        let found = after_change(|change| {
            change.replicas = Some(Vec::new());
            change.directories = Some(Vec::new());
            change.isr = Some(Vec::new());
            change.leader = Some(None);
            change.last_known_elr = brokers(&[1]);
        });
        assert_eq!(found, [Violation::NoReplicas(id)]);
    }

    #[test]
    fn a_leader_is_in_sync_and_its_absence_leaves_hope() {
        let id = partition_id(0);
        let outside = Violation::LeaderOutsideIsr { id, leader: broker(1) };
        assert_eq!(after_change(|change| change.isr = brokers(&[2])), [outside]);
        let found = after_change(|change| {
            change.isr = Some(Vec::new());
            change.leader = Some(None);
        });
        assert_eq!(found, [Violation::NobodyLeft(id)]);
        let found = after_change(|change| change.last_known_elr = brokers(&[1]));
        assert_eq!(found, [Violation::LastKnownBesideLeader(id)]);
    }

    #[test]
    fn a_broker_that_is_not_active_sits_nowhere() {
        let epoch = registration(2).epoch;
        let inactive = |at| Violation::InactiveInIsr { id: partition_id(at), broker: broker(2) };
        let leads = Violation::InactiveLeads { id: partition_id(1), broker: broker(2) };
        let expected = [inactive(0), inactive(1), leads];
        assert_eq!(after(Record::FenceBroker { broker: broker(2), epoch }), expected);
        assert_eq!(after(Record::BeginControlledShutdown { broker: broker(2), epoch }), expected);
        let reborn = BrokerRegistration { fenced: true, ..registration(2) };
        assert_eq!(after(Record::RegisterBroker(reborn)), expected);
        let gone = |at| Violation::Unregistered { id: partition_id(at), list: Seats::Isr, broker: broker(2) };
        assert_eq!(after(Record::UnregisterBroker { broker: broker(2), epoch }), [gone(0), gone(1)]);
    }

    #[test]
    fn a_broker_epoch_is_an_offset_of_the_log() {
        let ahead = BrokerRegistration { epoch: BrokerEpoch::new(100), ..registration(4) };
        let found = after(Record::RegisterBroker(ahead));
        assert!(matches!(found[..], [Violation::BrokerEpochAhead { broker, .. }] if broker.get() == 4));
    }

    #[test]
    fn a_reassignment_and_its_partitions_are_of_each_other() {
        let begin = |id, partitions: &[i32]| {
            let moved = |&at: &i32| ReassignedPartition { id: partition_id(at), original: Vec::new() };
            let partitions = partitions.iter().map(moved).collect();
            let id = ReassignmentId::new(id);
            let start =
                ReassignmentStart { id, partitions, paused: false, throttle_bytes_per_second: None, started_ms: None };
            (id, Record::BeginReassignment(start))
        };
        let (id, of_nothing) = begin(1, &[]);
        assert_eq!(after(of_nothing), [Violation::ReassignmentOfNothing(id)]);
        let (reassignment, of_one_that_rests) = begin(1, &[0]);
        assert_eq!(after(of_one_that_rests), [Violation::ReassignmentIsOver { id: partition_id(0), reassignment }]);
        let (id, ahead) = begin(1_000, &[0]);
        assert!(
            after(ahead).iter().any(|found| matches!(found, Violation::ReassignmentAhead { id: at, .. } if *at == id))
        );
        let found = after_damage(|image| {
            image.reassigning.insert(partition_id(0), id);
        });
        assert!(found.contains(&Violation::IndexDiffers { list: "reassigning" }), "{found:?}");
    }

    #[test]
    fn names_and_topics_agree() {
        let name = "orders".to_owned();
        let found = after_damage(|image| {
            image.topic_names.remove(&name);
        });
        assert_eq!(found, [Violation::TopicNameAstray { topic: topic(1), name: name.clone(), leads_to: None }]);
        let found = after_damage(|image| {
            image.topic_names.insert("ghost".to_owned(), topic(9));
        });
        assert_eq!(found, [Violation::NameOfNoTopic { name: "ghost".to_owned(), topic: topic(9) }]);
    }

    #[test]
    fn what_is_derived_agrees_with_what_it_is_derived_from() {
        let stray = |image: &mut MetadataImage| {
            let partition = image.partition(partition_id(0)).expect("the fixture has it").clone();
            let mut changes = PartitionChanges::default();
            changes.add(partition_id(0), Some(partition), None);
            image.index.update(changes);
        };
        assert_eq!(after_damage(stray), [Violation::IndexDiffers { list: "seats" }]);
        let silent = |image: &mut MetadataImage| {
            image.features.insert("metadata.version".to_owned(), 9);
        };
        assert!(matches!(after_damage(silent)[..], [Violation::DigestDiffers { .. }]));
        let forgotten = |image: &mut MetadataImage| {
            let orders = image.topics.get_mut(&topic(1)).expect("the fixture has it");
            Arc::make_mut(orders).partitions.pop_back();
        };
        assert!(after_damage(forgotten).contains(&Violation::TopicDigestDiffers(topic(1))));
    }

    #[test]
    fn a_broker_is_filed_under_its_own_id() {
        let found = after_damage(|image| {
            image.brokers.insert(broker(7), Arc::new(registration(4)));
        });
        let misfiled = Violation::BrokerMisfiled { filed: broker(7), registered: broker(4) };
        assert!(found.contains(&misfiled), "{found:?}");
        assert_eq!(misfiled.to_string(), "broker 4 is filed as broker 7");
    }

    #[test]
    fn verifying_a_batch_does_not_look_beyond_it() {
        let mut image = image();
        let broken = PartitionChange { isr: brokers(&[2]), ..change(partition_id(0)) };
        image.replay(&batch(2, &[Record::PartitionChange(broken)])).expect("replay has no opinion");
        let harmless = batch(2, &[feature("metadata.version", 2)]);
        image.replay(&harmless).expect("it does not concern partitions");
        assert_eq!(image.verify_changed(&harmless), []);
    }
}
