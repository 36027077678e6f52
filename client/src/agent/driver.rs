//! Makes the calls of the host, in the order of the metadata, and notices the end of the lease.

use std::sync::Arc;
use std::time::Duration;

use quorate_metadata::MetadataImage;
use quorate_metadata::ids::BrokerId;
use tokio::sync::watch;
use tokio::time::{Instant, sleep_until};
use tracing::{debug, info, warn};

use super::Standing;
use super::duties::{Call, Duties};
use super::host::PartitionHost;
use super::session::at;

/// Drives the host until the session is over. Begins when the metadata has been replayed past the broker's own
/// registration: what it said before is history, and to act on it could delete what is wanted again.
pub(super) async fn run(
    broker: BrokerId,
    stray_grace: Duration,
    host: Arc<dyn PartitionHost>,
    standing: watch::Receiver<Standing>,
    metadata: watch::Receiver<MetadataImage>,
) {
    let mut driver = Driver { broker, host, standing, metadata, duties: Duties::new(broker), may_lead: false };
    while !driver.is_caught_up() {
        if driver.changed().await.is_err() {
            return;
        }
    }
    driver.begin().await;
    driver.follow(Instant::now() + stray_grace).await;
    // Without a session there is no lease that could be renewed.
    let image = driver.metadata.borrow().clone();
    let last = driver.duties.update(&image, false);
    driver.make(last).await;
}

struct Driver {
    broker: BrokerId,
    host: Arc<dyn PartitionHost>,
    standing: watch::Receiver<Standing>,
    metadata: watch::Receiver<MetadataImage>,
    duties: Duties,
    may_lead: bool,
}

impl Driver {
    async fn begin(&mut self) {
        let may_lead = self.look();
        let image = self.metadata.borrow_and_update().clone();
        let calls = self.duties.begin(self.host.hosted(), &image, may_lead);
        let strays = self.duties.strays();
        if strays > 0 {
            warn!(broker = %self.broker, replicas = strays, "replicas found that the metadata does not know: they are kept");
        }
        self.make(calls).await;
    }

    async fn follow(&mut self, grace_ends: Instant) {
        loop {
            let may_lead = self.look();
            let image = self.metadata.borrow_and_update().clone();
            let mut calls = self.duties.update(&image, may_lead);
            let in_grace = Instant::now() < grace_ends;
            // A replica may have been moved here in what this broker has not read since it registered anew.
            if !in_grace && self.is_past_registration(&image) {
                calls.extend(self.duties.delete_left_over());
            }
            self.make(calls).await;
            let lease_until = self.standing.borrow().lease_until;
            tokio::select! {
                changed = self.changed() => if changed.is_err() { return },
                () = at(lease_until), if may_lead => {}
                () = sleep_until(grace_ends), if in_grace && self.duties.left_over() > 0 => {}
            }
        }
    }

    /// Whether the broker may lead now.
    fn look(&mut self) -> bool {
        let standing = *self.standing.borrow_and_update();
        let may_lead = standing.may_lead(Instant::now());
        let (broker, epoch) = (self.broker, standing.epoch);
        match (self.may_lead, may_lead) {
            (false, true) => info!(%broker, ?epoch, "may lead: unfenced, lease granted"),
            (true, false) => warn!(%broker, ?epoch, fenced = standing.fenced, "stepped down: fenced or lease ended"),
            _ => {}
        }
        self.may_lead = may_lead;
        may_lead
    }

    fn is_caught_up(&self) -> bool {
        let image = self.metadata.borrow().clone();
        self.is_past_registration(&image)
    }

    fn is_past_registration(&self, image: &MetadataImage) -> bool {
        self.standing.borrow().epoch.is_some_and(|epoch| image.next_offset.get() > epoch.get())
    }

    async fn changed(&mut self) -> Result<(), watch::error::RecvError> {
        tokio::select! {
            changed = self.standing.changed() => changed,
            changed = self.metadata.changed() => changed,
        }
    }

    async fn make(&mut self, calls: Vec<Call>) {
        for call in calls {
            let call = match call {
                Call::BecomeLeader(assignment) if !self.standing.borrow().may_lead(Instant::now()) => {
                    self.duties.too_late(assignment)
                }
                call => call,
            };
            debug!(broker = %self.broker, ?call, "call");
            match call {
                Call::BecomeLeader(assignment) => self.host.become_leader(assignment).await,
                Call::BecomeFollower(assignment) => self.host.become_follower(assignment).await,
                Call::BecomeOffline(assignment, reason) => self.host.become_offline(assignment, reason).await,
                Call::DeleteReplica(id, reason) => self.host.delete_replica(id, reason).await,
                Call::FoundStray(id) => self.host.found_stray(id).await,
            }
        }
    }
}

#[cfg(test)]
mod tests;
