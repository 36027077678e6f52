//! What requests share: their options, ids and references, decoded and checked.

use std::time::Duration;

use quorate_metadata::ids::{BrokerId, PartitionId, TopicId};
use quorate_metadata::plan::topics::TopicRef;
use quorate_metadata::record::ConfigResource;
use quorate_metadata::{ApiError, ErrorName, Record};
use quorate_proto::{admin, record};
use tokio::time::Instant;

use super::gateway::Passage;
use crate::controller::{MutationTerms, Origin, Position, RequestId, Weight};

const DEFAULT_TIMEOUT: Duration = Duration::from_secs(10);

/// Nobody waits longer: a client that needs more asks again.
const MAX_TIMEOUT: Duration = Duration::from_secs(120);

pub fn invalid(message: impl Into<String>) -> ApiError {
    ApiError::new(ErrorName::InvalidRequest, message)
}

pub fn timeout(timeout_ms: u32) -> Duration {
    if timeout_ms == 0 { DEFAULT_TIMEOUT } else { Duration::from_millis(timeout_ms.into()).min(MAX_TIMEOUT) }
}

pub fn terms(options: Option<&admin::MutationOptions>) -> Result<MutationTerms, ApiError> {
    let Some(options) = options else {
        let (timeout, weight) = (DEFAULT_TIMEOUT, Weight::default());
        return Ok(MutationTerms {
            origin: Origin::Client,
            request: None,
            plan_only: false,
            atomic: true,
            timeout,
            weight,
        });
    };
    let request = match (options.client_id.as_str(), options.request_id) {
        ("", 0) => None,
        ("", _) | (_, 0) => return Err(invalid("client_id and request_id go together, and request_id starts at 1")),
        (client, request) => {
            let client = client.parse().map_err(|error| invalid(format!("client_id: {error}")))?;
            Some(RequestId { client, request })
        }
    };
    let (timeout, weight) = (timeout(options.timeout_ms), Weight::default());
    Ok(MutationTerms { origin: Origin::Client, request, plan_only: options.plan_only, atomic: true, timeout, weight })
}

pub fn passage(forwarded: bool, terms: &MutationTerms) -> Passage {
    Passage {
        forwarded,
        deadline: Instant::now() + terms.timeout,
        repeatable: terms.request.is_some() || terms.plan_only,
    }
}

pub fn result(position: &Position, planned: &[Record]) -> Option<admin::MutationResult> {
    Some(admin::MutationResult {
        controller_epoch: position.controller_epoch.get(),
        offset: position.offset.get(),
        planned: planned.iter().map(record::to_wire).collect(),
    })
}

pub fn topic_ref(topic: &admin::TopicRef) -> Result<TopicRef, ApiError> {
    let id = topic.id.as_deref().map(topic_id).transpose()?;
    TopicRef::from_parts(topic.name.clone(), id)
}

pub fn topic_id(text: &str) -> Result<TopicId, ApiError> {
    text.parse().map_err(|error| invalid(format!("topic id: {error}")))
}

pub fn assignment(assignment: &[admin::Assignment]) -> Vec<(PartitionId, Vec<BrokerId>)> {
    assignment
        .iter()
        .map(|item| (PartitionId::new(item.partition), item.replicas.iter().copied().map(BrokerId::new).collect()))
        .collect()
}

pub fn config_resource(resource: Option<&admin::ConfigResource>) -> Result<ConfigResource, ApiError> {
    use admin::config_resource::Resource;
    match resource.and_then(|resource| resource.resource.as_ref()) {
        Some(Resource::Topic(name)) => Ok(ConfigResource::Topic(name.clone())),
        Some(Resource::Broker(id)) if *id >= 0 => Ok(ConfigResource::Broker(BrokerId::new(*id))),
        Some(Resource::Broker(id)) => Err(invalid(format!("broker id {id} is negative"))),
        Some(Resource::BrokerDefault(true)) => Ok(ConfigResource::BrokerDefault),
        Some(Resource::BrokerDefault(false)) | None => Err(invalid("a config resource is missing")),
    }
}

/// One item's error, where it has one.
pub fn item_error<T>(item: &Result<T, ApiError>) -> Option<admin::Error> {
    item.as_ref().err().map(quorate_proto::error::to_item)
}
