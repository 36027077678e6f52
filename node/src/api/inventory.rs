//! Brokers, configs and reassignments in the words of the wire, page by page.

use std::ops::Bound;

use prost::Message;
use quorate_metadata::ids::{BrokerId, PartitionId, ReassignmentId, TopicPartition};
use quorate_metadata::image::Reassignment;
use quorate_metadata::{ApiError, MetadataImage};
use quorate_proto::admin;

use super::describe::{self, count};
use super::pages::{Page, Token};
use super::request::{config_resource, item_error};

/// A page of the brokers, in the order of their ids.
pub async fn brokers(
    image: &MetadataImage,
    asked: &admin::ListBrokersRequest,
) -> Result<admin::ListBrokersReply, ApiError> {
    const CALL: &str = "brokers";
    let first = Token::decode(CALL, &asked.page_token)?;
    let mut page = Page::new(asked.page_size, &asked.page_token);
    let mut reply = admin::ListBrokersReply { offset: image.next_offset.get(), ..Default::default() };
    // Ids are not negative.
    let first = BrokerId::new(count(first.item));
    for (_, broker) in image.brokers.range(first..) {
        page.slices.step().await;
        let item = describe::broker(image, broker);
        if !page.take(&item)? {
            let item = usize::try_from(item.id).unwrap_or_default();
            reply.next_page_token = Token { item, ..Token::default() }.encode(CALL);
            break;
        }
        reply.brokers.push(item);
    }
    Ok(reply)
}

/// A page of the resources asked for.
pub async fn configs(
    image: &MetadataImage,
    asked: admin::DescribeConfigsRequest,
) -> Result<admin::DescribeConfigsReply, ApiError> {
    const CALL: &str = "configs";
    let first = Token::decode(CALL, &asked.page_token)?;
    let mut page = Page::new(asked.page_size, &asked.page_token);
    let mut reply = admin::DescribeConfigsReply { offset: image.next_offset.get(), ..Default::default() };
    for (item, resource) in asked.resources.into_iter().enumerate().skip(first.item) {
        page.slices.step().await;
        let described = described_configs(image, resource);
        if !page.take(&described)? {
            reply.next_page_token = Token { item, ..Token::default() }.encode(CALL);
            break;
        }
        reply.resources.push(described);
    }
    Ok(reply)
}

fn described_configs(image: &MetadataImage, asked: admin::ConfigResource) -> admin::ConfigDescription {
    let entries = config_resource(Some(&asked)).and_then(|resource| describe::configs(image, &resource));
    admin::ConfigDescription {
        resource: Some(asked),
        error: item_error(&entries),
        entries: entries.unwrap_or_default(),
    }
}

/// A page of the partitions that are moved, in the order of the operations that move them.
pub async fn reassignments(
    image: &MetadataImage,
    asked: &admin::ListReassignmentsRequest,
) -> Result<admin::ListReassignmentsReply, ApiError> {
    const CALL: &str = "reassignments";
    let first = Token::decode(CALL, &asked.page_token)?;
    let first_id = operation_in(&first).ok_or_else(|| Token::foreign(&asked.page_token))?;
    let mut page = Page::new(asked.page_size, &asked.page_token);
    let mut reply = admin::ListReassignmentsReply { offset: image.next_offset.get(), ..Default::default() };
    for (id, operation) in image.reassignments.range(first_id..) {
        let begun = if *id == first_id { partition_in(&first) } else { None };
        if page.is_full() {
            reply.next_page_token = token(*id, None).encode(CALL);
            break;
        }
        let (description, rest) = reassignment(image, operation, begun, &mut page).await?;
        if !description.partitions.is_empty() || !description.continued {
            reply.reassignments.push(description);
        }
        if let Some(rest) = rest {
            reply.next_page_token = token(*id, Some(rest)).encode(CALL);
            break;
        }
    }
    Ok(reply)
}

/// The page goes on with this operation, from this partition on if others of it were in the pages before.
fn token(operation: ReassignmentId, partition: Option<TopicPartition>) -> Token {
    Token {
        topic: partition.map(|id| id.topic),
        partition: partition.and_then(|id| usize::try_from(id.partition.get()).ok()).unwrap_or_default(),
        name: operation.get().to_string(),
        ..Token::default()
    }
}

fn operation_in(token: &Token) -> Option<ReassignmentId> {
    let first = if token.name.is_empty() { Some(i64::MIN) } else { token.name.parse().ok() };
    first.map(ReassignmentId::new)
}

fn partition_in(token: &Token) -> Option<TopicPartition> {
    token.topic.map(|topic| TopicPartition::new(topic, PartitionId::new(count(token.partition))))
}

/// One operation from where the page before has left it, and where it goes on if the page has no room for all of it.
async fn reassignment(
    image: &MetadataImage,
    operation: &Reassignment,
    begun: Option<TopicPartition>,
    page: &mut Page,
) -> Result<(admin::ReassignmentDescription, Option<TopicPartition>), ApiError> {
    let mut description = admin::ReassignmentDescription {
        id: operation.id.get(),
        paused: operation.paused,
        throttle_bytes_per_second: operation.throttle_bytes_per_second,
        started_ms: operation.started_ms,
        partitions: Vec::new(),
        continued: begun.is_some(),
    };
    page.add(description.encoded_len())?;
    let from = begun.map_or(Bound::Unbounded, Bound::Included);
    for (id, original) in operation.partitions.range((from, Bound::Unbounded)) {
        page.slices.step().await;
        let Some(item) = reassigning(image, *id, original) else { continue };
        if !page.take(&item)? {
            return Ok((description, Some(*id)));
        }
        description.partitions.push(item);
    }
    Ok((description, None))
}

fn reassigning(
    image: &MetadataImage,
    id: TopicPartition,
    original: &[BrokerId],
) -> Option<admin::ReassigningPartition> {
    let topic = image.topic(id.topic)?;
    let state = topic.partition(id.partition)?;
    Some(admin::ReassigningPartition {
        topic: topic.name.clone(),
        topic_id: topic.id.to_string(),
        partition: id.partition.get(),
        leader: state.leader.map(BrokerId::get),
        replicas: ids(&state.replicas),
        isr: ids(&state.isr),
        adding: ids(state.adding()),
        removing: ids(state.removing()),
        target: state.target().map(BrokerId::get).collect(),
        original: ids(original),
    })
}

fn ids(brokers: &[BrokerId]) -> Vec<i32> {
    brokers.iter().map(|broker| broker.get()).collect()
}

#[cfg(test)]
mod tests;
