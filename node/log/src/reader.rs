//! Reading beside the owner: a reader sees what is committed, and disturbs nobody.

use quorate_metadata::ids::DirectoryId;

use crate::batch::{CorruptBatch, LogOffset, StoredBatch};
use crate::error::LogError;
use crate::rows::Rows;

/// A handle that any thread may have.
#[derive(Clone)]
pub struct LogReader {
    rows: Rows,
}

impl LogReader {
    pub(crate) fn new(rows: Rows) -> Self {
        Self { rows }
    }

    /// Where the log is.
    pub fn directory(&self) -> DirectoryId {
        self.rows.directory().id()
    }

    /// Batches may be missing below this offset in what was read so far.
    pub fn gaps_below(&self) -> LogOffset {
        self.rows.gaps_below()
    }

    /// Its records cannot be read.
    pub fn corrupt(&self, batch: &StoredBatch, error: CorruptBatch) -> LogError {
        self.rows.corrupt(batch.base_offset(), error.0.to_owned())
    }

    /// The batches from the one that has `from`, wholly below `below`. One is returned even if larger than `max_bytes`.
    pub fn read(&self, from: LogOffset, below: LogOffset, max_bytes: usize) -> Result<Vec<StoredBatch>, LogError> {
        let mut batches = Vec::new();
        let mut left = max_bytes;
        for batch in self.rows.batches(from) {
            let batch = batch?;
            let bytes = batch.frame().len();
            if batch.next_offset() > below || (bytes > left && !batches.is_empty()) {
                break;
            }
            left = left.saturating_sub(bytes);
            batches.push(batch);
        }
        Ok(batches)
    }
}
