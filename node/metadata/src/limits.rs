//! Every bound of the domain, with its reason.

/// Changes remembered per partition: enough to see one failover and the return from it.
pub const PARTITION_CHANGES_KEPT: usize = 4;

/// Encoded bytes of records per batch. One append stays well under every message limit on its way.
pub const BATCH_BYTES_MAX: usize = 1024 * 1024;

/// Elections per run of a periodic task (Kafka's figure); the rest follow at once in the next run.
pub const ELECTIONS_PER_RUN_MAX: usize = 1_000;

/// Kafka's bound on a topic name: it becomes a directory name together with a partition number.
pub const TOPIC_NAME_LENGTH_MAX: usize = 249;

/// Remembered requests per client. A client that has more than this many unanswered mutations cannot retry them all.
pub const REQUESTS_PER_CLIENT_MAX: usize = 64;

/// Clients whose requests are remembered; beyond it the one that has been silent longest is forgotten.
pub const CLIENTS_REMEMBERED_MAX: usize = 4_096;

/// Partitions that one request may create: about 300 bytes of planned records each, so that the largest request
/// stays well under a gigabyte. A hundred times what Kafka allows, and far above any topic in use.
pub const PARTITIONS_PER_REQUEST_MAX: usize = 1_000_000;
