//! The newest entries, in memory. Replication and replay read each entry right after it was appended: without the tail
//! each would be decoded from the disk three times.

use std::collections::VecDeque;
use std::ops::Range;

use super::super::types::Entry;
use super::entry_bytes;

/// Enough for a follower that lags by a second under full load; beyond it the disk serves.
const TAIL_BYTES_MAX: usize = 32 << 20;

#[derive(Default)]
pub struct Tail {
    /// Consecutive; each with the sequence number of the write that appended it.
    entries: VecDeque<(u64, Entry)>,
    bytes: usize,
}

impl Tail {
    pub fn append(&mut self, sequence: u64, entry: Entry) {
        self.bytes += entry_bytes(&entry);
        self.entries.push_back((sequence, entry));
    }

    /// Forgets the oldest entries while the tail is too large, but never one that the disk does not have yet.
    pub fn evict(&mut self, flushed: u64) {
        while self.bytes > TAIL_BYTES_MAX && self.entries.front().is_some_and(|(sequence, _)| *sequence <= flushed) {
            self.drop_front();
        }
    }

    pub fn truncate(&mut self, from: u64) {
        while self.entries.back().is_some_and(|(_, entry)| entry.log_id.index >= from) {
            let (_, entry) = self.entries.pop_back().expect("just seen");
            self.bytes -= entry_bytes(&entry);
        }
    }

    pub fn purge(&mut self, upto: u64) {
        while self.entries.front().is_some_and(|(_, entry)| entry.log_id.index <= upto) {
            self.drop_front();
        }
    }

    fn drop_front(&mut self) {
        if let Some((_, entry)) = self.entries.pop_front() {
            self.bytes -= entry_bytes(&entry);
        }
    }

    /// The last index before the tail, where the tail holds at least half of what it may.
    pub fn before(&self) -> Option<u64> {
        self.first().filter(|_| self.bytes >= TAIL_BYTES_MAX / 2)?.checked_sub(1)
    }

    /// The first index it holds.
    pub fn first(&self) -> Option<u64> {
        self.entries.front().map(|(_, entry)| entry.log_id.index)
    }

    /// Entries of `range`, at least one if there is one, ending where `max_bytes` is passed.
    pub fn read(&self, range: Range<u64>, max_bytes: usize) -> Vec<Entry> {
        let Some(first) = self.first() else {
            return Vec::new();
        };
        let skip = usize::try_from(range.start.saturating_sub(first)).expect("the tail fits in memory");
        let mut bytes = 0;
        let within = |(_, entry): &&(u64, Entry)| {
            let fits = bytes < max_bytes;
            bytes += entry_bytes(entry);
            fits && entry.log_id.index < range.end
        };
        self.entries.iter().skip(skip).take_while(within).map(|(_, entry)| entry.clone()).collect()
    }
}

#[cfg(test)]
mod tests {
    use openraft::EntryPayload;

    use super::super::super::types::Payload;
    use super::super::super::wire;
    use super::*;

    #[test]
    fn what_is_before_a_tail_ends_where_it_begins_and_counts_once_it_is_half_full() {
        let mut tail = Tail::default();
        let append = |tail: &mut Tail, index| {
            let payload = EntryPayload::Normal(Payload(vec![0; TAIL_BYTES_MAX / 16].into()));
            tail.append(index, Entry { log_id: wire::log_id(1, index), payload });
        };
        (10..17).for_each(|index| append(&mut tail, index));
        assert_eq!(tail.before(), None);
        append(&mut tail, 17);
        assert_eq!(tail.before(), Some(9));
        tail.purge(10);
        append(&mut tail, 18);
        assert_eq!(tail.before(), Some(10));
    }
}
