//! The store on a disk: RocksDB in `<data>/raft`, snapshots in `<data>/snapshots`, the name in `<data>/quorate.meta`.
//!
//! Two column families share one write-ahead log, so one batch and one fsync cover vote and entries together.

use std::fs;
use std::io;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rocksdb::{
    ColumnFamily, ColumnFamilyDescriptor, DB, DBCompressionType, DBRecoveryMode, Direction, ErrorKind, IteratorMode,
    LogLevel, Options, WriteBatch, WriteOptions,
};

use quorate_log::{durable, is_locked, is_no_space};
use quorate_metadata::mutant::Mutant;

use super::super::RaftError;
use super::super::error::Corruption;
use super::super::identity::{self, Identity};
use super::super::types::{Entry, LogId};
use super::flush::Batch;
use super::{Disk, FlushQueue, Loaded, Opened, Snapshots, Store, Write, codec, entry_bytes, wal};
use crate::disks::Reserve;

const LOG: &str = "log";
const META: &str = "meta";
const VOTE: &[u8] = b"vote";
const COMMITTED: &[u8] = b"committed";
const PURGED: &[u8] = b"purged";
const GENERATION: &[u8] = b"generation";
/// Has no value.
const OPENED: &[u8] = b"opened";

/// The log is written once, read rarely and purged soon: small tables, little memory.
const MEMTABLE_BYTES: usize = 16 << 20;
/// Bounds what a restart has to recover, and how long the rarely written `meta` may pin old files.
const WAL_BYTES_MAX: u64 = 64 << 20;

/// A data directory. Opens and creates nothing by itself.
#[derive(Debug, Clone)]
pub struct RocksStore {
    data: PathBuf,
    reserve: Option<Arc<Reserve>>,
}

impl RocksStore {
    pub fn new(data: &Path) -> Self {
        Self { data: data.to_owned(), reserve: None }
    }

    /// Keeps room for the log.
    pub fn with_reserve(self, reserve: Reserve) -> Self {
        Self { reserve: Some(Arc::new(reserve)), ..self }
    }

    /// A log that was there before must not be made anew.
    fn refuse_missing(&self, path: &Path) -> Result<(), RaftError> {
        let starts = self.identity()?.map_or(0, |identity| identity.floor.generation);
        if starts > 0 && !path.join("CURRENT").exists() && !Mutant::AcceptLostState.is_on() {
            let reason = format!("its raft log {path:?} is missing, and this voter has started {starts} times");
            return Err(RaftError::VoterStateLost { data: self.data.clone(), reason });
        }
        Ok(())
    }
}

impl Store for RocksStore {
    fn identity(&self) -> Result<Option<Identity>, RaftError> {
        identity::read(&self.data)
    }

    fn save_identity(&self, identity: &Identity) -> Result<(), RaftError> {
        identity::write(&self.data, identity)
    }

    fn open(&self) -> Result<Opened, RaftError> {
        let path = self.data.join("raft");
        self.refuse_missing(&path)?;
        // Opening writes as well.
        if let Some(reserve) = &self.reserve {
            reserve.adjust();
        }
        let disk = RocksDisk { reserve: self.reserve.clone(), ..RocksDisk::open(path)? };
        if let Some(reserve) = &self.reserve {
            reserve.watch().map_err(RaftError::io("watch the reserve of the raft log"))?;
        }
        let snapshots = Snapshots::directory(self.data.join("snapshots"))
            .map_err(RaftError::io(format!("open {:?}", self.data.join("snapshots"))))?;
        Ok(Opened { disk: Arc::new(disk), snapshots })
    }
}

/// For those who look but must not touch, also while the node runs.
pub fn open_read_only(data: &Path) -> Result<Arc<dyn Disk>, RaftError> {
    let path = data.join("raft");
    let db = DB::open_cf_descriptors_read_only(&verifying_options(), &path, families(), false)
        .map_err(|error| RaftError::io(format!("open {path:?}"))(to_io(&path, error)))?;
    Ok(Arc::new(RocksDisk { db, path, reserve: None }))
}

fn refuse(path: &Path, torn: Option<wal::Torn>, error: rocksdb::Error) -> RaftError {
    let text = error.to_string();
    if is_locked(&error) {
        return RaftError::DataLocked { path: path.to_owned() };
    }
    match torn {
        Some(torn) if error.kind() == ErrorKind::Corruption => {
            RaftError::Corrupt { file: torn.file, offset: torn.offset, reason: text }
        }
        _ => RaftError::io(format!("open {path:?}"))(to_io(path, error)),
    }
}

/// A manifest that lost its end names older files, and the logs between them and today's are gone: the database would open
/// as it was long ago, with an older vote. Each log names the one before it, so that such a hole is found.
fn verifying_options() -> Options {
    let verifies = if Mutant::UncheckedBytes.is_on() { "" } else { "track_and_verify_wals=true" };
    Options::default().get_options_from_string(verifies).expect("the database knows its options")
}

fn database_options() -> Options {
    let mut options = verifying_options();
    options.create_if_missing(true);
    options.create_missing_column_families(true);
    options.set_paranoid_checks(true);
    // A record cut by a crash was acknowledged to nobody. Any other damage is refused.
    options.set_wal_recovery_mode(match Mutant::UncheckedBytes.is_on() {
        true => DBRecoveryMode::SkipAnyCorruptedRecord,
        false => DBRecoveryMode::TolerateCorruptedTailRecords,
    });
    options.set_max_total_wal_size(WAL_BYTES_MAX);
    options.set_max_background_jobs(2);
    options.set_keep_log_file_num(2);
    options.set_max_log_file_size(1 << 20);
    options.set_log_level(LogLevel::Warn);
    options.set_stats_dump_period_sec(0);
    options
}

fn families() -> Vec<ColumnFamilyDescriptor> {
    [LOG, META].map(|name| ColumnFamilyDescriptor::new(name, family_options())).into()
}

fn family_options() -> Options {
    let mut options = Options::default();
    options.set_compression_type(DBCompressionType::None);
    options.set_write_buffer_size(MEMTABLE_BYTES);
    options.set_max_write_buffer_number(2);
    options.set_paranoid_checks(true);
    options
}

struct RocksDisk {
    db: DB,
    path: PathBuf,
    reserve: Option<Arc<Reserve>>,
}

impl RocksDisk {
    fn open(path: PathBuf) -> Result<Self, RaftError> {
        if !path.exists() {
            Self::create(&path)?;
        }
        Self::open_existing(path)
    }

    /// Aside, and then under its name: who dies before the database has its first log leaves none, for one without a log is
    /// refused.
    fn create(path: &Path) -> Result<(), RaftError> {
        let part = path.with_extension("part");
        let failed = || RaftError::io(format!("create {path:?}"));
        match fs::remove_dir_all(&part) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(failed()(error)),
            _ => {}
        }
        durable::create_directory(&part).map_err(failed())?;
        drop(Self::open_existing(part.clone())?);
        let above = path.parent().expect("it lies in a data directory");
        fs::rename(&part, path).and_then(|()| durable::sync_directory(above)).map_err(failed())
    }

    fn open_existing(path: PathBuf) -> Result<Self, RaftError> {
        let checked = if Mutant::UncheckedBytes.is_on() { None } else { wal::check(&path)? };
        let db = DB::open_cf_descriptors(&database_options(), &path, families())
            .map_err(|error| refuse(&path, checked, error))?;
        let disk = Self { db, path, reserve: None };
        disk.begin_next_log().map_err(RaftError::io(format!("open {:?}", disk.path)))?;
        Ok(disk)
    }

    /// The log that the database begins when it opens does not name the one before it. The next one does.
    fn begin_next_log(&self) -> io::Result<()> {
        let mut options = WriteOptions::default();
        options.set_sync(true);
        let meta = self.family(META);
        let begun = self.db.put_cf_opt(meta, OPENED, [], &options).and_then(|()| self.db.flush_cf(meta));
        begun.map_err(|error| to_io(&self.path, error))
    }

    fn family(&self, name: &str) -> &ColumnFamily {
        self.db.cf_handle(name).expect("opened with both families")
    }

    fn commit(&self, batch: &Batch) -> io::Result<()> {
        fail::fail_point!("raft.flush", |_| Err(io::Error::other("failpoint raft.flush")));
        if let Some(reserve) = &self.reserve {
            reserve.make_room();
        }
        self.write_all(batch.writes(), batch.needs_sync()).map_err(|error| match error.to_string() {
            reason if is_no_space(&reason) => {
                io::Error::other(format!("{reason}; the reserve of the raft log is used up"))
            }
            _ => error,
        })
    }

    fn write_all<'a>(&self, writes: impl Iterator<Item = &'a Write>, sync: bool) -> io::Result<()> {
        let mut batch = WriteBatch::default();
        writes.for_each(|write| self.add(&mut batch, write));
        let mut options = WriteOptions::default();
        options.set_sync(sync && !Mutant::UnsyncedLog.is_on());
        self.db.write_opt(batch, &options).map_err(|error| to_io(&self.path, error))
    }

    fn add(&self, batch: &mut WriteBatch, write: &Write) {
        let (log, meta) = (self.family(LOG), self.family(META));
        match write {
            Write::Append(entries) => {
                for entry in entries {
                    batch.put_cf(log, codec::entry_key(entry.log_id.index), codec::encode_entry(entry));
                }
            }
            Write::Vote(vote) => batch.put_cf(meta, VOTE, codec::encode_vote(VOTE, vote)),
            Write::Truncate { from } => batch.delete_range_cf(log, codec::entry_key(*from), codec::entry_key(u64::MAX)),
            Write::Purge(upto) => {
                batch.put_cf(meta, PURGED, codec::encode_log_id(PURGED, *upto));
                batch.delete_range_cf(log, codec::entry_key(0), codec::entry_key(upto.index + 1));
            }
            Write::Generation(generation) => {
                batch.put_cf(meta, GENERATION, codec::seal(GENERATION, &[&generation.to_be_bytes()]));
            }
            Write::Committed(Some(id)) => batch.put_cf(meta, COMMITTED, codec::encode_log_id(COMMITTED, *id)),
            Write::Committed(None) => batch.delete_cf(meta, COMMITTED),
        }
    }

    fn meta<T>(&self, key: &[u8], decode: impl Fn(&[u8], &[u8]) -> Result<T, String>) -> io::Result<Option<T>> {
        let value = self.db.get_cf(self.family(META), key).map_err(|error| to_io(&self.path, error))?;
        let damaged = |reason| self.damaged(format!("{}: {reason}", String::from_utf8_lossy(key)));
        value.map(|value| decode(key, &value).map_err(damaged)).transpose()
    }

    fn damaged(&self, reason: String) -> io::Error {
        Corruption { file: self.path.clone(), offset: 0, reason }.into()
    }

    fn entries_from(&self, start: u64) -> impl Iterator<Item = io::Result<Entry>> {
        let key = codec::entry_key(start);
        let rows = self.db.iterator_cf(self.family(LOG), IteratorMode::From(&key, Direction::Forward));
        rows.map(|row| {
            let (key, value) = row.map_err(|error| to_io(&self.path, error))?;
            codec::decode_entry(&key, &value).map_err(|reason| {
                let index = key[..].try_into().map_or(0, u64::from_be_bytes);
                self.damaged(format!("log entry {index}: {reason}"))
            })
        })
    }

    /// Every entry is read once at the start: what is damaged is found before this voter promises anything.
    fn ends(&self, purged: Option<LogId>) -> io::Result<(u64, Option<LogId>)> {
        let mut first = purged.map_or(0, |purged| purged.index + 1);
        let mut last = purged;
        for entry in self.entries_from(0) {
            let id = entry?.log_id;
            first = if last.is_none() { id.index } else { first };
            let expected = last.map_or(id.index, |last| last.index + 1);
            if id.index != expected {
                return Err(self.damaged(format!("log entry {expected} is missing before {}", id.index)));
            }
            last = Some(id);
        }
        Ok((first, last))
    }
}

impl Disk for RocksDisk {
    fn load(&self) -> io::Result<Loaded> {
        let purged = self.meta(PURGED, codec::decode_log_id)?;
        let (first, last) = self.ends(purged)?;
        Ok(Loaded {
            generation: self.meta(GENERATION, codec::decode_number)?.unwrap_or_default(),
            vote: self.meta(VOTE, codec::decode_vote)?,
            committed: self.meta(COMMITTED, codec::decode_log_id)?,
            purged,
            first,
            last,
        })
    }

    fn is_device(&self) -> bool {
        true
    }

    fn read(&self, range: Range<u64>, max_bytes: usize) -> io::Result<Vec<Entry>> {
        let mut entries = Vec::new();
        let mut bytes = 0;
        for entry in self.entries_from(range.start) {
            let entry = entry?;
            if entry.log_id.index >= range.end || bytes >= max_bytes {
                break;
            }
            bytes += entry_bytes(&entry);
            entries.push(entry);
        }
        Ok(entries)
    }

    fn start_flusher(self: Arc<Self>, queue: FlushQueue) {
        let flusher = move || flush_until_closed(self, queue);
        std::thread::Builder::new().name("raft-flush".into()).spawn(flusher).expect("the system can start one thread");
    }
}

fn flush_until_closed(disk: Arc<RocksDisk>, mut queue: FlushQueue) {
    while let Some(batch) = queue.blocking_next() {
        let result = match queue.refused() {
            Some(error) => Err(error),
            None => {
                let _write = queue.begin_write();
                disk.commit(&batch)
            }
        };
        queue.finish(batch, result);
    }
    if let (None, Some(write)) = (queue.refused(), queue.leftover())
        && let Err(error) = disk.write_all(std::iter::once(&write), true)
    {
        tracing::warn!(%error, "cannot save the committed index; the next start waits for the leader to tell it");
    }
    // The database closes before the queue tells that the flusher has ended.
    drop(disk);
    drop(queue);
}

/// RocksDB names the damaged table and offset in its text, where it knows them.
fn to_io(path: &Path, error: rocksdb::Error) -> io::Error {
    match error.kind() {
        ErrorKind::Corruption => {
            let reason = error.to_string();
            let (file, offset) = named_place(&reason).unwrap_or((path.to_owned(), 0));
            Corruption { file, offset, reason }.into()
        }
        _ => io::Error::other(error.to_string()),
    }
}

/// `... in /data/raft/000012.sst offset 4096 size 32`
fn named_place(text: &str) -> Option<(PathBuf, u64)> {
    let (before, after) = text.rsplit_once(" offset ")?;
    let offset = after.split_whitespace().next()?.parse().ok()?;
    let file = before.rsplit_once(" in ")?.1;
    Some((PathBuf::from(file), offset))
}

#[cfg(test)]
mod tests {
    use openraft::EntryPayload;

    use super::super::super::types::{CommittedLeader, Vote};
    use super::*;

    const OLD_TERM: u64 = 3;
    const NEW_TERM: u64 = 7;

    fn write_in_term(store: &RocksDisk, term: u64, indices: Range<u64>) {
        let entry = |index| {
            let leader = CommittedLeader { term };
            Entry { log_id: LogId::new(leader, index), payload: EntryPayload::Blank }
        };
        let writes = [Write::Vote(Vote::new(term, 1)), Write::Append(indices.map(entry).collect())];
        store.write_all(writes.iter(), true).unwrap();
    }

    fn open(data: &Path) -> Result<RocksDisk, RaftError> {
        RocksDisk::open(data.join("raft"))
    }

    fn copy(from: &Path, to: &Path) {
        durable::create_directory(&to.join("raft")).unwrap();
        for entry in fs::read_dir(from.join("raft")).unwrap().map(Result::unwrap) {
            fs::copy(entry.path(), to.join("raft").join(entry.file_name())).unwrap();
        }
    }

    fn manifest(data: &Path) -> PathBuf {
        let mut files = fs::read_dir(data.join("raft")).unwrap().map(|entry| entry.unwrap().path());
        files.find(|path| path.file_name().unwrap().to_string_lossy().starts_with("MANIFEST")).unwrap()
    }

    /// A cut manifest leads to a refusal or to a database that is whole: never to an older vote or a shorter log.
    fn survives_a_cut_manifest(whole: &Path) {
        let copied = |cut_to: u64| {
            let cut = tempfile::tempdir().unwrap();
            copy(whole, cut.path());
            fs::File::options().write(true).open(manifest(cut.path())).unwrap().set_len(cut_to).unwrap();
            cut
        };
        let length = fs::metadata(manifest(whole)).unwrap().len();
        let expected = open(copied(length).path()).unwrap().load().unwrap();
        assert_eq!(expected.vote, Some(Vote::new(NEW_TERM, 1)));
        let mut refused = 0;
        // A head has as many bytes: each record is cut.
        for kept in (0..length).step_by(7) {
            match open(copied(kept).path()).map(|disk| disk.load()) {
                Ok(Ok(found)) => assert_eq!(found, expected, "{kept} of {length} bytes kept"),
                Ok(Err(_)) | Err(_) => refused += 1,
            }
        }
        assert!(refused > 0);
    }

    fn flush(disk: &RocksDisk) {
        [LOG, META].iter().for_each(|name| disk.db.flush_cf(disk.family(name)).unwrap());
    }

    #[test]
    fn a_manifest_cut_after_tables_were_written_does_not_bring_back_an_older_vote() {
        let whole = tempfile::tempdir().unwrap();
        let disk = open(whole.path()).unwrap();
        for (term, indices) in [(OLD_TERM, 0..10), (NEW_TERM, 10..20)] {
            write_in_term(&disk, term, indices);
            flush(&disk);
        }
        drop(disk);
        survives_a_cut_manifest(whole.path());
    }

    #[test]
    fn a_manifest_cut_after_restarts_does_not_bring_back_an_older_vote() {
        let whole = tempfile::tempdir().unwrap();
        for (term, indices) in [(OLD_TERM, 0..10), (NEW_TERM, 10..20)] {
            write_in_term(&open(whole.path()).unwrap(), term, indices);
        }
        drop(open(whole.path()).unwrap());
        survives_a_cut_manifest(whole.path());
    }

    #[test]
    fn a_manifest_cut_after_the_first_start_does_not_bring_back_an_empty_log() {
        let whole = tempfile::tempdir().unwrap();
        write_in_term(&open(whole.path()).unwrap(), NEW_TERM, 0..10);
        survives_a_cut_manifest(whole.path());
        drop(open(whole.path()).unwrap());
        survives_a_cut_manifest(whole.path());
    }

    #[test]
    fn a_first_start_that_ended_before_there_was_a_log_is_begun_anew() {
        let data = tempfile::tempdir().unwrap();
        let part = data.path().join("raft.part");
        durable::create_directory(&part).unwrap();
        drop(RocksDisk::open_existing(part.clone()).unwrap());
        for file in fs::read_dir(&part).unwrap().map(|entry| entry.unwrap().path()) {
            if file.extension().is_some_and(|extension| extension == "log") {
                fs::remove_file(file).unwrap();
            }
        }
        assert!(RocksDisk::open_existing(part.clone()).is_err());
        write_in_term(&open(data.path()).unwrap(), NEW_TERM, 0..10);
        assert_eq!(open(data.path()).unwrap().load().unwrap().vote, Some(Vote::new(NEW_TERM, 1)));
        assert!(!part.exists());
    }

    #[test]
    fn the_place_of_a_damaged_table_is_read_from_the_message() {
        let text = "Corruption: block checksum mismatch: stored = 1, computed = 2, type = 4  in /d/raft/000012.sst offset 4096 size 32";
        assert_eq!(named_place(text), Some((PathBuf::from("/d/raft/000012.sst"), 4096)));
    }
}
