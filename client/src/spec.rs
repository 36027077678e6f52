//! Texts with an inner form, as people write them in arguments and files.

mod moves;

use std::time::Duration;

use quorate_proto::admin::config_resource::Resource;
use quorate_proto::admin::{Assignment, ConfigResource};

use crate::log::Start;

pub use moves::moves;

/// `key=value`; the value may hold more equal signs.
pub fn key_value(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((key, value)) if !key.is_empty() => Ok((key.to_owned(), value.to_owned())),
        _ => Err("expected KEY=VALUE".to_owned()),
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TopicPartition {
    pub topic: String,
    pub partition: i32,
}

/// `orders-0`; the topic may hold more dashes.
pub fn topic_partition(text: &str) -> Result<TopicPartition, String> {
    let expected = || "expected TOPIC-PARTITION, such as orders-0".to_owned();
    let (topic, partition) = text.rsplit_once('-').ok_or_else(expected)?;
    let partition = partition.parse().map_err(|_| expected())?;
    if topic.is_empty() { Err(expected()) } else { Ok(TopicPartition { topic: topic.to_owned(), partition }) }
}

/// One partition's replicas of `1:2:3,2:3:1`, preferred leader first.
pub fn replicas(text: &str) -> Result<Vec<i32>, String> {
    text.split(':')
        .map(|id| id.parse().map_err(|_| format!("\"{id}\" is not a broker id; expected replicas as 1:2:3")))
        .collect()
}

/// The assignments of consecutive partitions, the first of which is `first`.
pub fn assignments(replicas: &[Vec<i32>], first: i32) -> Vec<Assignment> {
    (first..).zip(replicas).map(|(partition, replicas)| Assignment { partition, replicas: replicas.clone() }).collect()
}

/// The longest time limit: what is left of one is counted from now, and no clock goes on for ever.
const TIME_LIMIT_MAX: Duration = Duration::from_secs(7 * 24 * 60 * 60);

/// How long something may take: `250ms`, `10s`, `2min`.
pub fn time_limit(text: &str) -> Result<Duration, String> {
    let limit = humantime::parse_duration(text).map_err(|error| error.to_string())?;
    if limit.is_zero() || limit > TIME_LIMIT_MAX {
        return Err("expected a time above zero and at most 7days, such as 10s".to_owned());
    }
    Ok(limit)
}

/// Where to begin to read: an offset, `beginning`, `end`, or `@` and milliseconds since 1970.
pub fn start(text: &str) -> Result<Start, String> {
    let number = |text: &str| text.parse().ok().filter(|number| *number >= 0);
    match text {
        "beginning" => Some(Start::Beginning),
        "end" => Some(Start::End),
        _ => match text.strip_prefix('@') {
            Some(timestamp) => number(timestamp).map(Start::Timestamp),
            None => number(text).map(Start::At),
        },
    }
    .ok_or_else(|| "expected an offset, beginning, end or @TIMESTAMP_MS".to_owned())
}

/// Bytes per second: `1000`, `512KiB`, `10MB`.
pub fn rate(text: &str) -> Result<u64, String> {
    let expected = || "expected bytes per second, such as 10MiB".to_owned();
    let digits = text.find(|letter: char| !letter.is_ascii_digit()).unwrap_or(text.len());
    let (number, unit) = text.split_at(digits);
    let unit: u64 = match unit {
        "" | "B" => 1,
        "kB" | "KB" => 1_000,
        "MB" => 1_000_000,
        "GB" => 1_000_000_000,
        "KiB" => 1 << 10,
        "MiB" => 1 << 20,
        "GiB" => 1 << 30,
        _ => return Err(expected()),
    };
    let number: u64 = number.parse().map_err(|_| expected())?;
    number.checked_mul(unit).filter(|rate| *rate > 0).ok_or_else(expected)
}

/// A throttle, or none.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Throttle(pub Option<u64>);

/// A rate, or `none`.
pub fn throttle(text: &str) -> Result<Throttle, String> {
    if text == "none" { Ok(Throttle(None)) } else { rate(text).map(|rate| Throttle(Some(rate))) }
}

#[derive(Debug, Clone, PartialEq)]
pub struct ResourceName(pub Resource);

/// `topic/NAME`, `broker/ID` or `broker/default`.
pub fn resource(text: &str) -> Result<ResourceName, String> {
    let expected = || "expected topic/NAME, broker/ID or broker/default".to_owned();
    let resource = match text.split_once('/') {
        Some(("topic" | "topics", name)) if !name.is_empty() => Resource::Topic(name.to_owned()),
        Some(("broker" | "brokers", "default")) => Resource::BrokerDefault(true),
        Some(("broker" | "brokers", id)) => Resource::Broker(id.parse().map_err(|_| expected())?),
        _ => return Err(expected()),
    };
    Ok(ResourceName(resource))
}

impl ResourceName {
    pub fn to_wire(&self) -> ConfigResource {
        ConfigResource { resource: Some(self.0.clone()) }
    }
}

impl std::fmt::Display for ResourceName {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match &self.0 {
            Resource::Topic(name) => write!(f, "topic/{name}"),
            Resource::Broker(id) => write!(f, "broker/{id}"),
            Resource::BrokerDefault(_) => f.write_str("broker/default"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_partition_is_named_by_what_follows_the_last_dash() {
        let parsed = topic_partition("orders-eu-12").expect("parses");
        assert_eq!(parsed, TopicPartition { topic: "orders-eu".to_owned(), partition: 12 });
        assert!(topic_partition("orders").is_err());
        assert!(topic_partition("-1").is_err());
        assert!(topic_partition("orders-x").is_err());
    }

    #[test]
    fn time_limit_is_above_zero_and_at_most_a_week() {
        assert_eq!(time_limit("250ms"), Ok(Duration::from_millis(250)));
        assert_eq!(time_limit("7days"), Ok(TIME_LIMIT_MAX));
        for refused in ["0s", "0ms", "8days", "soon", "-1s", "9999999999y"] {
            assert!(time_limit(refused).is_err(), "{refused}");
        }
    }

    #[test]
    fn a_config_value_may_hold_equal_signs() {
        assert_eq!(key_value("a=b=c"), Ok(("a".to_owned(), "b=c".to_owned())));
        assert_eq!(key_value("a="), Ok(("a".to_owned(), String::new())));
        assert!(key_value("=b").is_err());
    }

    #[test]
    fn resources_are_named_by_kind() {
        assert_eq!(resource("broker/default"), Ok(ResourceName(Resource::BrokerDefault(true))));
        assert_eq!(resource("broker/3"), Ok(ResourceName(Resource::Broker(3))));
        assert_eq!(resource("topic/a/b").map(|name| name.to_string()), Ok("topic/a/b".to_owned()));
        assert!(resource("broker/x").is_err());
    }

    #[test]
    fn a_rate_has_a_unit_or_is_in_bytes() {
        assert_eq!(rate("1000"), Ok(1_000));
        assert_eq!(rate("10MiB"), Ok(10 * 1_024 * 1_024));
        assert_eq!(rate("2kB"), Ok(2_000));
        assert_eq!(throttle("none"), Ok(Throttle(None)));
        for wrong in ["", "0", "MiB", "-1", "1.5MiB", "10 MiB", "10mib", "99999999999GiB"] {
            assert!(rate(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn reading_starts_at_an_offset_a_place_or_a_time() {
        assert_eq!(start("12"), Ok(Start::At(12)));
        assert_eq!(start("beginning"), Ok(Start::Beginning));
        assert_eq!(start("end"), Ok(Start::End));
        assert_eq!(start("@1700000000000"), Ok(Start::Timestamp(1_700_000_000_000)));
        for wrong in ["", "-1", "@", "@-5", "start", "1.5"] {
            assert!(start(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn replicas_are_a_list_of_ids() {
        assert_eq!(replicas("1:2:3"), Ok(vec![1, 2, 3]));
        assert!(replicas("1::3").is_err());
    }
}
