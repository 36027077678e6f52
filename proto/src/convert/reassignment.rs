use quorate_metadata::ids::{PartitionId, ReassignmentId, TopicId, TopicPartition};
use quorate_metadata::record::{ReassignedPartition, ReassignmentStart};

use super::{DecodeError, broker_ids, brokers, id, wire};

pub(super) fn start_to_wire(start: &ReassignmentStart) -> wire::BeginReassignment {
    let moved = |partition: &ReassignedPartition| wire::ReassignedPartition {
        topic: partition.id.topic.as_bytes().to_vec(),
        partition: partition.id.partition.get(),
        original: brokers(&partition.original),
    };
    wire::BeginReassignment {
        id: start.id.get(),
        partitions: start.partitions.iter().map(moved).collect(),
        paused: start.paused,
        throttle_bytes_per_second: start.throttle_bytes_per_second,
        started_ms: start.started_ms,
    }
}

pub(super) fn start_from_wire(record: wire::BeginReassignment) -> Result<ReassignmentStart, DecodeError> {
    let moved = |partition: wire::ReassignedPartition| {
        let topic = TopicId::from_bytes(id("topic", &partition.topic)?);
        let id = TopicPartition::new(topic, PartitionId::new(partition.partition));
        Ok(ReassignedPartition { id, original: broker_ids(&partition.original) })
    };
    Ok(ReassignmentStart {
        id: ReassignmentId::new(record.id),
        partitions: record.partitions.into_iter().map(moved).collect::<Result<_, _>>()?,
        paused: record.paused,
        throttle_bytes_per_second: record.throttle_bytes_per_second,
        started_ms: record.started_ms,
    })
}

#[cfg(test)]
mod tests {
    use quorate_metadata::Record;
    use quorate_metadata::ids::BrokerId;

    use super::*;
    use crate::record::{from_wire, to_wire};

    #[test]
    fn a_reassignment_survives_the_wire() {
        let id = TopicPartition::new(TopicId::from_bytes([1; 16]), PartitionId::new(2));
        let start = ReassignmentStart {
            id: ReassignmentId::new(7),
            partitions: vec![ReassignedPartition { id, original: vec![BrokerId::new(1), BrokerId::new(2)] }],
            paused: true,
            throttle_bytes_per_second: Some(1),
            started_ms: Some(3),
        };
        let change = |throttle_bytes_per_second| Record::ChangeReassignment {
            reassignment: ReassignmentId::new(7),
            paused: true,
            throttle_bytes_per_second,
        };
        for record in [Record::BeginReassignment(start), change(None), change(Some(9))] {
            assert_eq!(from_wire(to_wire(&record)), Ok(record));
        }
    }
}
