use std::collections::BTreeMap;

use proptest::prelude::*;
use quorate_metadata::ids::{BrokerEpoch, BrokerId, DirectoryId, LeaderEpoch, PartitionEpoch};
use quorate_metadata::record::{LeaderRecoveryState, Partition, PartitionState};

use super::*;

const LAG_MAX_MS: i64 = 3_000;

fn broker(id: i32) -> BrokerId {
    BrokerId::new(id)
}

fn brokers(ids: &[i32]) -> Vec<BrokerId> {
    ids.iter().copied().map(BrokerId::new).collect()
}

fn at(offset: i64) -> LogOffset {
    LogOffset(offset)
}

/// Epochs of brokers are ten times their ids.
fn epoch(id: i32) -> BrokerEpoch {
    BrokerEpoch::new(i64::from(id) * 10)
}

/// The metadata and the leadership of broker 1 over it.
struct Scene {
    partition: Partition,
    active: BTreeMap<BrokerId, BrokerEpoch>,
    terms: Terms,
    leadership: Leadership,
}

impl Scene {
    fn new(isr: &[i32], min_isr: usize, log_end: i64, high_watermark: i64) -> Self {
        let state = PartitionState {
            replicas: brokers(&[1, 2, 3]),
            directories: vec![DirectoryId::UNASSIGNED; 3],
            isr: brokers(isr),
            elr: Vec::new(),
            last_known_elr: Vec::new(),
            adding: Vec::new(),
            removing: Vec::new(),
            leader: Some(broker(1)),
            recovery: LeaderRecoveryState::Recovered,
            leader_epoch: LeaderEpoch::new(7),
            partition_epoch: PartitionEpoch::new(20),
            history: Vec::new(),
        };
        Self::of(state.into(), min_isr, log_end, high_watermark)
    }

    fn of(partition: Partition, min_isr: usize, log_end: i64, high_watermark: i64) -> Self {
        let active: BTreeMap<_, _> = [1, 2, 3].map(|id| (broker(id), epoch(id))).into();
        let terms = Terms { min_isr, lag_max_ms: LAG_MAX_MS };
        let beginning = Beginning { log_end: at(log_end), high_watermark: at(high_watermark), now_ms: 0 };
        let known = Known { partition: &partition, active: &active, terms };
        let leadership = Leadership::begin(broker(1), known, beginning);
        Self { partition, active, terms, leadership }
    }

    fn fetch(&mut self, id: i32, end: i64, now_ms: i64) {
        assert!(self.leadership.on_fetch(broker(id), epoch(id), at(end), now_ms));
    }

    fn learn(&mut self, now_ms: i64) {
        let known = Known { partition: &self.partition, active: &self.active, terms: self.terms };
        self.leadership.on_metadata(known, now_ms);
    }

    fn high_watermark(&self) -> i64 {
        self.leadership.high_watermark().0
    }

    /// The members of the proposal that is due.
    fn proposed(&mut self, now_ms: i64) -> Option<(Proposal, Vec<i32>)> {
        let proposal = self.leadership.propose(now_ms)?;
        let members = proposal.isr.iter().map(|(broker, _)| broker.get()).collect();
        Some((proposal, members))
    }

    /// The controller applies the proposal.
    fn commit(&mut self, proposal: &Proposal) {
        self.partition.isr = proposal.isr.iter().map(|(broker, _)| *broker).collect();
        self.partition.partition_epoch = self.partition.partition_epoch.next();
        self.partition.set_recovery(LeaderRecoveryState::Recovered);
    }

    /// The controller applies the proposal, and the leader hears of it by its answer.
    fn apply(&mut self, proposal: &Proposal, now_ms: i64) {
        self.commit(proposal);
        let (partition_epoch, isr) = (self.partition.partition_epoch, self.partition.isr.to_vec());
        self.leadership.on_outcome(proposal, Outcome::Applied { partition_epoch, isr }, now_ms);
    }
}

#[test]
fn the_high_watermark_is_the_lowest_end_in_the_isr() {
    let mut scene = Scene::new(&[1, 2, 3], 2, 9, 4);
    assert_eq!(scene.high_watermark(), 4, "nobody has fetched");
    scene.fetch(2, 9, 1);
    assert_eq!(scene.high_watermark(), 4, "broker 3 has not fetched");
    scene.fetch(3, 6, 2);
    assert_eq!(scene.high_watermark(), 6);
    scene.fetch(3, 5, 3);
    assert_eq!(scene.high_watermark(), 6, "it never goes back");
}

#[test]
fn a_follower_that_lags_is_put_out_and_counts_until_that_is_confirmed() {
    let mut scene = Scene::new(&[1, 2, 3], 2, 9, 4);
    scene.fetch(2, 9, 1);
    scene.fetch(3, 4, 1);
    assert_eq!(scene.proposed(LAG_MAX_MS), None, "it has the time of the lag");
    scene.fetch(2, 9, LAG_MAX_MS + 1);
    let (proposal, members) = scene.proposed(LAG_MAX_MS + 1).unwrap();
    assert_eq!(members, [1, 2]);
    assert_eq!(scene.high_watermark(), 4);
    assert_eq!(scene.proposed(LAG_MAX_MS + 2), None, "one change at a time");
    scene.apply(&proposal, LAG_MAX_MS + 3);
    assert_eq!(scene.high_watermark(), 9);
}

#[test]
fn a_follower_joins_at_the_high_watermark_and_counts_from_the_asking() {
    let mut scene = Scene::new(&[1, 2], 1, 9, 9);
    scene.fetch(2, 9, 1);
    scene.fetch(3, 8, 2);
    assert_eq!(scene.proposed(2), None, "below the high watermark");
    scene.fetch(3, 9, 3);
    let (proposal, members) = scene.proposed(3).unwrap();
    assert_eq!(members, [1, 2, 3]);
    assert_eq!(proposal.isr[2].1, Some(epoch(3)));
    scene.leadership.on_append(at(12), 4);
    scene.fetch(2, 12, 5);
    assert_eq!(scene.high_watermark(), 9, "the record must reach who may already be in the ISR");
    scene.leadership.on_outcome(&proposal, Outcome::Unknown, 6);
    assert_eq!(scene.proposed(7), None, "it may have been applied");
    scene.fetch(3, 12, 8);
    assert_eq!(scene.high_watermark(), 12);
}

#[test]
fn who_would_be_put_out_again_at_once_does_not_join() {
    let mut scene = Scene::new(&[1], 2, 5, 5);
    scene.leadership.on_append(at(9), 1);
    scene.fetch(2, 5, 2);
    assert_eq!(scene.high_watermark(), 5, "it stands still while the ISR is too small");
    assert_eq!(scene.proposed(2), None, "it has all that is committed, but lags");
    scene.fetch(2, 9, LAG_MAX_MS * 2);
    let (proposal, members) = scene.proposed(LAG_MAX_MS * 2).unwrap();
    assert_eq!(members, [1, 2]);
    scene.apply(&proposal, LAG_MAX_MS * 2);
    assert_eq!(scene.proposed(LAG_MAX_MS * 2 + 1), None);
}

#[test]
fn a_follower_with_records_of_an_older_leader_does_not_join() {
    let mut scene = Scene::new(&[1], 1, 9, 4);
    scene.leadership.on_append(at(9), 1);
    scene.fetch(3, 8, 2);
    assert_eq!(scene.proposed(2), None, "this leader's epoch begins at 9");
    scene.fetch(3, 9, 3);
    assert!(scene.proposed(3).is_some());
}

#[test]
fn another_incarnation_than_the_registered_one_does_not_join() {
    let mut scene = Scene::new(&[1, 2], 1, 9, 9);
    assert!(scene.leadership.on_fetch(broker(3), epoch(2), at(9), 1));
    assert_eq!(scene.proposed(1), None);
    scene.active.remove(&broker(3));
    scene.learn(2);
    scene.fetch(3, 9, 3);
    assert_eq!(scene.proposed(3), None, "it is fenced");
}

#[test]
fn a_refused_change_leaves_what_was() {
    let mut scene = Scene::new(&[1, 2], 1, 9, 9);
    scene.fetch(2, 9, 1);
    scene.fetch(3, 9, 1);
    let (proposal, _) = scene.proposed(1).unwrap();
    scene.leadership.on_outcome(&proposal, Outcome::NotApplied, 2);
    assert_eq!(scene.leadership.isr(), brokers(&[1, 2]));
    assert!(scene.proposed(3).is_some(), "it may be asked for again");
}

#[test]
fn an_answer_that_the_metadata_has_overtaken_changes_nothing() {
    let mut scene = Scene::new(&[1, 2, 3], 1, 9, 4);
    scene.fetch(2, 9, LAG_MAX_MS + 1);
    let (first, members) = scene.proposed(LAG_MAX_MS + 1).unwrap();
    assert_eq!(members, [1, 2]);
    scene.partition.isr = brokers(&[1, 2]).into();
    scene.partition.partition_epoch = PartitionEpoch::new(21);
    scene.learn(LAG_MAX_MS + 2);
    scene.fetch(3, 9, LAG_MAX_MS + 3);
    let (_, members) = scene.proposed(LAG_MAX_MS + 3).unwrap();
    assert_eq!(members, [1, 2, 3]);
    scene.leadership.on_outcome(&first, Outcome::NotApplied, LAG_MAX_MS + 4);
    assert_eq!(scene.proposed(LAG_MAX_MS + 5), None, "the second one is still under way");
}

#[test]
fn nothing_is_committed_while_the_isr_is_too_small() {
    let mut scene = Scene::new(&[1], 2, 9, 4);
    assert_eq!(scene.leadership.durability(), Durability::NotEnough);
    scene.leadership.on_append(at(12), 1);
    assert_eq!(scene.high_watermark(), 4);
    scene.fetch(2, 12, 2);
    let (proposal, _) = scene.proposed(2).unwrap();
    assert_eq!(scene.high_watermark(), 4, "asked for is not committed");
    scene.apply(&proposal, 3);
    assert_eq!(scene.high_watermark(), 12);
}

#[test]
fn a_dead_follower_outside_the_isr_holds_nobody_up() {
    let mut scene = Scene::new(&[1, 2, 3], 1, 9, 9);
    scene.fetch(2, 9, 1);
    scene.fetch(3, 9, 1);
    scene.leadership.on_append(at(12), 2);
    scene.fetch(2, 12, 3);
    assert_eq!(scene.high_watermark(), 9);
    scene.partition.isr = brokers(&[1, 2]).into();
    scene.partition.partition_epoch = PartitionEpoch::new(21);
    scene.active.remove(&broker(3));
    scene.learn(4);
    assert_eq!(scene.high_watermark(), 12);
}

#[test]
fn a_leader_elected_uncleanly_says_first_that_it_is_ready() {
    let mut partition = Scene::new(&[1], 1, 0, 0).partition;
    partition.set_recovery(LeaderRecoveryState::Recovering);
    let mut scene = Scene::of(partition, 1, 9, 4);
    scene.fetch(2, 9, 1);
    let (proposal, members) = scene.proposed(1).unwrap();
    assert_eq!(members, [1]);
    scene.apply(&proposal, 2);
    let (_, members) = scene.proposed(3).unwrap();
    assert_eq!(members, [1, 2]);
}

#[derive(Debug, Clone)]
enum Step {
    Append(i64),
    Fetch { id: i32, behind: i64 },
    Propose,
    Answer { applied: bool, heard: bool },
    Fence(i32),
    Unfence(i32),
    Learn,
    Wait(i64),
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        (1..5i64).prop_map(Step::Append),
        (2..4i32, 0..4i64).prop_map(|(id, behind)| Step::Fetch { id, behind }),
        Just(Step::Propose),
        (any::<bool>(), any::<bool>()).prop_map(|(applied, heard)| Step::Answer { applied, heard }),
        (2..4i32).prop_map(Step::Fence),
        (2..4i32).prop_map(Step::Unfence),
        Just(Step::Learn),
        (1..2_000i64).prop_map(Step::Wait),
    ]
}

/// A leader and a controller that really hold what they say, to check the leader's view against.
struct Model {
    scene: Scene,
    now_ms: i64,
    log_end: i64,
    /// What each follower has, which the leader learns only from fetches.
    ends: BTreeMap<i32, i64>,
    under_way: Option<Proposal>,
}

impl Model {
    fn new(min_isr: usize) -> Self {
        let scene = Scene::new(&[1, 2, 3], min_isr, 0, 0);
        Self { scene, now_ms: 0, log_end: 0, ends: [(2, 0), (3, 0)].into(), under_way: None }
    }

    fn take(&mut self, step: &Step) {
        match *step {
            Step::Append(records) => {
                self.log_end += records;
                self.scene.leadership.on_append(at(self.log_end), self.now_ms);
            }
            Step::Fetch { id, behind } => {
                let end = (self.log_end - behind).max(self.ends[&id]);
                self.ends.insert(id, end);
                self.scene.fetch(id, end, self.now_ms);
            }
            Step::Propose => {
                if let Some((proposal, _)) = self.scene.proposed(self.now_ms) {
                    self.check(&proposal);
                    self.under_way = Some(proposal);
                }
            }
            Step::Answer { applied, heard } => self.answer(applied, heard),
            Step::Fence(id) => {
                self.scene.active.remove(&broker(id));
                if self.scene.partition.isr.contains(&broker(id)) {
                    let stay = self.scene.partition.isr.iter().copied().filter(|member| *member != broker(id));
                    self.scene.partition.isr = stay.collect();
                    self.scene.partition.partition_epoch = self.scene.partition.partition_epoch.next();
                }
            }
            Step::Unfence(id) => {
                self.scene.active.insert(broker(id), epoch(id));
            }
            Step::Learn => self.scene.learn(self.now_ms),
            Step::Wait(ms) => self.now_ms += ms,
        }
    }

    /// The controller decides by compare-and-set, as it does; the answer may get lost, the metadata comes later.
    fn answer(&mut self, applied: bool, heard: bool) {
        let Some(proposal) = self.under_way.take() else { return };
        let is_current = proposal.partition_epoch == self.scene.partition.partition_epoch;
        let eligible = proposal.isr[1..].iter().all(|(member, _)| self.scene.active.contains_key(member));
        match (applied && is_current && eligible, heard) {
            (true, true) => self.scene.apply(&proposal, self.now_ms),
            (true, false) => {
                self.scene.commit(&proposal);
                self.scene.leadership.on_outcome(&proposal, Outcome::Unknown, self.now_ms);
            }
            // Overtaken by a change that the leader has yet to learn of, or refused for a member's sake.
            (false, true) if is_current => {
                self.scene.leadership.on_outcome(&proposal, Outcome::NotApplied, self.now_ms);
            }
            (false, _) => self.scene.leadership.on_outcome(&proposal, Outcome::Unknown, self.now_ms),
        }
    }

    fn check(&self, proposal: &Proposal) {
        assert!(self.under_way.as_ref().is_none_or(|other| other.partition_epoch != proposal.partition_epoch));
        assert_eq!(proposal.isr[0].0, broker(1), "the leader is a member");
        for (member, _) in &proposal.isr[1..] {
            let is_new = !self.scene.leadership.isr().contains(member);
            let end = self.scene.leadership.end_of(*member).map_or(0, |end| end.0);
            assert!(!is_new || end >= self.scene.high_watermark(), "broker {member} joins at the high watermark");
        }
    }
}

proptest! {
    #[test]
    fn what_is_committed_is_on_every_member_of_the_isr(
        min_isr in 1..4usize,
        steps in proptest::collection::vec(step(), 1..120),
    ) {
        let mut model = Model::new(min_isr);
        for step in &steps {
            let before = model.scene.high_watermark();
            model.take(step);
            let committed = model.scene.high_watermark();
            prop_assert!(committed >= before, "{step:?} takes the high watermark back");
            prop_assert!(committed <= model.log_end);
            for member in &model.scene.partition.isr {
                let end = model.ends.get(&member.get()).copied().unwrap_or(model.log_end);
                prop_assert!(end >= committed, "{step:?}: broker {member} ends at {end}, {committed} is committed");
            }
            let is_small = model.scene.leadership.isr().len() < min_isr;
            prop_assert!(!is_small || committed == before, "{step:?} commits below min.insync.replicas");
        }
    }
}

proptest! {
    #[test]
    fn until_the_lag_is_due_time_alone_changes_nothing(
        min_isr in 1..4usize,
        steps in proptest::collection::vec(step(), 1..60),
    ) {
        let mut model = Model::new(min_isr);
        for step in &steps {
            model.take(step);
            let at_ms = |now_ms| {
                let mut leadership = model.scene.leadership.clone();
                leadership.on_append(at(model.log_end), now_ms);
                (leadership.propose(now_ms), leadership.high_watermark())
            };
            let due = model.scene.leadership.lag_due_ms(model.now_ms);
            let last = due.map_or(model.now_ms + 100 * LAG_MAX_MS, |due| due - 1);
            prop_assert_eq!(at_ms(model.now_ms), at_ms(last), "{:?}: due at {:?}", step, due);
        }
    }
}

#[test]
fn only_a_follower_that_is_behind_is_due() {
    let mut scene = Scene::new(&[1, 2, 3], 2, 9, 4);
    assert_eq!(scene.leadership.lag_due_ms(0), Some(LAG_MAX_MS + 1), "nobody has fetched");
    scene.fetch(2, 9, 10);
    scene.fetch(3, 9, 20);
    assert_eq!(scene.leadership.lag_due_ms(20), None, "all have everything");
    scene.leadership.on_append(at(12), 30);
    assert_eq!(scene.leadership.lag_due_ms(30), Some(10 + LAG_MAX_MS + 1));
    assert_eq!(scene.proposed(10 + LAG_MAX_MS), None);
    assert!(scene.proposed(10 + LAG_MAX_MS + 1).is_some());
}

#[test]
fn who_leads_on_after_a_pause_gives_its_followers_time() {
    let mut scene = Scene::new(&[1, 2, 3], 2, 10, 10);
    for follower in [2, 3] {
        assert!(scene.leadership.on_fetch(broker(follower), epoch(follower), at(10), 0));
    }
    scene.leadership.on_append(at(12), 0);
    let resumed_ms = 2 * LAG_MAX_MS;
    scene.leadership.resume(resumed_ms);
    assert_eq!(scene.leadership.propose(resumed_ms), None);
    let shrunk = scene.leadership.propose(resumed_ms + LAG_MAX_MS + 1).expect("nobody has come since");
    assert_eq!(shrunk.isr.iter().map(|(member, _)| *member).collect::<Vec<_>>(), brokers(&[1]));
}
