//! What the cluster says of its own state, and waiting for it.

use std::time::Duration;

use quorate_client::{AdminClient, ClientError, Freshness};
use quorate_proto::admin::{BrokerDescription, ListPartitionsRequest, PartitionDescription};
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
    loop {
        if state == State::Whole {
            nobody_has_ended(db)?;
        }
        let why = match look(&client, db, state).await {
            Ok(Look::There) => return Ok(()),
            Ok(Look::Never(why)) => return Err(why),
            Ok(Look::NotYet(why)) => why,
            Err(error) => error.to_string(),
        };
        if Instant::now() > deadline {
            return Err(format!("after {patience:?}: {why}"));
        }
        sleep(LOOK_AGAIN).await;
    }
}

/// Whether the cluster is in a state, and why not.
enum Look {
    There,
    NotYet(String),
    /// However long one waits.
    Never(String),
}

async fn look(client: &AdminClient, db: &Db, state: State) -> Result<Look, ClientError> {
    let status = client.cluster_status(Freshness::Linearizable).await?;
    let reasons = || Look::NotYet(status.reasons.join("; "));
    let acknowledged = db.ids().into_iter().map(|id| db.since(id)).max().unwrap_or_default();
    if status.offset < acknowledged {
        let offset = status.offset;
        return Ok(Look::Never(format!(
            "the metadata log ends at {offset}, and offset {acknowledged} was acknowledged"
        )));
    }
    match state {
        State::IsrShrunk if status.under_replicated > 0 => Ok(Look::There),
        State::IsrShrunk => Ok(Look::NotYet("all replicas are in sync".to_owned())),
        State::Whole if status.leaderless + status.voters_unreachable > 0 => Ok(reasons()),
        State::Whole if status.under_replicated > 0 && lacks_a_node(client, db).await? => Ok(reasons()),
        State::Whole => {
            let brokers = client.list_brokers(Freshness::Linearizable).await?.brokers;
            let is_there = |id: &i32| brokers.iter().any(|broker| broker.id == *id && is_back(broker, db.since(*id)));
            let away: Vec<i32> = db.ids().into_iter().filter(|id| !is_there(id)).collect();
            let not_back = || Look::NotYet(format!("brokers {away:?} are not back"));
            Ok(if away.is_empty() { Look::There } else { not_back() })
        }
    }
}

/// A broker that died a moment ago still counts as there, under its old registration. What was told of the log may be where
/// it ends, which is where the next registration goes. The simulation's `is_in` is the same rule for an image.
fn is_back(broker: &BrokerDescription, since: i64) -> bool {
    broker.state == "unfenced" && broker.epoch >= since
}

/// Whether a replica on one of the nodes is not in sync. One on a broker without a process, where such a broker was
/// given one, never is. The simulation's `is_short` is the same rule for an image.
async fn lacks_a_node(client: &AdminClient, db: &Db) -> Result<bool, ClientError> {
    let request = ListPartitionsRequest { under_replicated: true, ..ListPartitionsRequest::default() };
    let partitions = client.list_partitions(request, Freshness::Linearizable).await?.partitions;
    let lacks = |partition: &PartitionDescription| {
        partition.replicas.iter().any(|replica| db.ids().contains(replica) && !partition.isr.contains(replica))
    };
    Ok(partitions.iter().any(lacks))
}

/// The error names the first node that has ended although nobody has killed or stopped it.
pub fn nobody_has_ended(db: &mut Db) -> Result<(), String> {
    match db.ended().map_err(|error| error.to_string())?.first() {
        None => Ok(()),
        Some((id, status, log)) => Err(format!("node {id} has ended by itself ({status}):\n{log}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_broker_is_back_when_it_has_registered_since_its_process_was_started() {
        let broker = |epoch, state: &str| BrokerDescription { epoch, state: state.to_owned(), ..Default::default() };
        assert!(!is_back(&broker(70, "unfenced"), 71), "the registration of the process before");
        assert!(is_back(&broker(71, "unfenced"), 71), "the first record after what was told");
        assert!(!is_back(&broker(71, "fenced"), 71));
    }
}
