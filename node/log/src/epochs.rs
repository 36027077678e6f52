//! Which leader wrote what (KIP-101, KIP-279): the epochs of a log and where each begins. Pure.

use bytes::{Buf, TryGetError};
use quorate_metadata::ids::LeaderEpoch;

use crate::batch::LogOffset;

/// Ascending in both. An epoch without a record is kept only at the end of the log: its leader has begun.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Epochs {
    starts: Vec<(LeaderEpoch, LogOffset)>,
}

impl Epochs {
    pub fn starts(&self) -> &[(LeaderEpoch, LogOffset)] {
        &self.starts
    }

    pub fn last(&self) -> Option<LeaderEpoch> {
        self.starts.last().map(|&(epoch, _)| epoch)
    }

    /// The epoch begins at `start`, the end of the log. Says whether that is new.
    pub fn begin(&mut self, epoch: LeaderEpoch, start: LogOffset) -> bool {
        if self.last().is_some_and(|last| epoch <= last) {
            return false;
        }
        self.starts.retain(|&(_, other)| other < start);
        self.starts.push((epoch, start));
        true
    }

    /// The largest epoch up to `asked`, and where it ends in a log that ends at `log_end`.
    pub fn end_of(&self, asked: LeaderEpoch, log_end: LogOffset) -> Option<(LeaderEpoch, LogOffset)> {
        let later = self.starts.partition_point(|&(epoch, _)| epoch <= asked);
        let (epoch, _) = *self.starts[..later].last()?;
        Some((epoch, self.starts.get(later).map_or(log_end, |&(_, start)| start)))
    }

    /// The log now ends at `end`: an epoch that began there or later has nothing left to say.
    pub fn truncate_to(&mut self, end: LogOffset) {
        self.starts.retain(|&(_, start)| start < end);
    }

    /// The log now begins at `start`: the epoch that has it begins there.
    pub fn start_at(&mut self, start: LogOffset) {
        let gone = self.starts.partition_point(|&(_, other)| other <= start).saturating_sub(1);
        self.starts.drain(..gone);
        if let Some((_, first)) = self.starts.first_mut() {
            *first = (*first).max(start);
        }
    }

    pub fn encode(&self) -> Vec<u8> {
        let encode = |&(epoch, start): &(LeaderEpoch, LogOffset)| {
            [&epoch.get().to_be_bytes()[..], &start.0.to_be_bytes()[..]].concat()
        };
        self.starts.iter().flat_map(encode).collect()
    }

    pub fn decode(mut body: &[u8]) -> Result<Self, TryGetError> {
        let mut starts = Vec::new();
        while body.has_remaining() {
            starts.push((LeaderEpoch::new(body.try_get_i32()?), LogOffset(body.try_get_i64()?)));
        }
        Ok(Self { starts })
    }
}
