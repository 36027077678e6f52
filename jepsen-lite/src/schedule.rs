//! What is broken, when, and for how long: data, drawn from one seed, written beside the history, and enough to do it
//! again.

use serde::{Deserialize, Serialize};

use crate::nemesis::{Draft, Fault, Nemesis, State};
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
    /// It waits for this as well, and everything after it begins so much later.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub until: Option<State>,
    pub fault: Fault,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Schedule {
    pub seed: u64,
    #[serde(default = "usual_nodes")]
    pub nodes: i32,
    /// Of the faults; warm-up and the way back to health take as long as they take.
    pub faults_ms: u64,
    pub events: Vec<Event>,
}

/// Of the schedules that were written down before they said it.
fn usual_nodes() -> i32 {
    5
}

impl Schedule {
    /// Faults of the given kinds over the given time: one after the other, and now and then two at a time.
    pub fn draw(nodes: i32, seed: u64, nemeses: &[Nemesis], faults_ms: u64) -> Self {
        let mut random = Random::new(seed);
        let mut events = Vec::new();
        let mut order = nemeses.to_vec();
        random.shuffle(&mut order);
        let mut at_ms = random.between(200, 1_000);
        // When everything that was drawn so far has ended, and whether what comes next waits until all is well.
        let (mut quiet_ms, mut was_alone) = (0, false);
        for turn in 0.. {
            if order.is_empty() || at_ms + MIN_FAULT_MS > faults_ms {
                break;
            }
            // Each kind has its turn before any has a second one.
            let nemesis = order[turn % order.len()];
            if nemesis.is_alone() {
                at_ms = at_ms.max(quiet_ms);
            }
            let mut waits = (was_alone || nemesis.is_alone()).then_some(State::Whole);
            let visit = nemesis.visit(&mut random);
            let longest = visit.iter().map(|draft| draft.after_ms + draft.for_ms).max().unwrap_or(0);
            for Draft { after_ms, for_ms, until, fault } in visit {
                let begins = at_ms + after_ms;
                if begins < faults_ms {
                    let (for_ms, until) = (for_ms.min(faults_ms - begins), until.or(waits.take()));
                    events.push(Event { at_ms: begins, for_ms, nemesis, until, fault });
                }
            }
            (quiet_ms, was_alone) = (quiet_ms.max(at_ms + longest), nemesis.is_alone());
            let overlaps = random.percent(OVERLAP_PERCENT) && !was_alone;
            at_ms += if overlaps { longest / 2 } else { longest + random.between(PAUSE_MS.0, PAUSE_MS.1) };
        }
        events.sort_by_key(|event| event.at_ms);
        Self { seed, nodes, faults_ms, events }
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
            let schedule = Schedule::draw(5, seed, &Nemesis::USUAL, 120_000);
            assert_eq!(schedule, Schedule::draw(5, seed, &Nemesis::USUAL, 120_000));
            for nemesis in Nemesis::USUAL {
                assert!(schedule.events.iter().any(|event| event.nemesis == nemesis), "seed {seed}: {nemesis:?}");
            }
            assert!(schedule.events.iter().all(|event| event.at_ms + event.for_ms <= schedule.faults_ms));
        }
    }

    #[test]
    fn what_is_alone_overlaps_with_nothing_and_waits_for_a_whole_cluster() {
        for seed in 0..50 {
            let events = Schedule::draw(5, seed, &Nemesis::USUAL, 120_000).events;
            for (number, event) in events.iter().enumerate().filter(|(_, event)| event.nemesis.is_alone()) {
                let is_other = |other: &&Event| other.nemesis != event.nemesis;
                let ends_ms = event.at_ms + event.for_ms;
                let meets = |other: &Event| other.at_ms < ends_ms && event.at_ms < other.at_ms + other.for_ms;
                assert!(!events.iter().filter(is_other).any(meets), "seed {seed}: {event:?}");
                let next = events[number..].iter().find(is_other);
                assert!(next.is_none_or(|next| next.until == Some(State::Whole)), "seed {seed}: {next:?}");
            }
        }
    }

    #[test]
    fn a_schedule_survives_being_written_and_read() {
        let schedule = Schedule::draw(5, 7, &Nemesis::USUAL, 30_000);
        let text = serde_json::to_string_pretty(&schedule).unwrap();
        assert_eq!(serde_json::from_str::<Schedule>(&text).unwrap(), schedule);
    }
}
