//! Log matching (Raft, section 5.3): entries with one index and term are the same in every log, and so is what is before
//! them.

use std::collections::{BTreeMap, HashMap};

use super::Invariant;
use crate::observe::Seen;

/// A log changes at its end; entries further back were looked at when they came.
const LOOKED_AT_AGAIN: u64 = 100;

/// What an entry has, and the term of the one before it.
type Content = (u32, Option<u64>);

#[derive(Default)]
pub struct LogsMatch {
    /// By index and term.
    known: HashMap<(u64, u64), Content>,
    /// By node: the version of its log that was last looked at, and its end.
    looked_at: BTreeMap<i32, (u64, u64)>,
}

impl Invariant for LogsMatch {
    fn name(&self) -> &'static str {
        "logs match"
    }

    fn check(&mut self, seen: &Seen) -> Result<(), String> {
        for node in &seen.nodes {
            let version = node.disk.version();
            let (known_version, end) = self.looked_at.get(&node.id).copied().unwrap_or_default();
            if version == known_version {
                continue;
            }
            let logged = node.logged(end.saturating_sub(LOOKED_AT_AGAIN));
            let mut before = None;
            for entry in &logged.entries {
                let content = (entry.checksum, before);
                let first = *self.known.entry((entry.index, entry.term)).or_insert(content);
                let same_before = first.1.is_none() || before.is_none() || first.1 == before;
                if first.0 != entry.checksum || !same_before {
                    return Err(format!("node {} has another entry {} of term {}", node.id, entry.index, entry.term));
                }
                before = Some(entry.term);
            }
            let end = logged.entries.last().map_or(0, |entry| entry.index);
            self.looked_at.insert(node.id, (version, end));
        }
        Ok(())
    }
}
