//! A file that takes room for the raft log: when the disk is full it is removed, so that what frees room, such as the deletion
//! of a topic, can still be written. It is made again when there is room.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Weak};
use std::time::Duration;

use nix::fcntl::posix_fallocate;
use tracing::{info, warn};

use super::problems::DiskProblems;
use super::space::{Space, mebibytes};

/// With less room than this the reserve is removed: the log writes four mebibytes at once, and its memtables are sixteen.
const FREE_BYTES_MIN: u64 = 24 << 20;

/// It is made with so many times as much room beside it, so that it does not go and come.
const MARGIN: u64 = 4;

/// It takes no more than this part of a small file system.
const PART_MAX: u64 = 8;

const CHECK_INTERVAL: Duration = Duration::from_secs(1);

/// Where the problem is named.
const PLACE: &str = "disk of the raft log";

#[derive(Debug)]
pub struct Reserve {
    path: PathBuf,
    bytes: u64,
    problems: DiskProblems,
    /// It could not be made the last time, which has been logged.
    has_failed: AtomicBool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Step {
    Make(u64),
    Remove,
    /// There is none that could be removed.
    Name,
    Keep,
}

impl Reserve {
    /// In a directory that may not exist yet; of no bytes, there is none.
    pub fn in_directory(data: &Path, bytes: u64, problems: DiskProblems) -> Self {
        Self { path: data.join("raft.reserve"), bytes, problems, has_failed: AtomicBool::new(false) }
    }

    /// Removes the reserve where there is too little room to write, and makes it where there is enough.
    pub fn adjust(&self) {
        match self.due() {
            Step::Make(bytes) => self.make(bytes),
            Step::Remove => self.remove(),
            Step::Name => self.problems.set(PLACE, "is nearly full, and has no reserve".to_owned()),
            Step::Keep => {}
        }
    }

    /// Before a write: the file system is asked each time, which takes far less than the sync that follows.
    pub fn make_room(&self) {
        if self.due() == Step::Remove {
            self.remove();
        }
    }

    fn due(&self) -> Step {
        let data = self.path.parent().unwrap_or(Path::new("."));
        match Space::of(data) {
            Ok(space) => self.step(space, self.taken()),
            // The directory is not there yet, or what is wrong with it is found by who writes to it.
            Err(_) => Step::Keep,
        }
    }

    fn step(&self, space: Space, taken: u64) -> Step {
        let bytes = self.bytes.min(space.total_bytes / PART_MAX);
        let free_min = FREE_BYTES_MIN.min(space.total_bytes / PART_MAX);
        if taken > 0 && (space.free_bytes < free_min || self.bytes == 0) {
            Step::Remove
        } else if taken < bytes && space.free_bytes + taken >= bytes + MARGIN * free_min {
            Step::Make(bytes)
        } else if taken == 0 && self.bytes > 0 && space.free_bytes < free_min {
            Step::Name
        } else {
            Step::Keep
        }
    }

    fn taken(&self) -> u64 {
        fs::metadata(&self.path).map_or(0, |file| file.len())
    }

    fn make(&self, bytes: u64) {
        let made = File::create(&self.path).and_then(|file| {
            let length = i64::try_from(bytes).map_err(io::Error::other)?;
            Ok(posix_fallocate(&file, 0, length)?)
        });
        match made {
            Ok(()) => {
                self.problems.clear(PLACE);
                self.has_failed.store(false, Ordering::Relaxed);
                info!(path = %self.path.display(), bytes, "reserve of the raft log made");
            }
            Err(error) => {
                if !self.has_failed.swap(true, Ordering::Relaxed) {
                    warn!(path = %self.path.display(), %error, "cannot make the reserve of the raft log");
                }
                self.remove_file();
            }
        }
    }

    fn remove(&self) {
        let taken = self.taken();
        if !self.remove_file() || self.bytes == 0 {
            return;
        }
        let reason = format!("is nearly full: the reserve of {} is in use", mebibytes(taken));
        warn!(path = %self.path.display(), bytes = taken, "the disk is nearly full: the reserve of the raft log is removed");
        self.problems.set(PLACE, reason);
    }

    fn remove_file(&self) -> bool {
        match fs::remove_file(&self.path) {
            Ok(()) => true,
            Err(error) => {
                if error.kind() != io::ErrorKind::NotFound {
                    warn!(path = %self.path.display(), %error, "cannot remove the reserve of the raft log");
                }
                false
            }
        }
    }

    /// Adjusts it again and again, also while nothing is written, until it is dropped.
    pub fn watch(self: &Arc<Self>) -> io::Result<()> {
        let watched = Arc::downgrade(self);
        std::thread::Builder::new().name("raft-reserve".into()).spawn(move || adjust_until_dropped(&watched))?;
        Ok(())
    }
}

fn adjust_until_dropped(watched: &Weak<Reserve>) {
    while let Some(reserve) = watched.upgrade() {
        reserve.adjust();
        drop(reserve);
        std::thread::park_timeout(CHECK_INTERVAL);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;

    fn space(free: u64, total: u64) -> Space {
        Space { free_bytes: free * MIB, total_bytes: total * MIB }
    }

    #[test]
    fn the_reserve_goes_when_room_is_short_and_comes_when_there_is_enough() {
        let reserve = Reserve::in_directory(Path::new("/data"), 64 * MIB, DiskProblems::default());
        let step = |free, taken| reserve.step(space(free, 1_000), taken * MIB);
        assert_eq!(step(900, 0), Step::Make(64 * MIB));
        assert_eq!(step(900, 10), Step::Make(64 * MIB), "half of it is not enough");
        assert_eq!(step(900, 64), Step::Keep);
        assert_eq!(step(24, 64), Step::Keep);
        assert_eq!(step(23, 64), Step::Remove);
        assert_eq!(step(23, 0), Step::Name);
        assert_eq!(step(23 + 64, 0), Step::Keep, "it does not come back at once");
        assert_eq!(step(64 + 4 * 24, 0), Step::Make(64 * MIB));
        assert_eq!(reserve.step(space(90, 100), 0), Step::Make(100 * MIB / 8), "a small file system");
        let none = Reserve::in_directory(Path::new("/data"), 0, DiskProblems::default());
        assert_eq!((none.step(space(900, 1_000), 0), none.step(space(900, 1_000), 1)), (Step::Keep, Step::Remove));
    }

    #[test]
    fn the_reserve_takes_its_bytes_and_gives_them_back_by_name() {
        let folder = tempfile::tempdir().unwrap();
        let problems = DiskProblems::default();
        let reserve = Reserve::in_directory(folder.path(), MIB, problems.clone());
        reserve.make(MIB);
        let file = fs::metadata(folder.path().join("raft.reserve")).unwrap();
        assert_eq!(file.len(), MIB);
        assert!(std::os::unix::fs::MetadataExt::blocks(&file) * 512 >= MIB, "it takes room");
        reserve.remove();
        assert_eq!(reserve.taken(), 0);
        assert_eq!(problems.list(), ["disk of the raft log: is nearly full: the reserve of 1 MiB is in use"]);
        reserve.make(MIB);
        assert!(problems.list().is_empty());
    }
}
