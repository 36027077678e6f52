//! Replay, beside consensus: the replica has a thread of its own, so that a heartbeat or a vote never waits for a batch of
//! many records, a freeze or the installation of a snapshot.
//!
//! Raft's thread sends one piece of a run at a time and awaits it without blocking, so at most one piece is between the two:
//! [`PIECE_ENTRIES_MAX`] entries, or [`PIECE_BYTES_MAX`] and one entry more. What is committed meanwhile waits in the log.
//! A simulation has no threads: there a piece is replayed where it is sent.

use std::io::{self, Read};
use std::sync::Mutex;

use openraft::EntryPayload;
use openraft::storage::{ApplyResponder, EntryResponder};
use tokio::sync::{mpsc, oneshot, watch};

use quorate_metadata::ids::ControllerEpoch;

use super::store::Snapshot;
use super::types::{Applied, Entry, LogId, Types};
use super::{FrozenReplica, RaftError, Replica, ReplicaError};
use crate::machine::Workers;

/// Entries in one piece: as many as one append has.
pub const PIECE_ENTRIES_MAX: usize = 1024;
/// Bytes in one piece: as many as one append has.
pub const PIECE_BYTES_MAX: usize = 1 << 20;
/// The sender awaits each job before it sends the next.
const JOBS_MAX: usize = 1;

type Job = Box<dyn FnOnce(&mut State) + Send>;

/// The replica, wherever it is replayed.
pub struct Replay {
    place: Place,
}

enum Place {
    /// Never contended: openraft wants `Sync`, a mutex gives it.
    Here(Mutex<State>),
    Thread(mpsc::Sender<Job>),
}

/// The replica and what waits for it. One job has it at a time.
pub struct State {
    replica: Box<dyn Replica>,
    /// Replies of the run that is not published yet.
    replies: Vec<(ApplyResponder<Types>, Applied)>,
}

impl Replay {
    /// Replays on the caller's thread.
    pub fn here(replica: Box<dyn Replica>) -> Self {
        Self { place: Place::Here(Mutex::new(State::new(replica))) }
    }

    /// Replays where `workers` says. A thread drops `finished` when it has ended, which is after this value is dropped.
    pub fn start(replica: Box<dyn Replica>, workers: Workers, finished: watch::Sender<()>) -> Result<Self, RaftError> {
        if workers == Workers::Tasks {
            return Ok(Self::here(replica));
        }
        let (jobs, queue) = mpsc::channel(JOBS_MAX);
        let thread = std::thread::Builder::new().name("raft-replay".into());
        let serve = move || {
            serve(State::new(replica), queue);
            drop(finished);
        };
        thread.spawn(serve).map_err(RaftError::io("start the replay thread"))?;
        Ok(Self { place: Place::Thread(jobs) })
    }

    /// Does `work` where the replica is. An error means that the replica is gone: an earlier job has panicked.
    pub async fn run<T: Send + 'static>(
        &mut self,
        work: impl FnOnce(&mut State) -> T + Send + 'static,
    ) -> io::Result<T> {
        let jobs = match &mut self.place {
            Place::Here(state) => return Ok(work(state.get_mut().expect("no holder panics"))),
            Place::Thread(jobs) => jobs,
        };
        let (answer, answered) = oneshot::channel();
        let job = move |state: &mut State| {
            // Raft's task may have been dropped with its runtime.
            let _ = answer.send(work(state));
        };
        jobs.send(Box::new(job)).await.map_err(|_| ended())?;
        answered.await.map_err(|_| ended())
    }
}

fn serve(mut state: State, mut queue: mpsc::Receiver<Job>) {
    while let Some(job) = queue.blocking_recv() {
        job(&mut state);
    }
}

fn ended() -> io::Error {
    io::Error::other("the replay thread has ended")
}

impl State {
    fn new(replica: Box<dyn Replica>) -> Self {
        Self { replica, replies: Vec::new() }
    }

    /// Replays a piece of a run; publishes and replies after the last one. A reply comes after what it refers to is visible.
    pub fn replay(&mut self, piece: Vec<EntryResponder<Types>>, is_last: bool) -> io::Result<()> {
        fail::fail_point!("raft.replay");
        for (entry, responder) in piece {
            let applied = self.replay_entry(&entry)?;
            self.replies.extend(responder.map(|responder| (responder, applied)));
        }
        if is_last {
            self.replica.publish();
            self.replies.drain(..).for_each(|(responder, applied)| responder.send(applied));
        }
        Ok(())
    }

    fn replay_entry(&mut self, entry: &Entry) -> io::Result<Applied> {
        let EntryPayload::Normal(payload) = &entry.payload else {
            return Ok(Applied::Internal);
        };
        let outcome = self.replica.replay(epoch_of(entry.log_id)?, &payload.0);
        outcome.map(Applied::from).map_err(|error| broken(entry.log_id, &error))
    }

    pub fn freeze(&self) -> Box<dyn FrozenReplica> {
        self.replica.freeze()
    }

    pub fn install(&mut self, snapshot: &Snapshot) -> io::Result<()> {
        let mut content = snapshot.read()?;
        let installed = self.replica.install(&mut content);
        installed.map_err(|error| io::Error::other(format!("{}: {error}", snapshot.name())))?;
        // The replica may stop before the end, where the length is checked.
        io::copy(&mut content.by_ref(), &mut io::sink())?;
        Ok(())
    }
}

/// A controller epoch is a term, in Kafka's width.
fn epoch_of(id: LogId) -> io::Result<ControllerEpoch> {
    let term = id.leader_id.term;
    i32::try_from(term)
        .map(ControllerEpoch::new)
        .map_err(|_| io::Error::other(format!("term {term} is no controller epoch")))
}

fn broken(id: LogId, error: &ReplicaError) -> io::Error {
    io::Error::other(format!("cannot replay log entry {}: {error}", id.index))
}
