//! Refusals as gRPC statuses: a canonical code, and `google.rpc.ErrorInfo` whose reason is Kafka's error name.

use std::collections::HashMap;
use std::time::Duration;

use quorate_metadata::{ApiError, ErrorName};
use tonic::{Code, Status};
use tonic_types::{ErrorDetails, StatusExt};

use crate::admin;

/// The domain of our reasons in `google.rpc.ErrorInfo`.
pub const DOMAIN: &str = "quorate";

/// In the metadata of NOT_CONTROLLER: where the active controller's API listens.
pub const CONTROLLER_ENDPOINT: &str = "controller_endpoint";

/// What goes with an error beside its name and message.
#[derive(Debug, Clone, Default)]
pub struct Context {
    /// Facts that help the caller on, such as the active controller's endpoint.
    pub metadata: HashMap<String, String>,
    /// When to try again.
    pub retry_after: Option<Duration>,
}

pub fn to_status(error: &ApiError, context: Context) -> Status {
    let mut metadata = context.metadata;
    metadata.insert("retryable".to_owned(), error.is_retryable().to_string());
    metadata.insert("definite".to_owned(), error.is_definite().to_string());
    let mut details = ErrorDetails::with_error_info(error.name.as_str(), DOMAIN, metadata);
    if let Some(delay) = context.retry_after {
        details.set_retry_info(Some(delay));
    }
    Status::with_error_details(code(error.name), error.message.clone(), details)
}

/// The refusal in a status; what carries no name of ours is named by its code.
pub fn from_status(status: &Status) -> ApiError {
    let named = status
        .get_details_error_info()
        .filter(|info| info.domain == DOMAIN)
        .and_then(|info| info.reason.parse::<ErrorName>().ok());
    ApiError::new(named.unwrap_or_else(|| name_of(status.code())), status.message())
}

/// Whether the status was given by a node of ours, rather than by a library or proxy on the way.
pub fn is_ours(status: &Status) -> bool {
    status.get_details_error_info().is_some_and(|info| info.domain == DOMAIN)
}

pub fn retry_after(status: &Status) -> Option<Duration> {
    status.get_details_retry_info().and_then(|info| info.retry_delay)
}

/// A fact from the error's metadata.
pub fn fact(status: &Status, key: &str) -> Option<String> {
    status.get_details_error_info().and_then(|info| info.metadata.get(key).cloned())
}

/// An error of one item of a batch.
pub fn to_item(error: &ApiError) -> admin::Error {
    admin::Error {
        name: error.name.as_str().to_owned(),
        message: error.message.clone(),
        retryable: error.is_retryable(),
        definite: error.is_definite(),
    }
}

pub fn from_item(error: &admin::Error) -> ApiError {
    ApiError::new(error.name.parse().unwrap_or(ErrorName::UnknownServerError), error.message.clone())
}

fn code(name: ErrorName) -> Code {
    use ErrorName as N;
    match name {
        N::UnknownServerError => Code::Internal,
        N::UnknownTopicOrPartition | N::UnknownTopicId | N::BrokerIdNotRegistered => Code::NotFound,
        N::TopicAlreadyExists | N::DuplicateBrokerRegistration => Code::AlreadyExists,
        N::RequestTimedOut => Code::DeadlineExceeded,
        N::NotController
        | N::NotLeaderOrFollower
        | N::ControllerUnavailable
        | N::ReplicaNotAvailable
        | N::NotEnoughReplicas
        | N::KafkaStorageError => Code::Unavailable,
        N::Throttled | N::ThrottlingQuotaExceeded => Code::ResourceExhausted,
        N::OutcomeUnknown | N::NotEnoughReplicasAfterAppend => Code::Unknown,
        N::RecordListTooLarge | N::MessageTooLarge | N::ResyncRequired | N::OffsetOutOfRange => Code::OutOfRange,
        N::CorruptMessage => Code::DataLoss,
        N::InvalidTopic
        | N::InvalidPartitions
        | N::InvalidReplicationFactor
        | N::InvalidReplicaAssignment
        | N::InvalidConfig
        | N::InvalidRequest
        | N::InvalidRequiredAcks
        | N::InvalidRecord
        | N::InvalidTimestamp
        | N::InvalidRegistration => Code::InvalidArgument,
        N::UnsupportedVersion
        | N::PolicyViolation
        | N::TopicDeletionDisabled
        | N::FencedLeaderEpoch
        | N::UnknownLeaderEpoch
        | N::StaleBrokerEpoch
        | N::PreferredLeaderNotAvailable
        | N::EligibleLeadersNotAvailable
        | N::ElectionNotNeeded
        | N::NoReassignmentInProgress
        | N::InvalidUpdateVersion
        | N::InconsistentClusterId
        | N::IneligibleReplica
        | N::NewLeaderElected
        | N::InvalidVoterKey
        | N::OutOfOrderSequenceNumber
        | N::DuplicateSequenceNumber
        | N::InvalidProducerEpoch
        | N::UnknownProducerId
        | N::LogDirNotFound
        | N::RequestExpired => Code::FailedPrecondition,
    }
}

/// For statuses that a library raised: whether something was done is unknown unless the code proves otherwise.
fn name_of(code: Code) -> ErrorName {
    match code {
        Code::InvalidArgument | Code::Unimplemented => ErrorName::InvalidRequest,
        Code::OutOfRange | Code::ResourceExhausted => ErrorName::MessageTooLarge,
        Code::DeadlineExceeded | Code::Cancelled => ErrorName::RequestTimedOut,
        Code::Unavailable => ErrorName::OutcomeUnknown,
        _ => ErrorName::UnknownServerError,
    }
}
