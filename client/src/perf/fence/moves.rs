//! The partitions that wait for another leader, and when they got one.

use std::collections::HashMap;

use quorate_metadata::Record;
use quorate_metadata::ids::{BrokerId, TopicId};
use quorate_proto::record;
use tokio::time::Instant;

use crate::perf::{PerfError, Target};
use crate::{Event, Freshness, Watch, WatchFilter};

pub(super) struct Moves {
    feed: Watch,
    seen: Seen,
}

/// What the feed has shown so far.
struct Seen {
    victim: BrokerId,
    /// By topic, by partition number: whether it still waits.
    waiting: HashMap<TopicId, Vec<bool>>,
    left: usize,
    first: Option<Instant>,
    fenced: Option<Instant>,
}

impl Moves {
    /// Of these topics with so many partitions each, by the feed of the node at `observer`.
    pub async fn watch(
        target: &Target,
        observer: String,
        victim: i32,
        topics: impl IntoIterator<Item = (TopicId, usize)>,
    ) -> Result<Self, PerfError> {
        let observer = Target { bootstrap: vec![observer], ..target.clone() }.client()?;
        let from = Some(observer.describe_quorum(Freshness::Stale).await?.metadata_offset);
        let kinds = vec!["PartitionChange".to_owned(), "FenceBroker".to_owned()];
        let mut feed = observer.watch(WatchFilter { from, kinds, ..WatchFilter::default() });
        feed.open().await?;
        Ok(Self { feed, seen: Seen::new(victim, topics) })
    }

    /// Waits until each has another leader.
    pub async fn all_moved(&mut self) -> Result<(), PerfError> {
        self.read_until(|seen| seen.left == 0).await
    }

    /// Waits for the record that completes the fencing.
    pub async fn fenced(&mut self) -> Result<(), PerfError> {
        self.read_until(|seen| seen.fenced.is_some()).await
    }

    /// How many still wait.
    pub fn left(&self) -> usize {
        self.seen.left
    }

    /// When the first of them got another leader.
    pub fn first_moved_at(&self) -> Option<Instant> {
        self.seen.first
    }

    async fn read_until(&mut self, is_enough: impl Fn(&Seen) -> bool) -> Result<(), PerfError> {
        while !is_enough(&self.seen) {
            let Event::Records(records) = self.feed.next().await? else { continue };
            for committed in records.records {
                let record = record::from_wire(committed.record.unwrap_or_default())
                    .map_err(|error| PerfError::cluster(format!("record {}: {error}", committed.offset)))?;
                self.seen.see(&record);
            }
        }
        Ok(())
    }
}

impl Seen {
    fn new(victim: i32, topics: impl IntoIterator<Item = (TopicId, usize)>) -> Self {
        let waiting: HashMap<TopicId, Vec<bool>> =
            topics.into_iter().map(|(topic, partitions)| (topic, vec![true; partitions])).collect();
        let left = waiting.values().map(Vec::len).sum();
        Self { victim: BrokerId::new(victim), waiting, left, first: None, fenced: None }
    }

    fn see(&mut self, record: &Record) {
        match record {
            Record::PartitionChange(change) if change.leader.flatten().is_some_and(|leader| leader != self.victim) => {
                let number = usize::try_from(change.id.partition.get()).ok();
                let partitions = self.waiting.get_mut(&change.id.topic);
                if let Some(waits) = partitions.zip(number).and_then(|(waiting, number)| waiting.get_mut(number))
                    && std::mem::take(waits)
                {
                    self.left -= 1;
                    self.first.get_or_insert_with(Instant::now);
                }
            }
            Record::FenceBroker { broker, .. } if *broker == self.victim => self.fenced = Some(Instant::now()),
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use quorate_metadata::ids::{BrokerEpoch, PartitionId, TopicPartition};
    use quorate_metadata::record::{Cause, PartitionChange};

    use super::*;

    fn led_by(partition: i32, leader: Option<i32>) -> Record {
        let id = TopicPartition::new(TopicId::default(), PartitionId::new(partition));
        let change = PartitionChange::none(id, Cause::BrokerFenced(BrokerId::new(7)));
        Record::PartitionChange(PartitionChange { leader: Some(leader.map(BrokerId::new)), ..change })
    }

    #[test]
    fn only_another_leader_counts_and_once() {
        let mut seen = Seen::new(7, [(TopicId::default(), 2)]);
        for change in [led_by(0, None), led_by(0, Some(7)), led_by(9, Some(1))] {
            seen.see(&change);
        }
        assert_eq!((seen.left, seen.first), (2, None));
        seen.see(&led_by(0, Some(1)));
        seen.see(&led_by(0, Some(2)));
        assert_eq!(seen.left, 1);
        assert!(seen.first.is_some() && seen.fenced.is_none());
        seen.see(&Record::FenceBroker { broker: BrokerId::new(7), epoch: BrokerEpoch::new(1) });
        assert!(seen.fenced.is_some());
    }
}
