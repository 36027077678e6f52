//! What brokers report of the disks of their nodes, for the status of the cluster. Soft state of the active controller, as the
//! sessions are: a new one hears it with the next heartbeats.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use quorate_metadata::ids::BrokerId;

/// More problems than these, of one broker, say no more.
const PROBLEMS_MAX: usize = 8;

/// A problem is a sentence with a path in it.
const CHARS_MAX: usize = 300;

#[derive(Default)]
pub struct DiskReports {
    by_broker: Mutex<BTreeMap<BrokerId, Vec<String>>>,
}

impl DiskReports {
    /// Replaces what the broker reported before.
    pub fn report(&self, broker: BrokerId, problems: &[String]) {
        let mut by_broker = self.by_broker();
        if problems.is_empty() {
            by_broker.remove(&broker);
            return;
        }
        let bounded = problems.iter().take(PROBLEMS_MAX).map(|problem| problem.chars().take(CHARS_MAX).collect());
        by_broker.insert(broker, bounded.collect());
    }

    /// Of the brokers that `is_registered`, with their ids.
    pub fn list(&self, is_registered: impl Fn(BrokerId) -> bool) -> Vec<String> {
        let by_broker = self.by_broker();
        let registered = by_broker.iter().filter(|(broker, _)| is_registered(**broker));
        registered
            .flat_map(|(broker, problems)| problems.iter().map(move |problem| format!("broker {broker}: {problem}")))
            .collect()
    }

    pub fn clear(&self) {
        self.by_broker().clear();
    }

    fn by_broker(&self) -> MutexGuard<'_, BTreeMap<BrokerId, Vec<String>>> {
        self.by_broker.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reports_are_bounded_replaced_and_of_registered_brokers() {
        let (reports, one) = (DiskReports::default(), BrokerId::new(1));
        let list = |reports: &DiskReports| reports.list(|broker| broker == one);
        reports.report(one, &["raft log: its disk hangs".to_owned()]);
        reports.report(BrokerId::new(2), &["nobody knows it".to_owned()]);
        assert_eq!(list(&reports), ["broker 1: raft log: its disk hangs"]);
        reports.report(one, &vec!["ä".repeat(1_000); 100]);
        let listed = list(&reports);
        assert_eq!((listed.len(), listed[0].chars().count()), (PROBLEMS_MAX, "broker 1: ".len() + CHARS_MAX));
        reports.report(one, &[]);
        assert!(list(&reports).is_empty());
    }
}
