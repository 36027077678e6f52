//! Why a log directory is offline, and whether that may pass.

use quorate_log::LogError;
use quorate_metadata::ids::DirectoryId;
use quorate_metadata::{ApiError, ErrorName};

/// Why nothing of a directory is served.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Outage {
    pub cause: OutageCause,
    /// For people.
    pub reason: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OutageCause {
    /// For as long as the process runs: what is on the disk may not be what was written.
    Broken,
    /// Until there is room.
    Full,
    /// Until the disk answers.
    Hangs,
}

impl Outage {
    pub fn of(error: &LogError) -> Self {
        let cause = if error.is_no_space() { OutageCause::Full } else { OutageCause::Broken };
        Self { cause, reason: error.to_string() }
    }

    pub fn is_hang(&self) -> bool {
        self.cause == OutageCause::Hangs
    }

    /// Whether the directory can be opened again when the cause is over.
    pub fn may_pass(&self) -> bool {
        match self.cause {
            OutageCause::Full | OutageCause::Hangs => true,
            OutageCause::Broken => false,
        }
    }

    /// What a request hears that has changed nothing.
    pub fn error(&self, directory: DirectoryId) -> ApiError {
        let message = format!("log directory {directory} is offline: {}", self.reason);
        ApiError::new(ErrorName::KafkaStorageError, message)
    }
}
