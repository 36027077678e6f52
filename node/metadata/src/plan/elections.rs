//! Elections that someone asks for, and the two that the controller runs by itself.
//!
//! Each proposes only what changes a leader, so that asking twice proposes nothing the second time. The controller's own
//! are sweeps: a run is bounded, and says where the next one goes on.

use std::collections::BTreeSet;

use crate::config;
use crate::error::{ApiError, ErrorName};
use crate::ids::{BrokerId, PartitionId, TopicPartition};
use crate::image::{MetadataImage, Topic};
use crate::limits;
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
            let mut misplaced: Vec<_> = image.index.not_preferred().collect();
            misplaced.sort_unstable();
            misplaced
        }
        (None, ElectionKind::Unclean) => image.index.leaderless().collect(),
    };
    let mut elector = Elector::new(image, kind, Cause::ElectionRequested);
    let answers: Vec<Answer> = wanted.into_iter().map(|id| (id, elector.elect(id))).collect();
    let all_refused = !answers.is_empty() && answers.iter().all(|(_, answer)| answer.is_err());
    Plan::of_items(elector.records, answers, all_refused)
}

/// Where a sweep over the partitions of active brokers stopped: the next one begins behind it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Cursor {
    broker: BrokerId,
    after: Option<TopicPartition>,
}

/// What one run of a sweep did.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Swept {
    pub elected: usize,
    /// Where to go on, unless it came to the end.
    pub rest: Option<Cursor>,
}

/// Returns partitions to their preferred leaders, at most `max` in a run. It looks only at brokers that are active: those
/// that are down have nothing to get back.
pub fn balance_preferred(image: &MetadataImage, from: Option<Cursor>, max: usize) -> Plan<Swept> {
    if !config::is_enabled(image, config::AUTO_LEADER_REBALANCE) {
        return Plan::waiting(WaitingOn::Disabled, Swept::default());
    }
    let elector = Elector::new(image, ElectionKind::Preferred, Cause::PreferredElection);
    elector.sweep(active_brokers(image), from, max, |broker, after| image.index.not_preferred_of(broker, after))
}

/// Elects leaders uncleanly, at most `max` in a run, where the topic allows it and nothing else helps.
pub fn elect_uncleanly_where_allowed(image: &MetadataImage, from: Option<Cursor>, max: usize) -> Plan<Swept> {
    let elector = Elector::new(image, ElectionKind::Unclean, Cause::UncleanElection);
    elector.sweep(active_brokers(image), from, max, |broker, after| image.index.leaderless_on(broker, after))
}

/// Elects leaders for the leaderless partitions on a broker that has come back, where it can lead them; at most `max` in a
/// run.
pub fn elect_on(image: &MetadataImage, broker: BrokerId, from: Option<Cursor>, max: usize) -> Plan<Swept> {
    let elector = Elector {
        // Whichever the topic allows, as when the broker was unfenced.
        election: None,
        ..Elector::new(image, ElectionKind::Unclean, Cause::BrokerUnfenced(broker))
    };
    let active = Some(broker).filter(|&broker| image.is_active(broker));
    elector.sweep(active, from, max, |broker, after| image.index.leaderless_on(broker, after))
}

fn active_brokers(image: &MetadataImage) -> impl Iterator<Item = BrokerId> {
    image.brokers.keys().copied().filter(|&broker| image.is_active(broker))
}

struct Elector<'a> {
    image: &'a MetadataImage,
    kind: ElectionKind,
    /// `None`: the one that the topic's configs lead to.
    election: Option<Election>,
    cause: Cause,
    rules: RulesByTopic<'a>,
    seen: BTreeSet<TopicPartition>,
    records: Vec<Record>,
    /// A sweep has seen a partition for which an election is due, possible or not.
    in_need: bool,
}

impl<'a> Elector<'a> {
    fn new(image: &'a MetadataImage, kind: ElectionKind, cause: Cause) -> Self {
        let rules = RulesByTopic::new(image);
        let election = Some(kind.election());
        Self { image, kind, election, cause, rules, seen: BTreeSet::new(), records: Vec::new(), in_need: false }
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
        let builder = PartitionChangeBuilder::new(self.image, id, partition, self.rules.of(topic), self.cause);
        let builder = match self.election {
            Some(election) => builder.election(election),
            None => builder,
        };
        builder.build().filter(|change| self.kind.is_met_by(partition, change))
    }

    /// Looks at the candidates of each broker in turn, from a cursor on, and elects as far as it can. The run is bounded by
    /// what it elects and by what it looks at, so that candidates which stay as they are cost no more than the others.
    fn sweep<I: Iterator<Item = TopicPartition>>(
        mut self,
        brokers: impl IntoIterator<Item = BrokerId>,
        from: Option<Cursor>,
        max: usize,
        candidates: impl Fn(BrokerId, Option<TopicPartition>) -> I,
    ) -> Plan<Swept> {
        let mut scanned = 0;
        for broker in brokers.into_iter().filter(|&broker| from.is_none_or(|from| broker >= from.broker)) {
            let mut after = from.filter(|from| from.broker == broker).and_then(|from| from.after);
            let mut ids = candidates(broker, after);
            while let Some(id) = ids.next() {
                if self.records.len() >= max || scanned >= limits::SCANNED_PER_RUN_MAX {
                    return self.swept(Some(Cursor { broker, after }));
                }
                scanned += 1;
                let next = self.consider(id);
                after = Some(next);
                if next != id {
                    ids = candidates(broker, after);
                }
            }
        }
        self.swept(None)
    }

    fn swept(self, rest: Option<Cursor>) -> Plan<Swept> {
        let swept = Swept { elected: self.records.len(), rest };
        if self.records.is_empty() && self.in_need {
            return Plan::waiting(WaitingOn::NoEligibleBroker, swept);
        }
        Plan::new(self.records, swept)
    }

    /// Elects a leader for a candidate if it can, and says behind which partition to go on: a topic that does not allow the
    /// election is passed over as a whole.
    fn consider(&mut self, id: TopicPartition) -> TopicPartition {
        let Ok((topic, partition)) = find(self.image, id) else { return id };
        if self.election == Some(Election::Unclean) && !self.rules.of(topic).unclean_allowed() {
            return TopicPartition::new(id.topic, PartitionId::new(i32::MAX));
        }
        if !self.kind.is_needed(partition) {
            return id;
        }
        self.in_need = true;
        if self.may_succeed(partition) && self.seen.insert(id) {
            let change = self.change(id, topic, partition);
            self.records.extend(change.map(Record::PartitionChange));
        }
        id
    }

    /// A quick no, since candidates that wait for their replicas are looked at in every run.
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
