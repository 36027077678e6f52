//! What the metadata says that a replica goes by.

use std::collections::BTreeMap;
use std::sync::Arc;

use quorate_log::leadership::{Known, Terms};
use quorate_log::{CompactionPolicy, Retention};
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
    /// `None`: the topic is not compacted.
    pub compaction: Option<CompactionPolicy>,
    pub segment_bytes: u64,
    pub segment_ms: u64,
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
        let retention = if config::has_cleanup_policy(image, broker, name, config::DELETE) {
            Retention { ms: bound(config::RETENTION_MS), bytes: bound(config::RETENTION_BYTES) }
        } else {
            Retention::default()
        };
        let compaction = compaction(image, broker, name);
        let segment_bytes = config::topic_value(image, broker, name, config::SEGMENT_BYTES);
        // What is in the active segment cannot be compacted.
        let max_lag_ms = compaction.and_then(|policy| u64::try_from(policy.max_lag_ms).ok());
        let segment_ms = config::topic_value(image, broker, name, config::SEGMENT_MS);
        let segment_ms = max_lag_ms.map_or(segment_ms, |max_lag_ms| max_lag_ms.min(segment_ms));
        Some(Self { partition, active, terms, retention, compaction, segment_bytes, segment_ms })
    }

    pub fn known(&self) -> Known<'_> {
        Known { partition: &self.partition, active: &self.active, terms: self.terms }
    }
}

/// Whether what is on the replicas of the partition is compacted, leader or not.
pub fn is_compacted(image: &MetadataImage, broker: BrokerId, id: TopicPartition) -> bool {
    image.topic(id.topic).is_some_and(|topic| config::has_cleanup_policy(image, broker, &topic.name, config::COMPACT))
}

fn compaction(image: &MetadataImage, broker: BrokerId, topic: &str) -> Option<CompactionPolicy> {
    let number = |key| config::topic_value(image, broker, topic, key);
    config::has_cleanup_policy(image, broker, topic, config::COMPACT).then(|| CompactionPolicy {
        min_dirty_ratio: config::topic_value(image, broker, topic, config::MIN_CLEANABLE_RATIO),
        delete_retention_ms: number(config::DELETE_RETENTION_MS),
        min_lag_ms: number(config::MIN_COMPACTION_LAG_MS),
        max_lag_ms: number(config::MAX_COMPACTION_LAG_MS),
    })
}
