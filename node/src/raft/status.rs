//! The quorum as this node sees it.

use std::time::Duration;

use openraft::{Instant, RaftMetrics};
use quorate_metadata::ids::{ControllerEpoch, ControllerId, DirectoryId};

use super::leadership::epoch;
use super::network::Peers;
use super::types::{LogId, NodeId, Types, VoterNode, controller_id};

/// Indexes are Raft's, not metadata offsets; -1 where there is none yet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct QuorumStatus {
    pub leader: Option<ControllerId>,
    pub epoch: ControllerEpoch,
    pub log_end: i64,
    pub committed: i64,
    pub applied: i64,
    pub snapshot: i64,
    pub voters: Vec<VoterStatus>,
    /// They get the log and have no vote: new disks of voters.
    pub observers: Vec<VoterStatus>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VoterStatus {
    pub id: ControllerId,
    pub directory: DirectoryId,
    pub raft: String,
    pub api: String,
    /// Known to the leader alone.
    pub log_end: Option<i64>,
    pub lag: Option<i64>,
    pub state: VoterState,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum VoterState {
    Leader,
    Follower,
    /// The leader has not heard of it for longer than its lease.
    Unreachable,
    /// Only the leader can tell.
    Unknown,
}

/// `applied`: the last entry that is visible here; `silence_max`: how long a follower may be silent and still count as reachable.
pub fn of(metrics: &RaftMetrics<Types>, applied: Option<LogId>, peers: &Peers, silence_max: Duration) -> QuorumStatus {
    let membership = &metrics.membership_config;
    let describe = |id| Some(voter(metrics, peers, (id, membership.get_node(&id)?), silence_max));
    let voters = membership.voter_ids().filter_map(describe);
    let observers = membership.membership().learner_ids().filter_map(describe);
    QuorumStatus {
        leader: metrics.current_leader.map(controller_id),
        epoch: epoch(metrics.current_term),
        log_end: metrics.last_log_index.map_or(-1, signed),
        committed: index(metrics.cluster_committed.or(metrics.local_committed)),
        applied: index(applied),
        snapshot: index(metrics.snapshot),
        voters: voters.collect(),
        observers: observers.collect(),
    }
}

/// Alone in the quorum, a leader needs nobody's word.
pub fn quorum_acked_within(metrics: &RaftMetrics<Types>, limit: Duration) -> bool {
    let is_alone = metrics.current_leader == Some(metrics.id) && metrics.membership_config.voter_ids().count() == 1;
    is_alone || metrics.last_quorum_acked.as_ref().is_some_and(|acked| acked.elapsed() <= limit)
}

fn voter(
    metrics: &RaftMetrics<Types>,
    peers: &Peers,
    (id, node): (NodeId, &VoterNode),
    silence_max: Duration,
) -> VoterStatus {
    let log_end = if id == metrics.id { metrics.last_log_index.map(signed) } else { replicated(metrics, id) };
    let end = metrics.last_log_index.map_or(-1, signed);
    let leads = metrics.replication.is_some();
    VoterStatus {
        id: controller_id(id),
        directory: node.directory(),
        raft: peers.raft(id, &node.raft).to_owned(),
        api: peers.api(id, &node.api).to_owned(),
        log_end: log_end.filter(|_| leads || id == metrics.id),
        lag: log_end.filter(|_| leads).map(|log_end| end - log_end),
        state: state(metrics, id, silence_max),
    }
}

/// None on a follower, which knows of nobody's log but its own, and of a voter that this leader has not heard of.
fn replicated(metrics: &RaftMetrics<Types>, id: NodeId) -> Option<i64> {
    let matched = metrics.replication.as_ref()?.get(&id)?;
    matched.map(|matched| signed(matched.index))
}

fn state(metrics: &RaftMetrics<Types>, id: NodeId, silence_max: Duration) -> VoterState {
    if metrics.current_leader == Some(id) {
        return VoterState::Leader;
    }
    if metrics.id == id {
        return VoterState::Follower;
    }
    if metrics.heartbeat.is_none() {
        return VoterState::Unknown;
    }
    if has_answered_within(metrics, id, silence_max) { VoterState::Follower } else { VoterState::Unreachable }
}

/// Only a leader is answered.
pub fn has_answered_within(metrics: &RaftMetrics<Types>, id: NodeId, limit: Duration) -> bool {
    let heard = metrics.heartbeat.as_ref().and_then(|heartbeats| heartbeats.get(&id).copied().flatten());
    heard.is_some_and(|heard| heard.elapsed() <= limit)
}

fn index(id: Option<LogId>) -> i64 {
    id.map_or(-1, |id| signed(id.index))
}

fn signed(index: u64) -> i64 {
    i64::try_from(index).unwrap_or(i64::MAX)
}
