//! The log of a partition's replica, and the directories that hold such logs.
//!
//! Goals, in order: what was committed is there after a crash, and nothing that was to go; damage is found before it is
//! told to anyone; appends to many partitions share one fsync; a reader disturbs no writer.
//!
//! A directory is one table (RocksDB, or in simulations its twin in memory): `batches` has the records, keyed by partition and *last* offset, so that a seek to an
//! offset finds its batch; `meta` has each log's start and high watermark, epochs, closed segments, how far it is compacted,
//! and the producers' state where a segment begins. A log is opened from there and the batches of its active segment.
//!
//! A log has one owner. A change advances its state in memory and stages the rows in [`Writes`]; one commit takes the
//! changes of any number of logs. The staged changes of a log are committed in the order in which they were staged. If a
//! commit fails, the directory is lost, so that there is no roll-back.
//!
//! ```
//! # use quorate_log::{Flush, LogDirectory, LogOffset, NewBatch, Record};
//! # use quorate_metadata::ids::{LeaderEpoch, PartitionId, TopicId, TopicPartition};
//! # let path = tempfile::tempdir()?;
//! let directory = LogDirectory::open(path.path(), Flush::Always)?;
//! let orders = TopicPartition::new(TopicId::from_bytes([1; 16]), PartitionId::new(0));
//! let now_ms = 1_700_000_000_000;
//! let mut log = directory.log(orders, now_ms)?;
//!
//! let mut writes = directory.begin();
//! log.begin_epoch(&mut writes, LeaderEpoch::new(0));
//! let record = |value: &'static str| {
//!     Record { offset_delta: 0, timestamp_ms: 7, key: None, value: Some(value.into()), headers: Vec::new() }
//! };
//! let batch = NewBatch::of(vec![record("a"), record("b")], None)?;
//! let appended = log.append_as_leader(&mut writes, &batch, LeaderEpoch::new(0), now_ms)?;
//! directory.commit(writes)?;
//!
//! assert_eq!(appended.next_offset, LogOffset(2));
//! let read = log.reader().read(LogOffset(1), log.log_end(), 1 << 20)?;
//! assert_eq!(read[0].decode_records()?[1].value, Some("b".into()));
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

mod batch;
mod compaction;
mod directory;
pub mod durable;
mod epochs;
mod error;
pub mod frame_v1;
mod keys;
pub mod leadership;
mod memory;
mod operations;
mod owner;
mod partition_log;
mod producers;
mod reader;
mod reclaim;
mod records;
mod rocks;
mod rows;
mod segments;
mod table;

pub use batch::{CorruptBatch, HEADER_BYTES, LogOffset, NewBatch, Producer, StoredBatch};
pub use compaction::{Compaction, CompactionBounds, CompactionEnd, CompactionPolicy, CompactionStep, Rewritten};
pub use directory::{FORMAT, Flush, LogDirectory, Writes};
pub use epochs::Epochs;
pub use error::{AppendRefused, LogError, is_no_space};
pub use memory::MemoryLogs;
pub use operations::{Operation, Operations};
pub use owner::Owner;
pub use partition_log::{Appended, PartitionLog, SEGMENT_BYTES};
pub use producers::Producers;
pub use reader::LogReader;
pub use records::{Header, Record};
pub use rocks::is_locked;
pub use segments::{Retention, Segment, Segments};
