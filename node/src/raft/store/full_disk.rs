//! The log on a disk that is full: a small file system, which only root may mount.

use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;

use openraft::storage::RaftLogStorage;
use tempfile::TempDir;

use super::super::types::Vote;
use super::{LogStore, RocksStore, Store};
use crate::disks::{DiskProblems, Reserve, Space};

struct SmallDisk(TempDir);

impl SmallDisk {
    fn mount(mebibytes: u32) -> Option<Self> {
        let folder = tempfile::tempdir().unwrap();
        let size = format!("size={mebibytes}m");
        let mounted = Command::new("mount").args(["-t", "tmpfs", "-o", &size, "tmpfs"]).arg(folder.path()).output();
        mounted.is_ok_and(|mounted| mounted.status.success()).then(|| Self(folder))
    }

    fn path(&self) -> &Path {
        self.0.path()
    }

    /// Takes all the room that is left.
    fn fill(&self) -> PathBuf {
        let path = self.path().join("ballast");
        let mut file = File::create(&path).unwrap();
        for bytes in [1 << 20, 1 << 12] {
            while file.write_all(&vec![1; bytes]).is_ok() {}
        }
        path
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        // The temporary folder is removed when nothing is mounted on it.
        let _ = Command::new("umount").arg("-l").arg(self.path()).status();
    }
}

async fn save_vote(store: &RocksStore, term: u64) -> std::io::Result<()> {
    let opened = store.open().map_err(std::io::Error::other)?;
    let loaded = opened.disk.load()?;
    let (mut log, ended) = LogStore::start(opened.disk, loaded);
    let saved = log.save_vote(&Vote::new(term, 1)).await;
    drop(log);
    // The flusher drops its end without a word.
    let _ = ended.await;
    saved
}

#[tokio::test]
async fn a_log_on_a_full_disk_is_opened_and_written_by_its_reserve() {
    let Some(disk) = SmallDisk::mount(200) else {
        eprintln!("skipped: this user may not mount a file system");
        return;
    };
    let data = disk.path().join("data");
    let problems = DiskProblems::default();
    let store = |bytes| RocksStore::new(&data).with_reserve(Reserve::in_directory(&data, bytes, problems.clone()));
    save_vote(&store(64 << 20), 1).await.unwrap();
    let reserve = data.join("raft.reserve");
    // The first start makes the directory, the next one has it.
    save_vote(&store(64 << 20), 2).await.unwrap();
    assert!(fs::metadata(&reserve).unwrap().len() > 0);

    let ballast = disk.fill();
    assert!(Space::of(disk.path()).unwrap().free_bytes < 1 << 20);
    save_vote(&store(64 << 20), 3).await.unwrap();
    assert!(!reserve.exists());
    assert!(problems.list()[0].contains("is nearly full"), "{:?}", problems.list());

    fs::remove_file(ballast).unwrap();
    save_vote(&store(64 << 20), 4).await.unwrap();
    assert!(reserve.exists() && problems.list().is_empty());
    // Who has none says so.
    save_vote(&store(0), 5).await.unwrap();
    disk.fill();
    let refused = save_vote(&store(0), 6).await.unwrap_err().to_string();
    assert!(refused.contains("No space left on device"), "{refused}");
}
