//! How a command ends when it is not done: what stands on stderr, and the exit status.

use std::process::ExitCode;

use quorate_client::{ClientError, InvalidAddress};
use quorate_metadata::ErrorName;
use quorate_proto::admin;
use serde::Serialize;

use crate::output::{Format, json};

pub type Outcome<T = ()> = Result<T, Failure>;

#[derive(Debug, thiserror::Error)]
pub enum Failure {
    #[error("{0}")]
    Client(#[from] ClientError),
    /// The command line asks for something that makes no sense.
    #[error("{0}")]
    Usage(String),
    /// Something on this machine.
    #[error("{0}")]
    Local(String),
    /// Everything has been said already: only the exit status is left.
    #[error("not as it should be")]
    Told,
    /// Whoever read our output has seen enough.
    #[error("stdout was closed")]
    OutputClosed,
}

/// The JSON shape of an error.
#[derive(Debug, Serialize)]
struct Wrapped {
    error: Described,
}

#[derive(Debug, Serialize)]
struct Described {
    name: &'static str,
    message: String,
    retryable: bool,
    definite: bool,
}

impl Failure {
    pub fn usage(message: impl Into<String>) -> Self {
        Self::Usage(message.into())
    }

    pub fn local(what: impl std::fmt::Display, error: impl std::fmt::Display) -> Self {
        Self::Local(format!("{what}: {error}"))
    }

    /// The error of one item of a reply, where it has one.
    pub fn check(item: Option<&admin::Error>) -> Outcome {
        Ok(quorate_client::check_item(item)?)
    }

    pub fn exit_status(&self) -> u8 {
        match self {
            Self::OutputClosed => 0,
            Self::Client(ClientError::Failed(_)) | Self::Local(_) | Self::Told => 1,
            Self::Usage(_) => 2,
            Self::Client(ClientError::Unknown(_)) => 3,
        }
    }

    pub fn report(&self, format: Format) -> ExitCode {
        if !matches!(self, Self::Told | Self::OutputClosed) {
            eprintln!("{}", if format == Format::Json { self.json() } else { self.lines() });
        }
        ExitCode::from(self.exit_status())
    }

    fn name(&self) -> &'static str {
        match self {
            Self::Client(error) => error.name().as_str(),
            Self::Usage(_) => "USAGE",
            Self::Local(_) | Self::Told | Self::OutputClosed => "LOCAL",
        }
    }

    fn message(&self) -> String {
        match self {
            Self::Client(error) => error.error().message.clone(),
            other => other.to_string(),
        }
    }

    fn lines(&self) -> String {
        let line = format!("error: {}: {}", self.name(), self.message());
        match self.hint() {
            Some(hint) => format!("{line}\nhint: {hint}"),
            None => line,
        }
    }

    fn json(&self) -> String {
        let (retryable, definite) = match self {
            Self::Client(error) => (error.error().is_retryable(), error.is_definite()),
            _ => (false, true),
        };
        let error = Described { name: self.name(), message: self.message(), retryable, definite };
        json(&Wrapped { error })
    }

    fn hint(&self) -> Option<&'static str> {
        match self {
            Self::Client(ClientError::Unknown(_)) => {
                Some("it may have been done: look before you repeat it, for a new call is a new request")
            }
            Self::Client(ClientError::Failed(error)) => advice(error.name),
            Self::Usage(_) => Some("quorate --help, or --help behind any command"),
            Self::Local(_) | Self::Told | Self::OutputClosed => None,
        }
    }
}

impl From<InvalidAddress> for Failure {
    fn from(error: InvalidAddress) -> Self {
        Self::Usage(error.to_string())
    }
}

/// What to do about an error, where one thing is likely to help.
fn advice(name: ErrorName) -> Option<&'static str> {
    use ErrorName as N;
    Some(match name {
        N::ControllerUnavailable | N::NotController => {
            "quorate quorum status shows which controllers can be reached; a majority of the voters must be up"
        }
        N::RequestTimedOut => "give it more time with --timeout, or a record with --delivery-timeout",
        N::Throttled | N::ThrottlingQuotaExceeded => {
            "the cluster has too much to do: send less, or wait longer with --timeout"
        }
        N::TopicAlreadyExists => "--if-not-exists makes this succeed; quorate topic describe shows what is there",
        N::UnknownTopicOrPartition | N::UnknownTopicId => "quorate topic list shows what exists",
        N::InvalidTopic => "a name has 1 to 249 of a-z A-Z 0-9 . _ - and differs from others in more than . and _",
        N::InvalidPartitions => "partitions can be added, never removed; a topic has at least one",
        N::InvalidReplicationFactor => "quorate broker list shows how many brokers are unfenced",
        N::InvalidReplicaAssignment => {
            "every replica is a registered broker, once per partition, equally many everywhere"
        }
        N::NoReassignmentInProgress => "quorate partition reassign list shows those under way",
        N::InvalidConfig => "quorate config get lists the keys, their types and what they mean",
        N::TopicDeletionDisabled => "delete.topic.enable is false on the cluster",
        N::BrokerIdNotRegistered => "quorate broker list shows which brokers are registered",
        N::EligibleLeadersNotAvailable => "quorate partition explain says which replicas it waits for",
        N::PreferredLeaderNotAvailable => {
            "the preferred replica is not in sync, or not up: quorate partition explain says which"
        }
        N::MessageTooLarge | N::RecordListTooLarge => "send it in smaller pieces",
        N::OffsetOutOfRange => {
            "the log does not have this offset: --from beginning or --from end names one that it has"
        }
        N::ResyncRequired => "records so old are no longer kept: watch without --from, or with --snapshot",
        N::UnsupportedVersion => "quorate and the nodes are of different versions",
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn exists() -> Failure {
        Failure::Client(ClientError::failed(ErrorName::TopicAlreadyExists, "topic \"orders\" already exists"))
    }

    #[test]
    fn an_error_for_programs_has_name_message_and_meaning() {
        assert_eq!(
            exists().json(),
            r#"{"error":{"name":"TOPIC_ALREADY_EXISTS","message":"topic \"orders\" already exists","retryable":false,"definite":true}}"#
        );
    }

    #[test]
    fn an_error_for_people_comes_with_advice() {
        assert_eq!(
            exists().lines(),
            "error: TOPIC_ALREADY_EXISTS: topic \"orders\" already exists\nhint: --if-not-exists makes this succeed; quorate topic describe shows what is there"
        );
    }

    #[test]
    fn the_exit_status_tells_refused_from_wrong_from_unknown() {
        let unknown = ClientError::Unknown(quorate_metadata::ApiError::new(ErrorName::OutcomeUnknown, "timed out"));
        assert_eq!(exists().exit_status(), 1);
        assert_eq!(Failure::usage("no").exit_status(), 2);
        assert_eq!(Failure::Client(unknown).exit_status(), 3);
    }
}
