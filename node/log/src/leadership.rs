//! What the leader of a partition knows of its followers: how far each has got, what is committed, and who belongs
//! into the ISR. Pure: time and metadata are arguments, so that a test drives it as the broker does.
//!
//! Goals in order: never call a record committed that a member of the ISR may lack; never keep the partition from
//! committing for longer than a follower's allowed lag; ask for no change of the ISR that would be refused.
//!
//! Two sets of members matter. The *committed* ISR is what the metadata says. While a change is under way nobody knows
//! which of the two holds, so the *maximal* ISR, their union, is what a record must reach: an addition counts before
//! it is confirmed, a removal only after.
//!
//! ```text
//!   isr [1,2,3]   ends 1:9 2:9 3:4       high watermark 4: replica 3 holds it back
//!   3 lags for too long: propose [1,2]   still 4: the removal may yet be refused
//!   applied: isr [1,2]                   9
//! ```

mod followers;

use std::collections::BTreeMap;

use quorate_metadata::ids::{BrokerEpoch, BrokerId, LeaderEpoch, PartitionEpoch};
use quorate_metadata::mutant::Mutant;
use quorate_metadata::record::{LeaderRecoveryState, Partition};

use crate::LogOffset;
use followers::{Follower, Followers};

/// The leader's replica, as it is when the leadership begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Beginning {
    pub log_end: LogOffset,
    /// As this replica knew it while it followed.
    pub high_watermark: LogOffset,
    pub now_ms: i64,
}

/// What the metadata says that matters here.
#[derive(Debug, Clone, Copy)]
pub struct Known<'a> {
    pub partition: &'a Partition,
    /// The replicas that may be in an ISR, unfenced and not about to stop, at their present epochs.
    pub active: &'a BTreeMap<BrokerId, BrokerEpoch>,
    pub terms: Terms,
}

/// What followers may do, by config.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Terms {
    /// `min.insync.replicas`, at most the number of replicas.
    pub min_isr: usize,
    /// `replica.lag.time.max.ms`.
    pub lag_max_ms: i64,
}

/// A change of the ISR to ask the controller for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Proposal {
    pub leader_epoch: LeaderEpoch,
    pub partition_epoch: PartitionEpoch,
    /// Each with the epoch under which it fetched; the leader itself with none.
    pub isr: Vec<(BrokerId, Option<BrokerEpoch>)>,
}

/// What became of a proposal.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    Applied {
        partition_epoch: PartitionEpoch,
        isr: Vec<BrokerId>,
    },
    /// Certainly not applied: what was, is.
    NotApplied,
    /// It may have been applied; the metadata will tell.
    Unknown,
}

/// Whether a produce request may be taken, or acknowledged.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Durability {
    Enough,
    /// The committed ISR is smaller than `min.insync.replicas`.
    NotEnough,
}

/// One leader epoch of one partition, seen from its leader.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Leadership {
    leader: BrokerId,
    leader_epoch: LeaderEpoch,
    /// A follower that has not reached it may still hold records of an older leader.
    epoch_start: LogOffset,
    log_end: LogOffset,
    high_watermark: LogOffset,
    partition_epoch: PartitionEpoch,
    isr: Vec<BrokerId>,
    recovery: LeaderRecoveryState,
    /// The ISR that was asked for and is not yet known to be refused.
    asked: Option<Vec<BrokerId>>,
    active: BTreeMap<BrokerId, BrokerEpoch>,
    followers: Followers,
    terms: Terms,
}

impl Leadership {
    /// The metadata names `leader` as the partition's leader.
    pub fn begin(leader: BrokerId, known: Known<'_>, at: Beginning) -> Self {
        let partition = known.partition;
        let mut leadership = Self {
            leader,
            leader_epoch: partition.leader_epoch,
            epoch_start: at.log_end,
            log_end: at.log_end,
            high_watermark: at.high_watermark.min(at.log_end),
            partition_epoch: partition.partition_epoch,
            isr: partition.isr.to_vec(),
            recovery: partition.recovery(),
            asked: None,
            active: known.active.clone(),
            followers: Followers::default(),
            terms: known.terms,
        };
        leadership.keep_followers(partition, at.now_ms);
        leadership.advance(at.now_ms);
        leadership
    }

    pub fn leader_epoch(&self) -> LeaderEpoch {
        self.leader_epoch
    }

    pub fn high_watermark(&self) -> LogOffset {
        self.high_watermark
    }

    /// As the metadata has it.
    pub fn isr(&self) -> &[BrokerId] {
        &self.isr
    }

    pub fn durability(&self) -> Durability {
        if self.isr.len() < self.terms.min_isr { Durability::NotEnough } else { Durability::Enough }
    }

    /// The brokers with a replica that follows this one.
    pub fn followers(&self) -> impl Iterator<Item = BrokerId> {
        self.followers.brokers()
    }

    /// The end of the follower's log, once it has fetched.
    pub fn end_of(&self, follower: BrokerId) -> Option<LogOffset> {
        self.followers.get(follower).and_then(|follower| follower.end)
    }

    pub fn caught_up_ms(&self, follower: BrokerId) -> Option<i64> {
        self.followers.get(follower).and_then(|follower| follower.caught_up_ms)
    }

    /// The leader's own log has grown.
    pub fn on_append(&mut self, log_end: LogOffset, now_ms: i64) {
        debug_assert!(log_end >= self.log_end, "a leader does not truncate");
        self.log_end = log_end;
        self.advance(now_ms);
    }

    /// A follower has everything below `end`. False: it has no replica of the partition.
    pub fn on_fetch(&mut self, follower: BrokerId, epoch: BrokerEpoch, end: LogOffset, now_ms: i64) -> bool {
        let log_end = self.log_end;
        let Some(state) = self.followers.get_mut(follower) else { return false };
        if end >= log_end {
            state.caught_up_ms = Some(now_ms);
        } else if let Some((at, end_then)) = state.last_fetch
            && end >= end_then
        {
            // It has since got everything that there was when it last asked.
            state.caught_up_ms = state.caught_up_ms.max(Some(at));
        }
        state.end = Some(end);
        state.broker_epoch = Some(epoch);
        state.last_fetch = Some((now_ms, log_end));
        self.advance(now_ms);
        true
    }

    /// What the metadata says now, at the same leader epoch. What is older than what is known changes nothing.
    pub fn on_metadata(&mut self, known: Known<'_>, now_ms: i64) {
        let partition = known.partition;
        debug_assert_eq!(partition.leader_epoch, self.leader_epoch, "another epoch is another leadership");
        self.terms = known.terms;
        self.active.clone_from(known.active);
        if partition.partition_epoch > self.partition_epoch {
            self.partition_epoch = partition.partition_epoch;
            self.isr = partition.isr.to_vec();
            self.recovery = partition.recovery();
            self.asked = None;
        }
        self.keep_followers(partition, now_ms);
        self.advance(now_ms);
    }

    /// The leader leads on after a time in which nobody could fetch from it: members have that time anew.
    pub fn resume(&mut self, now_ms: i64) {
        let isr = &self.isr;
        let members = self.followers.iter_mut().filter(|(broker, _)| isr.contains(broker));
        members.for_each(|(_, follower)| follower.caught_up_ms = Some(now_ms));
    }

    /// What became of a proposal. An answer that the metadata has overtaken changes nothing.
    pub fn on_outcome(&mut self, proposal: &Proposal, outcome: Outcome, now_ms: i64) {
        if proposal.partition_epoch != self.partition_epoch {
            return;
        }
        match outcome {
            Outcome::Applied { partition_epoch, isr } => {
                self.partition_epoch = partition_epoch;
                self.isr = isr;
                self.recovery = LeaderRecoveryState::Recovered;
                self.asked = None;
            }
            Outcome::NotApplied => self.asked = None,
            Outcome::Unknown => {}
        }
        self.advance(now_ms);
    }

    /// The change of the ISR that is due, if one is and none is under way. While the leader recovers from an unclean
    /// election it is alone, and its first proposal says that it is ready.
    pub fn propose(&mut self, now_ms: i64) -> Option<Proposal> {
        if self.asked.is_some() {
            return None;
        }
        let wanted = match self.recovery {
            LeaderRecoveryState::Recovering => vec![self.leader],
            LeaderRecoveryState::Recovered => self.wanted(now_ms),
        };
        if wanted == self.isr && self.recovery == LeaderRecoveryState::Recovered {
            return None;
        }
        let member = |&broker: &BrokerId| (broker, self.followers.get(broker).and_then(|at| at.broker_epoch));
        let isr = wanted.iter().map(member).collect();
        self.asked = Some(wanted);
        Some(Proposal { leader_epoch: self.leader_epoch, partition_epoch: self.partition_epoch, isr })
    }

    /// When a follower that is behind will have lagged for too long. Until then time alone changes neither the ISR that is
    /// wanted nor the high watermark; `None`: it never does.
    pub fn lag_due_ms(&self, now_ms: i64) -> Option<i64> {
        let is_behind = |follower: &&Follower| follower.end.is_none_or(|end| end < self.log_end);
        let caught_up = self
            .followers
            .iter()
            .map(|(_, follower)| follower)
            .filter(is_behind)
            .filter_map(|follower| follower.caught_up_ms);
        let due = caught_up.map(|at| at.saturating_add(self.terms.lag_max_ms).saturating_add(1));
        due.filter(|due| *due > now_ms).min()
    }

    /// Who stays, in the order of now, then who joins.
    fn wanted(&self, now_ms: i64) -> Vec<BrokerId> {
        let stays = |broker: &BrokerId| *broker == self.leader || !self.lags(*broker, now_ms);
        let stay = self.isr.iter().copied().filter(stays);
        // Who has all that is committed may still lag, where the high watermark stands still: it would have to go at once.
        let joins = |broker: &BrokerId| self.may_join(*broker) && !self.lags(*broker, now_ms);
        let join = self.followers.brokers().filter(|broker| !self.isr.contains(broker) && joins(broker));
        stay.chain(join).collect()
    }

    /// It holds everything that is committed and nothing of an older leader that this one does not have, and it
    /// fetched as the incarnation that the controllers know: what another one had fetched may be gone.
    fn may_join(&self, broker: BrokerId) -> bool {
        let Some(follower) = self.followers.get(broker) else { return false };
        let has_caught_up = follower.end.is_some_and(|end| end >= self.high_watermark && end >= self.epoch_start);
        has_caught_up && self.is_active(broker, follower)
    }

    fn is_active(&self, broker: BrokerId, follower: &Follower) -> bool {
        follower.broker_epoch.is_some() && self.active.get(&broker).copied() == follower.broker_epoch
    }

    fn lags(&self, broker: BrokerId, now_ms: i64) -> bool {
        let Some(follower) = self.followers.get(broker) else { return true };
        let is_at_the_end = follower.end.is_some_and(|end| end >= self.log_end);
        let is_recent = follower.caught_up_ms.is_some_and(|at| now_ms - at <= self.terms.lag_max_ms);
        !is_at_the_end && !is_recent
    }

    /// A follower that was in the ISR when the leadership began has the time of the allowed lag to show itself.
    fn keep_followers(&mut self, partition: &Partition, now_ms: i64) {
        self.followers.retain(|broker| partition.replicas.contains(&broker));
        for &broker in partition.replicas.iter().filter(|&&broker| broker != self.leader) {
            let caught_up_ms = self.isr.contains(&broker).then_some(now_ms);
            let unknown = Follower { end: None, broker_epoch: None, caught_up_ms, last_fetch: None };
            self.followers.add(broker, unknown);
        }
    }

    /// Everything below it is on every member of the maximal ISR. It never goes back, and stands still while the
    /// committed ISR is too small (KIP-966): what is not committed cannot be lost by the last replica standing.
    fn advance(&mut self, now_ms: i64) {
        if self.durability() == Durability::NotEnough {
            return;
        }
        let mut members = self.isr.iter().chain(self.asked.iter().flatten());
        if members.any(|broker| *broker != self.leader && self.followers.get(*broker).is_none()) {
            return;
        }
        let mut lowest = self.log_end;
        for (broker, follower) in self.followers.iter() {
            let counts = self.is_member(broker) || self.is_about_to_join(broker, follower, now_ms);
            if !counts {
                continue;
            }
            // A member that has not fetched yet may have anything.
            let Some(end) = follower.end else { return };
            if !Mutant::EarlyHighWatermark.is_on() {
                lowest = lowest.min(end);
            }
        }
        self.high_watermark = self.high_watermark.max(lowest);
    }

    fn is_member(&self, broker: BrokerId) -> bool {
        self.isr.contains(&broker) || self.asked.as_ref().is_some_and(|asked| asked.contains(&broker))
    }

    /// A follower close to the end is waited for: without it the high watermark would run away from who joins.
    fn is_about_to_join(&self, broker: BrokerId, follower: &Follower, now_ms: i64) -> bool {
        let has_epoch = follower.end.is_some_and(|end| end >= self.epoch_start);
        let is_recent = follower.caught_up_ms.is_some_and(|at| now_ms - at <= self.terms.lag_max_ms);
        has_epoch && is_recent && self.is_active(broker, follower)
    }
}

#[cfg(test)]
mod tests;
