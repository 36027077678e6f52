//! Election safety (Raft, section 5.2; KRaft's SingleLeader): an epoch has one active controller.

use std::collections::BTreeMap;

use quorate_metadata::ids::ControllerEpoch;

use super::Invariant;
use crate::observe::Seen;

#[derive(Default)]
pub struct OneControllerPerEpoch {
    controllers: BTreeMap<ControllerEpoch, i32>,
}

impl Invariant for OneControllerPerEpoch {
    fn name(&self) -> &'static str {
        "one controller per epoch"
    }

    fn check(&mut self, seen: &Seen) -> Result<(), String> {
        for node in seen.nodes.iter().filter(|node| node.is_controller()) {
            let Some(inside) = &node.inside else { continue };
            let first = *self.controllers.entry(inside.quorum.epoch).or_insert(node.id);
            if first != node.id {
                return Err(format!("{first} and {} both lead in epoch {}", node.id, inside.quorum.epoch));
            }
        }
        Ok(())
    }
}
