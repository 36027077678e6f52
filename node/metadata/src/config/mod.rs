//! Dynamic configs: what is known (`keys`), what is valid (`schema`), and which value counts.
//!
//! A value is looked up on the topic, then on the broker, then in the default of all brokers, then in the table. Most
//! topic keys have another name on brokers: `retention.ms` of a topic falls back to `log.retention.ms`.
//!
//! Keys belong to a kind of topics and brokers (`support`): those of the table to kind `log`, but for a few that the
//! controllers read of every kind; each other kind brings its own, under its name as a prefix, for its host to read.

mod keys;
mod schema;
mod support;

use crate::ids::BrokerId;
use crate::image::MetadataImage;
use crate::record::ConfigResource;

pub use keys::{BROKER_KEYS, TOPIC_KEYS};
pub use schema::{ConfigKey, ConfigType, Reader, Scope, items, nearest};
pub use support::{Support, handed_to_host, keys_for, support, topics_configured_anew};

pub const AUTO_LEADER_REBALANCE: &str = "auto.leader.rebalance.enable";
pub const CLEANUP_POLICY: &str = "cleanup.policy";
/// A value of `CLEANUP_POLICY`: of each key the last record stays.
pub const COMPACT: &str = "compact";
/// A value of `CLEANUP_POLICY`: what is old, or too much, goes.
pub const DELETE: &str = "delete";
pub const DELETE_RETENTION_MS: &str = "delete.retention.ms";
pub const MAX_COMPACTION_LAG_MS: &str = "max.compaction.lag.ms";
pub const MIN_CLEANABLE_RATIO: &str = "min.cleanable.dirty.ratio";
pub const MIN_COMPACTION_LAG_MS: &str = "min.compaction.lag.ms";
pub const SEGMENT_MS: &str = "segment.ms";
pub const DEFAULT_REPLICATION_FACTOR: &str = "default.replication.factor";
pub const DELETE_TOPIC: &str = "delete.topic.enable";
pub const MIN_INSYNC_REPLICAS: &str = "min.insync.replicas";
pub const MAX_MESSAGE_BYTES: &str = "max.message.bytes";
pub const NUM_PARTITIONS: &str = "num.partitions";
pub const REPLICA_LAG_TIME_MAX: &str = "replica.lag.time.max.ms";
pub const RETENTION_BYTES: &str = "retention.bytes";
pub const RETENTION_MS: &str = "retention.ms";
pub const SEGMENT_BYTES: &str = "segment.bytes";
pub const TIMESTAMP_AFTER_MAX: &str = "message.timestamp.after.max.ms";
pub const TIMESTAMP_BEFORE_MAX: &str = "message.timestamp.before.max.ms";
pub const TIMESTAMP_TYPE: &str = "message.timestamp.type";

/// The value of `TIMESTAMP_TYPE` by which a record has the time of its append, not the one of its producer.
pub const LOG_APPEND_TIME: &str = "LogAppendTime";
pub const UNCLEAN_LEADER_ELECTION: &str = "unclean.leader.election.enable";

/// Where a value comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ConfigSource {
    Topic,
    Broker,
    BrokerDefault,
    BuiltIn,
}

impl ConfigSource {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Topic => "topic",
            Self::Broker => "broker",
            Self::BrokerDefault => "broker-default",
            Self::BuiltIn => "built-in",
        }
    }
}

pub fn topic_key(name: &str) -> Option<&'static ConfigKey> {
    TOPIC_KEYS.iter().find(|key| key.name == name)
}

pub fn broker_key(name: &str) -> Option<&'static ConfigKey> {
    let of_brokers = BROKER_KEYS.iter().find(|key| key.name == name);
    of_brokers.or_else(|| TOPIC_KEYS.iter().find(|key| key.broker_name() == name))
}

/// The value of `key` that counts for a topic, a broker or (neither) the cluster, and where it comes from.
/// `None` if there is no such key. With a topic, `key` is the topic's name of it, else the brokers'.
pub fn effective<'a>(
    image: &'a MetadataImage,
    topic: Option<&str>,
    broker: Option<BrokerId>,
    key: &str,
) -> Option<(&'a str, ConfigSource)> {
    let Some(topic) = topic else {
        let found = broker_key(key)?;
        return Some(on_brokers(image, broker, key).unwrap_or((found.default, ConfigSource::BuiltIn)));
    };
    let found = topic_key(key)?;
    let own = own_value(image, &ConfigResource::Topic(topic.to_owned()), key);
    let inherited = || on_brokers(image, broker, found.broker_name());
    Some(
        own.map(|value| (value, ConfigSource::Topic))
            .or_else(inherited)
            .unwrap_or((found.default, ConfigSource::BuiltIn)),
    )
}

fn on_brokers<'a>(image: &'a MetadataImage, broker: Option<BrokerId>, key: &str) -> Option<(&'a str, ConfigSource)> {
    let own = broker.and_then(|broker| own_value(image, &ConfigResource::Broker(broker), key));
    let default = || own_value(image, &ConfigResource::BrokerDefault, key);
    own.map(|value| (value, ConfigSource::Broker))
        .or_else(|| default().map(|value| (value, ConfigSource::BrokerDefault)))
}

/// The value that the resource itself has for `key`.
pub fn own_value<'a>(image: &'a MetadataImage, resource: &ConfigResource, key: &str) -> Option<&'a str> {
    image.configs.get(resource).and_then(|configs| configs.get(key)).map(String::as_str)
}

/// How many replicas of the topic must be in sync. A partition with fewer replicas needs only all of them.
pub fn min_insync_replicas(image: &MetadataImage, topic: &str) -> usize {
    parsed(effective(image, Some(topic), None, MIN_INSYNC_REPLICAS))
}

/// What the topic itself asks for, if it does.
pub fn own_min_insync_replicas(image: &MetadataImage, topic: &str) -> Option<usize> {
    let own = own_value(image, &ConfigResource::Topic(topic.to_owned()), MIN_INSYNC_REPLICAS);
    own.and_then(|value| value.parse().ok())
}

/// Whether a partition of the topic may have a leader that was not in sync.
pub fn unclean_allowed(image: &MetadataImage, topic: &str) -> bool {
    parsed(effective(image, Some(topic), None, UNCLEAN_LEADER_ELECTION))
}

/// A value that the topic has, or inherits on this broker.
pub fn topic_value<T: std::str::FromStr>(image: &MetadataImage, broker: BrokerId, topic: &str, key: &str) -> T {
    parsed(effective(image, Some(topic), Some(broker), key))
}

/// A value of this broker.
pub fn broker_value<T: std::str::FromStr>(image: &MetadataImage, broker: BrokerId, key: &str) -> T {
    parsed(effective(image, None, Some(broker), key))
}

/// Whether `policy`, `COMPACT` or `DELETE`, is one of the topic's on this broker.
pub fn has_cleanup_policy(image: &MetadataImage, broker: BrokerId, topic: &str, policy: &str) -> bool {
    let value: String = topic_value(image, broker, topic, CLEANUP_POLICY);
    items(&value).any(|item| item == policy)
}

/// A switch of the whole cluster.
pub fn is_enabled(image: &MetadataImage, key: &str) -> bool {
    parsed(effective(image, None, None, key))
}

/// A number of the whole cluster.
pub fn cluster_number<T: std::str::FromStr>(image: &MetadataImage, key: &str) -> T {
    parsed(effective(image, None, None, key))
}

fn parsed<T: std::str::FromStr>(value: Option<(&str, ConfigSource)>) -> T {
    let (value, _) = value.expect("the key is in the table");
    value.parse().ok().expect("a config that exists is valid")
}

#[cfg(test)]
mod tests {
    use super::*;
    use imbl::OrdMap;

    fn with(image: &mut MetadataImage, resource: ConfigResource, key: &str, value: &str) {
        image.configs.insert(resource, OrdMap::unit(key.to_owned(), value.to_owned()));
    }

    #[test]
    fn the_nearest_value_counts() {
        let mut image = MetadataImage::default();
        let broker = BrokerId::new(1);
        let look_up = |image: &MetadataImage| {
            effective(image, Some("orders"), Some(broker), "retention.ms").map(|(value, from)| (value.to_owned(), from))
        };
        assert_eq!(look_up(&image), Some(("604800000".to_owned(), ConfigSource::BuiltIn)));
        with(&mut image, ConfigResource::BrokerDefault, "log.retention.ms", "3");
        assert_eq!(look_up(&image), Some(("3".to_owned(), ConfigSource::BrokerDefault)));
        with(&mut image, ConfigResource::Broker(broker), "log.retention.ms", "2");
        assert_eq!(look_up(&image), Some(("2".to_owned(), ConfigSource::Broker)));
        with(&mut image, ConfigResource::Topic("orders".to_owned()), "retention.ms", "1");
        assert_eq!(look_up(&image), Some(("1".to_owned(), ConfigSource::Topic)));
    }

    #[test]
    fn every_default_is_valid_and_every_name_unique() {
        for keys in [TOPIC_KEYS, BROKER_KEYS] {
            for key in keys {
                assert_eq!(key.check(key.default), Ok(()), "{}", key.name);
                assert_eq!(keys.iter().filter(|other| other.name == key.name).count(), 1, "{}", key.name);
            }
        }
        for key in TOPIC_KEYS.iter().map(ConfigKey::broker_name) {
            assert!(BROKER_KEYS.iter().all(|other| other.name != key), "{key} is in both tables");
        }
    }

    #[test]
    fn a_key_of_the_other_scope_is_unknown() {
        let image = MetadataImage::default();
        assert_eq!(effective(&image, Some("orders"), None, "num.partitions"), None);
        assert_eq!(effective(&image, None, None, "retention.ms"), None);
    }
}
