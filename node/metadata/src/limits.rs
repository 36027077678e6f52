//! Every bound of the domain, with its reason.

/// Changes remembered per partition: enough to see one failover and the return from it.
pub const PARTITION_CHANGES_KEPT: usize = 4;

/// Encoded bytes of records per batch. One append stays well under every message limit on its way.
pub const BATCH_BYTES_MAX: usize = 1024 * 1024;

/// A config value, as Kafka bounds it: its record fits into every batch beside others, and every node holds it.
pub const CONFIG_VALUE_BYTES_MAX: usize = 32 * 1024;

/// Items of a list config. A change of a list walks all of them on the event loop.
pub const CONFIG_LIST_ITEMS_MAX: usize = 4_096;

/// Configs of one topic that its kind brings, of `CONFIG_VALUE_BYTES_MAX` each at most.
pub const CONFIGS_OF_KIND_MAX: usize = 64;

/// One record, but for a remembered reply: a batch of a single record is within `BATCH_BYTES_MAX` too.
pub const RECORD_BYTES_MAX: usize = BATCH_BYTES_MAX;

/// The reply of a mutation that is remembered for a retry. It is in one batch with its records.
pub const REMEMBERED_REPLY_BYTES_MAX: usize = 2 * BATCH_BYTES_MAX;

/// One entry of the log: a full batch, the reply remembered with it, and what the encoding adds. What is larger is refused
/// before the log, as is a request that would need it.
pub const ENTRY_BYTES_MAX: usize = 2 * BATCH_BYTES_MAX + REMEMBERED_REPLY_BYTES_MAX;

/// A batch of records of a producer: a broker takes requests of 16 MiB, and this leaves room for what is around it.
pub const RECORD_BATCH_BYTES_MAX: i32 = 12 * 1024 * 1024;

/// Elections per run of a periodic task (Kafka's figure); the rest follow in the runs after it.
pub const ELECTIONS_PER_RUN_MAX: usize = 1_000;

/// Partitions that one run of a periodic task looks at, whether or not it elects: a few milliseconds of the event loop.
pub const SCANNED_PER_RUN_MAX: usize = 5_000;

/// Partition changes that one step of a plan makes: a few milliseconds of the event loop to plan, replay and encode, which
/// the first leaders of a fenced broker and all other mutations wait for. What a broker's end, start or shutdown changes
/// beyond it follows in further steps.
pub const CHANGES_PER_STEP_MAX: usize = 500;

/// Log directories of one broker. Each registration is compared with the directories of all brokers, and the place of each
/// new replica is chosen among those of its broker.
pub const DIRECTORIES_PER_BROKER_MAX: usize = 256;

/// Topics that one request deletes: far fewer than are remembered as removed, so that no broker that runs misses one.
pub const TOPICS_DELETED_PER_REQUEST_MAX: usize = 10_000;

/// Removed topics that are remembered, in about 100 bytes each. A broker that was away while more were removed keeps what it
/// has of the others until an operator decides.
pub const REMOVED_TOPICS_KEPT: usize = 50_000;

/// Kafka's bound on a topic name: it becomes a directory name together with a partition number.
pub const TOPIC_NAME_LENGTH_MAX: usize = 249;

/// Remembered requests per client. A client that has more than this many unanswered mutations cannot retry them all.
pub const REQUESTS_PER_CLIENT_MAX: usize = 64;

/// Clients whose requests are remembered; beyond it the one that has been silent longest is forgotten.
pub const CLIENTS_REMEMBERED_MAX: usize = 4_096;

/// Bytes of all remembered replies: a full window of replies of 128 bytes, or sixteen of the largest. The active controller
/// holds each reply twice (draft and image), so this is an eighth of the smallest memory that a node is run with (512 MiB).
pub const REMEMBERED_BYTES_MAX: usize = 32 * 1024 * 1024;

/// The level of `metadata.version` from which on `REMEMBERED_BYTES_MAX` holds. A node of an older release keeps what this
/// bound drops, and its digest would differ.
pub const REMEMBERED_BYTES_BOUNDED_FROM_LEVEL: i16 = 2;

/// Partitions that one request may create: about 300 bytes of planned records each, so that the largest request
/// stays well under a gigabyte. A hundred times what Kafka allows, and far above any topic in use.
pub const PARTITIONS_PER_REQUEST_MAX: usize = 1_000_000;
