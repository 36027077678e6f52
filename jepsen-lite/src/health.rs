//! What the cluster says of its own state, and waiting for it.

use std::time::Duration;

use quorate_client::Freshness;
use quorate_proto::admin::ClusterStatusReply;
use tokio::time::{Instant, sleep};

use crate::db::Db;
use crate::nemesis::State;
use crate::workload::client;

/// Between two looks.
const LOOK_AGAIN: Duration = Duration::from_millis(100);

/// Waits until the cluster is like this. Why it is not, where that does not come about.
pub async fn reach(db: &mut Db, state: State, patience: Duration) -> Result<(), String> {
    let client = client(&db.apis(), Duration::from_secs(5));
    let deadline = Instant::now() + patience;
    let nodes = db.ids().len();
    loop {
        if state == State::Whole {
            nobody_has_ended(db)?;
        }
        let why = match client.cluster_status(Freshness::Linearizable).await {
            Ok(status) => match missing(state, &status, nodes) {
                None => return Ok(()),
                Some(why) => why,
            },
            Err(error) => error.to_string(),
        };
        if Instant::now() > deadline {
            return Err(format!("after {patience:?}: {why}"));
        }
        sleep(LOOK_AGAIN).await;
    }
}

fn missing(state: State, status: &ClusterStatusReply, nodes: usize) -> Option<String> {
    let unfenced = status.brokers - status.brokers_fenced;
    let is_reached = match state {
        State::Whole => {
            let is_well = status.leaderless + status.under_replicated + status.voters_unreachable == 0;
            is_well && usize::try_from(unfenced) == Ok(nodes)
        }
        State::IsrShrunk => status.under_replicated > 0,
    };
    (!is_reached).then(|| format!("{unfenced} of {nodes} brokers: {}", status.reasons.join("; ")))
}

/// The error names the first node that has ended although nobody has killed or stopped it.
pub fn nobody_has_ended(db: &mut Db) -> Result<(), String> {
    match db.ended().map_err(|error| error.to_string())?.first() {
        None => Ok(()),
        Some((id, status, log)) => Err(format!("node {id} has ended by itself ({status}):\n{log}")),
    }
}
