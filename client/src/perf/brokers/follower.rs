//! One simulated broker's feed of the metadata, and the ISR changes that it asks for as a leader.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use quorate_metadata::ids::{BrokerId, Offset};
use quorate_proto::broker::{AlterPartitionReply, AlterPartitionRequest};
use quorate_proto::metadata::Record;
use tokio::sync::Notify;
use tokio::time::sleep;

use super::Shared;
use super::partitions::{Addition, Partitions};
use crate::perf::PerfError;
use crate::{AdminClient, Event, Watch, WatchFilter};

/// Changes in one request: about 100 bytes each. One request of a broker is under way at a time.
const CHANGES_PER_REQUEST_MAX: usize = 200;

/// After a failure of the feed, or of a request.
const RETRY_PAUSE: Duration = Duration::from_millis(100);

struct Follower {
    shared: Arc<Shared>,
    broker: i32,
    epoch: i64,
    /// Something was read that may ask for an ISR change.
    changed: Notify,
}

/// For ever. What fails is tried again: a broker outlives its controllers.
pub(super) async fn run(shared: Arc<Shared>, place: usize, broker: i32, epoch: i64) -> Infallible {
    let client = shared.connections.client(place).expect("the fleet has a client of the same addresses");
    let follower = Follower { shared, broker, epoch, changed: Notify::new() };
    tokio::select! {
        never = follower.follow(&client) => never,
        never = follower.ask_for_members(&client) => never,
    }
}

impl Follower {
    async fn follow(&self, client: &AdminClient) -> Infallible {
        let mut from = None;
        loop {
            let filter = WatchFilter { from, broker: Some(self.broker), ..WatchFilter::default() };
            let mut feed = client.watch(filter);
            let Err(error) = self.read(&mut feed).await;
            tracing::debug!(broker = self.broker, %error, "feed over");
            from = feed.next_offset();
            if let PerfError::Client(error) = &error
                && error.needs_resync()
            {
                from = None;
            }
            sleep(RETRY_PAUSE).await;
        }
    }

    async fn read(&self, feed: &mut Watch) -> Result<Infallible, PerfError> {
        loop {
            match feed.next().await? {
                Event::Snapshot(part) => {
                    // The state of a snapshot is that of its last record.
                    let offset = Offset::new(part.next_offset - 1);
                    self.apply(part.records.into_iter().map(|record| (offset, record)))?;
                }
                Event::Records(records) => {
                    let records = records.records.into_iter();
                    let item = |committed: quorate_proto::broker::CommittedRecord| {
                        (Offset::new(committed.offset), committed.record.unwrap_or_default())
                    };
                    self.apply(records.map(item))?;
                }
                Event::Bookmark(_) => {}
            }
            self.changed.notify_one();
        }
    }

    fn apply(&self, records: impl Iterator<Item = (Offset, Record)>) -> Result<(), PerfError> {
        let decode = |(offset, record): (Offset, Record)| {
            let decoded = quorate_proto::record::from_wire(record);
            decoded
                .map(|record| (offset, record))
                .map_err(|error| PerfError::cluster(format!("record {offset}: {error}")))
        };
        let records: Vec<_> = records.map(decode).collect::<Result<_, _>>()?;
        self.with(|partitions| records.into_iter().for_each(|(offset, record)| partitions.apply(offset, record)));
        Ok(())
    }

    /// Members that are missing in partitions that this broker leads, and that are unfenced: a simulated replica has
    /// everything at once.
    async fn ask_for_members(&self, client: &AdminClient) -> Infallible {
        let leader = BrokerId::new(self.broker);
        loop {
            let additions = self.with(|partitions| partitions.take_additions(leader, CHANGES_PER_REQUEST_MAX));
            if additions.is_empty() {
                self.changed.notified().await;
                continue;
            }
            let partitions = additions.iter().map(Addition::to_wire).collect();
            let request = AlterPartitionRequest { broker: self.broker, broker_epoch: self.epoch, partitions };
            let refused = match client.alter_partition(request).await {
                Ok(reply) => refused(additions, &reply),
                Err(error) => {
                    tracing::debug!(broker = self.broker, %error, "no ISR change");
                    additions
                }
            };
            if !refused.is_empty() {
                sleep(RETRY_PAUSE).await;
                self.with(|partitions| partitions.give_back(refused));
            }
        }
    }

    fn with<T>(&self, act: impl FnOnce(&mut Partitions) -> T) -> T {
        act(&mut self.shared.partitions.lock().expect("no one panics while holding the partitions"))
    }
}

/// Those that were not granted, to be looked at again.
fn refused(additions: Vec<Addition>, reply: &AlterPartitionReply) -> Vec<Addition> {
    let errors = reply.partitions.iter().map(|partition| partition.error.is_some());
    additions
        .into_iter()
        .zip(errors.chain(std::iter::repeat(true)))
        .filter(|(_, is_error)| *is_error)
        .map(|(addition, _)| addition)
        .collect()
}
