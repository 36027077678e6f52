//! The queue between Raft and the one writer. Order is the point: votes, appends, truncations and purges reach the disk
//! as they were asked for, and each waiter learns of its own write when, and only when, that is on stable storage.

use std::io;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use openraft::storage::IOFlushed;
use quorate_log::{Operation, Operations};
use tokio::sync::{mpsc, oneshot, watch};

use super::super::types::{LogId, Types};
use super::{Write, entry_bytes};

/// Bytes in one synced batch: larger ones keep the first waiter waiting for the last one's bytes.
const BATCH_BYTES_MAX: usize = 4 << 20;
/// Writes waiting for the flusher. openraft merges appends, so this many means a disk that stands still.
const QUEUE_MAX: usize = 4096;

pub struct Op {
    pub sequence: u64,
    /// None: nothing but the committed index, which each batch takes along.
    pub write: Option<Write>,
    pub done: Done,
}

impl Op {
    pub fn new(sequence: u64, write: Write, done: Done) -> Self {
        Self { sequence, write: Some(write), done }
    }

    pub fn save_committed() -> Self {
        Self { sequence: 0, write: None, done: Done::Nobody }
    }
}

/// Whom to tell.
pub enum Done {
    Flushed(IOFlushed<Types>),
    Ack(oneshot::Sender<io::Result<()>>),
    Nobody,
}

/// Seen by both ends of the queue.
pub struct Progress {
    /// The last write that is on stable storage.
    flushed: AtomicU64,
    /// Is written with the next batch, and has no fsync of its own: it outlives the process, not a loss of power.
    committed: Mutex<Option<Option<LogId>>>,
    /// Why the disk takes no more writes. After a failed fsync nothing later may be reported as durable.
    failure: watch::Sender<Option<String>>,
    /// What the disk is being asked for now.
    operations: Operations,
}

impl Progress {
    pub fn flushed(&self) -> u64 {
        self.flushed.load(Ordering::Acquire)
    }

    /// True when no earlier index waits to be written.
    pub fn set_committed(&self, committed: Option<LogId>) -> bool {
        self.committed.lock().expect("no holder panics").replace(committed).is_none()
    }

    pub fn failure(&self) -> watch::Receiver<Option<String>> {
        self.failure.subscribe()
    }

    pub fn operations(&self) -> &Operations {
        &self.operations
    }

    fn take_committed(&self) -> Option<Write> {
        self.committed.lock().expect("no holder panics").take().map(Write::Committed)
    }

    fn refused(&self) -> Option<io::Error> {
        self.failure.borrow().as_ref().map(|reason| io::Error::other(format!("the log takes no more writes: {reason}")))
    }

    pub fn fail(&self, reason: &str) {
        tracing::error!(reason, "the log takes no more writes");
        self.failure.send_if_modified(|failure| {
            let first = failure.is_none();
            failure.get_or_insert_with(|| reason.to_owned());
            first
        });
    }
}

/// The flusher's end.
pub struct FlushQueue {
    ops: mpsc::Receiver<Op>,
    progress: Arc<Progress>,
    /// Dropped with the queue: whoever waits for the other end knows that the flusher has let go of the disk.
    _ended: oneshot::Sender<()>,
}

/// What is written with one fsync.
pub struct Batch {
    ops: Vec<Op>,
    committed: Option<Write>,
}

impl Batch {
    pub fn writes(&self) -> impl Iterator<Item = &Write> {
        self.ops.iter().filter_map(|op| op.write.as_ref()).chain(&self.committed)
    }

    /// Whether someone waits until it is on stable storage.
    pub fn needs_sync(&self) -> bool {
        self.ops.iter().any(|op| op.write.is_some())
    }
}

pub fn queue() -> (mpsc::Sender<Op>, Arc<Progress>, FlushQueue, oneshot::Receiver<()>) {
    let (sender, ops) = mpsc::channel(QUEUE_MAX);
    let (ended_tx, ended) = oneshot::channel();
    let progress = Arc::new(Progress {
        flushed: AtomicU64::new(0),
        committed: Mutex::new(None),
        failure: watch::Sender::new(None),
        operations: Operations::default(),
    });
    let queue = FlushQueue { ops, progress: progress.clone(), _ended: ended_tx };
    (sender, progress, queue, ended)
}

impl FlushQueue {
    /// All that waits, up to the cap. None when there will be no more.
    pub fn blocking_next(&mut self) -> Option<Batch> {
        let first = self.ops.blocking_recv()?;
        Some(self.drain(first))
    }

    pub async fn next(&mut self) -> Option<Batch> {
        let first = self.ops.recv().await?;
        Some(self.drain(first))
    }

    fn drain(&mut self, first: Op) -> Batch {
        let mut bytes = op_bytes(&first);
        let mut ops = vec![first];
        while bytes < BATCH_BYTES_MAX
            && let Ok(op) = self.ops.try_recv()
        {
            bytes += op_bytes(&op);
            ops.push(op);
        }
        Batch { ops, committed: self.progress.take_committed() }
    }

    /// What still waits for a batch to ride on.
    pub fn leftover(&self) -> Option<Write> {
        self.progress.take_committed()
    }

    /// An error while the disk is known to be bad: `batch` must not be tried.
    pub fn refused(&self) -> Option<io::Error> {
        self.progress.refused()
    }

    /// A write that lasts until the value is dropped.
    pub fn begin_write(&self) -> Operation {
        self.progress.operations.begin()
    }

    pub fn finish(&self, batch: Batch, result: io::Result<()>) {
        match &result {
            Ok(()) => {
                let last = batch.ops.iter().map(|op| op.sequence).max().unwrap_or_default();
                self.progress.flushed.fetch_max(last, Ordering::AcqRel);
            }
            Err(error) => self.progress.fail(&format!("the disk failed: {error}")),
        }
        for op in batch.ops {
            op.done.tell(copy(&result));
        }
    }
}

impl Done {
    fn tell(self, result: io::Result<()>) {
        match self {
            Self::Flushed(flushed) => flushed.io_completed(result),
            // A waiter that has gone away no longer cares.
            Self::Ack(waiter) => drop(waiter.send(result)),
            Self::Nobody => {}
        }
    }
}

fn copy(result: &io::Result<()>) -> io::Result<()> {
    match result {
        Ok(()) => Ok(()),
        Err(error) => Err(io::Error::new(error.kind(), error.to_string())),
    }
}

fn op_bytes(op: &Op) -> usize {
    match &op.write {
        Some(Write::Append(entries)) => entries.iter().map(entry_bytes).sum(),
        Some(
            Write::Vote(_) | Write::Truncate { .. } | Write::Purge(_) | Write::Generation(_) | Write::Committed(_),
        )
        | None => 0,
    }
}
