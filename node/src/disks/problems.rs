//! What is wrong with the disks of this node, for the log of the operator: heartbeats carry it to the active controller,
//! whose status shows it.

use std::collections::BTreeMap;

use tokio::sync::watch;

/// Cheap to clone; all clones are the same.
#[derive(Debug, Clone, Default)]
pub struct DiskProblems {
    /// By place, such as a log directory; a sentence each.
    by_place: watch::Sender<BTreeMap<String, String>>,
}

impl DiskProblems {
    pub fn set(&self, place: &str, problem: String) {
        self.by_place.send_if_modified(|problems| {
            let before = problems.insert(place.to_owned(), problem.clone());
            before.as_ref() != Some(&problem)
        });
    }

    pub fn clear(&self, place: &str) {
        self.by_place.send_if_modified(|problems| problems.remove(place).is_some());
    }

    pub fn list(&self) -> Vec<String> {
        self.by_place.borrow().iter().map(|(place, problem)| format!("{place}: {problem}")).collect()
    }

    pub fn count(&self) -> usize {
        self.by_place.borrow().len()
    }

    /// Resolves when they are others.
    pub fn changes(&self) -> watch::Receiver<BTreeMap<String, String>> {
        self.by_place.subscribe()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_problem_is_told_once_until_it_is_over() {
        let problems = DiskProblems::default();
        let mut changes = problems.changes();
        problems.set("raft log", "does not answer".to_owned());
        assert_eq!(problems.list(), ["raft log: does not answer"]);
        assert!(changes.has_changed().is_ok_and(|changed| changed));
        changes.mark_unchanged();
        problems.set("raft log", "does not answer".to_owned());
        assert!(changes.has_changed().is_ok_and(|changed| !changed), "nothing new");
        problems.clear("raft log");
        assert!(problems.list().is_empty() && changes.has_changed().is_ok_and(|changed| changed));
    }
}
