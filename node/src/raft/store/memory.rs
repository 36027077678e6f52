//! The twin of the disk, in memory: a journal of which some bytes are durable and some are pending. A crash loses the
//! pending ones, or all but the first few of them, as a torn write does. Its flusher is a task, so it can be simulated.

use std::collections::BTreeMap;
use std::io;
use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use super::super::RaftError;
use super::super::error::Corruption;
use super::super::identity::Identity;
use super::super::types::Entry;
use super::flush::Batch;
use super::{Disk, FlushQueue, Loaded, Opened, Snapshots, Store, Write, codec, entry_bytes};

/// Cheap to clone; all clones are one disk, which outlives the processes that open it.
#[derive(Clone, Default)]
pub struct MemoryStore {
    medium: Arc<Mutex<Medium>>,
    snapshots: Snapshots,
}

#[derive(Default)]
struct Medium {
    identity: Option<Identity>,
    durable: Vec<u8>,
    pending: Vec<u8>,
    /// What durable and pending bytes say together: what a running process reads.
    image: Image,
    /// Every later write fails.
    broken: bool,
    /// How long a flush takes. Zero: as long as a task switch.
    flush_time: Duration,
    /// A process that was started before the last crash must not write any more.
    incarnation: u64,
    /// The last index that is durable.
    durable_to: Option<u64>,
    version: u64,
}

/// For those who look from outside.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Logged {
    /// Where the log begins.
    pub first: u64,
    pub entries: Vec<LoggedEntry>,
    pub durable_to: Option<u64>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LoggedEntry {
    pub index: u64,
    pub term: u64,
    /// Over all that is stored of it.
    pub checksum: u32,
}

#[derive(Default)]
struct Image {
    loaded: Loaded,
    entries: BTreeMap<u64, Entry>,
}

impl MemoryStore {
    pub fn new() -> Self {
        Self::default()
    }

    /// Power off: pending bytes are gone but for the first `kept`, and whoever had the store open can write no more. A disk
    /// that was broken is mended.
    pub fn crash(&self, kept: usize) {
        let mut medium = self.medium();
        let kept = kept.min(medium.pending.len());
        let survived: Vec<u8> = medium.pending.drain(..kept).collect();
        medium.durable.extend(survived);
        medium.pending.clear();
        medium.incarnation += 1;
        medium.broken = false;
    }

    /// From now on every flush fails, as a disk does whose fsync returned EIO.
    pub fn break_disk(&self) {
        self.medium().broken = true;
    }

    /// How long each flush leaves its bytes pending.
    pub fn set_flush_time(&self, time: Duration) {
        self.medium().flush_time = time;
    }

    /// How many bytes a crash would lose now.
    pub fn pending_bytes(&self) -> usize {
        self.medium().pending.len()
    }

    /// The log from an index on, as a process reads it, and how much of it no crash can take.
    pub fn logged(&self, from: u64) -> Logged {
        let medium = self.medium();
        let entries = medium.image.entries.range(from..).map(|(index, entry)| LoggedEntry {
            index: *index,
            term: entry.log_id.committed_leader_id().term,
            checksum: crc32fast::hash(&codec::encode_entry(entry)),
        });
        Logged { first: medium.image.loaded.first, entries: entries.collect(), durable_to: medium.durable_to }
    }

    /// Changes with whatever is written.
    pub fn version(&self) -> u64 {
        self.medium().version
    }

    /// What bit rot does.
    pub fn flip_bit(&self, byte: usize) {
        self.medium().durable[byte] ^= 1;
    }

    /// Bytes that no crash can take.
    pub fn durable_bytes(&self) -> usize {
        self.medium().durable.len()
    }

    fn medium(&self) -> MutexGuard<'_, Medium> {
        self.medium.lock().expect("no holder panics")
    }
}

impl Store for MemoryStore {
    fn identity(&self) -> Result<Option<Identity>, RaftError> {
        Ok(self.medium().identity)
    }

    fn save_identity(&self, identity: &Identity) -> Result<(), RaftError> {
        self.medium().identity = Some(*identity);
        Ok(())
    }

    fn open(&self) -> Result<Opened, RaftError> {
        let mut medium = self.medium();
        medium.incarnation += 1;
        medium.pending.clear();
        let (image, end) = replay(&medium.durable).map_err(RaftError::io("open the journal"))?;
        medium.durable.truncate(end);
        medium.image = image;
        medium.durable_to = medium.image.loaded.last.map(|last| last.index);
        medium.version += 1;
        let disk = MemoryDisk { store: self.clone(), incarnation: medium.incarnation };
        Ok(Opened { disk: Arc::new(disk), snapshots: self.snapshots.clone() })
    }
}

struct MemoryDisk {
    store: MemoryStore,
    incarnation: u64,
}

impl MemoryDisk {
    fn stage<'a>(&self, writes: impl Iterator<Item = &'a Write>) -> io::Result<Duration> {
        fail::fail_point!("raft.flush", |_| Err(io::Error::other("failpoint raft.flush")));
        let mut medium = self.store.medium();
        self.refuse_late(&medium)?;
        for write in writes {
            let frame = journal_frame(write);
            medium.pending.extend(frame);
            medium.image.apply(write);
        }
        medium.version += 1;
        Ok(medium.flush_time)
    }

    fn sync(&self) -> io::Result<()> {
        let mut medium = self.store.medium();
        self.refuse_late(&medium)?;
        let pending = std::mem::take(&mut medium.pending);
        medium.durable.extend(pending);
        medium.durable_to = medium.image.loaded.last.map(|last| last.index);
        medium.version += 1;
        Ok(())
    }

    fn refuse_late(&self, medium: &Medium) -> io::Result<()> {
        if medium.incarnation != self.incarnation {
            return Err(io::Error::other("the power is off"));
        }
        if medium.broken {
            return Err(io::Error::other("Input/output error (os error 5)"));
        }
        Ok(())
    }

    async fn flush(&self, batch: &Batch) -> io::Result<()> {
        let time = self.stage(batch.writes())?;
        if !batch.needs_sync() {
            return Ok(());
        }
        if time.is_zero() {
            tokio::task::yield_now().await;
        } else {
            tokio::time::sleep(time).await;
        }
        self.sync()
    }
}

impl Disk for MemoryDisk {
    fn load(&self) -> io::Result<Loaded> {
        Ok(self.store.medium().image.loaded.clone())
    }

    fn is_device(&self) -> bool {
        false
    }

    fn read(&self, range: Range<u64>, max_bytes: usize) -> io::Result<Vec<Entry>> {
        let medium = self.store.medium();
        let mut bytes = 0;
        let within = |entry: &&Entry| {
            let fits = bytes < max_bytes;
            bytes += entry_bytes(entry);
            fits
        };
        Ok(medium.image.entries.range(range).map(|(_, entry)| entry).take_while(within).cloned().collect())
    }

    fn start_flusher(self: Arc<Self>, mut queue: FlushQueue) {
        tokio::spawn(async move {
            while let Some(batch) = queue.next().await {
                let result = match queue.refused() {
                    Some(error) => Err(error),
                    None => self.flush(&batch).await,
                };
                queue.finish(batch, result);
            }
        });
    }
}

impl Image {
    fn apply(&mut self, write: &Write) {
        match write {
            Write::Append(entries) => {
                self.entries.extend(entries.iter().map(|entry| (entry.log_id.index, entry.clone())))
            }
            Write::Vote(vote) => self.loaded.vote = Some(*vote),
            Write::Truncate { from } => drop(self.entries.split_off(from)),
            Write::Purge(upto) => {
                self.entries = self.entries.split_off(&(upto.index + 1));
                self.loaded.purged = Some(*upto);
            }
            Write::Generation(generation) => self.loaded.generation = *generation,
            Write::Committed(committed) => self.loaded.committed = *committed,
        }
        let after_purged = self.loaded.purged.map_or(0, |purged| purged.index + 1);
        self.loaded.first = self.entries.keys().next().copied().unwrap_or(after_purged);
        self.loaded.last = self.entries.values().next_back().map(|entry| entry.log_id).or(self.loaded.purged);
    }
}

const APPEND: u8 = b'a';
const VOTE: u8 = b'v';
const TRUNCATE: u8 = b't';
const PURGE: u8 = b'p';
const GENERATION: u8 = b'g';
const COMMITTED: u8 = b'c';

/// One frame per write: `length u32 LE | its checksum u32 LE | kind u8 | sealed value`. The length has its own checksum,
/// so that a flipped length is told from a torn tail. An append's body is `length u32 LE | key | value` per entry.
fn journal_frame(write: &Write) -> Vec<u8> {
    let (kind, body) = match write {
        Write::Append(entries) => (APPEND, entries.iter().flat_map(journal_entry).collect()),
        Write::Vote(vote) => (VOTE, codec::encode_vote(b"v", vote)),
        Write::Truncate { from } => (TRUNCATE, from.to_le_bytes().to_vec()),
        Write::Purge(upto) => (PURGE, codec::encode_log_id(b"p", *upto)),
        Write::Generation(generation) => (GENERATION, generation.to_le_bytes().to_vec()),
        Write::Committed(id) => (COMMITTED, id.map(|id| codec::encode_log_id(b"c", id)).unwrap_or_default()),
    };
    let sealed = codec::seal(&[kind], &[&body]);
    let length = length_bytes(1 + sealed.len());
    [&length[..], &crc32fast::hash(&length).to_le_bytes(), &[kind], &sealed].concat()
}

fn journal_entry(entry: &Entry) -> Vec<u8> {
    let value = codec::encode_entry(entry);
    [&length_bytes(value.len())[..], &codec::entry_key(entry.log_id.index), &value].concat()
}

fn length_bytes(length: usize) -> [u8; 4] {
    u32::try_from(length).expect("a frame is far below 4 GiB").to_le_bytes()
}

/// What the journal says, and where its last whole frame ends.
fn replay(journal: &[u8]) -> io::Result<(Image, usize)> {
    let mut image = Image::default();
    let mut at = 0;
    while let Some(frame) = next_frame(journal, at)? {
        let damaged = |reason| Corruption { file: "journal".into(), offset: at as u64, reason };
        image.apply(&decode_frame(frame).map_err(damaged)?);
        at += FRAME_HEAD + frame.len();
    }
    Ok((image, at))
}

const FRAME_HEAD: usize = 8;

fn next_frame(journal: &[u8], at: usize) -> io::Result<Option<&[u8]>> {
    let Some(head) = journal.get(at..at + FRAME_HEAD) else {
        return Ok(None);
    };
    let (length, checksum) = head.split_at(4);
    if crc32fast::hash(length).to_le_bytes() != checksum {
        return Err(
            Corruption { file: "journal".into(), offset: at as u64, reason: "frame length is wrong".into() }.into()
        );
    }
    let length = u32::from_le_bytes(length.try_into().expect("four bytes")) as usize;
    Ok(journal.get(at + FRAME_HEAD..at + FRAME_HEAD + length))
}

fn decode_frame(frame: &[u8]) -> Result<Write, String> {
    let (kind, sealed) = frame.split_first().ok_or("empty frame")?;
    let body = codec::unseal(&[*kind], sealed)?;
    Ok(match *kind {
        APPEND => Write::Append(decode_entries(body)?),
        VOTE => Write::Vote(codec::decode_vote(b"v", body)?),
        TRUNCATE => Write::Truncate { from: u64::from_le_bytes(body.try_into().map_err(|_| "truncation")?) },
        PURGE => Write::Purge(codec::decode_log_id(b"p", body)?),
        GENERATION => Write::Generation(u64::from_le_bytes(body.try_into().map_err(|_| "generation")?)),
        COMMITTED if body.is_empty() => Write::Committed(None),
        COMMITTED => Write::Committed(Some(codec::decode_log_id(b"c", body)?)),
        kind => return Err(format!("frame kind {kind}")),
    })
}

fn decode_entries(mut body: &[u8]) -> Result<Vec<Entry>, String> {
    let mut entries = Vec::new();
    while !body.is_empty() {
        let (length, rest) = body.split_at_checked(4).ok_or("entry length")?;
        let length = u32::from_le_bytes(length.try_into().expect("four bytes")) as usize;
        let (key, rest) = rest.split_at_checked(8).ok_or("entry key")?;
        let (value, rest) = rest.split_at_checked(length).ok_or("entry value")?;
        entries.push(codec::decode_entry(key, value)?);
        body = rest;
    }
    Ok(entries)
}
