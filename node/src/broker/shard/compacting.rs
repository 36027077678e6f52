//! Compaction of the logs in a directory: one at a time, in steps that are read on a thread beside the owner's and written
//! by its rounds, so that no producer waits for more than one step.

use std::collections::BTreeSet;
use std::ops::Bound;
use std::pin::Pin;
use std::sync::Arc;

use quorate_client::world;
use quorate_log::{Compaction, CompactionStep, LogError};
use quorate_metadata::ids::TopicPartition;
use tracing::{debug, error};

use super::super::readers::Reader;
use super::super::situation::Situation;
use super::{Round, Shard};

/// A compaction under way, with what its last step has found.
pub struct Stepped {
    id: TopicPartition,
    compaction: Box<Compaction>,
    step: Result<CompactionStep, LogError>,
}

type Running = Pin<Box<dyn Future<Output = Stepped> + Send>>;

pub struct Compactions {
    /// Reads what is to be compacted, beside the owner.
    reader: Arc<Reader>,
    /// Replicas for which one was due when they were last looked at.
    due: BTreeSet<TopicPartition>,
    running: Option<Running>,
    /// The last one that was begun: the next one is taken from behind it, so that each has its turn.
    last: Option<TopicPartition>,
    /// Logs that could not be read, until they are opened again.
    damaged: BTreeSet<TopicPartition>,
}

impl Compactions {
    pub fn new(reader: Reader) -> Self {
        let (due, damaged) = (BTreeSet::new(), BTreeSet::new());
        Self { reader: Arc::new(reader), due, running: None, last: None, damaged }
    }

    /// When the next step was read; never while nothing is compacted.
    pub async fn stepped(&mut self) -> Stepped {
        match &mut self.running {
            Some(running) => running.await,
            None => std::future::pending().await,
        }
    }

    pub fn is_running(&self) -> bool {
        self.running.is_some()
    }

    pub fn stop(&mut self) {
        self.due.clear();
        self.damaged.clear();
        (self.running, self.last) = (None, None);
    }

    /// The log is opened anew.
    pub fn opened(&mut self, id: TopicPartition) {
        self.damaged.remove(&id);
    }

    fn take_next(&mut self) -> Option<TopicPartition> {
        let behind = self.last.map_or(Bound::Unbounded, Bound::Excluded);
        let next = self.due.range((behind, Bound::Unbounded)).next().or_else(|| self.due.first()).copied()?;
        self.due.remove(&next);
        self.last = Some(next);
        Some(next)
    }
}

impl Shard {
    /// The replica was looked at by housekeeping.
    pub(super) fn note_compaction(&mut self, id: TopicPartition, situation: &Situation) {
        if self.compactions.damaged.contains(&id) {
            return;
        }
        match self.owned.get(&id).and_then(|replica| replica.compaction(situation, world::wall_ms())) {
            Some(_) => self.compactions.due.insert(id),
            None => self.compactions.due.remove(&id),
        };
    }

    /// Begins the next compaction, if none is under way.
    pub(super) fn begin_compaction(&mut self) {
        // What is rewritten takes room until the old rows are gone.
        if self.handle.room().shortage().is_some() {
            return;
        }
        while !self.compactions.is_running()
            && let Some(id) = self.compactions.take_next()
        {
            let situation = Situation::of(&self.seen, self.around.broker, id);
            let replica = self.owned.get(&id);
            let due = situation
                .zip(replica)
                .and_then(|(situation, replica)| replica.compaction(&situation, world::wall_ms()));
            if let Some(compaction) = due {
                debug!(partition = %id, "compaction begins");
                self.compactions.running = Some(self.step(id, Box::new(compaction)));
            }
        }
    }

    fn step(&self, id: TopicPartition, mut compaction: Box<Compaction>) -> Running {
        let reader = self.compactions.reader.clone();
        Box::pin(async move {
            let read = move || {
                let step = compaction.step();
                Stepped { id, compaction, step }
            };
            reader.read(read).await
        })
    }

    /// Stages what a step has found, and goes on to the next one.
    pub(super) fn on_step(&mut self, round: &mut Round, stepped: Stepped) {
        let Stepped { id, compaction, step } = stepped;
        self.compactions.running = None;
        let goes_on = match (step, self.owned.get_mut(&id)) {
            (Err(error), _) => {
                error!(partition = %id, %error, "cannot be compacted");
                self.compactions.damaged.insert(id);
                false
            }
            (Ok(_), None) => false,
            (Ok(CompactionStep::Read), Some(_)) => true,
            (Ok(CompactionStep::Write(rewritten)), Some(replica)) => {
                round.touched.insert(id);
                replica.rewrite(&mut round.writes, &rewritten)
            }
            (Ok(CompactionStep::Done(end)), Some(replica)) => {
                round.touched.insert(id);
                replica.end_compaction(&mut round.writes, &end);
                let log = replica.log();
                debug!(partition = %id, cleaned_to = %log.cleaned_to(), bytes = log.size_bytes(), "compacted");
                false
            }
        };
        if goes_on && self.handle.room().shortage().is_none() {
            self.compactions.running = Some(self.step(id, compaction));
        } else {
            self.begin_compaction();
        }
    }
}
