//! P7: nodes at one offset hold one image.

use std::collections::BTreeMap;

use quorate_metadata::ids::Offset;

use super::Invariant;
use crate::observe::Seen;

#[derive(Default)]
pub struct OneImagePerOffset {
    digests: BTreeMap<Offset, (u128, i32)>,
}

impl Invariant for OneImagePerOffset {
    fn name(&self) -> &'static str {
        "one image per offset"
    }

    fn check(&mut self, seen: &Seen) -> Result<(), String> {
        for node in &seen.nodes {
            let Some(inside) = &node.inside else { continue };
            let (offset, digest) = (inside.image.next_offset, inside.image.digest());
            let (first, by) = *self.digests.entry(offset).or_insert((digest, node.id));
            if first != digest {
                return Err(format!("nodes {by} and {} differ at offset {offset}", node.id));
            }
        }
        Ok(())
    }
}
