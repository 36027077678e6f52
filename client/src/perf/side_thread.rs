//! A thread for what must not wait for the rest of a measurement: a thousand watchers hold up each other and all that shares
//! their threads.

use tokio::runtime::{Builder, Handle, Runtime};

use super::PerfError;

/// Ends what runs on it when it is dropped.
pub(super) struct SideThread(Option<Runtime>);

impl SideThread {
    pub fn start(name: &'static str) -> Result<Self, PerfError> {
        let io = |source| PerfError::Io { what: format!("cannot start the thread {name:?}"), source };
        let runtime = Builder::new_multi_thread().worker_threads(1).thread_name(name).enable_all().build();
        Ok(Self(Some(runtime.map_err(io)?)))
    }

    pub fn handle(&self) -> &Handle {
        self.0.as_ref().expect("it ends when it is dropped").handle()
    }
}

impl Drop for SideThread {
    fn drop(&mut self) {
        // A runtime must not be waited for in a task.
        if let Some(runtime) = self.0.take() {
            runtime.shutdown_background();
        }
    }
}
