//! Everything that is asked of a cluster, and what it answers: the schema of `history.jsonl`.
//!
//! What an operation asks is always there; what the cluster answers is absent until it has. Offsets are metadata
//! offsets, as the cluster reports them: a mutation's is the one after its last record, and a read's is the one up to
//! which it saw everything. Log offsets are called positions.

use serde::{Deserialize, Serialize};

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub enum Op {
    /// Sets a register. No value is ever written twice to one key.
    Write { key: u32, value: i64, offset: Option<i64> },
    /// Sets a register that has the expected value. Refused where it has another.
    Cas { key: u32, expected: i64, value: i64, offset: Option<i64> },
    /// The value of a register.
    Read { key: u32, value: Option<i64>, offset: Option<i64> },

    /// Creates a topic. Every name is created by one process, and once.
    Create { name: String, offset: Option<i64> },
    /// Deletes a topic, by the process that created it, and once.
    Delete { name: String, offset: Option<i64> },
    /// The topics there are. A stale list is what the asked node has.
    List { stale: bool, names: Option<Vec<String>>, offset: Option<i64> },

    /// What one node has, without asking the quorum.
    Sample { node: i32, seen: Option<Sample> },

    /// A record with a value that no other has, to all in-sync replicas.
    Produce { partition: i32, value: u64, position: Option<i64>, epoch: Option<i32> },
    /// Records of a partition from a position on, up to the high watermark of who was asked.
    Fetch { partition: i32, from: i64, records: Option<Vec<Fetched>> },
    /// At the end: all that one replica has committed.
    Dump { partition: i32, broker: i32, start: i64, records: Option<Vec<Fetched>> },
}

impl Op {
    /// The metadata offset that the cluster has told.
    pub fn offset(&self) -> Option<i64> {
        match self {
            Self::Write { offset, .. }
            | Self::Cas { offset, .. }
            | Self::Read { offset, .. }
            | Self::Create { offset, .. }
            | Self::Delete { offset, .. }
            | Self::List { offset, .. } => *offset,
            Self::Sample { seen, .. } => seen.as_ref().map(|seen| seen.offset),
            Self::Produce { .. } | Self::Fetch { .. } | Self::Dump { .. } => None,
        }
    }
}

/// A record in a log: position, leader epoch, value.
pub type Fetched = (i64, i32, u64);

/// What one node has at one offset.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Sample {
    pub offset: i64,
    /// Of the whole image, where the node told it at this offset.
    pub digest: Option<String>,
    pub partitions: Vec<PartitionState>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PartitionState {
    /// No name is given to two topics in a run.
    pub topic: String,
    pub partition: i32,
    pub leader: Option<i32>,
    pub leader_epoch: i32,
    pub partition_epoch: i32,
    pub isr: Vec<i32>,
    pub elr: Vec<i32>,
}
