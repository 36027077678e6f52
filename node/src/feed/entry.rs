//! One visible batch, encoded once for all who get the same.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, OnceLock};

use bytes::{BufMut, Bytes};
use prost::Message;
use quorate_metadata::Record;
use quorate_metadata::ids::{BrokerId, ControllerEpoch, Offset, TopicId};
use quorate_metadata::image::{Audience, Delta, LEVEL_LOWEST, MetadataImage};
use quorate_proto::broker::{CommittedRecord, CommittedRecords};
use quorate_proto::record;

/// Bytes of records in one event of the feed. A batch (1 MiB of records, their offsets, a remembered reply) is below it,
/// so that watchers see batches whole; with it an event is well under the 4 MiB that a gRPC client takes by default.
/// What is larger comes in several events, cut between records.
pub const EVENT_BYTES_MAX: usize = 2 * 1024 * 1024;

/// Of the fields of an event besides its records.
const HEAD_BYTES_MAX: usize = 64;

/// A visible batch. It is kept as records until a watcher needs it encoded: what follows a large transaction in the log
/// does not wait for that.
#[derive(Debug)]
pub struct FeedEntry {
    pub first_offset: Offset,
    pub next_offset: Offset,
    /// The `metadata.version` that a watcher must understand to keep an image from this batch on.
    pub level: i16,
    controller_epoch: ControllerEpoch,
    time_ms: i64,
    /// What filters look at, for each record.
    scopes: Box<[RecordScope]>,
    /// The brokers that `Concerned::Hosts` refers to.
    hosts: Box<[BrokerId]>,
    /// The topics that `RecordScope::topic` refers to.
    topics: Box<[TopicId]>,
    /// None once it is encoded.
    records: Mutex<Option<Delta>>,
    encoded: OnceLock<Encoded>,
    /// What this entry is counted as.
    bytes: AtomicUsize,
}

#[derive(Debug, Clone, Copy)]
struct RecordScope {
    concerned: Concerned,
    /// Where the topic is that the record belongs to; None: it belongs to the cluster.
    topic: Option<u32>,
}

#[derive(Debug, Clone, Copy)]
enum Concerned {
    Everyone,
    NoBroker,
    Hosts { start: u32, end: u32 },
}

#[derive(Debug)]
struct Encoded {
    /// A `CommittedRecords`: its records first, then the other fields.
    bytes: Bytes,
    records: Box<[EncodedRecord]>,
}

#[derive(Debug)]
struct EncodedRecord {
    offset: Offset,
    kind: &'static str,
    /// Where it ends in the bytes; it begins where the one before it ends.
    end: usize,
}

/// What a filter may look at.
#[derive(Debug, Clone, Copy)]
pub struct RecordView<'a> {
    pub kind: &'static str,
    /// The topic that it belongs to; None: it belongs to the cluster.
    pub topic: Option<TopicId>,
    concerned: Concerned,
    hosts: &'a [BrokerId],
}

/// What a watcher gets in one event.
#[derive(Debug, Clone)]
pub struct Selected {
    /// Where the watcher resumes after it.
    pub next_offset: Offset,
    /// A `CommittedRecords`.
    pub encoded: Bytes,
}

impl RecordView<'_> {
    pub fn concerns(&self, broker: BrokerId) -> bool {
        match self.concerned {
            Concerned::Everyone => true,
            Concerned::NoBroker => false,
            Concerned::Hosts { start, end } => self.hosts[start as usize..end as usize].contains(&broker),
        }
    }
}

impl FeedEntry {
    pub fn new(delta: Delta, before: &MetadataImage, after: &MetadataImage) -> Self {
        let mut hosts = Vec::new();
        let mut topics = Vec::new();
        let audiences = delta.audiences(before, after).zip(delta.topics(before));
        let scopes: Box<[RecordScope]> = audiences
            .map(|(audience, topic)| RecordScope {
                concerned: concerned(&audience, &mut hosts),
                topic: topic.map(|topic| index_of_topic(topic, &mut topics)),
            })
            .collect();
        let bytes = delta.records.iter().map(|record| size_of::<Record>() + record.approximate_bytes()).sum::<usize>();
        let bytes = bytes + fixed_bytes(&scopes, &hosts, &topics);
        Self {
            first_offset: delta.first_offset,
            next_offset: delta.next_offset,
            level: delta.records.iter().map(Record::level_for_followers).max().unwrap_or(LEVEL_LOWEST),
            controller_epoch: delta.controller_epoch,
            time_ms: delta.timestamp_ms,
            scopes,
            hosts: hosts.into(),
            topics: topics.into(),
            records: Mutex::new(Some(delta)),
            encoded: OnceLock::new(),
            bytes: AtomicUsize::new(bytes),
        }
    }

    pub fn record_count(&self) -> usize {
        self.scopes.len()
    }

    /// The memory that it takes, as far as the ring has counted it.
    pub fn bytes(&self) -> usize {
        self.bytes.load(Ordering::Relaxed)
    }

    /// Encodes it if nobody has; whether this call did.
    pub(super) fn encode(&self) -> bool {
        let mut is_first = false;
        self.encoded.get_or_init(|| {
            is_first = true;
            let delta = self.records.lock().expect("no one panics while taking the records").take();
            Encoded::of(&delta.expect("records are taken once"))
        });
        is_first
    }

    /// Counts the entry as it is now that it is encoded; what it takes less than before.
    pub(super) fn settle_bytes(&self) -> isize {
        let encoded = self.encoded.get().map_or(0, |encoded| encoded.bytes.len() + size_of_val(&*encoded.records));
        let bytes = fixed_bytes(&self.scopes, &self.hosts, &self.topics) + encoded;
        let before = self.bytes.swap(bytes, Ordering::Relaxed);
        before.cast_signed() - bytes.cast_signed()
    }

    /// What passes, from the cursor on. Nothing: no event.
    pub(super) fn select(&self, cursor: Offset, passes: impl Fn(RecordView<'_>) -> bool) -> Vec<Selected> {
        let encoded = self.encoded.get().expect("an entry is encoded before it is selected from");
        let wanted = |at: usize| {
            let RecordScope { concerned, topic } = self.scopes[at];
            let topic = topic.map(|place| self.topics[place as usize]);
            let view = RecordView { kind: encoded.records[at].kind, topic, concerned, hosts: &self.hosts };
            encoded.records[at].offset >= cursor && passes(view)
        };
        let is_whole = encoded.bytes.len() <= EVENT_BYTES_MAX && (0..encoded.records.len()).all(wanted);
        if is_whole {
            return vec![Selected { next_offset: self.next_offset, encoded: encoded.bytes.clone() }];
        }
        self.parts(encoded, (0..encoded.records.len()).filter(|&at| wanted(at)))
    }

    fn parts(&self, encoded: &Encoded, wanted: impl Iterator<Item = usize>) -> Vec<Selected> {
        let mut parts = Vec::new();
        let mut part = Vec::new();
        let mut next_offset = self.first_offset;
        for at in wanted {
            let record = encoded.record(at);
            if !part.is_empty() && part.len() + record.len() + HEAD_BYTES_MAX > EVENT_BYTES_MAX {
                parts.push(self.selected(std::mem::take(&mut part), next_offset));
            }
            part.extend_from_slice(record);
            next_offset = encoded.records[at].offset.advance(1);
        }
        if !part.is_empty() {
            parts.push(self.selected(part, self.next_offset));
        }
        parts
    }

    fn selected(&self, mut records: Vec<u8>, next_offset: Offset) -> Selected {
        put(&mut records, &head(self.controller_epoch, self.time_ms, next_offset));
        Selected { next_offset, encoded: records.into() }
    }
}

impl Encoded {
    fn of(delta: &Delta) -> Self {
        let mut bytes = Vec::new();
        let records = delta.offsets().map(|(offset, item)| {
            let committed = CommittedRecord { offset: offset.get(), record: Some(record::to_wire(item)) };
            put(&mut bytes, &CommittedRecords { records: vec![committed], ..CommittedRecords::default() });
            EncodedRecord { offset, kind: item.kind(), end: bytes.len() }
        });
        let records = records.collect();
        put(&mut bytes, &head(delta.controller_epoch, delta.timestamp_ms, delta.next_offset));
        Self { bytes: bytes.into(), records }
    }

    /// One record, as a field of `CommittedRecords`.
    fn record(&self, at: usize) -> &[u8] {
        let start = at.checked_sub(1).map_or(0, |before| self.records[before].end);
        &self.bytes[start..self.records[at].end]
    }
}

fn concerned(audience: &Audience, hosts: &mut Vec<BrokerId>) -> Concerned {
    match audience {
        Audience::Everyone => Concerned::Everyone,
        Audience::NoBroker => Concerned::NoBroker,
        Audience::Brokers(brokers) => {
            let start = hosts.len();
            hosts.extend_from_slice(brokers);
            Concerned::Hosts { start: place(start), end: place(hosts.len()) }
        }
    }
}

/// What an entry takes besides its records.
fn fixed_bytes(scopes: &[RecordScope], hosts: &[BrokerId], topics: &[TopicId]) -> usize {
    size_of::<FeedEntry>() + size_of_val(scopes) + size_of_val(hosts) + size_of_val(topics)
}

/// Records of one topic follow each other: it is kept once for all of them.
fn index_of_topic(topic: TopicId, topics: &mut Vec<TopicId>) -> u32 {
    if topics.last() != Some(&topic) {
        topics.push(topic);
    }
    place(topics.len() - 1)
}

fn place(at: usize) -> u32 {
    u32::try_from(at).expect("a batch names far fewer brokers and topics")
}

/// The fields of an event besides its records. Fields may come in any order: encodings can be joined.
fn head(controller_epoch: ControllerEpoch, time_ms: i64, next_offset: Offset) -> CommittedRecords {
    let (controller_epoch, next_offset) = (controller_epoch.get(), next_offset.get());
    CommittedRecords { controller_epoch, time_ms, next_offset, records: Vec::new() }
}

fn put(bytes: &mut impl BufMut, message: &impl Message) {
    message.encode(bytes).expect("a Vec takes any length");
}
