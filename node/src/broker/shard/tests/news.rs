//! News of brokers and of reassignments.

use quorate_metadata::ids::{IncarnationId, ReassignmentId};
use quorate_metadata::record::{BrokerRegistration, Kind, Probe, ReassignedPartition, ReassignmentStart};

use super::super::super::replica::Supplied;
use super::*;

const MOVED: i32 = 700;
const OPERATION: ReassignmentId = ReassignmentId::new(7);

/// Broker 2 has the partition too.
fn shared() -> PartitionChange {
    PartitionChange {
        replicas: Some(vec![broker(2), broker(1)]),
        directories: Some(vec![DirectoryId::UNASSIGNED; 2]),
        ..PartitionChange::none(id(MOVED), Cause::Reassignment)
    }
}

fn registered(id: i32) -> Record {
    Record::RegisterBroker(BrokerRegistration {
        broker: broker(id),
        epoch: BrokerEpoch::new(1),
        incarnation: IncarnationId::default(),
        endpoints: Vec::new(),
        kind: Kind::LOG,
        probe: Probe::Unstated,
        rack: None,
        features: BTreeMap::new(),
        directories: Vec::new(),
        cordoned_directories: None,
        fenced: true,
        in_controlled_shutdown: false,
        controlled_shutdown_offset: None,
    })
}

#[tokio::test]
async fn metadata_of_a_broker_concerns_the_replicas_of_its_partitions() {
    let mut driven = Driven::leading().await;
    driven.learn(vec![Record::PartitionChange(shared())]);
    assert_eq!(driven.round(), 1);
    driven.learn(vec![registered(3)]);
    assert_eq!(driven.round(), 0, "it has no partition");
    driven.learn(vec![registered(2)]);
    assert_eq!(driven.round(), 1);
    driven.learn(vec![Record::UnfenceBroker { broker: broker(2), epoch: BrokerEpoch::new(1) }]);
    assert_eq!(driven.round(), 1);
}

#[tokio::test]
async fn a_config_of_all_brokers_concerns_all_replicas() {
    let mut driven = Driven::leading().await;
    driven.learn(vec![Record::Config {
        resource: ConfigResource::BrokerDefault,
        key: "log.retention.ms".to_owned(),
        value: Some("1000".to_owned()),
    }]);
    let mut told = 0;
    while driven.shard.has_more_to_do() {
        told += driven.round();
    }
    assert_eq!(told, COUNT as usize);
}

/// A replica that an operation adds here, throttled to a byte a second, and that has fetched a hundred.
async fn throttled() -> Driven {
    let mut driven = Driven::start(Vec::new());
    let partition = |number| ReassignedPartition { id: id(number), original: vec![broker(2)] };
    let change = PartitionChange {
        isr: Some(vec![broker(2)]),
        adding: Some(vec![broker(1)]),
        leader: Some(Some(broker(2))),
        ..shared()
    };
    let begun = ReassignmentStart {
        id: OPERATION,
        partitions: vec![partition(MOVED), partition(MOVED + 1)],
        paused: false,
        throttle_bytes_per_second: Some(1),
        started_ms: None,
    };
    let other = PartitionChange { id: id(MOVED + 1), ..change.clone() };
    let changes = [change, other].map(Record::PartitionChange);
    driven.learn(changes.into_iter().chain([Record::BeginReassignment(begun)]).collect());
    driven.change(RoleChange::Follow { id: id(MOVED), source: SOURCE }).await;
    driven.round();
    fetched(&mut driven).await;
    assert!(waits(&mut driven));
    driven
}

const SOURCE: Source = Source { leader: BrokerId::new(2), leader_epoch: LeaderEpoch::new(1) };

async fn fetched(driven: &mut Driven) {
    let supplied = Supplied {
        id: id(MOVED),
        source: SOURCE,
        error: None,
        high_watermark: quorate_log::LogOffset(0),
        log_start: quorate_log::LogOffset(0),
        diverging: None,
        gaps_below: quorate_log::LogOffset(0),
        batches: vec![Bytes::from(vec![0; 100])],
    };
    driven.handle.send(Command::Supplied(vec![supplied])).await.expect("the owner lives");
    driven.round();
}

/// Whether the replica, looked at, still has to wait before it may fetch.
fn waits(driven: &mut Driven) -> bool {
    driven.shard.throttled.clear();
    let mut round = Round::default();
    round.touched.insert(id(MOVED));
    driven.end(round);
    !driven.shard.throttled.is_empty()
}

fn terms(throttle_bytes_per_second: Option<u64>) -> Record {
    Record::ChangeReassignment { reassignment: OPERATION, paused: false, throttle_bytes_per_second }
}

#[tokio::test]
async fn a_wait_ends_with_the_terms_that_it_was_for() {
    let mut driven = throttled().await;
    driven.learn(vec![Record::PartitionChange(PartitionChange::none(id(MOVED), Cause::ElectionRequested))]);
    driven.round();
    assert!(waits(&mut driven), "its terms are the same");
    let over =
        PartitionChange { adding: Some(Vec::new()), ..PartitionChange::none(id(MOVED + 1), Cause::Reassignment) };
    driven.learn(vec![Record::PartitionChange(over)]);
    driven.round();
    assert!(waits(&mut driven), "the operation has got on under the same terms");
    driven.learn(vec![terms(Some(1_000_000))]);
    // Before the replica has acted on the terms.
    driven.learn(vec![Record::PartitionChange(PartitionChange::none(id(MOVED), Cause::ElectionRequested))]);
    driven.round();
    assert!(!waits(&mut driven));
    fetched(&mut driven).await;
    assert!(!waits(&mut driven), "what was fetched under the old terms is forgiven");
}

#[tokio::test]
async fn a_replica_that_is_in_sync_waits_no_longer() {
    let mut driven = throttled().await;
    let change = PartitionChange {
        isr: Some(vec![broker(2), broker(1)]),
        ..PartitionChange::none(id(MOVED), Cause::AlterPartition(broker(2)))
    };
    driven.learn(vec![Record::PartitionChange(change)]);
    driven.round();
    assert!(!waits(&mut driven));
}

#[tokio::test]
async fn followers_go_on_each_at_its_time() {
    let mut driven = Driven::start(Vec::new());
    driven.shard.throttled.extend([(0, id(0)), (1 << 40, id(1))]);
    let mut round = Round::default();
    driven.shard.go_on(&mut round);
    assert_eq!(round.touched, BTreeSet::from([id(0)]));
    assert_eq!(driven.shard.throttled, BTreeSet::from([(1 << 40, id(1))]));
}
