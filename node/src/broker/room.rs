//! The room that the disk of a log directory has left. Producers are refused while it is below the low-water mark, so that
//! what frees room can still be written; followers fetch on for a while, since the leaders are refused first.

use std::time::Duration;

use quorate_log::LogDirectory;
use quorate_metadata::ids::DirectoryId;
use quorate_metadata::{ApiError, ErrorName};
use tokio::sync::watch;
use tokio::time::sleep;
use tracing::{info, warn};

use super::shard::ShardHandle;
use crate::disks::{DiskProblems, Space, mebibytes};

/// A disk that takes 500 MB/s gets half of the usual mark further in this time.
const CHECK_INTERVAL: Duration = Duration::from_millis(250);

/// The mark is no more than this part of a small file system.
const PART_MAX: u64 = 4;

/// Producers are let in again with so much more than the mark, as a part of it, and followers stop at this part of it.
const HYSTERESIS_PART: u64 = 8;
const SCARCE_PART: u64 = 2;

/// Twice what the tables of a directory have in memory, and some more.
const FLUSH_BYTES_MIN: u64 = 72 << 20;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Room {
    Enough,
    /// Producers are refused.
    Low(Shortage),
    /// Followers do not fetch either.
    Scarce(Shortage),
}

/// As it was when the room became short.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Shortage {
    pub free_bytes: u64,
    pub mark_bytes: u64,
}

impl Shortage {
    fn reason(self) -> String {
        let (free, mark) = (mebibytes(self.free_bytes), mebibytes(self.mark_bytes));
        format!("has {free} free, less than {mark}: producers are refused")
    }

    /// What a producer hears; nothing was written.
    pub fn error(self, directory: DirectoryId) -> ApiError {
        let message = format!("the disk of log directory {directory} {}", self.reason());
        ApiError::new(ErrorName::KafkaStorageError, message)
    }
}

impl Room {
    /// What follows `self` with so much space, and a mark of so many bytes.
    fn next(self, space: Space, setting_bytes: u64) -> Self {
        let mark_bytes = low_water_mark(space, setting_bytes);
        let shortage = Shortage { free_bytes: space.free_bytes, mark_bytes };
        let above = mark_bytes + mark_bytes / HYSTERESIS_PART;
        let scarce = mark_bytes / SCARCE_PART;
        match self {
            Self::Scarce(_) if space.free_bytes < scarce + mark_bytes / HYSTERESIS_PART => self,
            _ if space.free_bytes < scarce => Self::Scarce(shortage),
            Self::Low(_) if space.free_bytes < above => self,
            _ if space.free_bytes < mark_bytes => Self::Low(shortage),
            Self::Scarce(_) if space.free_bytes < above => Self::Low(shortage),
            Self::Enough | Self::Low(_) | Self::Scarce(_) => Self::Enough,
        }
    }

    pub fn shortage(self) -> Option<Shortage> {
        match self {
            Self::Enough => None,
            Self::Low(shortage) | Self::Scarce(shortage) => Some(shortage),
        }
    }

    pub fn is_scarce(self) -> bool {
        matches!(self, Self::Scarce(_))
    }
}

fn low_water_mark(space: Space, setting_bytes: u64) -> u64 {
    setting_bytes.min(space.total_bytes / PART_MAX)
}

/// Looks at the disk until the broker closes its directories. On a thread of its own: a disk may not answer.
pub async fn watch(
    directory: LogDirectory,
    shard: ShardHandle,
    mark_bytes: u64,
    problems: DiskProblems,
    mut plane: watch::Receiver<()>,
) {
    loop {
        match Space::of(directory.path()) {
            Ok(space) => look(&directory, &shard, space, mark_bytes, &problems),
            // Whoever writes to it finds out.
            Err(error) => tracing::debug!(path = ?directory.path(), %error, "cannot tell how much room there is"),
        }
        tokio::select! {
            () = sleep(CHECK_INTERVAL) => {}
            _ = plane.changed() => break,
            () = shard.ended() => break,
        }
    }
    problems.clear(&place(&shard));
}

fn look(directory: &LogDirectory, shard: &ShardHandle, space: Space, mark_bytes: u64, problems: &DiskProblems) {
    let before = shard.room();
    let now = before.next(space, mark_bytes);
    shard.set_room(now, space);
    if now == before {
        return;
    }
    let (free_bytes, path) = (space.free_bytes, directory.path().display());
    match now {
        Room::Enough => {
            problems.clear(&place(shard));
            info!(directory = %shard.directory(), %path, free_bytes, "the disk has room again: producers are let in");
        }
        Room::Low(shortage) => {
            problems.set(&place(shard), shortage.reason());
            warn!(directory = %shard.directory(), %path, free_bytes, mark_bytes = shortage.mark_bytes, "the disk is nearly full: producers are refused");
        }
        Room::Scarce(shortage) => {
            problems.set(&place(shard), format!("{}, and followers do not fetch", shortage.reason()));
            warn!(directory = %shard.directory(), %path, free_bytes, mark_bytes = shortage.mark_bytes, "the disk is nearly full: producers are refused, and followers do not fetch");
        }
    }
    // What is in memory would take room later, and when the directory is opened again; a flush without room breaks it.
    if before == Room::Enough
        && free_bytes >= FLUSH_BYTES_MIN
        && let Err(error) = directory.flush()
    {
        warn!(directory = %shard.directory(), %error, "cannot write what is in memory to its files");
    }
}

fn place(shard: &ShardHandle) -> String {
    format!("disk of log directory {}", shard.directory())
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;

    fn space(free: u64) -> Space {
        Space { free_bytes: free * MIB, total_bytes: 10_000 * MIB }
    }

    fn name(room: Room) -> &'static str {
        match room {
            Room::Enough => "enough",
            Room::Low(_) => "low",
            Room::Scarce(_) => "scarce",
        }
    }

    #[test]
    fn room_goes_from_enough_to_scarce_and_back_with_a_margin() {
        let mut room = Room::Enough;
        let steps = [
            (900, "enough"),
            (256, "enough"),
            (255, "low"),
            (280, "low"),
            (128, "low"),
            (127, "scarce"),
            (150, "scarce"),
            (160, "low"),
            (288, "enough"),
            (0, "scarce"),
            (900, "enough"),
        ];
        for (free, expected) in steps {
            room = room.next(space(free), 256 * MIB);
            assert_eq!(name(room), expected, "with {free} MiB free");
        }
    }

    #[test]
    fn the_mark_of_a_small_file_system_is_a_part_of_it() {
        let small = |free| Space { free_bytes: free * MIB, total_bytes: 150 * MIB };
        assert_eq!(low_water_mark(small(150), 256 * MIB), 150 * MIB / 4);
        assert_eq!(Room::Enough.next(small(100), 256 * MIB), Room::Enough);
        let refused = Room::Enough.next(small(30), 256 * MIB).shortage().expect("it is low");
        let error = refused.error(DirectoryId::from_bytes([1; 16]));
        assert_eq!(error.name, ErrorName::KafkaStorageError);
        assert!(error.message.ends_with("has 30 MiB free, less than 37 MiB: producers are refused"), "{error}");
    }

    #[test]
    fn without_a_mark_nothing_is_refused() {
        assert_eq!(Room::Enough.next(space(0), 0), Room::Enough);
    }
}
