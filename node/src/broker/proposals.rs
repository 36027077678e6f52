//! Carries what leaders want of their ISRs to the controller, and the answers back.

use futures::StreamExt;
use futures::stream::FuturesUnordered;
use quorate_client::agent::{IsrChange, IsrChanges, IsrOutcome};
use quorate_log::leadership::{Outcome, Proposal};
use quorate_metadata::ids::TopicPartition;
use quorate_metadata::record::LeaderRecoveryState;
use tokio::sync::mpsc;
use tracing::{info, warn};

use super::replicas::Replicas;
use super::shard::Command;

/// Runs until no owner of a directory is left. A leader has one proposal under way at a time.
pub async fn run(
    mut proposals: mpsc::UnboundedReceiver<(TopicPartition, Proposal)>,
    changes: IsrChanges,
    replicas: Replicas,
) {
    let mut under_way = FuturesUnordered::new();
    loop {
        tokio::select! {
            proposal = proposals.recv() => match proposal {
                Some((id, proposal)) => under_way.push(ask(&changes, id, proposal)),
                None => return,
            },
            Some((id, proposal, outcome)) = under_way.next() => {
                if let Some(replica) = replicas.get(id) {
                    // The broker is stopping: so is this.
                    let _ = replica.shard.send(Command::Outcome { id, proposal, outcome }).await;
                }
            }
        }
    }
}

async fn ask(changes: &IsrChanges, id: TopicPartition, proposal: Proposal) -> (TopicPartition, Proposal, Outcome) {
    let change = IsrChange {
        partition: id,
        leader_epoch: proposal.leader_epoch,
        partition_epoch: proposal.partition_epoch,
        isr: proposal.isr.clone(),
        recovery: LeaderRecoveryState::Recovered,
    };
    let outcome = match changes.alter(change).await {
        IsrOutcome::Applied { partition_epoch, isr, .. } => {
            info!(partition = %id, ?isr, %partition_epoch, "isr changed");
            Outcome::Applied { partition_epoch, isr }
        }
        IsrOutcome::NotApplied(error) => {
            warn!(partition = %id, asked = ?proposal.isr, %error, "isr not changed");
            Outcome::NotApplied
        }
        IsrOutcome::Pending(error) => {
            info!(partition = %id, asked = ?proposal.isr, %error, "the metadata will tell what became of the isr");
            Outcome::Unknown
        }
    };
    (id, proposal, outcome)
}
