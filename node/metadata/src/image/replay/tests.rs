use super::*;
use crate::ids::PartitionId;
use crate::image::fixture::{batch, broker, change, create_partition, image, partition_id, registration, topic};
use crate::record::{Kind, ReassignedPartition, ReassignmentStart};

fn replay(image: &mut MetadataImage, records: &[Record]) {
    image.replay(&batch(2, records)).expect("the records of this test replay");
    assert_eq!(image.verify(), []);
}

fn refused(record: Record) -> ReplayError {
    image().replay(&batch(2, &[record])).expect_err("the record cannot be true of the image")
}

#[test]
fn only_a_change_that_states_a_leader_bumps_the_leader_epoch() {
    let mut image = image();
    let id = partition_id(0);
    let epochs = |image: &MetadataImage| {
        let partition = image.partition(id).expect("the fixture has it");
        (partition.leader_epoch.get(), partition.partition_epoch.get())
    };
    let mut shrunk = change(id);
    shrunk.isr = Some(vec![broker(1), broker(2)]);
    replay(&mut image, &[Record::PartitionChange(shrunk)]);
    assert_eq!(epochs(&image), (0, 1));
    let mut restated = change(id);
    restated.leader = Some(Some(broker(1)));
    replay(&mut image, &[Record::PartitionChange(restated)]);
    assert_eq!(epochs(&image), (1, 2));
}

#[test]
fn a_partition_remembers_its_last_changes_only() {
    let mut image = image();
    let id = partition_id(0);
    let offset = image.next_offset.get();
    let kept = i64::try_from(limits::PARTITION_CHANGES_KEPT).expect("a small number");
    let moves: Vec<Record> = (0..=kept).map(|_| Record::PartitionChange(change(id))).collect();
    replay(&mut image, &moves);
    let history = &image.partition(id).expect("the fixture has it").history;
    let offsets: Vec<i64> = history.iter().map(|note| note.offset.get()).collect();
    assert_eq!(offsets, (offset + 1..=offset + kept).collect::<Vec<_>>());
}

#[test]
fn a_removed_topic_leaves_nothing_behind() {
    let before = image();
    let mut image = before.clone();
    let resource = ConfigResource::Topic("payments".to_owned());
    let id = |at| TopicPartition::new(topic(2), PartitionId::new(at));
    let moved = PartitionChange { leader: Some(Some(broker(1))), ..change(id(0)) };
    let lost =
        PartitionChange { isr: Some(Vec::new()), elr: Some(vec![broker(3)]), leader: Some(None), ..change(id(1)) };
    let records = [
        Record::CreateTopic { topic: topic(2), name: "payments".to_owned(), kind: Kind::LOG },
        Record::Config { resource, key: "retention.ms".to_owned(), value: Some("1".to_owned()) },
        create_partition(topic(2), 0, &[3, 1]),
        create_partition(topic(2), 1, &[3, 1]),
        Record::PartitionChange(moved),
        Record::PartitionChange(lost),
        Record::RemoveTopic { topic: topic(2) },
    ];
    replay(&mut image, &records);
    let next_offset = image.next_offset;
    assert_eq!(next_offset, before.next_offset.advance(records.len()));
    let epoch_and_time = (image.controller_epoch, image.timestamp_ms);
    let (controller_epoch, timestamp_ms) = epoch_and_time;
    assert_eq!(image, MetadataImage { next_offset, controller_epoch, timestamp_ms, ..before });
}

/// It has more partitions than there are brokers: the index drops it by broker, not by partition.
#[test]
fn a_large_removed_topic_leaves_nothing_behind() {
    let mut image = image();
    let (large, other) = (topic(2), topic(3));
    let mut records = vec![Record::CreateTopic { topic: other, name: "other".to_owned(), kind: Kind::LOG }];
    records.extend((0..6).map(|at| create_partition(other, at, &[2, 1, 4])));
    replay(&mut image, &records);
    let before = image.clone();
    let mut records = vec![Record::CreateTopic { topic: large, name: "large".to_owned(), kind: Kind::LOG }];
    records.extend((0..5_000).map(|at| create_partition(large, at, &[1, 2, 3])));
    let id = |at| TopicPartition::new(large, PartitionId::new(at));
    records.extend((0..10).map(|at| {
        let (isr, elr) = (Some(Vec::new()), Some(vec![broker(3)]));
        Record::PartitionChange(PartitionChange { isr, elr, leader: Some(None), ..change(id(at)) })
    }));
    records.push(Record::PartitionChange(PartitionChange { leader: Some(Some(broker(2))), ..change(id(20)) }));
    let moved = ReassignedPartition { id: id(21), original: vec![broker(1)] };
    let adding = Some(vec![broker(3)]);
    records.push(Record::PartitionChange(PartitionChange { adding, ..change(id(21)) }));
    records.push(Record::BeginReassignment(ReassignmentStart {
        id: ReassignmentId::new(1),
        partitions: vec![moved],
        paused: false,
        throttle_bytes_per_second: None,
        started_ms: None,
    }));
    replay(&mut image, &records);
    assert_eq!(image.index.leaderless_count(), 10);
    replay(&mut image, &[Record::RemoveTopic { topic: large }]);
    assert_eq!(image, MetadataImage { next_offset: image.next_offset, ..before });
}

#[test]
fn a_broker_goes_through_its_states() {
    let mut image = image();
    let state = |image: &MetadataImage| {
        let broker = image.broker(broker(4)).expect("the fixture has it");
        (broker.fenced, broker.in_controlled_shutdown, broker.controlled_shutdown_offset.map(Offset::get))
    };
    let epoch = image.broker(broker(4)).expect("the fixture has it").epoch;
    let broker = broker(4);
    let begun = image.next_offset.get();
    replay(&mut image, &[Record::BeginControlledShutdown { broker, epoch }]);
    assert_eq!(state(&image), (false, true, Some(begun)));
    replay(&mut image, &[Record::FenceBroker { broker, epoch }]);
    assert_eq!(state(&image), (true, true, None));
    replay(&mut image, &[Record::UnfenceBroker { broker, epoch }]);
    assert_eq!(state(&image), (false, false, None));
    replay(&mut image, &[Record::UnregisterBroker { broker, epoch }]);
    assert_eq!(image.broker(broker), None);
}

#[test]
fn what_cannot_be_true_is_refused() {
    let taken = Record::CreateTopic { topic: topic(2), name: "orders".to_owned(), kind: Kind::LOG };
    assert!(matches!(refused(taken), ReplayError::TopicExists { .. }));
    assert!(matches!(refused(create_partition(topic(1), 3, &[1])), ReplayError::PartitionOutOfOrder { next: 2, .. }));
    assert!(matches!(refused(create_partition(topic(2), 0, &[1])), ReplayError::UnknownTopic(_)));
    let astray = Record::PartitionChange(change(partition_id(-1)));
    assert_eq!(refused(astray), ReplayError::UnknownPartition(partition_id(-1)));
    let (current, stated) = (registration(1).epoch, BrokerEpoch::new(99));
    let mismatch = ReplayError::BrokerEpochMismatch { broker: broker(1), stated, current };
    assert_eq!(refused(Record::FenceBroker { broker: broker(1), epoch: stated }), mismatch);
    let unknown = Record::FenceBroker { broker: broker(9), epoch: stated };
    assert_eq!(refused(unknown), ReplayError::UnknownBroker(broker(9)));
    let cluster = ClusterId::from_bytes([7; 16]);
    assert!(matches!(refused(Record::ClusterCreated { cluster }), ReplayError::ClusterExists(_)));
}

/// 100 topics of 100 partitions must not be felt, when a node starts as little as when they are created.
#[test]
fn many_partitions_replay() {
    let mut image = image();
    for at in 2..102 {
        let id = topic(at);
        let mut records = vec![Record::CreateTopic { topic: id, name: format!("topic-{at}"), kind: Kind::LOG }];
        records.extend((0..100).map(|partition| create_partition(id, partition, &[1, 2, 3])));
        image.replay(&batch(2, &records)).expect("they are new");
    }
    assert_eq!(image.index.led_count(broker(1)), 10_001);
    assert_eq!(image.verify(), []);
}
