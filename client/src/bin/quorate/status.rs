//! `quorate status`: one call that answers 'is it healthy'.

use quorate_client::Freshness;
use quorate_proto::admin::ClusterStatusReply;
use serde::Serialize;

use crate::failure::{Failure, Outcome};
use crate::output::note;
use crate::session::Session;
use crate::strays::{self, Found};

#[derive(Debug, Serialize)]
struct Status {
    healthy: bool,
    reasons: Vec<String>,
    /// Not a reason: it works.
    slow: Vec<String>,
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
    /// Replicas on brokers that the metadata does not know.
    strays: usize,
    stray_bytes: i64,
    /// Brokers that have not said whether they have strays.
    strays_unknown_on: Vec<i32>,
}

impl Status {
    fn new(status: ClusterStatusReply, strays: Found) -> Self {
        Self {
            healthy: status.healthy,
            reasons: status.reasons,
            slow: status.slow,
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
            strays: strays.count(),
            stray_bytes: strays.bytes(),
            strays_unknown_on: strays.silent,
        }
    }
}

pub async fn run(session: &Session) -> Outcome {
    let status = session.client.cluster_status(Freshness::Linearizable).await?;
    let strays = strays::find(session, None).await.unwrap_or_else(|failure| {
        note(&format!("strays are not counted: {failure}"));
        Found::default()
    });
    let status = Status::new(status, strays);
    session.show(&status, text)?;
    if status.healthy { Ok(()) } else { Err(Failure::Told) }
}

fn text(status: &Status) -> String {
    let mut text = if status.healthy { "healthy".to_owned() } else { "not healthy:".to_owned() };
    for reason in &status.reasons {
        text.push_str(&format!("\n  {reason}"));
    }
    for slow in &status.slow {
        text.push_str(&format!("\nslow: {slow}"));
    }
    let controller = status.controller_id.map_or_else(|| "none".to_owned(), |id| id.to_string());
    let mut strays = String::new();
    if status.strays > 0 {
        let (count, bytes) = (status.strays, status.stray_bytes);
        strays.push_str(&format!(
            "\n{count} replicas that the metadata does not know ({bytes} bytes): quorate broker strays list"
        ));
    }
    if !status.strays_unknown_on.is_empty() {
        strays.push_str(&format!(
            "\nno answer from brokers {:?}: their strays are not counted",
            status.strays_unknown_on
        ));
    }
    text + &format!(
        "\n\ncluster {}  active controller {controller}  epoch {}  offset {}\nvoters {}  brokers {}  topics {}  partitions {}{strays}",
        status.cluster_id,
        status.controller_epoch,
        status.offset,
        status.voters,
        status.brokers,
        status.topics,
        status.partitions
    )
}
