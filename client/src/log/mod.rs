//! The client of the reference data plane.

mod partitioner;
mod producer;

pub use partitioner::partition_of_key;
pub use producer::{Acknowledged, Acks, Delivery, ProducedRecord, Producer, ProducerOptions};
