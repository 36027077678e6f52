//! Elections as the admin service speaks of them.

use quorate_metadata::ids::{PartitionId, TopicPartition};
use quorate_metadata::plan::elections::{self, ElectionKind};
use quorate_metadata::{ApiError, MetadataImage};
use quorate_proto::admin::{ElectLeadersRequest, ElectedPartition};

use super::admin::plan_items;
use super::describe;
use super::request::{invalid, item_error};

pub fn election_kind(kind: quorate_proto::admin::ElectionKind) -> Result<ElectionKind, ApiError> {
    match kind {
        quorate_proto::admin::ElectionKind::Preferred => Ok(ElectionKind::Preferred),
        quorate_proto::admin::ElectionKind::Unclean => Ok(ElectionKind::Unclean),
        quorate_proto::admin::ElectionKind::Unspecified => Err(invalid("unknown election kind")),
    }
}

/// Elects, and answers by name; a name that is no topic of ours is an error of its own item.
pub fn elect(
    image: &MetadataImage,
    kind: ElectionKind,
    body: &ElectLeadersRequest,
) -> quorate_metadata::Plan<Vec<ElectedPartition>> {
    let named = |id: TopicPartition| {
        let topic = image.topic(id.topic).map(|topic| topic.name.clone()).unwrap_or_else(|| id.topic.to_string());
        quorate_proto::admin::TopicPartition { topic, partition: id.partition.get() }
    };
    if body.all {
        return elections::elect(image, kind, None).map(|elected| {
            elected
                .into_iter()
                .map(|(id, elected)| ElectedPartition { partition: Some(named(id)), error: item_error(&elected) })
                .collect()
        });
    }
    let checked: Vec<Result<TopicPartition, ApiError>> = body
        .partitions
        .iter()
        .map(|asked| {
            let topic = image.topic_named(&asked.topic).ok_or_else(|| describe::unknown_topic(&asked.topic))?;
            Ok(TopicPartition::new(topic.id, PartitionId::new(asked.partition)))
        })
        .collect();
    let plan = plan_items(&checked, |partitions| {
        let plan = elections::elect(image, kind, Some(&partitions));
        plan.map(|elected| elected.into_iter().map(|(_, elected)| elected).collect())
    });
    let answer = |(asked, elected): (&quorate_proto::admin::TopicPartition, Result<(), ApiError>)| ElectedPartition {
        partition: Some(asked.clone()),
        error: item_error(&elected),
    };
    plan.map(|elected| body.partitions.iter().zip(elected).map(answer).collect())
}
