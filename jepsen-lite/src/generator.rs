//! What is asked next, and when.

use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::sync::watch;
use tokio::time::{Instant, sleep_until};

use crate::random::Random;

/// How those who ask go about it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Tempo {
    #[default]
    Usual,
    /// Ten times as often.
    Burst,
    /// Every second one stands still.
    HalfStill,
}

const BURST: u32 = 10;

/// One who asks: a process with its own luck and its own pace, until it is told to stop.
#[derive(Debug)]
pub struct Asker {
    pub random: Random,
    /// Its name in the history. It gets a new one when nobody knows what became of what it asked.
    pub process: u32,
    pace: Duration,
    next: Instant,
    stop: watch::Receiver<bool>,
    tempo: watch::Receiver<Tempo>,
}

/// Processes of one workload are numbered from a multiple of this.
pub const PROCESSES_MAX: u32 = 1_000;

impl Asker {
    pub fn new(
        random: Random,
        process: u32,
        pace: Duration,
        stop: watch::Receiver<bool>,
        tempo: watch::Receiver<Tempo>,
    ) -> Self {
        Self { random, process, pace, next: Instant::now(), stop, tempo }
    }

    /// Waits for the time of the next operation; `false` when there shall be none. Whoever is late does not catch up.
    pub async fn turn(&mut self) -> bool {
        let pace = if *self.tempo.borrow() == Tempo::Burst { self.pace / BURST } else { self.pace };
        let jitter = pace.mul_f64(self.random.below(1_000) as f64 / 1_000.0);
        self.next = self.next.max(Instant::now()) + pace / 2 + jitter;
        let may_stand_still = self.process.is_multiple_of(2);
        tokio::select! {
            biased;
            stopped = self.stop.wait_for(|stop| *stop) => {
                // A sender that is gone ends the run as well.
                let _ = stopped;
                false
            }
            () = due(self.next, &mut self.tempo, may_stand_still) => true,
        }
    }

    /// Waits for a burst; `false` when there shall be none.
    pub async fn burst(&mut self) -> bool {
        tokio::select! {
            biased;
            // A sender that is gone ends the run as well.
            _ = self.stop.wait_for(|stop| *stop) => false,
            burst = self.tempo.wait_for(|tempo| *tempo == Tempo::Burst) => burst.is_ok(),
        }
    }

    /// What the last operation did is unknown, so whoever asked it is not heard of again.
    pub fn retire(&mut self) {
        self.process += PROCESSES_MAX;
    }
}

/// Waits for the time, and for the end of standing still.
async fn due(time: Instant, tempo: &mut watch::Receiver<Tempo>, may_stand_still: bool) {
    sleep_until(time).await;
    if may_stand_still {
        // Whoever sets the tempo is gone at the end, which is no reason to stand still.
        let _ = tempo.wait_for(|tempo| *tempo != Tempo::HalfStill).await;
    }
}

/// Registers that are small enough for the blind check: a key is given up after so many operations, or when the outcome
/// of too many is open.
#[derive(Debug, Default)]
pub struct Keys {
    key: u32,
    begun: u32,
    open: u32,
}

/// See `checker/blind.rs`: beyond it the search grows out of hand.
const OPERATIONS_PER_KEY: u32 = 180;
const OPEN_PER_KEY: u32 = 6;

impl Keys {
    /// The key of the next operation.
    pub fn draw(&mut self) -> u32 {
        if self.begun >= OPERATIONS_PER_KEY || self.open >= OPEN_PER_KEY {
            *self = Self { key: self.key + 1, begun: 0, open: 0 };
        }
        self.begun += 1;
        self.key
    }

    /// The outcome of an operation on this key is open.
    pub fn lose(&mut self, key: u32) {
        if key == self.key {
            self.open += 1;
        }
    }
}

#[cfg(test)]
mod tests {
    use futures::FutureExt;

    use super::*;

    #[test]
    fn a_key_is_given_up_when_it_has_seen_enough() {
        let mut keys = Keys::default();
        let drawn: Vec<u32> = (0..=OPERATIONS_PER_KEY).map(|_| keys.draw()).collect();
        assert_eq!((drawn[0], drawn[179], drawn[180]), (0, 0, 1));
        (0..OPEN_PER_KEY).for_each(|_| keys.lose(0));
        assert_eq!(keys.draw(), 1, "they were of another key");
        (0..OPEN_PER_KEY).for_each(|_| keys.lose(1));
        assert_eq!(keys.draw(), 2);
    }

    #[tokio::test(start_paused = true)]
    async fn an_asker_keeps_its_pace_and_stops_when_told() {
        let stop = watch::Sender::new(false);
        let pace = Duration::from_millis(100);
        let tempo = watch::Sender::default();
        let mut asker = Asker::new(Random::new(1), 7, pace, stop.subscribe(), tempo.subscribe());
        let began = Instant::now();
        for _ in 0..100 {
            assert!(asker.turn().await);
        }
        let mean = began.elapsed() / 100;
        assert!(mean > pace * 8 / 10 && mean < pace * 12 / 10, "{mean:?}");
        stop.send_replace(true);
        assert!(!asker.turn().await);
    }

    #[tokio::test]
    async fn a_burst_is_waited_for_and_so_is_the_end() {
        let (stop, tempo) = (watch::Sender::new(false), watch::Sender::default());
        let mut asker = Asker::new(Random::new(1), 2, Duration::ZERO, stop.subscribe(), tempo.subscribe());
        assert!(asker.burst().now_or_never().is_none());
        tempo.send_replace(Tempo::Burst);
        assert_eq!(asker.burst().now_or_never(), Some(true));
        tempo.send_replace(Tempo::HalfStill);
        assert!(asker.burst().now_or_never().is_none());
        stop.send_replace(true);
        assert_eq!(asker.burst().now_or_never(), Some(false));
    }

    #[tokio::test(start_paused = true)]
    async fn in_a_burst_an_asker_hurries_and_every_second_one_can_stand_still() {
        let (stop, tempo) = (watch::Sender::new(false), watch::Sender::default());
        let pace = Duration::from_millis(100);
        let asker = |process| Asker::new(Random::new(1), process, pace, stop.subscribe(), tempo.subscribe());
        let [mut even, mut odd] = [asker(2), asker(3)];
        tempo.send_replace(Tempo::Burst);
        let began = Instant::now();
        for _ in 0..100 {
            assert!(even.turn().await);
        }
        assert!(began.elapsed() < 100 * pace / 8, "{:?}", began.elapsed());
        tempo.send_replace(Tempo::HalfStill);
        assert!(odd.turn().await);
        assert!(tokio::time::timeout(100 * pace, even.turn()).await.is_err());
        tempo.send_replace(Tempo::Usual);
        assert!(even.turn().await);
        tempo.send_replace(Tempo::HalfStill);
        stop.send_replace(true);
        assert!(!even.turn().await, "whoever stands still can stop");
    }
}
