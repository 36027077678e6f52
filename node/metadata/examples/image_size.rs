//! Measures an image: bytes per partition, and the time of what the event loop and the replay thread do with it.
//!
//! `cargo run --release -p quorate-metadata --example image_size -- [partitions] [brokers] [topics]`
//! builds an image by replaying the records that created it (default: 100 000 partitions of one topic, replication
//! factor 3, 10 brokers with one log directory each) and prints one `name value unit` line per figure. Bytes are those
//! requested from the allocator; `rss` is what the process has grown by, with what the allocator adds.
#![allow(clippy::disallowed_macros, clippy::disallowed_methods, reason = "a measurement prints and reads the clock")]

use std::alloc::System;
use std::collections::BTreeMap;
use std::env::args;
use std::fmt::Display;
use std::fs::read_to_string;
use std::hint::black_box;
use std::time::{Duration, Instant};

use cap::Cap;
use quorate_metadata::ids::{
    BrokerEpoch, BrokerId, ClusterId, ControllerEpoch, DirectoryId, IncarnationId, LeaderEpoch, Offset, PartitionEpoch,
    PartitionId, TopicId, TopicPartition,
};
use quorate_metadata::plan::brokers::{Departure, fence};
use quorate_metadata::record::{
    BrokerRegistration, Cause, Kind, LeaderRecoveryState, PartitionChange, PartitionRegistration, PartitionState, Probe,
};
use quorate_metadata::{Batch, MetadataImage, Record};
use uuid::Uuid;

#[global_allocator]
static ALLOCATOR: Cap<System> = Cap::new(System, usize::MAX);

/// About as many as a batch of `limits::BATCH_BYTES_MAX` holds.
const RECORDS_PER_BATCH: usize = 4_000;

const REPLICATION_FACTOR: usize = 3;

/// A recent time in milliseconds: its size matters where times are encoded.
const NOW_MS: i64 = 1_750_000_000_000;

#[derive(Clone, Copy)]
struct Size {
    partitions: usize,
    brokers: usize,
    topics: usize,
}

fn main() {
    let mut sizes = args().skip(1).map(|size| size.parse().expect("arguments are numbers"));
    let mut next = |default| sizes.next().unwrap_or(default);
    let size = Size { partitions: next(100_000), brokers: next(10).max(REPLICATION_FACTOR), topics: next(1) };
    let image = measure_image(size);
    measure_copies(size, &image);
    measure_fencing(&image);
    measure_removal(size, image);
    measure_index(size);
}

fn measure_image(size: Size) -> MetadataImage {
    let before = ALLOCATOR.allocated();
    let rss = rss_kb();
    let image = timed("build", || build(size));
    per_partition("image", size, ALLOCATOR.allocated() - before);
    show("rss", rss_kb() - rss, "kB");
    image
}

fn measure_copies(size: Size, image: &MetadataImage) {
    let copy = timed("clone", || image.clone());
    let before = ALLOCATOR.allocated();
    let changed = timed("change_a_tenth", || change_each(image.clone(), size, 10));
    per_partition("clone_with_a_tenth_changed", size, ALLOCATOR.allocated() - before);
    timed("drop_clone", || drop((changed, copy)));
    let before = ALLOCATOR.allocated();
    let mut copy = image.clone();
    for _ in 0..3 {
        copy = change_each(copy, size, 1);
    }
    per_partition("clone_with_four_changes_noted", size, ALLOCATOR.allocated() - before);
}

fn measure_fencing(image: &MetadataImage) {
    let plan = timed("plan_step_of_fencing", || fence(image, BrokerId::new(0)).expect("broker 0 is registered"));
    show("records", plan.records.len(), "records");
    let step = batch(plan.records);
    let mut fenced = image.clone();
    timed("replay_step_of_fencing", || fenced.replay(&step).expect("a plan replays"));
    timed("rest_of_fencing", || fence_whole(&mut fenced));
    timed("to_records", || black_box(image.to_records().count()));
    let records: Vec<Record> = image.to_records().collect();
    let restored = timed("from_snapshot", || MetadataImage::from_snapshot(image.header(), records));
    assert_eq!(restored.as_ref(), Ok(image));
    assert_eq!(fenced.index.led_count(BrokerId::new(0)), 0);
    measure_many_fencings(image);
}

/// A twentieth of the brokers is gone at once: their steps take turns.
fn measure_many_fencings(image: &MetadataImage) {
    let mut image = image.clone();
    let gone: Vec<BrokerId> = image.brokers.keys().copied().step_by(20).collect();
    let mut departures: Vec<(BrokerId, Departure)> =
        gone.into_iter().map(|broker| (broker, Departure::default())).collect();
    let (mut count, mut planning) = (0, Duration::ZERO);
    timed("fencing_of_a_twentieth", || {
        while !departures.is_empty() {
            departures.retain_mut(|(broker, departure)| {
                let start = Instant::now();
                let plan = departure.fence(&image, *broker).expect("it is registered");
                planning += start.elapsed();
                count += plan.records.len();
                replay(&mut image, &mut plan.records.clone());
                plan.is_partial
            });
        }
    });
    show("planning_of_it", format!("{:.3}", planning.as_secs_f64() * 1e3), "ms");
    show("records", count, "records");
}

fn fence_whole(image: &mut MetadataImage) {
    let mut departure = Departure::default();
    let mut is_partial = true;
    while is_partial {
        let plan = departure.fence(image, BrokerId::new(0)).expect("broker 0 is registered");
        is_partial = plan.is_partial;
        image.replay(&batch(plan.records)).expect("a plan replays");
    }
}

fn measure_removal(size: Size, mut image: MetadataImage) {
    let held = image.clone();
    let removal = batch((0..size.topics).map(|at| Record::RemoveTopic { topic: topic(at) }).collect());
    timed("remove_topics", || image.replay(&removal).expect("the topics exist"));
    timed("drop_last_copy", || drop(held));
    assert_eq!(image.index.leaderless_count() + image.index.replica_count(BrokerId::new(0)), 0);
}

fn measure_index(size: Size) {
    let before = ALLOCATOR.allocated();
    let image = build(size);
    let index = image.index.clone();
    drop(image);
    per_partition("index", size, ALLOCATOR.allocated() - before);
    drop(index);
}

fn build(size: Size) -> MetadataImage {
    let mut image = MetadataImage::default();
    let mut records: Vec<Record> = Vec::with_capacity(RECORDS_PER_BATCH);
    records.push(Record::ClusterCreated { cluster: ClusterId::from_bytes([1; 16]) });
    records.extend((0..size.brokers).map(register));
    replay(&mut image, &mut records);
    for at in 0..size.topics {
        records.push(Record::CreateTopic { topic: topic(at), name: format!("topic-{at}"), kind: Kind::LOG });
        for id in 0..size.partitions / size.topics {
            records.push(create(size, at, id));
            if records.len() == RECORDS_PER_BATCH {
                replay(&mut image, &mut records);
            }
        }
    }
    replay(&mut image, &mut records);
    image
}

/// Changes one in `step` partitions: the leader and the order of the ISR.
fn change_each(mut image: MetadataImage, size: Size, step: usize) -> MetadataImage {
    let mut records = Vec::with_capacity(RECORDS_PER_BATCH);
    let ids: Vec<TopicPartition> = image.partitions().map(|(id, _)| id).step_by(step).collect();
    for id in ids {
        let replicas = &image.partition(id).expect("it is of the image").replicas;
        let mut change = PartitionChange::none(id, Cause::BrokerFenced(broker(size.brokers - 1)));
        change.leader = Some(Some(replicas[1]));
        change.isr = Some(vec![replicas[1], replicas[2], replicas[0]]);
        records.push(Record::PartitionChange(change));
        if records.len() == RECORDS_PER_BATCH {
            replay(&mut image, &mut records);
        }
    }
    replay(&mut image, &mut records);
    image
}

fn replay(image: &mut MetadataImage, records: &mut Vec<Record>) {
    // A clone is held while a batch is replayed, as by the ledger, so that what is shared is copied.
    let held = image.clone();
    image.replay(&batch(std::mem::take(records))).expect("the records are sound");
    drop(held);
    records.reserve(RECORDS_PER_BATCH);
}

fn batch(records: Vec<Record>) -> Batch {
    Batch { controller_epoch: ControllerEpoch::new(1), timestamp_ms: NOW_MS, records }
}

/// Replicas as striped placement leaves them: consecutive, with a gap that grows with each round of the brokers.
fn create(size: Size, topic_at: usize, id: usize) -> Record {
    let brokers = size.brokers;
    let gap = (id / brokers) % (brokers - 1);
    let replica = |at: usize| if at == 0 { id % brokers } else { (id + 1 + (gap + at - 1) % (brokers - 1)) % brokers };
    let replicas: Vec<BrokerId> = (0..REPLICATION_FACTOR).map(|at| broker(replica(at))).collect();
    let state = PartitionState {
        directories: replicas.iter().map(|&replica| directory(replica)).collect(),
        isr: replicas.clone(),
        elr: Vec::new(),
        last_known_elr: Vec::new(),
        adding: Vec::new(),
        removing: Vec::new(),
        leader: replicas.first().copied(),
        recovery: LeaderRecoveryState::Recovered,
        leader_epoch: LeaderEpoch::default(),
        partition_epoch: PartitionEpoch::default(),
        history: Vec::new(),
        replicas,
    };
    let partition = PartitionId::new(i32::try_from(id).expect("an id fits"));
    Record::CreatePartition(PartitionRegistration {
        id: TopicPartition::new(topic(topic_at), partition),
        state: state.into(),
    })
}

fn register(at: usize) -> Record {
    Record::RegisterBroker(BrokerRegistration {
        broker: broker(at),
        epoch: BrokerEpoch::from(Offset::new(0)),
        incarnation: IncarnationId::default(),
        endpoints: Vec::new(),
        kind: Kind::LOG,
        probe: Probe::Unstated,
        rack: None,
        features: BTreeMap::new(),
        directories: vec![directory(broker(at))],
        cordoned_directories: None,
        fenced: false,
        in_controlled_shutdown: false,
        controlled_shutdown_offset: None,
    })
}

fn broker(at: usize) -> BrokerId {
    BrokerId::new(i32::try_from(at).expect("an id fits"))
}

fn directory(broker: BrokerId) -> DirectoryId {
    DirectoryId::new(Uuid::from_u128(0x1000 + u128::from(broker.get().unsigned_abs())))
}

/// Spread over the space of ids, as random ids are.
fn topic(at: usize) -> TopicId {
    TopicId::new(Uuid::from_u128((at as u128 + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15_f39c_c060_5ced_c835)))
}

fn timed<T>(name: &str, run: impl FnOnce() -> T) -> T {
    let start = Instant::now();
    let result = run();
    show(name, format!("{:.3}", start.elapsed().as_secs_f64() * 1e3), "ms");
    result
}

fn per_partition(name: &str, size: Size, bytes: usize) {
    show(name, format!("{:.1}", bytes as f64 / size.partitions as f64), "bytes/partition");
}

fn show(name: &str, value: impl Display, unit: &str) {
    println!("{name} {value} {unit}");
}

fn rss_kb() -> u64 {
    let status = read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find(|line| line.starts_with("VmRSS"));
    line.and_then(|line| line.split_whitespace().nth(1)).and_then(|kb| kb.parse().ok()).unwrap_or(0)
}
