//! The log of a replica: what was written, and under which leader epoch.

use quorate_metadata::ids::LeaderEpoch;

/// The number of the record: the first that is written is 0.
pub type Value = u8;

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Entry {
    pub epoch: LeaderEpoch,
    pub value: Value,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, Default)]
pub struct Log(Vec<Entry>);

impl Log {
    pub fn end(&self) -> usize {
        self.0.len()
    }

    pub fn entries(&self) -> &[Entry] {
        &self.0
    }

    pub fn starts_with(&self, entries: &[Entry]) -> bool {
        self.0.starts_with(entries)
    }

    /// Up to where the two are the same.
    pub fn common(&self, other: &Self) -> usize {
        self.0.iter().zip(&other.0).take_while(|(own, others)| own == others).count()
    }

    pub fn extend(&mut self, entries: &[Entry]) {
        self.0.extend_from_slice(entries);
    }

    pub fn truncate(&mut self, end: usize) {
        self.0.truncate(end);
    }

    /// Everything that `leader` has beyond the end of this one.
    pub fn append_from(&mut self, leader: &Self) {
        self.0.extend_from_slice(leader.0.get(self.end()..).unwrap_or_default());
    }

    /// To where `follower` has to go back, by leader epochs, before it can go on from its end; None: nowhere (KIP-279).
    pub fn cut(&self, follower: &Self) -> Option<usize> {
        let last = follower.0.last()?.epoch;
        let Some((epoch, end)) = self.end_of_epoch(last) else { return Some(0) };
        if epoch == last && end >= follower.end() {
            return None;
        }
        Some(follower.end_of_epoch(epoch).map_or(0, |(_, own_end)| own_end.min(end)))
    }

    /// The largest epoch that is not above `epoch`, and where it ends.
    fn end_of_epoch(&self, epoch: LeaderEpoch) -> Option<(LeaderEpoch, usize)> {
        let end = self.0.partition_point(|entry| entry.epoch <= epoch);
        self.0[..end].last().map(|entry| (entry.epoch, end))
    }
}
