//! The cluster that a script plays in: a ledger, the sessions of its brokers, and a clock.

use std::error::Error;

use goldenscript::{Command, Context};
use quorate_metadata::ids::{BrokerId, ClusterId, ControllerEpoch};
use quorate_metadata::liveness::Sessions;
use quorate_metadata::plan::{WaitingOn, brokers, checkpoint};
use quorate_metadata::rng::Rng;
use quorate_metadata::{Batch, Ledger, MetadataImage, Record};

use crate::{commands, display};

pub const SESSION_TIMEOUT_MS: u64 = 3_000;

/// What a command proposes and how it is answered.
#[derive(Default)]
pub struct Step {
    pub records: Vec<Record>,
    /// What is told beside the changes.
    pub answer: Vec<String>,
    pub waiting_on: Option<WaitingOn>,
    /// Asking again may rightly lead to more.
    pub goes_on: bool,
}

pub struct World {
    ledger: Ledger,
    pub sessions: Sessions,
    pub now_ms: u64,
    rng: Rng,
}

impl Default for World {
    fn default() -> Self {
        let sessions = Sessions::new(SESSION_TIMEOUT_MS);
        Self { ledger: Ledger::default(), sessions, now_ms: 0, rng: Rng::new(1) }
    }
}

impl World {
    pub fn image(&self) -> &MetadataImage {
        self.ledger.working()
    }

    /// Replays records and tells what each changed.
    pub fn apply(&mut self, records: &[Record]) -> Vec<String> {
        let mut rest = records;
        let mut lines = Vec::new();
        while let Some(first) = rest.first() {
            // What begins a reassignment is not cut from the changes that begin it.
            let whole = if let Record::BeginReassignment(start) = first { 1 + start.partitions.len() } else { 1 };
            let (batch, later) = rest.split_at(whole);
            lines.extend(self.apply_whole(batch));
            rest = later;
        }
        lines
    }

    fn apply_whole(&mut self, records: &[Record]) -> Vec<String> {
        let mut before = self.image().clone();
        let batch = Batch {
            controller_epoch: ControllerEpoch::new(1),
            timestamp_ms: i64::try_from(self.now_ms).unwrap(),
            records: records.to_vec(),
        };
        self.ledger.replay(&batch).unwrap();
        // Every prefix of a plan keeps the rules, since a long plan is cut into batches.
        let violations = self.image().verify();
        assert!(violations.is_empty(), "after {records:?}: {violations:?}");
        assert!(self.image().verify_changed(&batch).is_empty());
        let mut line = |record| {
            let mut after = before.clone();
            after.replay_records(std::slice::from_ref(record)).unwrap();
            let line = display::change(&before, &after, record);
            before = after;
            line
        };
        records.iter().map(&mut line).collect()
    }

    /// Time passes; brokers whose sessions end are fenced, one at a time.
    pub fn tick(&mut self, ms: u64) -> Vec<String> {
        self.now_ms += ms;
        let mut lines = Vec::new();
        for broker in self.sessions.expired(self.image(), self.now_ms) {
            let plan = brokers::fence(self.image(), broker).unwrap();
            lines.extend(self.apply(&plan.records));
        }
        lines
    }

    pub fn heard(&mut self, broker: BrokerId) {
        if let Some(registration) = self.image().broker(broker) {
            let epoch = registration.epoch;
            self.sessions.touch(broker, epoch, self.now_ms);
        }
    }

    /// Plans, replays, and plans again: the second time must propose nothing.
    pub fn propose(
        &mut self,
        plan: impl Fn(&Self, &mut Rng) -> Result<Step, Box<dyn Error>>,
    ) -> Result<Vec<String>, Box<dyn Error>> {
        let mut rng = self.rng.clone();
        let step = plan(self, &mut rng)?;
        self.rng = rng.clone();
        let mut lines = self.apply(&step.records);
        lines.extend(step.answer);
        if let Some(waiting_on) = step.waiting_on {
            lines.push(format!("nothing proposed: {}", waiting_on.as_str()));
        }
        if !step.goes_on && !step.records.is_empty() {
            let again = plan(self, &mut rng)?;
            assert!(again.records.is_empty(), "planned again: {:?}", again.records);
        }
        Ok(lines)
    }
}

impl goldenscript::Runner for World {
    type Command = Command;

    fn start_script(&mut self) -> Result<(), Box<dyn Error>> {
        let plan = checkpoint::bootstrap(self.image(), ClusterId::from_bytes([1; 16]));
        self.apply(&plan.records);
        Ok(())
    }

    fn run(&mut self, command: &Command, _context: &Context) -> Result<String, Box<dyn Error>> {
        let lines = commands::run(self, command)?;
        Ok(lines.into_iter().map(|line| line + "\n").collect())
    }
}
