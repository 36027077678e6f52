//! Threads that read logs, so that neither the runtime nor an owner of a directory waits for a disk: of each directory its
//! own, so that a disk that hangs holds up no other.

use quorate_metadata::ids::DirectoryId;
use tokio::sync::{mpsc, oneshot};

use crate::machine::{Worker, Workers};

/// Reads waiting; who asks waits beyond it.
const WAITING_MAX: usize = 256;

type Job = Box<dyn FnOnce() + Send>;

/// Those of one directory, apart, so that consumers of old records hold no follower up.
pub struct Readers {
    pub for_consumers: Reader,
    pub for_followers: Reader,
}

impl Readers {
    pub fn start(directory: DirectoryId, workers: Workers) -> Self {
        Self {
            for_consumers: Reader::start(&format!("consumers-{directory}"), workers),
            for_followers: Reader::start(&format!("followers-{directory}"), workers),
        }
    }

    /// As `Reader::ended`, of one of them.
    pub async fn ended(&self) {
        tokio::select! {
            () = self.for_consumers.ended() => {}
            () = self.for_followers.ended() => {}
        }
    }
}

/// One thread; or none, where all there is to read is in memory.
pub struct Reader {
    jobs: Option<mpsc::Sender<Job>>,
    /// Last: it ends when nobody can ask any more.
    _thread: Worker,
}

impl Reader {
    pub fn start(name: &str, workers: Workers) -> Self {
        if workers == Workers::Tasks {
            return Self { jobs: None, _thread: Worker::default() };
        }
        let (jobs, mut waiting) = mpsc::channel::<Job>(WAITING_MAX);
        let thread = Worker::thread(name.to_owned(), move || {
            while let Some(job) = waiting.blocking_recv() {
                job();
            }
        });
        Self { jobs: Some(jobs), _thread: thread }
    }

    /// When a read has panicked: the thread does not end by itself.
    pub async fn ended(&self) {
        match &self.jobs {
            Some(jobs) => jobs.closed().await,
            None => std::future::pending().await,
        }
    }

    pub async fn read<T: Send + 'static>(&self, job: impl FnOnce() -> T + Send + 'static) -> T {
        let Some(jobs) = &self.jobs else { return job() };
        let (reply, answer) = oneshot::channel();
        let job = Box::new(move || {
            // Who asked may have gone.
            let _ = reply.send(job());
        });
        assert!(jobs.send(job).await.is_ok(), "a read has panicked, and the node is about to stop");
        answer.await.expect("the thread answers, or a read has panicked")
    }
}
