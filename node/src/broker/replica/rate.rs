//! How fast a follower gets on.

use quorate_log::LogOffset;

/// How long the progress of a follower is averaged over, at least.
const RATE_WINDOW_MS: i64 = 2_000;

/// How old a rate may be, and how long what it was averaged over. Older ones say nothing of now: the follower may be paused,
/// throttled or gone. It is long enough for one that fetches a mebibyte at a time at 35 KiB/s.
const RATE_AGE_MAX_MS: i64 = 30_000;

/// The progress of one follower.
#[derive(Debug, Clone, Copy)]
pub struct FollowerRate {
    /// When the window that is open began, and the last one ended.
    since_ms: i64,
    end_then: LogOffset,
    records_per_second: Option<i64>,
}

impl FollowerRate {
    /// From its first fetch on.
    pub fn starting(end: LogOffset, now_ms: i64) -> Self {
        Self { since_ms: now_ms, end_then: end, records_per_second: None }
    }

    /// The follower has everything below `end`.
    pub fn observe(&mut self, end: LogOffset, now_ms: i64) {
        let elapsed = now_ms - self.since_ms;
        if elapsed < RATE_WINDOW_MS {
            return;
        }
        let is_recent = elapsed <= RATE_AGE_MAX_MS;
        let records_per_second = is_recent.then(|| (end.0 - self.end_then.0).max(0) * 1_000 / elapsed);
        *self = Self { records_per_second, ..Self::starting(end, now_ms) };
    }

    /// None: not measured within the last `RATE_AGE_MAX_MS`.
    pub fn records_per_second(&self, now_ms: i64) -> Option<i64> {
        self.records_per_second.filter(|_| now_ms - self.since_ms <= RATE_AGE_MAX_MS)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn observed(fetches: &[(i64, i64)]) -> FollowerRate {
        let mut rate = FollowerRate::starting(LogOffset(0), 0);
        fetches.iter().for_each(|&(end, now_ms)| rate.observe(LogOffset(end), now_ms));
        rate
    }

    #[test]
    fn rate_is_unknown_until_a_window_is_over() {
        assert_eq!(observed(&[(10, 1_000)]).records_per_second(1_000), None);
        assert_eq!(observed(&[(10, 1_000), (40, 2_000)]).records_per_second(2_000), Some(20));
    }

    #[test]
    fn old_rate_is_unknown() {
        let rate = observed(&[(40, 2_000)]);
        assert_eq!(rate.records_per_second(2_000 + RATE_AGE_MAX_MS), Some(20));
        assert_eq!(rate.records_per_second(2_001 + RATE_AGE_MAX_MS), None);
    }

    #[test]
    fn rate_over_a_long_pause_is_unknown() {
        let back_at = 2_001 + RATE_AGE_MAX_MS;
        assert_eq!(observed(&[(40, 2_000), (50, back_at)]).records_per_second(back_at), None);
        assert_eq!(
            observed(&[(40, 2_000), (50, back_at), (90, back_at + 2_000)]).records_per_second(back_at + 2_000),
            Some(20)
        );
    }
}
