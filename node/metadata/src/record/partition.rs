//! The state of a partition, in two forms: plain, as it is written down, and compact, as an image holds millions.

use crate::ids::{BrokerId, DirectoryId, LeaderEpoch, PartitionEpoch};
use crate::record::broker_list::BrokerList;
use crate::record::directory_list::DirectoryList;
use crate::record::history::History;
use crate::record::{ChangeNote, LeaderRecoveryState};

/// The whole state of a partition, field by field: what a `Partition` is made from.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct PartitionState {
    /// Ordered; the first is the preferred leader.
    pub replicas: Vec<BrokerId>,
    /// One per replica, in the same order.
    pub directories: Vec<DirectoryId>,
    pub isr: Vec<BrokerId>,
    /// Eligible leaders outside the ISR (KIP-966); disjoint from it.
    pub elr: Vec<BrokerId>,
    /// The last leader, kept while there is none.
    pub last_known_elr: Vec<BrokerId>,
    pub adding: Vec<BrokerId>,
    pub removing: Vec<BrokerId>,
    pub leader: Option<BrokerId>,
    pub recovery: LeaderRecoveryState,
    pub leader_epoch: LeaderEpoch,
    pub partition_epoch: PartitionEpoch,
    /// Its last changes, oldest first, at most `limits::PARTITION_CHANGES_KEPT`.
    pub history: Vec<ChangeNote>,
}

/// The state of a partition in 112 bytes, without anything on the heap for three replicas, all in sync.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Partition {
    /// Ordered; the first is the preferred leader.
    pub replicas: BrokerList,
    pub isr: BrokerList,
    pub leader: Option<BrokerId>,
    pub leader_epoch: LeaderEpoch,
    pub partition_epoch: PartitionEpoch,
    /// `None` where all of it is empty, so that equal states are equal values.
    rare: Option<Box<Rare>>,
    /// One per replica, in the same order.
    pub(crate) directories: DirectoryList,
    pub(crate) history: History,
}

/// What few partitions have at a time.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct Rare {
    pub elr: BrokerList,
    pub last_known_elr: BrokerList,
    pub adding: BrokerList,
    pub removing: BrokerList,
    pub recovery: LeaderRecoveryState,
}

static NOTHING_RARE: Rare = Rare {
    elr: BrokerList::EMPTY,
    last_known_elr: BrokerList::EMPTY,
    adding: BrokerList::EMPTY,
    removing: BrokerList::EMPTY,
    recovery: LeaderRecoveryState::Recovered,
};

impl Partition {
    pub fn preferred_leader(&self) -> Option<BrokerId> {
        self.replicas.first().copied()
    }

    /// Eligible leaders outside the ISR (KIP-966); disjoint from it.
    pub fn elr(&self) -> &[BrokerId] {
        &self.rare().elr
    }

    /// The last leader, kept while there is none.
    pub fn last_known_elr(&self) -> &[BrokerId] {
        &self.rare().last_known_elr
    }

    pub fn adding(&self) -> &[BrokerId] {
        &self.rare().adding
    }

    pub fn removing(&self) -> &[BrokerId] {
        &self.rare().removing
    }

    pub fn recovery(&self) -> LeaderRecoveryState {
        self.rare().recovery
    }

    pub fn set_recovery(&mut self, recovery: LeaderRecoveryState) {
        self.amend_rare(|rare| rare.recovery = recovery);
    }

    /// One per replica, in the same order.
    pub fn directories(&self) -> impl ExactSizeIterator<Item = DirectoryId> {
        self.directories.iter()
    }

    /// Its last changes, oldest first, at most `limits::PARTITION_CHANGES_KEPT`.
    pub fn history(&self) -> impl Iterator<Item = ChangeNote> {
        self.history.iter()
    }

    /// Where the copy of `broker` is, as far as that is known.
    pub fn directory_of(&self, broker: BrokerId) -> DirectoryId {
        let at = self.replicas.iter().position(|&replica| replica == broker);
        at.and_then(|at| self.directories().nth(at)).unwrap_or(DirectoryId::UNASSIGNED)
    }

    pub fn has_preferred_leader(&self) -> bool {
        self.leader.is_some() && self.leader == self.preferred_leader()
    }

    pub fn is_reassigning(&self) -> bool {
        !self.adding().is_empty() || !self.removing().is_empty()
    }

    /// The replicas without what a reassignment is about to remove.
    pub fn target(&self) -> impl Iterator<Item = BrokerId> + '_ {
        self.replicas.iter().copied().filter(|replica| !self.removing().contains(replica))
    }

    pub(crate) fn rare(&self) -> &Rare {
        self.rare.as_deref().unwrap_or(&NOTHING_RARE)
    }

    pub(crate) fn amend_rare(&mut self, amend: impl FnOnce(&mut Rare)) {
        let mut rare = self.rare.take().unwrap_or_default();
        amend(&mut rare);
        self.rare = (*rare != NOTHING_RARE).then_some(rare);
    }
}

impl From<PartitionState> for Partition {
    fn from(state: PartitionState) -> Self {
        let rare = Rare {
            elr: state.elr.into(),
            last_known_elr: state.last_known_elr.into(),
            adding: state.adding.into(),
            removing: state.removing.into(),
            recovery: state.recovery,
        };
        Self {
            replicas: state.replicas.into(),
            isr: state.isr.into(),
            leader: state.leader,
            leader_epoch: state.leader_epoch,
            partition_epoch: state.partition_epoch,
            rare: (rare != NOTHING_RARE).then(|| Box::new(rare)),
            directories: state.directories.into_iter().collect(),
            history: state.history[..].into(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_partition_with_three_replicas_is_small() {
        // With the counters of its `Arc` 128 bytes, a size class of common allocators.
        assert_eq!(size_of::<Partition>(), 112);
    }

    #[test]
    fn what_is_rare_and_goes_leaves_an_equal_partition() {
        let before = Partition::from(PartitionState::default());
        let mut partition = before.clone();
        partition.set_recovery(LeaderRecoveryState::Recovering);
        partition.amend_rare(|rare| rare.elr = vec![BrokerId::new(1)].into());
        assert_eq!((partition.recovery(), partition.elr()), (LeaderRecoveryState::Recovering, &[BrokerId::new(1)][..]));
        partition.set_recovery(LeaderRecoveryState::Recovered);
        partition.amend_rare(|rare| rare.elr = BrokerList::EMPTY);
        assert_eq!(partition, before);
    }
}
