//! Elects at once when the leader is certainly dead, instead of waiting out its lease and the election timeout.
//!
//! The evidence: its stream of appends broke, and its Raft port, dialed as this node dials it, refuses connections: the
//! host is up and the process is gone. A reset, a timeout or an accepted connection is no evidence. The election goes the
//! way of a leadership transfer, whose votes the lease does not hold back. Log and vote rules hold: the worst outcome is a
//! needless election. The followers go one after the other, by id; one with a worse log is refused, and the next one tries.

use std::io;
use std::time::Duration;

use openraft::async_runtime::watch::WatchReceiver;
use openraft::raft::TransferLeaderRequest;
use tokio::net::TcpStream;
use tokio::sync::mpsc;
use tokio::time::{sleep, timeout};

use super::Raft;
use super::network::Peers;
use super::types::{NodeId, Vote, node_id};

/// Between two candidates: about what an election takes on a local network.
const TURN: Duration = Duration::from_millis(15);
/// A dying process closes its connections, and about then its listener: the probe may come between.
const PROBE_WAITS_MS: [u64; 6] = [0, 1, 2, 5, 10, 20];
const CONNECT_TIMEOUT: Duration = Duration::from_millis(100);

pub struct FastElection {
    pub raft: Raft,
    pub peers: Peers,
    /// Peers whose stream of appends broke.
    pub broken: mpsc::Receiver<NodeId>,
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
        let announced = membership.get_node(&peer)?.raft.clone();
        let mut candidates: Vec<NodeId> = membership.voter_ids().filter(|voter| *voter != peer).collect();
        candidates.sort_unstable();
        let turn = candidates.iter().position(|voter| *voter == ours)?;
        Some(Lost { leader: peer, vote: metrics.vote, announced, turn: u32::try_from(turn).unwrap_or(u32::MAX) })
    }

    async fn is_dead(&self, lost: &Lost) -> bool {
        let address = self.peers.address(lost.leader, &lost.announced);
        for wait_ms in PROBE_WAITS_MS {
            sleep(Duration::from_millis(wait_ms)).await;
            if refused(&address).await {
                return true;
            }
        }
        tracing::debug!(leader = lost.leader, address, "the leader's stream broke, but its port does not refuse");
        false
    }

    async fn elect(&self, lost: &Lost) {
        sleep(TURN.saturating_mul(lost.turn)).await;
        if self.raft.server_metrics().borrow_watched().vote != lost.vote {
            return;
        }
        tracing::info!(leader = lost.leader, turn = lost.turn, "the leader is gone: electing at once");
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
    announced: String,
    /// How many candidates go before this one.
    turn: u32,
}

async fn refused(address: &str) -> bool {
    match timeout(CONNECT_TIMEOUT, TcpStream::connect(address)).await {
        Ok(Err(error)) => error.kind() == io::ErrorKind::ConnectionRefused,
        Ok(Ok(_)) | Err(_) => false,
    }
}
