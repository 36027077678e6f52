//! `quorate quorum …`

use std::time::Duration;

use clap::Subcommand;
use quorate_client::{ClientError, Freshness};
use quorate_metadata::ErrorName;

use crate::failure::Outcome;
use crate::output::{cell, judged, note, optional, table};
use crate::session::Session;
use crate::view;

/// The active controller knows best; where none answers so soon, what any node knows is worth more than waiting.
const ACTIVE_TIMEOUT: Duration = Duration::from_secs(2);

#[derive(Debug, Subcommand)]
pub enum Quorum {
    /// Who is the active controller, and how far the others are
    Status,
}

pub async fn run(session: &Session, command: Quorum) -> Outcome {
    match command {
        Quorum::Status => status(session).await,
    }
}

async fn status(session: &Session) -> Outcome {
    let hasty = session.client.with_timeout(ACTIVE_TIMEOUT.min(session.options.timeout));
    let reply = match hasty.describe_quorum(Freshness::Linearizable).await {
        Err(error) if is_leaderless(&error) => {
            let reply = session.client.describe_quorum(Freshness::Stale).await?;
            note(&format!("no active controller answers; this is what node {} knows", reply.node_id));
            reply
        }
        reply => reply?,
    };
    session.show(&view::Quorum::from(reply), quorum_text)
}

fn is_leaderless(error: &ClientError) -> bool {
    use ErrorName as N;
    matches!(error.name(), N::ControllerUnavailable | N::NotController | N::RequestTimedOut | N::OutcomeUnknown)
}

fn quorum_text(quorum: &view::Quorum) -> String {
    let header = ["id", "state", "endpoint", "log end", "lag", "directory"];
    let rows = quorum.voters.iter().chain(&quorum.observers).map(|voter| {
        [
            cell(voter.id),
            judged(&voter.state, voter.state != "unreachable"),
            cell(&voter.endpoint),
            cell(optional(voter.log_end)),
            cell(optional(voter.lag)),
            cell(&voter.directory_id),
        ]
    });
    format!(
        "cluster {}  active controller {}  epoch {}  high watermark {}  metadata offset {}\n\n{}",
        quorum.cluster_id,
        quorum.leader_id.map_or_else(|| "none".to_owned(), |id| id.to_string()),
        quorum.epoch,
        quorum.high_watermark,
        quorum.metadata_offset,
        table(header, rows)
    )
}
