//! Whether this broker may act as the leader of a partition now.

use quorate_metadata::MetadataImage;
use quorate_metadata::ids::{BrokerId, LeaderEpoch, TopicPartition};
use tokio::sync::watch;
use tokio::time::Instant;

use super::Standing;

/// Compares a leader with the lease and the newest metadata of its broker. Cheap to clone and to ask.
#[derive(Clone)]
pub struct LeaderCheck {
    broker: BrokerId,
    standing: watch::Receiver<Standing>,
    metadata: watch::Receiver<MetadataImage>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LeaderState {
    /// It may acknowledge writes and answer reads.
    Current,
    /// The metadata has another leader or leader epoch; the call of the host that says so may be on its way.
    Superseded,
    LeaseEnded,
}

impl LeaderCheck {
    pub fn new(
        broker: BrokerId,
        standing: watch::Receiver<Standing>,
        metadata: watch::Receiver<MetadataImage>,
    ) -> Self {
        Self { broker, standing, metadata }
    }

    pub fn state(&self, id: TopicPartition, epoch: LeaderEpoch) -> LeaderState {
        // The lease first: it is taken up only after the metadata that it waits for.
        if !self.standing.borrow().may_lead(Instant::now()) {
            return LeaderState::LeaseEnded;
        }
        let metadata = self.metadata.borrow();
        let state = metadata.partition(id);
        let is_current = state.is_some_and(|state| state.leader == Some(self.broker) && state.leader_epoch == epoch);
        if is_current { LeaderState::Current } else { LeaderState::Superseded }
    }

    pub fn may_lead(&self, id: TopicPartition, epoch: LeaderEpoch) -> bool {
        self.state(id, epoch) == LeaderState::Current
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use quorate_metadata::ids::BrokerEpoch;

    use super::super::fixture::{broker, id, image, lead};
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_leader_needs_the_lease_and_the_newest_epoch() {
        let mut changed = image(&[&[1, 2]]);
        let epoch = changed.partition(id(0)).expect("it has one partition").leader_epoch;
        let lease_until = Some(Instant::now() + Duration::from_secs(3));
        let granted = Standing { epoch: Some(BrokerEpoch::new(1)), fenced: false, lease_until, may_stop: false };
        let (_standing, standings) = watch::channel(granted);
        let (metadata, images) = watch::channel(changed.clone());
        let check = LeaderCheck::new(broker(1), standings, images);
        assert_eq!(check.state(id(0), epoch), LeaderState::Current);
        assert_eq!(check.state(id(1), epoch), LeaderState::Superseded, "not a partition");
        lead(&mut changed, 0, Some(2));
        metadata.send_replace(changed);
        assert_eq!(check.state(id(0), epoch), LeaderState::Superseded);
        tokio::time::advance(Duration::from_secs(3)).await;
        assert_eq!(check.state(id(0), epoch), LeaderState::LeaseEnded);
    }
}
