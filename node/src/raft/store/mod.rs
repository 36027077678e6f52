//! Where a voter keeps its name, log, vote and snapshots.
//!
//! Goals, in order: what was acknowledged is on the disk; a disk that lies is found out and refused by file and offset;
//! one fsync serves all who wait. Two implementations pass one suite: RocksDB, and a twin in memory that knows pending
//! from durable bytes and takes part in simulations.
//!
//! [`LogStore`] is what openraft sees. It keeps the newest entries in memory and queues every write to one flusher, which
//! writes what has queued up meanwhile as one batch: the fsync in progress is the batching window, no timer is needed.

pub(super) mod codec;
#[cfg(test)]
mod conformance;
mod flush;
#[cfg(test)]
mod full_disk;
mod log;
mod memory;
mod rocks;
mod snapshots;
mod tail;
mod wal;

use std::io;
use std::ops::Range;
use std::sync::Arc;

pub use flush::FlushQueue;
pub use log::LogStore;
pub use memory::{Logged, LoggedEntry, MemoryStore};
pub use rocks::{RocksStore, open_read_only};
pub use snapshots::{Snapshot, SnapshotWriter, Snapshots};

use super::RaftError;
use super::identity::Identity;
use super::types::{Entry, LogId, Vote};

/// A disk, or something like one. Nothing is opened or created before `open`.
pub trait Store: Send + Sync + 'static {
    fn identity(&self) -> Result<Option<Identity>, RaftError>;
    fn save_identity(&self, identity: &Identity) -> Result<(), RaftError>;
    fn open(&self) -> Result<Opened, RaftError>;
}

/// An opened store.
pub struct Opened {
    pub disk: Arc<dyn Disk>,
    pub snapshots: Snapshots,
}

/// What the log store stands on. Reads see what the flusher has written.
pub trait Disk: Send + Sync + 'static {
    /// Refuses a disk whose entries are damaged or have holes.
    fn load(&self) -> io::Result<Loaded>;
    /// Whether a read may wait for a device: then it does not run on Raft's thread.
    fn is_device(&self) -> bool;
    /// Entries of `range` in order, at least one if there is one, ending where `max_bytes` is passed.
    fn read(&self, range: Range<u64>, max_bytes: usize) -> io::Result<Vec<Entry>>;
    /// Starts the one writer, which ends when the queue does.
    fn start_flusher(self: Arc<Self>, queue: FlushQueue);
}

/// What was found on a disk.
#[derive(Debug, Default, Clone, PartialEq)]
pub struct Loaded {
    /// How many times this voter had started when it was written: see `floor`.
    pub generation: u64,
    pub vote: Option<Vote>,
    pub committed: Option<LogId>,
    pub purged: Option<LogId>,
    /// Where the log begins. It may begin after 0 without anything having been purged.
    pub first: u64,
    /// The last entry; the purged one when there is no other.
    pub last: Option<LogId>,
}

impl Loaded {
    /// The committed index may have been written before the entry: then all that is there is committed.
    pub fn known_committed(&self) -> Option<LogId> {
        match (self.committed, self.last) {
            (Some(committed), Some(last)) if committed.index > last.index => Some(last),
            (Some(_), None) => None,
            (committed, _) => committed,
        }
    }
}

/// One write. They take effect in the order in which they were queued.
#[derive(Debug, Clone)]
pub enum Write {
    Append(Vec<Entry>),
    Vote(Vote),
    /// Removes this index and all above.
    Truncate {
        from: u64,
    },
    /// Removes this entry and all below.
    Purge(LogId),
    Generation(u64),
    /// How far the log is known to be committed: a restart replays up to here at once, and cuts nothing below it.
    Committed(Option<LogId>),
}

/// Bytes an entry takes in a batch, on the wire and in the tail, near enough.
pub fn entry_bytes(entry: &Entry) -> usize {
    const FRAME: usize = 32;
    match &entry.payload {
        openraft::EntryPayload::Normal(payload) => FRAME + payload.0.len(),
        openraft::EntryPayload::Blank | openraft::EntryPayload::Membership(_) => FRAME,
    }
}
