//! The replicas that the metadata does not know: what they take, and their removal by an operator.

use futures::stream::{self, StreamExt};
use quorate_metadata::ids::TopicPartition;
use quorate_metadata::{ApiError, ErrorName};
use quorate_proto::error::to_item;
use quorate_proto::log::{
    DeleteStraysReply, DeleteStraysRequest, DeletedStray, ListStraysReply, ListStraysRequest, PartitionRef, Stray,
};

use super::partition;
use crate::api::pages::{Page, Token};
use crate::broker::DataPlane;

/// Replicas that are asked about, or deleted, at once.
const ASKED_AT_ONCE: usize = 256;

/// Replicas that one request deletes.
const DELETED_MAX: usize = 10_000;

/// A page of the strays, in the order of their ids.
pub async fn list(plane: &DataPlane, request: ListStraysRequest) -> Result<ListStraysReply, ApiError> {
    const CALL: &str = "strays";
    let first = Token::decode(CALL, &request.page_token)?;
    let mut page = Page::new(request.page_size, &request.page_token);
    let mut reply = ListStraysReply { broker: plane.broker().get(), ..ListStraysReply::default() };
    let ids = stream::iter(plane.strays(first.topic, first.partition));
    let mut looked_at = ids.map(|id| async move { (id, look_at(plane, id).await) }).buffered(ASKED_AT_ONCE);
    while let Some((id, stray)) = looked_at.next().await {
        if !page.take(&stray)? {
            let partition = usize::try_from(id.partition.get()).unwrap_or_default();
            reply.next_page_token = Token { partition, topic: Some(id.topic), ..Token::default() }.encode(CALL);
            break;
        }
        reply.strays.push(stray);
    }
    Ok(reply)
}

/// Without its size where its log is not open yet, or its directory has failed.
async fn look_at(plane: &DataPlane, id: TopicPartition) -> Stray {
    let mut stray = Stray { topic_id: id.topic.to_string(), partition: id.partition.get(), ..Stray::default() };
    let Some(replica) = plane.replica(id) else { return stray };
    stray.directory = replica.shard.directory().to_string();
    if let Ok(described) = replica.shard.describe(id).await {
        stray.bytes = i64::try_from(described.bytes).ok();
        stray.log_end_offset = Some(described.published.log_end.0);
    }
    stray
}

pub async fn delete(plane: &DataPlane, request: DeleteStraysRequest) -> Result<DeleteStraysReply, ApiError> {
    let count = request.strays.len();
    if count > DELETED_MAX {
        let message = format!("the request names {count} strays, one request may name {DELETED_MAX}");
        return Err(ApiError::new(ErrorName::InvalidRequest, message));
    }
    // All are on their way before the first is awaited: one sync of a directory serves many.
    let delete = |PartitionRef { topic_id, partition }| async move {
        let outcome = match partition::parse(&topic_id, partition) {
            Ok(id) => plane.delete_stray(id).await,
            Err(error) => Err(error),
        };
        DeletedStray { topic_id, partition, error: outcome.err().map(|error| to_item(&error)) }
    };
    let strays = stream::iter(request.strays).map(delete).buffered(ASKED_AT_ONCE).collect().await;
    Ok(DeleteStraysReply { broker: plane.broker().get(), strays })
}
