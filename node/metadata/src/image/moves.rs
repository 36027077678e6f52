//! What a batch changes of partitions, until the index takes it over.

use std::sync::Arc;

use crate::ids::{TopicId, TopicPartition};
use crate::record::Partition;

/// In the order of the records.
#[derive(Debug, Default)]
pub(super) struct Moves(Vec<Move>);

#[derive(Debug)]
pub(super) struct Move {
    pub id: TopicPartition,
    /// `None` before it is created.
    pub before: Option<Arc<Partition>>,
    /// `None` when it is gone.
    pub after: Option<Arc<Partition>>,
}

impl Moves {
    pub(super) fn len(&self) -> usize {
        self.0.len()
    }

    pub(super) fn add(&mut self, id: TopicPartition, before: Option<Arc<Partition>>, after: Option<Arc<Partition>>) {
        self.0.push(Move { id, before, after });
    }

    /// Each topic once. The changes of a partition keep their order.
    pub(super) fn by_topic(mut self) -> impl Iterator<Item = (TopicId, Vec<Move>)> {
        self.0.sort_by_key(|change| change.id.topic);
        let mut rest = self.0.into_iter().peekable();
        std::iter::from_fn(move || {
            let topic = rest.peek()?.id.topic;
            let of_topic = std::iter::from_fn(|| rest.next_if(|change| change.id.topic == topic)).collect();
            Some((topic, of_topic))
        })
    }
}
