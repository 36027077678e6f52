//! What can go wrong with a directory, and why an append is refused.

use std::path::PathBuf;

use quorate_metadata::ids::{LeaderEpoch, TopicPartition};

use crate::batch::{CorruptBatch, LogOffset};
use crate::owner::Owner;

/// An operation on a directory failed: the directory is lost to this process, and with it the logs that it holds.
#[derive(Debug, thiserror::Error)]
pub enum LogError {
    #[error("log directory {path:?} is in use by another process")]
    Locked { path: PathBuf },
    #[error("INCONSISTENT_CLUSTER_ID: log directory {path:?} is of {found}, this is {expected}; nothing was changed")]
    OfAnotherCluster { path: PathBuf, found: Owner, expected: Owner },
    #[error("log directory {path:?} is of {found}, this is broker {}; nothing was changed", .expected.broker)]
    OfAnotherBroker { path: PathBuf, found: Owner, expected: Owner },
    #[error(
        "UNSUPPORTED_VERSION: log directory {path:?} has format {found}: expected at most {newest}; run the release that wrote it"
    )]
    UnknownFormat { path: PathBuf, found: u32, newest: u32 },
    #[error("cannot use log directory {path:?}: {reason}")]
    Io { path: PathBuf, reason: String },
    #[error("log of {partition} is damaged at offset {offset}: {reason}")]
    Corrupt { partition: TopicPartition, offset: LogOffset, reason: String },
}

/// As the system says it, also through RocksDB, whose errors are texts.
const NO_SPACE: &str = "No space left on device";

/// Whether a disk that is full is the reason of an error of the database.
pub fn is_no_space(reason: &str) -> bool {
    reason.contains(NO_SPACE)
}

impl LogError {
    /// Whether the disk had no room, so that the directory can be used again when it has.
    pub fn is_no_space(&self) -> bool {
        matches!(self, Self::Io { reason, .. } if is_no_space(reason))
    }
}

/// The batch is not taken, and the log is as before.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum AppendRefused {
    #[error("invalid batch: {0}")]
    InvalidBatch(&'static str),
    #[error("the batch begins at {base}, the log ends at {end}")]
    NotAtEnd { base: LogOffset, end: LogOffset },
    #[error("leader epoch {epoch} is behind {last}, the last of the log")]
    EpochWentBack { epoch: LeaderEpoch, last: LeaderEpoch },
    #[error("producer epoch {epoch} is behind {current}")]
    InvalidProducerEpoch { epoch: i16, current: i16 },
    #[error("nothing is known of producer {id}, whose batch is not its first")]
    UnknownProducerId { id: i64 },
    #[error("sequence {found} is out of order: expected {expected}")]
    OutOfOrderSequence { found: i32, expected: i32 },
    #[error("sequence {found} was taken before, too long ago to tell where")]
    DuplicateSequence { found: i32 },
}

impl From<CorruptBatch> for AppendRefused {
    fn from(error: CorruptBatch) -> Self {
        Self::InvalidBatch(error.0)
    }
}
