//! What openraft is instantiated with. Its words stay in this folder.

use std::fmt;

use bytes::Bytes;
use openraft::raft::responder::Responder;
use openraft::{OptionalSend, RaftTypeConfig};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use quorate_metadata::ids::{ControllerId, DirectoryId, Offset};

use super::runtime::Runtime;

pub type NodeId = u64;
pub type Vote = openraft::alias::VoteOf<Types>;
pub type LogId = openraft::alias::LogIdOf<Types>;
pub type Entry = openraft::alias::EntryOf<Types>;
pub type Membership = openraft::Membership<NodeId, VoterNode>;
pub type StoredMembership = openraft::alias::StoredMembershipOf<Types>;
pub type SnapshotMeta = openraft::alias::SnapshotMetaOf<Types>;
pub type CommittedLeader = openraft::alias::CommittedLeaderIdOf<Types>;
pub type LeaderId = openraft::alias::LeaderIdOf<Types>;

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Types;

impl RaftTypeConfig for Types {
    type D = Payload;
    type R = Applied;
    type NodeId = NodeId;
    type Node = VoterNode;
    type Term = u64;
    // One leader per term: a controller epoch is a term, and names one controller.
    type LeaderId = openraft::impls::leader_id_std::LeaderId<u64, NodeId>;
    type Vote = openraft::Vote<Self::LeaderId>;
    type Payload = openraft::EntryPayload<Payload, NodeId, VoterNode>;
    type Entry = openraft::Entry<<Self::LeaderId as openraft::vote::RaftLeaderId>::Committed, Self::Payload>;
    type AsyncRuntime = Runtime;
    type Responder<T>
        = Reply<T>
    where
        T: OptionalSend + 'static;
    type Batch<T>
        = openraft::impls::InlineBatch<T>
    where
        T: OptionalSend + 'static;
    type ErrorSource = openraft::impls::BoxedErrorSource;
}

/// A batch as the controller encoded it: carried untouched to disk and wire.
#[derive(Clone, PartialEq, Eq, Default)]
pub struct Payload(pub Bytes);

impl fmt::Display for Payload {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} bytes", self.0.len())
    }
}

impl fmt::Debug for Payload {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

// openraft's `serde` feature asks for it; nothing is stored or sent by it.
impl Serialize for Payload {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_bytes(&self.0)
    }
}

impl<'de> Deserialize<'de> for Payload {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Ok(Self(Vec::<u8>::deserialize(deserializer)?.into()))
    }
}

/// What became of one entry.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Applied {
    /// Raft's own: a blank or a membership.
    Internal,
    Replayed {
        next_offset: i64,
    },
    WrongEpoch,
}

impl From<super::Outcome> for Applied {
    fn from(outcome: super::Outcome) -> Self {
        match outcome {
            super::Outcome::Replayed { next_offset } => Self::Replayed { next_offset: next_offset.get() },
            super::Outcome::WrongEpoch => Self::WrongEpoch,
        }
    }
}

impl Applied {
    /// None for Raft's own entries, which nobody proposes.
    pub fn outcome(self) -> Option<super::Outcome> {
        match self {
            Self::Internal => None,
            Self::Replayed { next_offset } => Some(super::Outcome::Replayed { next_offset: Offset::new(next_offset) }),
            Self::WrongEpoch => Some(super::Outcome::WrongEpoch),
        }
    }
}

/// A voter as the membership knows it: the disk is half of its name.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct VoterNode {
    pub raft: String,
    pub api: String,
    directory: [u8; 16],
    /// The highest `metadata.version` that it supported when the cluster was formed; 0 where it did not say.
    pub level_max: i32,
}

impl VoterNode {
    pub fn new(raft: String, api: String, directory: DirectoryId, level_max: i32) -> Self {
        Self { raft, api, directory: *directory.as_bytes(), level_max }
    }

    pub fn directory(&self) -> DirectoryId {
        DirectoryId::from_bytes(self.directory)
    }
}

/// Tells one proposer its result, without a task in between.
pub struct Reply<T>(pub Box<dyn FnOnce(T) + Send>);

impl<T: OptionalSend + 'static> Responder<Types, T> for Reply<T> {
    fn on_complete(self, result: T) {
        (self.0)(result);
    }
}

/// Raft's name of a controller. Ids are checked to be positive where they enter.
pub fn node_id(controller: ControllerId) -> NodeId {
    u64::try_from(controller.get()).expect("controller ids are checked to be positive")
}

pub fn controller_id(node: NodeId) -> ControllerId {
    ControllerId::new(i32::try_from(node).expect("node ids are made from controller ids"))
}
