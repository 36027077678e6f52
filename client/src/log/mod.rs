//! The client of the reference data plane.

mod consumer;
mod partitioner;
mod producer;

pub use consumer::{ConsumedRecord, Consumer, ConsumerOptions, Partition, Reset, Start};
pub use partitioner::partition_of_key;
pub use producer::{Acknowledged, Acks, Delivery, ProducedRecord, Producer, ProducerOptions};
