//! Elections that someone asks for, and the two that the controller runs by itself.
//!
//! Each proposes only what changes a leader, so that asking twice proposes nothing the second time.

use std::collections::BTreeSet;

use crate::config;
use crate::error::{ApiError, ErrorName};
use crate::ids::TopicPartition;
use crate::image::{MetadataImage, Topic};
use crate::plan::alter_partition::find;
use crate::plan::partition_change::{Election, PartitionChangeBuilder, RulesByTopic};
use crate::plan::{Plan, WaitingOn};
use crate::record::{Cause, Partition, PartitionChange, Record};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ElectionKind {
    /// Back to the first replica, if it is in sync.
    Preferred,
    /// Any active replica for a leaderless partition, whatever its topic allows: records may be lost.
    Unclean,
}

impl ElectionKind {
    fn election(self) -> Election {
        match self {
            Self::Preferred => Election::Preferred,
            Self::Unclean => Election::Unclean,
        }
    }

    fn is_needed(self, partition: &Partition) -> bool {
        match self {
            Self::Preferred => !partition.has_preferred_leader(),
            Self::Unclean => partition.leader.is_none(),
        }
    }

    /// Whether the change brings what was asked for, rather than just some other leader.
    fn is_met_by(self, partition: &Partition, change: &PartitionChange) -> bool {
        match self {
            Self::Preferred => change.leader == Some(partition.preferred_leader()),
            Self::Unclean => matches!(change.leader, Some(Some(_))),
        }
    }

    fn impossible(self) -> ErrorName {
        match self {
            Self::Preferred => ErrorName::PreferredLeaderNotAvailable,
            Self::Unclean => ErrorName::EligibleLeadersNotAvailable,
        }
    }
}

type Answer = (TopicPartition, Result<(), ApiError>);

/// Elects leaders for the given partitions. For all (`None`), those that need none are left out of the answer.
pub fn elect(image: &MetadataImage, kind: ElectionKind, partitions: Option<&[TopicPartition]>) -> Plan<Vec<Answer>> {
    let wanted = match (partitions, kind) {
        (Some(partitions), _) => partitions.to_vec(),
        (None, ElectionKind::Preferred) => {
            let misplaced: BTreeSet<_> = image.index.not_preferred().chain(image.index.leaderless()).collect();
            misplaced.into_iter().collect()
        }
        (None, ElectionKind::Unclean) => image.index.leaderless().collect(),
    };
    let mut elector = Elector::new(image, kind, Cause::ElectionRequested);
    let answers: Vec<Answer> = wanted.into_iter().map(|id| (id, elector.elect(id))).collect();
    let all_refused = !answers.is_empty() && answers.iter().all(|(_, answer)| answer.is_err());
    Plan::of_items(elector.records, answers, all_refused)
}

/// Returns partitions to their preferred leaders, at most `max`. The answer is how many.
pub fn balance_preferred(image: &MetadataImage, max: usize) -> Plan<usize> {
    if !config::is_enabled(image, config::AUTO_LEADER_REBALANCE) {
        return Plan::waiting(WaitingOn::Disabled, 0);
    }
    let mut elector = Elector::new(image, ElectionKind::Preferred, Cause::PreferredElection);
    elector.run(image.index.not_preferred().chain(image.index.leaderless()), max)
}

/// Elects leaders uncleanly, at most `max`, where the topic allows it and nothing else helps. The answer is how many.
pub fn elect_uncleanly_where_allowed(image: &MetadataImage, max: usize) -> Plan<usize> {
    let mut rules = RulesByTopic::new(image);
    let allows = |id: &TopicPartition| image.topic(id.topic).is_some_and(|topic| rules.of(topic).unclean_allowed());
    let leaderless = image.index.leaderless().filter(allows);
    Elector::new(image, ElectionKind::Unclean, Cause::UncleanElection).run(leaderless, max)
}

struct Elector<'a> {
    image: &'a MetadataImage,
    kind: ElectionKind,
    cause: Cause,
    rules: RulesByTopic<'a>,
    seen: BTreeSet<TopicPartition>,
    records: Vec<Record>,
}

impl<'a> Elector<'a> {
    fn new(image: &'a MetadataImage, kind: ElectionKind, cause: Cause) -> Self {
        let rules = RulesByTopic::new(image);
        Self { image, kind, cause, rules, seen: BTreeSet::new(), records: Vec::new() }
    }

    fn elect(&mut self, id: TopicPartition) -> Result<(), ApiError> {
        let (topic, partition) = find(self.image, id)?;
        let named = format!("partition {}-{}", topic.name, id.partition);
        if !self.seen.insert(id) {
            return Err(ApiError::new(ErrorName::InvalidRequest, format!("{named} is named twice in the request")));
        }
        if !self.kind.is_needed(partition) {
            let message = match self.kind {
                ElectionKind::Preferred => format!("{named} has its preferred leader"),
                ElectionKind::Unclean => format!("{named} has a leader"),
            };
            return Err(ApiError::new(ErrorName::ElectionNotNeeded, message));
        }
        let change = self.change(id, topic, partition).ok_or_else(|| {
            let message = match self.kind {
                ElectionKind::Preferred => format!("the preferred leader of {named} is not in sync or not active"),
                ElectionKind::Unclean => format!("no replica of {named} is active"),
            };
            ApiError::new(self.kind.impossible(), message)
        })?;
        self.records.push(Record::PartitionChange(change));
        Ok(())
    }

    fn change(&mut self, id: TopicPartition, topic: &Topic, partition: &'a Partition) -> Option<PartitionChange> {
        PartitionChangeBuilder::new(self.image, id, partition, self.rules.of(topic), self.cause)
            .election(self.kind.election())
            .build()
            .filter(|change| self.kind.is_met_by(partition, change))
    }

    /// Elects as far as it can, up to `max`, and says how many, or why none.
    fn run(&mut self, candidates: impl Iterator<Item = TopicPartition>, max: usize) -> Plan<usize> {
        let mut in_need = false;
        for id in candidates {
            if self.records.len() >= max {
                break;
            }
            let Ok((topic, partition)) = find(self.image, id) else { continue };
            if !self.kind.is_needed(partition) {
                continue;
            }
            in_need = true;
            if self.may_succeed(partition) && self.seen.insert(id) {
                let change = self.change(id, topic, partition);
                self.records.extend(change.map(Record::PartitionChange));
            }
        }
        let elected = self.records.len();
        if elected == 0 && in_need {
            return Plan::waiting(WaitingOn::NoEligibleBroker, 0);
        }
        Plan::new(std::mem::take(&mut self.records), elected)
    }

    /// A quick no, since a broker that is down for long leaves many partitions to look at in every run.
    fn may_succeed(&self, partition: &Partition) -> bool {
        match self.kind {
            ElectionKind::Preferred => partition.preferred_leader().is_some_and(|broker| self.image.is_active(broker)),
            ElectionKind::Unclean => partition.replicas.iter().any(|&broker| self.image.is_active(broker)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::image::fixture::{batch, broker, change, image, partition_id};
    use crate::plan::brokers;

    #[test]
    fn a_change_that_an_election_would_bring_along_is_not_passed_off_as_the_election() {
        let mut image = image();
        let fenced = brokers::fence(&image, broker(1)).expect("broker 1 is registered");
        image.replay(&batch(1, &fenced.records)).expect("a plan replays");
        let ends_with_any_change = PartitionChange { removing: Some(vec![broker(1)]), ..change(partition_id(0)) };
        image.replay(&batch(1, &[Record::PartitionChange(ends_with_any_change)])).expect("replay has no opinion");
        let plan = elect(&image, ElectionKind::Preferred, Some(&[partition_id(0)]));
        assert_eq!(plan.waiting_on, Some(WaitingOn::AllRefused));
        let refused = plan.response[0].1.as_ref().expect_err("the preferred leader is fenced");
        assert_eq!(refused.name, ErrorName::PreferredLeaderNotAvailable);
    }
}
