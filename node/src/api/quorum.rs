//! Changes of the quorum itself.

use quorate_metadata::ids::ControllerId;
use quorate_metadata::{ApiError, ErrorName};
use quorate_proto::admin::{ReplaceVoterReply, ReplaceVoterRequest};
use tokio::time::Instant;
use tonic::{Request, Response, Status};

use super::admin::remote;
use super::gateway::{Gateway, Passage};
use super::request::timeout;
use crate::raft::RaftError;

pub async fn replace_voter(
    gateway: &Gateway,
    request: Request<ReplaceVoterRequest>,
) -> Result<Response<ReplaceVoterReply>, Status> {
    let forwarded = Gateway::was_forwarded(&request);
    let body = request.into_inner();
    let passage = Passage { forwarded, deadline: Instant::now() + timeout(body.timeout_ms), repeatable: true };
    let local = |body: ReplaceVoterRequest, left| async move {
        let replaced = gateway.raft.replace_voter(ControllerId::new(body.voter), left).await.map_err(refused)?;
        Ok(ReplaceVoterReply {
            directory_id: replaced.directory.to_string(),
            replaced_directory_id: replaced.old.map(|old| old.to_string()),
        })
    };
    let remote = |channel, request| async move { remote(channel).replace_voter(request).await };
    gateway.route(passage, body, local, remote).await
}

fn refused(error: RaftError) -> ApiError {
    let name = match &error {
        RaftError::NotLeader => ErrorName::NotController,
        RaftError::NotReplaceable { .. } => ErrorName::InvalidRequest,
        RaftError::InconsistentClusterId(_) => ErrorName::InconsistentClusterId,
        RaftError::ReplacementTimedOut(_) => ErrorName::RequestTimedOut,
        _ => ErrorName::ControllerUnavailable,
    };
    ApiError::new(name, error.to_string())
}
