//! Whether the event loop turns, and what it does while it does not.
//!
//! The event loop counts its turns and names what it plans; the watchdog reads both from another thread.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard};

use tokio::sync::watch;
use tokio::time::Instant;

use super::slow::{Activity, SlowActivities};

/// Shared by the event loop, the watchdog and the callers of mutations.
pub struct Pulse {
    turns: AtomicU64,
    numbers: AtomicU64,
    planning: Mutex<Option<Planning>>,
    /// The operation that was last given up.
    held: watch::Sender<Option<u64>>,
    /// Set by simulations.
    on_hold: AtomicBool,
    /// What took long lately.
    pub slow: SlowActivities,
}

/// What the event loop plans now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Planning {
    pub name: &'static str,
    pub number: u64,
    since: Instant,
}

impl Pulse {
    pub fn new() -> Self {
        Self {
            turns: AtomicU64::new(0),
            numbers: AtomicU64::new(0),
            planning: Mutex::new(None),
            held: watch::Sender::new(None),
            on_hold: AtomicBool::new(false),
            slow: SlowActivities::default(),
        }
    }

    /// A number for an operation, above that of the controller's own.
    pub fn next_number(&self) -> u64 {
        self.numbers.fetch_add(1, Ordering::Relaxed) + 1
    }

    pub fn turn(&self) {
        self.turns.fetch_add(1, Ordering::Relaxed);
    }

    pub fn turns(&self) -> u64 {
        self.turns.load(Ordering::Relaxed)
    }

    /// The event loop waits for ever from its next turn on, as if a plan did not return.
    pub fn hold(&self) {
        self.on_hold.store(true, Ordering::Relaxed);
    }

    pub fn is_on_hold(&self) -> bool {
        self.on_hold.load(Ordering::Relaxed)
    }

    /// Names what is planned from now on.
    pub fn begin(&self, name: &'static str, number: u64) {
        *self.planning() = Some(Planning { name, number, since: Instant::now() });
    }

    /// Whether the plan that ends now still counts: one that was given up does not.
    pub fn end(&self) -> bool {
        let ended = self.planning().take();
        if let Some(Planning { name, since, .. }) = ended {
            self.slow.observe(Activity::Plan(name), since.elapsed());
        }
        let held = *self.held.borrow();
        ended.is_none_or(|planning| held != Some(planning.number))
    }

    /// Gives up what is planned now, if anything is, so that its caller gets an error and does not try it elsewhere.
    pub fn give_up(&self) -> Option<Planning> {
        // Under the lock that `end` takes: a plan that has ended is not given up.
        let planning = self.planning();
        if let Some(Planning { number, .. }) = *planning {
            self.held.send_replace(Some(number));
        }
        *planning
    }

    /// Gives up an operation that is planned beside the event loop.
    pub fn refuse(&self, number: u64) {
        self.held.send_replace(Some(number));
    }

    pub fn held(&self) -> watch::Receiver<Option<u64>> {
        self.held.subscribe()
    }

    fn planning(&self) -> MutexGuard<'_, Option<Planning>> {
        self.planning.lock().expect("no holder panics")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_plan_that_was_given_up_does_not_count() {
        let pulse = Pulse::new();
        let number = pulse.next_number();
        pulse.begin("create-topics", number);
        let given_up = pulse.give_up().expect("it is planned");
        assert_eq!((given_up.name, given_up.number), ("create-topics", number));
        assert!(!pulse.end());
        pulse.begin("create-topics", pulse.next_number());
        assert!(pulse.end(), "the next one is not affected");
        assert_eq!(pulse.give_up(), None, "nothing is planned");
    }
}
