//! A leader that no majority answers goes quiet, so that the others may elect.
//!
//! Where a leader is heard but hears nobody, its heartbeats would keep its followers from electing for ever, and
//! nothing could be committed (KAFKA-15489; "check quorum" in Raft's thesis, section 6.2). It goes on as soon as a
//! majority answers again. Safety does not rest on it: what it proposes meanwhile is not committed.

use std::time::Duration;

use openraft::async_runtime::watch::WatchReceiver;
use tokio::time::sleep;

use super::{Raft, status};

/// A majority may stay silent for so many of the longest election timeouts.
const PATIENCE_TIMEOUTS: u32 = 2;

/// Whether this is a leader that no majority has answered for too long.
pub fn is_deaf(raft: &Raft, election_timeout_max: Duration) -> bool {
    let metrics = raft.metrics();
    let metrics = metrics.borrow_watched();
    let patience = election_timeout_max * PATIENCE_TIMEOUTS;
    metrics.current_leader == Some(metrics.id) && !status::quorum_acked_within(&metrics, patience)
}

/// Runs until dropped.
pub async fn run(raft: Raft, election_timeout_max: Duration) {
    let mut quiet = false;
    loop {
        sleep(election_timeout_max / 2).await;
        let deaf = is_deaf(&raft, election_timeout_max);
        if deaf != quiet {
            quiet = deaf;
            tracing::warn!(quiet, "a majority answers this leader: {}", !deaf);
            raft.runtime_config().heartbeat(!deaf);
        }
    }
}
