//! Which keys a resource supports: what is accepted has an effect, and anything else is refused by name.
//!
//! Topics and brokers of kind `log` have the keys of the table. Of another kind, topics have the keys that the controllers
//! read, and any that begin with the name of the kind: `counter.window.ms` of a topic of kind `counter`. Nothing here knows
//! what those take: the host of the partitions gets them.

use std::collections::BTreeMap;

use imbl::ordmap::DiffItem;

use super::{BROKER_KEYS, ConfigKey, Reader, TOPIC_KEYS, broker_key, nearest, topic_key};
use crate::ids::TopicId;
use crate::image::{MetadataImage, Topic};
use crate::record::{ConfigResource, Kind};

/// Characters of a key that a kind brings.
const KEY_LENGTH_MAX: usize = 200;

/// Keys of Kafka that kind `log` does not support, and what there is instead.
const UNSUPPORTED: &[(&str, &str)] = &[
    ("compression.gzip.level", "records stay as producers send them"),
    ("compression.lz4.level", "records stay as producers send them"),
    ("compression.type", "records stay as producers send them"),
    ("compression.zstd.level", "records stay as producers send them"),
    ("file.delete.delay.ms", "the space of removed records is reclaimed in the background"),
    ("flush.messages", "the node setting log_flush decides what is flushed before it is acknowledged"),
    ("flush.ms", "the node setting log_flush decides what is flushed before it is acknowledged"),
    ("follower.replication.throttled.rate", "a reassignment has a throttle of its own"),
    ("follower.replication.throttled.replicas", "a reassignment has a throttle of its own"),
    ("index.interval.bytes", "the log has no index files"),
    ("leader.replication.throttled.rate", "a reassignment has a throttle of its own"),
    ("leader.replication.throttled.replicas", "a reassignment has a throttle of its own"),
    ("log.flush.interval.messages", "the node setting log_flush decides what is flushed before it is acknowledged"),
    ("log.flush.interval.ms", "the node setting log_flush decides what is flushed before it is acknowledged"),
    ("log.index.interval.bytes", "the log has no index files"),
    ("log.index.size.max.bytes", "the log has no index files"),
    ("log.preallocate", "the log has no files of its own"),
    ("log.roll.jitter.ms", "segments begin by size and age alone"),
    ("log.segment.delete.delay.ms", "the space of removed records is reclaimed in the background"),
    ("max.connections", "the number of connections is bounded by the open files that the node may have"),
    ("max.connections.per.ip", "the number of connections is bounded by the open files that the node may have"),
    ("num.replica.fetchers", "a broker has one fetcher for each leader"),
    ("preallocate", "the log has no files of its own"),
    ("replica.alter.log.dirs.io.max.bytes.per.second", "a reassignment has a throttle of its own"),
    ("segment.index.bytes", "the log has no index files"),
    ("segment.jitter.ms", "segments begin by size and age alone"),
];

/// What a name is for a resource.
#[derive(Debug)]
pub enum Support {
    /// In the table.
    Known(&'static ConfigKey),
    /// Brought by the kind of the topic: any text, for its host.
    OfKind,
    /// Refused, or stored by an earlier release and without effect: why.
    Unsupported(String),
}

/// What `name` is for a topic or a broker of this kind; of no kind: for the default of all brokers.
pub fn support(resource: &ConfigResource, kind: Option<&Kind>, name: &str) -> Support {
    let is_topic = matches!(resource, ConfigResource::Topic(_));
    let found = if is_topic { topic_key(name) } else { broker_key(name) };
    let other_kind = kind.filter(|kind| !kind.is_log());
    let what = if is_topic { "topics" } else { "brokers" };
    match (found, other_kind) {
        (Some(key), None) => Support::Known(key),
        (Some(key), Some(_)) if key.reader == Reader::Controllers => Support::Known(key),
        (None, Some(kind)) if is_topic && is_of_kind(kind, name) => Support::OfKind,
        (_, Some(kind)) if is_topic => Support::Unsupported(format!(
            "unsupported config {name:?} for topics of kind {kind}: expected a key of the controllers, or one that begins \
             with \"{kind}.\""
        )),
        (Some(_), Some(kind)) => Support::Unsupported(format!("unsupported config {name:?} for {what} of kind {kind}")),
        (None, _) => match UNSUPPORTED.iter().find(|(key, _)| *key == name) {
            Some((_, instead)) => {
                Support::Unsupported(format!("unsupported config {name:?} for {what} of kind log: {instead}"))
            }
            None => Support::Unsupported(unknown(resource, name)),
        },
    }
}

fn unknown(resource: &ConfigResource, name: &str) -> String {
    let hint = nearest(name, table(resource).map(|(name, _)| name));
    let hint = hint.map_or_else(String::new, |nearest| format!("; did you mean {nearest:?}?"));
    format!("{resource} has no config {name:?}{hint}")
}

/// Whether the kind brings the key: its name, a dot, and a name of its own.
fn is_of_kind(kind: &Kind, name: &str) -> bool {
    let is_allowed = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || matches!(c, '.' | '-' | '_');
    let own = name.strip_prefix(kind.as_str()).and_then(|rest| rest.strip_prefix('.'));
    own.is_some_and(|own| !own.is_empty() && name.len() <= KEY_LENGTH_MAX && own.chars().all(is_allowed))
}

/// The keys of the table that such a resource may have, each by its name there.
fn table(resource: &ConfigResource) -> impl Iterator<Item = (&'static str, &'static ConfigKey)> + use<> {
    let is_topic = matches!(resource, ConfigResource::Topic(_));
    let of_topics = TOPIC_KEYS.iter().map(move |key| (if is_topic { key.name } else { key.broker_name() }, key));
    let of_brokers = BROKER_KEYS.iter().filter(move |_| !is_topic).map(|key| (key.name, key));
    of_topics.chain(of_brokers)
}

/// The keys of the table that a resource of this kind supports, each by its name there.
pub fn keys_for(resource: &ConfigResource, kind: Option<&Kind>) -> Vec<(&'static str, &'static ConfigKey)> {
    let is_supported = |key: &ConfigKey| key.reader == Reader::Controllers || kind.is_none_or(Kind::is_log);
    let mut keys: Vec<_> = table(resource).filter(|(_, key)| is_supported(key)).collect();
    keys.sort_by_key(|(name, _)| *name);
    keys
}

/// The topic's configs that are for the host of its partitions.
pub fn handed_to_host(image: &MetadataImage, topic: &Topic) -> BTreeMap<String, String> {
    if topic.kind.is_log() {
        return BTreeMap::new();
    }
    let own = image.configs.get(&ConfigResource::Topic(topic.name.clone()));
    let of_kind = own.into_iter().flatten().filter(|(key, _)| is_of_kind(&topic.kind, key));
    of_kind.map(|(key, value)| (key.clone(), value.clone())).collect()
}

/// The topics whose configs differ for the host of their partitions.
pub fn topics_configured_anew(before: &MetadataImage, after: &MetadataImage) -> Vec<TopicId> {
    let mut topics = Vec::new();
    for item in before.configs.diff(&after.configs) {
        let (DiffItem::Add(resource, _) | DiffItem::Remove(resource, _) | DiffItem::Update { new: (resource, _), .. }) =
            item;
        let ConfigResource::Topic(name) = resource else { continue };
        let Some(topic) = after.topic_named(name) else { continue };
        if handed_to_host(before, topic) != handed_to_host(after, topic) {
            topics.push(topic.id);
        }
    }
    topics
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reason(resource: &ConfigResource, kind: Option<&str>, name: &str) -> Option<String> {
        match support(resource, kind.map(Kind::from).as_ref(), name) {
            Support::Known(_) | Support::OfKind => None,
            Support::Unsupported(why) => Some(why),
        }
    }

    #[test]
    fn keys_belong_to_kinds() {
        let topic = ConfigResource::Topic("orders".to_owned());
        for (kind, name, is_supported) in [
            ("log", "retention.ms", true),
            ("log", "min.insync.replicas", true),
            ("log", "log.window", false),
            ("counter", "min.insync.replicas", true),
            ("counter", "retention.ms", false),
            ("counter", "counter.window.ms", true),
            ("counter", "counter.", false),
            ("counter", "counter.Window", false),
            ("counter", "counters.window", false),
        ] {
            assert_eq!(reason(&topic, Some(kind), name).is_none(), is_supported, "{kind} {name}");
        }
        let broker = ConfigResource::Broker(crate::ids::BrokerId::new(1));
        assert_eq!(reason(&broker, Some("log"), "log.retention.ms"), None);
        assert!(reason(&broker, Some("counter"), "log.retention.ms").is_some());
        assert!(reason(&broker, Some("counter"), "counter.window.ms").is_some());
        assert_eq!(reason(&ConfigResource::BrokerDefault, None, "log.retention.ms"), None);
    }

    #[test]
    fn unsupported_key_names_what_there_is_instead() {
        let topic = ConfigResource::Topic("orders".to_owned());
        let why = reason(&topic, Some("log"), "flush.ms").unwrap();
        assert!(why.starts_with("unsupported config \"flush.ms\" for topics of kind log: the node setting"), "{why}");
        for (name, _) in UNSUPPORTED {
            assert!(topic_key(name).is_none() && broker_key(name).is_none(), "{name} is in the table");
        }
        assert!(UNSUPPORTED.is_sorted());
    }
}
