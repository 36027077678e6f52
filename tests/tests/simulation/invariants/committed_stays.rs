//! State machine safety and leader completeness (Raft, section 5.4; KRaft's ConsistentCommittedData): what is committed at
//! an index stays the same for all, and whoever leads later has it.

use std::collections::BTreeMap;

use super::Invariant;
use crate::observe::{NodeSeen, Seen};

#[derive(Default)]
pub struct CommittedStays {
    /// Term and checksum by index.
    committed: BTreeMap<u64, (u64, u32)>,
    /// How far each process was followed.
    followed: BTreeMap<(i32, u32), u64>,
    /// The last epoch in which each process was seen in office.
    offices: BTreeMap<(i32, u32), i32>,
}

impl Invariant for CommittedStays {
    fn name(&self) -> &'static str {
        "committed stays"
    }

    fn check(&mut self, seen: &Seen) -> Result<(), String> {
        seen.nodes.iter().try_for_each(|node| self.follow(node))?;
        seen.nodes.iter().filter(|node| node.is_controller()).try_for_each(|node| self.take_office(node))
    }
}

impl CommittedStays {
    /// By what a node has replayed: that is committed here.
    fn follow(&mut self, node: &NodeSeen) -> Result<(), String> {
        let Some(inside) = &node.inside else { return Ok(()) };
        let Ok(applied) = u64::try_from(inside.quorum.applied) else { return Ok(()) };
        let from = self.followed.insert((node.id, node.incarnation), applied).map_or(0, |last| last + 1);
        if from > applied {
            return Ok(());
        }
        for entry in node.logged(from).entries.iter().take_while(|entry| entry.index <= applied) {
            let content = (entry.term, entry.checksum);
            let first = *self.committed.entry(entry.index).or_insert(content);
            if first != content {
                return Err(format!("node {} has committed another entry {}", node.id, entry.index));
            }
        }
        Ok(())
    }

    fn take_office(&mut self, node: &NodeSeen) -> Result<(), String> {
        let epoch = node.inside.as_ref().map_or(0, |inside| inside.quorum.epoch.get());
        if self.offices.insert((node.id, node.incarnation), epoch) == Some(epoch) {
            return Ok(());
        }
        let logged = node.logged(0);
        let has: BTreeMap<u64, u64> = logged.entries.iter().map(|entry| (entry.index, entry.term)).collect();
        let lacks = self.committed.range(logged.first..).find(|(index, (term, _))| has.get(index) != Some(term));
        match lacks {
            Some((index, _)) => Err(format!("node {} leads in epoch {epoch} without entry {index}", node.id)),
            None => Ok(()),
        }
    }
}
