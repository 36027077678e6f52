//! The one table of periodic tasks. A task is a name, a period and a function; the table says when it runs next:
//! at once if there is more to do, otherwise after its period.

use std::time::Duration;

use quorate_metadata::ids::BrokerId;
use quorate_metadata::limits::ELECTIONS_PER_RUN_MAX;
use quorate_metadata::plan::{checkpoint, elections};
use tokio::time::Instant;
use tracing::{debug, error};

use super::event_loop::EventLoop;
use super::operation::Operation;

/// Whether a task has more to do right now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Next {
    Later,
    AtOnce,
}

struct Task {
    name: &'static str,
    period: Duration,
    run: fn(&mut EventLoop) -> Next,
}

const TASKS: &[Task] = &[
    Task { name: "fence-expired", period: Duration::from_millis(50), run: EventLoop::fence_expired },
    Task { name: "probe-suspects", period: Duration::from_millis(250), run: EventLoop::probe_suspects },
    Task { name: "digest", period: Duration::from_secs(5), run: EventLoop::ask_for_digest },
    Task { name: "preferred-leaders", period: Duration::from_secs(30), run: EventLoop::balance_preferred },
    Task { name: "unclean-elections", period: Duration::from_secs(5), run: EventLoop::elect_uncleanly },
];

/// When each task is due.
pub(super) struct TaskTable {
    due: Vec<Instant>,
}

impl TaskTable {
    pub fn starting(now: Instant) -> Self {
        Self { due: TASKS.iter().map(|task| now + task.period).collect() }
    }
}

impl EventLoop {
    pub(super) fn run_due_tasks(&mut self, now: Instant) {
        for (at, task) in TASKS.iter().enumerate() {
            while self.is_due(at, now) {
                debug!(task = task.name, "due");
                let next = (task.run)(self);
                let Some(claim) = &mut self.claim else { return };
                claim.tasks.due[at] = match next {
                    Next::AtOnce => now,
                    Next::Later => now + task.period,
                };
            }
        }
    }

    /// What is due waits while too much is in flight.
    fn is_due(&self, task: usize, now: Instant) -> bool {
        self.claim.as_ref().is_some_and(|claim| claim.tasks.due[task] <= now && !claim.in_flight.is_full())
    }

    /// One broker a run, so that each decision sees the effect of the one before.
    fn fence_expired(&mut self) -> Next {
        let Some(claim) = &self.claim else { return Next::Later };
        let Some(broker) = self.sessions.expired(claim.draft.working()) else { return Next::Later };
        self.fence(broker, "session timed out");
        Next::AtOnce
    }

    fn probe_suspects(&mut self) -> Next {
        let Some(claim) = &mut self.claim else { return Next::Later };
        let sessions = &self.sessions;
        let draft = claim.draft.working();
        claim
            .suspects
            .retain(|&broker| !sessions.has_stream(broker) && draft.broker(broker).is_some_and(|known| !known.fenced));
        let suspects: Vec<BrokerId> = claim.suspects.iter().copied().collect();
        suspects.into_iter().for_each(|broker| self.probe(broker));
        Next::Later
    }

    /// Only between batches, when the draft must equal what was replayed: a draft that differs would put its own
    /// mistake into the log as the truth that every node must match.
    fn ask_for_digest(&mut self) -> Next {
        if let Some(claim) = &mut self.claim {
            claim.digest_due = claim.digested_at != Some(claim.draft.working().next_offset);
        }
        self.commit_due_digest();
        Next::Later
    }

    /// While a digest is due the loop takes no operations in, so that the batches in flight run out.
    pub(super) fn commit_due_digest(&mut self) {
        let Some(claim) = &mut self.claim else { return };
        if !claim.digest_due || !claim.in_flight.is_empty() {
            return;
        }
        claim.digest_due = false;
        let draft = claim.draft.working();
        if draft.digest() != self.view.ledger().working().digest() {
            error!(offset = %draft.next_offset, "the draft differs from what was replayed");
            self.resign("its draft went wrong");
            return self.reclaim_later();
        }
        self.run_internal(Operation::internal("digest", |image, _| Ok(checkpoint::digest_checkpoint(image))));
        if let Some(claim) = &mut self.claim {
            claim.digested_at = Some(claim.draft.working().next_offset);
        }
    }

    fn balance_preferred(&mut self) -> Next {
        let more = self
            .claim
            .as_ref()
            .is_some_and(|claim| claim.draft.working().index.not_preferred_count() > ELECTIONS_PER_RUN_MAX);
        self.run_internal(Operation::internal("preferred-leaders", |image, _| {
            Ok(elections::balance_preferred(image, ELECTIONS_PER_RUN_MAX).map(|_| ()))
        }));
        if more { Next::AtOnce } else { Next::Later }
    }

    fn elect_uncleanly(&mut self) -> Next {
        self.run_internal(Operation::internal("unclean-elections", |image, _| {
            Ok(elections::elect_uncleanly_where_allowed(image, ELECTIONS_PER_RUN_MAX).map(|_| ()))
        }))
    }

    fn run_internal(&mut self, operation: Operation) -> Next {
        self.run_all(vec![operation]);
        Next::Later
    }
}
