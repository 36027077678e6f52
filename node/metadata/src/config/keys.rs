//! The table of known keys: Kafka's names, bounds and defaults. Each has a reader, and an effect; tests compare the table
//! with what is read (`tests/config_readers.rs` here, `api/log/config_readers.rs` in the node).

use super::schema::ConfigType::{Bool, Double, Enum, Int, ListOf, Long};
use super::schema::{ConfigKey, ConfigType, Reader, Scope};
use crate::limits::RECORD_BATCH_BYTES_MAX;

const FOREVER: &str = "9223372036854775807";

/// Keys of topics, by name.
pub const TOPIC_KEYS: &[ConfigKey] = &[
    topic(
        "cleanup.policy",
        "log.cleanup.policy",
        ListOf(&["compact", "delete"]),
        "delete",
        "what happens to old records: deleted by age and size, compacted to the last one of each key, or both",
    ),
    topic(
        "delete.retention.ms",
        "log.cleaner.delete.retention.ms",
        Long(0, i64::MAX),
        "86400000",
        "how long a compacted topic keeps a record without a value after compaction has reached it",
    ),
    topic(
        "max.compaction.lag.ms",
        "log.cleaner.max.compaction.lag.ms",
        Long(1, i64::MAX),
        FOREVER,
        "the longest that a record stays uncompacted",
    ),
    topic(
        "max.message.bytes",
        "message.max.bytes",
        Int(0, RECORD_BATCH_BYTES_MAX),
        "1048588",
        "the largest batch of records taken",
    ),
    topic(
        super::TIMESTAMP_AFTER_MAX,
        "log.message.timestamp.after.max.ms",
        Long(0, i64::MAX),
        "3600000",
        "how far a record's time may lie ahead of the broker's",
    ),
    topic(
        super::TIMESTAMP_BEFORE_MAX,
        "log.message.timestamp.before.max.ms",
        Long(0, i64::MAX),
        FOREVER,
        "how far a record's time may lie behind the broker's",
    ),
    topic(
        super::TIMESTAMP_TYPE,
        "log.message.timestamp.type",
        Enum(&["CreateTime", super::LOG_APPEND_TIME]),
        "CreateTime",
        "whose clock a record's time is from",
    ),
    topic(
        "min.cleanable.dirty.ratio",
        "log.cleaner.min.cleanable.ratio",
        Double(0.0, 1.0),
        "0.5",
        "the share of uncompacted log from which it is compacted",
    ),
    topic(
        "min.compaction.lag.ms",
        "log.cleaner.min.compaction.lag.ms",
        Long(0, i64::MAX),
        "0",
        "the shortest that a record stays uncompacted",
    ),
    of_every_kind(
        super::MIN_INSYNC_REPLICAS,
        super::MIN_INSYNC_REPLICAS,
        Int(1, i32::MAX),
        "1",
        "replicas that must have a record before it is acknowledged with acks=all",
    ),
    topic(
        "retention.bytes",
        "log.retention.bytes",
        Long(-1, i64::MAX),
        "-1",
        "bytes of log kept per partition; -1 is no bound",
    ),
    topic(
        "retention.ms",
        "log.retention.ms",
        Long(-1, i64::MAX),
        "604800000",
        "how long records are kept; -1 is for ever",
    ),
    topic(
        "segment.bytes",
        "log.segment.bytes",
        Int(14, i32::MAX),
        "16777216",
        "the size at which a new segment is begun: what retention removes at once, and what a start reads",
    ),
    topic(
        super::SEGMENT_MS,
        "log.roll.ms",
        Long(1, i64::MAX),
        "604800000",
        "the age at which a new segment is begun: an older one can be compacted",
    ),
    of_every_kind(
        super::UNCLEAN_LEADER_ELECTION,
        super::UNCLEAN_LEADER_ELECTION,
        Bool,
        "false",
        "whether a replica that is not in sync may lead when no other can: records may be lost",
    ),
];

/// Keys that only brokers have, by name. They also have most topic keys, under the names given there.
pub const BROKER_KEYS: &[ConfigKey] = &[
    broker(super::AUTO_LEADER_REBALANCE, Bool, "true", "whether leadership returns to the preferred leader by itself"),
    broker(
        super::DEFAULT_REPLICATION_FACTOR,
        Int(1, i16::MAX as i32),
        "1",
        "replicas of a topic that does not say how many",
    ),
    broker(super::DELETE_TOPIC, Bool, "true", "whether topics can be deleted"),
    broker(super::NUM_PARTITIONS, Int(1, i32::MAX), "1", "partitions of a topic that does not say how many"),
    log_broker(
        super::REPLICA_LAG_TIME_MAX,
        Long(1, i64::MAX),
        "3000",
        "how long a follower may lag before it leaves the ISR",
    ),
];

/// A key that brokers of kind log read, of topics and as their default.
const fn topic(
    name: &'static str,
    broker_name: &'static str,
    takes: ConfigType,
    default: &'static str,
    doc: &'static str,
) -> ConfigKey {
    ConfigKey { name, scope: Scope::TopicAndBroker(broker_name), reader: Reader::Log, takes, default, doc }
}

/// A key of topics that the controllers read, whatever the kind.
const fn of_every_kind(
    name: &'static str,
    broker_name: &'static str,
    takes: ConfigType,
    default: &'static str,
    doc: &'static str,
) -> ConfigKey {
    ConfigKey { name, scope: Scope::TopicAndBroker(broker_name), reader: Reader::Controllers, takes, default, doc }
}

/// A key of the cluster that the controllers read.
const fn broker(name: &'static str, takes: ConfigType, default: &'static str, doc: &'static str) -> ConfigKey {
    ConfigKey { name, scope: Scope::Broker, reader: Reader::Controllers, takes, default, doc }
}

/// A key that brokers of kind log read, for themselves.
const fn log_broker(name: &'static str, takes: ConfigType, default: &'static str, doc: &'static str) -> ConfigKey {
    ConfigKey { name, scope: Scope::Broker, reader: Reader::Log, takes, default, doc }
}
