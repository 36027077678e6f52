//! The only place that picks a leader, changes an ISR or bumps a leader epoch.
//!
//! Callers say what they want (another ISR, other replicas, another election, a broker out) and who may lead; `build`
//! then runs the same steps for all of them, in this order:
//!
//! 1. finish the reassignment, if the ISR now holds every target replica;
//! 2. ELR: whoever leaves the ISR while it falls below `min.insync.replicas` stays eligible;
//! 3. elect;
//! 4. seat the leader: one from the ELR, or an unclean one, is alone in the ISR; and finish the reassignment, if the one
//!    from the ELR is all that is to stay;
//! 5. remember the last leader, if there is none now;
//! 6. write what differs. Nothing differs: no change, unless it is to supersede earlier requests.
//!
//! Writing the leader is what bumps the leader epoch. It is written if it changed, and re-stated if a replica left the
//! partition for good: the old replica must not go on fetching under an epoch that still names it. An ISR that
//! grows or shrinks under the same leader bumps nothing.
//!
//! Example: replicas [1,2,3], ISR [1,2], ELR [3], leader 1, min.insync.replicas 3. Fencing 1 leaves ISR [2], which is
//! below 3, so 1 joins the ELR; 2 is elected; the change is `isr [2] elr [1,3] leader 2`. Fencing 2 as well leaves
//! ISR [] and ELR [1,2,3], and no one to elect: `leader none`, and 2 is remembered as the last leader. The
//! first of the three to be unfenced leads again, alone in the ISR, and nothing acknowledged is lost.
//!
//! The ELR is not optional: without it the last replica in sync would have to stay in the ISR while it is fenced.
//!
//! Invariant: ISR and ELR are disjoint subsets of the replicas; the leader is in the ISR; the ELR is empty where the
//! ISR has `min.insync.replicas` members.

use crate::config;
use crate::ids::{BrokerId, DirectoryId, TopicId, TopicPartition};
use crate::image::{MetadataImage, Topic};
use crate::limits;
use crate::mutant::Mutant;
use crate::plan::directories;
use crate::record::{Cause, LeaderRecoveryState, Partition, PartitionChange, Record};

/// Who may be elected.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Election {
    /// Keep the leader if it is valid, else the first valid replica.
    Online,
    /// The first replica if it is valid, else as `Online`.
    Preferred,
    /// As `Online`, else the last known leader, else any active replica: records may be lost.
    Unclean,
}

/// What the configs of a topic say about its elections.
#[derive(Debug, Clone, Copy)]
pub struct ElectionRules {
    unclean_allowed: bool,
    min_isr: usize,
}

impl ElectionRules {
    pub fn of(image: &MetadataImage, topic: &Topic) -> Self {
        Self {
            unclean_allowed: config::unclean_allowed(image, &topic.name),
            min_isr: config::min_insync_replicas(image, &topic.name),
        }
    }

    pub fn unclean_allowed(self) -> bool {
        self.unclean_allowed
    }

    /// How many of `replicas` must be in sync for a write to be acknowledged.
    pub fn needed_in_sync(self, replicas: usize) -> usize {
        self.min_isr.min(replicas)
    }

    /// The election that a lost leader leads to.
    fn election(self) -> Election {
        if self.unclean_allowed { Election::Unclean } else { Election::Online }
    }
}

/// Some of the changes that a plan makes for one cause.
pub struct Step {
    pub records: Vec<Record>,
    /// Whether these are all of them, or all that are left.
    pub is_last: bool,
}

/// Changes of many partitions for one cause, at most `limits::CHANGES_PER_STEP_MAX`: each is shaped by `shape`, and those
/// that come to nothing are left out. The partitions that remain must be those of an index that the changes take them out
/// of, so that the next step goes on where this one ends.
pub fn change_step<'a>(
    image: &'a MetadataImage,
    partitions: impl IntoIterator<Item = TopicPartition>,
    cause: Cause,
    shape: impl Fn(PartitionChangeBuilder<'a>) -> PartitionChangeBuilder<'a>,
) -> Step {
    let mut records = Vec::new();
    let mut rules = RulesByTopic::new(image);
    for id in partitions {
        if records.len() >= limits::CHANGES_PER_STEP_MAX {
            return Step { records, is_last: false };
        }
        let topic = image.topic(id.topic).expect("the index names topics of the image");
        let partition = topic.partition(id.partition).expect("the index names partitions of the image");
        let builder = PartitionChangeBuilder::new(image, id, partition, rules.of(topic), cause);
        records.extend(shape(builder).build().map(Record::PartitionChange));
    }
    Step { records, is_last: true }
}

/// The rules of the topic asked for last: partitions come sorted by topic, and a look-up costs more than a change.
pub struct RulesByTopic<'a> {
    image: &'a MetadataImage,
    last: Option<(TopicId, ElectionRules)>,
}

impl<'a> RulesByTopic<'a> {
    pub fn new(image: &'a MetadataImage) -> Self {
        Self { image, last: None }
    }

    pub fn of(&mut self, topic: &Topic) -> ElectionRules {
        match self.last {
            Some((id, rules)) if id == topic.id => rules,
            _ => {
                let rules = ElectionRules::of(self.image, topic);
                self.last = Some((topic.id, rules));
                rules
            }
        }
    }
}

/// One partition on its way to a change: the state wanted, and who may lead.
#[derive(Debug, Clone)]
pub struct PartitionChangeBuilder<'a> {
    image: &'a MetadataImage,
    id: TopicPartition,
    before: &'a Partition,
    rules: ElectionRules,
    cause: Cause,
    election: Election,
    /// May lead although the image still has it fenced.
    admitted: Option<BrokerId>,
    /// May not lead although the image still has it active.
    excluded: Option<BrokerId>,
    /// Its copy cannot be trusted: no seat in the ELR either.
    distrusted: Option<BrokerId>,
    forget_elr: bool,
    supersedes: bool,
    replicas: Vec<BrokerId>,
    directories: Vec<DirectoryId>,
    isr: Vec<BrokerId>,
    elr: Vec<BrokerId>,
    adding: Vec<BrokerId>,
    removing: Vec<BrokerId>,
    recovery: LeaderRecoveryState,
}

/// The outcome of an election.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Elected {
    Cleanly(BrokerId),
    /// From outside ISR and ELR.
    Uncleanly(BrokerId),
    Nobody,
}

impl Elected {
    fn leader(self) -> Option<BrokerId> {
        match self {
            Self::Cleanly(leader) | Self::Uncleanly(leader) => Some(leader),
            Self::Nobody => None,
        }
    }
}

impl<'a> PartitionChangeBuilder<'a> {
    pub fn new(
        image: &'a MetadataImage,
        id: TopicPartition,
        before: &'a Partition,
        rules: ElectionRules,
        cause: Cause,
    ) -> Self {
        Self {
            image,
            id,
            before,
            rules,
            cause,
            election: rules.election(),
            admitted: None,
            excluded: None,
            distrusted: None,
            forget_elr: false,
            supersedes: false,
            replicas: before.replicas.to_vec(),
            directories: before.directories().collect(),
            isr: before.isr.to_vec(),
            elr: before.elr().to_vec(),
            adding: before.adding().to_vec(),
            removing: before.removing().to_vec(),
            recovery: before.recovery(),
        }
    }

    /// Another election than the one that the topic's configs lead to.
    #[must_use]
    pub fn election(mut self, election: Election) -> Self {
        self.election = election;
        self
    }

    /// Counts `broker` as active: the record that unfences it stands before this change.
    #[must_use]
    pub fn admit(mut self, broker: BrokerId) -> Self {
        self.admitted = Some(broker);
        self
    }

    /// Takes `broker` out of the ISR and bars it from leading. In the ELR it may keep or get a seat.
    #[must_use]
    pub fn without(mut self, broker: BrokerId) -> Self {
        self.excluded = Some(broker);
        self.isr.retain(|&member| member != broker);
        self
    }

    /// As `without`, and out of the ELR: its copy may lack records.
    #[must_use]
    pub fn distrust(mut self, broker: BrokerId) -> Self {
        self.distrusted = Some(broker);
        self.without(broker)
    }

    /// The log directories of `broker` are now `online`: a copy that was in another one is lost, and starts afresh.
    #[must_use]
    pub fn rehome(mut self, broker: BrokerId, online: &[DirectoryId]) -> Self {
        let at = self.replicas.iter().position(|&replica| replica == broker);
        let Some(directory) = at.and_then(|at| self.directories.get_mut(at)) else { return self };
        if *directory == DirectoryId::UNASSIGNED || online.contains(directory) {
            return self;
        }
        *directory = directories::choose_among(online, self.id);
        self.cause = Cause::UncleanRestart(broker);
        self.distrust(broker)
    }

    /// The copy of `broker` starts afresh in another directory.
    #[must_use]
    pub fn relocate(mut self, broker: BrokerId, directory: DirectoryId) -> Self {
        if let Some(at) = self.replicas.iter().position(|&replica| replica == broker) {
            self.directories[at] = directory;
        }
        self.distrust(broker)
    }

    /// Other replicas, some of them on their way in or out. One that is not among them is out of the ISR and the ELR at
    /// once.
    #[must_use]
    pub fn replicas(mut self, replicas: Vec<BrokerId>, adding: Vec<BrokerId>, removing: Vec<BrokerId>) -> Self {
        self.directories = replicas.iter().map(|&replica| self.directory_for(replica)).collect();
        self.isr.retain(|member| replicas.contains(member));
        self.replicas = replicas;
        self.adding = adding;
        self.removing = removing;
        self
    }

    #[must_use]
    pub fn isr(mut self, isr: Vec<BrokerId>) -> Self {
        self.isr = isr;
        self
    }

    #[must_use]
    pub fn recovery(mut self, recovery: LeaderRecoveryState) -> Self {
        self.recovery = recovery;
        self
    }

    /// Empties the ELR: it was earned under another `min.insync.replicas`.
    #[must_use]
    pub fn forget_elr(mut self) -> Self {
        self.forget_elr = true;
        self
    }

    /// Moves the partition epoch even where nothing else differs.
    #[must_use]
    pub fn supersede(mut self, supersedes: bool) -> Self {
        self.supersedes = supersedes;
        self
    }

    /// The change that leads to what was asked for; `None` if that is what is.
    pub fn build(mut self) -> Option<PartitionChange> {
        self.finish_reassignment();
        self.update_elr();
        let elected = self.elect();
        self.seat(elected);
        self.assert_sound(elected.leader());
        self.difference(elected)
    }

    /// Drops the replicas to be removed once the ISR holds every other one. Not while an unclean leader recovers: they
    /// may be the ones who have the records.
    fn finish_reassignment(&mut self) {
        let is_reassigning = !self.adding.is_empty() || !self.removing.is_empty();
        if !is_reassigning || self.recovery == LeaderRecoveryState::Recovering {
            return;
        }
        let stays = |replica: &BrokerId| !self.removing.contains(replica);
        let target: Vec<BrokerId> = self.replicas.iter().copied().filter(stays).collect();
        if target.is_empty() || !target.iter().all(|replica| self.isr.contains(replica)) {
            return;
        }
        self.directories = target.iter().map(|&replica| self.directory_of(replica)).collect();
        self.isr.retain(|replica| target.contains(replica));
        self.replicas = target;
        self.adding.clear();
        self.removing.clear();
        self.cause = Cause::Reassignment;
    }

    fn update_elr(&mut self) {
        self.elr.clear();
        if self.forget_elr || self.has_enough_in_sync() {
            return;
        }
        let was_eligible =
            |replica: &BrokerId| self.before.elr().contains(replica) || self.before.isr.contains(replica);
        let is_trusted = |replica: &BrokerId| self.distrusted != Some(*replica) && !self.isr.contains(replica);
        self.elr = self.replicas.iter().copied().filter(was_eligible).filter(is_trusted).collect();
    }

    fn has_enough_in_sync(&self) -> bool {
        self.isr.len() >= self.rules.needed_in_sync(self.replicas.len())
    }

    fn elect(&self) -> Elected {
        if Mutant::NoElection.is_on() && self.before.leader.is_none() {
            return Elected::Nobody;
        }
        let is_stranger = |replica: &BrokerId| self.is_acceptable(*replica) && !self.is_valid(*replica);
        if Mutant::AnyLeader.is_on()
            && let Some(leader) = self.replicas.iter().copied().find(is_stranger)
        {
            return Elected::Cleanly(leader);
        }
        let preferred = self.replicas.first().copied().filter(|_| self.election == Election::Preferred);
        let clean = [preferred, self.before.leader].into_iter().flatten().chain(self.replicas.iter().copied());
        if let Some(leader) = clean.into_iter().find(|&replica| self.is_valid(replica)) {
            return Elected::Cleanly(leader);
        }
        match self.election {
            Election::Online | Election::Preferred => Elected::Nobody,
            Election::Unclean => self.unclean_candidate().map_or(Elected::Nobody, Elected::Uncleanly),
        }
    }

    /// The last known leader, which had most; else the first that can lead. One that is only being added has least to
    /// lead with.
    fn unclean_candidate(&self) -> Option<BrokerId> {
        let acceptable = || self.replicas.iter().copied().filter(|&replica| self.is_acceptable(replica));
        let last_known = acceptable().find(|&replica| *self.before.last_known_elr() == [replica]);
        last_known.or_else(|| acceptable().min_by_key(|replica| self.adding.contains(replica)))
    }

    /// Whether electing `replica` loses nothing that was acknowledged.
    fn is_valid(&self, replica: BrokerId) -> bool {
        let in_sync = self.isr.contains(&replica) || (self.isr.is_empty() && self.elr.contains(&replica));
        in_sync && self.is_acceptable(replica)
    }

    /// Whether `replica` is able to lead at all.
    fn is_acceptable(&self, replica: BrokerId) -> bool {
        if self.excluded == Some(replica) || !self.replicas.contains(&replica) {
            return false;
        }
        let active = self.admitted == Some(replica) || self.image.is_active(replica);
        active && self.has_its_disk(replica)
    }

    fn has_its_disk(&self, replica: BrokerId) -> bool {
        let directory = self.directory_of(replica);
        let broker = self.image.broker(replica);
        directory == DirectoryId::UNASSIGNED || broker.is_some_and(|broker| broker.has_online(directory))
    }

    /// Where the replica is, or is to be.
    fn directory_for(&self, replica: BrokerId) -> DirectoryId {
        if self.replicas.contains(&replica) {
            return self.directory_of(replica);
        }
        directories::choose(self.image, replica, self.id)
    }

    fn directory_of(&self, replica: BrokerId) -> DirectoryId {
        let at = self.replicas.iter().position(|&other| other == replica);
        at.and_then(|at| self.directories.get(at).copied()).unwrap_or(DirectoryId::UNASSIGNED)
    }

    /// Gives the leader its seat in the ISR, if it was not elected from there.
    fn seat(&mut self, elected: Elected) {
        match elected {
            Elected::Nobody => return,
            Elected::Cleanly(leader) if self.isr.contains(&leader) => return,
            Elected::Cleanly(leader) => {
                self.elr.retain(|&member| member != leader);
                self.isr = vec![leader];
                // It may be all that a reassignment waited for, and no one else would end it.
                self.finish_reassignment();
            }
            Elected::Uncleanly(leader) => {
                // What the others hold may contradict the new leader's log: no one else is in sync or eligible.
                self.elr.clear();
                self.isr = vec![leader];
                self.recovery = LeaderRecoveryState::Recovering;
            }
        }
        if self.has_enough_in_sync() {
            self.elr.clear();
        }
    }

    fn assert_sound(&self, leader: Option<BrokerId>) {
        assert!(leader.is_none_or(|leader| self.isr.contains(&leader)), "leader outside the ISR in {}", self.id);
        assert!(self.isr.iter().all(|member| self.replicas.contains(member)), "ISR outside replicas in {}", self.id);
        assert!(!self.elr.iter().any(|member| self.isr.contains(member)), "ISR and ELR overlap in {}", self.id);
        assert!(self.elr.is_empty() || !self.has_enough_in_sync(), "ELR beside a full ISR in {}", self.id);
        assert_eq!(self.replicas.len(), self.directories.len(), "a replica without a directory in {}", self.id);
    }

    /// Kept from the moment there is no leader until there is one.
    fn last_known_after(&self, leader: Option<BrokerId>) -> Vec<BrokerId> {
        let mut last_known = match (leader, self.before.leader) {
            (Some(_), _) => Vec::new(),
            (None, Some(last)) => vec![last],
            (None, None) => self.before.last_known_elr().to_vec(),
        };
        let is_kept = |broker: &BrokerId| self.replicas.contains(broker) && !self.starts_afresh(*broker);
        last_known.retain(is_kept);
        if leader.is_none() && last_known.is_empty() && self.isr.is_empty() && self.elr.is_empty() {
            // The last leader is no replica any more, or has nothing: the replica that was trusted last has most.
            let trusted = self.before.elr().iter().chain(&self.before.isr).copied().find(is_kept);
            last_known.extend(trusted.or_else(|| self.instead_of_fresh()));
        }
        last_known
    }

    /// Whether the replica was in another directory before: it has nothing.
    fn starts_afresh(&self, replica: BrokerId) -> bool {
        self.before.replicas.contains(&replica) && self.before.directory_of(replica) != self.directory_of(replica)
    }

    /// The replica that has most where one starts afresh: another one, if there is any, and rather one that is not being added.
    fn instead_of_fresh(&self) -> Option<BrokerId> {
        let replicas = || self.replicas.iter().copied();
        if !replicas().any(|replica| self.starts_afresh(replica)) {
            return None;
        }
        replicas().min_by_key(|replica| (self.starts_afresh(*replica), self.adding.contains(replica)))
    }

    fn difference(self, elected: Elected) -> Option<PartitionChange> {
        let before = self.before;
        let leader = elected.leader();
        let loses_a_replica = before.replicas.iter().any(|replica| !self.replicas.contains(replica));
        let last_known_elr = self.last_known_after(leader);
        let none = PartitionChange::none(self.id, self.cause);
        let change = PartitionChange {
            leader: (leader != before.leader || loses_a_replica).then_some(leader),
            last_known_elr: changed(before.last_known_elr(), last_known_elr),
            replicas: changed(&before.replicas, self.replicas),
            directories: (!before.directories().eq(self.directories.iter().copied())).then_some(self.directories),
            isr: changed(&before.isr, self.isr),
            elr: changed(before.elr(), self.elr),
            adding: changed(before.adding(), self.adding),
            removing: changed(before.removing(), self.removing),
            recovery: (before.recovery() != self.recovery).then_some(self.recovery),
            ..none.clone()
        };
        if change == none && !self.supersedes {
            return None;
        }
        Some(PartitionChange { unclean: matches!(elected, Elected::Uncleanly(_)), ..change })
    }
}

fn changed(before: &[BrokerId], after: Vec<BrokerId>) -> Option<Vec<BrokerId>> {
    (*before != after).then_some(after)
}
