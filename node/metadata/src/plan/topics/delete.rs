//! Deleting topics. Nothing waits for the brokers: a topic re-created under the name has another id.

use std::collections::BTreeMap;

use super::{named_twice, topic_named};
use crate::config::{self, DELETE_TOPIC};
use crate::error::{ApiError, ErrorName};
use crate::ids::TopicId;
use crate::image::MetadataImage;
use crate::limits;
use crate::plan::Plan;
use crate::record::Record;

/// A topic as a request names it.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum TopicRef {
    Name(String),
    Id(TopicId),
}

impl TopicRef {
    /// From a message that has a field for each: exactly one must be set.
    pub fn from_parts(name: Option<String>, id: Option<TopicId>) -> Result<Self, ApiError> {
        match (name, id) {
            (Some(name), None) => Ok(Self::Name(name)),
            (None, Some(id)) => Ok(Self::Id(id)),
            (Some(name), Some(id)) => {
                let message = format!("a topic is named by name ({name:?}) or by id ({id}), not by both");
                Err(ApiError::new(ErrorName::InvalidRequest, message))
            }
            (None, None) => Err(ApiError::new(ErrorName::InvalidRequest, "a topic needs a name or an id")),
        }
    }

    fn resolve(&self, image: &MetadataImage) -> Result<TopicId, ApiError> {
        match self {
            Self::Name(name) => topic_named(image, name).map(|topic| topic.id),
            Self::Id(id) if image.topic(*id).is_some() => Ok(*id),
            Self::Id(id) => Err(ApiError::new(ErrorName::UnknownTopicId, format!("no topic has the id {id}"))),
        }
    }
}

impl std::fmt::Display for TopicRef {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Name(name) => f.write_str(name),
            Self::Id(id) => id.fmt(f),
        }
    }
}

/// Deletes topics, with their partitions and configs. A topic named more than once, be it by name and by id, is
/// deleted not at all.
pub fn delete_topics(image: &MetadataImage, topics: &[TopicRef]) -> Plan<Vec<Result<TopicId, ApiError>>> {
    let mut times_named: BTreeMap<TopicRef, usize> = BTreeMap::new();
    // What cannot be resolved counts as itself.
    let identity = |topic: &TopicRef| topic.resolve(image).map_or_else(|_| topic.clone(), TopicRef::Id);
    for topic in topics {
        *times_named.entry(identity(topic)).or_default() += 1;
    }
    let enabled = config::is_enabled(image, DELETE_TOPIC);
    let (asked, max) = (topics.len(), limits::TOPICS_DELETED_PER_REQUEST_MAX);
    let delete = |topic: &TopicRef| {
        if asked > max {
            let message = format!("the request deletes {asked} topics, one request may delete {max}");
            return Err(ApiError::new(ErrorName::PolicyViolation, message));
        }
        if times_named[&identity(topic)] > 1 {
            return Err(named_twice(&topic.to_string()));
        }
        let id = topic.resolve(image)?;
        if !enabled {
            let message = format!("{DELETE_TOPIC} is false: no topic can be deleted");
            return Err(ApiError::new(ErrorName::TopicDeletionDisabled, message));
        }
        Ok(id)
    };
    let answers: Vec<Result<TopicId, ApiError>> = topics.iter().map(delete).collect();
    let records = answers.iter().flatten().map(|&topic| Record::RemoveTopic { topic }).collect();
    let all_refused = !answers.is_empty() && answers.iter().all(Result::is_err);
    Plan::of_items(records, answers, all_refused)
}
