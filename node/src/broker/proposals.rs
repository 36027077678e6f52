//! Carries what leaders want of their ISRs to the controller, and the answers back.

use std::collections::BTreeMap;

use futures::stream::FuturesUnordered;
use futures::{FutureExt, StreamExt};
use quorate_client::agent::{AwaitedOutcome, IsrChange, IsrChanges, IsrOutcome};
use quorate_log::leadership::{Outcome, Proposal};
use quorate_metadata::ids::{DirectoryId, TopicPartition};
use quorate_metadata::record::LeaderRecoveryState;
use tokio::sync::mpsc;
use tokio::task::unconstrained;
use tracing::{debug, info, warn};

use super::replicas::Replicas;
use super::shard::{Command, ShardHandle};

/// Proposals handed over at once, and outcomes carried back at once: one round of a shard takes so many in a few
/// milliseconds.
const TOGETHER_MAX: usize = 2_000;

/// More outcomes than these at once are logged as counts.
const LINES_MAX: usize = 8;

struct Decided {
    id: TopicPartition,
    proposal: Proposal,
    outcome: IsrOutcome,
}

/// Runs until no owner of a directory is left. A leader has one proposal under way at a time.
pub async fn run(
    mut proposals: mpsc::UnboundedReceiver<(TopicPartition, Proposal)>,
    changes: IsrChanges,
    replicas: Replicas,
) {
    let mut under_way = FuturesUnordered::new();
    let mut proposed = Vec::new();
    loop {
        tokio::select! {
            count = proposals.recv_many(&mut proposed, TOGETHER_MAX) => {
                if count == 0 {
                    return;
                }
                let submitted = submit(&changes, std::mem::take(&mut proposed)).await;
                under_way.extend(submitted.into_iter().map(decided));
            }
            Some(first) = under_way.next() => {
                let mut decided = vec![first];
                while decided.len() < TOGETHER_MAX
                    && let Some(Some(next)) = unconstrained(under_way.next()).now_or_never()
                {
                    decided.push(next);
                }
                log(&decided);
                carry_back(&replicas, decided).await;
            }
        }
    }
}

async fn submit(
    changes: &IsrChanges,
    proposed: Vec<(TopicPartition, Proposal)>,
) -> Vec<(TopicPartition, Proposal, AwaitedOutcome)> {
    let change = |(id, proposal): &(TopicPartition, Proposal)| IsrChange {
        partition: *id,
        leader_epoch: proposal.leader_epoch,
        partition_epoch: proposal.partition_epoch,
        isr: proposal.isr.clone(),
        recovery: LeaderRecoveryState::Recovered,
    };
    let outcomes = changes.submit(proposed.iter().map(change).collect()).await;
    proposed.into_iter().zip(outcomes).map(|((id, proposal), outcome)| (id, proposal, outcome)).collect()
}

async fn decided((id, proposal, outcome): (TopicPartition, Proposal, AwaitedOutcome)) -> Decided {
    Decided { id, proposal, outcome: outcome.known().await }
}

/// One message to each shard, whatever the number of its replicas.
async fn carry_back(replicas: &Replicas, decided: Vec<Decided>) {
    let mut by_shard: BTreeMap<DirectoryId, (ShardHandle, Vec<_>)> = BTreeMap::new();
    for Decided { id, proposal, outcome } in decided {
        let Some(replica) = replicas.get(id) else { continue };
        let directory = replica.shard.directory();
        let (_, outcomes) = by_shard.entry(directory).or_insert_with(|| (replica.shard, Vec::new()));
        outcomes.push((id, proposal, to_leader(outcome)));
    }
    for (shard, outcomes) in by_shard.into_values() {
        // The broker is stopping: so is this.
        let _ = shard.send(Command::Outcomes(outcomes)).await;
    }
}

fn to_leader(outcome: IsrOutcome) -> Outcome {
    match outcome {
        IsrOutcome::Applied { partition_epoch, isr, .. } => Outcome::Applied { partition_epoch, isr },
        IsrOutcome::NotApplied(_) => Outcome::NotApplied,
        IsrOutcome::Pending(_) => Outcome::Unknown,
    }
}

fn log(decided: &[Decided]) {
    if decided.len() <= LINES_MAX {
        return decided.iter().for_each(log_one);
    }
    let (mut applied, mut not_applied, mut pending) = (0, 0, 0);
    for Decided { id, proposal, outcome } in decided {
        debug!(partition = %id, asked = ?proposal.isr, ?outcome, "isr change decided");
        match outcome {
            IsrOutcome::Applied { .. } => applied += 1,
            IsrOutcome::NotApplied(_) => not_applied += 1,
            IsrOutcome::Pending(_) => pending += 1,
        }
    }
    info!(applied, not_applied, pending, "isr changes decided");
}

fn log_one(Decided { id, proposal, outcome }: &Decided) {
    match outcome {
        IsrOutcome::Applied { partition_epoch, isr, .. } => {
            info!(partition = %id, ?isr, %partition_epoch, "isr changed");
        }
        IsrOutcome::NotApplied(error) => {
            warn!(partition = %id, asked = ?proposal.isr, %error, "isr not changed");
        }
        IsrOutcome::Pending(error) => {
            info!(partition = %id, asked = ?proposal.isr, %error, "the metadata will tell what became of the isr");
        }
    }
}

#[cfg(test)]
mod tests {
    use quorate_log::{Flush, LogDirectory, MemoryLogs, Writes};
    use quorate_metadata::ids::{BrokerId, LeaderEpoch, PartitionEpoch, PartitionId, TopicId};
    use quorate_metadata::{ApiError, ErrorName};

    use super::super::replica::Replica;
    use super::super::replicas::ReplicaHandle;
    use super::*;

    fn id(partition: i32) -> TopicPartition {
        TopicPartition::new(TopicId::default(), PartitionId::new(partition))
    }

    fn open(replicas: &Replicas, directory: &LogDirectory, shard: &ShardHandle, partition: i32) {
        let mut writes = Writes::default();
        let log = directory.open_log(&mut writes, id(partition), 0).expect("the disk works");
        let reader = log.reader();
        let published = Replica::new(BrokerId::new(1), log).published();
        replicas.insert(id(partition), ReplicaHandle { shard: shard.clone(), published, reader });
    }

    fn decided(partition: i32, outcome: IsrOutcome) -> Decided {
        let leader_epoch = LeaderEpoch::new(partition);
        let proposal = Proposal { leader_epoch, partition_epoch: PartitionEpoch::default(), isr: Vec::new() };
        Decided { id: id(partition), proposal, outcome }
    }

    #[tokio::test]
    async fn every_outcome_comes_to_the_shard_of_its_replica() {
        let replicas = Replicas::default();
        let directories =
            [1, 2].map(|id| LogDirectory::in_memory(&MemoryLogs::new(DirectoryId::from_bytes([id; 16])), Flush::Os));
        let mut shards = directories.iter().map(ShardHandle::new).collect::<Vec<_>>();
        for partition in 0..4 {
            let at = usize::from(partition == 3);
            open(&replicas, &directories[at], &shards[at].0, partition);
        }
        let error = ApiError::new(ErrorName::IneligibleReplica, "fenced");
        let applied = IsrOutcome::Applied {
            partition_epoch: PartitionEpoch::new(7),
            isr: vec![BrokerId::new(1)],
            recovery: LeaderRecoveryState::Recovered,
        };
        let outcomes = [applied, IsrOutcome::NotApplied(error.clone()), IsrOutcome::Pending(error.clone())];
        let mut all: Vec<_> = (0..).zip(outcomes).map(|(partition, outcome)| decided(partition, outcome)).collect();
        all.push(decided(3, IsrOutcome::Pending(error.clone())));
        all.push(decided(9, IsrOutcome::Pending(error)));
        carry_back(&replicas, all).await;
        let mut received = shards.iter_mut().map(|(_, inbox)| {
            let Ok(Command::Outcomes(outcomes)) = inbox.commands.try_recv() else { panic!("one message each") };
            assert!(inbox.commands.try_recv().is_err());
            assert!(outcomes.iter().all(|(id, proposal, _)| proposal.leader_epoch.get() == id.partition.get()));
            outcomes.into_iter().map(|(id, _, outcome)| (id.partition.get(), outcome)).collect::<Vec<_>>()
        });
        let applied = Outcome::Applied { partition_epoch: PartitionEpoch::new(7), isr: vec![BrokerId::new(1)] };
        assert_eq!(received.next(), Some(vec![(0, applied), (1, Outcome::NotApplied), (2, Outcome::Unknown)]));
        assert_eq!(received.next(), Some(vec![(3, Outcome::Unknown)]));
    }
}
