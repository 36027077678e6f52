//! Drives a host: one call at a time, in the order of the metadata.

use std::sync::Arc;
use std::time::Duration;

use quorate_metadata::MetadataImage;
use quorate_metadata::ids::{BrokerId, Offset};
use tokio::sync::watch;
use tokio::time::{Instant, sleep_until};
use tracing::info;

use super::duties::{Call, Duties};
use super::{PartitionHost, Standing};

pub(super) async fn run(
    broker: BrokerId,
    host: Arc<dyn PartitionHost>,
    stray_grace: Duration,
    mut standing: watch::Receiver<Standing>,
    mut metadata: watch::Receiver<MetadataImage>,
) {
    let mut duties = Duties::new(broker, host.hosted());
    let mut grace_ends = None;
    let mut acted_on = Offset::default();
    loop {
        let now = *standing.borrow_and_update();
        let image = metadata.borrow_and_update().clone();
        // Until the metadata has this broker's own registration, and while it is older than what was acted on, it may
        // lack what is hosted here.
        let is_complete = now.epoch.is_some_and(|epoch| image.next_offset.get() > epoch.get());
        if is_complete && image.next_offset >= acted_on {
            acted_on = image.next_offset;
            let may_lead = now.may_lead(Instant::now());
            let calls = duties.update(&image, may_lead);
            if !calls.is_empty() {
                info!(%broker, changed = calls.len(), may_lead, offset = %image.next_offset, "roles changed");
            }
            make(&*host, calls).await;
            let strays = duties.strays();
            if !strays.is_empty() {
                grace_ends = Some(Instant::now() + stray_grace);
            }
            make(&*host, strays).await;
        } else {
            make(&*host, duties.step_down(&image)).await;
        }
        tokio::select! {
            changed = standing.changed() => if changed.is_err() { return },
            changed = metadata.changed() => if changed.is_err() { return },
            () = at(now.lease_until), if now.may_lead(Instant::now()) => {}
            () = at(grace_ends) => {
                grace_ends = None;
                make(&*host, duties.delete_strays()).await;
            }
        }
    }
}

async fn make(host: &dyn PartitionHost, calls: Vec<Call>) {
    for call in calls {
        match call {
            Call::Lead(assignment) => host.become_leader(assignment).await,
            Call::Follow(assignment) => host.become_follower(assignment).await,
            Call::Offline(assignment, reason) => host.become_offline(assignment, reason).await,
            Call::Delete(id, reason) => host.delete_replica(id, reason).await,
            Call::FoundStray(id) => host.found_stray(id).await,
        }
    }
}

async fn at(instant: Option<Instant>) {
    match instant {
        Some(instant) => sleep_until(instant).await,
        None => std::future::pending().await,
    }
}
