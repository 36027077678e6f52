//! What a data directory holds, for people and for checkers. Read-only, also while the node runs.

use std::io;
use std::path::Path;

use bytes::Bytes;
use openraft::EntryPayload;

use quorate_metadata::ids::{ClusterId, ControllerId};

use super::RaftError;
use super::store::{Snapshots, codec, open_read_only};
use super::types::{Entry, controller_id};

/// Entries read from the disk at once.
const READ_BYTES: usize = 1 << 20;

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DumpedEntry {
    pub index: u64,
    pub term: u64,
    pub kind: EntryKind,
    /// As the controller encoded it; empty for Raft's own entries.
    pub payload: Bytes,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum EntryKind {
    Blank,
    Normal,
    /// The voters it names.
    Membership(Vec<ControllerId>),
}

/// An entry as one row of the log holds it, for whoever has the bytes and no disk.
#[derive(Debug, Clone, PartialEq)]
pub struct StoredEntry(Entry);

impl StoredEntry {
    /// Refuses what no node of this release has written under this key.
    pub fn decode(key: &[u8], value: &[u8]) -> Result<Self, String> {
        codec::decode_entry(key, value).map(Self)
    }

    /// The value that this release writes for it.
    pub fn encode(&self) -> Vec<u8> {
        codec::encode_entry(&self.0)
    }

    pub fn dump(self) -> DumpedEntry {
        dumped(self.0)
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DumpedVote {
    pub term: u64,
    pub voted_for: ControllerId,
    /// A majority granted it.
    pub leads: bool,
    /// The last index known to be committed when it was last written, which is lazily.
    pub committed: Option<u64>,
}

pub struct DumpedSnapshot {
    pub name: String,
    pub index: Option<u64>,
    pub term: Option<u64>,
    pub cluster: Option<ClusterId>,
    pub voters: Vec<ControllerId>,
    /// The replica's own encoding, each frame checked as it is read.
    pub content: Box<dyn io::Read + Send>,
}

/// Every entry from the first that is kept.
pub fn dump_log(data: &Path) -> Result<impl Iterator<Item = Result<DumpedEntry, RaftError>>, RaftError> {
    let disk = open_read_only(data)?;
    let loaded = disk.load().map_err(RaftError::io("read the log"))?;
    let end = loaded.last.map_or(0, |last| last.index + 1);
    let mut next = loaded.purged.map_or(0, |purged| purged.index + 1);
    let chunks = std::iter::from_fn(move || {
        if next >= end {
            return None;
        }
        let chunk = disk.read(next..end, READ_BYTES).map_err(RaftError::io("read the log"));
        next = chunk.as_ref().ok().and_then(|chunk| chunk.last()).map_or(end, |last| last.log_id.index + 1);
        Some(chunk)
    });
    Ok(chunks.flat_map(|chunk| match chunk {
        Ok(entries) => entries.into_iter().map(|entry| Ok(dumped(entry))).collect::<Vec<_>>(),
        Err(error) => vec![Err(error)],
    }))
}

fn dumped(entry: Entry) -> DumpedEntry {
    let (kind, payload) = match entry.payload {
        EntryPayload::Blank => (EntryKind::Blank, Bytes::new()),
        EntryPayload::Normal(payload) => (EntryKind::Normal, payload.0),
        EntryPayload::Membership(membership) => {
            (EntryKind::Membership(membership.voter_ids().map(controller_id).collect()), Bytes::new())
        }
    };
    DumpedEntry { index: entry.log_id.index, term: entry.log_id.leader_id.term, kind, payload }
}

/// None before the first vote.
pub fn dump_vote(data: &Path) -> Result<Option<DumpedVote>, RaftError> {
    let loaded = open_read_only(data)?.load().map_err(RaftError::io("read the vote"))?;
    Ok(loaded.vote.map(|vote| DumpedVote {
        term: vote.leader_id.term,
        voted_for: controller_id(vote.leader_id.voted_for),
        leads: vote.committed,
        committed: loaded.committed.map(|id| id.index),
    }))
}

/// The newest one. None when there is none.
pub fn dump_snapshot(data: &Path) -> Result<Option<DumpedSnapshot>, RaftError> {
    let path = data.join("snapshots");
    let failed = |error| RaftError::io(format!("read {path:?}"))(error);
    let Some(snapshot) = Snapshots::existing(path.clone()).latest().map_err(failed)? else {
        return Ok(None);
    };
    let content = snapshot.read().map_err(failed)?;
    Ok(Some(DumpedSnapshot {
        name: snapshot.name(),
        index: snapshot.meta.last_log_id.map(|id| id.index),
        term: snapshot.meta.last_log_id.map(|id| id.leader_id.term),
        cluster: snapshot.cluster,
        voters: snapshot.meta.last_membership.voter_ids().map(controller_id).collect(),
        content,
    }))
}
