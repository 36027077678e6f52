//! Threads that read logs, so that neither the runtime nor an owner of a directory waits for a disk.

use tokio::sync::{mpsc, oneshot};

/// Reads waiting; who asks waits beyond it.
const WAITING_MAX: usize = 256;

type Job = Box<dyn FnOnce() + Send>;

/// One thread, which ends with the last handle.
#[derive(Clone)]
pub struct Reader {
    jobs: mpsc::Sender<Job>,
}

impl Reader {
    pub fn start(name: &str) -> Self {
        let (jobs, mut waiting) = mpsc::channel::<Job>(WAITING_MAX);
        std::thread::Builder::new()
            .name(name.to_owned())
            .spawn(move || {
                while let Some(job) = waiting.blocking_recv() {
                    job();
                }
            })
            .expect("the process may start two threads for reading");
        Self { jobs }
    }

    pub async fn read<T: Send + 'static>(&self, job: impl FnOnce() -> T + Send + 'static) -> T {
        let (reply, answer) = oneshot::channel();
        let job = Box::new(move || {
            // Who asked may have gone.
            let _ = reply.send(job());
        });
        assert!(self.jobs.send(job).await.is_ok(), "the thread runs as long as there is a handle");
        answer.await.expect("the thread answers, or a read has panicked")
    }
}
