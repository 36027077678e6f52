//! Whatever replays, however it was cut into batches, leads to the same image on every node:
//! - P7: what is derived (indexes, digest) equals what it is derived from; two images of the same records are equal;
//! - image -> snapshot -> image is identity, at any point of the log;
//! - a batch is replayed whole or not at all, and a transaction shows whole or not at all;
//! - a batch that breaks a rule is found by looking at the batch alone.
//!
//! The records are arbitrary, and mostly break the rules of partitions: replay has no opinion about those.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::collections::BTreeMap;

use proptest::prelude::*;
use proptest::sample::{select, subsequence};
use quorate_metadata::ids::{
    BrokerEpoch, BrokerId, ClientId, ClusterId, ControllerEpoch, ControllerId, DirectoryId, IncarnationId, LeaderEpoch,
    Offset, PartitionEpoch, PartitionId, ReassignmentId, TopicId, TopicPartition,
};
use quorate_metadata::image::verify::Violation;
use quorate_metadata::image::{Delta, LEVEL_HIGHEST, METADATA_VERSION, ReplayError, RequestOutcome};
use quorate_metadata::limits;
use quorate_metadata::record::{
    BrokerRegistration, Cause, ConfigResource, ControllerRegistration, Endpoint, Kind, LeaderRecoveryState, Partition,
    PartitionChange, PartitionRegistration, PartitionState, Probe, ReassignedPartition, ReassignmentStart, Record,
    SecurityProtocol, VersionRange,
};
use quorate_metadata::{Batch, Ledger, MetadataImage};

const BROKERS: [i32; 4] = [1, 2, 3, 4];
const TOPICS: [&str; 3] = ["orders", "payments", "users"];

fn broker() -> impl Strategy<Value = BrokerId> {
    select(&BROKERS[..]).prop_map(BrokerId::new)
}

fn brokers() -> impl Strategy<Value = Vec<BrokerId>> {
    let sorted = subsequence(&BROKERS[..], 0..=BROKERS.len());
    sorted.prop_shuffle().prop_map(|ids| ids.into_iter().map(BrokerId::new).collect())
}

/// Mostly the one that the broker has.
fn epoch() -> impl Strategy<Value = BrokerEpoch> {
    prop_oneof![9 => Just(BrokerEpoch::new(0)), 1 => Just(BrokerEpoch::new(1))]
}

fn topic() -> impl Strategy<Value = usize> {
    0..TOPICS.len()
}

fn topic_id(at: usize) -> TopicId {
    TopicId::from_bytes([u8::try_from(at).unwrap(); 16])
}

fn partition_id() -> impl Strategy<Value = TopicPartition> {
    (topic(), 0..3i32).prop_map(|(at, id)| TopicPartition::new(topic_id(at), PartitionId::new(id)))
}

fn directories(count: usize) -> Vec<DirectoryId> {
    vec![DirectoryId::UNASSIGNED; count]
}

/// Sound as long as its replicas are active.
fn partition() -> impl Strategy<Value = Partition> {
    let replicas = subsequence(&BROKERS[..], 1..=BROKERS.len()).prop_shuffle();
    (replicas, any::<u8>())
        .prop_map(|(replicas, in_sync)| partition_of(replicas.into_iter().map(BrokerId::new).collect(), in_sync))
}

/// In sync are the replicas whose bits are set, and always the first, which leads.
fn partition_of(replicas: Vec<BrokerId>, in_sync: u8) -> Partition {
    let is_in_sync = |at: &usize| *at == 0 || in_sync & (1 << at) != 0;
    let isr: Vec<BrokerId> = (0..replicas.len()).filter(is_in_sync).map(|at| replicas[at]).collect();
    Partition::from(PartitionState {
        directories: directories(replicas.len()),
        leader: isr.first().copied(),
        isr,
        elr: Vec::new(),
        last_known_elr: Vec::new(),
        adding: Vec::new(),
        removing: Vec::new(),
        recovery: LeaderRecoveryState::Recovered,
        leader_epoch: LeaderEpoch::default(),
        partition_epoch: PartitionEpoch::default(),
        history: Vec::new(),
        replicas,
    })
}

fn change() -> impl Strategy<Value = PartitionChange> {
    let cause = prop_oneof![Just(Cause::PreferredElection), broker().prop_map(Cause::AlterPartition)];
    let lists = (some(brokers()), some(brokers()), some(brokers()), some(brokers()), some(brokers()));
    let leader = some(prop::option::of(broker()));
    (partition_id(), cause, lists, leader, any::<bool>()).prop_map(
        |(id, cause, (replicas, isr, elr, last_known_elr, adding), leader, unclean)| PartitionChange {
            directories: replicas.as_ref().map(|replicas| directories(replicas.len())),
            replicas,
            isr,
            elr,
            last_known_elr,
            adding,
            leader,
            recovery: unclean.then_some(LeaderRecoveryState::Recovering),
            unclean,
            ..PartitionChange::none(id, cause)
        },
    )
}

/// Mostly unchanged, as in real changes.
fn some<S: Strategy>(value: S) -> impl Strategy<Value = Option<S::Value>>
where
    S::Value: Clone,
{
    prop::option::weighted(0.3, value)
}

fn registration() -> impl Strategy<Value = BrokerRegistration> {
    (broker(), epoch(), any::<bool>(), any::<bool>(), any::<bool>(), kind(), probe()).prop_map(
        |(broker, epoch, fenced, has_rack, is_cordoned, kind, probe)| BrokerRegistration {
            epoch,
            incarnation: IncarnationId::from_bytes([u8::from(has_rack); 16]),
            kind,
            probe,
            rack: has_rack.then(|| "a".to_owned()),
            cordoned_directories: is_cordoned.then(Vec::new),
            fenced,
            ..registration_of(broker)
        },
    )
}

fn probe() -> impl Strategy<Value = Probe> {
    prop_oneof![3 => Just(Probe::Unstated), 1 => Just(Probe::None), 1 => Just(Probe::Endpoint("internal".to_owned()))]
}

fn kind() -> impl Strategy<Value = Kind> {
    prop_oneof![4 => Just(Kind::LOG), 1 => Just(Kind::from("counter"))]
}

fn registration_of(broker: BrokerId) -> BrokerRegistration {
    BrokerRegistration {
        broker,
        epoch: BrokerEpoch::new(0),
        incarnation: IncarnationId::default(),
        endpoints: endpoints(9_092),
        kind: Kind::LOG,
        probe: Probe::Unstated,
        rack: None,
        features: BTreeMap::from([("metadata.version".to_owned(), VersionRange { min: 1, max: 2 })]),
        directories: vec![DirectoryId::from_bytes([200; 16])],
        cordoned_directories: None,
        fenced: true,
        in_controlled_shutdown: false,
        controlled_shutdown_offset: None,
    }
}

fn endpoints(port: u16) -> Vec<Endpoint> {
    let (name, host) = ("internal".to_owned(), "localhost".to_owned());
    vec![Endpoint { name, host, port, security: SecurityProtocol::Plaintext }]
}

fn about_brokers() -> impl Strategy<Value = Record> {
    let named = || (broker(), epoch());
    prop_oneof![
        4 => registration().prop_map(Record::RegisterBroker),
        1 => named().prop_map(|(broker, epoch)| Record::FenceBroker { broker, epoch }),
        2 => named().prop_map(|(broker, epoch)| Record::UnfenceBroker { broker, epoch }),
        1 => named().prop_map(|(broker, epoch)| Record::BeginControlledShutdown { broker, epoch }),
        1 => (1..100i64).prop_map(|next| Record::ProducerIds { next }),
        1 => named().prop_map(|(broker, epoch)| Record::UnregisterBroker { broker, epoch }),
    ]
}

fn about_topics() -> impl Strategy<Value = Record> {
    prop_oneof![
        2 => (topic(), kind())
            .prop_map(|(at, kind)| Record::CreateTopic { topic: topic_id(at), name: TOPICS[at].to_owned(), kind }),
        1 => topic().prop_map(|at| Record::RemoveTopic { topic: topic_id(at) }),
        6 => (partition_id(), partition())
            .prop_map(|(id, state)| Record::CreatePartition(PartitionRegistration { id, state })),
        8 => change().prop_map(Record::PartitionChange),
    ]
}

fn about_the_cluster() -> impl Strategy<Value = Record> {
    let resource = prop_oneof![
        topic().prop_map(|at| ConfigResource::Topic(TOPICS[at].to_owned())),
        broker().prop_map(ConfigResource::Broker),
        Just(ConfigResource::BrokerDefault),
    ];
    let name = select(&["metadata.version", "eligible.leader.replicas.version"][..]);
    prop_oneof![
        Just(Record::ClusterCreated { cluster: ClusterId::from_bytes([9; 16]) }),
        (name, 0..3i16).prop_map(|(name, level)| Record::FeatureLevel { name: name.to_owned(), level }),
        (0..3i32, 0..3u16).prop_map(|(id, port)| Record::RegisterController(ControllerRegistration {
            controller: ControllerId::new(id),
            incarnation: IncarnationId::default(),
            endpoints: endpoints(port),
            features: BTreeMap::new(),
        })),
        (resource, select(&["retention.ms", "segment.bytes"][..]), prop::option::of(0..3u8)).prop_map(
            |(resource, key, value)| Record::Config {
                resource,
                key: key.to_owned(),
                value: value.map(|value| value.to_string()),
            }
        ),
    ]
}

fn about_reassignments() -> impl Strategy<Value = Record> {
    let moved = (partition_id(), brokers()).prop_map(|(id, original)| ReassignedPartition { id, original });
    let id = || (0..4i64).prop_map(ReassignmentId::new);
    let terms = || (id(), any::<bool>(), prop::option::of(0..3u64));
    prop_oneof![
        (terms(), prop::collection::vec(moved, 0..3)).prop_map(
            |((id, paused, throttle_bytes_per_second), partitions)| Record::BeginReassignment(ReassignmentStart {
                id,
                partitions,
                paused,
                throttle_bytes_per_second,
                started_ms: None,
            })
        ),
        terms().prop_map(|(reassignment, paused, throttle_bytes_per_second)| Record::ChangeReassignment {
            reassignment,
            paused,
            throttle_bytes_per_second,
        }),
    ]
}

fn request() -> impl Strategy<Value = Record> {
    (0..2u8, any::<u64>(), prop::collection::vec(any::<u8>(), 0..3)).prop_map(|(client, request, reply)| {
        let client = ClientId::from_bytes([client; 16]);
        Record::RequestApplied { client, request, reply, offset: None, forgotten_up_to: None }
    })
}

fn record() -> impl Strategy<Value = Record> {
    prop_oneof![4 => about_brokers(), 8 => about_topics(), 2 => about_the_cluster(), 3 => about_reassignments(), 1 => request()]
}

fn with_transactions() -> impl Strategy<Value = Record> {
    prop_oneof![
        8 => record(),
        1 => Just(Record::BeginTransaction { name: "test".to_owned() }),
        1 => Just(Record::EndTransaction),
        1 => Just(Record::AbortTransaction { reason: "test".to_owned() }),
    ]
}

fn batch(records: &[Record]) -> Batch {
    Batch { controller_epoch: ControllerEpoch::new(1), timestamp_ms: 1, records: records.to_vec() }
}

/// Four active brokers and two topics, one with partitions. It breaks no rule.
fn start() -> Ledger {
    let active = |id| BrokerRegistration { fenced: false, ..registration_of(BrokerId::new(id)) };
    let mut records: Vec<Record> = BROKERS.map(|id| Record::RegisterBroker(active(id))).to_vec();
    records.push(Record::FeatureLevel { name: METADATA_VERSION.to_owned(), level: LEVEL_HIGHEST });
    for (at, name) in TOPICS.iter().enumerate().take(2) {
        records.push(Record::CreateTopic { topic: topic_id(at), name: (*name).to_owned(), kind: Kind::LOG });
    }
    for id in 0..2 {
        let id = TopicPartition::new(topic_id(0), PartitionId::new(id));
        let replicas = BROKERS.map(BrokerId::new).to_vec();
        records.push(Record::CreatePartition(PartitionRegistration { id, state: partition_of(replicas, u8::MAX) }));
    }
    let mut ledger = Ledger::default();
    ledger.replay(&batch(&records)).unwrap();
    ledger
}

/// The records that replay, one after the other, and what they lead to. The others must change nothing.
fn replayable(records: Vec<Record>) -> (Vec<Record>, Ledger) {
    let mut ledger = start();
    let mut accepted = Vec::new();
    for record in records {
        let before = ledger.clone();
        match ledger.replay(&batch(std::slice::from_ref(&record))) {
            Ok(_) => accepted.push(record),
            Err(_) => assert_eq!(ledger, before),
        }
    }
    (accepted, ledger)
}

/// The same records, cut into batches after each place that `cuts` names.
fn replay_in_batches(records: &[Record], cuts: u64) -> (Ledger, Vec<Delta>) {
    let mut ledger = start();
    let mut visible = Vec::new();
    let mut rest = records;
    for end in 1..=records.len() {
        let done = records.len() - rest.len();
        if end == records.len() || cuts & (1 << (end % 64)) != 0 {
            let (this, later) = rest.split_at(end - done);
            visible.extend(ledger.replay(&batch(this)).unwrap().visible);
            rest = later;
        }
    }
    (ledger, visible)
}

/// Violations of what replay itself must keep, whatever the records.
fn of_replay(image: &MetadataImage) -> Vec<Violation> {
    let is_of_replay = |violation: &Violation| {
        matches!(
            violation,
            Violation::IndexDiffers { .. }
                | Violation::TopicDigestDiffers(_)
                | Violation::DigestDiffers { .. }
                | Violation::RequestsMiscounted
                | Violation::TooManyClients { .. }
                | Violation::TooManyRequests { .. }
                | Violation::HistoryTooLong { .. }
                | Violation::TopicNameAstray { .. }
                | Violation::NameOfNoTopic { .. }
                | Violation::ConfigOfNoTopic(_)
                | Violation::BrokerMisfiled { .. }
        )
    };
    image.verify().into_iter().filter(is_of_replay).collect()
}

fn restored(image: &MetadataImage) -> MetadataImage {
    MetadataImage::from_snapshot(image.header(), image.to_records()).unwrap()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 256, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn what_is_derived_equals_what_it_is_derived_from(records in prop::collection::vec(record(), 1..80)) {
        let mut image = start().visible().clone();
        for record in replayable(records).0 {
            image.replay(&batch(&[record])).unwrap();
            prop_assert_eq!(of_replay(&image), []);
        }
    }

    #[test]
    fn a_snapshot_is_the_image_and_goes_on_as_the_image(
        records in prop::collection::vec(record(), 1..80),
        taken_after in 0..80usize,
    ) {
        let (records, whole) = replayable(records);
        let (earlier, later) = records.split_at(taken_after.min(records.len()));
        let mut image = start().visible().clone();
        image.replay(&batch(earlier)).unwrap();
        let mut copy = restored(&image);
        prop_assert_eq!(&copy, &image);
        copy.replay(&batch(later)).unwrap();
        prop_assert_eq!(&copy, whole.visible());
    }

    #[test]
    fn how_records_are_cut_into_batches_does_not_matter(
        records in prop::collection::vec(with_transactions(), 1..80),
        cuts in any::<u64>(),
    ) {
        let (records, one_by_one) = replayable(records);
        let (ledger, visible) = replay_in_batches(&records, cuts);
        prop_assert_eq!(ledger.working().digest(), one_by_one.working().digest());
        prop_assert_eq!(ledger.working(), one_by_one.working());
        prop_assert_eq!(ledger.visible(), one_by_one.visible());

        // A node that sees only the feed, and skips what was aborted, sees what readers see.
        let mut follower = start().visible().clone();
        for delta in visible {
            prop_assert_eq!(follower.next_offset, delta.first_offset);
            follower.replay(&batch(&delta.records)).unwrap();
            follower.next_offset = delta.next_offset;
        }
        prop_assert_eq!(follower.next_offset, ledger.visible().next_offset);
        prop_assert_eq!(follower.digest(), ledger.visible().digest());

        // And one that was handed the visible image with what is open is where this one is.
        let mut handed = Ledger::new(restored(ledger.visible()));
        for open in ledger.open_batches() {
            handed.replay(&open).unwrap();
        }
        prop_assert_eq!(handed.working(), ledger.working());
        prop_assert_eq!(handed.visible(), ledger.visible());
    }

    #[test]
    fn a_batch_is_replayed_whole_or_not_at_all(
        records in prop::collection::vec(with_transactions(), 1..40),
        poisoned in prop::collection::vec(with_transactions(), 1..10),
    ) {
        let (_, mut ledger) = replayable(records);
        let before = ledger.clone();
        let mut poisoned = replayable(poisoned).0;
        poisoned.push(Record::Digest { digest: 1 });
        prop_assert!(ledger.replay(&batch(&poisoned)).is_err());
        prop_assert_eq!(ledger, before);
    }

    #[test]
    fn a_digest_passes_on_the_same_image_only(records in prop::collection::vec(record(), 1..60), extra in record()) {
        let (_, ledger) = replayable(records);
        let image = ledger.visible();
        let checkpoint = batch(&[Record::Digest { digest: image.digest() }]);
        prop_assert!(restored(image).replay(&checkpoint).is_ok());

        let mut other = image.clone();
        if other.replay(&batch(&[extra])).is_ok() && other.to_records().ne(image.to_records()) {
            let offset = other.next_offset;
            let is_caught = matches!(
                other.replay(&checkpoint),
                Err(ReplayError::DigestMismatch { offset: at, .. }) if at == offset
            );
            prop_assert!(is_caught);
        }
    }

    #[test]
    fn a_broken_rule_is_found_by_looking_at_the_batch(records in prop::collection::vec(record(), 1..120)) {
        let mut image = start().visible().clone();
        for record in records {
            let mut next = image.clone();
            let batch = batch(&[record]);
            // Whether a plan may write a record is a rule on the record, not on the image.
            if !image.may_write(&batch.records[0]) || next.replay(&batch).is_err() {
                continue;
            }
            let found = next.verify();
            prop_assert_eq!(next.verify_changed(&batch), found.clone(), "after {:?}", batch.records);
            if found.is_empty() {
                image = next;
            }
        }
    }

    #[test]
    fn a_client_can_retry_what_it_did_last(requests in prop::collection::vec(0..200u64, 1..300)) {
        let client = ClientId::from_bytes([1; 16]);
        let mut image = MetadataImage::default();
        let mut applied: Vec<(u64, Offset)> = Vec::new();
        for request in requests {
            if image.requests.look_up(client, request) == RequestOutcome::New {
                prop_assert!(applied.iter().all(|&(other, _)| other != request), "request {} twice", request);
                applied.push((request, image.next_offset));
                let reply = request.to_be_bytes().to_vec();
                let record = Record::RequestApplied { client, request, reply, offset: None, forgotten_up_to: None };
                image.replay(&batch(&[record])).unwrap();
            }
            for &(request, offset) in applied.iter().rev().take(limits::REQUESTS_PER_CLIENT_MAX) {
                let reply = request.to_be_bytes();
                let expected = RequestOutcome::Applied { offset, reply: &reply };
                prop_assert_eq!(image.requests.look_up(client, request), expected);
            }
        }
        prop_assert_eq!(restored(&image), image);
    }
}
