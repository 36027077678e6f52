//! The one table of periodic tasks. A task is a name, a period and a function; a run is bounded, and the table says when
//! the next one is: in the next turn of the event loop if this one got on and is not at its end, otherwise after its period.

use std::collections::BTreeMap;
use std::time::Duration;

use quorate_metadata::MetadataImage;
use quorate_metadata::ids::BrokerId;
use quorate_metadata::limits::ELECTIONS_PER_RUN_MAX;
use quorate_metadata::plan::elections::{self, Cursor, Swept};
use quorate_metadata::plan::{Plan, checkpoint};
use tokio::time::Instant;
use tracing::{debug, error, info};

use super::event_loop::{Claim, EventLoop};
use super::operation::Operation;

/// Whether a task is at its end for now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Next {
    Later,
    /// The run got on, and there is more.
    GoesOn,
}

struct Task {
    name: &'static str,
    period: Duration,
    run: fn(&mut EventLoop) -> Next,
    /// It plans nothing itself, and always runs.
    is_urgent: bool,
}

const TASKS: &[Task] = &[
    Task { name: "fence-expired", period: Duration::from_millis(50), run: EventLoop::fence_expired, is_urgent: true },
    Task {
        name: "probe-suspects",
        period: Duration::from_millis(250),
        run: EventLoop::probe_suspects,
        is_urgent: true,
    },
    Task { name: "digest", period: Duration::from_secs(5), run: EventLoop::request_digest, is_urgent: false },
    Task {
        name: "returned-brokers",
        period: Duration::from_millis(50),
        run: EventLoop::elect_on_returned,
        is_urgent: false,
    },
    Task {
        name: "preferred-leaders",
        period: Duration::from_secs(30),
        run: EventLoop::balance_preferred,
        is_urgent: false,
    },
    Task {
        name: "unclean-elections",
        period: Duration::from_secs(5),
        run: EventLoop::elect_uncleanly,
        is_urgent: false,
    },
];

/// When each task is due, and where the sweeps among them are.
pub(super) struct TaskTable {
    due: Vec<Instant>,
    unfinished: Vec<bool>,
    preferred: Option<Cursor>,
    unclean: Option<Cursor>,
    elected: Elected,
}

/// Leaders that each sweep has elected since it began: one line of the log tells of them at its end, not one a run.
#[derive(Debug, Default)]
struct Elected(BTreeMap<&'static str, usize>);

impl Elected {
    fn add(&mut self, task: &'static str, leaders: usize) {
        *self.0.entry(task).or_default() += leaders;
    }

    /// None: the task goes on, or has elected none.
    fn take_at_end(&mut self, task: &'static str, next: Next) -> Option<usize> {
        if next == Next::GoesOn { None } else { self.0.remove(task).filter(|leaders| *leaders > 0) }
    }
}

impl TaskTable {
    pub fn starting(now: Instant) -> Self {
        let due = TASKS.iter().map(|task| now + task.period).collect();
        Self { due, unfinished: vec![false; TASKS.len()], preferred: None, unclean: None, elected: Elected::default() }
    }

    /// Whether a task goes on in the next turn.
    pub fn has_unfinished(&self) -> bool {
        self.unfinished.contains(&true)
    }
}

impl EventLoop {
    /// Runs each task that is due, once.
    pub(super) fn run_due_tasks(&mut self, now: Instant) {
        for at in 0..TASKS.len() {
            if self.claim.as_ref().is_some_and(|claim| claim.tasks.due[at] <= now) {
                self.run_task(at, now);
            }
        }
    }

    /// Runs each task that goes on, once.
    pub(super) fn run_unfinished_tasks(&mut self) {
        let now = Instant::now();
        for at in 0..TASKS.len() {
            if self.claim.as_ref().is_some_and(|claim| claim.tasks.unfinished[at]) {
                self.run_task(at, now);
            }
        }
    }

    fn run_task(&mut self, at: usize, now: Instant) {
        let task = &TASKS[at];
        if !self.may_run(task) {
            return;
        }
        debug!(task = task.name, "due");
        let next = (task.run)(self);
        let Some(claim) = &mut self.claim else { return };
        if let Some(elected) = claim.tasks.elected.take_at_end(task.name, next) {
            info!(task = task.name, elected, "leaders elected");
        }
        claim.tasks.unfinished[at] = next == Next::GoesOn;
        claim.tasks.due[at] = now + task.period;
    }

    /// What is due and plans something waits while too much is in flight.
    fn may_run(&self, task: &Task) -> bool {
        let can_run = |claim: &Claim| task.is_urgent || (!claim.in_flight.is_full() && claim.can_run_tasks());
        self.claim.as_ref().is_some_and(can_run)
    }

    fn fence_expired(&mut self) -> Next {
        let Some(claim) = &self.claim else { return Next::Later };
        let draft = claim.draft.working();
        self.sessions.retain_removals(|broker, removal| claim.keeps_removal(broker, removal));
        let expired = self.sessions.take_expired(draft);
        expired.into_iter().for_each(|broker| self.fence(broker, "session timed out"));
        Next::Later
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
    fn request_digest(&mut self) -> Next {
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
        if claim.draft.has_open_transaction() {
            return;
        }
        let draft = claim.draft.working();
        if draft.digest() != self.view.ledger().working().digest() {
            error!(offset = %draft.next_offset, "the draft differs from what was replayed");
            self.resign("its draft went wrong");
            return self.reclaim_later();
        }
        self.run_internal("digest", checkpoint::digest_checkpoint);
        if let Some(claim) = &mut self.claim {
            claim.digested_at = Some(claim.draft.working().next_offset);
        }
    }

    /// Leaderless partitions of brokers that have come back, broker by broker.
    fn elect_on_returned(&mut self) -> Next {
        let Some((broker, from)) = self.claim.as_mut().and_then(|claim| claim.returned.pop_first()) else {
            return Next::Later;
        };
        let swept = self
            .sweep("returned-brokers", move |image| elections::elect_on(image, broker, from, ELECTIONS_PER_RUN_MAX));
        let Some(claim) = &mut self.claim else { return Next::Later };
        if swept.rest.is_some() {
            claim.returned.insert(broker, swept.rest);
        }
        if claim.returned.is_empty() { Next::Later } else { Next::GoesOn }
    }

    fn balance_preferred(&mut self) -> Next {
        let from = self.claim.as_ref().and_then(|claim| claim.tasks.preferred);
        let swept = self
            .sweep("preferred-leaders", move |image| elections::balance_preferred(image, from, ELECTIONS_PER_RUN_MAX));
        let Some(claim) = &mut self.claim else { return Next::Later };
        claim.tasks.preferred = swept.rest;
        if swept.rest.is_some() { Next::GoesOn } else { Next::Later }
    }

    fn elect_uncleanly(&mut self) -> Next {
        let from = self.claim.as_ref().and_then(|claim| claim.tasks.unclean);
        let swept = self.sweep("unclean-elections", move |image| {
            elections::elect_uncleanly_where_allowed(image, from, ELECTIONS_PER_RUN_MAX)
        });
        let Some(claim) = &mut self.claim else { return Next::Later };
        claim.tasks.unclean = swept.rest;
        if swept.rest.is_some() { Next::GoesOn } else { Next::Later }
    }

    /// One run of a sweep over partitions.
    fn sweep(&mut self, name: &'static str, plan: impl FnOnce(&MetadataImage) -> Plan<Swept>) -> Swept {
        let Some(claim) = &mut self.claim else { return Swept::default() };
        let Plan { records, response: swept, waiting_on, .. } = plan(claim.draft.working());
        claim.tasks.elected.add(name, swept.elected);
        if let Some(reason) = waiting_on.filter(|_| swept.elected == 0) {
            debug!(task = name, reason = reason.as_str(), "nothing to elect");
        }
        self.run_internal(name, move |_| Plan::new(records, ()));
        swept
    }

    /// The plan is made at once, on the draft as it is.
    fn run_internal(&mut self, name: &'static str, plan: impl FnOnce(&MetadataImage) -> Plan<()> + Send + 'static) {
        let mut plan = Some(plan);
        let once = move |image: &MetadataImage, _: &mut quorate_metadata::rng::Rng| {
            let plan = plan.take().expect("a plan that is not in steps is made once");
            Ok(plan(image))
        };
        self.run_all(vec![Operation::internal(name, once)]);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sweep_tells_of_its_leaders_once_at_its_end() {
        let mut elected = Elected::default();
        for _ in 0..50 {
            elected.add("preferred-leaders", 1_000);
            assert_eq!(elected.take_at_end("preferred-leaders", Next::GoesOn), None);
        }
        elected.add("unclean-elections", 0);
        assert_eq!(elected.take_at_end("unclean-elections", Next::Later), None);
        assert_eq!(elected.take_at_end("preferred-leaders", Next::Later), Some(50_000));
        assert_eq!(elected.take_at_end("preferred-leaders", Next::Later), None);
    }
}
