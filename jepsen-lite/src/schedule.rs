//! What is broken, when, and for how long: data, drawn from one seed, written beside the history, and enough to do it
//! again.

use serde::{Deserialize, Serialize};

use crate::nemesis::{Fault, Nemesis};
use crate::random::Random;

/// Between the end of a fault and the next one: with a mean of both a cluster is healthy about half of the time.
const PAUSE_MS: (u64, u64) = (500, 3_000);

/// One fault.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Event {
    /// Since the faults began.
    pub at_ms: u64,
    pub for_ms: u64,
    pub nemesis: Nemesis,
    pub fault: Fault,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Schedule {
    pub seed: u64,
    /// Of the faults; warm-up and the way back to health take as long as they take.
    pub faults_ms: u64,
    pub events: Vec<Event>,
}

impl Schedule {
    /// Faults of the given kinds over the given time: one after the other, and now and then two at a time.
    pub fn draw(seed: u64, nemeses: &[Nemesis], faults_ms: u64) -> Self {
        let mut random = Random::new(seed);
        let mut events = Vec::new();
        let mut order = nemeses.to_vec();
        random.shuffle(&mut order);
        let mut at_ms = random.between(200, 1_000);
        for turn in 0.. {
            if order.is_empty() || at_ms + MIN_FAULT_MS > faults_ms {
                break;
            }
            // Each kind has its turn before any has a second one.
            let nemesis = order[turn % order.len()];
            let fault = nemesis.events(&mut random);
            let longest = fault.iter().map(|(after_ms, for_ms, _)| after_ms + for_ms).max().unwrap_or(0);
            for (after_ms, for_ms, fault) in fault {
                let begins = at_ms + after_ms;
                if begins < faults_ms {
                    let for_ms = for_ms.min(faults_ms - begins);
                    events.push(Event { at_ms: begins, for_ms, nemesis, fault });
                }
            }
            let overlaps = random.percent(OVERLAP_PERCENT);
            at_ms += if overlaps { longest / 2 } else { longest + random.between(PAUSE_MS.0, PAUSE_MS.1) };
        }
        events.sort_by_key(|event| event.at_ms);
        Self { seed, faults_ms, events }
    }
}

/// A fault that ends at once shows nothing.
const MIN_FAULT_MS: u64 = 500;

/// How often the next fault begins while this one lasts.
const OVERLAP_PERCENT: u64 = 25;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_seed_gives_one_schedule_and_every_nemesis_has_its_turn() {
        for seed in 0..50 {
            let schedule = Schedule::draw(seed, &Nemesis::P0, 120_000);
            assert_eq!(schedule, Schedule::draw(seed, &Nemesis::P0, 120_000));
            for nemesis in Nemesis::P0 {
                assert!(schedule.events.iter().any(|event| event.nemesis == nemesis), "seed {seed}: {nemesis:?}");
            }
            assert!(schedule.events.iter().all(|event| event.at_ms + event.for_ms <= schedule.faults_ms));
        }
    }

    #[test]
    fn a_schedule_survives_being_written_and_read() {
        let schedule = Schedule::draw(7, &Nemesis::P0, 30_000);
        let text = serde_json::to_string_pretty(&schedule).unwrap();
        assert_eq!(serde_json::from_str::<Schedule>(&text).unwrap(), schedule);
    }
}
