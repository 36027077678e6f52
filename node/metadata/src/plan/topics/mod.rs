//! Topics: creation, more partitions, deletion. Each item of a request is answered by itself; the good ones are
//! proposed together.

mod assignment;
mod create;
mod delete;
mod names;
mod partitions;

use crate::error::{ApiError, ErrorName};
use crate::image::{MetadataImage, Topic};

pub use create::{CreateTopic, CreatedTopic, create_topics};
pub use delete::{TopicRef, delete_topics};
pub(in crate::plan) use partitions::replication_factor;
pub use partitions::{CreatePartitions, create_partitions};

fn topic_named<'a>(image: &'a MetadataImage, name: &str) -> Result<&'a Topic, ApiError> {
    image
        .topic_named(name)
        .map(AsRef::as_ref)
        .ok_or_else(|| ApiError::new(ErrorName::UnknownTopicOrPartition, format!("topic {name:?} does not exist")))
}

fn named_twice(name: &str) -> ApiError {
    ApiError::new(ErrorName::InvalidRequest, format!("topic {name:?} is named more than once in the request"))
}
