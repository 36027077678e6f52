//! What people write on a command line, or in the file of a reassignment, is understood or refused; what is understood
//! means the same when it is written out.

use std::fmt::{Debug, Display};
use std::str::FromStr;

use quorate_client::spec::{
    TopicPartition, assignments, key_value, moves, rate, replicas, resource, start, throttle, topic_partition,
};
use quorate_metadata::config::{BROKER_KEYS, ConfigKey, ConfigType, TOPIC_KEYS, items};
use quorate_metadata::ids::{BrokerId, TopicId};

/// `bytes`: a text that everything is read from.
pub fn check(bytes: &[u8]) {
    let text = String::from_utf8_lossy(bytes);
    check_names(&text);
    check_numbers(&text);
    let _ = moves(&text);
    for key in TOPIC_KEYS.iter().chain(BROKER_KEYS) {
        check_config(key, &text);
    }
}

fn check_names(text: &str) {
    if let Ok(named @ TopicPartition { topic, partition }) = &topic_partition(text) {
        assert_eq!(topic_partition(&format!("{topic}-{partition}")).as_ref(), Ok(named));
    }
    if let Ok(named) = resource(text) {
        assert_eq!(resource(&named.to_string()), Ok(named));
    }
    if let Ok((key, value)) = key_value(text) {
        assert_eq!(format!("{key}={value}"), text);
    }
    check_id::<BrokerId>(text);
    if let Some(id) = check_id::<TopicId>(text) {
        assert_eq!(id.to_string(), text, "an id has one text");
    }
}

fn check_id<T: FromStr<Err: Debug> + Display + Debug + PartialEq>(text: &str) -> Option<T> {
    let id: T = text.parse().ok()?;
    assert_eq!(id.to_string().parse::<T>().expect("an id is read as it is written"), id);
    Some(id)
}

fn check_numbers(text: &str) {
    let _ = start(text);
    if let Ok(rate) = rate(text) {
        assert_eq!(quorate_client::spec::rate(&rate.to_string()), Ok(rate));
        assert!(throttle(text).is_ok(), "a rate is a throttle");
    }
    let Ok(lists) = text.split(',').map(replicas).collect::<Result<Vec<_>, _>>() else { return };
    let written: Vec<String> =
        lists.iter().map(|list| list.iter().map(i32::to_string).collect::<Vec<_>>().join(":")).collect();
    let again: Result<Vec<_>, _> = written.iter().map(|list| replicas(list)).collect();
    assert_eq!(again.as_ref(), Ok(&lists));
    assert_eq!(assignments(&lists, 0).len(), lists.len());
}

/// A value that is taken for a number, or for one or more of something, is that for whoever reads it.
fn check_config(key: &ConfigKey, text: &str) {
    if key.check(text).is_err() {
        return;
    }
    match key.takes {
        ConfigType::Int(..) => assert!(text.parse::<i32>().is_ok(), "{} takes {text:?}", key.name),
        ConfigType::Long(..) => assert!(text.parse::<i64>().is_ok(), "{} takes {text:?}", key.name),
        ConfigType::Double(..) => assert!(text.parse::<f64>().is_ok_and(f64::is_finite), "{} takes {text:?}", key.name),
        ConfigType::ListOf(_) => assert!(items(text).next().is_some(), "{} takes {text:?}", key.name),
        ConfigType::Bool | ConfigType::Enum(_) => {}
    }
}
