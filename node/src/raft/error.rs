//! Why this voter cannot start, cannot go on, or did not do what it was asked.

use std::io;
use std::path::PathBuf;

use quorate_metadata::ids::{ClusterId, ControllerId, DirectoryId};

/// Retry none of them blindly: each names something that a person, or another node, has to change.
#[derive(Debug, thiserror::Error)]
pub enum RaftError {
    #[error(
        "{data:?} is not formatted: run `quorate-node format` on it once, or allow the implicit format of a development cluster"
    )]
    NotFormatted { data: PathBuf },
    #[error("{data:?} is already formatted, as directory {directory} of node {node}")]
    AlreadyFormatted { data: PathBuf, node: ControllerId, directory: DirectoryId },
    #[error("{data:?} is not empty: a replacement begins with an empty directory")]
    NotEmpty { data: PathBuf },
    #[error("{data:?} belongs to node {found}, not to node {expected}")]
    ForeignDirectory { data: PathBuf, expected: ControllerId, found: ControllerId },
    #[error("{path:?} is in use by another process")]
    DataLocked { path: PathBuf },
    #[error("INCONSISTENT_CLUSTER_ID: {0}")]
    InconsistentClusterId(String),
    #[error("INVALID_VOTER_KEY: node {node} is a voter with directory {voter}; this disk is {disk}")]
    InvalidVoterKey { node: ControllerId, voter: DirectoryId, disk: DirectoryId },
    #[error(
        "VOTER_STATE_LOST: {data:?} has lost what this voter knew: {reason}; put the missing files back, or replace the voter: see docs/voters.md"
    )]
    VoterStateLost { data: PathBuf, reason: String },
    #[error(
        "VOTER_STATE_DIVERGED: the leader's log differs at entry {index}, but this voter knows entries up to {committed} as committed; nothing was cut; other voters have lost acknowledged entries: see docs/voters.md"
    )]
    VoterStateDiverged { index: u64, committed: u64 },
    #[error("refused by node {peer}: {reason}")]
    Refused { peer: ControllerId, reason: String },
    #[error("{file:?} is corrupt at offset {offset}: {reason}")]
    Corrupt { file: PathBuf, offset: u64, reason: String },
    #[error("invalid raft configuration: {0}")]
    InvalidConfig(String),
    #[error("cannot {action}: {source}")]
    Io { action: String, source: io::Error },
    #[error("raft has stopped: {0}")]
    Stopped(String),
    #[error("voter {voter} cannot be replaced: {reason}")]
    NotReplaceable { voter: ControllerId, reason: String },
    #[error("the membership was not changed: {0}")]
    MembershipUnchanged(String),
    #[error("no membership change within {0} ms; it may go on")]
    ReplacementTimedOut(u128),
    #[error("this node is not the leader")]
    NotLeader,
    #[error("no other voter is there to lead")]
    NoSuccessor,
    #[error("no leadership change within {0} ms")]
    TransferTimedOut(u128),
    #[error("the snapshot was not written within {0} ms")]
    SnapshotTimedOut(u128),
}

impl RaftError {
    pub(super) fn io(action: impl Into<String>) -> impl FnOnce(io::Error) -> Self {
        let action = action.into();
        move |source| match corruption(&source) {
            Some(Corruption { file, offset, reason }) => {
                Self::Corrupt { file: file.clone(), offset: *offset, reason: reason.clone() }
            }
            None => Self::Io { action, source },
        }
    }

    pub(super) fn cluster_ids(theirs: ClusterId, ours: ClusterId) -> Self {
        Self::InconsistentClusterId(format!("the caller is of cluster {theirs}, this node is of cluster {ours}"))
    }
}

/// Travels inside an `io::Error`, so that openraft's storage traits can carry it.
#[derive(Debug, thiserror::Error)]
#[error("{file:?} is corrupt at offset {offset}: {reason}")]
pub(super) struct Corruption {
    pub file: PathBuf,
    pub offset: u64,
    pub reason: String,
}

impl From<Corruption> for io::Error {
    fn from(corruption: Corruption) -> Self {
        io::Error::new(io::ErrorKind::InvalidData, corruption)
    }
}

fn corruption(error: &io::Error) -> Option<&Corruption> {
    error.get_ref()?.downcast_ref()
}

/// Only `NotLeader` and `TooLarge` are definite: the payload is in no log.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ProposeError {
    #[error("this node is not the leader under the claimed epoch")]
    NotLeader,
    #[error("the payload has {bytes} bytes, more than an entry may have")]
    TooLarge { bytes: usize },
    /// May or may not be replayed, now or later.
    #[error("outcome unknown: {0}")]
    Unknown(String),
    /// Also unknown, and no later call will do better.
    #[error("raft has stopped")]
    Stopped,
}

impl ProposeError {
    /// Certainly not replayed, ever.
    pub fn is_definite(&self) -> bool {
        match self {
            Self::NotLeader | Self::TooLarge { .. } => true,
            Self::Unknown(_) | Self::Stopped => false,
        }
    }
}

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ReadError {
    /// No majority confirmed a leader in time. Retry.
    #[error("no leader confirmed the read in time: {0}")]
    Unavailable(String),
    #[error("raft has stopped")]
    Stopped,
}
