//! Threads that read logs, so that neither the runtime nor an owner of a directory waits for a disk.

use std::thread::JoinHandle;

use tokio::sync::{mpsc, oneshot};

/// Reads waiting; who asks waits beyond it.
const WAITING_MAX: usize = 256;

type Job = Box<dyn FnOnce() + Send>;

/// One thread, which is waited for when this goes: the process must not end while it reads.
pub struct Reader {
    jobs: Option<mpsc::Sender<Job>>,
    thread: Option<JoinHandle<()>>,
}

impl Reader {
    pub fn start(name: &str) -> Self {
        let (jobs, mut waiting) = mpsc::channel::<Job>(WAITING_MAX);
        let thread = std::thread::Builder::new()
            .name(name.to_owned())
            .spawn(move || {
                while let Some(job) = waiting.blocking_recv() {
                    job();
                }
            })
            .expect("the process may start two threads for reading");
        Self { jobs: Some(jobs), thread: Some(thread) }
    }

    /// When a read has panicked: the thread does not end by itself.
    pub async fn ended(&self) {
        self.jobs().closed().await;
    }

    fn jobs(&self) -> &mpsc::Sender<Job> {
        self.jobs.as_ref().expect("it is taken only when this goes")
    }

    pub async fn read<T: Send + 'static>(&self, job: impl FnOnce() -> T + Send + 'static) -> T {
        let (reply, answer) = oneshot::channel();
        let job = Box::new(move || {
            // Who asked may have gone.
            let _ = reply.send(job());
        });
        assert!(self.jobs().send(job).await.is_ok(), "a read has panicked, and the node is about to stop");
        answer.await.expect("the thread answers, or a read has panicked")
    }
}

impl Drop for Reader {
    fn drop(&mut self) {
        self.jobs = None;
        if let Some(Err(_)) = self.thread.take().map(JoinHandle::join) {
            tracing::error!("a read has panicked");
        }
    }
}
