//! Ends the leadership of a node whose event loop does not turn, or whose raft log is on a disk that does not answer, and then
//! the node.
//!
//! Raft has a thread of its own, so a controller whose event loop is held would lead for ever and fence no broker. After
//! an election timeout the node gives its leadership away and does not campaign; what was planned is given up, so that
//! its caller does not hold the successor too. A node that is held for a session timeout ends.
//!
//! A leader needs its own disk least of all: it replicates, and commits by the others, while its disk hangs, until its queue
//! is full. So after the disk timeout it gives its leadership away, and does not campaign until the disk answers. It ends
//! only where it leads on: nobody can take over.

use std::sync::Arc;
use std::time::Duration;

use quorate_metadata::ids::ControllerEpoch;
use quorate_metadata::mutant::Mutant;
use tokio::sync::watch;
use tokio::time::{Instant, sleep, timeout};
use tracing::{error, info, warn};

use super::pulse::Pulse;
use crate::disks::{DiskProblems, Hang, LOOKS_PER_TIMEOUT as DISK_LOOKS_PER_TIMEOUT, hangs};
use crate::metrics::Metrics;
use crate::raft::RaftNode;

/// Looks at the event loop per election timeout: the loop's own tick is shorter than any of them.
const LOOKS_PER_TIMEOUT: u32 = 4;

/// How long giving the leadership away may take before the other voters are left to elect.
const TRANSFER_TIMEOUT: Duration = Duration::from_millis(500);

pub struct Watchdog {
    pub pulse: Arc<Pulse>,
    pub raft: RaftNode,
    pub metrics: Arc<Metrics>,
    /// Requests go to another node, or wait, as soon as it is None.
    pub claim: Arc<watch::Sender<Option<ControllerEpoch>>>,
    /// The leadership ends after so long.
    pub step_down_after: Duration,
    /// The node ends after so long.
    pub end_after: Duration,
    /// The leadership ends when the disk of the raft log has not answered for so long.
    pub disk_timeout: Duration,
    /// Where the disk is named.
    pub problems: DiskProblems,
    /// Becomes the reason when the node is to end.
    pub ended: watch::Sender<Option<String>>,
}

/// How long the event loop has stood still, in time that the watchdog itself was running: when the whole process is
/// paused, the event loop is not to blame.
struct Stall {
    turns: u64,
    stalled: Duration,
}

impl Stall {
    fn look(&mut self, turns: u64, since_last_look: Duration) -> Duration {
        if turns == self.turns {
            self.stalled += since_last_look;
        } else {
            *self = Self { turns, stalled: Duration::ZERO };
        }
        self.stalled
    }
}

impl Watchdog {
    /// Runs until the node stops, or is to end.
    pub async fn run(self, mut stop: watch::Receiver<bool>) {
        tokio::select! {
            () = self.watch() => {}
            _ = stop.wait_for(|stop| *stop) => {}
        }
    }

    async fn watch(&self) {
        if Mutant::HeldLoop.is_on() {
            std::future::pending::<()>().await;
        }
        let pause = (self.step_down_after / LOOKS_PER_TIMEOUT).min(self.disk_timeout / DISK_LOOKS_PER_TIMEOUT);
        let mut stall = Stall { turns: self.pulse.turns(), stalled: Duration::ZERO };
        let mut hang = Hang::new(self.raft.disk_operations().clone());
        let mut aside = Aside::default();
        let mut spent = Duration::ZERO;
        loop {
            sleep(pause).await;
            let since_last_look = pause + spent;
            let stalled = stall.look(self.pulse.turns(), since_last_look);
            let hung = hang.look(since_last_look);
            spent = Duration::ZERO;
            if let Some(reason) = self.reason_to_end(stalled, hung) {
                return self.end(reason);
            }
            let before = aside;
            // A loop or a disk that is found idle once goes on.
            aside.loop_held = stalled >= self.step_down_after || (aside.loop_held && !stalled.is_zero());
            aside.disk_hangs = hung >= self.disk_timeout || (aside.disk_hangs && !hung.is_zero());
            self.tell(before, aside, (stalled, hung));
            if stalled >= self.step_down_after || aside.disk_hangs {
                let began = Instant::now();
                self.give_leadership_away().await;
                spent = began.elapsed().min(TRANSFER_TIMEOUT);
            }
        }
    }

    /// A controller whose disk hangs is of no harm as soon as it leads no longer, and a broker beside it may go on.
    fn reason_to_end(&self, stalled: Duration, hung: Duration) -> Option<String> {
        if stalled >= self.end_after {
            return Some(format!("the event loop was held for {} ms by {}", stalled.as_millis(), self.held_by()));
        }
        let leads_on = || self.raft.leads() && self.raft.quorum_acked_within(self.step_down_after);
        let is_over = hung >= self.disk_timeout + self.end_after && leads_on();
        let lasted_ms = hung.as_millis();
        is_over
            .then(|| format!("the disk of the raft log has not answered for {lasted_ms} ms, and no voter takes over"))
    }

    fn tell(&self, before: Aside, now: Aside, (stalled, hung): (Duration, Duration)) {
        if now.loop_held && !before.loop_held {
            self.stand_aside(stalled);
        }
        if now.disk_hangs && !before.disk_hangs {
            self.leave_disk_alone(hung);
        }
        if before.loop_held && !now.loop_held {
            info!("the event loop turns again");
        }
        if before.disk_hangs && !now.disk_hangs {
            self.problems.clear(RAFT_LOG);
            info!("the disk of the raft log answers again");
        }
        if before.is_any() && !now.is_any() {
            self.raft.campaign(true);
        }
    }

    fn leave_disk_alone(&self, hung: Duration) {
        let lasted_ms = hung.as_millis() as u64;
        hangs().inc();
        self.problems.set(RAFT_LOG, format!("its disk has not answered for {lasted_ms} ms: this node leads no longer"));
        error!(lasted_ms, "the disk of the raft log does not answer: the leadership is given away");
        self.raft.campaign(false);
        self.claim.send_replace(None);
    }

    fn stand_aside(&self, stalled: Duration) {
        let held_by = self.held_by();
        self.metrics.event_loop_held.inc();
        warn!(held_by, stalled_ms = stalled.as_millis() as u64, "the event loop is held: the leadership is given away");
        self.raft.campaign(false);
        self.claim.send_replace(None);
    }

    /// Again and again while it stands still: an election that had begun may come out for this node.
    async fn give_leadership_away(&self) {
        if !self.raft.leads() {
            return;
        }
        match timeout(TRANSFER_TIMEOUT, self.raft.transfer_leadership(None)).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => info!(%error, "no transfer of leadership"),
            Err(_) => warn!("the transfer of leadership took too long: the other voters elect"),
        }
    }

    /// What held the loop, which is given up.
    fn held_by(&self) -> &'static str {
        self.pulse.give_up().map_or("nothing that is planned", |planning| planning.name)
    }

    fn end(&self, reason: String) {
        error!(reason, "the node ends");
        self.ended.send_replace(Some(reason));
    }
}

/// Where a problem of its disk is named.
const RAFT_LOG: &str = "raft log";

/// Why the node neither leads nor campaigns.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
struct Aside {
    loop_held: bool,
    disk_hangs: bool,
}

impl Aside {
    fn is_any(self) -> bool {
        self.loop_held || self.disk_hangs
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stall_counts_only_while_the_loop_stands_still() {
        let look = Duration::from_millis(75);
        let mut stall = Stall { turns: 3, stalled: Duration::ZERO };
        assert_eq!(stall.look(3, look), look);
        assert_eq!(stall.look(3, look), look * 2);
        assert_eq!(stall.look(4, look), Duration::ZERO);
        assert_eq!(stall.look(4, look), look);
    }
}
