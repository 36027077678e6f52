//! A leader asks for another ISR. The checks are in the order in which Kafka makes them: a leader reads from
//! the first error how far behind it is.

use std::collections::BTreeSet;

use crate::error::{ApiError, ErrorName};
use crate::ids::{BrokerEpoch, BrokerId, LeaderEpoch, PartitionEpoch, TopicPartition};
use crate::image::{MetadataImage, Topic};
use crate::mutant::Mutant;
use crate::plan::Plan;
use crate::plan::heartbeat::sender;
use crate::plan::partition_change::{PartitionChangeBuilder, RulesByTopic};
use crate::record::{Cause, LeaderRecoveryState, Partition, PartitionChange, Record};

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AlterPartition {
    pub broker: BrokerId,
    pub broker_epoch: BrokerEpoch,
    pub partitions: Vec<PartitionAlteration>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PartitionAlteration {
    pub id: TopicPartition,
    pub leader_epoch: LeaderEpoch,
    pub partition_epoch: PartitionEpoch,
    pub isr: Vec<IsrMember>,
    pub recovery: LeaderRecoveryState,
    /// Moves the partition epoch even where nothing else differs, so that no earlier request is granted any more.
    pub supersedes: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct IsrMember {
    pub broker: BrokerId,
    /// The epoch in its fetches; `None` if the leader does not know it, which skips the check.
    pub epoch: Option<BrokerEpoch>,
}

/// The partition as it is once the plan is committed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AlteredPartition {
    pub leader: Option<BrokerId>,
    pub leader_epoch: LeaderEpoch,
    pub isr: Vec<BrokerId>,
    pub recovery: LeaderRecoveryState,
    pub partition_epoch: PartitionEpoch,
}

type Answer = (TopicPartition, Result<AlteredPartition, ApiError>);

/// `is_leaving` tells which brokers are on their way out of every ISR, so that none comes back into one behind those that
/// take it out.
pub fn alter_partition(
    image: &MetadataImage,
    request: &AlterPartition,
    is_leaving: impl Fn(BrokerId) -> bool,
) -> Result<Plan<Vec<Answer>>, ApiError> {
    sender(image, request.broker, request.broker_epoch)?;
    let mut records = Vec::new();
    let mut rules = RulesByTopic::new(image);
    let mut seen = BTreeSet::new();
    let mut alter = |wanted: &PartitionAlteration| {
        if !seen.insert(wanted.id) {
            return Err(refuse("the partition is named twice in the request"));
        }
        let (topic, partition) = find(image, wanted.id)?;
        if is_done(request.broker, wanted, partition) {
            return Ok(altered(partition, None));
        }
        check_epochs(request.broker, wanted, partition)?;
        check_isr(wanted, partition)?;
        check_members(image, partition, wanted, &is_leaving)?;
        let cause = Cause::AlterPartition(request.broker);
        let change = PartitionChangeBuilder::new(image, wanted.id, partition, rules.of(topic), cause)
            .isr(wanted.isr.iter().map(|member| member.broker).collect())
            .recovery(wanted.recovery)
            .supersede(wanted.supersedes)
            .build();
        let altered = altered(partition, change.as_ref());
        records.extend(change.map(Record::PartitionChange));
        still_led_by(request.broker, altered)
    };
    let answers: Vec<Answer> = request.partitions.iter().map(|wanted| (wanted.id, alter(wanted))).collect();
    let all_refused = !answers.is_empty() && answers.iter().all(|(_, answer)| answer.is_err());
    Ok(Plan::of_items(records, answers, all_refused))
}

/// The topic and the partition, or which of them is unknown.
pub(super) fn find(image: &MetadataImage, id: TopicPartition) -> Result<(&Topic, &Partition), ApiError> {
    let unknown_topic = || ApiError::new(ErrorName::UnknownTopicId, format!("no topic has the id {}", id.topic));
    let topic = image.topic(id.topic).ok_or_else(unknown_topic)?;
    let partition = topic.partition(id.partition).ok_or_else(|| {
        let message = format!("topic {:?} has no partition {}", topic.name, id.partition);
        ApiError::new(ErrorName::UnknownTopicOrPartition, message)
    })?;
    Ok((topic, partition))
}

/// Whether the last change is the one asked for: the answer was lost on its way, and the sender asks again. To refuse
/// it would say that it was not made.
fn is_done(sender: BrokerId, wanted: &PartitionAlteration, partition: &Partition) -> bool {
    let members = wanted.isr.iter().map(|member| member.broker);
    wanted.partition_epoch.get().checked_add(1) == Some(partition.partition_epoch.get())
        && wanted.leader_epoch == partition.leader_epoch
        && partition.leader == Some(sender)
        && members.eq(partition.isr.iter().copied())
        && wanted.recovery == partition.recovery()
}

fn check_epochs(sender: BrokerId, wanted: &PartitionAlteration, partition: &Partition) -> Result<(), ApiError> {
    if wanted.leader_epoch > partition.leader_epoch || wanted.partition_epoch > partition.partition_epoch {
        // The sender has seen more than this node: another one is the controller.
        let message = format!(
            "leader epoch {} and partition epoch {} are ahead of this node's {} and {}",
            wanted.leader_epoch, wanted.partition_epoch, partition.leader_epoch, partition.partition_epoch
        );
        return Err(ApiError::new(ErrorName::NotController, message));
    }
    if wanted.leader_epoch < partition.leader_epoch {
        let message = format!("leader epoch {} has been followed by {}", wanted.leader_epoch, partition.leader_epoch);
        return Err(ApiError::new(ErrorName::FencedLeaderEpoch, message));
    }
    if partition.leader != Some(sender) {
        return Err(refuse(format!("broker {sender} does not lead the partition")));
    }
    if wanted.partition_epoch < partition.partition_epoch && !Mutant::AnyPartitionEpoch.is_on() {
        let (asked, current) = (wanted.partition_epoch, partition.partition_epoch);
        let message = format!("partition epoch {asked} has been followed by {current}");
        return Err(ApiError::new(ErrorName::InvalidUpdateVersion, message));
    }
    Ok(())
}

fn check_isr(wanted: &PartitionAlteration, partition: &Partition) -> Result<(), ApiError> {
    let members: BTreeSet<BrokerId> = wanted.isr.iter().map(|member| member.broker).collect();
    if members.len() != wanted.isr.len() {
        return Err(refuse("the ISR names a broker twice"));
    }
    if let Some(stranger) = members.iter().find(|member| !partition.replicas.contains(member)) {
        return Err(refuse(format!("broker {stranger} has no replica of the partition")));
    }
    if !partition.leader.is_some_and(|leader| members.contains(&leader)) {
        return Err(refuse("the leader is not in the ISR"));
    }
    if wanted.recovery == LeaderRecoveryState::Recovered {
        return Ok(());
    }
    if members.len() > 1 {
        return Err(refuse("while it recovers, the leader is alone in the ISR"));
    }
    match partition.recovery() {
        LeaderRecoveryState::Recovered => Err(refuse("the partition has recovered and cannot go back to recovering")),
        LeaderRecoveryState::Recovering => Ok(()),
    }
}

/// Each member must be active, and the incarnation that the leader saw fetching: what a broker had fetched before
/// it restarted says nothing about what it has now.
fn check_members(
    image: &MetadataImage,
    partition: &Partition,
    wanted: &PartitionAlteration,
    is_leaving: impl Fn(BrokerId) -> bool,
) -> Result<(), ApiError> {
    for member in &wanted.isr {
        let broker = member.broker;
        let why = match image.broker(broker) {
            None => "is not registered".to_owned(),
            Some(at) if at.fenced => "is fenced".to_owned(),
            Some(at) if at.in_controlled_shutdown => "is in controlled shutdown".to_owned(),
            Some(_) if !partition.isr.contains(&broker) && is_leaving(broker) => "is being fenced, or stops".to_owned(),
            Some(at) if !at.has_online(partition.directory_of(broker)) => "has it in a failed log directory".to_owned(),
            Some(at) => match member.epoch {
                Some(epoch) if epoch != at.epoch => format!("is at epoch {}, not {epoch}", at.epoch),
                Some(_) | None => continue,
            },
        };
        return Err(ApiError::new(ErrorName::IneligibleReplica, format!("broker {broker} {why}")));
    }
    Ok(())
}

fn altered(partition: &Partition, change: Option<&PartitionChange>) -> AlteredPartition {
    let mut altered = AlteredPartition {
        leader: partition.leader,
        leader_epoch: partition.leader_epoch,
        isr: partition.isr.to_vec(),
        recovery: partition.recovery(),
        partition_epoch: partition.partition_epoch,
    };
    let Some(change) = change else { return altered };
    altered.partition_epoch = altered.partition_epoch.next();
    if let Some(leader) = change.leader {
        altered.leader = leader;
        altered.leader_epoch = altered.leader_epoch.next();
    }
    if let Some(isr) = &change.isr {
        altered.isr.clone_from(isr);
    }
    altered.recovery = change.recovery.unwrap_or(altered.recovery);
    altered
}

/// A change that ends a reassignment may end the sender's leadership with it: it is made, and the sender is told.
fn still_led_by(sender: BrokerId, altered: AlteredPartition) -> Result<AlteredPartition, ApiError> {
    if altered.leader == Some(sender) {
        return Ok(altered);
    }
    let leader = altered.leader.map_or_else(|| "none".to_owned(), |leader| leader.to_string());
    let message = format!("the reassignment is finished, and the new leader is {leader}");
    Err(ApiError::new(ErrorName::NewLeaderElected, message))
}

fn refuse(why: impl Into<String>) -> ApiError {
    ApiError::new(ErrorName::InvalidRequest, why)
}
