//! The client of the reference data plane.

mod consumer;
mod partitioner;
mod producer;

use quorate_metadata::record::Kind;
use quorate_metadata::{ApiError, ErrorName};
use quorate_proto::admin::TopicDescription;

pub use consumer::{ConsumedRecord, Consumer, ConsumerOptions, Partition, Reset, Skipped, Start};
pub use partitioner::partition_of_key;
pub use producer::{Acknowledged, Acks, Delivery, ProducedRecord, Producer, ProducerOptions};

/// Refuses a topic whose brokers keep no log. A node of an earlier release states no kind.
fn check_is_log(topic: &TopicDescription) -> Result<(), ApiError> {
    let TopicDescription { name, kind, .. } = topic;
    if kind.is_empty() || kind == Kind::LOG.as_str() {
        return Ok(());
    }
    let message = format!("topic {name:?} is of kind {kind}: only topics of kind {} have records", Kind::LOG);
    Err(ApiError::new(ErrorName::InvalidTopic, message))
}
