//! A broker's epoch grows with every registration, and no node ever says otherwise.

use std::collections::BTreeMap;

use quorate_metadata::ids::{BrokerEpoch, BrokerId};

use super::Invariant;
use crate::observe::{Images, Seen};

#[derive(Default)]
pub struct BrokerEpochsGrow {
    images: Images,
    last: BTreeMap<BrokerId, BrokerEpoch>,
}

impl Invariant for BrokerEpochsGrow {
    fn name(&self) -> &'static str {
        "broker epochs grow"
    }

    fn check(&mut self, seen: &Seen) -> Result<(), String> {
        let Some(image) = self.images.next(seen) else { return Ok(()) };
        for (id, registration) in &image.brokers {
            let before = self.last.insert(*id, registration.epoch).unwrap_or(registration.epoch);
            if registration.epoch < before {
                return Err(format!("broker {id} went from epoch {before} back to {}", registration.epoch));
            }
        }
        Ok(())
    }
}
