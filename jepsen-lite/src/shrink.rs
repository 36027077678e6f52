//! The smallest schedule that still fails: fewer events by delta debugging (Zeller and Hildebrandt 2002), then nothing
//! before, between and behind them that is not needed, then shorter ones, then fewer nodes.
//!
//! What a failure is, the caller knows. Asking costs minutes, so nothing is asked twice.

use crate::schedule::{Event, Schedule};

/// Fewer nodes have no minority to spare, and replicas of a topic are three.
const NODES_MIN: i32 = 3;

/// A shorter fault is over before anybody notices.
const EVENT_MS_MIN: u64 = 50;

/// Before the first event.
const LEAD_MS: u64 = 200;

/// A schedule that fails, and from which nothing of the above can be taken away without that it does not fail any more.
pub fn shrink(schedule: Schedule, mut fails: impl FnMut(&Schedule) -> bool) -> Schedule {
    let mut harmless = Vec::new();
    let mut fails = |candidate: &Schedule| {
        if harmless.contains(candidate) {
            return false;
        }
        let failed = fails(candidate);
        if !failed {
            harmless.push(candidate.clone());
        }
        failed
    };
    let schedule = fewer_events(schedule, &mut fails);
    let schedule = closer(schedule, &mut fails);
    let schedule = shorter(schedule, &mut fails);
    fewer_nodes(schedule, &mut fails)
}

fn fewer_events(mut schedule: Schedule, fails: &mut impl FnMut(&Schedule) -> bool) -> Schedule {
    let none = with_events(&schedule, &[]);
    if fails(&none) {
        return none;
    }
    let mut parts = 2;
    while schedule.events.len() > 1 {
        let (count, smaller) = (schedule.events.len(), smaller(&schedule, parts, fails));
        match smaller {
            Some((smaller, next_parts)) => (schedule, parts) = (smaller, next_parts),
            None if parts == count => break,
            None => parts = (2 * parts).min(count),
        }
    }
    schedule
}

/// One of so many parts of the events, or all but one of them; and into how many parts to divide what is left.
fn smaller(schedule: &Schedule, parts: usize, fails: &mut impl FnMut(&Schedule) -> bool) -> Option<(Schedule, usize)> {
    let events = &schedule.events;
    let bounds: Vec<usize> = (0..=parts).map(|part| part * events.len() / parts).collect();
    let ranges = || bounds.windows(2).map(|bound| bound[0]..bound[1]);
    for range in ranges() {
        let part = with_events(schedule, &events[range]);
        if fails(&part) {
            return Some((part, 2));
        }
    }
    // All but one of two parts is the other one.
    for range in ranges().filter(|_| parts > 2) {
        let rest = with_events(schedule, &[&events[..range.start], &events[range.end..]].concat());
        if fails(&rest) {
            return Some((rest, parts - 1));
        }
    }
    None
}

fn with_events(schedule: &Schedule, events: &[Event]) -> Schedule {
    Schedule { events: events.to_vec(), ..schedule.clone() }
}

/// Without the time in which nothing happens any more or yet.
fn closer(schedule: Schedule, fails: &mut impl FnMut(&Schedule) -> bool) -> Schedule {
    let mut candidate = schedule.clone();
    let first_ms = candidate.events.iter().map(|event| event.at_ms).min().unwrap_or(0);
    for event in &mut candidate.events {
        event.at_ms -= first_ms.saturating_sub(LEAD_MS);
    }
    candidate.faults_ms = candidate.events.iter().map(|event| event.at_ms + event.for_ms).max().unwrap_or(0);
    if candidate != schedule && fails(&candidate) { candidate } else { schedule }
}

/// Each event half as long, as often as that fails.
fn shorter(mut schedule: Schedule, fails: &mut impl FnMut(&Schedule) -> bool) -> Schedule {
    for place in 0..schedule.events.len() {
        while schedule.events[place].for_ms >= 2 * EVENT_MS_MIN {
            let mut candidate = schedule.clone();
            candidate.events[place].for_ms /= 2;
            if !fails(&candidate) {
                break;
            }
            schedule = candidate;
        }
    }
    schedule
}

fn fewer_nodes(schedule: Schedule, fails: &mut impl FnMut(&Schedule) -> bool) -> Schedule {
    let candidates = (NODES_MIN..schedule.nodes).map(|nodes| Schedule { nodes, ..schedule.clone() });
    candidates.into_iter().find(|candidate| fails(candidate)).unwrap_or(schedule)
}

/// Real processes fail now and then: so many failures in so many runs count.
#[derive(Debug, Clone, Copy)]
pub struct Odds {
    pub hits: u32,
    pub runs: u32,
}

impl Odds {
    /// Runs no more often than it takes to know.
    pub fn are_met(self, mut run: impl FnMut() -> bool) -> bool {
        let mut hits = 0;
        for left in (0..self.runs).rev() {
            hits += u32::from(run());
            if hits >= self.hits || hits + left < self.hits {
                break;
            }
        }
        hits >= self.hits
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::nemesis::Nemesis;

    /// A drawn schedule, and two of its events, far from each other.
    fn drawn() -> (Schedule, Event, Event) {
        let schedule = Schedule::draw(5, 3, &Nemesis::USUAL, 60_000);
        let (early, late) = (schedule.events[2].clone(), schedule.events[schedule.events.len() - 2].clone());
        (schedule, early, late)
    }

    fn has(schedule: &Schedule, event: &Event) -> bool {
        schedule.events.iter().any(|other| (other.nemesis, &other.fault) == (event.nemesis, &event.fault))
    }

    #[test]
    fn only_the_events_that_matter_stay() {
        let (schedule, early, late) = drawn();
        assert!(schedule.events.len() > 10);
        let mut tries = 0;
        let smallest = shrink(schedule, |candidate| {
            tries += 1;
            has(candidate, &early) && has(candidate, &late)
        });
        assert_eq!(smallest.events.len(), 2);
        assert!(has(&smallest, &early) && has(&smallest, &late));
        assert_eq!((smallest.events[0].at_ms, smallest.nodes), (LEAD_MS, NODES_MIN));
        assert!(smallest.events.iter().all(|event| event.for_ms < 2 * EVENT_MS_MIN));
        assert!(tries < 100, "{tries} candidates");
    }

    #[test]
    fn what_must_last_is_shortened_no_further() {
        let (schedule, early, _) = drawn();
        let needed_ms = early.for_ms / 4;
        let lasts = |event: &Event| event.fault == early.fault && event.for_ms >= needed_ms;
        let smallest = shrink(schedule, |candidate| candidate.events.iter().any(lasts));
        assert_eq!(smallest.events.len(), 1);
        assert!((needed_ms..2 * needed_ms).contains(&smallest.events[0].for_ms));
    }

    #[test]
    fn what_needs_its_nodes_and_its_pauses_keeps_them() {
        let (schedule, early, _) = drawn();
        let fails = |candidate: &Schedule| candidate.nodes >= 4 && candidate.events.contains(&early);
        let smallest = shrink(schedule.clone(), fails);
        assert_eq!((smallest.nodes, &smallest.events[..]), (4, &[early][..]));
        assert_eq!(smallest.faults_ms, schedule.faults_ms);
    }

    #[test]
    fn a_cluster_that_fails_unharmed_needs_no_fault_and_one_that_does_not_fail_stays_as_it_is() {
        let (schedule, ..) = drawn();
        assert!(shrink(schedule.clone(), |_| true).events.is_empty());
        assert_eq!(shrink(schedule.clone(), |_| false), schedule);
    }

    #[test]
    fn no_candidate_is_tried_twice() {
        let (schedule, early, late) = drawn();
        let mut tried = Vec::new();
        shrink(schedule, |candidate| {
            assert!(!tried.contains(candidate), "{candidate:?}");
            tried.push(candidate.clone());
            has(candidate, &early) && has(candidate, &late)
        });
    }

    #[test]
    fn odds_are_met_by_enough_failures_and_found_out_with_as_few_runs_as_possible() {
        let runs = |outcomes: &[bool]| {
            let mut asked = 0;
            let met = Odds { hits: 2, runs: 5 }.are_met(|| {
                asked += 1;
                outcomes[asked - 1]
            });
            (met, asked)
        };
        assert_eq!(runs(&[true, true]), (true, 2));
        assert_eq!(runs(&[false, true, false, true]), (true, 4));
        assert_eq!(runs(&[false, false, false, false]), (false, 4));
        assert_eq!(runs(&[false, false, false, true, false]), (false, 5));
    }
}
