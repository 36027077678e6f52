//! The topics that were removed last: proof that replicas of them may be deleted.
//!
//! A broker that finds replicas of a topic that the metadata does not know cannot tell whether the topic was deleted, or
//! whether the metadata is that of another cluster, or has lost it. Only of a topic that is remembered here it is known.

use imbl::OrdMap;

use super::canonical::Entity;
use super::digest::Digest;
use crate::ids::{Offset, TopicId};
use crate::limits;
use crate::record::Record;

/// Bounded: the one that was removed first is forgotten first.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct RemovedTopics {
    topics: OrdMap<TopicId, Offset>,
    by_offset: OrdMap<Offset, TopicId>,
}

impl RemovedTopics {
    pub fn contains(&self, topic: TopicId) -> bool {
        self.topics.contains_key(&topic)
    }

    /// Those that were removed at `offset` or later.
    pub fn since(&self, offset: Offset) -> impl Iterator<Item = TopicId> {
        self.by_offset.range(offset..).map(|(_, &topic)| topic)
    }

    pub fn len(&self) -> usize {
        self.topics.len()
    }

    pub fn is_empty(&self) -> bool {
        self.topics.is_empty()
    }

    pub(super) fn insert(&mut self, digest: &mut Digest, topic: TopicId, offset: Offset) {
        self.forget(digest, topic);
        self.topics.insert(topic, offset);
        self.by_offset.insert(offset, topic);
        digest.add(Entity::RemovedTopic { id: topic, offset });
        if self.len() > limits::REMOVED_TOPICS_KEPT
            && let Some(&first) = self.by_offset.get_min().map(|(_, topic)| topic)
        {
            self.forget(digest, first);
        }
    }

    fn forget(&mut self, digest: &mut Digest, topic: TopicId) {
        let Some(offset) = self.topics.remove(&topic) else { return };
        self.by_offset.remove(&offset);
        digest.remove(Entity::RemovedTopic { id: topic, offset });
    }

    pub(super) fn entities(&self) -> impl Iterator<Item = Entity<'_>> {
        self.topics.iter().map(|(&id, &offset)| Entity::RemovedTopic { id, offset })
    }

    pub(super) fn into_records(self) -> impl Iterator<Item = Record> {
        self.by_offset.into_iter().map(|(offset, topic)| Record::RemovedTopic { topic, offset })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::image::fixture::{batch, feature, image, topic};
    use crate::image::{METADATA_VERSION, MetadataImage};

    #[test]
    fn a_removed_topic_is_remembered_from_its_level_on() {
        for (level, is_remembered) in [(2, false), (3, true)] {
            let mut image = image();
            let remove = Record::RemoveTopic { topic: topic(1) };
            image.replay(&batch(2, &[feature(METADATA_VERSION, level), remove])).expect("the topic exists");
            assert_eq!(image.removed_topics.contains(topic(1)), is_remembered);
            let restored = MetadataImage::from_snapshot(image.header(), image.to_records());
            assert_eq!(restored.as_ref(), Ok(&image));
        }
    }

    #[test]
    fn the_first_are_forgotten_first() {
        let (mut removed, mut digest) = (RemovedTopics::default(), Digest::default());
        let id = |at: usize| TopicId::from_bytes((at as u128).to_be_bytes());
        let offset = |at: usize| Offset::default().advance(at);
        for at in 1..=limits::REMOVED_TOPICS_KEPT + 2 {
            removed.insert(&mut digest, id(at), offset(at));
        }
        assert_eq!(removed.len(), limits::REMOVED_TOPICS_KEPT);
        assert!(!removed.contains(id(2)) && removed.contains(id(3)));
        let last: Vec<_> = removed.since(offset(limits::REMOVED_TOPICS_KEPT + 1)).collect();
        assert_eq!(last, [1, 2].map(|at| id(limits::REMOVED_TOPICS_KEPT + at)));
        let mut expected = Digest::default();
        removed.entities().for_each(|entity| expected.add(entity));
        assert_eq!(digest, expected);
    }
}
