//! What a directory stands on: sorted rows in two families, changed by commits that take effect as a whole. On RocksDB, or
//! in memory.

use bytes::Bytes;

pub type Row = (Bytes, Bytes);

/// Why a table cannot go on.
pub type Failure = String;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Family {
    Batches,
    Meta,
}

impl Family {
    pub const ALL: [Self; 2] = [Self::Batches, Self::Meta];
}

#[derive(Debug, Clone)]
pub enum Change {
    Put {
        family: Family,
        key: Vec<u8>,
        value: Bytes,
    },
    Delete {
        family: Family,
        key: Vec<u8>,
    },
    /// Without `until` itself.
    DeleteRange {
        family: Family,
        from: Vec<u8>,
        until: Vec<u8>,
    },
}

/// In the order in which they take effect.
#[derive(Debug, Clone, Default)]
pub struct Changes {
    list: Vec<Change>,
    bytes: usize,
}

impl Changes {
    pub fn is_empty(&self) -> bool {
        self.list.is_empty()
    }

    pub fn size_bytes(&self) -> usize {
        self.bytes
    }

    pub fn iter(&self) -> impl Iterator<Item = &Change> {
        self.list.iter()
    }

    pub fn put(&mut self, family: Family, key: Vec<u8>, value: Bytes) {
        self.bytes += key.len() + value.len();
        self.list.push(Change::Put { family, key, value });
    }

    pub fn delete(&mut self, family: Family, key: Vec<u8>) {
        self.bytes += key.len();
        self.list.push(Change::Delete { family, key });
    }

    pub fn delete_range(&mut self, family: Family, from: Vec<u8>, until: Vec<u8>) {
        self.bytes += from.len() + until.len();
        self.list.push(Change::DeleteRange { family, from, until });
    }
}

pub trait Table: Send + Sync {
    fn get(&self, family: Family, key: &[u8]) -> Result<Option<Bytes>, Failure>;

    /// The rows of `from` and after it, and before `until`.
    fn scan(
        &self,
        family: Family,
        from: Vec<u8>,
        until: Option<Vec<u8>>,
    ) -> Box<dyn Iterator<Item = Result<Row, Failure>> + '_>;

    /// After a crash either all of it is there or nothing. With `sync` it is on stable storage when this returns.
    fn commit(&self, changes: &Changes, sync: bool) -> Result<(), Failure>;

    /// The space of batches between `from` and `until` that were deleted is given back a while later.
    fn reclaim(&self, from: &[u8], until: &[u8]);

    /// All commits so far are on stable storage when this returns.
    fn sync(&self) -> Result<(), Failure>;

    /// What is kept in memory beside its log is in files of its own, so that the log goes.
    fn flush(&self) -> Result<(), Failure>;
}
