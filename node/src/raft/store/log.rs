//! The log as openraft sees it: the tail in memory, the disk below, the flusher beside.

use std::fmt::Debug;
use std::io;
use std::ops::{Bound, Range, RangeBounds};
use std::sync::{Arc, Mutex, MutexGuard};

use futures::{Stream, TryStreamExt, stream};
use openraft::OptionalSend;
use openraft::storage::{IOFlushed, LogState, RaftLogReader, RaftLogStorage};
use tokio::sync::{mpsc, oneshot, watch};

use quorate_log::Operations;
use quorate_metadata::mutant::Mutant;

use super::super::RaftError;
use super::super::types::{Entry, LogId, Types, Vote};
use super::flush::{self, Done, Op, Progress};
use super::tail::Tail;
use super::{Disk, Loaded, Write};

/// Bytes of entries in one append request: what a follower gets in one piece.
const APPEND_BYTES_MAX: usize = 1 << 20;

/// Cheap to clone; all clones are one log.
#[derive(Clone)]
pub struct LogStore {
    shared: Arc<Shared>,
}

struct Shared {
    disk: Arc<dyn Disk>,
    queue: mpsc::Sender<Op>,
    progress: Arc<Progress>,
    state: Mutex<State>,
}

/// What has been asked for so far, whether it is on the disk yet or not.
struct State {
    vote: Option<Vote>,
    committed: Option<LogId>,
    purged: Option<LogId>,
    first: u64,
    last: Option<LogId>,
    tail: Tail,
    sequence: u64,
}

impl State {
    fn next(&mut self) -> u64 {
        self.sequence += 1;
        self.sequence
    }
}

impl LogStore {
    /// Starts the flusher of the disk that was `loaded`. The receiver resolves when the flusher has ended, that is, after all
    /// clones are gone and all they queued is on the disk.
    pub fn start(disk: Arc<dyn Disk>, loaded: Loaded) -> (Self, oneshot::Receiver<()>) {
        let (queue, progress, flush_queue, ended) = flush::queue();
        disk.clone().start_flusher(flush_queue);
        let state = Mutex::new(State {
            vote: loaded.vote,
            committed: loaded.known_committed(),
            purged: loaded.purged,
            first: loaded.first,
            last: loaded.last,
            tail: Tail::default(),
            sequence: 0,
        });
        (Self { shared: Arc::new(Shared { disk, queue, progress, state }) }, ended)
    }

    pub async fn set_generation(&self, generation: u64) -> io::Result<()> {
        let sequence = self.state().next();
        self.write(sequence, Write::Generation(generation)).await
    }

    /// The last entry that can go when there is a snapshot up to `snapshot`. `kept` entries stay behind it, but none that is
    /// only on the disk when the entries in memory are so many bytes that a follower which lacks more of them is better
    /// served by a snapshot. None: nothing can go.
    pub fn removable(&self, snapshot: u64, kept: u64) -> Option<u64> {
        let state = self.state();
        let by_bytes = state.tail.before().map(|cold| cold.min(snapshot));
        snapshot.checked_sub(kept).max(by_bytes).filter(|upto| *upto >= state.first)
    }

    pub fn committed(&self) -> Option<LogId> {
        self.state().committed
    }

    /// The term of the vote that is on the disk.
    pub fn voted_term(&self) -> u64 {
        self.state().vote.map_or(0, |vote| vote.leader_id.term)
    }

    /// Becomes Some when the disk has failed a write.
    pub fn failure(&self) -> watch::Receiver<Option<String>> {
        self.shared.progress.failure()
    }

    /// What the disk is being asked for now.
    pub fn operations(&self) -> Operations {
        self.shared.progress.operations().clone()
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.shared.state.lock().expect("no holder panics")
    }

    async fn enqueue(&self, op: Op) -> io::Result<()> {
        self.shared.queue.send(op).await.map_err(|_| io::Error::other("the flusher has ended"))
    }

    async fn write(&self, sequence: u64, write: Write) -> io::Result<()> {
        let (ack, done) = oneshot::channel();
        self.enqueue(Op::new(sequence, write, Done::Ack(ack))).await?;
        done.await.map_err(|_| io::Error::other("the flusher has ended"))?
    }

    async fn read(&self, range: Range<u64>, max_bytes: usize) -> io::Result<Vec<Entry>> {
        let mut missing = None;
        loop {
            let (below, from_tail) = match self.locate(range.clone(), max_bytes) {
                Found::Tail(entries) => return Ok(entries),
                Found::Disk(below, from_tail) => (below, from_tail),
            };
            let mut entries = self.read_disk(below.clone(), max_bytes).await?;
            if entries.last().is_some_and(|entry| entry.log_id.index + 1 == below.end) && max_bytes == usize::MAX {
                entries.extend(from_tail);
            }
            if entries.first().is_some_and(|first| first.log_id.index == below.start) {
                return Ok(entries);
            }
            // Purged or truncated while it was read: then the log holds less of the range now.
            if missing.replace(below.clone()) == Some(below.clone()) {
                return Err(io::Error::other(format!("log entry {} is missing", below.start)));
            }
        }
    }

    fn locate(&self, range: Range<u64>, max_bytes: usize) -> Found {
        let state = self.state();
        let range = available(&state, range);
        let tail_first = state.tail.first().unwrap_or(range.end);
        if range.is_empty() || range.start >= tail_first {
            return Found::Tail(state.tail.read(range, max_bytes));
        }
        let from_tail = state.tail.read(tail_first..range.end, max_bytes);
        Found::Disk(range.start..range.end.min(tail_first), from_tail)
    }

    /// What is not in the tail was flushed before it left it, so the disk has it.
    #[expect(clippy::disallowed_methods, reason = "a device only: a simulated voter keeps its log in memory")]
    async fn read_disk(&self, range: Range<u64>, max_bytes: usize) -> io::Result<Vec<Entry>> {
        let disk = self.shared.disk.clone();
        if !disk.is_device() {
            return disk.read(range, max_bytes);
        }
        let read = tokio::task::spawn_blocking(move || disk.read(range, max_bytes));
        read.await.map_err(io::Error::other)?
    }
}

/// Where entries are.
enum Found {
    Tail(Vec<Entry>),
    /// The range that the disk has, and the rest.
    Disk(Range<u64>, Vec<Entry>),
}

/// The part of `range` that the log holds.
fn available(state: &State, range: Range<u64>) -> Range<u64> {
    let end = state.last.map_or(0, |last| last.index + 1);
    let start = range.start.max(state.first);
    start..range.end.min(end).max(start)
}

fn bounds(range: &impl RangeBounds<u64>) -> Range<u64> {
    let start = match range.start_bound() {
        Bound::Included(start) => *start,
        Bound::Excluded(before) => before + 1,
        Bound::Unbounded => 0,
    };
    let end = match range.end_bound() {
        Bound::Included(last) => last.saturating_add(1),
        Bound::Excluded(end) => *end,
        Bound::Unbounded => u64::MAX,
    };
    start..end.max(start)
}

impl RaftLogReader<Types> for LogStore {
    async fn try_get_log_entries<R: RangeBounds<u64> + Clone + Debug + OptionalSend>(
        &mut self,
        range: R,
    ) -> io::Result<Vec<Entry>> {
        self.read(bounds(&range), usize::MAX).await
    }

    async fn limited_get_log_entries(&mut self, start: u64, end: u64) -> io::Result<Vec<Entry>> {
        self.read(start..end, APPEND_BYTES_MAX).await
    }

    /// Piece by piece: a run of entries to be replayed may be as long as the log.
    async fn entries_stream<R: RangeBounds<u64> + Clone + Debug + OptionalSend>(
        &mut self,
        range: R,
    ) -> impl Stream<Item = io::Result<Entry>> + OptionalSend {
        let pieces = stream::try_unfold((self.clone(), bounds(&range)), |(log, rest)| async move {
            let piece = log.read(rest.clone(), APPEND_BYTES_MAX).await?;
            let Some(last) = piece.last() else {
                return Ok(None);
            };
            let rest = last.log_id.index + 1..rest.end;
            Ok::<_, io::Error>(Some((stream::iter(piece.into_iter().map(Ok::<_, io::Error>)), (log, rest))))
        });
        pieces.try_flatten()
    }

    async fn read_vote(&mut self) -> io::Result<Option<Vote>> {
        Ok(self.state().vote)
    }
}

impl RaftLogStorage<Types> for LogStore {
    type LogReader = Self;

    async fn get_log_state(&mut self) -> io::Result<LogState<Types>> {
        let state = self.state();
        Ok(LogState { last_purged_log_id: state.purged, last_log_id: state.last })
    }

    async fn get_log_reader(&mut self) -> Self {
        self.clone()
    }

    async fn save_vote(&mut self, vote: &Vote) -> io::Result<()> {
        fail::fail_point!("raft.vote", |_| Err(io::Error::other("failpoint raft.vote")));
        if !Mutant::UnsavedVote.is_on() {
            let sequence = self.state().next();
            self.write(sequence, Write::Vote(*vote)).await?;
        }
        self.state().vote = Some(*vote);
        Ok(())
    }

    async fn save_committed(&mut self, committed: Option<LogId>) -> io::Result<()> {
        self.state().committed = committed;
        if self.shared.progress.set_committed(committed) {
            // A full queue has writes that take the index along.
            let _ = self.shared.queue.try_send(Op::save_committed());
        }
        Ok(())
    }

    async fn read_committed(&mut self) -> io::Result<Option<LogId>> {
        Ok(self.state().committed)
    }

    async fn append<I>(&mut self, entries: I, flushed: IOFlushed<Types>) -> io::Result<()>
    where
        I: IntoIterator<Item = Entry> + OptionalSend,
        I::IntoIter: OptionalSend,
    {
        fail::fail_point!("raft.append", |_| Err(io::Error::other("failpoint raft.append")));
        let entries: Vec<Entry> = entries.into_iter().collect();
        let sequence = {
            let mut state = self.state();
            let sequence = state.next();
            if let (None, Some(entry)) = (state.last, entries.first()) {
                state.first = entry.log_id.index;
            }
            state.last = entries.last().map(|entry| entry.log_id).or(state.last);
            entries.iter().for_each(|entry| state.tail.append(sequence, entry.clone()));
            state.tail.evict(self.shared.progress.flushed());
            sequence
        };
        self.enqueue(Op::new(sequence, Write::Append(entries), Done::Flushed(flushed))).await
    }

    /// Refuses to cut below what is committed, which may have been replayed and acknowledged: the leader's log lacks it.
    async fn truncate_after(&mut self, kept: Option<LogId>) -> io::Result<()> {
        let from = kept.map_or(0, |id| id.index + 1);
        if let Some(committed) = self.state().committed.filter(|committed| committed.index >= from) {
            let reason = RaftError::VoterStateDiverged { index: from, committed: committed.index }.to_string();
            self.shared.progress.fail(&reason);
            return Err(io::Error::other(reason));
        }
        let sequence = {
            let mut state = self.state();
            state.tail.truncate(from);
            if state.last.is_some_and(|last| last.index >= from) {
                state.last = kept;
            }
            state.next()
        };
        self.write(sequence, Write::Truncate { from }).await
    }

    async fn purge(&mut self, upto: LogId) -> io::Result<()> {
        let sequence = {
            let mut state = self.state();
            state.tail.purge(upto.index);
            state.purged = state.purged.max(Some(upto));
            state.first = state.first.max(upto.index + 1);
            // A snapshot may reach beyond the log: what it covers counts as present.
            if state.last.is_none_or(|last| last.index <= upto.index) {
                state.last = Some(upto);
            }
            state.next()
        };
        self.enqueue(Op::new(sequence, Write::Purge(upto), Done::Nobody)).await
    }
}
