//! A table in memory, for simulations: it knows which commits are on stable storage and which are not. A crash of the
//! process loses nothing; a loss of power loses the commits since the last sync, or all but the first few of them.

use std::collections::BTreeMap;
use std::ops::Bound;
use std::sync::{Arc, Condvar, Mutex, MutexGuard};

use bytes::Bytes;
use quorate_metadata::ids::DirectoryId;

use crate::table::{Change, Changes, Failure, Family, Row, Table};

/// Cheap to clone; all clones are one disk, which outlives the processes that open it.
#[derive(Clone)]
pub struct MemoryLogs {
    id: DirectoryId,
    medium: Arc<Mutex<Medium>>,
    /// Notified when the disk answers again.
    answers: Arc<Condvar>,
}

#[derive(Default)]
struct Medium {
    /// What a process reads.
    image: Rows,
    durable: Rows,
    /// Commits that are in the image, and not durable.
    pending: Vec<Changes>,
    fault: Fault,
}

#[derive(Default, Clone, Copy, PartialEq, Eq)]
enum Fault {
    #[default]
    None,
    /// Every later commit and sync fails.
    Broken,
    /// As `Broken`, for lack of room.
    Full,
    /// Every later commit and sync waits.
    Hangs,
}

#[derive(Default, Clone)]
struct Rows([BTreeMap<Bytes, Bytes>; 2]);

impl MemoryLogs {
    pub fn new(id: DirectoryId) -> Self {
        Self { id, medium: Arc::default(), answers: Arc::default() }
    }

    pub fn id(&self) -> DirectoryId {
        self.id
    }

    /// Power off: commits that were not synced are gone but for the first `kept`. A disk that was broken is mended. Nobody
    /// may have it open.
    pub fn crash(&self, kept: usize) {
        let mut medium = self.medium();
        let survived = kept.min(medium.pending.len());
        medium.make_durable(survived);
        medium.pending.clear();
        medium.image = medium.durable.clone();
        medium.fault = Fault::None;
    }

    /// From now on nothing can be written.
    pub fn break_disk(&self) {
        self.set(Fault::Broken);
    }

    /// From now on there is no room.
    pub fn fill_disk(&self) {
        self.set(Fault::Full);
    }

    /// From now on what writes waits, on its thread, until the disk is mended.
    pub fn hang_disk(&self) {
        self.set(Fault::Hangs);
    }

    /// The disk is as it should be.
    pub fn mend_disk(&self) {
        self.set(Fault::None);
        self.answers.notify_all();
    }

    fn set(&self, fault: Fault) {
        self.medium().fault = fault;
    }

    /// To write, when the disk answers.
    fn answering(&self) -> Result<MutexGuard<'_, Medium>, Failure> {
        let hangs = |medium: &mut Medium| medium.fault == Fault::Hangs;
        let medium = self.answers.wait_while(self.medium(), hangs).expect("no holder panics");
        medium.writable().map(|()| medium)
    }

    /// How many commits a loss of power would take now.
    pub fn pending(&self) -> usize {
        self.medium().pending.len()
    }

    fn medium(&self) -> MutexGuard<'_, Medium> {
        self.medium.lock().expect("no holder panics")
    }
}

impl Medium {
    fn make_durable(&mut self, count: usize) {
        for changes in self.pending.drain(..count) {
            self.durable.apply(&changes);
        }
    }

    fn writable(&self) -> Result<(), Failure> {
        match self.fault {
            Fault::None | Fault::Hangs => Ok(()),
            Fault::Broken => Err("Input/output error (os error 5)".to_owned()),
            Fault::Full => Err("No space left on device (os error 28)".to_owned()),
        }
    }
}

impl Rows {
    fn family(&self, family: Family) -> &BTreeMap<Bytes, Bytes> {
        &self.0[family as usize]
    }

    fn apply(&mut self, changes: &Changes) {
        for change in changes.iter() {
            match change {
                Change::Put { family, key, value } => {
                    self.0[*family as usize].insert(Bytes::copy_from_slice(key), value.clone());
                }
                Change::Delete { family, key } => _ = self.0[*family as usize].remove(key.as_slice()),
                Change::DeleteRange { family, from, until } if from < until => {
                    let rows = &mut self.0[*family as usize];
                    let mut deleted = rows.split_off(from.as_slice());
                    rows.append(&mut deleted.split_off(until.as_slice()));
                }
                // As RocksDB: from the end of a range to its beginning there is nothing.
                Change::DeleteRange { .. } => {}
            }
        }
    }
}

impl Table for MemoryLogs {
    fn get(&self, family: Family, key: &[u8]) -> Result<Option<Bytes>, Failure> {
        Ok(self.medium().image.family(family).get(key).cloned())
    }

    fn scan(
        &self,
        family: Family,
        from: Vec<u8>,
        until: Option<Vec<u8>>,
    ) -> Box<dyn Iterator<Item = Result<Row, Failure>> + '_> {
        let mut after = Bound::Included(Bytes::from(from));
        let until = until.map_or(Bound::Unbounded, |until| Bound::Excluded(Bytes::from(until)));
        Box::new(std::iter::from_fn(move || {
            let medium = self.medium();
            let (key, value) = medium.image.family(family).range((after.clone(), until.clone())).next()?;
            let row = (key.clone(), value.clone());
            after = Bound::Excluded(row.0.clone());
            Some(Ok(row))
        }))
    }

    fn commit(&self, changes: &Changes, sync: bool) -> Result<(), Failure> {
        {
            let mut medium = self.answering()?;
            medium.image.apply(changes);
            medium.pending.push(changes.clone());
        }
        if sync { self.sync() } else { Ok(()) }
    }

    /// What is deleted takes no space.
    fn reclaim(&self, _: &[u8], _: &[u8]) {}

    fn sync(&self) -> Result<(), Failure> {
        let mut medium = self.answering()?;
        let all = medium.pending.len();
        medium.make_durable(all);
        Ok(())
    }

    fn flush(&self) -> Result<(), Failure> {
        self.sync()
    }
}
