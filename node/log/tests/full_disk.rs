//! A directory on a disk that gets full: a small file system, which only root may mount.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::fs;
use std::path::Path;
use std::process::Command;

use quorate_log::{Flush, LogDirectory, LogError, LogOffset, NewBatch, Record};
use quorate_metadata::ids::{LeaderEpoch, PartitionId, TopicId, TopicPartition};

struct SmallDisk(tempfile::TempDir);

impl SmallDisk {
    fn mount(mebibytes: u32) -> Option<Self> {
        let folder = tempfile::tempdir().unwrap();
        let size = format!("size={mebibytes}m");
        let mounted = Command::new("mount").args(["-t", "tmpfs", "-o", &size, "tmpfs"]).arg(folder.path()).output();
        mounted.is_ok_and(|mounted| mounted.status.success()).then(|| Self(folder))
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        // The temporary folder is removed when nothing is mounted on it.
        let _ = Command::new("umount").arg("-l").arg(self.0.path()).status();
    }
}

const RECORDS: LeaderEpoch = LeaderEpoch::new(0);

fn partition() -> TopicPartition {
    TopicPartition::new(TopicId::from_bytes([1; 16]), PartitionId::new(0))
}

/// Appends a mebibyte at a time until the disk refuses; the end of what is committed.
fn append_until_full(path: &Path) -> (LogOffset, LogError) {
    let directory = LogDirectory::open(path, Flush::Always).unwrap();
    let mut log = directory.log(partition(), 0).unwrap();
    let mut end = log.log_end();
    loop {
        let mut writes = directory.begin();
        let value = Some(vec![7; 1 << 20].into());
        let record = Record { offset_delta: 0, timestamp_ms: 0, key: None, value, headers: Vec::new() };
        let batch = NewBatch::of(vec![record], None).unwrap();
        log.append_as_leader(&mut writes, &batch, RECORDS, 0).unwrap();
        match directory.commit(writes) {
            Ok(()) => end = log.log_end(),
            Err(error) => return (end, error),
        }
    }
}

#[test]
fn a_directory_that_was_full_is_opened_again_with_all_that_was_committed() {
    let Some(disk) = SmallDisk::mount(160) else {
        eprintln!("skipped: this user may not mount a file system");
        return;
    };
    let (ballast, path) = (disk.0.path().join("ballast"), disk.0.path().join("logs"));
    fs::write(&ballast, vec![1; 80 << 20]).unwrap();
    let (end, error) = append_until_full(&path);
    assert!(error.is_no_space(), "{error}");
    assert!(end > LogOffset(0));
    fs::remove_file(ballast).unwrap();
    let directory = LogDirectory::open(&path, Flush::Always).unwrap();
    let log = directory.log(partition(), 0).unwrap();
    assert!(log.log_end() >= end, "{} of {end} records", log.log_end());
    let batches = log.reader().read(LogOffset(0), log.log_end(), 1).unwrap();
    assert_eq!(batches[0].base_offset(), LogOffset(0));
    directory.flush().unwrap();
}
