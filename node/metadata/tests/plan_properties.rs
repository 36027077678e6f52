//! Whatever is asked of the planner, in whatever order, the image keeps its rules:
//! - P2: one leader per partition and leader epoch; epochs never go back;
//! - P3: a leader is from ISR or ELR, or it is marked unclean and had a right to be elected so;
//! - KIP-966: no ELR beside an ISR that is large enough; no partition without a leader while one could lead cleanly;
//! - and everything that `verify` checks, after every single record.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::collections::BTreeMap;

use proptest::prelude::*;
use quorate_metadata::ids::{
    BrokerId, ClusterId, ControllerEpoch, DirectoryId, IncarnationId, LeaderEpoch, Offset, PartitionEpoch, PartitionId,
    TopicPartition,
};
use quorate_metadata::plan::alter_partition::{AlterPartition, IsrMember, PartitionAlteration, alter_partition};
use quorate_metadata::plan::brokers::{self, RegisterBroker};
use quorate_metadata::plan::configs::{AlterConfigs, ConfigChange, ConfigOp, alter_configs};
use quorate_metadata::plan::elections::{self, ElectionKind};
use quorate_metadata::plan::heartbeat::{Heartbeat, awaits_others, heartbeat};
use quorate_metadata::plan::reassignment::{self, Cancelled, ChangeReassignment, PartitionRef, StartReassignment};
use quorate_metadata::plan::topics::{self, CreatePartitions, CreateTopic, TopicRef};
use quorate_metadata::plan::{checkpoint, features};
use quorate_metadata::record::{
    Cause, ConfigResource, Endpoint, Kind, LeaderRecoveryState, Partition, PartitionChange, Probe, Record,
    SecurityProtocol,
};
use quorate_metadata::rng::Rng as Chance;
use quorate_metadata::{Batch, Ledger, MetadataImage, config};

const BROKERS: i32 = 5;
const TOPICS: u8 = 3;

/// Something that happens. Numbers are taken modulo what there is.
#[derive(Debug, Clone)]
enum Event {
    Register {
        broker: BrokerId,
        incarnation: u8,
        clean: bool,
        disk: u8,
    },
    Unfence(BrokerId),
    Fence(BrokerId),
    Shutdown(BrokerId),
    Unregister(BrokerId),
    Heartbeat {
        broker: BrokerId,
        want_fence: bool,
        want_shutdown: bool,
    },
    /// A log directory fails, and the next heartbeat says so.
    DiskFails {
        broker: BrokerId,
        disk: u8,
    },
    Create {
        topic: u8,
        partitions: i32,
        factor: i16,
        min_isr: u8,
        unclean: bool,
    },
    Delete(u8),
    Expand(u8, i32),
    Alter {
        at: u8,
        members: u8,
        recovering: bool,
    },
    /// To the brokers whose bits are set.
    Reassign {
        at: Vec<u8>,
        to: u8,
    },
    Cancel {
        at: u8,
        whole: bool,
        force: bool,
    },
    Pace {
        at: u8,
        paused: bool,
    },
    Elect(ElectionKind, Option<u8>),
    Balance(usize),
    ElectUncleanly(usize),
    MinIsr {
        topic: Option<u8>,
        value: Option<u8>,
    },
    Unclean {
        topic: u8,
        value: bool,
    },
}

fn broker() -> impl Strategy<Value = BrokerId> {
    (1..=BROKERS).prop_map(BrokerId::new)
}

fn topic() -> impl Strategy<Value = u8> {
    0..TOPICS
}

fn event() -> impl Strategy<Value = Event> {
    let kind = prop_oneof![Just(ElectionKind::Preferred), Just(ElectionKind::Unclean)];
    prop_oneof![
        3 => (broker(), 0..3u8, any::<bool>(), 0..8u8)
            .prop_map(|(broker, incarnation, clean, disk)| Event::Register { broker, incarnation, clean, disk }),
        6 => broker().prop_map(Event::Unfence),
        5 => broker().prop_map(Event::Fence),
        2 => broker().prop_map(Event::Shutdown),
        1 => broker().prop_map(Event::Unregister),
        2 => (broker(), any::<bool>(), any::<bool>()).prop_map(|(broker, want_fence, want_shutdown)| {
            Event::Heartbeat { broker, want_fence, want_shutdown }
        }),
        2 => (broker(), 0..2u8).prop_map(|(broker, disk)| Event::DiskFails { broker, disk }),
        2 => (topic(), 1..4i32, 1..5i16, 1..4u8, any::<bool>())
            .prop_map(|(topic, partitions, factor, min_isr, unclean)| {
                Event::Create { topic, partitions, factor, min_isr, unclean }
            }),
        1 => topic().prop_map(Event::Delete),
        1 => (topic(), 1..6i32).prop_map(|(topic, count)| Event::Expand(topic, count)),
        8 => (any::<u8>(), any::<u8>(), prop::bool::weighted(0.1))
            .prop_map(|(at, members, recovering)| Event::Alter { at, members, recovering }),
        4 => (prop::collection::vec(any::<u8>(), 1..4), any::<u8>()).prop_map(|(at, to)| Event::Reassign { at, to }),
        2 => (any::<u8>(), any::<bool>(), any::<bool>())
            .prop_map(|(at, whole, force)| Event::Cancel { at, whole, force }),
        1 => (any::<u8>(), any::<bool>()).prop_map(|(at, paused)| Event::Pace { at, paused }),
        2 => (kind, prop::option::of(any::<u8>())).prop_map(|(kind, at)| Event::Elect(kind, at)),
        1 => (0..3usize).prop_map(Event::Balance),
        1 => (0..3usize).prop_map(Event::ElectUncleanly),
        1 => (prop::option::of(topic()), prop::option::of(1..4u8))
            .prop_map(|(topic, value)| Event::MinIsr { topic, value }),
        1 => (topic(), any::<bool>()).prop_map(|(topic, value)| Event::Unclean { topic, value }),
    ]
}

#[derive(Default)]
struct Cluster {
    ledger: Ledger,
    /// Who led each partition under each epoch.
    leaders: BTreeMap<(TopicPartition, LeaderEpoch), Option<BrokerId>>,
}

impl Cluster {
    /// A cluster with every broker unfenced.
    fn new() -> Self {
        let mut cluster = Self::default();
        let bootstrap = checkpoint::bootstrap(cluster.image(), ClusterId::from_bytes([1; 16]));
        cluster.apply(bootstrap.records);
        for broker in (1..=BROKERS).map(BrokerId::new) {
            cluster.play(&Event::Register { broker, incarnation: 0, clean: true, disk: 0 }, &mut Chance::new(0));
            cluster.play(&Event::Unfence(broker), &mut Chance::new(0));
        }
        cluster
    }

    fn image(&self) -> &MetadataImage {
        self.ledger.working()
    }

    /// Plans what the event asks for, replays it, and plans it again if that must come to nothing.
    fn play(&mut self, event: &Event, chance: &mut Chance) {
        let records = plan(self.image(), event, chance);
        let changed = !records.is_empty();
        self.apply(records);
        if changed && is_settled_by(event) {
            let again = plan(self.image(), event, chance);
            assert!(again.is_empty(), "{event:?} planned again: {again:?}");
        }
        for (id, partition) in self.image().partitions() {
            check_state(self.image(), id, partition);
        }
    }

    /// One record at a time, since a long plan is cut into batches; but a reassignment begins with its changes.
    fn apply(&mut self, mut records: Vec<Record>) {
        while let Some(first) = records.first() {
            let whole = if let Record::BeginReassignment(start) = first { 1 + start.partitions.len() } else { 1 };
            let later = records.split_off(whole);
            let before = self.image().clone();
            let batch = Batch { controller_epoch: ControllerEpoch::new(1), timestamp_ms: 0, records };
            self.ledger.replay(&batch).unwrap();
            let violations = self.image().verify();
            assert!(violations.is_empty(), "after {:?}: {violations:?}", batch.records);
            assert_eq!(self.image().verify_changed(&batch), []);
            for record in &batch.records {
                let Record::PartitionChange(change) = record else { continue };
                check_election(&before, change);
                let (was, is) = (before.partition(change.id).unwrap(), self.image().partition(change.id).unwrap());
                assert!(is.leader_epoch >= was.leader_epoch && is.partition_epoch > was.partition_epoch);
            }
            self.note_leaders();
            records = later;
        }
    }

    fn note_leaders(&mut self) {
        let now: Vec<_> = self.image().partitions().map(|(id, at)| ((id, at.leader_epoch), at.leader)).collect();
        for (epoch, leader) in now {
            let first = *self.leaders.entry(epoch).or_insert(leader);
            assert_eq!(first, leader, "{epoch:?} has had two leaders");
        }
    }
}

/// Whether a leader was elected by right.
fn check_election(before: &MetadataImage, change: &PartitionChange) {
    let Some(Some(leader)) = change.leader else {
        assert!(!change.unclean, "nobody was elected, uncleanly: {change:?}");
        return;
    };
    let was = before.partition(change.id).unwrap();
    // The change that ends a reassignment also brings replicas in, on the word of the leader until then.
    let brought_in = change.isr.as_ref().is_some_and(|isr| isr.contains(&leader));
    let vouched_for = change.cause == Cause::Reassignment && was.leader.is_some() && brought_in && !change.unclean;
    let is_clean = was.isr.contains(&leader) || was.elr().contains(&leader) || vouched_for;
    assert_eq!(is_clean, !change.unclean, "{change:?} on {was:?}");
    if change.unclean {
        let topic = before.topic(change.id.topic).unwrap();
        let allowed = config::unclean_allowed(before, &topic.name) || change.cause == Cause::ElectionRequested;
        assert!(allowed, "{change:?} on {was:?}");
        assert_eq!(change.isr.as_deref().unwrap_or(&was.isr), [leader]);
    }
}

fn check_state(image: &MetadataImage, id: TopicPartition, partition: &Partition) {
    let topic = image.topic(id.topic).unwrap();
    let enough = config::min_insync_replicas(image, &topic.name).min(partition.replicas.len());
    assert!(partition.elr().is_empty() || partition.isr.len() < enough, "an ELR beside a full ISR: {partition:?}");
    if partition.leader.is_none() {
        let could_lead =
            partition.elr().iter().any(|&broker| image.is_active(broker) && has_its_disk(image, partition, broker));
        assert!(!could_lead, "without a leader for no reason: {partition:?}");
    }
    for &member in &partition.isr {
        assert!(has_its_disk(image, partition, member), "in the ISR with a failed disk: {partition:?}");
    }
    if partition.is_reassigning() && partition.recovery() == LeaderRecoveryState::Recovered {
        let mut targets = partition.replicas.iter().filter(|replica| !partition.removing().contains(replica));
        assert!(!targets.all(|replica| partition.isr.contains(replica)), "reassigning for no reason: {partition:?}");
    }
}

/// A broker that is not registered has no disks.
fn has_its_disk(image: &MetadataImage, partition: &Partition, broker: BrokerId) -> bool {
    image.broker(broker).is_none_or(|registered| registered.has_online(partition.directory_of(broker)))
}

/// Whether the same request must come to nothing when it is repeated.
fn is_settled_by(event: &Event) -> bool {
    match event {
        Event::Register { .. }
        | Event::Unfence(_)
        | Event::Fence(_)
        | Event::Shutdown(_)
        | Event::Unregister(_)
        | Event::Create { .. }
        | Event::Delete(_)
        | Event::Expand(..)
        | Event::Elect(..)
        | Event::Reassign { .. }
        | Event::Cancel { .. }
        | Event::Pace { .. }
        | Event::Unclean { .. } => true,
        // These go on where they left off, mean something else on another state, or write again on purpose.
        Event::Heartbeat { .. }
        | Event::DiskFails { .. }
        | Event::Alter { .. }
        | Event::Balance(_)
        | Event::ElectUncleanly(_)
        | Event::MinIsr { .. } => false,
    }
}

/// What is proposed; a refusal proposes nothing.
fn plan(image: &MetadataImage, event: &Event, chance: &mut Chance) -> Vec<Record> {
    match event {
        Event::Register { broker, incarnation, clean, disk } => register(image, *broker, *incarnation, *clean, *disk),
        Event::Unfence(broker) => brokers::unfence(image, *broker).map_or_else(|_| Vec::new(), |plan| plan.records),
        Event::Fence(broker) => brokers::fence(image, *broker).map_or_else(|_| Vec::new(), |plan| plan.records),
        Event::Shutdown(broker) => {
            brokers::begin_controlled_shutdown(image, *broker).map_or_else(|_| Vec::new(), |plan| plan.records)
        }
        Event::Unregister(broker) => {
            brokers::unregister(image, *broker, true).map_or_else(|_| Vec::new(), |plan| plan.records)
        }
        Event::Heartbeat { broker, want_fence, want_shutdown } => {
            beat(image, &Heartbeat { want_fence: *want_fence, want_shutdown: *want_shutdown, ..idle(image, *broker) })
        }
        Event::DiskFails { broker, disk: failed } => {
            beat(image, &Heartbeat { offline_directories: vec![disk(*broker, *failed)], ..idle(image, *broker) })
        }
        Event::Create { topic, partitions, factor, min_isr, unclean } => {
            let request = CreateTopic {
                name: name(*topic),
                kind: kind(*topic),
                partitions: Some(*partitions),
                replication_factor: Some(*factor),
                assignment: Vec::new(),
                configs: vec![
                    ("min.insync.replicas".to_owned(), Some(min_isr.to_string())),
                    ("unclean.leader.election.enable".to_owned(), Some(unclean.to_string())),
                ],
            };
            topics::create_topics(image, &[request], chance).unwrap().records
        }
        Event::Delete(topic) => topics::delete_topics(image, &[TopicRef::Name(name(*topic))]).records,
        Event::Expand(topic, count) => {
            let request = CreatePartitions { topic: name(*topic), count: *count, assignment: None };
            topics::create_partitions(image, &[request], chance).records
        }
        Event::Alter { at, members, recovering } => alter(image, *at, *members, *recovering),
        Event::Reassign { at, to } => reassign(image, at, *to),
        Event::Cancel { at, whole, force } => cancel(image, *at, *whole, *force),
        Event::Pace { at, paused } => pace(image, *at, *paused),
        Event::Elect(kind, at) => {
            let chosen = at.and_then(|at| nth(image, at)).map(|(id, _)| vec![id]);
            elections::elect(image, *kind, chosen.as_deref()).records
        }
        Event::Balance(max) => elections::balance_preferred(image, None, *max).records,
        Event::ElectUncleanly(max) => elections::elect_uncleanly_where_allowed(image, None, *max).records,
        Event::MinIsr { topic, value } => {
            let resource = topic.map_or(ConfigResource::BrokerDefault, |topic| ConfigResource::Topic(name(topic)));
            configure(image, resource, "min.insync.replicas", value.map(|value| value.to_string()))
        }
        Event::Unclean { topic, value } => {
            let resource = ConfigResource::Topic(name(*topic));
            configure(image, resource, "unclean.leader.election.enable", Some(value.to_string()))
        }
    }
}

/// One of three is of another kind than a log.
fn kind(number: u8) -> Kind {
    if number % 3 == 2 { Kind::from("counter") } else { Kind::LOG }
}

fn name(topic: u8) -> String {
    format!("topic-{topic}")
}

/// From a broker that wants nothing and has replayed everything.
fn idle(image: &MetadataImage, broker: BrokerId) -> Heartbeat {
    Heartbeat {
        broker,
        epoch: image.broker(broker).map(|broker| broker.epoch).unwrap_or_default(),
        metadata_offset: image.next_offset,
        want_fence: false,
        want_shutdown: false,
        offline_directories: Vec::new(),
    }
}

fn beat(image: &MetadataImage, request: &Heartbeat) -> Vec<Record> {
    if !awaits_others(image, request.broker) {
        let answer = |lowest| heartbeat(image, request, lowest).map(|plan| (plan.records, plan.response));
        let lowest = [Some(Offset::new(0)), Some(Offset::new(i64::MAX))];
        assert!(lowest.into_iter().all(|lowest| answer(lowest) == answer(None)), "{request:?} depends on the others");
    }
    heartbeat(image, request, None).map_or_else(|_| Vec::new(), |plan| plan.records)
}

fn disk(broker: BrokerId, n: u8) -> DirectoryId {
    DirectoryId::from_bytes([u8::try_from(broker.get()).unwrap() * 10 + n; 16])
}

fn register(image: &MetadataImage, broker: BrokerId, incarnation: u8, clean: bool, disk: u8) -> Vec<Record> {
    let endpoint = Endpoint {
        name: "PLAINTEXT".to_owned(),
        host: "localhost".to_owned(),
        port: 9092,
        security: SecurityProtocol::Plaintext,
    };
    let request = RegisterBroker {
        broker,
        cluster: ClusterId::from_bytes([1; 16]),
        incarnation: IncarnationId::from_bytes([incarnation; 16]),
        endpoints: vec![endpoint],
        kind: kind(incarnation),
        probe: Probe::Unstated,
        rack: None,
        features: features::supported(),
        directories: match disk {
            4 => vec![self::disk(broker, 1)],
            5.. => vec![self::disk(broker, 0), self::disk(broker, 1)],
            _ => vec![self::disk(broker, 0)],
        },
        cordoned_directories: None,
        previous_epoch: image.broker(broker).map(|before| before.epoch).filter(|_| clean),
    };
    let epoch_expected = image.next_offset;
    // A running broker gains no directory.
    let Ok(plan) = brokers::register(image, request, false) else { return Vec::new() };
    if let Some(Record::RegisterBroker(registration)) = plan.records.last()
        && image.broker(broker).is_none_or(|before| before.incarnation != registration.incarnation)
    {
        let offset = epoch_expected.advance(plan.records.len() - 1);
        assert_eq!(registration.epoch.get(), offset.get(), "the epoch is the offset of the registration");
    }
    plan.records
}

fn nth(image: &MetadataImage, at: u8) -> Option<(TopicPartition, &Partition)> {
    let count = image.partitions().count();
    let at = usize::from(at).checked_rem(count)?;
    image.partitions().nth(at).map(|(id, partition)| (id, partition.as_ref()))
}

/// The leader of a partition asks for the ISR made of some of its replicas.
fn alter(image: &MetadataImage, at: u8, members: u8, recovering: bool) -> Vec<Record> {
    let Some((id, partition)) = nth(image, at) else { return Vec::new() };
    let Some(leader) = partition.leader else { return Vec::new() };
    let broker_epoch = image.broker(leader).unwrap().epoch;
    let chosen = partition.replicas.iter().enumerate().filter(|(at, _)| members & (1 << at) != 0);
    let isr = chosen.map(|(_, &broker)| IsrMember { broker, epoch: None }).collect();
    let recovery = if recovering { LeaderRecoveryState::Recovering } else { LeaderRecoveryState::Recovered };
    let (leader_epoch, partition_epoch): (LeaderEpoch, PartitionEpoch) =
        (partition.leader_epoch, partition.partition_epoch);
    let partitions = vec![PartitionAlteration { id, leader_epoch, partition_epoch, isr, recovery, supersedes: false }];
    alter_partition(image, &AlterPartition { broker: leader, broker_epoch, partitions }, |_| false).unwrap().records
}

/// Begins to move some partitions to the same brokers.
fn reassign(image: &MetadataImage, at: &[u8], to: u8) -> Vec<Record> {
    let chosen = (1..=BROKERS).filter(|broker| to & (1 << broker) != 0);
    let mut replicas: Vec<BrokerId> = chosen.map(BrokerId::new).collect();
    if to & 1 == 1 {
        replicas.reverse();
    }
    let targets = at.iter().filter_map(|&at| nth(image, at)).map(|(id, _)| (named(image, id), replicas.clone()));
    let request = StartReassignment { targets: targets.collect(), throttle_bytes_per_second: Some(1) };
    reassignment::start(image, &request).unwrap().records
}

fn cancel(image: &MetadataImage, at: u8, whole: bool, force: bool) -> Vec<Record> {
    let Some((id, _)) = nth(image, at) else { return Vec::new() };
    let what = match image.reassignment_of(id) {
        Some(operation) if whole => Cancelled::Operation(operation.id),
        _ => Cancelled::Partitions(vec![named(image, id)]),
    };
    let plan = reassignment::cancel(image, &what, force).unwrap();
    for record in &plan.records {
        let Record::PartitionChange(change) = record else { panic!("cancelling only changes partitions: {record:?}") };
        let topic = image.topic(change.id.topic).unwrap();
        assert!(force || !change.unclean, "records are lost without force: {change:?}");
        assert!(force || change.leader != Some(None), "without a leader and without force: {change:?}");
        assert!(
            !change.unclean
                || config::unclean_allowed(image, &topic.name)
                || image.partition(change.id).unwrap().leader.is_none()
        );
    }
    plan.records
}

fn pace(image: &MetadataImage, at: u8, paused: bool) -> Vec<Record> {
    let operation = nth(image, at).and_then(|(id, _)| image.reassignment_of(id));
    let wanted = ChangeReassignment { paused: Some(paused), throttle_bytes_per_second: Some(None) };
    operation.map(|operation| reassignment::change(image, operation.id, wanted).unwrap().records).unwrap_or_default()
}

fn named(image: &MetadataImage, id: TopicPartition) -> PartitionRef {
    PartitionRef { topic: image.topic(id.topic).unwrap().name.clone(), partition: id.partition }
}

fn configure(image: &MetadataImage, resource: ConfigResource, key: &str, value: Option<String>) -> Vec<Record> {
    let op = value.map_or(ConfigOp::Delete, ConfigOp::Set);
    alter_configs(
        image,
        &[AlterConfigs { resource, changes: vec![ConfigChange { key: key.to_owned(), op, expected: None }] }],
    )
    .records
}

proptest! {
    // A failure is worth a script; seeds are not kept.
    #![proptest_config(ProptestConfig { cases: 4_000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn any_sequence_of_events_keeps_the_rules(events in prop::collection::vec(event(), 1..60), seed: u64) {
        let mut chance = Chance::new(seed);
        let mut cluster = Cluster::new();
        cluster.play(&Event::Create { topic: 0, partitions: 2, factor: 3, min_isr: 2, unclean: false }, &mut chance);
        cluster.play(&Event::Create { topic: 1, partitions: 2, factor: 3, min_isr: 2, unclean: true }, &mut chance);
        for event in &events {
            cluster.play(event, &mut chance);
        }
    }
}

#[test]
fn partitions_are_numbered_from_zero() {
    let mut cluster = Cluster::new();
    cluster
        .play(&Event::Create { topic: 0, partitions: 3, factor: 1, min_isr: 1, unclean: false }, &mut Chance::new(1));
    let ids: Vec<PartitionId> = cluster.image().partitions().map(|(id, _)| id.partition).collect();
    assert_eq!(ids, [0, 1, 2].map(PartitionId::new));
}
