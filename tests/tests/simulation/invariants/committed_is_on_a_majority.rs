//! P1, and KRaft's MajorityReachedHighWatermark: what counts as committed is on stable storage of a majority.

use super::Invariant;
use crate::observe::{NodeSeen, Seen};

#[derive(Default)]
pub struct CommittedIsOnAMajority {
    checked: i64,
}

impl Invariant for CommittedIsOnAMajority {
    fn name(&self) -> &'static str {
        "committed is on a majority"
    }

    fn check(&mut self, seen: &Seen) -> Result<(), String> {
        let committed = |node: &&NodeSeen| node.inside.as_ref().map_or(-1, |inside| inside.quorum.applied);
        let Some(furthest) = seen.nodes.iter().max_by_key(committed) else { return Ok(()) };
        let index = committed(&furthest);
        if index <= self.checked {
            return Ok(());
        }
        self.checked = index;
        let index = u64::try_from(index).expect("it is more than one that was checked");
        let Some(entry) = furthest.logged(index).entries.first().copied() else { return Ok(()) };
        let has = |node: &&NodeSeen| {
            let logged = node.logged(index);
            let is_durable = logged.durable_to.is_some_and(|durable| durable >= index);
            // What a snapshot has replaced was committed before.
            logged.first > index || (is_durable && logged.entries.first() == Some(&entry))
        };
        let holders = seen.nodes.iter().filter(has).count();
        if holders * 2 > seen.nodes.len() {
            return Ok(());
        }
        Err(format!("entry {index} is replayed on node {}, and durable on {holders} nodes only", furthest.id))
    }
}
