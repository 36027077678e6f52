//! The end of a log in memory: what followers in step are sent without a read.

use std::collections::VecDeque;

use bytes::Bytes;
use quorate_log::{LogOffset, StoredBatch};

/// Per partition, and only of what is not committed yet: a follower further behind is sent what is on the disk.
const BYTES_MAX: u64 = 1 << 20;

#[derive(Default)]
pub struct Tail {
    batches: VecDeque<StoredBatch>,
    bytes: u64,
}

impl Tail {
    pub fn push(&mut self, batch: StoredBatch) {
        self.bytes += batch.size_bytes();
        self.batches.push_back(batch);
        while self.bytes > BYTES_MAX {
            self.pop();
        }
    }

    /// What begins at `from`, if it is all here. One batch is returned even if larger than `max_bytes`.
    pub fn from(&self, from: LogOffset, max_bytes: usize) -> Option<Vec<Bytes>> {
        let first = self.batches.partition_point(|batch| batch.base_offset() < from);
        let begins_there = self.batches.get(first).is_some_and(|batch| batch.base_offset() == from);
        if !begins_there {
            return None;
        }
        let mut left = max_bytes;
        let mut frames = Vec::new();
        for batch in self.batches.range(first..) {
            let bytes = batch.frame().len();
            if bytes > left && !frames.is_empty() {
                break;
            }
            left = left.saturating_sub(bytes);
            frames.push(batch.frame().clone());
        }
        Some(frames)
    }

    /// What every in-sync follower has is not wanted any more.
    pub fn drop_below(&mut self, offset: LogOffset) {
        while self.batches.front().is_some_and(|batch| batch.next_offset() <= offset) {
            self.pop();
        }
    }

    pub fn clear(&mut self) {
        *self = Self::default();
    }

    fn pop(&mut self) {
        if let Some(batch) = self.batches.pop_front() {
            self.bytes -= batch.size_bytes();
        }
    }
}
