//! Writes the history down while it happens.

use std::collections::BTreeMap;
use std::future::Future;
use std::sync::Mutex;
use std::sync::atomic::{AtomicI64, Ordering};

use quorate_client::ClientError;
use tokio::time::Instant;

use crate::history::{Operation, Outcome};
use crate::op::Op;
use crate::workload::WorkloadName;

const UNPOISONED: &str = "no one panics while holding the history";

/// Shared by all who ask.
#[derive(Debug)]
pub struct Recorder {
    began: Instant,
    history: Mutex<Vec<Operation>>,
    answered: Mutex<BTreeMap<WorkloadName, usize>>,
    last_offset: AtomicI64,
}

impl Recorder {
    pub fn new() -> Self {
        Self {
            began: Instant::now(),
            history: Mutex::default(),
            answered: Mutex::default(),
            last_offset: AtomicI64::new(0),
        }
    }

    pub fn now_us(&self) -> u64 {
        u64::try_from(self.began.elapsed().as_micros()).expect("a run takes less than 500 000 years")
    }

    /// Asks, and writes down what came of it. `asked` is the operation without an answer; the call gives it with one.
    pub async fn record(
        &self,
        workload: WorkloadName,
        process: u32,
        asked: Op,
        call: impl Future<Output = Result<Op, ClientError>>,
    ) -> Operation {
        let invoked_us = self.now_us();
        let (outcome, error, op) = match call.await {
            Ok(op) => (Outcome::Ok, None, op),
            Err(error) => {
                let outcome = if error.is_definite() { Outcome::Fail } else { Outcome::Info };
                (outcome, Some(error.name().to_string()), asked)
            }
        };
        let operation = Operation { workload, process, invoked_us, ended_us: self.now_us(), outcome, error, op };
        self.add(operation.clone());
        operation
    }

    pub fn add(&self, operation: Operation) {
        self.last_offset.fetch_max(operation.op.offset().unwrap_or(0), Ordering::Relaxed);
        if operation.workload.is_answer(operation.outcome) {
            *self.answered.lock().expect(UNPOISONED).entry(operation.workload).or_default() += 1;
        }
        self.history.lock().expect(UNPOISONED).push(operation);
    }

    /// Operations that were answered so far.
    pub fn answered(&self, workload: WorkloadName) -> usize {
        self.answered.lock().expect(UNPOISONED).get(&workload).copied().unwrap_or(0)
    }

    /// The highest metadata offset that anybody was told.
    pub fn last_offset(&self) -> i64 {
        self.last_offset.load(Ordering::Relaxed)
    }

    /// Everything so far, in the order in which it ended.
    pub fn take(&self) -> Vec<Operation> {
        std::mem::take(&mut self.history.lock().expect(UNPOISONED))
    }
}

impl Default for Recorder {
    fn default() -> Self {
        Self::new()
    }
}
