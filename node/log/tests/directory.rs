//! A directory over its life: many logs in one write, a torn tail, and damage that is found.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::fs::OpenOptions;
use std::path::Path;

use quorate_log::{Flush, LogDirectory, LogError, LogOffset, LogReader, NewBatch, Owner, PartitionLog, Writes};
use quorate_metadata::ids::{BrokerId, ClusterId, LeaderEpoch, PartitionId, TopicId, TopicPartition};

/// When everything here happens.
const NOW_MS: i64 = 1_000;

fn partition(topic: u8, partition: i32) -> TopicPartition {
    TopicPartition::new(TopicId::from_bytes([topic; 16]), PartitionId::new(partition))
}

fn append(log: &mut PartitionLog, writes: &mut Writes, records: &'static str) {
    let batch = NewBatch {
        record_count: 1,
        base_timestamp_ms: 0,
        max_timestamp_ms: 0,
        producer: None,
        records: records.into(),
    };
    log.append_as_leader(writes, &batch, LeaderEpoch::new(0), NOW_MS).unwrap();
}

fn read_all(log: &PartitionLog) -> Result<Vec<String>, LogError> {
    let batches = log.reader().read(LogOffset(0), log.log_end(), usize::MAX)?;
    Ok(batches.iter().map(|batch| String::from_utf8(batch.records().to_vec()).unwrap()).collect())
}

/// The only file in `folder` with this ending that has something in it.
fn file(folder: &Path, ending: &str) -> std::path::PathBuf {
    let found = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    let is_wanted = |path: &std::path::PathBuf| {
        path.extension().is_some_and(|found| found == ending) && path.metadata().unwrap().len() > 0
    };
    let found: Vec<_> = found.filter(is_wanted).collect();
    assert_eq!(found.len(), 1, "{found:?}");
    found[0].clone()
}

#[test]
fn a_directory_keeps_its_id_and_has_one_user() {
    let path = tempfile::tempdir().unwrap();
    let first = LogDirectory::open(path.path(), Flush::Os).unwrap();
    let id = first.id();
    assert!(matches!(LogDirectory::open(path.path(), Flush::Os), Err(LogError::Locked { .. })));
    drop(first);
    assert_eq!(LogDirectory::open(path.path(), Flush::Os).unwrap().id(), id);
    let other = tempfile::tempdir().unwrap();
    assert_ne!(LogDirectory::open(other.path(), Flush::Os).unwrap().id(), id);
}

#[test]
fn a_directory_of_another_broker_or_cluster_is_refused() {
    let path = tempfile::tempdir().unwrap();
    let owner =
        |cluster, broker| Owner { cluster: ClusterId::from_bytes([cluster; 16]), broker: BrokerId::new(broker) };
    let open = || LogDirectory::open(path.path(), Flush::Os).unwrap();
    open().check_owner(owner(1, 4)).unwrap();
    open().set_owner(owner(1, 4)).unwrap();
    open().check_owner(owner(1, 4)).unwrap();
    assert!(matches!(open().check_owner(owner(2, 4)), Err(LogError::OfAnotherCluster { .. })));
    assert!(matches!(open().check_owner(owner(1, 5)), Err(LogError::OfAnotherBroker { .. })));
    assert!(open().partitions().unwrap().is_empty());
}

#[test]
fn one_write_has_many_logs_and_a_removed_log_leaves_its_neighbours() {
    let path = tempfile::tempdir().unwrap();
    let directory = LogDirectory::open(path.path(), Flush::Always).unwrap();
    let all = [partition(1, 0), partition(1, 1), partition(2, 0)];
    let mut logs = all.map(|partition| directory.log(partition, NOW_MS).unwrap());
    let mut writes = directory.begin();
    logs.iter_mut().for_each(|log| append(log, &mut writes, "a"));
    directory.commit(writes).unwrap();
    assert_eq!(directory.partitions().unwrap(), all);

    drop(logs);
    directory.remove(all[1]).unwrap();
    assert_eq!(directory.partitions().unwrap(), [all[0], all[2]]);
    for (partition, end) in all.into_iter().zip([1, 0, 1]) {
        assert_eq!(directory.log(partition, NOW_MS).unwrap().log_end(), LogOffset(end), "{partition}");
    }
}

#[test]
fn a_write_that_a_crash_has_cut_is_gone_and_the_ones_before_are_there() {
    for flush in [Flush::Os, Flush::Always] {
        let path = tempfile::tempdir().unwrap();
        let directory = LogDirectory::open(path.path(), flush).unwrap();
        let mut log = directory.log(partition(1, 0), NOW_MS).unwrap();
        for records in ["first", "second"] {
            let mut writes = directory.begin();
            append(&mut log, &mut writes, records);
            directory.commit(writes).unwrap();
        }
        drop((log, directory));
        let wal = OpenOptions::new().write(true).open(file(path.path(), "log")).unwrap();
        wal.set_len(wal.metadata().unwrap().len() - 3).unwrap();

        let directory = LogDirectory::open(path.path(), flush).unwrap();
        let mut log = directory.log(partition(1, 0), NOW_MS).unwrap();
        assert_eq!(read_all(&log).unwrap(), ["first"]);
        let mut writes = directory.begin();
        append(&mut log, &mut writes, "third");
        directory.commit(writes).unwrap();
        assert_eq!(read_all(&log).unwrap(), ["first", "third"]);
    }
}

/// Three batches; then `damage` is done to the row of `family` that is found at `at`.
fn open_damaged(
    family: &str,
    at: usize,
    damage: impl Fn(&rocksdb::DB, &rocksdb::ColumnFamily, &[u8], Vec<u8>),
) -> String {
    let path = tempfile::tempdir().unwrap();
    let directory = LogDirectory::open(path.path(), Flush::Os).unwrap();
    let mut log = directory.log(partition(1, 0), NOW_MS).unwrap();
    let mut writes = directory.begin();
    ["first", "second", "third"].into_iter().for_each(|records| append(&mut log, &mut writes, records));
    directory.commit(writes).unwrap();
    drop((log, directory));
    let db = rocksdb::DB::open_cf(&rocksdb::Options::default(), path.path(), ["batches", "meta"]).unwrap();
    let handle = db.cf_handle(family).unwrap();
    let (key, value) = db.iterator_cf(handle, rocksdb::IteratorMode::Start).nth(at).unwrap().unwrap();
    damage(&db, handle, &key, value.to_vec());
    drop(db);
    let directory = LogDirectory::open(path.path(), Flush::Os).unwrap();
    match directory.log(partition(1, 0), NOW_MS) {
        Err(LogError::Corrupt { offset, reason, .. }) => format!("{offset}: {reason}"),
        Err(other) => panic!("{other}"),
        Ok(log) => panic!("opened: {:?}", read_all(&log)),
    }
}

#[test]
fn damage_is_found_before_the_log_opens() {
    let flip = |db: &rocksdb::DB, family: &rocksdb::ColumnFamily, key: &[u8], mut value: Vec<u8>| {
        *value.last_mut().unwrap() ^= 1;
        db.put_cf(family, key, value).unwrap();
    };
    let lose = |db: &rocksdb::DB, family: &rocksdb::ColumnFamily, key: &[u8], _| db.delete_cf(family, key).unwrap();
    assert_eq!(open_damaged("batches", 1, flip), "1: checksum mismatch");
    assert_eq!(open_damaged("batches", 0, lose), "0: batches are missing");
    assert_eq!(open_damaged("batches", 1, lose), "1: batches are missing");
    assert_eq!(open_damaged("meta", 0, flip), "0: checksum mismatch in the meta data");
    let swap = |db: &rocksdb::DB, family: &rocksdb::ColumnFamily, key: &[u8], value: Vec<u8>| {
        let mut other = key.to_vec();
        *other.last_mut().unwrap() += 1;
        db.put_cf(family, other, value).unwrap();
    };
    assert_eq!(open_damaged("batches", 0, swap), "1: a batch under the key of another");
}

#[test]
fn a_truncation_needs_what_was_staged_before_to_be_on_the_disk() {
    let path = tempfile::tempdir().unwrap();
    let directory = LogDirectory::open(path.path(), Flush::Os).unwrap();
    let mut log = directory.log(partition(1, 0), NOW_MS).unwrap();
    append(&mut log, &mut directory.begin(), "lost");
    let refused = log.truncate_to(&mut directory.begin(), LogOffset(0));
    assert!(matches!(refused, Err(LogError::Corrupt { offset: LogOffset(0), .. })), "{refused:?}");
}

#[test]
fn a_reader_goes_to_any_thread() {
    fn is_shared<T: Clone + Send + Sync + 'static>() {}
    is_shared::<LogReader>();
    is_shared::<LogDirectory>();
}

/// The keys of the rows that a directory has, by a new start.
fn logs(path: &Path) -> Vec<TopicPartition> {
    LogDirectory::open(path, Flush::Os).unwrap().partitions().unwrap()
}

#[test]
fn logs_are_created_and_removed_together_by_one_commit() {
    let path = tempfile::tempdir().unwrap();
    let all: Vec<_> = (0..50).map(|id| partition(1, id)).collect();
    {
        let directory = LogDirectory::open(path.path(), Flush::Os).unwrap();
        let mut writes = directory.begin();
        let mut opened: Vec<_> = all.iter().map(|id| directory.open_log(&mut writes, *id, NOW_MS).unwrap()).collect();
        assert!(all.iter().all(|id| writes.touches(*id)));
        assert_eq!(directory.partitions().unwrap(), []);
        append(&mut opened[0], &mut writes, "a");
        directory.commit(writes).unwrap();
        assert_eq!(directory.log(all[0], NOW_MS).unwrap().log_end(), LogOffset(1));
    }
    assert_eq!(logs(path.path()), all);
    {
        let directory = LogDirectory::open(path.path(), Flush::Os).unwrap();
        let mut writes = directory.begin();
        all[1..].iter().for_each(|id| directory.stage_removal(&mut writes, *id).unwrap());
        directory.commit(writes).unwrap();
    }
    assert_eq!(logs(path.path()), all[..1]);
}

#[test]
fn a_log_of_many_rows_is_removed_whole_and_its_neighbours_stay() {
    let path = tempfile::tempdir().unwrap();
    let directory = LogDirectory::open(path.path(), Flush::Os).unwrap();
    let [before, removed, after] = [1, 2, 3].map(|id| partition(1, id));
    for id in [before, removed, after] {
        let mut log = directory.log(id, NOW_MS).unwrap();
        let mut writes = directory.begin();
        (0..40).for_each(|_| append(&mut log, &mut writes, "a"));
        directory.commit(writes).unwrap();
    }
    directory.remove(removed).unwrap();
    assert_eq!(directory.partitions().unwrap(), [before, after]);
    let again = directory.log(removed, NOW_MS).unwrap();
    assert_eq!(again.log_end(), LogOffset(0));
    assert!(read_all(&again).unwrap().is_empty());
    assert_eq!(read_all(&directory.log(after, NOW_MS).unwrap()).unwrap().len(), 40);
}
