//! The table of known keys: Kafka's names, bounds and defaults.

use super::schema::ConfigType::{Bool, Double, Enum, Int, List, ListOf, Long};
use super::schema::{ConfigKey, ConfigType, Scope};
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
        "compression.gzip.level",
        "compression.gzip.level",
        Int(-1, 9),
        "-1",
        "the level of gzip; -1 is its own default",
    ),
    topic("compression.lz4.level", "compression.lz4.level", Int(1, 17), "9", "the level of lz4"),
    topic(
        "compression.type",
        "compression.type",
        Enum(&["uncompressed", "zstd", "lz4", "snappy", "gzip", "producer"]),
        "producer",
        "how records are compressed on disk; producer keeps them as they came",
    ),
    topic("compression.zstd.level", "compression.zstd.level", Int(-131_072, 22), "3", "the level of zstd"),
    topic(
        "delete.retention.ms",
        "log.cleaner.delete.retention.ms",
        Long(0, i64::MAX),
        "86400000",
        "how long a compacted topic keeps a record without a value after compaction has reached it",
    ),
    topic(
        "file.delete.delay.ms",
        "log.segment.delete.delay.ms",
        Long(0, i64::MAX),
        "60000",
        "how long a file is kept after it was dropped from the log",
    ),
    topic("flush.messages", "log.flush.interval.messages", Long(1, i64::MAX), FOREVER, "fsync after this many records"),
    topic("flush.ms", "log.flush.interval.ms", Long(0, i64::MAX), FOREVER, "fsync after this long"),
    topic_only(
        "follower.replication.throttled.replicas",
        List,
        "",
        "replicas, as partition:broker or *, whose fetching is throttled",
    ),
    topic(
        "index.interval.bytes",
        "log.index.interval.bytes",
        Int(0, i32::MAX),
        "4096",
        "bytes of log between two entries of its index",
    ),
    topic_only(
        "leader.replication.throttled.replicas",
        List,
        "",
        "replicas, as partition:broker or *, whose leader throttles what it sends",
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
    topic(
        super::MIN_INSYNC_REPLICAS,
        super::MIN_INSYNC_REPLICAS,
        Int(1, i32::MAX),
        "1",
        "replicas that must have a record before it is acknowledged with acks=all",
    ),
    topic("preallocate", "log.preallocate", Bool, "false", "whether files get their full size at once"),
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
        "segment.index.bytes",
        "log.index.size.max.bytes",
        Int(4, i32::MAX),
        "10485760",
        "the size at which an index makes a new file begin",
    ),
    topic(
        "segment.jitter.ms",
        "log.roll.jitter.ms",
        Long(0, i64::MAX),
        "0",
        "spreads the beginning of new files over this time",
    ),
    topic(
        "segment.ms",
        "log.roll.ms",
        Long(1, i64::MAX),
        "604800000",
        "the age at which a new segment is begun: an older one can be compacted",
    ),
    topic(
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
    broker(
        "follower.replication.throttled.rate",
        Long(0, i64::MAX),
        FOREVER,
        "bytes a second that a broker fetches for throttled replicas",
    ),
    broker(
        "leader.replication.throttled.rate",
        Long(0, i64::MAX),
        FOREVER,
        "bytes a second that a broker sends to throttled replicas",
    ),
    broker("max.connections", Int(0, i32::MAX), "2147483647", "connections that a broker accepts"),
    broker("max.connections.per.ip", Int(0, i32::MAX), "2147483647", "connections that a broker accepts from one host"),
    broker(super::NUM_PARTITIONS, Int(1, i32::MAX), "1", "partitions of a topic that does not say how many"),
    broker("num.replica.fetchers", Int(1, i32::MAX), "1", "fetchers that a broker runs per leader"),
    broker(
        "replica.alter.log.dirs.io.max.bytes.per.second",
        Long(0, i64::MAX),
        FOREVER,
        "bytes a second that a broker moves between its own directories",
    ),
    broker(
        "replica.lag.time.max.ms",
        Long(1, i64::MAX),
        "3000",
        "how long a follower may lag before it leaves the ISR",
    ),
];

const fn topic(
    name: &'static str,
    broker_name: &'static str,
    takes: ConfigType,
    default: &'static str,
    doc: &'static str,
) -> ConfigKey {
    ConfigKey { name, scope: Scope::TopicAndBroker(broker_name), takes, default, doc }
}

const fn topic_only(name: &'static str, takes: ConfigType, default: &'static str, doc: &'static str) -> ConfigKey {
    ConfigKey { name, scope: Scope::Topic, takes, default, doc }
}

const fn broker(name: &'static str, takes: ConfigType, default: &'static str, doc: &'static str) -> ConfigKey {
    ConfigKey { name, scope: Scope::Broker, takes, default, doc }
}
