//! Who may call, checked before Raft handles the call: it is for this cluster, this id and this disk; its caller is a voter
//! of the effective membership, on the disk that the membership names; and the vote in it is the caller's own.
//!
//! Anything else can end a cluster: a vote of a high term from a node that never existed is granted by all, and no voter
//! can be elected any more.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex};

use openraft::async_runtime::watch::WatchReceiver;
use openraft::raft::AppendEntriesRequest;
use tonic::Status;

use quorate_metadata::ids::DirectoryId;

use super::super::RaftError;
use super::super::types::{LogId, NodeId, StoredMembership, Types, Vote, VoterNode, node_id};
use super::peers::{Acknowledged, Header};
use super::server::{Service, stopped};
use super::{INCONSISTENT_CLUSTER_ID, INVALID_VOTER_KEY, VOTER_STATE_DIVERGED, VOTER_STATE_LOST, named, refusal};

/// What the first call of each voter is compared with.
#[derive(Clone)]
pub struct FirstCalls {
    /// The first index after the log as it was found on the disk.
    pub loaded_end: u64,
    /// Those whose first call since the start has passed.
    pub checked: Arc<Mutex<BTreeSet<NodeId>>>,
}

impl FirstCalls {
    fn is_checked(&self, caller: NodeId) -> bool {
        self.checked.lock().expect("no holder panics").contains(&caller)
    }

    fn pass(&self, caller: NodeId) -> Result<(), Status> {
        self.checked.lock().expect("no holder panics").insert(caller);
        Ok(())
    }
}

/// What this node knows of a caller.
enum Caller {
    Voter(DirectoryId),
    /// This node has no log and no membership, so it cannot tell.
    Unknown,
    NoVoter,
}

impl Caller {
    fn of(membership: &StoredMembership, id: NodeId, has_log: bool) -> Self {
        let is_voter = membership.voter_ids().any(|voter| voter == id);
        match membership.get_node(&id).filter(|_| is_voter).map(VoterNode::directory) {
            Some(directory) => Self::Voter(directory),
            None if membership.log_id().is_none() && !has_log => Self::Unknown,
            None => Self::NoVoter,
        }
    }
}

impl Service {
    /// The caller's id, if the call is for this voter from a voter whose disk is known.
    pub(super) async fn check(&self, header: &Header) -> Result<NodeId, Status> {
        self.check_addressee(header)?;
        self.check_caller(header).await?;
        self.check_cluster(header)?;
        let caller = node_id(header.from.0);
        self.check_first_call(caller, header.acknowledged).await?;
        Ok(caller)
    }

    /// Refuses to go on with an older copy of the disk: a leader has seen an entry acknowledged that the log lacked when
    /// this voter started. A leader of an older term may know entries that were cut off since.
    async fn check_first_call(&self, caller: NodeId, acknowledged: Option<Acknowledged>) -> Result<(), Status> {
        let calls = &self.first_calls;
        if calls.is_checked(caller) {
            return Ok(());
        }
        let Some(Acknowledged { term, index }) = acknowledged else { return calls.pass(caller) };
        let current = self.raft.with_raft_state(|state| state.vote_ref().leader_id.term).await.map_err(stopped)?;
        if term < current || index < calls.loaded_end {
            return calls.pass(caller);
        }
        let (data, end) = (self.local.data().to_owned(), calls.loaded_end);
        let reason = format!(
            "it has acknowledged entry {index} to node {caller}, but its log ended before entry {end}: the disk is an older copy"
        );
        let error = RaftError::VoterStateLost { data, reason };
        Err(self.end(VOTER_STATE_LOST, error))
    }

    /// Refuses to follow a leader whose log lacks what is committed here. Openraft takes it as given that no leader does,
    /// and compares nothing up to the committed entry.
    pub(super) async fn check_agreement(&self, append: &AppendEntriesRequest<Types>) -> Result<(), Status> {
        let Some(committed) = self.log.committed() else { return Ok(()) };
        let named = append.prev_log_id.into_iter().chain(append.entries.iter().map(|entry| entry.log_id));
        let known: Vec<LogId> = named.take_while(|id| id.index <= committed.index && *id != committed).collect();
        if known.is_empty() {
            return Ok(());
        }
        let term = append.vote.leader_id.term;
        let differs = self.raft.with_raft_state(move |state| {
            // One of an older term is refused by Raft, whatever its log has.
            let is_current = term >= state.vote_ref().leader_id.term;
            let differs = |id: &LogId| state.log_ids.get(id.index).is_some_and(|ours| ours != *id);
            known.into_iter().find(|id| is_current && differs(id))
        });
        match differs.await.map_err(stopped)? {
            Some(LogId { index, .. }) => {
                let error = RaftError::VoterStateDiverged { index, committed: committed.index };
                Err(self.end(VOTER_STATE_DIVERGED, error))
            }
            None => Ok(()),
        }
    }

    /// Ends this voter, and says why to the caller.
    fn end(&self, name: &'static str, error: RaftError) -> Status {
        let status = named(name, error.to_string());
        // One reason is enough.
        let _ = self.refused.try_send(error);
        status
    }

    fn check_cluster(&self, header: &Header) -> Result<(), Status> {
        let Some(theirs) = header.cluster else {
            return Err(refusal(INCONSISTENT_CLUSTER_ID, "the caller is of no cluster yet"));
        };
        self.local.adopt(theirs).map_err(|error| named(INCONSISTENT_CLUSTER_ID, error.to_string()))
    }

    fn check_addressee(&self, header: &Header) -> Result<(), Status> {
        let (to, directory) = header.to;
        if to != self.local.node {
            return Err(refusal(
                INVALID_VOTER_KEY,
                format!("the call is for node {to}; this is node {}", self.local.node),
            ));
        }
        if directory != self.local.directory {
            self.doubted.notify_one();
            let text =
                format!("node {to} is a voter with directory {directory}; this disk is {}", self.local.directory);
            return Err(refusal(INVALID_VOTER_KEY, text));
        }
        Ok(())
    }

    /// The first leader calls voters that do not know the membership yet. It is one of those that they are configured with.
    async fn check_caller(&self, header: &Header) -> Result<(), Status> {
        let (from, disk) = header.from;
        if from.get() < 0 {
            return Err(Status::invalid_argument(format!("node id {from} is negative")));
        }
        match self.caller(node_id(from)).await? {
            Caller::Voter(directory) if directory == disk => Ok(()),
            Caller::Voter(directory) => {
                let text = format!("node {from} is a voter with directory {directory}; the caller's disk is {disk}");
                Err(refusal(INVALID_VOTER_KEY, text))
            }
            Caller::Unknown if self.configured.contains(&node_id(from)) => Ok(()),
            Caller::Unknown => {
                Err(refusal(INVALID_VOTER_KEY, format!("node {from} is not among the configured voters")))
            }
            Caller::NoVoter => {
                Err(refusal(INVALID_VOTER_KEY, format!("node {from} is not a voter of the cluster's membership")))
            }
        }
    }

    async fn caller(&self, id: NodeId) -> Result<Caller, Status> {
        let known = {
            let metrics = self.raft.server_metrics();
            Caller::of(&metrics.borrow_watched().membership_config, id, false)
        };
        if let Caller::Voter(_) = known {
            return Ok(known);
        }
        // The metrics lag behind the state, and know nothing before the first change after a start.
        let state = self.raft.with_raft_state(move |state| {
            Caller::of(state.membership_state.effective(), id, state.log_ids.last().is_some())
        });
        state.await.map_err(stopped)
    }
}

/// Refuses a vote that names another node than its caller: a voter asks for, and leads by, its own.
pub(super) fn own_vote(caller: NodeId, vote: &Vote) -> Result<(), Status> {
    let named = vote.leader_id.voted_for;
    if named != caller {
        return Err(refusal(INVALID_VOTER_KEY, format!("node {caller} sent a vote for node {named}, not its own")));
    }
    Ok(())
}
