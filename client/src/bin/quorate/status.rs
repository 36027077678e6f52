//! `quorate status`: one call that answers 'is it healthy'.

use quorate_client::Freshness;
use quorate_proto::admin::ClusterStatusReply;
use serde::Serialize;

use crate::failure::{Failure, Outcome};
use crate::session::Session;

#[derive(Debug, Serialize)]
struct Status {
    healthy: bool,
    reasons: Vec<String>,
    cluster_id: String,
    controller_id: Option<i32>,
    controller_epoch: i32,
    offset: i64,
    voters: i32,
    voters_unreachable: i32,
    brokers: i32,
    brokers_fenced: i32,
    topics: i32,
    partitions: i32,
    leaderless: i32,
    under_replicated: i32,
    under_min_isr: i32,
    not_preferred: i32,
}

impl From<ClusterStatusReply> for Status {
    fn from(status: ClusterStatusReply) -> Self {
        Self {
            healthy: status.healthy,
            reasons: status.reasons,
            cluster_id: status.cluster_id,
            controller_id: status.controller_id,
            controller_epoch: status.controller_epoch,
            offset: status.offset,
            voters: status.voters,
            voters_unreachable: status.voters_unreachable,
            brokers: status.brokers,
            brokers_fenced: status.brokers_fenced,
            topics: status.topics,
            partitions: status.partitions,
            leaderless: status.leaderless,
            under_replicated: status.under_replicated,
            under_min_isr: status.under_min_isr,
            not_preferred: status.not_preferred,
        }
    }
}

pub async fn run(session: &Session) -> Outcome {
    let status = Status::from(session.client.cluster_status(Freshness::Linearizable).await?);
    session.show(&status, text)?;
    if status.healthy { Ok(()) } else { Err(Failure::Told) }
}

fn text(status: &Status) -> String {
    let mut text = if status.healthy { "healthy".to_owned() } else { "not healthy:".to_owned() };
    for reason in &status.reasons {
        text.push_str(&format!("\n  {reason}"));
    }
    let controller = status.controller_id.map_or_else(|| "none".to_owned(), |id| id.to_string());
    text + &format!(
        "\n\ncluster {}  active controller {controller}  epoch {}  offset {}\nvoters {}  brokers {}  topics {}  partitions {}",
        status.cluster_id,
        status.controller_epoch,
        status.offset,
        status.voters,
        status.brokers,
        status.topics,
        status.partitions
    )
}
