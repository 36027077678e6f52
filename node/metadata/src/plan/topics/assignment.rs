//! Which brokers get the replicas of new partitions, by hand or by placement, and what such a partition starts as.

use std::collections::BTreeMap;

use crate::error::{ApiError, ErrorName};
use crate::ids::{BrokerId, LeaderEpoch, PartitionEpoch, TopicPartition};
use crate::image::{MetadataImage, Topic};
use crate::limits;
use crate::placement::{Candidate, Load, place};
use crate::plan::brokers::takes_replicas;
use crate::plan::directories;
use crate::record::{BrokerRegistration, Kind, LeaderRecoveryState, PartitionRegistration, PartitionState, Record};
use crate::rng::Rng;

/// The brokers of all kinds with their load, which grows as the request goes on: its last topic sees what its first has placed.
pub struct Assigner<'a> {
    image: &'a MetadataImage,
    candidates: Vec<Candidate<'a>>,
    /// Where a broker is in `candidates`.
    positions: BTreeMap<BrokerId, usize>,
}

impl<'a> Assigner<'a> {
    pub fn new(image: &'a MetadataImage) -> Self {
        let candidate = |broker: &'a BrokerRegistration| Candidate {
            id: broker.broker,
            rack: broker.rack.as_deref(),
            fenced: broker.fenced,
            cluster: Load {
                // What new partitions must be weighed against: after a restart a broker leads nothing, but it is about to.
                leaders: image.index.preferred_count(broker.broker),
                replicas: image.index.replica_count(broker.broker),
            },
            topic: Load::default(),
        };
        let takers = image.brokers.values().filter(|broker| takes_replicas(broker));
        let candidates: Vec<_> = takers.map(|broker| candidate(broker)).collect();
        let positions = candidates.iter().enumerate().map(|(at, candidate)| (candidate.id, at)).collect();
        Self { image, candidates, positions }
    }

    /// Places partitions of a topic that has `existing` ones on brokers of its kind, and counts them.
    pub fn place(
        &mut self,
        kind: &Kind,
        existing: Option<&Topic>,
        partitions: usize,
        replication_factor: usize,
        rng: &mut Rng,
    ) -> Result<Vec<Vec<BrokerId>>, ApiError> {
        self.weigh_topic(existing);
        let is_of_kind = |at: &Candidate<'_>| self.image.broker(at.id).is_some_and(|broker| broker.kind == *kind);
        let of_kind: Vec<_> = self.candidates.iter().copied().filter(is_of_kind).collect();
        let placed = place(&of_kind, partitions, replication_factor, rng).map_err(|refused| {
            let message = format!("{} (of kind {kind})", refused.message);
            if kind.is_log() { refused } else { ApiError { message, ..refused } }
        })?;
        for replicas in &placed {
            self.count(replicas);
        }
        Ok(placed)
    }

    fn weigh_topic(&mut self, existing: Option<&Topic>) {
        for candidate in &mut self.candidates {
            candidate.topic = Load::default();
        }
        for partition in existing.into_iter().flat_map(|topic| topic.partitions.iter()) {
            for (at, replica) in partition.replicas.iter().enumerate() {
                let Some(&position) = self.positions.get(replica) else { continue };
                let load = &mut self.candidates[position].topic;
                load.replicas += 1;
                load.leaders += usize::from(at == 0);
            }
        }
    }

    /// Counts a partition that was assigned.
    pub fn count(&mut self, replicas: &[BrokerId]) {
        for (at, replica) in replicas.iter().enumerate() {
            let Some(&position) = self.positions.get(replica) else { continue };
            let load = &mut self.candidates[position].cluster;
            load.replicas += 1;
            load.leaders += usize::from(at == 0);
        }
    }

    /// Checks an assignment by hand. `what` names the partition in the error.
    pub fn check_manual(&self, kind: &Kind, what: &str, replicas: &[BrokerId]) -> Result<(), ApiError> {
        let refuse = |why: String| Err(invalid_assignment(format!("{what} {why}")));
        if replicas.is_empty() {
            return refuse("has no replicas".to_owned());
        }
        for (at, replica) in replicas.iter().enumerate() {
            if replicas[..at].contains(replica) {
                return refuse(format!("has two replicas on broker {replica}"));
            }
            let Some(broker) = self.image.broker(*replica) else {
                return refuse(format!("has a replica on broker {replica}, which is not registered"));
            };
            if broker.kind != *kind {
                let has = &broker.kind;
                return refuse(format!("of kind {kind} has a replica on broker {replica}, which is of kind {has}"));
            }
            // A broker in controlled shutdown may be named: it will be back. One that is cordoned may not.
            if !broker.in_controlled_shutdown && !takes_replicas(broker) {
                return refuse(format!("has a replica on broker {replica}, whose directories are all cordoned"));
            }
        }
        Ok(())
    }

    pub fn has_active(&self, replicas: &[BrokerId]) -> bool {
        replicas.iter().any(|&replica| self.image.is_active(replica))
    }

    /// The record of a new partition: in sync are the replicas that are active, and the first of them leads.
    pub fn registration(&self, id: TopicPartition, replicas: Vec<BrokerId>) -> Record {
        let isr: Vec<BrokerId> = replicas.iter().copied().filter(|&replica| self.image.is_active(replica)).collect();
        let state = PartitionState {
            directories: replicas.iter().map(|&replica| directories::choose(self.image, replica, id)).collect(),
            leader: isr.first().copied(),
            replicas,
            isr,
            elr: Vec::new(),
            last_known_elr: Vec::new(),
            adding: Vec::new(),
            removing: Vec::new(),
            recovery: LeaderRecoveryState::Recovered,
            leader_epoch: LeaderEpoch::default(),
            partition_epoch: PartitionEpoch::default(),
            history: Vec::new(),
        };
        Record::CreatePartition(PartitionRegistration { id, state: state.into() })
    }
}

/// Bounds what one request can make the controller hold in memory.
pub fn check_total(partitions: usize) -> Result<(), ApiError> {
    if partitions <= limits::PARTITIONS_PER_REQUEST_MAX {
        return Ok(());
    }
    let max = limits::PARTITIONS_PER_REQUEST_MAX;
    let message = format!("the request asks for {partitions} partitions, one request may ask for {max}");
    Err(ApiError::new(ErrorName::PolicyViolation, message))
}

pub fn invalid_assignment(message: String) -> ApiError {
    ApiError::new(ErrorName::InvalidReplicaAssignment, message)
}
