//! Who leads, told to those outside Raft.

use openraft::ServerState;
use openraft::async_runtime::watch::WatchReceiver;
use openraft::metrics::RaftServerMetrics;
use tokio::sync::{mpsc, watch};

use quorate_metadata::ids::{ControllerEpoch, ControllerId};

use super::Raft;
use super::network::Peers;
use super::types::{LogId, Types, controller_id};

/// What the controller here is told. The two alternate strictly, a claim first.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Leadership {
    /// Everything committed before this epoch is replayed here.
    Claimed {
        epoch: ControllerEpoch,
    },
    Resigned,
}

/// The active controller, as known here.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LeaderInfo {
    pub id: ControllerId,
    pub epoch: ControllerEpoch,
    /// Where its API is announced.
    pub api: String,
}

/// Terms beyond i32 stop the state machine long before one is shown.
pub fn epoch(term: u64) -> ControllerEpoch {
    ControllerEpoch::new(i32::try_from(term).unwrap_or(i32::MAX))
}

pub fn leader_info(metrics: &RaftServerMetrics<Types>, peers: &Peers) -> Option<LeaderInfo> {
    let leader = metrics.current_leader?;
    let node = metrics.membership_config.get_node(&leader)?;
    let api = peers.api(leader, &node.api).to_owned();
    Some(LeaderInfo { id: controller_id(leader), epoch: epoch(metrics.vote.leader_id.term), api })
}

/// Keeps `leader` true. Runs until Raft ends.
pub async fn follow_leader(raft: Raft, peers: Peers, leader: watch::Sender<Option<LeaderInfo>>) {
    let mut metrics = raft.server_metrics();
    loop {
        let info = leader_info(&metrics.borrow_and_update(), &peers);
        leader.send_if_modified(|known| {
            if *known == info {
                return false;
            }
            match &info {
                Some(info) => tracing::info!(controller = %info.id, controller_epoch = %info.epoch, "elected"),
                None => tracing::info!("no controller is active"),
            }
            known.clone_from(&info);
            true
        });
        if metrics.changed().await.is_err() {
            return;
        }
    }
}

/// Claims and resigns for the controller here. Runs until Raft ends or nobody listens.
pub async fn follow_office(raft: Raft, mut applied: watch::Receiver<Option<LogId>>, office: mpsc::Sender<Leadership>) {
    let mut metrics = raft.server_metrics();
    let mut claimed: Option<u64> = None;
    loop {
        let held = held_term(&metrics.borrow_and_update());
        if claimed.is_some() && claimed != held {
            claimed = None;
            if office.send(Leadership::Resigned).await.is_err() {
                return;
            }
        }
        // The leader's first entry of its term comes after all that was committed before it.
        let replayed = applied.borrow_and_update().map_or(0, |id| id.leader_id.term);
        if let (None, Some(term)) = (claimed, held)
            && replayed >= term
        {
            claimed = Some(term);
            if office.send(Leadership::Claimed { epoch: epoch(term) }).await.is_err() {
                return;
            }
        }
        let ended = tokio::select! {
            changed = metrics.changed() => changed.is_err(),
            // Once claimed, only the vote can change anything.
            changed = applied.changed(), if claimed.is_none() && held.is_some() => changed.is_err(),
        };
        if ended {
            return;
        }
    }
}

fn held_term(metrics: &RaftServerMetrics<Types>) -> Option<u64> {
    let leads = metrics.state == ServerState::Leader
        && metrics.vote.committed
        && metrics.vote.leader_id.voted_for == metrics.id;
    leads.then_some(metrics.vote.leader_id.term)
}
