//! P5: a fenced broker leads nothing and is in no ISR.

use super::Invariant;
use crate::observe::{Images, Seen};

#[derive(Default)]
pub struct FencedBrokersLeadNothing {
    images: Images,
}

impl Invariant for FencedBrokersLeadNothing {
    fn name(&self) -> &'static str {
        "fenced brokers lead nothing"
    }

    fn check(&mut self, seen: &Seen) -> Result<(), String> {
        let Some(image) = self.images.next(seen) else { return Ok(()) };
        let fenced = image.brokers.values().filter(|broker| broker.fenced);
        for broker in fenced.map(|broker| broker.broker) {
            let sits = |partition: &quorate_metadata::record::Partition| {
                partition.leader == Some(broker) || partition.isr.contains(&broker)
            };
            if let Some((id, _)) = image.partitions().find(|(_, partition)| sits(partition)) {
                return Err(format!("broker {broker} is fenced, and has a seat in {id}"));
            }
        }
        Ok(())
    }
}
