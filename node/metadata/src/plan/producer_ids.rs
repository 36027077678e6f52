//! Producer ids, in blocks: a broker gives them to producers one by one, and asks for more when they are used up.

use std::ops::Range;

use crate::error::{ApiError, ErrorName};
use crate::ids::{BrokerEpoch, BrokerId};
use crate::image::MetadataImage;
use crate::plan::Plan;
use crate::plan::heartbeat::sender;
use crate::record::Record;

/// Kafka's block: a broker that restarts loses what is left of it.
pub const PRODUCER_ID_BLOCK: i64 = 1_000;

/// A block that nobody else has been or will be given.
pub fn allocate(image: &MetadataImage, broker: BrokerId, epoch: BrokerEpoch) -> Result<Plan<Range<i64>>, ApiError> {
    sender(image, broker, epoch)?;
    let first = image.next_producer_id;
    let next = first
        .checked_add(PRODUCER_ID_BLOCK)
        .ok_or_else(|| ApiError::new(ErrorName::PolicyViolation, "all producer ids have been given away"))?;
    Ok(Plan::new(vec![Record::ProducerIds { next }], first..next))
}
