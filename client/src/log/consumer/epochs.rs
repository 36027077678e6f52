//! The leader epochs of the records that were read: by them a log is known again after it was truncated (KIP-320).

use std::collections::VecDeque;

use quorate_proto::log::EpochEnd;

/// Elections that a reader remembers; a log that leaves it further back is found to have left at the end that its
/// leader names.
const EPOCHS_MAX: usize = 64;

#[derive(Debug, Default)]
pub struct ReadEpochs {
    /// (epoch, offset of its first record that was read), ascending in both.
    starts: VecDeque<(i32, i64)>,
}

impl ReadEpochs {
    /// Of the last record read; `None` before there is one.
    pub fn last(&self) -> Option<i32> {
        self.starts.back().map(|(epoch, _)| *epoch)
    }

    /// Records of this epoch were read, from this offset on.
    pub fn read(&mut self, epoch: i32, offset: i64) {
        if self.last() == Some(epoch) {
            return;
        }
        if self.starts.len() == EPOCHS_MAX {
            self.starts.pop_front();
        }
        self.starts.push_back((epoch, offset));
    }

    /// Where a reader at `position` goes on in a log whose largest common epoch ends at `common`; what was read beyond
    /// is forgotten. The epochs before may differ as well, which the next fetch finds out.
    pub fn truncate(&mut self, position: i64, common: &EpochEnd) -> i64 {
        let other = self.starts.iter().find(|(epoch, _)| *epoch > common.leader_epoch);
        let end = other.map_or(position, |(_, start)| *start).min(common.end_offset);
        self.starts.retain(|(_, start)| *start < end);
        end
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(epochs: &[(i32, i64)]) -> ReadEpochs {
        let mut read = ReadEpochs::default();
        epochs.iter().for_each(|(epoch, offset)| read.read(*epoch, *offset));
        read
    }

    fn common(leader_epoch: i32, end_offset: i64) -> EpochEnd {
        EpochEnd { leader_epoch, end_offset }
    }

    #[test]
    fn an_epoch_that_ends_earlier_truncates_to_its_end() {
        let mut epochs = read(&[(3, 0)]);
        assert_eq!(epochs.truncate(15, &common(3, 10)), 10);
        assert_eq!(epochs.last(), Some(3));
    }

    #[test]
    fn records_of_an_epoch_that_the_log_lacks_are_left_even_where_the_log_is_longer() {
        let mut epochs = read(&[(3, 0), (4, 8)]);
        assert_eq!(epochs.truncate(15, &common(3, 20)), 8);
        assert_eq!(epochs.last(), Some(3));
    }

    #[test]
    fn a_log_that_left_before_anything_read_is_followed_to_the_end_it_names() {
        let mut epochs = read(&[(5, 12)]);
        assert_eq!(epochs.truncate(15, &common(2, 7)), 7);
        assert_eq!(epochs.last(), None);
    }

    #[test]
    fn the_oldest_of_too_many_epochs_is_forgotten() {
        let many: Vec<(i32, i64)> = (0..100).map(|epoch| (epoch, epoch.into())).collect();
        assert_eq!(read(&many).starts.len(), EPOCHS_MAX);
        assert_eq!(read(&many).last(), Some(99));
    }
}
