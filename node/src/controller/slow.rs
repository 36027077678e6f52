//! What took long on the active controller lately, for the status of the cluster.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Mutex, MutexGuard};
use std::time::Duration;

use tokio::time::Instant;

/// How long it is named.
const NAMED_FOR: Duration = Duration::from_secs(60);

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Activity {
    /// From the proposal of a batch until it is replayed here, as the event loop sees it: the disks of a majority, and the
    /// network.
    Commit,
    /// The event loop plans nothing else meanwhile.
    Plan(&'static str),
    /// From its arrival at the controller until its reply.
    Request(&'static str),
}

impl Activity {
    /// An activity that takes less is as it should be.
    fn slow_from(self) -> Duration {
        match self {
            Self::Plan(_) => Duration::from_millis(100),
            Self::Commit => Duration::from_millis(500),
            Self::Request(_) => Duration::from_secs(1),
        }
    }
}

impl fmt::Display for Activity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Commit => f.write_str("a commit"),
            Self::Plan(name) => write!(f, "planning {name} on the controller's event loop"),
            Self::Request(name) => write!(f, "a {name} request"),
        }
    }
}

/// Bounded by the names of operations.
#[derive(Default)]
pub struct SlowActivities(Mutex<BTreeMap<Activity, Observed>>);

struct Observed {
    times: u64,
    longest: Duration,
    last: Instant,
}

impl SlowActivities {
    pub fn observe(&self, activity: Activity, took: Duration) {
        if took < activity.slow_from() {
            return;
        }
        let last = Instant::now();
        let mut all = self.lock();
        let observed = all.entry(activity).or_insert(Observed { times: 0, longest: took, last });
        if !observed.is_recent() {
            (observed.times, observed.longest) = (0, took);
        }
        *observed = Observed { times: observed.times + 1, longest: observed.longest.max(took), last };
    }

    /// A sentence each.
    pub fn list(&self) -> Vec<String> {
        let all = self.lock();
        let recent = all.iter().filter(|(_, observed)| observed.is_recent());
        recent
            .map(|(activity, Observed { times, longest, last })| {
                let (longest, ago) = (longest.as_millis(), last.elapsed().as_secs());
                format!("{activity} took up to {longest} ms (slow {times} times, the last time {ago} s ago)")
            })
            .collect()
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<Activity, Observed>> {
        self.0.lock().expect("no thread panics while it holds them")
    }
}

impl Observed {
    fn is_recent(&self) -> bool {
        self.last.elapsed() < NAMED_FOR
    }
}

#[cfg(test)]
mod tests {
    use tokio::time::advance;

    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    #[tokio::test(start_paused = true)]
    async fn what_is_slow_is_named_for_a_minute() {
        let slow = SlowActivities::default();
        slow.observe(Activity::Commit, SECOND / 10);
        assert!(slow.list().is_empty());
        slow.observe(Activity::Commit, 2 * SECOND);
        slow.observe(Activity::Commit, SECOND);
        slow.observe(Activity::Plan("create-topics"), SECOND / 5);
        advance(30 * SECOND).await;
        assert_eq!(
            slow.list(),
            [
                "a commit took up to 2000 ms (slow 2 times, the last time 30 s ago)",
                "planning create-topics on the controller's event loop took up to 200 ms (slow 1 times, the last time 30 s ago)",
            ]
        );
        slow.observe(Activity::Commit, SECOND);
        advance(31 * SECOND).await;
        assert_eq!(slow.list(), ["a commit took up to 2000 ms (slow 3 times, the last time 31 s ago)"]);
        advance(30 * SECOND).await;
        slow.observe(Activity::Commit, SECOND);
        assert_eq!(slow.list(), ["a commit took up to 1000 ms (slow 1 times, the last time 0 s ago)"]);
    }
}
