//! Forgetting a broker.

use crate::error::{ApiError, ErrorName};
use crate::ids::{BrokerId, TopicPartition};
use crate::image::MetadataImage;
use crate::plan::Plan;
use crate::plan::brokers::{finish, registered, union};
use crate::plan::partition_change::change_step;
use crate::record::{Cause, Record};

/// Forgets a broker: one that is fenced, or with `force` any. It keeps its place in replica lists: moving its replicas is
/// another matter. A move to it would never end without it, so such a broker stays, also with `force`, until the move is
/// cancelled.
pub fn unregister(image: &MetadataImage, broker: BrokerId, force: bool) -> Result<Plan<()>, ApiError> {
    let registration = registered(image, broker)?;
    if !registration.fenced && !force {
        let message = format!("broker {broker} is not fenced: it would register again; stop it first, or force it");
        return Err(ApiError::new(ErrorName::PolicyViolation, message));
    }
    check_not_awaited(image, broker)?;
    let seats = union(image.index.in_isr(broker), image.index.in_elr(broker));
    let step = change_step(image, seats, Cause::BrokerUnregistered(broker), |change| change.distrust(broker));
    Ok(finish(step, (), Record::UnregisterBroker { broker, epoch: registration.epoch }))
}

/// Refuses a broker that a reassignment waits for. Looks through the partitions that move or through those that have a
/// replica on the broker, whichever are fewer.
fn check_not_awaited(image: &MetadataImage, broker: BrokerId) -> Result<(), ApiError> {
    let awaits = |id: &TopicPartition| {
        let state = image.partition(*id);
        state.is_some_and(|at| at.is_reassigning() && at.target().any(|replica| replica == broker))
    };
    let operations = || image.reassignments.values();
    let moving_count: usize = operations().map(|operation| operation.partitions.len()).sum();
    let awaiting = if moving_count < image.index.replica_count(broker) {
        operations().flat_map(|operation| operation.partitions.keys().copied()).find(awaits)
    } else {
        image.index.hosted_by(broker).find(awaits)
    };
    let Some(id) = awaiting else { return Ok(()) };
    let topic = image.topic(id.topic).map_or_else(|| id.topic.to_string(), |topic| topic.name.clone());
    let operation = image.reassignment_of(id).map(|operation| format!("reassignment {}", operation.id));
    let operation = operation.unwrap_or_else(|| "a reassignment".to_owned());
    let message = format!(
        "broker {broker} is a target of {operation} (partition {topic}-{}): cancel that first, or move the partition to \
         another broker",
        id.partition
    );
    Err(ApiError::new(ErrorName::PolicyViolation, message))
}
