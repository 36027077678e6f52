//! The reference data plane: records out of the logs of partitions.

mod consumer;

pub use consumer::{ConsumedRecord, Consumer, ConsumerOptions, Partition, Reset, Start};
