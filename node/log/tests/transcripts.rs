//! Behaviour as transcripts: each file in `testscripts/` is a claim, named after the behaviour.
//!
//! After every block the staged changes are committed; a crash loses those of its block. `UPDATE_GOLDENFILES=1` writes the
//! transcripts anew; the difference is then to be read as carefully as code.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::error::Error;
use std::fmt::{Debug, Write as _};
use std::path::Path;
use std::str::FromStr;

use goldenscript::{ArgumentConsumer, Runner};
use quorate_log::{
    CompactionPolicy, CompactionStep, Flush, LogDirectory, LogOffset, NewBatch, PartitionLog, Producer, Record,
    Retention, Segment, StoredBatch, Writes,
};
use quorate_metadata::ids::{LeaderEpoch, PartitionId, TopicId, TopicPartition};

type Outcome = Result<String, Box<dyn Error>>;

struct World {
    path: tempfile::TempDir,
    open: Option<(LogDirectory, PartitionLog)>,
    writes: Writes,
    now_ms: i64,
}

impl World {
    fn new() -> Self {
        let mut world = Self { path: tempfile::tempdir().unwrap(), open: None, writes: Writes::default(), now_ms: 100 };
        world.reopen();
        world
    }

    fn reopen(&mut self) {
        self.writes = Writes::default();
        self.open = None;
        let directory = LogDirectory::open(self.path.path(), Flush::Always).unwrap();
        let partition = TopicPartition::new(TopicId::from_bytes([9; 16]), PartitionId::new(0));
        let mut log = directory.log(partition, self.now_ms).unwrap();
        log.set_segment_bytes(200);
        self.open = Some((directory, log));
    }

    fn log(&mut self) -> &mut PartitionLog {
        &mut self.open.as_mut().unwrap().1
    }

    /// A batch: `count=` records, or those of `keys=a,-b`, of which `-b` is a tombstone; `at=` their timestamp,
    /// `producer=id/epoch/sequence`.
    fn batch(args: &mut ArgumentConsumer) -> Result<NewBatch, Box<dyn Error>> {
        let producer = key::<String>(args, "producer").map(|text| {
            let [id, epoch, base_sequence] = text.split('/').collect::<Vec<_>>()[..] else {
                panic!("id/epoch/sequence")
            };
            let (id, epoch, base_sequence) = (number(id), number(epoch), number(base_sequence));
            Producer { id, epoch, base_sequence }
        });
        let max_timestamp_ms = key(args, "at").unwrap_or(0);
        if let Some(keys) = key::<String>(args, "keys") {
            let records = keys.split(',').map(|key| record(key, max_timestamp_ms)).collect();
            return Ok(NewBatch::of(records, producer)?);
        }
        let record_count = key(args, "count").unwrap_or(1);
        // With the header, a batch has 62 bytes: three make a segment.
        Ok(NewBatch { record_count, base_timestamp_ms: 0, max_timestamp_ms, producer, records: vec![b'r'; 1].into() })
    }

    fn lead(&mut self, args: &mut ArgumentConsumer) -> Outcome {
        let batch = Self::batch(args)?;
        let epoch = LeaderEpoch::new(key(args, "epoch").unwrap_or(0));
        let (_, log) = self.open.as_mut().unwrap();
        Ok(match log.append_as_leader(&mut self.writes, &batch, epoch, self.now_ms) {
            Ok(appended) if appended.batch.is_none() => {
                format!("{}..{} duplicate", appended.base_offset, appended.next_offset)
            }
            Ok(appended) => format!("{}..{}", appended.base_offset, appended.next_offset),
            Err(refused) => format!("refused: {refused}"),
        })
    }

    fn follow(&mut self, args: &mut ArgumentConsumer) -> Outcome {
        let base = LogOffset(position(args));
        let epoch = LeaderEpoch::new(key(args, "epoch").unwrap_or(0));
        let stored = StoredBatch::new(base, epoch, &Self::batch(args)?)?;
        let (_, log) = self.open.as_mut().unwrap();
        Ok(match log.append_as_follower(&mut self.writes, &stored, self.now_ms) {
            Ok(()) => format!("{base}..{}", stored.next_offset()),
            Err(refused) => format!("refused: {refused}"),
        })
    }

    fn retain(&mut self, args: &mut ArgumentConsumer) -> Outcome {
        let retention = Retention { ms: key(args, "ms"), bytes: key(args, "bytes") };
        let now = key(args, "now").unwrap_or(self.now_ms);
        let (_, log) = self.open.as_mut().unwrap();
        let below = key(args, "below").map_or(log.log_end(), LogOffset);
        let Some(start) = log.expired(now, retention, below) else { return Ok("nothing expired".into()) };
        log.advance_log_start(&mut self.writes, start);
        Ok(format!("log start {start}"))
    }

    fn read(&mut self, args: &mut ArgumentConsumer) -> Outcome {
        let from = LogOffset(position(args));
        let below = key(args, "below").map_or(self.log().log_end(), LogOffset);
        let max_bytes = key(args, "max_bytes").unwrap_or(usize::MAX);
        let batches = self.log().reader().read(from, below, max_bytes)?;
        Ok(list(
            batches.iter().map(|batch| {
                format!("{}..{} epoch {}", batch.base_offset(), batch.next_offset(), batch.leader_epoch())
            }),
        ))
    }

    /// The whole compaction that is due: `retention=` of tombstones, `below=` the high watermark.
    fn compact(&mut self, args: &mut ArgumentConsumer) -> Outcome {
        self.commit();
        let delete_retention_ms = key(args, "retention").unwrap_or(1_000);
        let policy =
            CompactionPolicy { min_dirty_ratio: 0.0, delete_retention_ms, min_lag_ms: 0, max_lag_ms: i64::MAX };
        let below = key(args, "below").map_or(self.log().log_end(), LogOffset);
        let (_, log) = self.open.as_mut().unwrap();
        let Some(mut compaction) = log.compaction(&policy, below, self.now_ms) else { return Ok("nothing due".into()) };
        loop {
            match compaction.step()? {
                CompactionStep::Read => {}
                CompactionStep::Write(rewritten) => assert!(log.rewrite(&mut self.writes, &rewritten)),
                CompactionStep::Done(end) => {
                    assert!(log.end_compaction(&mut self.writes, &end));
                    return Ok(format!("cleaned to {}", log.cleaned_to()));
                }
            }
        }
    }

    /// What each batch on the disk has.
    fn records(&mut self) -> Outcome {
        self.commit();
        let batches = self.log().reader().read(LogOffset(0), LogOffset(i64::MAX), usize::MAX)?;
        let text = |batch: &StoredBatch| -> Result<String, Box<dyn Error>> {
            let record = |record: &Record| {
                let key = String::from_utf8_lossy(record.key.as_ref().unwrap()).into_owned();
                let sign = if record.value.is_none() { "-" } else { "" };
                format!(" {}:{sign}{key}", batch.base_offset().0 + i64::from(record.offset_delta))
            };
            let horizon =
                batch.delete_horizon_ms().map_or(String::new(), |horizon| format!(" tombstones until {horizon}"));
            let records: String = batch.decode_records()?.iter().map(record).collect();
            Ok(format!("{}..{}{records}{horizon}", batch.base_offset(), batch.next_offset()))
        };
        Ok(list(batches.iter().map(text).collect::<Result<Vec<_>, _>>()?.into_iter()))
    }

    fn find(&mut self, args: &mut ArgumentConsumer) -> Outcome {
        let timestamp = position(args);
        let below = key(args, "below").map_or(self.log().log_end(), LogOffset);
        let found = self.log().find_timestamp(timestamp, below)?;
        Ok(found.map_or("none".into(), |batch| format!("{}..{}", batch.base_offset(), batch.next_offset())))
    }

    fn state(&mut self) -> String {
        let log = self.log();
        let mut text = format!(
            "start {} high watermark {} end {} bytes {}",
            log.log_start(),
            log.high_watermark(),
            log.log_end(),
            log.size_bytes()
        );
        let epochs = log.epochs().starts().iter().map(|(epoch, start)| format!("{epoch}@{start}"));
        write!(text, "\nepochs {}", list(epochs).replace('\n', " ")).unwrap();
        let segment = |segment: &Segment| format!("{}..{}", segment.base, segment.end);
        write!(text, "\nsegments {}", list(log.segments().all().map(segment)).replace('\n', " ")).unwrap();
        text
    }

    fn commit(&mut self) {
        let writes = std::mem::take(&mut self.writes);
        self.open.as_ref().unwrap().0.commit(writes).unwrap();
    }
}

impl World {
    /// A change that has nothing to say.
    fn change(&mut self, name: &str, args: &mut ArgumentConsumer) -> Outcome {
        let (_, log) = self.open.as_mut().unwrap();
        let writes = &mut self.writes;
        match name {
            "begin" => log.begin_epoch(writes, LeaderEpoch::new(position(args))),
            "truncate" => log.truncate_to(writes, LogOffset(position(args)))?,
            "start_at" => log.start_at(writes, LogOffset(position(args))),
            "advance" => log.advance_log_start(writes, LogOffset(position(args))),
            "high_watermark" => log.checkpoint_high_watermark(writes, LogOffset(position(args))),
            other => return Err(format!("no command {other}").into()),
        }
        Ok(String::new())
    }
}

impl Runner for World {
    type Command = goldenscript::Command;

    fn run(&mut self, command: &goldenscript::Command, _: &goldenscript::Context) -> Outcome {
        let mut args = command.consume_args();
        let output = match command.name.as_str() {
            "lead" => self.lead(&mut args)?,
            "follow" => self.follow(&mut args)?,
            "retain" => self.retain(&mut args)?,
            "read" => self.read(&mut args)?,
            "find" => self.find(&mut args)?,
            "state" => self.state(),
            "compact" => self.compact(&mut args)?,
            "records" => self.records()?,
            "now" => {
                self.now_ms = position(&mut args);
                String::new()
            }
            "end_of_epoch" => {
                let end = self.log().end_of_epoch(LeaderEpoch::new(position(&mut args)));
                end.map_or("none".into(), |(epoch, end)| format!("epoch {epoch} ends at {end}"))
            }
            "reopen" => {
                self.commit();
                self.reopen();
                self.state()
            }
            "crash" => {
                self.reopen();
                self.state()
            }
            name => self.change(name, &mut args)?,
        };
        args.reject_next()?;
        Ok(output)
    }

    fn end_block(&mut self, _: &goldenscript::Block) -> Outcome {
        self.commit();
        Ok(String::new())
    }
}

fn record(key: &str, timestamp_ms: i64) -> Record {
    let (key, value) = key.strip_prefix('-').map_or((key, Some("v".into())), |key| (key, None));
    let key = Some(key.to_owned().into_bytes().into());
    Record { offset_delta: 0, timestamp_ms, key, value, headers: Vec::new() }
}

/// The argument `name=`.
fn key<T: FromStr<Err: Debug>>(args: &mut ArgumentConsumer, name: &str) -> Option<T> {
    args.take_key(name).map(number)
}

/// The next argument without a name.
fn position<T: FromStr<Err: Debug>>(args: &mut ArgumentConsumer) -> T {
    number(args.next_pos().expect("an argument"))
}

fn number<T: FromStr<Err: Debug>>(text: &str) -> T {
    text.parse().unwrap()
}

fn list(items: impl Iterator<Item = String>) -> String {
    let items: Vec<_> = items.collect();
    if items.is_empty() { "none".into() } else { items.join("\n") }
}

#[test]
fn every_transcript_is_what_happens() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("testscripts");
    let mut scripts: Vec<_> = std::fs::read_dir(&folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    scripts.sort();
    assert!(!scripts.is_empty(), "there are no scripts in {}", folder.display());
    scripts.iter().for_each(|script| goldenscript::run(&mut World::new(), script).unwrap());
}
