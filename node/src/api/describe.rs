//! The image in the words of the wire. Reads only.

use std::sync::Arc;

use quorate_metadata::config;
use quorate_metadata::image::Topic;
use quorate_metadata::plan::topics::TopicRef;
use quorate_metadata::record::{BrokerRegistration, ConfigResource, Partition};
use quorate_metadata::{ApiError, ErrorName, MetadataImage};
use quorate_proto::{admin, endpoint_to_wire};

use super::gateway::Gateway;
use super::pages::Slices;
use crate::raft::{VoterState, VoterStatus};

pub fn unknown_topic(name: &str) -> ApiError {
    ApiError::new(ErrorName::UnknownTopicOrPartition, format!("topic {name:?} does not exist"))
}

pub fn find_topic(image: &MetadataImage, topic: &TopicRef) -> Result<Arc<Topic>, ApiError> {
    match topic {
        TopicRef::Name(name) => image.topic_named(name).cloned().ok_or_else(|| unknown_topic(name)),
        TopicRef::Id(id) => image
            .topic(*id)
            .cloned()
            .ok_or_else(|| ApiError::new(ErrorName::UnknownTopicId, format!("topic id {id} does not exist"))),
    }
}

pub(super) fn is_under_replicated(state: &Partition) -> bool {
    state.isr.len() < state.replicas.len()
}

pub(super) fn is_under_min_isr(state: &Partition, min_isr: usize) -> bool {
    state.isr.len() < min_isr.min(state.replicas.len())
}

pub fn broker(image: &MetadataImage, broker: &BrokerRegistration) -> admin::BrokerDescription {
    admin::BrokerDescription {
        id: broker.broker.get(),
        epoch: broker.epoch.get(),
        state: broker_state(broker).to_owned(),
        endpoints: broker.endpoints.iter().map(endpoint_to_wire).collect(),
        rack: broker.rack.clone(),
        leaders: count(image.index.led_count(broker.broker)),
        replicas: count(image.index.replica_count(broker.broker)),
        in_sync: count(image.index.isr_count(broker.broker)),
        incarnation: broker.incarnation.to_string(),
        directories: broker.directories.iter().map(ToString::to_string).collect(),
        kind: broker.kind.to_string(),
        probed_endpoint: broker.probed_endpoint().map(|endpoint| endpoint.name.clone()),
    }
}

pub fn broker_state(broker: &BrokerRegistration) -> &'static str {
    match (broker.fenced, broker.in_controlled_shutdown) {
        (true, _) => "fenced",
        (false, true) => "controlled-shutdown",
        (false, false) => "unfenced",
    }
}

/// What counts for the resource, and what it has stored without effect.
pub fn configs(image: &MetadataImage, resource: &ConfigResource) -> Result<Vec<admin::ConfigEntry>, ApiError> {
    let (topic, broker, kind) = match resource {
        ConfigResource::Topic(name) => {
            let topic = image.topic_named(name).ok_or_else(|| unknown_topic(name))?;
            (Some(name.as_str()), None, Some(&topic.kind))
        }
        ConfigResource::Broker(id) => {
            let broker = image.broker(*id).ok_or_else(|| {
                ApiError::new(ErrorName::BrokerIdNotRegistered, format!("broker {id} is not registered"))
            })?;
            (None, Some(*id), Some(&broker.kind))
        }
        ConfigResource::BrokerDefault => (None, None, None),
    };
    let known = |(name, key): (&str, &config::ConfigKey)| {
        let broker = broker.filter(|_| key.reader == config::Reader::Log);
        let (value, source) = config::effective(image, topic, broker, name)?;
        Some(entry(name, value, source.as_str(), key.type_name(), key.doc))
    };
    let mut entries: Vec<_> = config::keys_for(resource, kind).into_iter().filter_map(known).collect();
    let own = image.configs.get(resource).into_iter().flatten();
    let source = match resource {
        ConfigResource::Topic(_) => config::ConfigSource::Topic,
        ConfigResource::Broker(_) => config::ConfigSource::Broker,
        ConfigResource::BrokerDefault => config::ConfigSource::BrokerDefault,
    };
    let source = source.as_str();
    entries.extend(own.filter_map(|(name, value)| match config::support(resource, kind, name) {
        config::Support::Known(_) => None,
        config::Support::OfKind => {
            Some(entry(name, value, source, "string", "read by the brokers of the topic's kind"))
        }
        config::Support::Unsupported(why) => {
            Some(entry(name, value, source, "unsupported", &format!("without effect: {why}")))
        }
    }));
    entries.sort_by(|one, other| one.key.cmp(&other.key));
    Ok(entries)
}

fn entry(key: &str, value: &str, source: &str, takes: &str, doc: &str) -> admin::ConfigEntry {
    let [key, value, source, takes, doc] = [key, value, source, takes, doc].map(str::to_owned);
    admin::ConfigEntry { key, value, source, r#type: takes, doc }
}

pub fn quorum(gateway: &Gateway) -> admin::DescribeQuorumReply {
    let status = gateway.raft.status();
    let image = gateway.view.image();
    let leader = status.leader;
    admin::DescribeQuorumReply {
        cluster_id: gateway.raft.cluster().to_string(),
        leader_id: leader.map(|id| id.get()),
        epoch: status.epoch.get(),
        high_watermark: status.committed,
        voters: status.voters.into_iter().map(voter).collect(),
        observers: status.observers.into_iter().map(voter).collect(),
        metadata_offset: image.next_offset.get(),
        digest: format!("{:032x}", image.digest()),
        node_id: gateway.node().get(),
    }
}

fn voter(voter: VoterStatus) -> admin::Voter {
    admin::Voter {
        id: voter.id.get(),
        directory_id: voter.directory.to_string(),
        endpoint: voter.api,
        log_end: voter.log_end,
        lag: voter.lag,
        state: voter_state(voter.state).to_owned(),
        raft_endpoint: voter.raft,
    }
}

fn voter_state(state: VoterState) -> &'static str {
    match state {
        VoterState::Leader => "leader",
        VoterState::Follower => "follower",
        VoterState::Unreachable => "unreachable",
        VoterState::Unknown => "unknown",
    }
}

/// Whether the cluster is healthy, and every reason why not.
pub async fn status(gateway: &Gateway) -> admin::ClusterStatusReply {
    let quorum = gateway.raft.status();
    let image = gateway.view.image();
    let unreachable: Vec<String> = quorum
        .voters
        .iter()
        .filter(|voter| voter.state == VoterState::Unreachable)
        .map(|voter| voter.id.to_string())
        .collect();
    let fenced: Vec<String> =
        image.brokers.values().filter(|broker| broker.fenced).map(|broker| broker.broker.to_string()).collect();
    let mut reply = admin::ClusterStatusReply {
        cluster_id: gateway.raft.cluster().to_string(),
        controller_id: quorum.leader.map(|id| id.get()),
        controller_epoch: quorum.epoch.get(),
        offset: image.next_offset.get(),
        voters: count(quorum.voters.len()),
        voters_unreachable: count(unreachable.len()),
        brokers: count(image.brokers.len()),
        brokers_fenced: count(fenced.len()),
        topics: count(image.topics.len()),
        leaderless: count(image.index.leaderless_count()),
        not_preferred: count(image.index.misplaced_count()),
        ..admin::ClusterStatusReply::default()
    };
    let mut slices = Slices::default();
    for topic in image.topics.values() {
        let min_isr = config::min_insync_replicas(&image, &topic.name);
        reply.partitions += count(topic.partitions.len());
        for state in &topic.partitions {
            slices.step().await;
            reply.under_replicated += i32::from(is_under_replicated(state));
            reply.under_min_isr += i32::from(is_under_min_isr(state, min_isr));
        }
    }
    reply.reasons = reasons(&reply, &unreachable, &fenced);
    reply.reasons.extend(gateway.controller.sessions.disk_reports.list(|broker| image.broker(broker).is_some()));
    reply.healthy = reply.reasons.is_empty();
    reply.slow = slow(gateway, &quorum.voters, &image);
    reply
}

/// A broker or voter that lacks more is named.
const RECORDS_BEHIND_MAX: i64 = 10_000;

/// What took long at the active controller, and who is behind.
fn slow(gateway: &Gateway, voters: &[VoterStatus], image: &MetadataImage) -> Vec<String> {
    let mut slow = gateway.controller.slow();
    let behind = voters.iter().filter(|voter| voter.lag.is_some_and(|lag| lag > RECORDS_BEHIND_MAX));
    slow.extend(
        behind.map(|voter| format!("voter {} lacks {} entries of the log", voter.id, voter.lag.unwrap_or_default())),
    );
    for (broker, offset) in gateway.controller.sessions.offsets(image) {
        let lacks = image.next_offset.get() - offset.get();
        if lacks > RECORDS_BEHIND_MAX {
            slow.push(format!("broker {broker} lacks {lacks} records of the metadata"));
        }
    }
    slow
}

fn reasons(status: &admin::ClusterStatusReply, unreachable: &[String], fenced: &[String]) -> Vec<String> {
    let some = |number: i32, what: &str| (number > 0).then(|| format!("{number} {what}"));
    [
        status.controller_id.is_none().then(|| "no active controller".to_owned()),
        (!unreachable.is_empty()).then(|| format!("voters unreachable: {}", unreachable.join(", "))),
        (!fenced.is_empty()).then(|| format!("brokers fenced: {}", fenced.join(", "))),
        some(status.leaderless, "partitions without a leader"),
        some(status.under_min_isr, "partitions under min.insync.replicas"),
        some(status.under_replicated, "partitions under-replicated"),
    ]
    .into_iter()
    .flatten()
    .collect()
}

/// A number of things in memory; more than i32 holds do not fit there.
pub(super) fn count(things: usize) -> i32 {
    i32::try_from(things).unwrap_or(i32::MAX)
}
