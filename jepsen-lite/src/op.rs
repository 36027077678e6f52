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
    Write {
        key: u32,
        value: i64,
        offset: Option<i64>,
    },
    /// Sets a register that has the expected value. Refused where it has another.
    Cas {
        key: u32,
        expected: i64,
        value: i64,
        offset: Option<i64>,
    },
    /// The value of a register.
    Read {
        key: u32,
        value: Option<i64>,
        offset: Option<i64>,
    },

    /// Creates a topic. Every name is created by one process, and once.
    Create {
        name: String,
        offset: Option<i64>,
    },
    /// Deletes a topic, by the process that created it, and once.
    Delete {
        name: String,
        offset: Option<i64>,
    },
    /// The topics there are. A stale list is what the asked node has.
    List {
        stale: bool,
        names: Option<Vec<String>>,
        offset: Option<i64>,
    },

    /// What one node has, without asking the quorum.
    Sample {
        node: i32,
        seen: Option<Sample>,
    },

    /// A record with a value that no other has, to all in-sync replicas.
    Produce {
        partition: i32,
        value: u64,
        position: Option<i64>,
        epoch: Option<i32>,
    },
    /// Records of a partition from a position on, up to the high watermark of who was asked.
    Fetch {
        partition: i32,
        from: i64,
        records: Option<Vec<Fetched>>,
    },
    /// At the end: all that one replica has committed.
    Dump {
        partition: i32,
        broker: i32,
        start: i64,
        records: Option<Vec<Fetched>>,
    },

    /// A creation or deletion with a request number of this process, not for the first time maybe. `id`: of the topic.
    Once {
        name: String,
        request: u64,
        creates: bool,
        id: Option<String>,
        offset: Option<i64>,
    },
    /// At the end: names and ids of topics.
    Named {
        topics: Option<Vec<(String, String)>>,
    },

    /// A topic comes under a name that others have had before it. `id`: of this one.
    Born {
        name: String,
        id: Option<String>,
        offset: Option<i64>,
    },
    /// The topic with this id goes.
    Gone {
        name: String,
        id: String,
        offset: Option<i64>,
    },
    /// Which topic has this name, if any. A stale answer is what the asked node has.
    Who {
        name: String,
        stale: bool,
        id: Option<String>,
        offset: Option<i64>,
    },
    /// A record, with a value that no other has, for the topic with this id.
    Told {
        name: String,
        id: String,
        value: u64,
        position: Option<i64>,
    },
    /// All records that the leader of the topic with this id has.
    Retold {
        name: String,
        id: String,
        values: Option<Vec<u64>>,
    },

    /// What one node tells from an offset on; none: from a snapshot on.
    Watch {
        node: i32,
        from: Option<i64>,
        heard: Option<Vec<Heard>>,
    },

    /// A new incarnation of a broker that has no process. `live`: another one was heard a moment ago, nothing is broken.
    Register {
        broker: i32,
        live: bool,
        epoch: Option<i64>,
    },
    /// A heartbeat of the incarnation with this epoch.
    Beat {
        broker: i32,
        epoch: i64,
        fenced: Option<bool>,
    },

    /// A record handed to one broker, whoever leads. `epoch`: in which it took it.
    Append {
        partition: i32,
        broker: i32,
        epoch: Option<i32>,
    },
    /// A change of an ISR that names something of the past, so that it must be refused.
    StaleIsr {
        partition: i32,
        stale: Stale,
        isr: Option<Vec<i32>>,
    },
    /// A record with acks=all where fewer replicas than min.insync.replicas can have it.
    Squeezed {
        partition: i32,
        position: Option<i64>,
    },

    /// A large request that changes nothing, to one node.
    Burden {
        node: i32,
    },

    /// Partitions move to other replicas, or back.
    Move {
        partition: i32,
        replicas: Vec<i32>,
        offset: Option<i64>,
    },
    CancelMove {
        partition: i32,
        offset: Option<i64>,
    },
    /// At the end: the replicas of each partition, and whether they still move.
    Replicas {
        partitions: Option<Vec<(i32, Vec<i32>, bool)>>,
    },
}

/// What a request to change an ISR is wrong about.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Stale {
    BrokerEpoch,
    PartitionEpoch,
    LeaderEpoch,
}

/// A batch of the feed, or the snapshot that it began with.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Heard {
    /// Of the first record; of a snapshot there is none.
    pub first: Option<i64>,
    /// After the last one.
    pub next: i64,
    /// Over the records; of a snapshot there is none.
    pub checksum: u32,
    /// Of the image that replaying them gives.
    pub digest: String,
    pub elections: Vec<Election>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Election {
    pub partition: String,
    pub leader: i32,
    /// Of the leader, after it.
    pub epoch: i32,
    pub cause: String,
    /// Whether the leader was in ISR or ELR before, or comes with its first replicas.
    pub was_eligible: bool,
    /// Recorded as unclean.
    pub unclean: bool,
    /// Whether the topic allows an unclean election.
    pub unclean_allowed: bool,
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
            Self::Born { offset, .. } | Self::Gone { offset, .. } | Self::Who { offset, .. } => *offset,
            Self::Once { offset, .. } | Self::Move { offset, .. } | Self::CancelMove { offset, .. } => *offset,
            Self::Sample { seen, .. } => seen.as_ref().map(|seen| seen.offset),
            Self::Register { epoch, .. } => *epoch,
            Self::Watch { heard, .. } => heard.as_ref().and_then(|heard| heard.last()).map(|heard| heard.next),
            _ => None,
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
    /// Of those whose names are not given twice in a run.
    pub topic: String,
    pub partition: i32,
    pub leader: Option<i32>,
    pub leader_epoch: i32,
    pub partition_epoch: i32,
    pub isr: Vec<i32>,
    pub elr: Vec<i32>,
}
