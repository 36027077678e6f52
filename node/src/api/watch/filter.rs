//! Which records a watcher wants.

use std::collections::BTreeSet;

use quorate_metadata::ids::BrokerId;
use quorate_metadata::image::Audience;
use quorate_metadata::{ApiError, MetadataImage, Record};
use quorate_proto::broker::WatchRequest;

use crate::api::request::invalid;
use crate::feed::RecordView;

#[derive(Debug, Clone, Default)]
pub struct Filter {
    pub broker: Option<BrokerId>,
    /// Empty: all.
    pub kinds: BTreeSet<String>,
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
        Ok(Self { broker: request.broker.map(BrokerId::new), kinds: request.kinds.iter().cloned().collect() })
    }

    pub fn is_whole(&self) -> bool {
        self.broker.is_none() && self.kinds.is_empty()
    }

    /// Whether a record of the feed passes.
    pub fn passes(&self, record: RecordView<'_>) -> bool {
        self.wants_kind(record.kind) && self.broker.is_none_or(|broker| record.concerns(broker))
    }

    /// The records of a snapshot that may pass, made one at a time. Of the partitions it makes those of the broker only.
    pub fn candidates(&self, image: &MetadataImage) -> Box<dyn Iterator<Item = Record> + Send> {
        match self.broker {
            Some(broker) => Box::new(image.to_records_of(broker)),
            None => Box::new(image.to_records()),
        }
    }

    /// Whether a record of a snapshot passes.
    pub fn passes_in_snapshot(&self, record: &Record) -> bool {
        self.wants_kind(record.kind())
            && self.broker.is_none_or(|broker| Audience::in_snapshot(record).includes(broker))
    }

    fn wants_kind(&self, kind: &str) -> bool {
        self.kinds.is_empty() || self.kinds.contains(kind)
    }
}
