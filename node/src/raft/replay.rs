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
    progress: Progress,
}

/// What can be seen of replay from outside. Cheap to clone.
#[derive(Clone)]
pub struct Progress {
    /// The last entry that is visible in the replica. Openraft's own count runs ahead of it while a snapshot is installed.
    pub applied: watch::Receiver<Option<LogId>>,
    /// Becomes Some when a snapshot could not be installed, or a job has panicked.
    pub failure: watch::Receiver<Option<String>>,
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
    applied: watch::Sender<Option<LogId>>,
    failure: watch::Sender<Option<String>>,
}

impl Replay {
    /// Replays on the caller's thread.
    pub fn here(replica: Box<dyn Replica>) -> Self {
        let (state, progress) = State::new(replica);
        Self { place: Place::Here(Mutex::new(state)), progress }
    }

    /// Replays where `workers` says. A thread drops `finished` when it has ended, which is after this value is dropped.
    pub fn start(replica: Box<dyn Replica>, workers: Workers, finished: watch::Sender<()>) -> Result<Self, RaftError> {
        if workers == Workers::Tasks {
            return Ok(Self::here(replica));
        }
        let (jobs, queue) = mpsc::channel(JOBS_MAX);
        let thread = std::thread::Builder::new().name("raft-replay".into());
        let (state, progress) = State::new(replica);
        let serve = move || {
            serve(state, queue);
            drop(finished);
        };
        thread.spawn(serve).map_err(RaftError::io("start the replay thread"))?;
        Ok(Self { place: Place::Thread(jobs), progress })
    }

    pub fn progress(&self) -> Progress {
        self.progress.clone()
    }

    /// Does `work` where the replica is. An error means that the replica is gone: a job has panicked.
    pub async fn run<T: Send + 'static>(
        &mut self,
        work: impl FnOnce(&mut State) -> T + Send + 'static,
    ) -> io::Result<T> {
        self.begin(work).await?.await.map_err(|_| ended())
    }

    /// As `run`, but returns when the work is queued.
    pub async fn begin<T: Send + 'static>(
        &mut self,
        work: impl FnOnce(&mut State) -> T + Send + 'static,
    ) -> io::Result<oneshot::Receiver<T>> {
        let (answer, answered) = oneshot::channel();
        let job = move |state: &mut State| {
            // Raft's task may have been dropped with its runtime.
            let _ = answer.send(work(state));
        };
        match &mut self.place {
            Place::Here(state) => job(state.get_mut().expect("no holder panics")),
            Place::Thread(jobs) => jobs.send(Box::new(job)).await.map_err(|_| ended())?,
        }
        Ok(answered)
    }
}

fn serve(mut state: State, mut queue: mpsc::Receiver<Job>) {
    while let Some(job) = queue.blocking_recv() {
        job(&mut state);
    }
}

pub fn ended() -> io::Error {
    io::Error::other("the replay thread has ended")
}

impl State {
    fn new(replica: Box<dyn Replica>) -> (Self, Progress) {
        let (applied, applied_receiver) = watch::channel(None);
        let (failure, failure_receiver) = watch::channel(None);
        let progress = Progress { applied: applied_receiver, failure: failure_receiver };
        (Self { replica, replies: Vec::new(), applied, failure }, progress)
    }

    /// Replays a piece of a run. After the last one, which has the `end` of the run, it publishes and then replies: who has a
    /// reply can read what it refers to.
    pub fn replay(&mut self, piece: Vec<EntryResponder<Types>>, end: Option<LogId>) -> io::Result<()> {
        fail::fail_point!("raft.replay");
        for (entry, responder) in piece {
            let applied = self.replay_entry(&entry)?;
            self.replies.extend(responder.map(|responder| (responder, applied)));
        }
        if end.is_some() {
            self.replica.publish();
            self.applied.send_replace(end);
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
        match self.read_in(snapshot) {
            Ok(()) => self.applied.send_replace(snapshot.meta.last_log_id),
            Err(error) => {
                self.failure.send_replace(Some(format!("cannot install a snapshot: {error}")));
                return Err(error);
            }
        };
        tracing::info!(snapshot = snapshot.name(), "snapshot installed");
        Ok(())
    }

    fn read_in(&mut self, snapshot: &Snapshot) -> io::Result<()> {
        fail::fail_point!("raft.install");
        let mut content = snapshot.read()?;
        let installed = self.replica.install(&mut content);
        installed.map_err(|error| io::Error::other(format!("{}: {error}", snapshot.name())))?;
        // The replica may stop before the end, where the length is checked.
        io::copy(&mut content.by_ref(), &mut io::sink())?;
        Ok(())
    }
}

impl Drop for State {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.failure.send_replace(Some("replay has panicked".to_owned()));
        }
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
