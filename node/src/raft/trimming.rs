//! Snapshots of a log that has grown, and the trimming of the log behind them.
//!
//! Openraft's own policy, which keeps a number of entries whatever their size, is switched off. A purge by bytes may be
//! postponed while a follower is sent the entries. The policy would lower that purge after the next snapshot, against an
//! assertion of openraft's own. Here all purges come from one place, and openraft ignores one that is below the last.

use std::sync::Arc;
use std::time::Duration;

use openraft::async_runtime::watch::WatchReceiver;
use tokio::sync::Notify;
use tokio::time::sleep;

use super::Raft;
use super::identity::LocalVoter;
use super::store::{LogStore, Snapshots};

/// Between two requests for a snapshot.
const SNAPSHOT_RETRY_INTERVAL: Duration = Duration::from_millis(20);

pub struct Trimming {
    pub raft: Raft,
    pub log: LogStore,
    pub local: LocalVoter,
    pub snapshots: Snapshots,
    /// Entries kept behind a snapshot, unless they are too many bytes.
    pub entries_kept: u64,
    /// Notified when a snapshot is due.
    pub grown: Arc<Notify>,
    /// Notified when a snapshot was written that someone asked for.
    pub written: Arc<Notify>,
}

impl Trimming {
    /// Runs until Raft ends.
    pub async fn run(self) {
        loop {
            let done = tokio::select! {
                () = self.grown.notified() => self.snapshot().await,
                () = self.written.notified() => Ok(()),
            };
            let trimmed = match done {
                Ok(()) => self.trim().await,
                Err(fatal) => Err(fatal),
            };
            if let Err(fatal) = trimmed {
                tracing::warn!(%fatal, "the log is not trimmed: raft has stopped");
                return;
            }
        }
    }

    async fn snapshot(&self) -> Result<(), String> {
        let metrics = self.raft.data_metrics();
        let target = metrics.borrow_watched().last_applied;
        while metrics.borrow_watched().snapshot < target {
            // Openraft ignores the request while an earlier snapshot is being written.
            self.raft.trigger().snapshot().await.map_err(|fatal| fatal.to_string())?;
            sleep(SNAPSHOT_RETRY_INTERVAL).await;
        }
        Ok(())
    }

    /// A floor that stays low refuses less at the next start, and harms nothing.
    async fn raise_floor(&self, committed_end: u64) {
        let term = self.log.voted_term();
        let local = self.local.clone();
        let raised = self.snapshots.run(move || local.raise_floor(|floor| floor.raised(term, committed_end))).await;
        if let Err(error) = raised {
            tracing::warn!(%error, "the floor of this voter's disk is not raised");
        }
    }

    async fn trim(&self) -> Result<(), String> {
        let snapshot = self.raft.data_metrics().borrow_watched().snapshot;
        let Some(end) = snapshot else { return Ok(()) };
        self.raise_floor(end.index + 1).await;
        let Some(upto) = self.log.removable(end.index, self.entries_kept) else {
            return Ok(());
        };
        // Openraft waits until no follower is being sent what is to go.
        self.raft.trigger().purge_log(upto).await.map_err(|fatal| fatal.to_string())
    }
}
