//! KRaft's MonotonicEpoch and MonotonicHighWatermark: while a process lives, its epoch, what it knows to be committed and
//! what it has replayed do not go back.

use std::collections::BTreeMap;

use super::Invariant;
use crate::observe::Seen;

/// Epoch, replayed log, metadata offset.
type Progress = (i64, i64, i64);

#[derive(Default)]
pub struct EpochsNeverFall {
    progress: BTreeMap<(i32, u32), Progress>,
}

impl Invariant for EpochsNeverFall {
    fn name(&self) -> &'static str {
        "epochs never fall"
    }

    fn check(&mut self, seen: &Seen) -> Result<(), String> {
        for node in &seen.nodes {
            let Some(inside) = &node.inside else { continue };
            let (quorum, offset) = (&inside.quorum, inside.image.next_offset.get());
            let now = (i64::from(quorum.epoch.get()), quorum.applied, offset);
            let before = self.progress.insert((node.id, node.incarnation), now).unwrap_or(now);
            if now.0 < before.0 || now.1 < before.1 || now.2 < before.2 {
                return Err(format!("node {} went from {before:?} back to {now:?}", node.id));
            }
        }
        Ok(())
    }
}
