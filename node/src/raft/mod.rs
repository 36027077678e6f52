//! The log of the controllers, by Raft. The only place with Raft's words: outside it is controller epoch, active and
//! standby, offset and record.
//!
//! Goals, in order: what was acknowledged survives and is read by all who ask after it; a disk that lost its memory never
//! passes for the one it was; a dead leader is replaced within milliseconds where its death is certain.
//!
//! ```text
//!   propose ─► openraft (own thread, own runtime) ─► store: queue ─► flusher ─► RocksDB or its twin in memory
//!                  │        ▲                          └► tail ─► replication, replay
//!                  ▼        │ append, vote, snapshot
//!               replay    network: three connections a peer, by the dial map
//!            (own thread)
//!                  ▼
//!              Replica
//! ```
//!
//! Invariant: nothing is acknowledged before it is on stable storage here, and no structure of openraft's is stored or
//! sent but through `wire`.

mod bootstrap;
mod check_quorum;
mod dial;
mod election;
mod error;
mod floor;
mod identity;
mod inspect;
mod leadership;
mod network;
mod node;
mod replacement;
mod replay;
mod runtime;
mod state_machine;
mod status;
mod store;
mod thread;
mod trimming;
mod types;
mod wire;

use std::io;
use std::path::PathBuf;

use bytes::Bytes;

use quorate_metadata::ids::{ClusterId, ControllerEpoch, ControllerId, Offset};

use crate::machine::Workers;

pub use dial::DialMap;
pub use error::{ProposeError, RaftError, ReadError};
pub use identity::{Formatted, format, identify, join};
pub use inspect::{
    DumpedEntry, DumpedSnapshot, DumpedVote, EntryKind, StoredEntry, dump_log, dump_snapshot, dump_vote,
};
pub use leadership::{LeaderInfo, Leadership};
pub use node::RaftNode;
pub use replacement::Replaced;
pub use status::{QuorumStatus, VoterState, VoterStatus};
pub use store::{Logged, LoggedEntry, MemoryStore, RocksStore, Store};

/// openraft with our types.
type Raft = openraft::Raft<types::Types, state_machine::StateMachine>;

/// What committed log entries are replayed on. Owned by the replay thread.
pub trait Replica: Send + 'static {
    /// Replays one committed payload written under `epoch`. An error is a broken invariant: the node stops, its log intact.
    fn replay(&mut self, epoch: ControllerEpoch, payload: &Bytes) -> Result<Outcome, ReplicaError>;
    /// Makes everything replayed so far visible. Called once per run, before its proposers get their replies.
    fn publish(&mut self);
    /// A view that stays as it is while the replica goes on. Must be cheap: replay waits for it.
    fn freeze(&self) -> Box<dyn FrozenReplica>;
    /// Replaces the whole state by what a snapshot holds, and publishes it.
    fn install(&mut self, content: &mut dyn io::Read) -> Result<(), ReplicaError>;
}

/// A view that can be written out on another thread.
pub trait FrozenReplica: Send {
    fn write_to(&self, out: &mut dyn io::Write) -> io::Result<()>;
}

/// What replaying a payload came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    Replayed {
        next_offset: Offset,
    },
    /// Planned under another claim: replayed to nothing.
    WrongEpoch,
}

/// Why a committed payload cannot be replayed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct ReplicaError(pub String);

/// A configured voter.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VoterAddress {
    pub id: ControllerId,
    /// `host:port`
    pub raft: String,
    pub api: String,
}

/// What this voter is told before it starts.
#[derive(Clone)]
pub struct RaftConfig {
    pub node: ControllerId,
    /// Who forms a new cluster. Ignored by a disk that already belongs to one, but for greeting.
    pub voters: Vec<VoterAddress>,
    pub data: PathBuf,
    /// Refuses any other cluster. None: the bootstrapping voter makes an id.
    pub cluster: Option<ClusterId>,
    pub dial: DialMap,
    /// Whether an empty directory may become an empty voter without a word.
    pub auto_format: bool,
    pub heartbeat_ms: u64,
    pub election_min_ms: u64,
    /// Also the leader's lease.
    pub election_max_ms: u64,
    /// Elect at once when the leader's port refuses connections.
    pub fast_election: bool,
    /// Log replayed since the last snapshot that makes a new one due.
    pub snapshot_log_bytes: u64,
    /// Entries kept behind a snapshot, for followers that lag a little.
    pub log_entries_kept: u64,
    /// Where consensus runs.
    pub workers: Workers,
    /// The highest `metadata.version` that this node supports: a new cluster begins at what all its voters support.
    pub level_max: i16,
}
