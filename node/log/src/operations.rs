//! What a disk is being asked for now, so that another thread can tell a disk that does not answer from one that is idle.
//!
//! No clock: operations are numbered, and an observer that finds the same number again and again adds up its own time.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// The operations on one disk. Cheap to clone; all clones are the same.
#[derive(Clone, Default)]
pub struct Operations {
    shared: Arc<Mutex<Running>>,
}

#[derive(Default)]
struct Running {
    begun: u64,
    numbers: BTreeSet<u64>,
}

/// An operation that runs until this value is dropped.
pub struct Operation {
    operations: Operations,
    number: u64,
}

impl Operations {
    #[must_use]
    pub fn begin(&self) -> Operation {
        let mut running = self.running();
        running.begun += 1;
        let number = running.begun;
        running.numbers.insert(number);
        Operation { operations: self.clone(), number }
    }

    /// The number of the oldest operation that runs.
    pub fn oldest(&self) -> Option<u64> {
        self.running().numbers.first().copied()
    }

    fn running(&self) -> MutexGuard<'_, Running> {
        self.shared.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Operation {
    fn drop(&mut self) {
        self.operations.running().numbers.remove(&self.number);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_oldest_operation_is_the_first_that_has_not_ended() {
        let operations = Operations::default();
        assert_eq!(operations.oldest(), None);
        let (first, second) = (operations.begin(), operations.begin());
        assert_eq!(operations.oldest(), Some(1));
        drop(first);
        assert_eq!(operations.oldest(), Some(2));
        let third = operations.begin();
        drop(second);
        assert_eq!(operations.oldest(), Some(3), "a number is never used again");
        drop(third);
        assert_eq!(operations.oldest(), None);
    }
}
