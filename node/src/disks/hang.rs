//! A disk that does not answer: seen from another thread than the one that waits for it.

use std::sync::LazyLock;
use std::time::Duration;

use prometheus_client::metrics::counter::Counter;
use quorate_log::Operations;

/// How often a disk is looked at per timeout: it is found to hang within the timeout and a sixth of it.
pub const LOOKS_PER_TIMEOUT: u32 = 6;

static HANGS: LazyLock<Counter> = LazyLock::new(Counter::default);

/// How often a log directory, or the disk of the raft log, has not answered in time.
pub fn hangs() -> Counter {
    HANGS.clone()
}

/// How long the oldest operation on a disk has been running, in time that the observer itself was running: when the whole
/// process is paused, the disk is not to blame.
pub struct Hang {
    operations: Operations,
    oldest: Option<u64>,
    lasted: Duration,
}

impl Hang {
    pub fn new(operations: Operations) -> Self {
        Self { operations, oldest: None, lasted: Duration::ZERO }
    }

    /// To be called again and again; `since_last_look` is what the observer meant to wait.
    pub fn look(&mut self, since_last_look: Duration) -> Duration {
        let oldest = self.operations.oldest();
        if oldest.is_some() && oldest == self.oldest {
            self.lasted += since_last_look;
        } else {
            self.oldest = oldest;
            self.lasted = Duration::ZERO;
        }
        self.lasted
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_an_operation_that_goes_on_is_a_hang() {
        let (operations, look) = (Operations::default(), Duration::from_millis(500));
        let mut hang = Hang::new(operations.clone());
        assert_eq!(hang.look(look), Duration::ZERO, "an idle disk");
        assert_eq!(hang.look(look), Duration::ZERO, "it may be idle for long");
        let first = operations.begin();
        assert_eq!(hang.look(look), Duration::ZERO, "it may have begun just now");
        assert_eq!(hang.look(look), look);
        let second = operations.begin();
        drop(first);
        assert_eq!(hang.look(look), Duration::ZERO, "another one runs now");
        assert_eq!(hang.look(look), look);
        drop(second);
        assert_eq!(hang.look(look), Duration::ZERO);
    }
}
