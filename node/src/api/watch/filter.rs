//! Which records a watcher wants.

use std::collections::BTreeSet;

use quorate_metadata::ids::{BrokerId, TopicId};
use quorate_metadata::image::Audience;
use quorate_metadata::{ApiError, MetadataImage, Record};
use quorate_proto::broker::WatchRequest;

use crate::api::request::{invalid, topic_id};
use crate::feed::RecordView;

const REMEMBERED_REPLY: &str = "RequestApplied";

#[derive(Debug, Clone, Default)]
pub struct Filter {
    pub broker: Option<BrokerId>,
    /// Empty: all.
    pub kinds: BTreeSet<String>,
    /// Empty: all.
    pub topics: BTreeSet<TopicId>,
}

impl Filter {
    pub fn new(request: &WatchRequest) -> Result<Self, ApiError> {
        if let Some(unknown) = request.kinds.iter().find(|kind| !Record::KINDS.contains(&kind.as_str())) {
            return Err(invalid(format!("unknown record type {unknown:?}; there are {}", Record::KINDS.join(", "))));
        }
        if let Some(from) = request.from_offset
            && from < 0
        {
            return Err(invalid(format!("offset {from} is negative")));
        }
        Ok(Self {
            broker: request.broker.map(BrokerId::new),
            kinds: request.kinds.iter().cloned().collect(),
            topics: request.topics.iter().map(|id| topic_id(id)).collect::<Result<_, _>>()?,
        })
    }

    pub fn is_whole(&self) -> bool {
        self.broker.is_none() && self.kinds.is_empty() && self.topics.is_empty()
    }

    /// Whether a record of the feed passes.
    pub fn passes(&self, record: RecordView<'_>) -> bool {
        self.wants_kind(record.kind)
            && record.topic.is_none_or(|topic| self.wants_topic(topic))
            && self.broker.is_none_or(|broker| record.concerns(broker))
    }

    /// The records of a snapshot that may pass, made one at a time. Of the partitions it makes those of the broker only,
    /// and of the topics those that are wanted.
    pub fn candidates(&self, image: &MetadataImage) -> Box<dyn Iterator<Item = Record> + Send> {
        image.to_records_for(self.broker, &self.topics)
    }

    /// Whether one of the candidates passes.
    pub fn passes_in_snapshot(&self, record: &Record) -> bool {
        self.wants_kind(record.kind())
            && self.broker.is_none_or(|broker| Audience::in_snapshot(record).includes(broker))
    }

    fn wants_topic(&self, topic: TopicId) -> bool {
        self.topics.is_empty() || self.topics.contains(&topic)
    }

    /// Remembered replies name any topic: a watcher of some topics gets them only where it names their kind.
    fn wants_kind(&self, kind: &str) -> bool {
        let is_default = self.topics.is_empty() || kind != REMEMBERED_REPLY;
        if self.kinds.is_empty() { is_default } else { self.kinds.contains(kind) }
    }
}
