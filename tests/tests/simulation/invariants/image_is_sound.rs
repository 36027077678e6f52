//! The rules of the image itself: every member of ISR and ELR has a replica, no leader is out of sync, nobody has a seat
//! that a broker in its state must not have, indexes and digest are what they are derived from.

use quorate_metadata::ids::Offset;

use super::Invariant;
use crate::observe::Seen;

#[derive(Default)]
pub struct ImageIsSound {
    /// All images up to there were looked at, but those that nobody published.
    checked: Offset,
}

impl Invariant for ImageIsSound {
    fn name(&self) -> &'static str {
        "the image is sound"
    }

    fn check(&mut self, seen: &Seen) -> Result<(), String> {
        let Some(image) = seen.latest().filter(|image| image.next_offset > self.checked) else { return Ok(()) };
        self.checked = image.next_offset;
        match image.verify().first() {
            Some(violation) => Err(format!("at offset {}: {violation}", image.next_offset)),
            None => Ok(()),
        }
    }
}
