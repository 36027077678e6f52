//! What the metadata says that a replica goes by.

use std::collections::BTreeMap;
use std::sync::Arc;

use quorate_log::Retention;
use quorate_log::leadership::{Known, Terms};
use quorate_metadata::MetadataImage;
use quorate_metadata::config;
use quorate_metadata::ids::{BrokerEpoch, BrokerId, TopicPartition};
use quorate_metadata::record::Partition;

#[derive(Debug, Clone)]
pub struct Situation {
    pub partition: Arc<Partition>,
    /// The replicas that may be in an ISR, at their present epochs.
    pub active: BTreeMap<BrokerId, BrokerEpoch>,
    pub terms: Terms,
    pub retention: Retention,
    pub segment_bytes: u64,
}

impl Situation {
    /// As `broker` goes by it. `None`: there is no such partition.
    pub fn of(image: &MetadataImage, broker: BrokerId, id: TopicPartition) -> Option<Self> {
        let topic = image.topic(id.topic)?;
        let partition = topic.partition(id.partition)?.clone();
        let name = topic.name.as_str();
        let is_active = |broker: &BrokerId| image.is_active(*broker);
        let at_epoch = |broker: BrokerId| image.broker(broker).map(|registered| (broker, registered.epoch));
        let active = partition.replicas.iter().copied().filter(is_active).filter_map(at_epoch).collect();
        let terms = Terms {
            min_isr: config::min_insync_replicas(image, name).min(partition.replicas.len()),
            lag_max_ms: config::broker_value(image, broker, config::REPLICA_LAG_TIME_MAX),
        };
        let bound = |key| u64::try_from(config::topic_value::<i64>(image, broker, name, key)).ok();
        let retention = Retention { ms: bound(config::RETENTION_MS), bytes: bound(config::RETENTION_BYTES) };
        let segment_bytes = config::topic_value(image, broker, name, config::SEGMENT_BYTES);
        Some(Self { partition, active, terms, retention, segment_bytes })
    }

    pub fn known(&self) -> Known<'_> {
        Known { partition: &self.partition, active: &self.active, terms: self.terms }
    }
}
