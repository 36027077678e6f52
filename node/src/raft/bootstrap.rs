//! How voters find out about each other, before Raft may.
//!
//! An empty cluster forms when *all* configured voters have answered, all are empty, and no two name different clusters:
//! then the one with the lowest id writes the first membership, with everybody's disk. Anything less could make a second
//! cluster out of wiped disks. A disk that is refused learns it here: a peer knows its id under another directory.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use futures::future::join_all;
use openraft::async_runtime::watch::WatchReceiver;
use quorate_client::world;
use quorate_metadata::ids::{ClusterId, ControllerId, DirectoryId};
use quorate_proto::raft as proto;
use tokio::sync::{Notify, watch};

use super::identity::LocalVoter;
use super::network::Peers;
use super::types::{NodeId, VoterNode, node_id};
use super::{Raft, RaftError, VoterAddress, wire};

/// Between rounds while a cluster is forming.
const FORMING_INTERVAL: Duration = Duration::from_millis(50);
/// Between rounds while a peer of an existing cluster does not answer.
const ABSENT_INTERVAL: Duration = Duration::from_secs(1);
/// Rounds between two lines about who is still missing.
const ROUNDS_PER_LINE: u32 = 100;

pub struct Greeter {
    pub local: LocalVoter,
    pub voters: Vec<VoterAddress>,
    pub peers: Peers,
    pub raft: Raft,
    /// The highest `metadata.version` that this node supports.
    pub level_max: i16,
    /// Notified when a peer meant another disk than this one.
    pub doubted: Arc<Notify>,
    /// True once this voter is part of a cluster.
    pub joined: watch::Sender<bool>,
}

/// What a peer said of itself and of the cluster.
struct Answer {
    cluster: Option<ClusterId>,
    directory: DirectoryId,
    initialized: bool,
    membership_index: Option<u64>,
    voters: BTreeMap<NodeId, DirectoryId>,
    level_max: i32,
}

impl Greeter {
    /// Greets until all peers have answered, and again when this disk is in doubt. Returns only to refuse this disk.
    pub async fn run(self) -> RaftError {
        let mut rounds = 0;
        loop {
            let round = match self.round(rounds).await {
                Ok(round) => round,
                Err(refused) => return refused,
            };
            match round {
                Round::Complete => self.doubted.notified().await,
                Round::Forming => tokio::time::sleep(FORMING_INTERVAL).await,
                Round::Absent => tokio::time::sleep(ABSENT_INTERVAL).await,
            }
            rounds += 1;
        }
    }

    async fn round(&self, number: u32) -> Result<Round, RaftError> {
        let (answers, absent) = self.greet_all().await?;
        answers.values().try_for_each(|answer| self.judge(answer))?;
        let joined = self.is_member() && self.local.cluster().is_some();
        self.joined.send_if_modified(|known| std::mem::replace(known, joined) != joined);
        if joined {
            return Ok(if absent.is_empty() { Round::Complete } else { Round::Absent });
        }
        if number.is_multiple_of(ROUNDS_PER_LINE) {
            self.report_waiting(&answers, &absent);
        }
        if self.local.is_replacement() {
            return Ok(Round::Forming);
        }
        if absent.is_empty() && self.is_first() && answers.values().all(|answer| !answer.initialized) {
            self.initialize(&answers).await?;
        }
        Ok(Round::Forming)
    }

    async fn greet_all(&self) -> Result<(BTreeMap<NodeId, Answer>, Vec<ControllerId>), RaftError> {
        let others = self.voters.iter().filter(|voter| voter.id != self.local.node);
        let greetings = join_all(others.map(|voter| async move { (voter.id, self.greet(voter).await) })).await;
        let (mut answers, mut absent) = (BTreeMap::new(), Vec::new());
        for (id, greeting) in greetings {
            match greeting? {
                Some(answer) => drop(answers.insert(node_id(id), answer)),
                None => absent.push(id),
            }
        }
        Ok((answers, absent))
    }

    fn report_waiting(&self, answers: &BTreeMap<NodeId, Answer>, absent: &[ControllerId]) {
        let (node, disk) = (self.local.node, self.local.directory);
        if self.local.is_replacement() && answers.values().any(|answer| answer.membership_index.is_some()) {
            tracing::warn!(%disk, "waiting for `quorate quorum replace {node}`");
        } else {
            tracing::info!(?absent, "not yet part of a cluster");
        }
    }

    /// None when the peer is not there, or is not the one that was meant.
    async fn greet(&self, voter: &VoterAddress) -> Result<Option<Answer>, RaftError> {
        let response = match self.peers.greet(voter).await {
            Ok(response) => response,
            Err(status) if status.code() == tonic::Code::FailedPrecondition => {
                return self.tolerate(RaftError::Refused { peer: voter.id, reason: status.message().to_owned() });
            }
            Err(_) => return Ok(None),
        };
        if response.node_id != voter.id.get() {
            tracing::warn!(peer = %voter.id, address = voter.raft, found = response.node_id, "another node answers there");
            return Ok(None);
        }
        Ok(answer_in(response).inspect_err(|error| tracing::warn!(peer = %voter.id, %error, "bad greeting")).ok())
    }

    /// A member of a cluster goes on when one peer turns out to be of another one; who has yet to join must not guess.
    fn tolerate<T>(&self, error: RaftError) -> Result<Option<T>, RaftError> {
        if self.membership_index().is_none() {
            return Err(error);
        }
        tracing::warn!(%error, "a peer does not belong here");
        Ok(None)
    }

    /// Refuses this disk when a peer knows better.
    fn judge(&self, answer: &Answer) -> Result<(), RaftError> {
        let ours = self.membership_index();
        if let (Some(theirs), Some(ours)) = (answer.cluster, self.local.cluster())
            && theirs != ours
        {
            return self.tolerate::<()>(RaftError::cluster_ids(theirs, ours)).map(drop);
        }
        let is_waiting = self.local.is_replacement() && !self.is_member();
        match answer.voters.get(&node_id(self.local.node)) {
            // A membership older than ours may name the disk that this one has replaced.
            Some(voter) if *voter != self.local.directory && answer.membership_index > ours && !is_waiting => {
                let (node, disk) = (self.local.node, self.local.directory);
                Err(RaftError::InvalidVoterKey { node, voter: *voter, disk })
            }
            _ => Ok(()),
        }
    }

    /// A replacement is a learner before it is a voter.
    fn is_member(&self) -> bool {
        let metrics = self.raft.server_metrics();
        let metrics = metrics.borrow_watched();
        let (membership, id) = (&metrics.membership_config, node_id(self.local.node));
        let is_voter = || {
            let is_ours = membership.get_node(&id).is_some_and(|node| node.directory() == self.local.directory);
            is_ours && membership.voter_ids().any(|voter| voter == id)
        };
        membership.log_id().is_some() && (!self.local.is_replacement() || is_voter())
    }

    fn membership_index(&self) -> Option<u64> {
        let metrics = self.raft.server_metrics();
        let metrics = metrics.borrow_watched();
        metrics.membership_config.log_id().map(|id| id.index)
    }

    fn is_first(&self) -> bool {
        self.voters.iter().map(|voter| voter.id).min() == Some(self.local.node)
    }

    async fn initialize(&self, answers: &BTreeMap<NodeId, Answer>) -> Result<(), RaftError> {
        if self.raft.is_initialized().await.map_err(|fatal| RaftError::Stopped(fatal.to_string()))? {
            return Ok(());
        }
        self.local.adopt(self.choose_cluster(answers)?)?;
        let members: BTreeMap<NodeId, VoterNode> =
            self.voters.iter().map(|voter| self.member(voter, answers)).collect();
        tracing::info!(voters = members.len(), "all configured voters are here and empty: forming the cluster");
        match self.raft.initialize(members).await {
            Ok(()) => Ok(()),
            Err(error) => {
                // A vote of a peer may have come first, which makes this voter not empty: the peer leads on.
                tracing::info!(%error, "the cluster formed otherwise");
                Ok(())
            }
        }
    }

    fn member(&self, voter: &VoterAddress, answers: &BTreeMap<NodeId, Answer>) -> (NodeId, VoterNode) {
        let id = node_id(voter.id);
        let own = (self.local.directory, i32::from(self.level_max));
        let (directory, level_max) = answers.get(&id).map_or(own, |answer| (answer.directory, answer.level_max));
        (id, VoterNode::new(voter.raft.clone(), voter.api.clone(), directory, level_max))
    }

    /// The one that is named somewhere, if there is one.
    fn choose_cluster(&self, answers: &BTreeMap<NodeId, Answer>) -> Result<ClusterId, RaftError> {
        let mut named = answers.values().filter_map(|answer| answer.cluster).chain(self.local.cluster());
        let Some(first) = named.next() else {
            return Ok(ClusterId::new(world::uuid()));
        };
        match named.find(|other| *other != first) {
            Some(other) => Err(RaftError::cluster_ids(other, first)),
            None => Ok(first),
        }
    }
}

enum Round {
    /// Everybody answered, nothing is left to find out.
    Complete,
    /// Part of a cluster, but some peer has not said what it knows of this disk.
    Absent,
    Forming,
}

fn answer_in(response: proto::GreetResponse) -> Result<Answer, wire::Malformed> {
    let voter = |voter: proto::Voter| Ok((wire::id_in(voter.id)?, wire::directory_in(&voter.directory)?));
    Ok(Answer {
        cluster: wire::cluster_in(&response.cluster_id)?,
        directory: wire::directory_in(&response.directory)?,
        initialized: response.initialized,
        membership_index: response.membership_index,
        voters: response.voters.into_iter().map(voter).collect::<Result<_, wire::Malformed>>()?,
        level_max: response.metadata_version_max,
    })
}
