//! The feed: followed for a while, broken off, and resumed at any node, now and then from further back.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use anyhow::ensure;
use quorate_client::{ClientError, Freshness};
use quorate_metadata::config;
use quorate_metadata::ids::{BrokerId, ControllerEpoch, Offset, TopicPartition};
use quorate_metadata::image::{LEVEL_HIGHEST, Ledger, SnapshotHeader};
use quorate_metadata::record::Cause;
use quorate_metadata::{ApiError, Batch, ErrorName, MetadataImage, Record};
use quorate_proto::broker::watch_event::Event;
use quorate_proto::broker::{CommittedRecords, SnapshotPart, WatchRequest};
use quorate_proto::record::from_wire;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, timeout_at};

use super::direct::ask;
use super::{Context, WorkloadName};
use crate::generator::Asker;
use crate::op::{Election, Heard, Op};

const WATCHERS: u32 = 3;
const PACE: Duration = Duration::from_millis(100);

/// Of one stream, before it is broken off.
const STREAM_MS: (u64, u64) = (50, 1_500);

/// The last stream of a node, which tells everything.
const LAST_STREAM: Duration = Duration::from_millis(300);

/// Within that a node that stood still for a moment has told everything after all.
const WHOLE_SURELY: Duration = Duration::from_secs(20);

pub fn start(context: &Context, tasks: &mut JoinSet<()>) {
    for number in 0..WATCHERS {
        tasks.spawn(ask_on(context.clone(), context.asker(WorkloadName::WatchDelta, number, PACE)));
    }
}

async fn ask_on(context: Context, mut asker: Asker) {
    let mut images = Images::default();
    while asker.turn().await {
        let node = context.any(&mut asker.random);
        let lasts = Duration::from_millis(asker.random.between(STREAM_MS.0, STREAM_MS.1));
        match asker.random.below(10) {
            // As one that has lost what it knew.
            0 => images = Images::default(),
            // As one that was restored from an older copy.
            1..3 => images.go_back(),
            _ => {}
        }
        listen(&context, &mut images, asker.process, node, lasts).await;
    }
}

/// What the node tells within the time.
async fn listen(context: &Context, images: &mut Images, process: u32, node: usize, lasts: Duration) {
    let (id, address) = &context.nodes[node];
    let from = images.now.as_ref().map(|image| image.working().next_offset.get());
    let asked = Op::Watch { node: *id, from, heard: None };
    let call = async {
        let request =
            WatchRequest { from_offset: from, max_level: Some(LEVEL_HIGHEST.into()), ..WatchRequest::default() };
        let mut feed = ask(context.broker(address).watch(request)).await?;
        let deadline = Instant::now() + lasts;
        let (mut heard, mut parts) = (Vec::new(), Vec::new());
        while let Ok(Ok(Some(event))) = timeout_at(deadline, feed.message()).await {
            heard.extend(images.take(event.event, &mut parts)?);
        }
        Ok(Op::Watch { node: *id, from, heard: Some(heard) })
    };
    let done = context.recorder.record(WorkloadName::WatchDelta, process, asked, call).await;
    if done.error.as_deref() == Some("RESYNC_REQUIRED") {
        *images = Images::default();
    }
}

/// What a watcher knows, and what it knew some time ago.
#[derive(Default)]
struct Images {
    now: Option<Ledger>,
    before: Option<Ledger>,
}

impl Images {
    fn go_back(&mut self) {
        std::mem::swap(&mut self.now, &mut self.before);
        self.before = self.now.clone();
    }

    /// What does not replay is an error of its own name, which the checker knows. `parts`: what the same stream has told
    /// of a snapshot that is not yet whole.
    fn take(&mut self, event: Option<Event>, parts: &mut Vec<Record>) -> Result<Option<Heard>, ClientError> {
        let broken = |reason: String| ClientError::Unknown(ApiError::new(ErrorName::CorruptMessage, reason));
        match event {
            Some(Event::Snapshot(part)) => self.take_snapshot(part, parts).map_err(broken),
            Some(Event::Records(records)) => self.take_records(records).map(Some).map_err(broken),
            Some(Event::Bookmark(_)) | None => Ok(None),
        }
    }

    fn take_snapshot(&mut self, part: SnapshotPart, parts: &mut Vec<Record>) -> Result<Option<Heard>, String> {
        for record in part.records {
            parts.push(from_wire(record).map_err(|error| error.to_string())?);
        }
        if !part.last {
            return Ok(None);
        }
        let digest = part.digest.as_slice().try_into().map_err(|_| "a digest of another length")?;
        let header = SnapshotHeader {
            next_offset: Offset::new(part.next_offset),
            controller_epoch: ControllerEpoch::new(part.controller_epoch),
            timestamp_ms: part.time_ms,
            digest: u128::from_be_bytes(digest),
        };
        let image = MetadataImage::from_snapshot(header, std::mem::take(parts)).map_err(|e| e.to_string())?;
        let digest = format!("{:032x}", image.digest());
        self.now = Some(Ledger::new(image));
        Ok(Some(Heard { first: None, next: part.next_offset, checksum: 0, digest, elections: Vec::new() }))
    }

    fn take_records(&mut self, committed: CommittedRecords) -> Result<Heard, String> {
        if self.before.is_none() || committed.next_offset % 64 == 0 {
            self.before = self.now.clone();
        }
        let ledger = self.now.as_mut().ok_or("records before a snapshot")?;
        let (first, next) = (committed.records.first().map(|record| record.offset), committed.next_offset);
        let mut records = Vec::new();
        for record in committed.records {
            let record = record.record.ok_or("a committed record without a record")?;
            records.push(from_wire(record).map_err(|error| error.to_string())?);
        }
        // Not of the bytes: on the wire a map has no order.
        let checksum = crc32fast::hash(format!("{records:?}").as_bytes());
        let batch = Batch {
            controller_epoch: ControllerEpoch::new(committed.controller_epoch),
            timestamp_ms: committed.time_ms,
            records,
        };
        let before = ledger.working().clone();
        let replayed = ledger.replay(&batch).map_err(|error| error.to_string())?;
        if replayed.next_offset.get() != next {
            return Err(format!("a batch up to {next} ends at {}", replayed.next_offset));
        }
        let elections = elections(&batch.records, &before, ledger.working());
        let digest = format!("{:032x}", ledger.visible().digest());
        Ok(Heard { first, next, checksum, digest, elections })
    }
}

/// Who was elected, and whether it was in sync just before.
fn elections(records: &[Record], before: &MetadataImage, after: &MetadataImage) -> Vec<Election> {
    let mut in_sync: BTreeMap<TopicPartition, BTreeSet<BrokerId>> = BTreeMap::new();
    // Of several in one batch the last one stays, and answers for all.
    let mut elections: BTreeMap<TopicPartition, Election> = BTreeMap::new();
    for record in records {
        let Record::PartitionChange(change) = record else { continue };
        let (Some(known), Some(now)) = (before.partition(change.id), after.partition(change.id)) else { continue };
        let eligible =
            in_sync.entry(change.id).or_insert_with(|| known.isr.iter().chain(known.elr()).copied().collect());
        // A leader vouches for those whom it lets in; where that ends a reassignment, it may itself go.
        if matches!(change.cause, Cause::AlterPartition(_) | Cause::Reassignment) {
            eligible.extend(change.isr.iter().flatten());
        }
        if let Some(leader) = change.leader.flatten() {
            let (partition, epoch) = (change.id.to_string(), now.leader_epoch.get());
            let earlier = elections.get(&change.id).is_none_or(|earlier| earlier.was_eligible);
            let (was_eligible, unclean) = (earlier && eligible.contains(&leader), change.unclean);
            let (leader, cause) = (leader.get(), change.cause.name().to_owned());
            let topic = before.topic(change.id.topic);
            let unclean_allowed = topic.is_some_and(|topic| config::unclean_allowed(before, &topic.name));
            let election = Election { partition, leader, epoch, cause, was_eligible, unclean, unclean_allowed };
            elections.insert(change.id, election);
        }
        if let Some(isr) = &change.isr {
            let elr = change.elr.as_deref().unwrap_or(known.elr());
            *eligible = isr.iter().chain(elr).copied().collect();
        }
    }
    elections.into_values().collect()
}

/// Every node tells everything once more.
pub async fn finish(context: &Context) -> anyhow::Result<()> {
    let process = context.asker(WorkloadName::WatchDelta, WATCHERS, PACE).process;
    for (node, (id, _)) in context.nodes.iter().enumerate() {
        let until = Instant::now() + WHOLE_SURELY;
        while !tells_all(context, process, node).await {
            ensure!(Instant::now() < until, "node {id} gives no snapshot at the end");
            sleep(PACE).await;
        }
        context.patient_client_of(node).describe_quorum(Freshness::Linearizable).await?;
    }
    Ok(())
}

/// Whether the node has told a whole snapshot within its time.
async fn tells_all(context: &Context, process: u32, node: usize) -> bool {
    let mut images = Images::default();
    listen(context, &mut images, process, node, LAST_STREAM).await;
    images.now.is_some()
}
