//! Which partitions this broker leads and follows, at which leader epoch.

use std::collections::BTreeMap;

use quorate_metadata::MetadataImage;
use quorate_metadata::ids::{BrokerId, LeaderEpoch, TopicPartition};
use tracing::{debug, info};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    Leader,
    Follower,
}

/// What the broker does for each partition that it hosts.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Roles {
    by_partition: BTreeMap<TopicPartition, (Role, LeaderEpoch)>,
}

impl Roles {
    /// Takes over what the image says. A broker that may not lead follows everywhere.
    pub fn update(&mut self, broker: BrokerId, image: &MetadataImage, may_lead: bool) {
        let next = assigned(broker, image, may_lead);
        if next == self.by_partition {
            return;
        }
        for (partition, (role, epoch)) in &next {
            if self.by_partition.get(partition) != Some(&(*role, *epoch)) {
                debug!(%broker, %partition, ?role, leader_epoch = %epoch, "role");
            }
        }
        self.by_partition = next;
        info!(%broker, leads = self.count(Role::Leader), follows = self.count(Role::Follower), offset = %image.next_offset, "roles changed");
    }

    pub fn count(&self, wanted: Role) -> usize {
        self.by_partition.values().filter(|(role, _)| *role == wanted).count()
    }
}

fn assigned(broker: BrokerId, image: &MetadataImage, may_lead: bool) -> BTreeMap<TopicPartition, (Role, LeaderEpoch)> {
    image
        .index
        .hosted_by(broker)
        .filter_map(|id| image.partition(id).map(|state| (id, state)))
        .map(|(id, state)| {
            let role = if may_lead && state.leader == Some(broker) { Role::Leader } else { Role::Follower };
            (id, (role, state.leader_epoch))
        })
        .collect()
}
