//! What new metadata means for the replicas: a round finds those that it concerns, at the cost of what has changed, and
//! tells them in slices.

use std::collections::BTreeMap;
use std::ops::RangeInclusive;
use std::time::Duration;

use imbl::ordmap::DiffItem;
use quorate_metadata::MetadataImage;
use quorate_metadata::ids::{PartitionId, TopicId, TopicPartition};
use quorate_metadata::image::Reassignment;
use quorate_metadata::record::ConfigResource;
use tokio::time::Instant;

use super::super::pacing::adding;
use super::super::situation::Situation;
use super::{Round, Shard};

/// Replicas told in one round, of about 5 microseconds each.
const TOLD_PER_ROUND_MAX: usize = 200;

/// What a replica has not acted on yet.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum News {
    Metadata,
    /// The terms of the operation that adds it have changed too: its wait under the old ones is over.
    Terms,
}

/// The replicas that new metadata concerns and that have not been told. Each stands here once, however fast it changes.
#[derive(Default)]
pub struct Untold(BTreeMap<TopicPartition, News>);

impl Untold {
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    fn add(&mut self, id: TopicPartition, news: News) {
        let known = self.0.entry(id).or_insert(news);
        *known = news.max(*known);
    }
}

impl Shard {
    /// Brokers and configs change beside the partitions, whose changes of role come as commands.
    pub(super) fn on_metadata(&mut self, image: MetadataImage) {
        let before = std::mem::replace(&mut self.seen, image);
        let Self { seen, owned, untold, .. } = self;
        seen.visit_changed_partitions(&before, |changed| {
            if owned.contains_key(&changed.id) {
                untold.add(changed.id, News::Metadata);
            }
        });
        self.find_by_brokers(&before);
        self.find_by_configs(&before);
        self.find_by_reassignments(&before);
    }

    /// Whether a follower may be in the ISR depends on its broker.
    fn find_by_brokers(&mut self, before: &MetadataImage) {
        for item in before.brokers.diff(&self.seen.brokers) {
            let (DiffItem::Add(broker, _) | DiffItem::Remove(broker, _) | DiffItem::Update { new: (broker, _), .. }) =
                item;
            for id in self.seen.index.hosted_by(*broker).filter(|id| self.owned.contains_key(id)) {
                self.untold.add(id, News::Metadata);
            }
        }
    }

    fn find_by_configs(&mut self, before: &MetadataImage) {
        for item in before.configs.diff(&self.seen.configs) {
            let (DiffItem::Add(resource, _)
            | DiffItem::Remove(resource, _)
            | DiffItem::Update { new: (resource, _), .. }) = item;
            match resource {
                ConfigResource::Topic(name) => {
                    let Some(topic) = self.seen.topic_named(name) else { continue };
                    let concerned = self.owned.range(partitions_of(topic.id));
                    concerned.for_each(|(id, _)| self.untold.add(*id, News::Metadata));
                }
                ConfigResource::Broker(_) | ConfigResource::BrokerDefault => {
                    self.owned.keys().for_each(|id| self.untold.add(*id, News::Metadata));
                }
            }
        }
    }

    /// What an operation has moved shows in the partitions: here only its terms matter.
    fn find_by_reassignments(&mut self, before: &MetadataImage) {
        for item in before.reassignments.diff(&self.seen.reassignments) {
            let operation = match item {
                DiffItem::Add(_, operation) | DiffItem::Remove(_, operation) => operation,
                DiffItem::Update { old: (_, old), new: (_, new) } if has_same_terms(old, new) => continue,
                DiffItem::Update { new: (_, new), .. } => new,
            };
            self.pacing.forgive(operation.id);
            for id in operation.partitions.keys().filter(|id| self.owned.contains_key(*id)) {
                self.untold.add(*id, News::Terms);
            }
        }
    }

    /// Tells a slice of the replicas what the metadata says by now: never less than a change of role has told them.
    pub(super) fn tell_metadata(&mut self, round: &mut Round) {
        if self.untold.is_empty() {
            return;
        }
        let (now_ms, image) = (self.now_ms(), self.around.metadata.borrow().clone());
        for _ in 0..TOLD_PER_ROUND_MAX {
            let Some((id, news)) = self.untold.0.pop_first() else { return };
            let Some(replica) = self.owned.get_mut(&id) else { continue };
            if !replica.leads() {
                self.set_pace(id, news == News::Terms);
            } else if let Some(situation) = Situation::of(&image, self.around.broker, id) {
                replica.on_metadata(&situation, now_ms);
            }
            round.touched.insert(id);
        }
    }

    pub(super) fn next_throttled(&self) -> Option<Instant> {
        let (at_ms, _) = self.throttled.first()?;
        Some(self.started + Duration::from_millis(u64::try_from(*at_ms).unwrap_or(0)))
    }

    pub(super) fn go_on(&mut self, round: &mut Round) {
        let now_ms = self.now_ms();
        while let Some((at_ms, id)) = self.throttled.pop_first() {
            if at_ms > now_ms {
                self.throttled.insert((at_ms, id));
                return;
            }
            round.touched.insert(id);
        }
    }

    /// The replica has fetched so much: where it is throttled it waits before it asks for more.
    pub(super) fn slow_down(&mut self, id: TopicPartition, bytes: usize) {
        let now_ms = self.now_ms();
        let not_before = {
            let image = self.around.metadata.borrow();
            self.pacing.spend(&image, self.around.broker, id, bytes, now_ms)
        };
        if let (Some(replica), Some(at_ms)) = (self.owned.get_mut(&id), not_before) {
            replica.set_pace(|pace| pace.not_before_ms = at_ms);
        }
    }

    /// How the replica may fetch by what the metadata says now. Its wait ends with the throttle that it was for.
    pub(super) fn set_pace(&mut self, id: TopicPartition, is_forgiven: bool) {
        let image = self.around.metadata.borrow();
        let operation = adding(&image, self.around.broker, id);
        let paused = operation.is_some_and(|operation| operation.paused);
        let throttled = operation.is_some_and(|operation| operation.throttle_bytes_per_second.is_some());
        if let Some(replica) = self.owned.get_mut(&id) {
            replica.set_pace(|pace| {
                pace.paused = paused;
                if is_forgiven || !throttled {
                    pace.not_before_ms = 0;
                }
            });
        }
    }
}

fn has_same_terms(old: &Reassignment, new: &Reassignment) -> bool {
    (old.paused, old.throttle_bytes_per_second) == (new.paused, new.throttle_bytes_per_second)
}

fn partitions_of(topic: TopicId) -> RangeInclusive<TopicPartition> {
    let [first, last] = [0, i32::MAX].map(|id| TopicPartition::new(topic, PartitionId::new(id)));
    first..=last
}
