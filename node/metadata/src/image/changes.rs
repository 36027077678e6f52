//! The partitions in which two images differ.
//!
//! Images share what did not change, and the walk skips what is shared: it costs the topics and the chunks of partitions
//! that were written, not what there is. An agent, or a shard of a broker, that follows the metadata pays for the change.

use std::sync::Arc;

use imbl::Vector;
use imbl::ordmap::DiffItem;
use imbl::shared_ptr::DefaultSharedPtr;
use imbl::vector::Focus;

use super::MetadataImage;
use crate::ids::{PartitionId, TopicId, TopicPartition};
use crate::record::Partition;

/// A partition in two images; the two states are never equal.
#[derive(Debug, Clone, Copy)]
pub struct ChangedPartition<'a> {
    pub id: TopicPartition,
    pub before: Option<&'a Arc<Partition>>,
    pub after: Option<&'a Arc<Partition>>,
}

impl MetadataImage {
    /// Calls `visit` for each partition that is not the same in `before`, in the order of the ids.
    pub fn visit_changed_partitions(&self, before: &Self, mut visit: impl FnMut(ChangedPartition<'_>)) {
        let none = Vector::new();
        for item in before.topics.diff(&self.topics) {
            let (topic, before, after) = match item {
                DiffItem::Add(id, topic) => (*id, &none, &topic.partitions),
                DiffItem::Remove(id, topic) => (*id, &topic.partitions, &none),
                DiffItem::Update { old: (_, old), new: (id, new) } => (*id, &old.partitions, &new.partitions),
            };
            visit_topic(topic, before, after, &mut visit);
        }
    }
}

fn visit_topic(
    topic: TopicId,
    before: &Vector<Arc<Partition>>,
    after: &Vector<Arc<Partition>>,
    visit: &mut impl FnMut(ChangedPartition<'_>),
) {
    let (mut old, mut new) = (before.focus(), after.focus());
    let length = before.len().max(after.len());
    let mut at = 0;
    while at < length {
        let (old, new) = (chunk_from(&mut old, at), chunk_from(&mut new, at));
        let common = if old.is_empty() || new.is_empty() { old.len() + new.len() } else { old.len().min(new.len()) };
        if !std::ptr::eq(old.as_ptr(), new.as_ptr()) {
            for offset in 0..common {
                let (before, after) = (old.get(offset), new.get(offset));
                if before != after {
                    visit(ChangedPartition { id: id_at(topic, at + offset), before, after });
                }
            }
        }
        at += common;
    }
}

/// The rest of the chunk that has the position `at`; nothing beyond the end.
fn chunk_from<'a>(focus: &'a mut Focus<'_, Arc<Partition>, DefaultSharedPtr>, at: usize) -> &'a [Arc<Partition>] {
    if at >= focus.len() {
        return &[];
    }
    let (range, chunk) = focus.chunk_at(at);
    &chunk[at - range.start..]
}

fn id_at(topic: TopicId, position: usize) -> TopicPartition {
    let partition = i32::try_from(position).expect("a topic has far fewer partitions");
    TopicPartition::new(topic, PartitionId::new(partition))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;
    use crate::image::fixture::{batch, broker, change, create_partition, topic};
    use crate::record::{Kind, Record};
    use crate::rng::Rng;

    fn replay(image: &mut MetadataImage, records: &[Record]) {
        image.replay(&batch(1, records)).expect("the records of this test replay");
    }

    fn create_topic(image: &mut MetadataImage, number: u128, partitions: i32) {
        let mut records =
            vec![Record::CreateTopic { topic: topic(number), name: format!("topic-{number}"), kind: Kind::LOG }];
        records.extend((0..partitions).map(|partition| create_partition(topic(number), partition, &[1, 2])));
        replay(image, &records);
    }

    fn move_leader(image: &mut MetadataImage, id: TopicPartition, to: i32) {
        let mut change = change(id);
        change.leader = Some(Some(broker(to)));
        replay(image, &[Record::PartitionChange(change)]);
    }

    fn visited(image: &MetadataImage, before: &MetadataImage) -> Vec<TopicPartition> {
        let mut ids = Vec::new();
        image.visit_changed_partitions(before, |changed| {
            assert_eq!(changed.before, before.partition(changed.id));
            assert_eq!(changed.after, image.partition(changed.id));
            ids.push(changed.id);
        });
        ids
    }

    #[test]
    fn one_changed_partition_among_many_is_the_only_one_visited() {
        let mut image = crate::image::fixture::image();
        (10..1_010).for_each(|number| create_topic(&mut image, number, 1));
        create_topic(&mut image, 2_000, 1_000);
        for id in [id_at(topic(500), 0), id_at(topic(2_000), 777)] {
            let before = image.clone();
            move_leader(&mut image, id, 2);
            assert_eq!(visited(&image, &before), [id]);
        }
    }

    #[test]
    fn partitions_of_a_new_and_of_a_removed_topic_are_visited() {
        let before = crate::image::fixture::image();
        let mut image = before.clone();
        create_topic(&mut image, 10, 200);
        let all: Vec<_> = (0..200).map(|partition| id_at(topic(10), partition)).collect();
        assert_eq!(visited(&image, &before), all);
        assert_eq!(visited(&before, &image), all);
    }

    #[test]
    fn an_equal_image_from_a_snapshot_differs_in_nothing() {
        let mut image = crate::image::fixture::image();
        create_topic(&mut image, 10, 100);
        let again = MetadataImage::from_snapshot(image.header(), image.to_records()).expect("a whole snapshot");
        assert!(visited(&again, &image).is_empty());
    }

    #[test]
    fn the_walk_finds_what_a_full_comparison_finds() {
        for seed in 0..20 {
            let mut random = Rng::new(seed);
            let mut image = crate::image::fixture::image();
            (10..14).for_each(|number| create_topic(&mut image, number, 1 + random.below(300) as i32));
            let before = image.clone();
            for _ in 0..random.below(20) {
                let number = 10 + random.below(4) as u128;
                let count = image.topic(topic(number)).expect("it was created").partitions.len();
                let grown = i32::try_from(count).expect("a few hundred");
                match random.below(4) {
                    0 => replay(&mut image, &[create_partition(topic(number), grown, &[1, 2])]),
                    _ => move_leader(&mut image, id_at(topic(number), random.below(count)), 2),
                }
            }
            let both: BTreeSet<_> = before.partitions().chain(image.partitions()).map(|(id, _)| id).collect();
            let expected: Vec<_> =
                both.into_iter().filter(|id| before.partition(*id) != image.partition(*id)).collect();
            assert_eq!(visited(&image, &before), expected, "seed {seed}");
        }
    }
}
