//! Refusals, named as Kafka names them. An `ApiError` is a value for the user: nothing was changed.

use std::fmt;

macro_rules! errors {
    ($($(#[$doc:meta])* $variant:ident = $name:literal, $number:literal, $retry:ident, $outcome:ident;)*) => {
        /// The name of a refusal or failure.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
        pub enum ErrorName { $($(#[$doc])* $variant,)* }

        impl ErrorName {
            pub const ALL: &'static [Self] = &[$(Self::$variant,)*];

            /// Kafka's name; the reason in `google.rpc.ErrorInfo`.
            pub const fn as_str(self) -> &'static str {
                match self { $(Self::$variant => $name,)* }
            }

            /// Kafka's number; those only we know are below -100.
            pub const fn number(self) -> i16 {
                match self { $(Self::$variant => $number,)* }
            }

            /// Whether the same request may succeed later.
            pub const fn is_retryable(self) -> bool {
                match self { $(Self::$variant => errors!(@retry $retry),)* }
            }

            /// Whether the request has certainly changed nothing.
            pub const fn is_definite(self) -> bool {
                match self { $(Self::$variant => errors!(@outcome $outcome),)* }
            }
        }
    };
    (@retry retry) => { true };
    (@retry never) => { false };
    (@outcome definite) => { true };
    (@outcome unknown) => { false };
}

errors! {
    UnknownServerError = "UNKNOWN_SERVER_ERROR", -1, never, unknown;
    OffsetOutOfRange = "OFFSET_OUT_OF_RANGE", 1, never, definite;
    CorruptMessage = "CORRUPT_MESSAGE", 2, retry, definite;
    UnknownTopicOrPartition = "UNKNOWN_TOPIC_OR_PARTITION", 3, retry, definite;
    NotLeaderOrFollower = "NOT_LEADER_OR_FOLLOWER", 6, retry, definite;
    RequestTimedOut = "REQUEST_TIMED_OUT", 7, retry, unknown;
    ReplicaNotAvailable = "REPLICA_NOT_AVAILABLE", 9, retry, definite;
    MessageTooLarge = "MESSAGE_TOO_LARGE", 10, never, definite;
    InvalidTopic = "INVALID_TOPIC_EXCEPTION", 17, never, definite;
    RecordListTooLarge = "RECORD_LIST_TOO_LARGE", 18, never, definite;
    NotEnoughReplicas = "NOT_ENOUGH_REPLICAS", 19, retry, definite;
    /// The leader has the records, but the in-sync replicas became too few to promise that they stay.
    NotEnoughReplicasAfterAppend = "NOT_ENOUGH_REPLICAS_AFTER_APPEND", 20, retry, unknown;
    InvalidRequiredAcks = "INVALID_REQUIRED_ACKS", 21, never, definite;
    TopicAlreadyExists = "TOPIC_ALREADY_EXISTS", 36, never, definite;
    InvalidPartitions = "INVALID_PARTITIONS", 37, never, definite;
    InvalidReplicationFactor = "INVALID_REPLICATION_FACTOR", 38, never, definite;
    InvalidReplicaAssignment = "INVALID_REPLICA_ASSIGNMENT", 39, never, definite;
    InvalidTimestamp = "INVALID_TIMESTAMP", 32, never, definite;
    InvalidConfig = "INVALID_CONFIG", 40, never, definite;
    NotController = "NOT_CONTROLLER", 41, retry, definite;
    InvalidRequest = "INVALID_REQUEST", 42, never, definite;
    PolicyViolation = "POLICY_VIOLATION", 44, never, definite;
    /// A sequence number is missing in between.
    OutOfOrderSequenceNumber = "OUT_OF_ORDER_SEQUENCE_NUMBER", 45, never, definite;
    /// It was appended long ago, and its offset is no longer remembered.
    DuplicateSequenceNumber = "DUPLICATE_SEQUENCE_NUMBER", 46, never, definite;
    InvalidProducerEpoch = "INVALID_PRODUCER_EPOCH", 47, never, definite;
    /// The disk of the replica failed.
    KafkaStorageError = "KAFKA_STORAGE_ERROR", 56, retry, definite;
    LogDirNotFound = "LOG_DIR_NOT_FOUND", 57, never, definite;
    UnknownProducerId = "UNKNOWN_PRODUCER_ID", 59, never, definite;
    TopicDeletionDisabled = "TOPIC_DELETION_DISABLED", 73, never, definite;
    FencedLeaderEpoch = "FENCED_LEADER_EPOCH", 74, never, definite;
    UnknownLeaderEpoch = "UNKNOWN_LEADER_EPOCH", 75, retry, definite;
    StaleBrokerEpoch = "STALE_BROKER_EPOCH", 77, never, definite;
    PreferredLeaderNotAvailable = "PREFERRED_LEADER_NOT_AVAILABLE", 80, retry, definite;
    EligibleLeadersNotAvailable = "ELIGIBLE_LEADERS_NOT_AVAILABLE", 83, retry, definite;
    ElectionNotNeeded = "ELECTION_NOT_NEEDED", 84, never, definite;
    NoReassignmentInProgress = "NO_REASSIGNMENT_IN_PROGRESS", 85, never, definite;
    InvalidRecord = "INVALID_RECORD", 87, never, definite;
    ThrottlingQuotaExceeded = "THROTTLING_QUOTA_EXCEEDED", 89, retry, definite;
    InvalidUpdateVersion = "INVALID_UPDATE_VERSION", 95, never, definite;
    UnknownTopicId = "UNKNOWN_TOPIC_ID", 100, retry, definite;
    DuplicateBrokerRegistration = "DUPLICATE_BROKER_REGISTRATION", 101, retry, definite;
    BrokerIdNotRegistered = "BROKER_ID_NOT_REGISTERED", 102, never, definite;
    InconsistentClusterId = "INCONSISTENT_CLUSTER_ID", 104, never, definite;
    IneligibleReplica = "INELIGIBLE_REPLICA", 107, never, definite;
    /// The change was applied, and it moved the leadership away from the sender.
    NewLeaderElected = "NEW_LEADER_ELECTED", 108, never, unknown;
    InvalidRegistration = "INVALID_REGISTRATION", 119, never, definite;
    InvalidVoterKey = "INVALID_VOTER_KEY", 125, never, definite;
    UnsupportedVersion = "UNSUPPORTED_VERSION", 35, never, definite;
    /// The node has too much to do; the reply says after how long to try again.
    Throttled = "THROTTLED", -101, retry, definite;
    /// No controller is active just now, or none can reach a majority.
    ControllerUnavailable = "CONTROLLER_UNAVAILABLE", -102, retry, definite;
    /// The request's outcome has left the window of remembered requests.
    RequestExpired = "REQUEST_EXPIRED", -103, never, unknown;
    /// The proposal was overtaken by a change of controller; it may or may not have been applied.
    OutcomeUnknown = "OUTCOME_UNKNOWN", -104, retry, unknown;
    /// The watcher was too slow, or asked for records that are no longer kept.
    ResyncRequired = "RESYNC_REQUIRED", -105, retry, definite;
}

impl fmt::Display for ErrorName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl std::str::FromStr for ErrorName {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        Self::ALL.iter().copied().find(|name| name.as_str() == text).ok_or(())
    }
}

/// A refusal: its name, and one line for a person, lower case and without a full stop.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{name}: {message}")]
pub struct ApiError {
    pub name: ErrorName,
    pub message: String,
}

impl ApiError {
    pub fn new(name: ErrorName, message: impl Into<String>) -> Self {
        Self { name, message: message.into() }
    }

    pub fn is_retryable(&self) -> bool {
        self.name.is_retryable()
    }

    pub fn is_definite(&self) -> bool {
        self.name.is_definite()
    }
}
