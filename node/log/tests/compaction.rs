//! Whatever happens to a log that is compacted, with a crash anywhere: a reader finds the last value of each key, each record
//! that is left where it was appended, and a follower gets as far as its leader.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::collections::BTreeMap;

use proptest::prelude::*;
use quorate_log::{
    Compaction, CompactionBounds, CompactionPolicy, CompactionStep, Flush, LogDirectory, LogOffset, MemoryLogs,
    NewBatch, PartitionLog, Producer, Producers, Record, StoredBatch, Writes,
};
use quorate_metadata::ids::{DirectoryId, LeaderEpoch, PartitionId, TopicId, TopicPartition};

const SEGMENT_BYTES: u64 = 300;
/// Longer than any of these runs.
const FOREVER_MS: i64 = 1 << 40;

#[derive(Debug, Clone)]
enum Step {
    /// Keys, each with a value or none.
    Append {
        records: Vec<(u8, Option<u8>)>,
        producer: Option<i64>,
        epoch_grows: bool,
    },
    /// A share of what is not committed, in thousandths.
    Commit(u64),
    Truncate(u64),
    AdvanceStart(u64),
    /// So many steps of a compaction, of the one under way or of a new one.
    Compact(usize),
    Wait(i64),
    Replicate(usize),
    Write,
    Crash,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let records = prop::collection::vec((0..5u8, prop::option::weighted(0.8, any::<u8>())), 1..6);
    let step = prop_oneof![
        10 => (records, prop::option::of(0..3i64), prop::bool::weighted(0.1))
            .prop_map(|(records, producer, epoch_grows)| Step::Append { records, producer, epoch_grows }),
        4 => (0..=1000u64).prop_map(Step::Commit),
        1 => (0..=1000u64).prop_map(Step::Truncate),
        1 => (0..300u64).prop_map(Step::AdvanceStart),
        6 => (1..12usize).prop_map(Step::Compact),
        2 => (1..100i64).prop_map(Step::Wait),
        3 => (1..5usize).prop_map(Step::Replicate),
        4 => Just(Step::Write),
        1 => Just(Step::Crash),
    ];
    prop::collection::vec(step, 1..80)
}

/// All that was appended and not truncated, as if it were not compacted.
#[derive(Debug, Clone, Default)]
struct Model {
    batches: Vec<StoredBatch>,
    epoch: i32,
    start: i64,
    high_watermark: i64,
}

impl Model {
    fn end(&self) -> i64 {
        self.batches.last().map_or(0, |batch| batch.next_offset().0)
    }

    fn producers(&self) -> Producers {
        let mut producers = Producers::default();
        self.batches.iter().for_each(|batch| producers.record(batch));
        producers
    }

    fn next_sequence(&self, id: i64) -> i32 {
        let last = self.batches.iter().rev().find(|batch| batch.producer().is_some_and(|producer| producer.id == id));
        last.map_or(0, |last| last.producer().unwrap().base_sequence + last.record_count().cast_signed())
    }

    fn epochs(&self) -> Vec<(i32, i64)> {
        let mut epochs: Vec<(i32, i64)> = Vec::new();
        for batch in self.batches.iter().filter(|batch| batch.next_offset().0 > self.start) {
            let epoch = batch.leader_epoch().get();
            if epochs.last().is_none_or(|(last, _)| *last != epoch) {
                epochs.push((epoch, batch.base_offset().0.max(self.start)));
            }
        }
        epochs
    }
}

fn records_of(batches: &[StoredBatch]) -> BTreeMap<i64, Record> {
    let of = |batch: &StoredBatch| {
        let base = batch.base_offset().0;
        let at = move |record: Record| (base + i64::from(record.offset_delta), record);
        batch.decode_records().unwrap().into_iter().map(at)
    };
    batches.iter().flat_map(of).collect()
}

/// The last value of each key that was not deleted, from `start` on.
fn values(batches: &[StoredBatch], start: i64) -> BTreeMap<Vec<u8>, Vec<u8>> {
    let mut values = BTreeMap::new();
    for (_, record) in records_of(batches).range(start..) {
        let key = record.key.as_ref().unwrap().to_vec();
        match &record.value {
            Some(value) => values.insert(key, value.to_vec()),
            None => values.remove(&key),
        };
    }
    values
}

fn read(log: &PartitionLog, from: i64) -> Vec<StoredBatch> {
    log.reader().read(LogOffset(from), LogOffset(i64::MAX), usize::MAX).unwrap()
}

fn directory_in(logs: &MemoryLogs) -> LogDirectory {
    LogDirectory::in_memory(logs, Flush::Os)
}

fn disk(id: u8) -> MemoryLogs {
    MemoryLogs::new(DirectoryId::from_bytes([id; 16]))
}

fn partition() -> TopicPartition {
    TopicPartition::new(TopicId::from_bytes([3; 16]), PartitionId::new(1))
}

/// A follower of the log under test.
struct Follower {
    directory: LogDirectory,
    log: PartitionLog,
}

impl Follower {
    fn new(id: u8) -> Self {
        let directory = directory_in(&disk(id));
        let mut log = directory.log(partition(), 0).unwrap();
        log.set_segment_bytes(SEGMENT_BYTES);
        Self { directory, log }
    }

    /// Fetches so many batches as a follower does, by what the leader has on disk.
    fn fetch(&mut self, leader: &PartitionLog, batches_max: usize, now_ms: i64) {
        let mut writes = self.directory.begin();
        let last = self.log.last_epoch();
        let is_unknown = last.is_some_and(|last| leader.end_of_epoch(last).is_none());
        if is_unknown || self.log.log_end() < leader.log_start() {
            self.log.start_at(&mut writes, leader.log_start());
        }
        while let Some(last) = self.log.last_epoch()
            && let Some((epoch, leader_end)) = leader.end_of_epoch(last)
            && (epoch != last || leader_end < self.log.log_end())
        {
            let own_end = self.log.end_of_epoch(epoch).map_or(self.log.log_start(), |(_, end)| end);
            self.log.truncate_to(&mut writes, leader_end.min(own_end)).unwrap();
        }
        let batches = read(leader, self.log.log_end().0);
        self.log.allow_gaps_below(&mut writes, leader.reader().gaps_below());
        for batch in batches.iter().take(batches_max) {
            self.log.append_as_follower(&mut writes, batch, now_ms).unwrap();
        }
        self.directory.commit(writes).unwrap();
    }

    /// Its own, of what it knows to be committed.
    fn compact(&mut self, policy: &CompactionPolicy, high_watermark: LogOffset, now_ms: i64) {
        let Some(mut compaction) = self.log.compaction(policy, high_watermark.min(self.log.log_end()), now_ms) else {
            return;
        };
        loop {
            let mut writes = self.directory.begin();
            match compaction.step().unwrap() {
                CompactionStep::Read => {}
                CompactionStep::Write(rewritten) => assert!(self.log.rewrite(&mut writes, &rewritten)),
                CompactionStep::Done(end) => {
                    assert!(self.log.end_compaction(&mut writes, &end));
                    return self.directory.commit(writes).unwrap();
                }
            }
            self.directory.commit(writes).unwrap();
        }
    }
}

struct World {
    disk: MemoryLogs,
    directory: LogDirectory,
    log: PartitionLog,
    writes: Writes,
    running: Option<Compaction>,
    follower: Follower,
    policy: CompactionPolicy,
    now_ms: i64,
    model: Model,
    committed: Model,
}

impl World {
    fn new(delete_retention_ms: i64) -> Self {
        let disk = disk(1);
        let directory = directory_in(&disk);
        let mut log = directory.log(partition(), 0).unwrap();
        log.set_segment_bytes(SEGMENT_BYTES);
        Self {
            disk,
            directory,
            log,
            writes: Writes::default(),
            running: None,
            follower: Follower::new(2),
            policy: CompactionPolicy { min_dirty_ratio: 0.0, delete_retention_ms, min_lag_ms: 0, max_lag_ms: i64::MAX },
            now_ms: 1_000,
            model: Model::default(),
            committed: Model::default(),
        }
    }

    fn append(&mut self, records: &[(u8, Option<u8>)], producer: Option<i64>, epoch_grows: bool) {
        self.model.epoch += i32::from(epoch_grows);
        let record = |(key, value): &(u8, Option<u8>)| Record {
            offset_delta: 0,
            timestamp_ms: self.now_ms - i64::from(*key),
            key: Some(vec![*key].into()),
            value: value.map(|value| vec![value].into()),
            headers: Vec::new(),
        };
        let producer = producer.map(|id| Producer { id, epoch: 0, base_sequence: self.model.next_sequence(id) });
        let batch = NewBatch::of(records.iter().map(record).collect(), producer).unwrap();
        let epoch = LeaderEpoch::new(self.model.epoch);
        let appended = self.log.append_as_leader(&mut self.writes, &batch, epoch, self.now_ms).unwrap();
        self.model.batches.push(appended.batch.unwrap());
    }

    fn write(&mut self) {
        self.directory.commit(std::mem::take(&mut self.writes)).unwrap();
        self.committed = self.model.clone();
    }

    fn crash(&mut self) {
        (self.running, self.writes) = (None, Writes::default());
        self.directory = directory_in(&self.disk);
        self.log = self.directory.log(partition(), self.now_ms).unwrap();
        self.log.set_segment_bytes(SEGMENT_BYTES);
        self.model = self.committed.clone();
    }

    fn compact(&mut self, steps: usize) {
        // As the owner of a directory does: what is read was committed by the round before.
        self.write();
        if self.running.is_none() {
            let bounds = CompactionBounds { keys_bytes: 150, read_bytes: 100, written_bytes: 50 };
            let below = self.log.high_watermark();
            self.running = self.log.bounded_compaction(&self.policy, below, self.now_ms, bounds);
        }
        for _ in 0..steps {
            let Some(running) = &mut self.running else { return };
            let goes_on = match running.step().unwrap() {
                CompactionStep::Read => true,
                CompactionStep::Write(rewritten) => self.log.rewrite(&mut self.writes, &rewritten),
                CompactionStep::Done(end) => {
                    self.log.end_compaction(&mut self.writes, &end);
                    false
                }
            };
            if !goes_on {
                self.running = None;
            }
            self.write();
        }
    }

    fn play(&mut self, step: &Step) {
        match step {
            Step::Append { records, producer, epoch_grows } => self.append(records, *producer, *epoch_grows),
            Step::Commit(share) => {
                let open = self.model.end() - self.model.high_watermark;
                self.model.high_watermark += open * i64::try_from(*share).unwrap() / 1000;
                self.log.checkpoint_high_watermark(&mut self.writes, LogOffset(self.model.high_watermark));
            }
            Step::Truncate(share) => {
                self.write();
                let open = self.model.end() - self.model.high_watermark;
                let to = self.model.high_watermark + open * i64::try_from(*share).unwrap() / 1000;
                // Within a batch it would take what is committed of it.
                let cut = self.model.batches.iter().find(|batch| batch.base_offset().0 >= to);
                let to = cut.map_or(self.model.end(), |batch| batch.base_offset().0);
                self.log.truncate_to(&mut self.writes, LogOffset(to)).unwrap();
                self.model.batches.retain(|batch| batch.next_offset().0 <= to);
                // A log is truncated to follow another leader.
                self.model.epoch += 1;
                self.write();
            }
            Step::AdvanceStart(share) => {
                let share = i64::try_from(*share).unwrap();
                let to = self.model.start + (self.model.high_watermark - self.model.start) * share / 1000;
                // As retention does, which goes by segments.
                let ends = self.model.batches.iter().map(|batch| batch.next_offset().0);
                let to = ends.filter(|end| *end <= to).last().unwrap_or(0).max(self.model.start);
                self.log.advance_log_start(&mut self.writes, LogOffset(to));
                self.model.start = to;
            }
            Step::Compact(steps) => self.compact(*steps),
            Step::Wait(ms) => self.now_ms += ms,
            Step::Replicate(count) => {
                self.write();
                self.follower.fetch(&self.log, *count, self.now_ms);
                if count % 2 == 0 {
                    self.follower.compact(&self.policy, LogOffset(self.model.high_watermark), self.now_ms);
                }
            }
            Step::Write => self.write(),
            Step::Crash => self.crash(),
        }
        self.check();
    }

    fn check(&self) {
        let model = &self.model;
        assert_eq!((self.log.log_start().0, self.log.log_end().0), (model.start, model.end()));
        assert_eq!(self.log.producers(), &model.producers());
        let epochs = self.log.epochs().starts().iter().map(|(epoch, start)| (epoch.get(), start.0));
        assert_eq!(epochs.filter(|(_, start)| *start < model.end()).collect::<Vec<_>>(), model.epochs());
        self.check_records();
    }

    fn check_records(&self) {
        let (start, all) = (self.committed.start, records_of(&self.committed.batches));
        let found = read(&self.log, start);
        assert_eq!(values(&found, start), values(&self.committed.batches, start));
        let records = records_of(&found);
        for (offset, record) in &records {
            assert_eq!(all.get(offset), Some(record), "record {offset}");
        }
        let untouched = self.log.reader().gaps_below().0.max(start);
        assert!(all.range(untouched..).all(|(offset, _)| records.contains_key(offset)));
        let ends: Vec<_> = self.log.segments().closed().iter().map(|segment| segment.end).collect();
        let last = |end: &LogOffset| found.iter().any(|batch| batch.next_offset() == *end);
        assert!(
            ends.iter().filter(|end| end.0 > start && end.0 <= self.committed.end()).all(last),
            "a segment ends with a batch"
        );
    }

    /// Where nothing is under way, each key is below it once.
    fn check_clean(&self) {
        let cleaned_to = self.log.cleaned_to().0;
        let records = records_of(&read(&self.log, self.model.start));
        let mut keys: Vec<_> = records.range(..cleaned_to).map(|(_, record)| record.key.clone()).collect();
        let count = keys.len();
        keys.sort();
        keys.dedup();
        assert_eq!(keys.len(), count, "a key is there twice below {cleaned_to}");
        let bytes: u64 = read(&self.log, 0).iter().map(StoredBatch::size_bytes).sum();
        assert_eq!(self.log.size_bytes(), bytes);
    }

    fn check_follower(&self, follower: &Follower, knows_tombstones: bool) {
        let log = &follower.log;
        assert_eq!(log.log_end(), self.log.log_end());
        let same = |epoch: &i32| {
            let epoch = LeaderEpoch::new(*epoch);
            log.end_of_epoch(epoch) == self.log.end_of_epoch(epoch)
        };
        let is_whole = self.model.start == 0;
        assert!(
            !is_whole || (0..=self.model.epoch).all(|epoch| same(&epoch)),
            "{:?} {:?}",
            log.epochs(),
            self.log.epochs()
        );
        if knows_tombstones {
            let start = log.log_start().0.max(self.model.start);
            assert_eq!(values(&read(log, start), start), values(&self.model.batches, start));
        }
        if is_whole {
            assert_eq!(log.producers(), self.log.producers());
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 1024, ..ProptestConfig::default() })]

    #[test]
    fn a_compacted_log_is_what_a_naive_model_says(
        steps in steps(),
        delete_retention_ms in prop_oneof![Just(0), Just(50), Just(FOREVER_MS)],
    ) {
        let mut world = World::new(delete_retention_ms);
        steps.iter().for_each(|step| world.play(step));
        // To the end of a compaction, and of all that becomes due by it.
        world.play(&Step::Commit(1000));
        for _ in 0..50 {
            world.compact(1_000);
        }
        world.check();
        world.check_clean();
        let mut fresh = Follower::new(3);
        for follower in [&mut fresh, &mut world.follower] {
            follower.fetch(&world.log, usize::MAX, world.now_ms);
        }
        world.check_follower(&fresh, true);
        // One that has lagged for longer than tombstones are kept may have what was deleted, as in Kafka.
        world.check_follower(&world.follower, delete_retention_ms == FOREVER_MS);
        world.crash();
        world.check();
    }
}

/// A log with a batch of one record for each pair, in segments of three.
fn log_of(records: &[(Option<&'static str>, Option<&'static str>)]) -> World {
    let mut world = World::new(FOREVER_MS);
    for (key, value) in records {
        let record = Record {
            offset_delta: 0,
            timestamp_ms: world.now_ms,
            key: key.map(Into::into),
            value: value.map(Into::into),
            headers: Vec::new(),
        };
        let batch = NewBatch::of(vec![record], None).unwrap();
        let epoch = LeaderEpoch::new(0);
        world.log.set_segment_bytes(210);
        world.log.append_as_leader(&mut world.writes, &batch, epoch, world.now_ms).unwrap();
    }
    let end = world.log.log_end();
    world.log.checkpoint_high_watermark(&mut world.writes, end);
    world
}

fn offsets(world: &World) -> Vec<i64> {
    records_of(&read(&world.log, 0)).into_keys().collect()
}

#[test]
fn the_active_segment_is_not_compacted() {
    let mut world = log_of(&[(Some("a"), Some("1")); 5]);
    world.compact(100);
    assert_eq!(offsets(&world), [2, 3, 4]);
}

#[test]
fn what_is_not_committed_is_not_compacted() {
    let mut world = log_of(&[(Some("a"), Some("1")); 10]);
    world.write();
    assert!(world.log.compaction(&world.policy, LogOffset(2), world.now_ms).is_none());
    world.running = world.log.compaction(&world.policy, LogOffset(5), world.now_ms);
    world.compact(100);
    assert_eq!(offsets(&world), [2, 3, 4, 5, 6, 7, 8, 9]);
}

#[test]
fn records_without_a_key_do_not_stay() {
    let mut world = log_of(&[(None, Some("1")), (Some("a"), Some("2")), (None, None), (Some("b"), None)]);
    world.compact(100);
    assert_eq!(offsets(&world), [1, 3]);
}

#[test]
fn lags_and_ratio_decide_when_a_log_is_compacted() {
    let mut world = log_of(&[(Some("a"), Some("1")); 7]);
    world.write();
    let due = |world: &World, policy: CompactionPolicy| {
        world.log.compaction(&policy, world.log.high_watermark(), world.now_ms).is_some()
    };
    let lazy = CompactionPolicy { min_dirty_ratio: 1.0, ..world.policy };
    assert!(due(&world, world.policy) && !due(&world, lazy));
    world.now_ms += 100;
    assert!(!due(&world, CompactionPolicy { max_lag_ms: 100, ..lazy }));
    assert!(due(&world, CompactionPolicy { max_lag_ms: 99, ..lazy }));
    assert!(due(&world, CompactionPolicy { min_lag_ms: 100, ..world.policy }));
    assert!(!due(&world, CompactionPolicy { min_lag_ms: 101, max_lag_ms: 99, ..world.policy }));
    world.compact(100);
    assert!(!due(&world, world.policy), "nothing is dirty");
}

#[test]
fn a_tombstone_goes_when_its_time_is_over() {
    let mut world =
        log_of(&[(Some("a"), Some("1")), (Some("a"), None), (Some("b"), Some("1")), (Some("c"), Some("1"))]);
    world.policy.delete_retention_ms = 50;
    world.compact(100);
    assert_eq!(offsets(&world), [1, 2, 3]);
    world.now_ms += 49;
    world.compact(100);
    assert_eq!(offsets(&world), [1, 2, 3]);
    world.now_ms += 1;
    world.compact(100);
    assert_eq!(offsets(&world), [2, 3]);
}

#[test]
fn small_segments_become_one() {
    let mut world = log_of(&[(Some("a"), Some("1")); 31]);
    assert_eq!(world.log.segments().closed().len(), 10);
    world.compact(1_000);
    assert!(world.log.segments().closed().len() <= 4, "{:?}", world.log.segments());
    world.crash();
    assert_eq!((world.log.log_end(), world.log.segments().closed().len() <= 4), (LogOffset(31), true));
}

#[test]
fn a_compaction_ends_where_the_log_was_truncated() {
    let mut world = log_of(&[(Some("a"), Some("1")); 7]);
    world.write();
    let mut compaction = world.log.compaction(&world.policy, LogOffset(7), world.now_ms).unwrap();
    let rewritten = loop {
        if let CompactionStep::Write(rewritten) = compaction.step().unwrap() {
            break rewritten;
        }
    };
    world.log.truncate_to(&mut world.writes, LogOffset(2)).unwrap();
    assert!(!world.log.rewrite(&mut world.writes, &rewritten));
    let CompactionStep::Done(end) = compaction.step().unwrap() else { panic!("it has read all") };
    assert!(!world.log.end_compaction(&mut world.writes, &end));
    world.directory.commit(std::mem::take(&mut world.writes)).unwrap();
    assert_eq!(offsets(&world), [0, 1]);
}

#[test]
fn a_missing_batch_is_damage_where_nothing_was_compacted() {
    let mut world = log_of(&[(Some("a"), Some("1")); 7]);
    world.write();
    let mut follower = Follower::new(4);
    let mut writes = follower.directory.begin();
    let batches = read(&world.log, 3);
    assert!(follower.log.append_as_follower(&mut writes, &batches[0], 0).is_err());
    follower.log.allow_gaps_below(&mut writes, LogOffset(2));
    assert!(follower.log.append_as_follower(&mut writes, &batches[0], 0).is_err());
    follower.log.allow_gaps_below(&mut writes, LogOffset(3));
    follower.log.append_as_follower(&mut writes, &batches[0], 0).unwrap();
    follower.directory.commit(writes).unwrap();
    assert_eq!(follower.directory.log(partition(), 0).unwrap().log_end(), LogOffset(4));
}

#[test]
fn a_segment_that_is_too_old_is_closed() {
    let mut world = World::new(FOREVER_MS);
    let bases = |world: &World| world.log.segments().all().map(|segment| segment.base.0).collect::<Vec<_>>();
    world.log.set_segment_ms(50);
    world.append(&[(1, Some(1))], None, false);
    world.now_ms += 50;
    world.append(&[(1, Some(2))], None, false);
    assert_eq!(bases(&world), [0]);
    world.now_ms += 1;
    world.append(&[(1, Some(3))], None, false);
    assert_eq!(bases(&world), [0, 2], "its first batch was appended 51 ms ago");
    world.log.roll_old_segment(&mut world.writes, world.now_ms + 50);
    assert_eq!(bases(&world), [0, 2]);
    world.log.roll_old_segment(&mut world.writes, world.now_ms + 51);
    world.log.roll_old_segment(&mut world.writes, world.now_ms + 1_000);
    assert_eq!(bases(&world), [0, 2, 3], "an empty one stays");
}
