//! `quorate quorum …`

use std::time::Duration;

use clap::Subcommand;
use comfy_table::Cell;
use futures::future::join_all;
use quorate_client::{AdminClient, ClientError, Freshness, Options};
use quorate_metadata::ErrorName;
use quorate_proto::admin::Voter;

use crate::failure::{Failure, Outcome};
use crate::output::{cell, judged, note, optional, table};
use crate::session::Session;
use crate::view;

/// The active controller knows best; where none answers so soon, what any node knows is worth more than waiting.
const ACTIVE_TIMEOUT: Duration = Duration::from_secs(2);

/// One that takes longer to say what it knows already is not reachable.
const VOTER_TIMEOUT: Duration = Duration::from_secs(1);

/// States of voters.
const UNREACHABLE: &str = "unreachable";
const UNKNOWN: &str = "unknown";

#[derive(Debug, Subcommand)]
pub enum Quorum {
    /// Who is the active controller, and how far the others are. Exit status 1 without an active controller
    Status,
    /// Give a voter that has lost its disk a new one: the node waits with a directory of `quorate-node format --replacement`
    Replace {
        /// Node id of the voter
        id: i32,
    },
}

pub async fn run(session: &Session, command: Quorum) -> Outcome {
    match command {
        Quorum::Status => status(session).await,
        Quorum::Replace { id } => replace(session, id).await,
    }
}

async fn replace(session: &Session, id: i32) -> Outcome {
    let reply = session.client.replace_voter(id).await?;
    session.show(&view::ReplacedVoter::of(id, reply), |replaced| match &replaced.replaced_directory_id {
        Some(old) => format!("voter {id} votes with directory {}; {old} is no voter any more", replaced.directory_id),
        None => format!("voter {id} votes with directory {}", replaced.directory_id),
    })
}

async fn status(session: &Session) -> Outcome {
    let hasty = session.client.with_timeout(ACTIVE_TIMEOUT.min(session.options.timeout));
    let reply = match hasty.describe_quorum(Freshness::Linearizable).await {
        Err(error) if is_leaderless(&error) => {
            let any = session.client.with_timeout(VOTER_TIMEOUT.min(session.options.timeout));
            let mut reply = any.describe_quorum(Freshness::Stale).await?;
            note(&format!("no active controller answers; this is what node {} and the voters know", reply.node_id));
            ask_each(session, &mut reply.voters).await;
            // One that leads without a majority is no active controller.
            reply.leader_id = None;
            reply
        }
        reply => reply?,
    };
    let has_leader = reply.leader_id.is_some();
    session.show(&view::Quorum::from(reply), quorum_text)?;
    if has_leader { Ok(()) } else { Err(Failure::Told) }
}

/// Without a leader only a voter itself knows its state.
async fn ask_each(session: &Session, voters: &mut [Voter]) {
    let own_state = |voter: &Voter| {
        let options = Options { timeout: VOTER_TIMEOUT, ..session.options.clone() };
        let (id, client) = (voter.id, AdminClient::connect(&[&voter.endpoint], options));
        async move {
            let reply = client.ok()?.describe_quorum(Freshness::Stale).await.ok()?;
            reply.voters.into_iter().find(|voter| voter.id == id)
        }
    };
    let answers = join_all(voters.iter().map(own_state)).await;
    for (voter, answer) in voters.iter_mut().zip(answers) {
        match answer {
            Some(own) => *voter = own,
            None => (voter.state, voter.lag) = (UNREACHABLE.to_owned(), None),
        }
    }
}

fn is_leaderless(error: &ClientError) -> bool {
    use ErrorName as N;
    matches!(error.name(), N::ControllerUnavailable | N::NotController | N::RequestTimedOut | N::OutcomeUnknown)
}

fn state(state: &str) -> Cell {
    if state == UNKNOWN { cell("-") } else { judged(state, state != UNREACHABLE) }
}

fn quorum_text(quorum: &view::Quorum) -> String {
    let header = ["id", "state", "endpoint", "log end", "lag", "directory"];
    let rows = quorum.voters.iter().chain(&quorum.observers).map(|voter| {
        [
            cell(voter.id),
            state(&voter.state),
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
        optional(Some(quorum.high_watermark).filter(|offset| *offset >= 0)),
        quorum.metadata_offset,
        table(header, rows)
    )
}
