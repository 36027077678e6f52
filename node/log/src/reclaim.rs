//! The space of deleted records. A range that is deleted takes its space until RocksDB compacts the files that have it, which
//! on a table without further writes may never happen. Here it is made to, range by range, a while after the deletion.

use std::collections::BTreeMap;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

/// How long after a deletion its range is compacted: the partitions of a topic, deleted one after the other, are one by then.
pub const SETTLE: Duration = Duration::from_secs(5);

/// Ranges that wait, of about 100 bytes each. Others are left to the compactions that writes bring with them.
const RANGES_MAX: usize = 16_384;

/// Gives the space of one range back: from, until. Errors are its own.
pub type Compact = Box<dyn Fn(&[u8], &[u8]) + Send>;

/// One thread, which compacts one range at a time. Dropped, it ends after the one that is under way.
pub struct Reclaimer {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

#[derive(Default)]
struct Shared {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    ranges: Ranges,
    is_closed: bool,
}

/// Disjoint: from, until.
#[derive(Debug, Default, PartialEq, Eq)]
struct Ranges(BTreeMap<Vec<u8>, Vec<u8>>);

impl Reclaimer {
    pub fn start(settle: Duration, compact: Compact) -> std::io::Result<Self> {
        let shared = Arc::<Shared>::default();
        let (of_thread, thread) = (shared.clone(), std::thread::Builder::new().name("log-reclaim".into()));
        let thread = thread.spawn(move || of_thread.run(settle, &compact))?;
        Ok(Self { shared, thread: Some(thread) })
    }

    pub fn deleted(&self, from: &[u8], until: &[u8]) {
        self.shared.state().ranges.add(from.to_vec(), until.to_vec());
        self.shared.changed.notify_all();
    }

    /// No compaction is begun any more.
    pub fn close(&self) {
        self.shared.state().is_closed = true;
        self.shared.changed.notify_all();
    }
}

impl Drop for Reclaimer {
    fn drop(&mut self) {
        self.close();
        if let Some(thread) = self.thread.take() {
            // It has nothing to say; a panic has been printed.
            let _ = thread.join();
        }
    }
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn run(&self, settle: Duration, compact: &Compact) {
        while let Some(ranges) = self.next(settle) {
            for (from, until) in ranges.0 {
                if self.state().is_closed {
                    return;
                }
                compact(&from, &until);
            }
        }
    }

    /// What was deleted up to `settle` after the first of it; `None` when it is closed.
    fn next(&self, settle: Duration) -> Option<Ranges> {
        let nothing = |state: &mut State| !state.is_closed && state.ranges.0.is_empty();
        let state = self.changed.wait_while(self.state(), nothing).unwrap_or_else(PoisonError::into_inner);
        let settling = self.changed.wait_timeout_while(state, settle, |state| !state.is_closed);
        let (mut state, _) = settling.unwrap_or_else(PoisonError::into_inner);
        (!state.is_closed).then(|| std::mem::take(&mut state.ranges))
    }
}

impl Ranges {
    fn add(&mut self, from: Vec<u8>, until: Vec<u8>) {
        if from >= until {
            return;
        }
        let (mut from, mut until) = (from, until);
        // Those that overlap it or touch it begin at its end or before it: the last of them first.
        while let Some((other_from, other_until)) = self.0.range(..=until.clone()).next_back()
            && *other_until >= from
        {
            let (other_from, other_until) = (other_from.clone(), other_until.clone());
            self.0.remove(&other_from);
            from = from.min(other_from);
            until = until.max(other_until);
        }
        if self.0.len() < RANGES_MAX {
            self.0.insert(from, until);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use quorate_metadata::ids::{PartitionId, TopicId, TopicPartition};

    use super::*;
    use crate::keys;

    fn ranges(all: &[(u8, u8)]) -> Ranges {
        let mut ranges = Ranges::default();
        all.iter().for_each(|(from, until)| ranges.add(vec![*from], vec![*until]));
        ranges
    }

    fn expect(all: &[(u8, u8)]) -> Ranges {
        Ranges(all.iter().map(|(from, until)| (vec![*from], vec![*until])).collect())
    }

    #[test]
    fn ranges_that_overlap_or_touch_are_one() {
        assert_eq!(ranges(&[(1, 2), (2, 3)]), expect(&[(1, 3)]));
        assert_eq!(ranges(&[(5, 9), (1, 6)]), expect(&[(1, 9)]));
        assert_eq!(ranges(&[(1, 2), (4, 5), (7, 8), (2, 7)]), expect(&[(1, 8)]));
        assert_eq!(ranges(&[(1, 9), (3, 4)]), expect(&[(1, 9)]));
        assert_eq!(ranges(&[(1, 2), (4, 5)]), expect(&[(1, 2), (4, 5)]));
        assert_eq!(ranges(&[(3, 3), (4, 2)]), expect(&[]));
    }

    #[test]
    fn ranges_that_wait_are_bounded() {
        let mut ranges = Ranges::default();
        for number in 0..=RANGES_MAX as u64 {
            let key = |number: u64| number.to_be_bytes().to_vec();
            ranges.add(key(2 * number), key(2 * number + 1));
        }
        assert_eq!(ranges.0.len(), RANGES_MAX);
    }

    #[test]
    fn the_partitions_of_a_topic_are_one_range() {
        let mut ranges = Ranges::default();
        let id = |number| TopicPartition::new(TopicId::from_bytes([7; 16]), PartitionId::new(number));
        [2, 0, 1].map(id).into_iter().for_each(|id| ranges.add(keys::prefix(id), keys::end(id)));
        assert_eq!(ranges.0.len(), 1);
    }

    #[test]
    fn a_range_is_compacted_after_its_deletion() {
        let (sender, compacted) = mpsc::channel();
        let compact = move |from: &[u8], until: &[u8]| sender.send((from.to_vec(), until.to_vec())).unwrap();
        let reclaimer = Reclaimer::start(Duration::ZERO, Box::new(compact)).unwrap();
        reclaimer.deleted(b"a", b"b");
        assert_eq!(compacted.recv().unwrap(), (b"a".to_vec(), b"b".to_vec()));
    }

    #[test]
    fn nothing_is_compacted_after_the_end() {
        let (sender, compacted) = mpsc::channel::<()>();
        let reclaimer = Reclaimer::start(Duration::MAX, Box::new(move |_, _| sender.send(()).unwrap())).unwrap();
        reclaimer.deleted(b"x", b"y");
        drop(reclaimer);
        assert!(compacted.recv().is_err());
    }
}
