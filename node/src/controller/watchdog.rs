//! Ends the leadership of a node whose event loop does not turn, and then the node.
//!
//! Raft has a thread of its own, so a controller whose event loop is held would lead for ever and fence no broker. After
//! an election timeout the node gives its leadership away and does not campaign; what was planned is given up, so that
//! its caller does not hold the successor too. A node that is held for a session timeout ends.

use std::sync::Arc;
use std::time::Duration;

use quorate_metadata::ids::ControllerEpoch;
use quorate_metadata::mutant::Mutant;
use tokio::sync::watch;
use tokio::time::{Instant, sleep, timeout};
use tracing::{error, info, warn};

use super::pulse::Pulse;
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
        let pause = self.step_down_after / LOOKS_PER_TIMEOUT;
        let mut stall = Stall { turns: self.pulse.turns(), stalled: Duration::ZERO };
        let mut standing_aside = false;
        let mut spent = Duration::ZERO;
        loop {
            sleep(pause).await;
            let stalled = stall.look(self.pulse.turns(), pause + spent);
            spent = Duration::ZERO;
            if stalled >= self.end_after {
                return self.end(stalled);
            }
            if stalled >= self.step_down_after {
                if !standing_aside {
                    standing_aside = true;
                    self.stand_aside(stalled);
                }
                let began = Instant::now();
                self.give_leadership_away().await;
                spent = began.elapsed().min(TRANSFER_TIMEOUT);
            }
            if stalled.is_zero() && standing_aside {
                standing_aside = false;
                info!("the event loop turns again");
                self.raft.campaign(true);
            }
        }
    }

    fn stand_aside(&self, stalled: Duration) {
        let held_by = self.pulse.give_up().map_or("nothing that is planned", |planning| planning.name);
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

    fn end(&self, stalled: Duration) {
        let held_by = self.pulse.give_up().map_or("nothing that is planned", |planning| planning.name);
        let reason = format!("the event loop was held for {} ms by {held_by}", stalled.as_millis());
        error!(reason, "the node ends");
        self.ended.send_replace(Some(reason));
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
