//! What is due without anyone's request: followers that may have lagged for too long, retention, and checkpoints of the
//! high watermark. Each costs what is due.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Bound;

use quorate_client::world;
use quorate_metadata::ids::TopicPartition;
use tracing::info;

use super::super::situation::{Situation, is_compacted};
use super::{Round, Shard};

/// Leaders looked at in one tick, of about a microsecond each; the others are looked at in the next one.
const CHECKED_PER_TICK_MAX: usize = 4_000;

/// A pass of housekeeping over all replicas begins so long after the last one began.
const HOUSEKEEPING_MS: i64 = 5_000;

/// Replicas that one tick of a pass takes, of about 5 microseconds each where there is something to do: the 100 000
/// replicas of a directory take 25 seconds.
const HOUSEKEPT_PER_TICK_MAX: usize = 1_000;

/// When leaders are to be looked at though nothing has come in for them. Each stands here once.
#[derive(Default)]
pub struct Checks {
    by_time: BTreeSet<(i64, TopicPartition)>,
    times: BTreeMap<TopicPartition, i64>,
}

impl Checks {
    /// The replica is looked at by then. An earlier time stays: what is due is decided anew when it comes.
    pub fn by(&mut self, id: TopicPartition, at_ms: i64) {
        match self.times.get(&id) {
            Some(set) if *set <= at_ms => return,
            Some(set) => _ = self.by_time.remove(&(*set, id)),
            None => {}
        }
        self.times.insert(id, at_ms);
        self.by_time.insert((at_ms, id));
    }

    /// Those that are due, up to `max`.
    pub fn take_due(&mut self, now_ms: i64, max: usize) -> Vec<TopicPartition> {
        let mut due = Vec::new();
        while due.len() < max
            && let Some(&(at_ms, id)) = self.by_time.first()
            && at_ms <= now_ms
        {
            self.by_time.pop_first();
            self.times.remove(&id);
            due.push(id);
        }
        due
    }
}

/// A change of many replicas is told of when nothing more has come for a tick, and of one that goes on every so often.
const MASS_CHANGE_TOLD_MS: i64 = 10_000;

/// What has happened to replicas since the log was told of it: one line for all, however many rounds they take.
#[derive(Debug, Default)]
pub struct MassChanges {
    counts: Counts,
    has_grown: bool,
    since_ms: Option<i64>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Counts {
    pub deleted: usize,
    /// Of the deleted ones, those that go to another directory of this broker.
    pub moved: usize,
    /// Cut back to where their leader's log agrees.
    pub truncated: usize,
    /// Begun again where their leader's log begins.
    pub restarted: usize,
}

impl MassChanges {
    pub fn count(&mut self, add: impl FnOnce(&mut Counts)) {
        add(&mut self.counts);
        self.has_grown = true;
    }

    /// To be asked once a tick. Some: it is time to tell of them.
    pub fn take(&mut self, now_ms: i64) -> Option<Counts> {
        if self.counts == Counts::default() {
            return None;
        }
        let has_grown = std::mem::take(&mut self.has_grown);
        let since_ms = *self.since_ms.get_or_insert(now_ms);
        if has_grown && now_ms - since_ms < MASS_CHANGE_TOLD_MS {
            return None;
        }
        self.take_all()
    }

    /// All that is counted and not logged yet; at the end of the shard no tick comes any more.
    pub fn take_all(&mut self) -> Option<Counts> {
        let counts = std::mem::take(self).counts;
        (counts != Counts::default()).then_some(counts)
    }
}

/// Where the pass over all replicas is.
#[derive(Default)]
pub struct Housekeeping {
    next_pass_ms: i64,
    is_under_way: bool,
    /// The last one that was looked at in this pass.
    last: Option<TopicPartition>,
}

impl Housekeeping {
    /// The next replicas of the pass under way, or of the one that is due.
    pub fn next<T>(&mut self, replicas: &BTreeMap<TopicPartition, T>, now_ms: i64) -> Vec<TopicPartition> {
        if !self.is_under_way {
            if now_ms < self.next_pass_ms {
                return Vec::new();
            }
            *self = Self { next_pass_ms: now_ms + HOUSEKEEPING_MS, is_under_way: true, last: None };
        }
        let from = self.last.map_or(Bound::Unbounded, Bound::Excluded);
        let next = replicas.range((from, Bound::Unbounded)).map(|(id, _)| *id);
        let next: Vec<_> = next.take(HOUSEKEPT_PER_TICK_MAX).collect();
        self.last = next.last().copied();
        self.is_under_way = next.len() == HOUSEKEPT_PER_TICK_MAX;
        next
    }
}

impl Shard {
    pub(super) fn tick(&mut self, round: &mut Round) {
        self.finish_deletions();
        self.fetch_on();
        for id in self.checks.take_due(self.now_ms(), CHECKED_PER_TICK_MAX) {
            if let Some(replica) = self.owned.get_mut(&id) {
                replica.tick();
                round.touched.insert(id);
            }
        }
        self.housekeep(round);
        let changes = self.mass_changes.take(self.now_ms());
        self.tell_of(changes);
    }

    /// Sends the positions that were held back for lack of room, of replicas that follow as they did.
    fn fetch_on(&mut self) {
        if self.without_room.is_empty() || self.handle.room().is_scarce() {
            return;
        }
        for _ in 0..CHECKED_PER_TICK_MAX {
            let Some((id, (source, position))) = self.without_room.pop_first() else { return };
            if self.owned.get(&id).is_some_and(|replica| replica.follows(source)) {
                self.around.fetchers.fetch(source, position, self.handle.clone());
            }
        }
    }

    pub(super) fn tell_of(&self, changes: Option<Counts>) {
        if let Some(Counts { deleted, moved, truncated, restarted }) = changes {
            info!(directory = %self.handle.directory(), deleted, moved, truncated, restarted, "replicas changed");
        }
    }

    fn housekeep(&mut self, round: &mut Round) {
        let wall_ms = world::wall_ms();
        for id in self.housekeeping.next(&self.owned, self.now_ms()) {
            let Some(replica) = self.owned.get_mut(&id) else { continue };
            if !replica.needs_housekeeping(|| is_compacted(&self.seen, self.around.broker, id)) {
                continue;
            }
            if let Some(situation) = Situation::of(&self.seen, self.around.broker, id) {
                replica.housekeep(&mut round.writes, &situation, wall_ms);
                round.touched.insert(id);
                self.note_compaction(id, &situation);
            }
        }
        self.begin_compaction();
    }
}

#[cfg(test)]
mod tests {
    use quorate_metadata::ids::{PartitionId, TopicId};

    use super::*;

    fn id(partition: usize) -> TopicPartition {
        let partition = i32::try_from(partition).expect("a few thousand");
        TopicPartition::new(TopicId::default(), PartitionId::new(partition))
    }

    #[test]
    fn only_replicas_that_are_due_are_checked() {
        let mut checks = Checks::default();
        (0..100_000).for_each(|partition| checks.by(id(partition), 10_000));
        assert!(checks.take_due(9_999, 10).is_empty());
        checks.by(id(7), 500);
        checks.by(id(7), 800);
        assert_eq!(checks.take_due(500, 10), [id(7)]);
        assert!(checks.take_due(9_999, 10).is_empty(), "each stands there once");
        assert_eq!(checks.take_due(10_000, 3), [id(0), id(1), id(2)]);
        assert_eq!(checks.take_due(10_000, usize::MAX).len(), 100_000 - 1 - 3);
        assert!(checks.take_due(10_000, usize::MAX).is_empty());
        checks.by(id(7), 20_000);
        assert_eq!(checks.take_due(20_000, 10), [id(7)], "what was looked at is looked at again");
    }

    #[test]
    fn a_mass_change_is_told_of_when_it_has_come_to_rest() {
        let mut changes = MassChanges::default();
        assert_eq!(changes.take(0), None);
        for tick in 1..=20 {
            changes.count(|counts| counts.deleted += 500);
            assert_eq!(changes.take(tick * 250), None, "it goes on");
        }
        changes.count(|counts| counts.truncated += 1);
        assert_eq!(changes.take(5_250), None);
        let all = Counts { deleted: 10_000, truncated: 1, ..Counts::default() };
        assert_eq!(changes.take(5_500), Some(all));
        assert_eq!(changes.take(5_750), None, "once");
    }

    #[test]
    fn a_mass_change_that_does_not_end_is_told_of_all_the_same() {
        let mut changes = MassChanges::default();
        let told = (0..=80).filter(|tick| {
            changes.count(|counts| counts.restarted += 1);
            changes.take(tick * 250).is_some()
        });
        assert_eq!(told.collect::<Vec<_>>(), [40]);
    }

    #[test]
    fn changes_that_no_tick_has_logged_are_logged_at_the_end() {
        let mut changes = MassChanges::default();
        assert_eq!(changes.take_all(), None);
        changes.count(|counts| counts.restarted += 1);
        assert_eq!(changes.take_all(), Some(Counts { restarted: 1, ..Counts::default() }));
        assert_eq!(changes.take_all(), None);
    }

    #[test]
    fn a_pass_takes_each_replica_once_in_bounded_slices() {
        let count = 2 * HOUSEKEPT_PER_TICK_MAX + 500;
        let replicas: BTreeMap<_, ()> = (0..count).map(|partition| (id(partition), ())).collect();
        let mut housekeeping = Housekeeping::default();
        let mut seen = Vec::new();
        for tick in 0..3 {
            let slice = housekeeping.next(&replicas, tick * 250);
            assert!(slice.len() <= HOUSEKEPT_PER_TICK_MAX);
            seen.extend(slice);
        }
        assert_eq!(seen, replicas.keys().copied().collect::<Vec<_>>());
        assert!(housekeeping.next(&replicas, HOUSEKEEPING_MS - 1).is_empty());
        assert_eq!(housekeeping.next(&replicas, HOUSEKEEPING_MS).first(), Some(&id(0)));
    }

    #[test]
    fn a_pass_over_few_replicas_is_one_slice() {
        let replicas: BTreeMap<_, ()> = (0..3).map(|partition| (id(partition), ())).collect();
        let mut housekeeping = Housekeeping::default();
        assert_eq!(housekeeping.next(&replicas, 0).len(), 3);
        assert!(housekeeping.next(&replicas, 250).is_empty());
    }
}
