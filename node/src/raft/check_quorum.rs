//! A leader that no majority answers goes quiet, so that the others may elect.
//!
//! Where a leader is heard but hears nobody, its heartbeats would keep its followers from electing for ever, and
//! nothing could be committed (KAFKA-15489; "check quorum" in Raft's thesis, section 6.2). It goes on as soon as a
//! majority answers again. Safety does not rest on it: what it proposes meanwhile is not committed.

use std::time::Duration;

use openraft::async_runtime::watch::WatchReceiver;
use tokio::time::sleep;

use super::{Raft, status};

/// Runs until dropped. `patience`: how long a majority may stay silent.
pub async fn run(raft: Raft, patience: Duration) {
    let mut quiet = false;
    loop {
        sleep(patience / 4).await;
        let deaf = {
            let metrics = raft.metrics();
            let metrics = metrics.borrow_watched();
            metrics.current_leader == Some(metrics.id) && !status::quorum_acked_within(&metrics, patience)
        };
        if deaf != quiet {
            quiet = deaf;
            tracing::warn!(quiet, "a majority answers this leader: {}", !deaf);
            raft.runtime_config().heartbeat(!deaf);
        }
    }
}
