//! A new disk for a voter that has lost its own: the old disk leaves the membership, the new one joins it as a learner,
//! and votes when it has the log. A voter is an id and a disk, so the two are never counted as one.
//!
//! Meanwhile the quorum is the other voters. That asks for no more of them than before: the voter without its disk could
//! not answer anyway.

use std::collections::BTreeSet;
use std::time::Duration;

use openraft::async_runtime::watch::WatchReceiver;
use openraft::errors::{ClientWriteError, RaftError as OpenraftError};
use openraft::{ChangeMembers, RaftMetrics};

use quorate_metadata::ids::{ControllerId, DirectoryId};

use super::network::Peers;
use super::types::{NodeId, Types, VoterNode, node_id};
use super::{Raft, RaftError, status, wire};

/// What became of a voter's disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Replaced {
    pub directory: DirectoryId,
    /// None when the disk was a voter's already.
    pub old: Option<DirectoryId>,
}

pub struct Replacement {
    pub raft: Raft,
    pub peers: Peers,
    pub voter: ControllerId,
    /// For how long a follower may be silent and still count as reachable.
    pub silence_max: Duration,
}

impl Replacement {
    /// On the leader alone. It may be repeated after any failure, and goes on where it stopped.
    pub async fn run(self) -> Result<Replaced, RaftError> {
        let id = node_id(self.voter);
        let old = self.check_replaceable(id)?;
        let (node, is_empty) = self.greet(id).await?;
        let directory = node.directory();
        let is_known = old == Some(directory);
        if is_known && self.is_settled_voter(id) {
            return Ok(Replaced { directory, old: None });
        }
        if !is_known && !is_empty {
            let why = format!("its disk {directory} is no replacement: `quorate-node format --replacement` makes one");
            return Err(self.refused(why));
        }
        if !is_known {
            tracing::info!(voter = %self.voter, ?old, new = %directory, "replacing the disk of a voter");
            self.remove(id, old).await?;
            self.raft.add_learner(id, node, false).await.map_err(failed)?;
        }
        self.caught_up(id).await?;
        self.change(ChangeMembers::AddVoterIds(BTreeSet::from([id]))).await?;
        tracing::info!(voter = %self.voter, %directory, "the new disk votes");
        Ok(Replaced { directory, old: old.filter(|_| !is_known) })
    }

    async fn remove(&self, id: NodeId, old: Option<DirectoryId>) -> Result<(), RaftError> {
        if self.is_voter(id) {
            self.change(ChangeMembers::RemoveVoters(BTreeSet::from([id]))).await
        } else if old.is_some() {
            self.change(ChangeMembers::RemoveNodes(BTreeSet::from([id]))).await
        } else {
            Ok(())
        }
    }

    /// Until the learner has what the log has now.
    async fn caught_up(&self, id: NodeId) -> Result<(), RaftError> {
        let mut metrics = self.raft.metrics();
        let end = metrics.borrow_watched().last_log_index;
        loop {
            {
                let metrics = metrics.borrow_and_update();
                let replication = metrics.replication.as_ref().ok_or(RaftError::NotLeader)?;
                if replication.get(&id).copied().flatten().map(|matched| matched.index) >= end {
                    return Ok(());
                }
            }
            metrics.changed().await.map_err(|_| RaftError::Stopped("no more is known of the log".to_owned()))?;
        }
    }

    /// The disk that the membership knows for this id. Err: what is asked for cannot be done now.
    fn check_replaceable(&self, id: NodeId) -> Result<Option<DirectoryId>, RaftError> {
        let metrics = self.raft.metrics();
        let metrics = metrics.borrow_watched();
        if metrics.current_leader != Some(metrics.id) {
            return Err(RaftError::NotLeader);
        }
        if metrics.id == id {
            return Err(self.refused("it is the active controller".to_owned()));
        }
        let silent = self.silent(&metrics, id);
        if !silent.is_empty() {
            return Err(
                self.refused(format!("the quorum without it needs these voters, which do not answer: {silent:?}"))
            );
        }
        Ok(metrics.membership_config.get_node(&id).map(VoterNode::directory))
    }

    /// The voters that are missing where the others make no majority of all, which the removal needs. Empty: they do.
    fn silent(&self, metrics: &RaftMetrics<Types>, id: NodeId) -> Vec<NodeId> {
        let (mut total, mut silent) = (0, Vec::new());
        for voter in metrics.membership_config.voter_ids() {
            total += 1;
            let answers = voter == metrics.id || status::has_answered_within(metrics, voter, self.silence_max);
            if voter == id || !answers {
                silent.push(voter);
            }
        }
        let has_majority = (total - silent.len()) * 2 > total;
        silent.retain(|voter| *voter != id);
        if has_majority { Vec::new() } else { silent }
    }

    /// Whether the membership that says so is committed, and no step of a change.
    fn is_settled_voter(&self, id: NodeId) -> bool {
        let metrics = self.raft.server_metrics();
        let metrics = metrics.borrow_watched();
        let effective = &metrics.membership_config;
        let is_committed = metrics.committed_membership_config.log_id() == effective.log_id();
        let is_uniform = effective.membership().get_joint_config().len() == 1;
        is_committed && is_uniform && effective.voter_ids().any(|voter| voter == id)
    }

    fn is_voter(&self, id: NodeId) -> bool {
        self.raft.server_metrics().borrow_watched().membership_config.voter_ids().any(|voter| voter == id)
    }

    /// The disk that answers at the voter's address, and whether it waits for this.
    async fn greet(&self, id: NodeId) -> Result<(VoterNode, bool), RaftError> {
        let configured = self.peers.configured(id).ok_or_else(|| self.refused("it is not configured".to_owned()))?;
        let silent = |why: String| self.refused(format!("no node answers at {}: {why}", configured.raft));
        let answer = self.peers.greet(configured).await.map_err(|status| silent(status.message().to_owned()))?;
        if answer.node_id != self.voter.get() {
            return Err(self.refused(format!("node {} answers at {}", answer.node_id, configured.raft)));
        }
        let malformed = |error: wire::Malformed| silent(error.to_string());
        if let (Some(theirs), Some(ours)) =
            (wire::cluster_in(&answer.cluster_id).map_err(malformed)?, self.peers.local().cluster())
            && theirs != ours
        {
            return Err(RaftError::cluster_ids(theirs, ours));
        }
        let directory = wire::directory_in(&answer.directory).map_err(malformed)?;
        let (raft, api) = (configured.raft.clone(), configured.api.clone());
        let is_empty = answer.replacement && answer.membership_index.is_none();
        Ok((VoterNode::new(raft, api, directory, answer.metadata_version_max), is_empty))
    }

    async fn change(&self, change: ChangeMembers<NodeId, VoterNode>) -> Result<(), RaftError> {
        self.raft.change_membership(change, false).await.map(drop).map_err(failed)
    }

    fn refused(&self, reason: String) -> RaftError {
        RaftError::NotReplaceable { voter: self.voter, reason }
    }
}

fn failed(error: OpenraftError<Types, ClientWriteError<Types>>) -> RaftError {
    match error {
        OpenraftError::APIError(ClientWriteError::ForwardToLeader(_)) => RaftError::NotLeader,
        OpenraftError::APIError(error) => RaftError::MembershipUnchanged(error.to_string()),
        OpenraftError::Fatal(fatal) => RaftError::Stopped(fatal.to_string()),
    }
}
