//! More partitions for topics that there are. Never fewer: records would be lost.

use std::collections::BTreeSet;

use super::assignment::{Assigner, check_total, invalid_assignment};
use super::{named_twice, topic_named};
use crate::error::{ApiError, ErrorName};
use crate::ids::{BrokerId, PartitionId, TopicPartition};
use crate::image::{MetadataImage, Topic};
use crate::plan::Plan;
use crate::rng::Rng;

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CreatePartitions {
    pub topic: String,
    /// How many the topic shall have.
    pub count: i32,
    /// The replicas of each that is added, by hand; `None` to have them placed.
    pub assignment: Option<Vec<Vec<BrokerId>>>,
}

/// Adds partitions. The answer of each topic is how many it then has.
pub fn create_partitions(
    image: &MetadataImage,
    requests: &[CreatePartitions],
    rng: &mut Rng,
) -> Plan<Vec<Result<i32, ApiError>>> {
    let mut seen = BTreeSet::new();
    let names = requests.iter().map(|request| request.topic.as_str());
    let repeated: BTreeSet<&str> = names.filter(|name| !seen.insert(*name)).collect();
    let total = requests.iter().map(|request| usize::try_from(request.count).unwrap_or_default()).sum();
    let mut assigner = Assigner::new(image);
    let mut records = Vec::new();
    let mut expand = |request: &CreatePartitions| {
        if repeated.contains(request.topic.as_str()) {
            return Err(named_twice(&request.topic));
        }
        let topic = topic_named(image, &request.topic)?;
        let added = added_count(topic, request.count)?;
        check_total(total)?;
        let partitions = match &request.assignment {
            Some(assignment) => assign_by_hand(&mut assigner, topic, added, assignment)?,
            None => assigner.place(&topic.kind, Some(topic), added, replication_factor(topic), rng)?,
        };
        let first = i32::try_from(topic.partitions.len()).expect("partition ids are i32");
        for (id, replicas) in (first..).map(PartitionId::new).zip(partitions) {
            records.push(assigner.registration(TopicPartition::new(topic.id, id), replicas));
        }
        Ok(request.count)
    };
    let answers: Vec<Result<i32, ApiError>> = requests.iter().map(&mut expand).collect();
    let all_refused = !answers.is_empty() && answers.iter().all(Result::is_err);
    Plan::of_items(records, answers, all_refused)
}

fn added_count(topic: &Topic, count: i32) -> Result<usize, ApiError> {
    let current = topic.partitions.len();
    let wanted = usize::try_from(count).unwrap_or_default();
    if wanted > current {
        return Ok(wanted - current);
    }
    let message = format!("topic {:?} has {current} partitions: it can only get more, not {count}", topic.name);
    Err(ApiError::new(ErrorName::InvalidPartitions, message))
}

/// The topic's replication factor, that is, its first partition's without what a reassignment is about to remove.
pub(in crate::plan) fn replication_factor(topic: &Topic) -> usize {
    topic.partitions.get(0).map_or(1, |first| first.target().count())
}

fn assign_by_hand(
    assigner: &mut Assigner<'_>,
    topic: &Topic,
    added: usize,
    assignment: &[Vec<BrokerId>],
) -> Result<Vec<Vec<BrokerId>>, ApiError> {
    if assignment.len() != added {
        let given = assignment.len();
        return Err(invalid_assignment(format!("{added} partitions are added and {given} are assigned")));
    }
    let factor = replication_factor(topic);
    for (at, replicas) in assignment.iter().enumerate() {
        let what = format!("partition {}", topic.partitions.len() + at);
        assigner.check_manual(&topic.kind, &what, replicas)?;
        if replicas.len() != factor {
            let has = replicas.len();
            return Err(invalid_assignment(format!("{what} has {has} replicas where the topic has {factor}")));
        }
        if !assigner.has_active(replicas) {
            let message = format!("{what} has no replica on an active broker");
            return Err(ApiError::new(ErrorName::InvalidReplicationFactor, message));
        }
    }
    for replicas in assignment {
        assigner.count(replicas);
    }
    Ok(assignment.to_vec())
}
