//! Elects at once when the leader is certainly dead, instead of waiting out its lease and the election timeout.
//!
//! The evidence: its stream of appends broke, and its Raft port, dialed as this node dials it, refuses connections: the
//! host is up and the process is gone. A reset, a timeout or an accepted connection is no evidence. The election goes the
//! way of a leadership transfer, whose votes the lease does not hold back. Log and vote rules hold: the worst outcome is a
//! needless election.
//!
//! The followers go one after the other, by id. The next one goes at once where the one before is dead too, or asked for a
//! vote with a worse log; else it leaves the one before the time that an election takes: two at once would both lose.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use openraft::async_runtime::watch::WatchReceiver;
use openraft::raft::TransferLeaderRequest;
use tokio::sync::{Notify, mpsc};
use tokio::time::{sleep, timeout};

use super::Raft;
use super::network::Peers;
use super::types::{NodeId, Vote, node_id};

/// What a living candidate is left: two fsyncs and two round trips on a busy machine.
const TURN: Duration = Duration::from_millis(50);
/// A dying process closes its connections, and about then its listener: the probe may come between.
const PROBE_WAITS_MS: [u64; 6] = [0, 1, 2, 5, 10, 20];
const CONNECT_TIMEOUT: Duration = Duration::from_millis(100);

pub struct FastElection {
    pub raft: Raft,
    pub peers: Peers,
    /// Peers whose stream of appends broke.
    pub broken: mpsc::Receiver<NodeId>,
    /// Notified when a candidate was refused here because its log is worse.
    pub outlogged: Arc<Notify>,
}

impl FastElection {
    /// Runs until dropped.
    pub async fn run(mut self) {
        while let Some(peer) = self.broken.recv().await {
            if let Some(lost) = self.leader_if(peer)
                && self.is_dead(&lost).await
            {
                self.elect(&lost).await;
            }
            // Reports that came meanwhile speak of the same death.
            while self.broken.try_recv().is_ok() {}
        }
    }

    /// `peer`, if it is the leader that this node follows.
    fn leader_if(&self, peer: NodeId) -> Option<Lost> {
        let metrics = self.raft.server_metrics();
        let metrics = metrics.borrow_watched();
        let ours = node_id(self.peers.local().node);
        if metrics.current_leader != Some(peer) || peer == ours || !metrics.vote.committed {
            return None;
        }
        let membership = &metrics.membership_config;
        let address = |voter: NodeId| Some(self.peers.address(voter, &membership.get_node(&voter)?.raft));
        let voters: Vec<NodeId> = membership.voter_ids().collect();
        if !voters.contains(&ours) {
            return None;
        }
        let before = voters.into_iter().filter(|voter| *voter != peer && *voter < ours).filter_map(address).collect();
        Some(Lost { leader: peer, vote: metrics.vote, address: address(peer)?, before })
    }

    async fn is_dead(&self, lost: &Lost) -> bool {
        for wait_ms in PROBE_WAITS_MS {
            sleep(Duration::from_millis(wait_ms)).await;
            if self.is_refused(&lost.address).await {
                return true;
            }
        }
        tracing::debug!(
            leader = lost.leader,
            address = lost.address,
            "the leader's stream broke, but its port does not refuse"
        );
        false
    }

    async fn is_refused(&self, address: &str) -> bool {
        match timeout(CONNECT_TIMEOUT, self.peers.network().knock(address)).await {
            Ok(Err(error)) => error.kind() == io::ErrorKind::ConnectionRefused,
            Ok(Ok(())) | Err(_) => false,
        }
    }

    async fn wait_for_turn(&self, lost: &Lost) {
        let turns = async {
            for address in &lost.before {
                if !self.is_refused(address).await {
                    sleep(TURN).await;
                }
            }
        };
        tokio::select! {
            () = turns => {}
            () = self.outlogged.notified() => {}
        }
    }

    async fn elect(&self, lost: &Lost) {
        self.wait_for_turn(lost).await;
        if self.raft.server_metrics().borrow_watched().vote != lost.vote {
            return;
        }
        tracing::info!(leader = lost.leader, "the leader is gone: electing at once");
        let ours = node_id(self.peers.local().node);
        let transfer = TransferLeaderRequest::new(lost.vote, ours, None);
        match self.raft.handle_transfer_leader(transfer).await {
            Ok(Ok(())) => {}
            Ok(Err(refused)) => tracing::info!(%refused, "left to the election timeout"),
            Err(fatal) => tracing::warn!(%fatal, "raft has stopped"),
        }
    }
}

/// The leader that this node followed.
struct Lost {
    leader: NodeId,
    vote: Vote,
    address: String,
    /// Where the candidates are dialed that go before this one.
    before: Vec<String>,
}

