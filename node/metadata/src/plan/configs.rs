//! Changes of dynamic configs: a resource changes as a whole or not at all.

use std::collections::{BTreeMap, BTreeSet};

use crate::config::{
    self, ConfigKey, MAX_COMPACTION_LAG_MS, MIN_COMPACTION_LAG_MS, MIN_INSYNC_REPLICAS, Reader, Scope, Support,
};
use crate::error::{ApiError, ErrorName};
use crate::ids::{TopicId, TopicPartition};
use crate::image::MetadataImage;
use crate::limits;
use crate::plan::partition_change::change_step;
use crate::plan::{Plan, brokers, topics};
use crate::record::{Cause, ConfigResource, Kind, Record};

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
    let kind = kind_of(image, resource);
    let mut seen = BTreeSet::new();
    let mut records = Vec::new();
    for ConfigChange { key: name, op, expected } in &request.changes {
        if !seen.insert(name) {
            let message = format!("config {name:?} of {resource} is named twice in the request");
            return Err(ApiError::new(ErrorName::InvalidRequest, message));
        }
        let before = config::own_value(image, resource, name);
        let value = match known_key(resource, kind, name) {
            Ok(key) => new_value(image, resource, key, name, op)?,
            // Of an earlier release, which had the key.
            Err(_) if *op == ConfigOp::Delete && before.is_some() => None,
            Err(refused) => return Err(refused),
        };
        check_expected(resource, name, expected.as_deref(), before)?;
        // A topic's config that stays as it is needs no record. A broker's is written again: brokers take that as
        // the order to reload what it names, such as a certificate.
        let is_reload = value.is_some() && !matches!(resource, ConfigResource::Topic(_));
        if is_reload || value.as_deref() != before {
            records.push(Record::Config { resource: resource.clone(), key: name.clone(), value });
        }
    }
    check_count_of_kind(image, resource, kind, &records)?;
    check_altered_lags(image, resource, &records)?;
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

/// The kind that decides which keys there are; none for the default of all brokers.
fn kind_of<'a>(image: &'a MetadataImage, resource: &ConfigResource) -> Option<&'a Kind> {
    match resource {
        ConfigResource::Topic(name) => image.topic_named(name).map(|topic| &topic.kind),
        ConfigResource::Broker(broker) => image.broker(*broker).map(|broker| &broker.kind),
        ConfigResource::BrokerDefault => None,
    }
}

/// The key of the table; `None`: one that the kind brings.
fn known_key(
    resource: &ConfigResource,
    kind: Option<&Kind>,
    name: &str,
) -> Result<Option<&'static ConfigKey>, ApiError> {
    match config::support(resource, kind, name) {
        Support::Known(key) => Ok(Some(key)),
        Support::OfKind => Ok(None),
        Support::Unsupported(why) => Err(ApiError::new(ErrorName::InvalidConfig, why)),
    }
}

/// The value that `op` leads to; `None` removes it.
fn new_value(
    image: &MetadataImage,
    resource: &ConfigResource,
    key: Option<&'static ConfigKey>,
    name: &str,
    op: &ConfigOp,
) -> Result<Option<String>, ApiError> {
    let list = key.filter(|key| key.is_list());
    let value = match (op, list) {
        (ConfigOp::Set(value), _) => Some(value.clone()),
        (ConfigOp::Delete, _) => None,
        (ConfigOp::Append(_) | ConfigOp::Subtract(_), None) => {
            let message = format!("config {name:?} of {resource} is not a list: it can only be set or deleted");
            return Err(ApiError::new(ErrorName::InvalidConfig, message));
        }
        (ConfigOp::Append(items), Some(key)) => Some(appended(current(image, resource, key, name), items)),
        (ConfigOp::Subtract(items), Some(key)) => Some(subtracted(current(image, resource, key, name), items)),
    };
    check_reach(resource, key, name, value.as_deref())?;
    if let Some(value) = &value {
        check_value(resource, key, name, value)?;
        if let ConfigResource::Topic(topic) = resource
            && name == MIN_INSYNC_REPLICAS
            && let Some(topic) = image.topic_named(topic)
        {
            check_min_isr_fits(&topic.name, value, topics::replication_factor(topic))?;
        }
    }
    Ok(value)
}

/// What a list starts from: the resource's own value, else the one that counts for it.
fn current<'a>(image: &'a MetadataImage, resource: &ConfigResource, key: &'a ConfigKey, name: &str) -> &'a str {
    effective_of(image, resource, name).unwrap_or(key.default)
}

fn effective_of<'a>(image: &'a MetadataImage, resource: &ConfigResource, name: &str) -> Option<&'a str> {
    let (topic, broker) = match resource {
        ConfigResource::Topic(topic) => (Some(topic.as_str()), None),
        ConfigResource::Broker(broker) => (None, Some(*broker)),
        ConfigResource::BrokerDefault => (None, None),
    };
    config::effective(image, topic, broker, name).map(|(value, _)| value)
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

/// The controllers read one value for the whole cluster. `min.insync.replicas` decides who is in the ELR, so a change of it
/// must be a record as well.
fn check_reach(
    resource: &ConfigResource,
    key: Option<&ConfigKey>,
    name: &str,
    value: Option<&str>,
) -> Result<(), ApiError> {
    let Some(key) = key.filter(|key| key.reader == Reader::Controllers) else { return Ok(()) };
    let why = match (resource, value, key.scope) {
        (ConfigResource::Broker(_), Some(_), Scope::TopicAndBroker(_)) => {
            "cannot differ between brokers: set it on topics or on broker/default"
        }
        (ConfigResource::Broker(_), Some(_), Scope::Broker) => {
            "cannot differ between brokers: set it on broker/default"
        }
        (ConfigResource::BrokerDefault, None, _) if name == MIN_INSYNC_REPLICAS => {
            "cannot be removed while eligible leader replicas are on: set it"
        }
        (ConfigResource::Topic(_) | ConfigResource::Broker(_) | ConfigResource::BrokerDefault, ..) => return Ok(()),
    };
    Err(ApiError::new(ErrorName::InvalidConfig, format!("config {name:?} {why}")))
}

/// More in-sync replicas than there are replicas can never be: what is then acknowledged would not be what was asked for.
pub(super) fn check_min_isr_fits(topic: &str, value: &str, replicas: usize) -> Result<(), ApiError> {
    if value.parse().is_ok_and(|wanted: usize| wanted <= replicas) {
        return Ok(());
    }
    let message = format!(
        "config {MIN_INSYNC_REPLICAS:?} of topic/{topic} is {} but the topic has {replicas} replicas: expected at most that \
         many",
        excerpt(value)
    );
    Err(ApiError::new(ErrorName::InvalidConfig, message))
}

/// Every node holds them all, and the hosts of the topic's partitions get them at once.
fn check_count_of_kind(
    image: &MetadataImage,
    resource: &ConfigResource,
    kind: Option<&Kind>,
    changes: &[Record],
) -> Result<(), ApiError> {
    let is_of_kind = |key: &&String| matches!(config::support(resource, kind, key), Support::OfKind);
    let mut keys: BTreeSet<&String> = BTreeSet::new();
    for change in changes {
        if let Record::Config { key, value: Some(_), .. } = change {
            keys.insert(key);
        }
    }
    if keys.iter().any(is_of_kind) {
        keys.extend(image.configs.get(resource).into_iter().flat_map(|own| own.keys()));
    }
    for change in changes {
        if let Record::Config { key, value: None, .. } = change {
            keys.remove(key);
        }
    }
    check_count(resource, keys.iter().filter(|key| is_of_kind(key)).count())
}

/// As `check_lags`, where the change names one of the bounds.
fn check_altered_lags(image: &MetadataImage, resource: &ConfigResource, changes: &[Record]) -> Result<(), ApiError> {
    let names = lag_names(resource);
    let is_bound = |change: &Record| matches!(change, Record::Config { key, .. } if names.contains(&key.as_str()));
    if !changes.iter().any(is_bound) {
        return Ok(());
    }
    let after = with_configs(image, changes);
    check_lags(resource, |name| effective_of(&after, resource, name))
}

/// What has to be compacted must be allowed to be: `max.compaction.lag.ms` below `min.compaction.lag.ms` would mean nothing.
fn check_lags<'a>(resource: &ConfigResource, value_of: impl Fn(&str) -> Option<&'a str>) -> Result<(), ApiError> {
    let names = lag_names(resource);
    let number = |name: &str| value_of(name).and_then(|value| value.parse::<i64>().ok());
    match names.map(number) {
        [Some(min), Some(max)] if max < min => {
            let [min_name, max_name] = names;
            let message =
                format!("config {max_name:?} of {resource} is {max} but must be at least {min_name:?}, which is {min}");
            Err(ApiError::new(ErrorName::InvalidConfig, message))
        }
        _ => Ok(()),
    }
}

/// The least and the most, as the resource names them.
fn lag_names(resource: &ConfigResource) -> [&'static str; 2] {
    let keys = [MIN_COMPACTION_LAG_MS, MAX_COMPACTION_LAG_MS];
    match resource {
        ConfigResource::Topic(_) => keys,
        ConfigResource::Broker(_) | ConfigResource::BrokerDefault => {
            keys.map(|name| config::topic_key(name).map_or(name, ConfigKey::broker_name))
        }
    }
}

fn check_count(resource: &ConfigResource, count: usize) -> Result<(), ApiError> {
    let max = limits::CONFIGS_OF_KIND_MAX;
    if count <= max {
        return Ok(());
    }
    let message = format!("{resource} would have {count} configs of its kind, expected at most {max}");
    Err(ApiError::new(ErrorName::InvalidConfig, message))
}

fn check_value(resource: &ConfigResource, key: Option<&ConfigKey>, name: &str, value: &str) -> Result<(), ApiError> {
    check_size(resource, key, name, value)?;
    key.map_or(Ok(()), |key| key.check(value)).map_err(|why| {
        let message = format!("config {name:?} of {resource} is {} but {why}", excerpt(value));
        ApiError::new(ErrorName::InvalidConfig, message)
    })
}

/// A value is written, sent and read back as a whole, by every node and at every start.
fn check_size(resource: &ConfigResource, key: Option<&ConfigKey>, name: &str, value: &str) -> Result<(), ApiError> {
    let refuse = |found: usize, unit: &str, max: usize| {
        let message = format!("config {name:?} of {resource} would have {found} {unit}, expected at most {max}");
        Err(ApiError::new(ErrorName::InvalidConfig, message))
    };
    if value.len() > limits::CONFIG_VALUE_BYTES_MAX {
        return refuse(value.len(), "bytes", limits::CONFIG_VALUE_BYTES_MAX);
    }
    match config::items(value).count() {
        items if key.is_some_and(ConfigKey::is_list) && items > limits::CONFIG_LIST_ITEMS_MAX => {
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
    image: &MetadataImage,
    name: &str,
    kind: &Kind,
    configs: &[(String, Option<String>)],
) -> Result<BTreeMap<String, String>, ApiError> {
    let resource = ConfigResource::Topic(name.to_owned());
    let (mut checked, mut of_kind) = (BTreeMap::new(), 0);
    for (key_name, value) in configs {
        let key = known_key(&resource, Some(kind), key_name)?;
        of_kind += usize::from(key.is_none());
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
    check_count(&resource, of_kind)?;
    if lag_names(&resource).iter().any(|name| checked.contains_key(*name)) {
        let inherited = |key: &str| config::effective(image, None, None, config::topic_key(key)?.broker_name());
        check_lags(&resource, |key| checked.get(key).map(String::as_str).or_else(|| Some(inherited(key)?.0)))?;
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
