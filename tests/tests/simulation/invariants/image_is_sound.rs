//! The rules of the image itself: every member of ISR and ELR has a replica, no leader is out of sync, nobody has a seat
//! that a broker in its state must not have, indexes and digest are what they are derived from.

use super::Invariant;
use crate::observe::{Images, Seen};

#[derive(Default)]
pub struct ImageIsSound {
    images: Images,
}

impl Invariant for ImageIsSound {
    fn name(&self) -> &'static str {
        "the image is sound"
    }

    fn check(&mut self, seen: &Seen) -> Result<(), String> {
        let Some(image) = self.images.next(seen) else { return Ok(()) };
        match image.verify().first() {
            Some(violation) => Err(format!("at offset {}: {violation}", image.next_offset)),
            None => Ok(()),
        }
    }
}
