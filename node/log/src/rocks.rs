//! A table on RocksDB.

use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;
use quorate_metadata::ids::DirectoryId;
use rocksdb::{
    ColumnFamily, ColumnFamilyDescriptor, CompactOptions, DB, DBCompressionType, DBRecoveryMode, Direction,
    FlushOptions, IteratorMode, LogLevel, Options, Range, ReadOptions, WriteBatch, WriteOptions,
};
use uuid::Uuid;

use crate::directory::Flush;
use crate::durable;
use crate::error::LogError;
use crate::keys;
use crate::reclaim::{Compact, Reclaimer, SETTLE};
use crate::table::{Change, Changes, Failure, Family, Row, Table};

/// In the default family, where nothing else is.
const ID: &[u8] = b"directory-id";

/// Few large memtables: records are written once, and mostly read soon after.
const MEMTABLE_BYTES: usize = 32 << 20;
/// Bounds what a restart has to recover.
const WAL_BYTES_MAX: u64 = 128 << 20;

/// A range with less than this is left to the compactions that writes bring with them.
const RECLAIMED_BYTES_MIN: u64 = 1 << 20;

pub struct RocksTable {
    db: Arc<DB>,
    reclaimer: Reclaimer,
}

impl RocksTable {
    /// Opens it, or creates it with a new id.
    pub fn open(path: &Path, flush: Flush) -> Result<(Self, DirectoryId), LogError> {
        let io = |reason: String| LogError::Io { path: path.to_owned(), reason };
        durable::create_directory(path).map_err(|error| io(error.to_string()))?;
        let db = DB::open_cf_descriptors(&database_options(flush), path, families()).map_err(|error| {
            if is_locked(&error) { LogError::Locked { path: path.to_owned() } } else { io(error.to_string()) }
        })?;
        let id = identify(&db).map_err(io)?;
        let db = Arc::new(db);
        let of_reclaimer = db.clone();
        let compact: Compact = Box::new(move |from, until| compact(&of_reclaimer, from, until));
        let reclaimer = Reclaimer::start(SETTLE, compact).map_err(|error| io(error.to_string()))?;
        Ok((Self { db, reclaimer }, id))
    }

    fn family(&self, family: Family) -> &ColumnFamily {
        self.db.cf_handle(name(family)).expect("opened with both families")
    }
}

impl Drop for RocksTable {
    /// A compaction may take long.
    fn drop(&mut self) {
        self.reclaimer.close();
        self.db.cancel_all_background_work(false);
    }
}

/// What is not in files yet takes no space that lasts.
fn compact(db: &DB, from: &[u8], until: &[u8]) {
    let family = db.cf_handle(name(Family::Batches)).expect("opened with both families");
    if db.get_approximate_sizes_cf(family, &[Range::new(from, until)])[0] < RECLAIMED_BYTES_MIN {
        return;
    }
    let mut options = CompactOptions::default();
    // Writes and their compactions go on beside it.
    options.set_exclusive_manual_compaction(false);
    db.compact_range_cf_opt(family, Some(from), Some(until), &options);
}

/// Whether a database could not be opened because it is open already. The error is a text: what failed, the path, which may
/// contain any word, and what the system said.
pub fn is_locked(error: &rocksdb::Error) -> bool {
    let text = error.to_string();
    let by_another =
        text.starts_with("IO error: While lock file: ") && text.ends_with(": Resource temporarily unavailable");
    by_another || text.starts_with("IO error: lock hold by current process")
}

impl Table for RocksTable {
    fn get(&self, family: Family, key: &[u8]) -> Result<Option<Bytes>, Failure> {
        let found = self.db.get_cf(self.family(family), key).map_err(text)?;
        Ok(found.map(Bytes::from))
    }

    fn scan(
        &self,
        family: Family,
        from: Vec<u8>,
        until: Option<Vec<u8>>,
    ) -> Box<dyn Iterator<Item = Result<Row, Failure>> + '_> {
        let mut options = ReadOptions::default();
        if let Some(until) = until {
            options.set_iterate_upper_bound(until);
        }
        let mode = IteratorMode::From(&from, Direction::Forward);
        let rows = self.db.iterator_cf_opt(self.family(family), options, mode);
        Box::new(rows.map(|row| row.map(|(key, value)| (key.into(), value.into())).map_err(text)))
    }

    fn commit(&self, changes: &Changes, sync: bool) -> Result<(), Failure> {
        let mut batch = WriteBatch::default();
        for change in changes.iter() {
            match change {
                Change::Put { family, key, value } => batch.put_cf(self.family(*family), key, value),
                Change::Delete { family, key } => batch.delete_cf(self.family(*family), key),
                Change::DeleteRange { family, from, until } => {
                    batch.delete_range_cf(self.family(*family), from, until);
                }
            }
        }
        let mut options = WriteOptions::default();
        options.set_sync(sync);
        self.db.write_opt(batch, &options).map_err(text)?;
        for change in changes.iter() {
            if let Change::DeleteRange { family: Family::Batches, from, until } = change {
                self.reclaimer.deleted(from, until);
            }
        }
        Ok(())
    }

    fn reclaim(&self, from: &[u8], until: &[u8]) {
        self.reclaimer.deleted(from, until);
    }

    fn sync(&self) -> Result<(), Failure> {
        self.db.flush_wal(true).map_err(text)
    }

    fn flush(&self) -> Result<(), Failure> {
        let families = Family::ALL.map(|family| self.family(family));
        self.db.flush_cfs_opt(&families, &FlushOptions::default()).map_err(text)
    }
}

fn text(error: rocksdb::Error) -> Failure {
    error.to_string()
}

fn name(family: Family) -> &'static str {
    match family {
        Family::Batches => "batches",
        Family::Meta => "meta",
    }
}

fn identify(db: &DB) -> Result<DirectoryId, Failure> {
    if let Some(value) = db.get(ID).map_err(text)? {
        let body = keys::unseal(ID, &value)?;
        return Ok(DirectoryId::new(Uuid::from_slice(body).map_err(|error| error.to_string())?));
    }
    #[expect(clippy::disallowed_methods, reason = "files only: a simulated directory is given its id")]
    let id = DirectoryId::new(Uuid::new_v4());
    let mut options = WriteOptions::default();
    options.set_sync(true);
    db.put_opt(ID, keys::seal(ID, id.as_bytes()), &options).map_err(text)?;
    Ok(id)
}

fn database_options(flush: Flush) -> Options {
    let mut options = Options::default();
    options.create_if_missing(true);
    options.create_missing_column_families(true);
    options.set_paranoid_checks(true);
    // A record cut by a crash was acknowledged to nobody. Unsynced, a loss of power may cut earlier than at the tail.
    options.set_wal_recovery_mode(match flush {
        Flush::Os => DBRecoveryMode::PointInTime,
        Flush::Always => DBRecoveryMode::TolerateCorruptedTailRecords,
    });
    // A log's batches and its meta data are never of different ages.
    options.set_atomic_flush(true);
    options.set_max_total_wal_size(WAL_BYTES_MAX);
    options.set_max_background_jobs(2);
    options.set_keep_log_file_num(2);
    options.set_max_log_file_size(1 << 20);
    options.set_log_level(LogLevel::Warn);
    options.set_stats_dump_period_sec(0);
    options
}

fn families() -> Vec<ColumnFamilyDescriptor> {
    let mut options = Options::default();
    options.set_compression_type(DBCompressionType::None);
    options.set_write_buffer_size(MEMTABLE_BYTES);
    options.set_max_write_buffer_number(2);
    options.set_paranoid_checks(true);
    Family::ALL.map(|family| ColumnFamilyDescriptor::new(name(family), options.clone())).into()
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    /// A minute: for what comes, however slow the machine is.
    const LOOKS_MAX: usize = 1_200;

    fn bytes_in(folder: &Path) -> u64 {
        let files = std::fs::read_dir(folder).unwrap().map(Result::unwrap);
        // One may be gone by now.
        files.filter_map(|file| Some(file.metadata().ok()?.len())).sum()
    }

    #[test]
    fn deleted_ranges_give_their_space_back_without_further_writes() {
        let folder = tempfile::tempdir().unwrap();
        let (table, _) = RocksTable::open(folder.path(), Flush::Os).unwrap();
        let key = |number: u32| [&b"log"[..], &number.to_be_bytes()].concat();
        for number in 0..80 {
            let mut changes = Changes::default();
            changes.put(Family::Batches, key(number), vec![7; 1 << 20].into());
            table.commit(&changes, false).unwrap();
        }
        assert!(bytes_in(folder.path()) > 64 << 20);
        let mut changes = Changes::default();
        changes.delete_range(Family::Batches, key(0), key(79));
        table.commit(&changes, false).unwrap();
        let mut looks = 0;
        while bytes_in(folder.path()) > 8 << 20 {
            looks += 1;
            assert!(looks < LOOKS_MAX, "{} bytes", bytes_in(folder.path()));
            std::thread::park_timeout(Duration::from_millis(50));
        }
        assert!(table.get(Family::Batches, &key(79)).unwrap().is_some(), "it was not deleted");
    }

    #[test]
    fn only_a_database_that_is_open_is_locked() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("lock");
        let open = RocksTable::open(&path, Flush::Os).unwrap();
        assert!(matches!(RocksTable::open(&path, Flush::Os), Err(LogError::Locked { .. })));
        drop(open);
        std::fs::remove_file(path.join("LOCK")).unwrap();
        std::fs::create_dir(path.join("LOCK")).unwrap();
        let Err(LogError::Io { reason, .. }) = RocksTable::open(&path, Flush::Os) else {
            panic!("it cannot be opened")
        };
        assert!(reason.contains("Is a directory"), "{reason}");
    }
}
