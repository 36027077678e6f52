//! The log of a partition's replica, and the directories that hold such logs.

pub mod leadership;

/// A position in the log of a partition: one per record.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct LogOffset(i64);

impl LogOffset {
    pub const fn new(offset: i64) -> Self {
        Self(offset)
    }

    pub const fn get(self) -> i64 {
        self.0
    }
}
