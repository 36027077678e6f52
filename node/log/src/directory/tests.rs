//! Directories of other releases.

use quorate_metadata::ids::{BrokerId, ClusterId, LeaderEpoch, PartitionId, TopicId};

use super::*;
use crate::batch::{LogOffset, NewBatch, StoredBatch};
use crate::compaction::{CompactionPolicy, CompactionStep};
use crate::frame_v1;
use crate::records::Record;

fn partition() -> TopicPartition {
    TopicPartition::new(TopicId::from_bytes([3; 16]), PartitionId::new(1))
}

fn owner() -> Owner {
    Owner { cluster: ClusterId::from_bytes([1; 16]), broker: BrokerId::new(4) }
}

fn append(directory: &LogDirectory, log: &mut PartitionLog, key: &'static str) {
    let record = Record {
        offset_delta: 0,
        timestamp_ms: 7,
        key: Some(key.into()),
        value: Some("v".into()),
        headers: Vec::new(),
    };
    let mut writes = directory.begin();
    let batch = NewBatch::of(vec![record], None).unwrap();
    log.append_as_leader(&mut writes, &batch, LeaderEpoch::new(0), 100).unwrap();
    directory.commit(writes).unwrap();
}

fn rows(directory: &LogDirectory) -> Vec<(Bytes, Bytes)> {
    directory.table().scan(Family::Batches, Vec::new(), None).map(Result::unwrap).collect()
}

/// Makes the directory what the release before would have written.
fn write_as_before(directory: &LogDirectory) {
    let mut changes = Changes::default();
    for (key, frame) in rows(directory) {
        let batch = StoredBatch::decode(frame).unwrap();
        changes.put(Family::Batches, key.to_vec(), frame_v1::encode(&batch).unwrap());
    }
    changes.delete(Family::Meta, keys::FORMAT.to_vec());
    directory.table().commit(&changes, true).unwrap();
}

fn read(log: &PartitionLog) -> Vec<StoredBatch> {
    log.reader().read(LogOffset(0), LogOffset(i64::MAX), usize::MAX).unwrap()
}

#[test]
fn a_directory_of_an_earlier_release_is_upgraded_in_place() {
    let path = tempfile::tempdir().unwrap();
    let directory = LogDirectory::open(path.path(), Flush::Os).unwrap();
    let mut log = directory.log(partition(), 100).unwrap();
    log.set_segment_bytes(150);
    ["a", "b", "a", "c", "a"].into_iter().for_each(|key| append(&directory, &mut log, key));
    let before = read(&log);
    write_as_before(&directory);
    drop((log, directory));

    let directory = LogDirectory::open(path.path(), Flush::Os).unwrap();
    directory.check_owner(owner()).unwrap();
    directory.set_owner(owner()).unwrap();
    assert_eq!(directory.format().unwrap(), Some(FORMAT));
    let mut log = directory.log(partition(), 100).unwrap();
    log.set_segment_bytes(150);
    assert_eq!((log.log_end(), read(&log)), (LogOffset(5), before));

    append(&directory, &mut log, "d");
    let policy = CompactionPolicy { min_dirty_ratio: 0.0, delete_retention_ms: 0, min_lag_ms: 0, max_lag_ms: i64::MAX };
    let mut compaction = log.compaction(&policy, log.log_end(), 200).unwrap();
    let mut writes = directory.begin();
    loop {
        match compaction.step().unwrap() {
            CompactionStep::Read => {}
            CompactionStep::Write(rewritten) => assert!(log.rewrite(&mut writes, &rewritten)),
            CompactionStep::Done(end) => break assert!(log.end_compaction(&mut writes, &end)),
        }
    }
    directory.commit(writes).unwrap();
    drop(log);
    let log = directory.log(partition(), 200).unwrap();
    let full: Vec<_> =
        read(&log).iter().filter(|batch| batch.record_count() > 0).map(StoredBatch::base_offset).collect();
    // Batches of 70 bytes: two make a segment, and the last two are active.
    assert_eq!(full, [1, 2, 3, 4, 5].map(LogOffset));
    assert!(StoredBatch::decode(rows(&directory)[0].1.clone()).is_ok_and(|batch| batch.record_count() == 0));
}

#[test]
fn a_directory_of_a_later_release_is_refused_and_not_touched() {
    let path = tempfile::tempdir().unwrap();
    let directory = LogDirectory::open(path.path(), Flush::Os).unwrap();
    let mut log = directory.log(partition(), 100).unwrap();
    append(&directory, &mut log, "a");
    let mut changes = Changes::default();
    changes.put(Family::Meta, keys::FORMAT.to_vec(), keys::seal(keys::FORMAT, &3_u32.to_be_bytes()).into());
    directory.table().commit(&changes, true).unwrap();
    let before = rows(&directory);
    drop((log, directory));
    let Err(error) = LogDirectory::open(path.path(), Flush::Os) else { panic!("it cannot be read") };
    assert!(matches!(error, LogError::UnknownFormat { found: 3, newest: FORMAT, .. }), "{error}");
    let (table, _) = RocksTable::open(path.path(), Flush::Os).unwrap();
    let after: Vec<_> = table.scan(Family::Batches, Vec::new(), None).map(Result::unwrap).collect();
    assert_eq!(after, before);
}
