//! Raft's structs in protobuf and back. openraft derives serde for them, but its field order is not a format.

use bytes::Bytes;
use openraft::EntryPayload;
use openraft::vote::RaftLeaderId;

use quorate_metadata::ids::{ClusterId, DirectoryId};
use quorate_proto::raft as proto;

use super::types::{
    self, CommittedLeader, LeaderId, LogId, Membership, NodeId, SnapshotMeta, StoredMembership, Vote, VoterNode,
};

/// The largest term. A controller epoch is a term, in Kafka's width: a leader of a larger one could commit nothing.
const TERM_MAX: u64 = i32::MAX as u64;

/// A message that no node of this repository would have written.
#[derive(Debug, thiserror::Error)]
pub enum Malformed {
    #[error("malformed {0}")]
    Field(&'static str),
    #[error("invalid term {0}: expected at most {max}", max = TERM_MAX)]
    Term(u64),
}

pub fn id_out(node: NodeId) -> i32 {
    types::controller_id(node).get()
}

pub fn id_in(id: i32) -> Result<NodeId, Malformed> {
    u64::try_from(id).map_err(|_| Malformed::Field("node id"))
}

pub fn directory_in(bytes: &[u8]) -> Result<DirectoryId, Malformed> {
    bytes.try_into().map(DirectoryId::from_bytes).map_err(|_| Malformed::Field("directory id"))
}

pub fn cluster_in(bytes: &[u8]) -> Result<Option<ClusterId>, Malformed> {
    if bytes.is_empty() {
        return Ok(None);
    }
    bytes.try_into().map(|bytes| Some(ClusterId::from_bytes(bytes))).map_err(|_| Malformed::Field("cluster id"))
}

pub fn cluster_out(cluster: Option<ClusterId>) -> Bytes {
    cluster.map(|id| Bytes::copy_from_slice(id.as_bytes())).unwrap_or_default()
}

pub fn directory_out(directory: DirectoryId) -> Bytes {
    Bytes::copy_from_slice(directory.as_bytes())
}

pub fn log_id(term: u64, index: u64) -> LogId {
    LogId { leader_id: CommittedLeader { term }, index }
}

fn term_in(term: u64) -> Result<u64, Malformed> {
    if term > TERM_MAX { Err(Malformed::Term(term)) } else { Ok(term) }
}

pub fn log_id_in(id: proto::LogId) -> Result<LogId, Malformed> {
    Ok(log_id(term_in(id.term)?, id.index))
}

pub fn maybe_log_id_in(id: Option<proto::LogId>) -> Result<Option<LogId>, Malformed> {
    id.map(log_id_in).transpose()
}

pub fn log_id_out(id: LogId) -> proto::LogId {
    proto::LogId { term: id.leader_id.term, index: id.index }
}

pub fn vote_in(vote: Option<proto::Vote>) -> Result<Vote, Malformed> {
    let vote = vote.ok_or(Malformed::Field("vote"))?;
    let leader_id = LeaderId::new(term_in(vote.term)?, id_in(vote.node_id)?);
    Ok(Vote { leader_id, committed: vote.committed })
}

pub fn vote_out(vote: &Vote) -> proto::Vote {
    proto::Vote { term: vote.leader_id.term, node_id: id_out(vote.leader_id.voted_for), committed: vote.committed }
}

pub fn membership_in(membership: proto::Membership) -> Result<Membership, Malformed> {
    let ids = |set: proto::VoterSet| set.ids.into_iter().map(id_in).collect();
    let configs = membership.configs.into_iter().map(ids).collect::<Result<Vec<_>, _>>()?;
    let nodes = membership.nodes.into_iter().map(voter_in).collect::<Result<Vec<_>, _>>()?;
    let nodes: std::collections::BTreeMap<_, _> = nodes.into_iter().collect();
    if configs.is_empty() && nodes.is_empty() {
        return Ok(Membership::default());
    }
    Membership::new(configs, nodes).map_err(|_| Malformed::Field("membership"))
}

fn voter_in(voter: proto::Voter) -> Result<(NodeId, VoterNode), Malformed> {
    let directory = directory_in(&voter.directory)?;
    Ok((id_in(voter.id)?, VoterNode::new(voter.raft, voter.api, directory, voter.metadata_version_max)))
}

pub fn voter_out(id: NodeId, node: &VoterNode) -> proto::Voter {
    proto::Voter {
        id: id_out(id),
        directory: directory_out(node.directory()),
        raft: node.raft.clone(),
        api: node.api.clone(),
        metadata_version_max: node.level_max,
    }
}

pub fn membership_out(membership: &Membership) -> proto::Membership {
    let set =
        |ids: &std::collections::BTreeSet<NodeId>| proto::VoterSet { ids: ids.iter().copied().map(id_out).collect() };
    proto::Membership {
        configs: membership.get_joint_config().iter().map(set).collect(),
        nodes: membership.nodes().map(|(id, node)| voter_out(*id, node)).collect(),
    }
}

pub fn entry_in(entry: proto::Entry) -> Result<types::Entry, Malformed> {
    use proto::entry::Payload;
    let log_id = log_id_in(entry.log_id.ok_or(Malformed::Field("entry"))?)?;
    let payload = match entry.payload.ok_or(Malformed::Field("entry payload"))? {
        Payload::Blank(_) => EntryPayload::Blank,
        Payload::Normal(bytes) => EntryPayload::Normal(types::Payload(bytes)),
        Payload::Membership(membership) => EntryPayload::Membership(membership_in(membership)?),
    };
    Ok(types::Entry { log_id, payload })
}

pub fn entry_out(entry: types::Entry) -> proto::Entry {
    use proto::entry::Payload;
    let payload = match entry.payload {
        EntryPayload::Blank => Payload::Blank(true),
        EntryPayload::Normal(types::Payload(bytes)) => Payload::Normal(bytes),
        EntryPayload::Membership(membership) => Payload::Membership(membership_out(&membership)),
    };
    proto::Entry { log_id: Some(log_id_out(entry.log_id)), payload: Some(payload) }
}

pub fn meta_in(meta: Option<proto::SnapshotMeta>) -> Result<SnapshotMeta, Malformed> {
    let meta = meta.ok_or(Malformed::Field("snapshot meta"))?;
    let stored = meta.membership.ok_or(Malformed::Field("snapshot membership"))?;
    let membership = membership_in(stored.membership.unwrap_or_default())?;
    Ok(SnapshotMeta {
        last_log_id: maybe_log_id_in(meta.last_log_id)?,
        last_membership: StoredMembership::new(maybe_log_id_in(stored.log_id)?, membership),
    })
}

pub fn meta_out(meta: &SnapshotMeta) -> proto::SnapshotMeta {
    let stored = &meta.last_membership;
    proto::SnapshotMeta {
        last_log_id: meta.last_log_id.map(log_id_out),
        membership: Some(proto::StoredMembership {
            log_id: stored.log_id().map(log_id_out),
            membership: Some(membership_out(stored.membership())),
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_term_is_a_controller_epoch_or_refused() {
        let vote = |term| vote_in(Some(proto::Vote { term, node_id: 1, committed: false }));
        assert!(vote(TERM_MAX).is_ok() && log_id_in(proto::LogId { term: TERM_MAX, index: 1 }).is_ok());
        assert!(matches!(vote(TERM_MAX + 1), Err(Malformed::Term(term)) if term == TERM_MAX + 1));
        assert!(log_id_in(proto::LogId { term: TERM_MAX + 1, index: 1 }).is_err());
    }
}
