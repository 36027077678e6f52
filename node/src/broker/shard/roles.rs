//! Changes of role, and with them the opening and deleting of replicas.

use std::collections::BTreeMap;

use quorate_client::world;
use quorate_log::LogError;
use quorate_metadata::ErrorName;
use quorate_metadata::ids::{LeaderEpoch, TopicPartition};
use tokio::sync::oneshot;
use tracing::debug;

use super::super::replica::Replica;
use super::super::replicas::{Claim, ReplicaHandle};
use super::super::situation::Situation;
use super::{RoleChange, Round, Shard};

/// Replicas whose deletion is written, and perhaps not on stable storage yet: one sync serves them all. Until then they keep
/// their places, so that none of them comes to another directory and is in both after a loss of power. One that was claimed
/// again keeps its place for longer: what changes its role is on its way to this directory.
#[derive(Default)]
pub struct Deletions {
    unsynced: BTreeMap<TopicPartition, Claim>,
    awaited: Vec<oneshot::Sender<()>>,
}

impl Deletions {
    fn add(&mut self, id: TopicPartition, claim: Claim, done: Option<oneshot::Sender<()>>) {
        self.unsynced.insert(id, claim);
        self.awaited.extend(done);
    }

    pub fn are_awaited(&self) -> bool {
        !self.awaited.is_empty()
    }
}

impl Shard {
    pub(super) fn change_role(&mut self, round: &mut Round, change: RoleChange) {
        if self.failure.is_some() {
            return self.refuse_change(change);
        }
        if let Err(error) = self.try_change_role(round, change) {
            self.fail(&error);
        }
    }

    fn try_change_role(&mut self, round: &mut Round, change: RoleChange) -> Result<(), LogError> {
        match change {
            RoleChange::Lead { id, leader_epoch } => self.lead(round, id, leader_epoch)?,
            RoleChange::Follow { id, source } => {
                round.touched.insert(id);
                let situation = Situation::of(&self.around.metadata.borrow(), self.around.broker, id);
                let replica = self.replica(round, id)?;
                // Before the first records come.
                if let Some(situation) = situation {
                    replica.bound_segments(&situation);
                }
                replica.follow(&mut round.writes, source)?;
                self.set_pace(id, false);
                self.around.fetchers.only(id, source.leader);
            }
            RoleChange::Suspend { id, leader_epoch } => {
                round.touched.insert(id);
                self.replica(round, id)?.suspend(leader_epoch);
                self.around.fetchers.forget(id);
            }
            RoleChange::Delete { id, claim, done } => self.delete(round, id, claim, done)?,
        }
        Ok(())
    }

    /// The directory is offline. What is left on the disk of a deleted replica is a stray when that comes back.
    fn refuse_change(&mut self, change: RoleChange) {
        let RoleChange::Delete { id, claim, done } = change else { return };
        self.around.replicas.remove(id, claim);
        answer(done);
    }

    fn lead(&mut self, round: &mut Round, id: TopicPartition, leader_epoch: LeaderEpoch) -> Result<(), LogError> {
        let now_ms = self.now_ms();
        let situation = Situation::of(&self.around.metadata.borrow(), self.around.broker, id);
        // The metadata may have gone on since: what it says then is about to be told as well.
        let Some(situation) = situation.filter(|now| now.partition.leader_epoch == leader_epoch) else {
            return Ok(());
        };
        round.touched.insert(id);
        self.around.fetchers.forget(id);
        self.replica(round, id)?.lead(&mut round.writes, &situation, now_ms);
        Ok(())
    }

    fn delete(
        &mut self,
        round: &mut Round,
        id: TopicPartition,
        claim: Claim,
        done: Option<oneshot::Sender<()>>,
    ) -> Result<(), LogError> {
        self.around.fetchers.forget(id);
        let is_unopened = self.unopened.remove(&id);
        if let Some(replica) = self.owned.remove(&id) {
            drop(replica.abandon(ErrorName::UnknownTopicOrPartition));
        } else if !is_unopened {
            self.deletions.add(id, claim, done);
            return Ok(());
        }
        round.opened += 1;
        self.commit_staged(round, id)?;
        self.directory.stage_removal(&mut round.writes, id)?;
        self.deletions.add(id, claim, done);
        Ok(())
    }

    /// One sync for all that have been deleted since the last one.
    pub(super) fn finish_deletions(&mut self) {
        if self.deletions.unsynced.is_empty() || self.failure.is_some() {
            return;
        }
        match self.directory.sync() {
            Ok(()) => {
                let deleted = self.deletions.unsynced.len();
                let moved = self.deletions.awaited.len();
                self.mass_changes.count(|counts| {
                    counts.deleted += deleted;
                    counts.moved += moved;
                });
                self.release_deleted();
            }
            Err(error) => self.fail(&error),
        }
    }

    pub(super) fn release_deleted(&mut self) {
        let Deletions { unsynced, awaited } = std::mem::take(&mut self.deletions);
        for (id, claim) in unsynced {
            debug!(partition = %id, "replica deleted");
            self.around.replicas.remove(id, claim);
        }
        answer(awaited);
    }

    fn replica<'a>(&'a mut self, round: &mut Round, id: TopicPartition) -> Result<&'a mut Replica, LogError> {
        if !self.owned.contains_key(&id) {
            self.open(round, id)?;
        }
        Ok(self.owned.get_mut(&id).expect("it was just opened"))
    }

    /// Opens the replica's log, or creates it with the commit of the round.
    pub(super) fn open(&mut self, round: &mut Round, id: TopicPartition) -> Result<(), LogError> {
        round.opened += 1;
        self.unopened.remove(&id);
        self.commit_staged(round, id)?;
        // Deleted a moment ago, it comes back where it was.
        self.deletions.unsynced.remove(&id);
        self.compactions.opened(id);
        let log = self.directory.open_log(&mut round.writes, id, world::wall_ms())?;
        let reader = log.reader();
        let replica = Replica::new(self.around.broker, log);
        let handle = ReplicaHandle { shard: self.handle.clone(), published: replica.published(), reader };
        self.around.replicas.insert(id, handle);
        self.owned.insert(id, Box::new(replica));
        Ok(())
    }

    /// What looks at the rows of a log must see what is staged of it.
    fn commit_staged(&self, round: &mut Round, id: TopicPartition) -> Result<(), LogError> {
        if round.writes.touches(id) { self.directory.commit(std::mem::take(&mut round.writes)) } else { Ok(()) }
    }
}

fn answer(waiting: impl IntoIterator<Item = oneshot::Sender<()>>) {
    for done in waiting {
        // The broker may be stopping.
        let _ = done.send(());
    }
}
