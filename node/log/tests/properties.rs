//! Whatever happens to a log, in whatever order, with a crash anywhere: it is what a naive model says.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use proptest::prelude::*;
use quorate_log::{
    AppendRefused, Flush, LogDirectory, LogOffset, MemoryLogs, NewBatch, PartitionLog, Producer, Producers, Retention,
    StoredBatch, Writes,
};
use quorate_metadata::ids::{DirectoryId, LeaderEpoch, PartitionId, TopicId, TopicPartition};

const SEGMENT_BYTES: u64 = 200;

#[derive(Debug, Clone)]
enum Step {
    /// Of a producer, if any: at a distance from the sequence that is next.
    Lead {
        count: u32,
        producer: Option<(i64, i32)>,
        epoch_grows: bool,
    },
    Follow {
        count: u32,
        producer: Option<i64>,
        epoch_change: i32,
    },
    BeginEpoch(i32),
    /// A share of the log, in thousandths: beyond 1000 is beyond its end.
    Truncate(u64),
    StartAt(u64),
    AdvanceStart(u64),
    Retain {
        bytes: u64,
    },
    HighWatermark(u64),
    Commit,
    Crash,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        8 => (1..6u32, prop::option::of((0..3i64, -3..3i32)), prop::bool::weighted(0.1))
            .prop_map(|(count, producer, epoch_grows)| Step::Lead { count, producer, epoch_grows }),
        6 => (1..6u32, prop::option::of(0..3i64), -1..2i32)
            .prop_map(|(count, producer, epoch_change)| Step::Follow { count, producer, epoch_change }),
        2 => (0..3i32).prop_map(Step::BeginEpoch),
        2 => (0..1100u64).prop_map(Step::Truncate),
        1 => (0..1500u64).prop_map(Step::StartAt),
        2 => (0..1100u64).prop_map(Step::AdvanceStart),
        1 => (0..600u64).prop_map(|bytes| Step::Retain { bytes }),
        2 => (0..1100u64).prop_map(Step::HighWatermark),
        4 => Just(Step::Commit),
        2 => Just(Step::Crash),
    ];
    prop::collection::vec(step, 1..60)
}

/// Every batch since the log last began anew, and the epoch of every leader that began, as an event at an offset.
#[derive(Debug, Clone, Default)]
struct Model {
    first: i64,
    batches: Vec<StoredBatch>,
    begun: Vec<(i32, i64)>,
    start: i64,
    high_watermark: i64,
}

impl Model {
    fn end(&self) -> i64 {
        self.batches.last().map_or(self.first, |batch| batch.next_offset().0)
    }

    fn begin(&mut self, epoch: i32) {
        if self.last_epoch().is_none_or(|last| epoch > last) {
            self.begun.push((epoch, self.end()));
        }
    }

    fn push(&mut self, batch: StoredBatch) {
        self.begin(batch.leader_epoch().get());
        self.batches.push(batch);
    }

    /// Of epochs begun at one offset only the last has records, now or later.
    fn epochs(&self) -> Vec<(i32, i64)> {
        let begun = &self.begun;
        let has_say = |at: usize| begun.get(at + 1).is_none_or(|next| next.1 > begun[at].1.max(self.start));
        (0..begun.len()).filter(|&at| has_say(at)).map(|at| (begun[at].0, begun[at].1.max(self.start))).collect()
    }

    fn last_epoch(&self) -> Option<i32> {
        self.begun.last().map(|&(epoch, _)| epoch)
    }

    fn truncate(&mut self, offset: i64) {
        if offset < self.start {
            return self.start_at(offset);
        }
        self.batches.retain(|batch| batch.next_offset().0 <= offset);
        let end = self.end();
        // An epoch that begins at the log start has its clipped start there.
        let start = self.start;
        self.begun.retain(|&(_, begun)| begun.max(start) < end);
        self.start = self.start.min(end);
        self.high_watermark = self.high_watermark.min(end);
    }

    fn start_at(&mut self, offset: i64) {
        *self = Self { first: offset, start: offset, high_watermark: offset, ..Self::default() };
    }

    fn advance(&mut self, offset: i64) {
        self.start = self.start.max(offset.min(self.end()));
        self.high_watermark = self.high_watermark.max(self.start);
    }

    fn producers(&self) -> Producers {
        let mut producers = Producers::default();
        self.batches.iter().for_each(|batch| producers.record(batch));
        producers
    }

    /// Mostly of what is readable, also a little below it.
    fn share(&self, thousandths: u64) -> i64 {
        let from = self.first.max(self.start - 3);
        from + (self.end() - from) * i64::try_from(thousandths).unwrap() / 1000
    }

    /// The sequence after the last of what the producer wrote.
    fn next_sequence(&self, id: i64) -> i32 {
        let last = self.batches.iter().rev().find(|batch| batch.producer().is_some_and(|producer| producer.id == id));
        last.map_or(0, |last| last.producer().unwrap().base_sequence + last.record_count().cast_signed())
    }
}

struct World {
    place: Place,
    open: Option<(LogDirectory, PartitionLog)>,
    writes: Writes,
    model: Model,
    committed: Model,
}

/// Both tables keep what the model keeps.
enum Place {
    Disk(tempfile::TempDir),
    Memory(MemoryLogs),
}

/// When everything here happens.
const NOW_MS: i64 = 1_000;

fn partition() -> TopicPartition {
    TopicPartition::new(TopicId::from_bytes([3; 16]), PartitionId::new(1))
}

fn batch(count: u32, producer: Option<Producer>) -> NewBatch {
    NewBatch {
        record_count: count,
        base_timestamp_ms: 0,
        max_timestamp_ms: i64::from(count),
        producer,
        records: vec![7; 1].into(),
    }
}

impl World {
    fn new(place: Place) -> Self {
        let mut world =
            Self { place, open: None, writes: Writes::default(), model: Model::default(), committed: Model::default() };
        world.crash();
        world
    }

    fn crash(&mut self) {
        self.open = None;
        self.writes = Writes::default();
        let directory = match &self.place {
            Place::Disk(path) => LogDirectory::open(path.path(), Flush::Os).unwrap(),
            Place::Memory(logs) => LogDirectory::in_memory(logs, Flush::Os),
        };
        let mut log = directory.log(partition(), NOW_MS).unwrap();
        log.set_segment_bytes(SEGMENT_BYTES);
        self.model = self.committed.clone();
        self.open = Some((directory, log));
    }

    fn commit(&mut self) {
        self.open.as_ref().unwrap().0.commit(std::mem::take(&mut self.writes)).unwrap();
        self.committed = self.model.clone();
    }

    fn lead(&mut self, count: u32, producer: Option<(i64, i32)>, epoch_grows: bool) {
        let (_, log) = self.open.as_mut().unwrap();
        let epoch = self.model.last_epoch().unwrap_or(0) + i32::from(epoch_grows);
        let next = producer.map_or(0, |(id, _)| self.model.next_sequence(id));
        let sequence = producer.map_or(0, |(_, distance)| (next + distance).max(0));
        let producer = producer.map(|(id, _)| Producer { id, epoch: 0, base_sequence: sequence });
        let new = batch(count, producer);
        let end = LogOffset(self.model.end());
        match log.append_as_leader(&mut self.writes, &new, LeaderEpoch::new(epoch), NOW_MS) {
            Ok(appended) if appended.batch.is_none() => {
                let same = |stored: &&StoredBatch| {
                    stored.base_offset() == appended.base_offset
                        && stored.producer() == producer
                        && stored.record_count() == count
                };
                assert!(self.model.batches.iter().any(|stored| same(&stored)), "not written before: {appended:?}");
            }
            Ok(appended) => {
                assert_eq!((appended.base_offset, sequence), (end, if producer.is_some() { next } else { 0 }));
                self.model.push(StoredBatch::new(end, LeaderEpoch::new(epoch), &new).unwrap());
            }
            Err(
                AppendRefused::UnknownProducerId { .. }
                | AppendRefused::OutOfOrderSequence { .. }
                | AppendRefused::DuplicateSequence { .. },
            ) => {
                assert_ne!(sequence, next);
            }
            Err(refused) => panic!("{refused}"),
        }
    }

    fn follow(&mut self, count: u32, producer: Option<i64>, epoch_change: i32) {
        let (_, log) = self.open.as_mut().unwrap();
        let last = self.model.last_epoch().unwrap_or(0);
        let epoch = (last + epoch_change).max(0);
        let next = |id| Producer { id, epoch: 0, base_sequence: self.model.next_sequence(id) };
        let end = LogOffset(self.model.end());
        let stored = StoredBatch::new(end, LeaderEpoch::new(epoch), &batch(count, producer.map(next))).unwrap();
        match log.append_as_follower(&mut self.writes, &stored, NOW_MS) {
            Ok(()) => {
                assert!(self.model.last_epoch().is_none_or(|last| epoch >= last));
                self.model.push(stored);
            }
            Err(refused) => assert!(matches!(refused, AppendRefused::EpochWentBack { .. }) && epoch < last),
        }
    }

    fn truncate(&mut self, offset: i64) {
        let (_, log) = self.open.as_mut().unwrap();
        let was_staged = !self.writes.is_empty();
        log.truncate_to(&mut self.writes, LogOffset(offset)).unwrap();
        // What had to be looked at on the disk was committed.
        if was_staged && (self.model.start..self.model.end()).contains(&offset) {
            self.committed = self.model.clone();
        }
        self.model.truncate(offset);
    }

    fn retain(&mut self, bytes: u64) {
        let (_, log) = self.open.as_mut().unwrap();
        let below = log.high_watermark();
        let retention = Retention { ms: None, bytes: Some(bytes) };
        if let Some(start) = log.expired(0, retention, below) {
            assert!(start <= below && log.segments().all().any(|segment| segment.end == start));
            let left = |segment: &&quorate_log::Segment| segment.base >= start;
            assert!(log.segments().all().filter(left).map(|segment| segment.bytes).sum::<u64>() >= bytes);
            log.advance_log_start(&mut self.writes, start);
            self.model.advance(start.0);
        }
    }

    fn play(&mut self, step: &Step) {
        let (_, log) = self.open.as_mut().unwrap();
        match *step {
            Step::Lead { count, producer, epoch_grows } => self.lead(count, producer, epoch_grows),
            Step::Follow { count, producer, epoch_change } => self.follow(count, producer, epoch_change),
            Step::BeginEpoch(change) => {
                let epoch = self.model.last_epoch().unwrap_or(0) + change;
                log.begin_epoch(&mut self.writes, LeaderEpoch::new(epoch));
                self.model.begin(epoch);
            }
            Step::Truncate(share) => self.truncate(self.model.share(share)),
            Step::StartAt(share) => {
                let offset = self.model.share(share);
                log.start_at(&mut self.writes, LogOffset(offset));
                self.model.start_at(offset);
            }
            Step::AdvanceStart(share) => {
                let offset = self.model.share(share);
                log.advance_log_start(&mut self.writes, LogOffset(offset));
                self.model.advance(offset);
            }
            Step::Retain { bytes } => self.retain(bytes),
            Step::HighWatermark(share) => {
                let offset = self.model.share(share);
                log.checkpoint_high_watermark(&mut self.writes, LogOffset(offset));
                self.model.high_watermark = offset.clamp(self.model.start, self.model.end());
            }
            Step::Commit => self.commit(),
            Step::Crash => self.crash(),
        }
        self.check();
    }

    fn check(&self) {
        let (_, log) = self.open.as_ref().unwrap();
        let model = &self.model;
        assert_eq!((log.log_start().0, log.log_end().0), (model.start, model.end()));
        assert_eq!(log.high_watermark().0, model.high_watermark);
        let epochs: Vec<_> = log.epochs().starts().iter().map(|(epoch, start)| (epoch.get(), start.0)).collect();
        assert_eq!(epochs, model.epochs());
        assert!(epochs.is_sorted_by(|a, b| a.0 < b.0 && a.1 < b.1));
        assert_eq!(log.producers(), &model.producers());
        (0..model.last_epoch().unwrap_or(0) + 2).for_each(|epoch| self.check_end_of_epoch(epoch));

        let read = log.reader().read(LogOffset(self.committed.start), LogOffset(i64::MAX), usize::MAX).unwrap();
        let readable = |batch: &&StoredBatch| batch.next_offset().0 > self.committed.start;
        assert_eq!(read, self.committed.batches.iter().filter(readable).cloned().collect::<Vec<_>>());
    }

    /// From the batches alone, where there are any of that epoch.
    fn check_end_of_epoch(&self, asked: i32) {
        let (_, log) = self.open.as_ref().unwrap();
        let found = log.end_of_epoch(LeaderEpoch::new(asked)).map(|(epoch, end)| (epoch.get(), end.0));
        let readable = self.model.batches.iter().filter(|batch| batch.next_offset().0 > self.model.start);
        let last = readable.filter(|batch| batch.leader_epoch().get() <= asked).last();
        match (found, last) {
            (Some((epoch, end)), Some(last)) if epoch == last.leader_epoch().get() => {
                assert_eq!(end, last.next_offset().0);
            }
            // A leader that began and has written nothing: the log ends with it.
            (Some((epoch, end)), _) => {
                assert_eq!((Some(epoch), end), (self.model.last_epoch(), self.model.end()));
            }
            (None, last) => assert_eq!(last, None),
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, ..ProptestConfig::default() })]

    #[test]
    fn a_log_is_what_a_naive_model_says(steps in steps()) {
        let places = [
            Place::Disk(tempfile::tempdir().unwrap()),
            Place::Memory(MemoryLogs::new(DirectoryId::from_bytes([1; 16]))),
        ];
        for place in places {
            let mut world = World::new(place);
            steps.iter().for_each(|step| world.play(step));
            world.commit();
            world.check();
            world.crash();
            world.check();
        }
    }
}
