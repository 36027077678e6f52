//! Changes of dynamic configs: a resource changes as a whole or not at all.

use std::collections::{BTreeMap, BTreeSet};

use crate::config::{self, ConfigKey, MIN_INSYNC_REPLICAS};
use crate::error::{ApiError, ErrorName};
use crate::ids::{TopicId, TopicPartition};
use crate::image::MetadataImage;
use crate::limits;
use crate::plan::partition_change::change_step;
use crate::plan::{Plan, brokers};
use crate::record::{Cause, ConfigResource, Record};

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ConfigOp {
    Set(String),
    Delete,
    /// Adds the items of a list that are not in it yet.
    Append(String),
    /// Takes items out of a list.
    Subtract(String),
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConfigChange {
    pub key: String,
    pub op: ConfigOp,
    /// The resource's own value must be this one.
    pub expected: Option<String>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AlterConfigs {
    pub resource: ConfigResource,
    pub changes: Vec<ConfigChange>,
}

pub fn alter_configs(image: &MetadataImage, requests: &[AlterConfigs]) -> Plan<Vec<Result<(), ApiError>>> {
    let mut times_named: BTreeMap<&ConfigResource, usize> = BTreeMap::new();
    for request in requests {
        *times_named.entry(&request.resource).or_default() += 1;
    }
    let mut records = Vec::new();
    let mut alter = |request: &AlterConfigs| {
        if times_named[&request.resource] > 1 {
            let message = format!("{} is named more than once in the request", request.resource);
            return Err(ApiError::new(ErrorName::InvalidRequest, message));
        }
        records.extend(alter_resource(image, request)?);
        Ok(())
    };
    let answers: Vec<Result<(), ApiError>> = requests.iter().map(&mut alter).collect();
    let outdated = elrs_outdated_by(image, &records);
    let step = change_step(image, outdated, Cause::MinIsrChanged, |change| change.forget_elr());
    if !step.is_last {
        // An ELR that is emptied too early keeps every promise, so the configs come with the last step.
        return Plan::partial(step.records, answers);
    }
    records.extend(step.records);
    let all_refused = !answers.is_empty() && answers.iter().all(Result::is_err);
    Plan::of_items(records, answers, all_refused)
}

fn alter_resource(image: &MetadataImage, request: &AlterConfigs) -> Result<Vec<Record>, ApiError> {
    let resource = &request.resource;
    check_exists(image, resource)?;
    let mut seen = BTreeSet::new();
    let mut records = Vec::new();
    for ConfigChange { key: name, op, expected } in &request.changes {
        if !seen.insert(name) {
            let message = format!("config {name:?} of {resource} is named twice in the request");
            return Err(ApiError::new(ErrorName::InvalidRequest, message));
        }
        let key = known_key(resource, name)?;
        let value = new_value(image, resource, key, name, op)?;
        let before = config::own_value(image, resource, name);
        check_expected(resource, name, expected.as_deref(), before)?;
        // A topic's config that stays as it is needs no record. A broker's is written again: brokers take that as
        // the order to reload what it names, such as a certificate.
        let is_reload = value.is_some() && !matches!(resource, ConfigResource::Topic(_));
        if is_reload || value.as_deref() != before {
            records.push(Record::Config { resource: resource.clone(), key: name.clone(), value });
        }
    }
    Ok(records)
}

fn check_expected(
    resource: &ConfigResource,
    name: &str,
    expected: Option<&str>,
    found: Option<&str>,
) -> Result<(), ApiError> {
    if expected.is_none() || expected == found {
        return Ok(());
    }
    let found = found.map_or_else(|| "has no value of its own".to_owned(), |found| format!("is {}", excerpt(found)));
    let expected = excerpt(expected.unwrap_or_default());
    let message = format!("config {name:?} of {resource} {found}, not {expected}");
    Err(ApiError::new(ErrorName::InvalidUpdateVersion, message))
}

fn check_exists(image: &MetadataImage, resource: &ConfigResource) -> Result<(), ApiError> {
    match resource {
        ConfigResource::Topic(name) if !image.topic_names.contains_key(name) => {
            Err(ApiError::new(ErrorName::UnknownTopicOrPartition, format!("topic {name:?} does not exist")))
        }
        ConfigResource::Broker(broker) if broker.get() < 0 => {
            Err(ApiError::new(ErrorName::InvalidRequest, format!("{broker} is not a broker id")))
        }
        ConfigResource::Broker(broker) if image.broker(*broker).is_none() => Err(brokers::not_registered(*broker)),
        ConfigResource::Topic(_) | ConfigResource::Broker(_) | ConfigResource::BrokerDefault => Ok(()),
    }
}

fn known_key(resource: &ConfigResource, name: &str) -> Result<&'static ConfigKey, ApiError> {
    config::key_of(resource, name).ok_or_else(|| {
        let hint = config::nearest(name, names_for(resource))
            .map_or_else(String::new, |nearest| format!("; did you mean {nearest:?}?"));
        ApiError::new(ErrorName::InvalidConfig, format!("{resource} has no config {name:?}{hint}"))
    })
}

fn names_for(resource: &ConfigResource) -> impl Iterator<Item = &'static str> {
    let is_topic = matches!(resource, ConfigResource::Topic(_));
    let of_topics =
        config::TOPIC_KEYS.iter().filter_map(move |key| if is_topic { Some(key.name) } else { key.broker_name() });
    let of_brokers = config::BROKER_KEYS.iter().filter(move |_| !is_topic).map(|key| key.name);
    of_topics.chain(of_brokers)
}

/// The value that `op` leads to; `None` removes it.
fn new_value(
    image: &MetadataImage,
    resource: &ConfigResource,
    key: &ConfigKey,
    name: &str,
    op: &ConfigOp,
) -> Result<Option<String>, ApiError> {
    let value = match op {
        ConfigOp::Set(value) => Some(value.clone()),
        ConfigOp::Delete => None,
        ConfigOp::Append(_) | ConfigOp::Subtract(_) if !key.is_list() => {
            let message = format!("config {name:?} of {resource} is not a list: it can only be set or deleted");
            return Err(ApiError::new(ErrorName::InvalidConfig, message));
        }
        ConfigOp::Append(items) => Some(appended(current(image, resource, key, name), items)),
        ConfigOp::Subtract(items) => Some(subtracted(current(image, resource, key, name), items)),
    };
    check_min_isr(resource, name, value.as_deref())?;
    if let Some(value) = &value {
        check_value(resource, key, name, value)?;
    }
    Ok(value)
}

/// What a list starts from: the resource's own value, else the one that counts for it.
fn current<'a>(image: &'a MetadataImage, resource: &ConfigResource, key: &'a ConfigKey, name: &str) -> &'a str {
    let effective = match resource {
        ConfigResource::Topic(topic) => config::effective(image, Some(topic), None, name),
        ConfigResource::Broker(broker) => config::effective(image, None, Some(*broker), name),
        ConfigResource::BrokerDefault => config::effective(image, None, None, name),
    };
    effective.map_or(key.default, |(value, _)| value)
}

fn appended(list: &str, more: &str) -> String {
    let mut items: Vec<&str> = config::items(list).collect();
    let mut present: BTreeSet<&str> = items.iter().copied().collect();
    items.extend(config::items(more).filter(|&item| present.insert(item)));
    items.join(",")
}

fn subtracted(list: &str, less: &str) -> String {
    let gone: BTreeSet<&str> = config::items(less).collect();
    config::items(list).filter(|item| !gone.contains(item)).collect::<Vec<_>>().join(",")
}

/// `min.insync.replicas` decides who is in the ELR, so it must be the same whichever broker leads, and a change of it
/// must be a record.
fn check_min_isr(resource: &ConfigResource, name: &str, value: Option<&str>) -> Result<(), ApiError> {
    let why = match (resource, value) {
        _ if name != MIN_INSYNC_REPLICAS => return Ok(()),
        (ConfigResource::Broker(_), Some(_)) => "cannot differ between brokers: set it on topics or on broker/default",
        (ConfigResource::BrokerDefault, None) => "cannot be removed while eligible leader replicas are on: set it",
        (ConfigResource::Topic(_) | ConfigResource::Broker(_) | ConfigResource::BrokerDefault, _) => return Ok(()),
    };
    Err(ApiError::new(ErrorName::InvalidConfig, format!("config {name:?} {why}")))
}

fn check_value(resource: &ConfigResource, key: &ConfigKey, name: &str, value: &str) -> Result<(), ApiError> {
    check_size(resource, key, name, value)?;
    key.check(value).map_err(|why| {
        let message = format!("config {name:?} of {resource} is {} but {why}", excerpt(value));
        ApiError::new(ErrorName::InvalidConfig, message)
    })
}

/// A value is written, sent and read back as a whole, by every node and at every start.
fn check_size(resource: &ConfigResource, key: &ConfigKey, name: &str, value: &str) -> Result<(), ApiError> {
    let refuse = |found: usize, unit: &str, max: usize| {
        let message = format!("config {name:?} of {resource} would have {found} {unit}, expected at most {max}");
        Err(ApiError::new(ErrorName::InvalidConfig, message))
    };
    if value.len() > limits::CONFIG_VALUE_BYTES_MAX {
        return refuse(value.len(), "bytes", limits::CONFIG_VALUE_BYTES_MAX);
    }
    match config::items(value).count() {
        items if key.is_list() && items > limits::CONFIG_LIST_ITEMS_MAX => {
            refuse(items, "items", limits::CONFIG_LIST_ITEMS_MAX)
        }
        _ => Ok(()),
    }
}

/// The beginning of a value for a message, which must not be as long as a request may be.
fn excerpt(value: &str) -> String {
    const CHARS_SHOWN_MAX: usize = 100;
    match value.char_indices().nth(CHARS_SHOWN_MAX) {
        Some((end, _)) => format!("{:?}... ({} bytes)", &value[..end], value.len()),
        None => format!("{value:?}"),
    }
}

/// Checks the configs that a topic is created with.
pub(super) fn check_new_topic(
    name: &str,
    configs: &[(String, Option<String>)],
) -> Result<BTreeMap<String, String>, ApiError> {
    let resource = ConfigResource::Topic(name.to_owned());
    let mut checked = BTreeMap::new();
    for (key_name, value) in configs {
        let key = known_key(&resource, key_name)?;
        let Some(value) = value else {
            let message = format!("config {key_name:?} of {resource} has no value");
            return Err(ApiError::new(ErrorName::InvalidConfig, message));
        };
        check_value(&resource, key, key_name, value)?;
        if checked.insert(key_name.clone(), value.clone()).is_some() {
            let message = format!("config {key_name:?} of {resource} is named twice in the request");
            return Err(ApiError::new(ErrorName::InvalidRequest, message));
        }
    }
    Ok(checked)
}

/// The partitions that are led, and whose ELR was earned under a `min.insync.replicas` that `records` change, at most one more
/// than a step takes. Costs the ELRs of the topics that are named, and for a default the topics that have an ELR.
fn elrs_outdated_by(image: &MetadataImage, records: &[Record]) -> BTreeSet<TopicPartition> {
    let topics = topics_of_min_isr(image, records);
    if topics.is_empty() {
        return BTreeSet::new();
    }
    let after = with_configs(image, records);
    let is_changed = |id: &TopicId| {
        image.topic(*id).is_some_and(|topic| {
            config::min_insync_replicas(image, &topic.name) != config::min_insync_replicas(&after, &topic.name)
        })
    };
    // Without a leader nothing is acknowledged, under whatever `min.insync.replicas`: who is eligible has all there is.
    let is_led = |id: &TopicPartition| image.partition(*id).is_some_and(|partition| partition.leader.is_some());
    let outdated = topics.into_iter().filter(is_changed).flat_map(|topic| image.index.in_elr_of(topic)).filter(is_led);
    let mut found = BTreeSet::new();
    for id in outdated {
        if found.len() > limits::CHANGES_PER_STEP_MAX {
            break;
        }
        found.insert(id);
    }
    found
}

/// The topics that have a `min.insync.replicas` which `records` may change.
fn topics_of_min_isr(image: &MetadataImage, records: &[Record]) -> BTreeSet<TopicId> {
    let mut topics = BTreeSet::new();
    for record in records {
        match record {
            Record::Config { resource, key, .. } if key == MIN_INSYNC_REPLICAS => match resource {
                ConfigResource::Topic(name) => topics.extend(image.topic_named(name).map(|topic| topic.id)),
                ConfigResource::BrokerDefault => topics.extend(image.index.topics_with_elr()),
                // The same whichever broker leads.
                ConfigResource::Broker(_) => {}
            },
            _ => {}
        }
    }
    topics
}

/// The image with these configs, to look values up in.
fn with_configs(image: &MetadataImage, records: &[Record]) -> MetadataImage {
    let mut after = image.clone();
    for record in records {
        let Record::Config { resource, key, value } = record else { continue };
        let configs = after.configs.entry(resource.clone()).or_default();
        match value {
            Some(value) => configs.insert(key.clone(), value.clone()),
            None => configs.remove(key),
        };
    }
    after
}
