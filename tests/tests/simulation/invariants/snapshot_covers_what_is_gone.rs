//! KRaft's SnapshotAtLogStart: where a log does not begin with its first entry, a snapshot has what is missing.

use super::Invariant;
use crate::observe::Seen;

#[derive(Default)]
pub struct SnapshotCoversWhatIsGone;

impl Invariant for SnapshotCoversWhatIsGone {
    fn name(&self) -> &'static str {
        "a snapshot covers what is gone"
    }

    fn check(&mut self, seen: &Seen) -> Result<(), String> {
        for node in &seen.nodes {
            let Some(inside) = &node.inside else { continue };
            // Nothing is read but where the log begins.
            let first = i64::try_from(node.logged(u64::MAX).first).unwrap_or(i64::MAX);
            // The very first entry may have any index.
            if first > 1 && inside.quorum.snapshot + 1 < first {
                let snapshot = inside.quorum.snapshot;
                return Err(format!("node {} begins with entry {first}, its snapshot ends with {snapshot}", node.id));
            }
        }
        Ok(())
    }
}
