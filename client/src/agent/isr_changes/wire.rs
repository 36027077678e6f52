//! Between ISR changes and the messages of AlterPartition.

use quorate_metadata::ErrorName;
use quorate_metadata::ids::{BrokerEpoch, BrokerId, PartitionEpoch, PartitionId, TopicPartition};
use quorate_metadata::record::LeaderRecoveryState;
use quorate_proto::broker::{AlteredPartition, IsrMember, PartitionAlteration};
use quorate_proto::error;

use super::{IsrChange, IsrOutcome};

/// What the answer settles; None: the change has to be asked for again.
pub fn outcome(answer: &AlteredPartition) -> Option<IsrOutcome> {
    let Some(error) = answer.error.as_ref().map(error::from_item) else {
        return Some(IsrOutcome::Applied {
            partition_epoch: PartitionEpoch::new(answer.partition_epoch),
            isr: answer.isr.iter().copied().map(BrokerId::new).collect(),
            recovery: recovery(answer.recovery)?,
        });
    };
    match error.name {
        ErrorName::IneligibleReplica => Some(IsrOutcome::NotApplied(error)),
        ErrorName::FencedLeaderEpoch
        | ErrorName::InvalidRequest
        | ErrorName::InvalidUpdateVersion
        | ErrorName::UnknownTopicOrPartition
        | ErrorName::UnknownTopicId
        | ErrorName::NewLeaderElected => Some(IsrOutcome::Pending(error)),
        _ => None,
    }
}

fn recovery(wire: i32) -> Option<LeaderRecoveryState> {
    [LeaderRecoveryState::Recovered, LeaderRecoveryState::Recovering].into_iter().find(|state| *state as i32 == wire)
}

/// The partition that the answer is about.
pub fn named(answer: &AlteredPartition) -> Option<TopicPartition> {
    answer.topic_id.parse().ok().map(|topic| TopicPartition::new(topic, PartitionId::new(answer.partition)))
}

pub fn to_wire(change: &IsrChange) -> PartitionAlteration {
    let member = |(broker, epoch): &(BrokerId, Option<BrokerEpoch>)| IsrMember {
        broker: broker.get(),
        epoch: epoch.map(BrokerEpoch::get),
    };
    PartitionAlteration {
        topic_id: change.partition.topic.to_string(),
        partition: change.partition.partition.get(),
        leader_epoch: change.leader_epoch.get(),
        partition_epoch: change.partition_epoch.get(),
        isr: change.isr.iter().map(member).collect(),
        recovery: change.recovery as i32,
        supersedes: false,
    }
}
