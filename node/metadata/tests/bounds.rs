//! What one plan may do at most, on images with more partitions than a step takes: steps that follow one another come to
//! the end, sweeps go on where they stopped, and configs have a size.

use std::collections::BTreeMap;

use quorate_metadata::ids::{
    BrokerId, ClusterId, ControllerEpoch, DirectoryId, IncarnationId, PartitionId, TopicId, TopicPartition,
};
use quorate_metadata::limits::{
    CHANGES_PER_STEP_MAX, CONFIG_LIST_ITEMS_MAX, CONFIG_VALUE_BYTES_MAX, DIRECTORIES_PER_BROKER_MAX,
    ELECTIONS_PER_RUN_MAX, SCANNED_PER_RUN_MAX,
};
use quorate_metadata::plan::brokers::{self, Departure, RegisterBroker};
use quorate_metadata::plan::configs::{AlterConfigs, ConfigChange, ConfigOp, alter_configs};
use quorate_metadata::plan::heartbeat::{Heartbeat, HeartbeatSteps};
use quorate_metadata::plan::{checkpoint, elections};
use quorate_metadata::record::{
    Cause, ConfigResource, Endpoint, Kind, Partition, PartitionChange, PartitionRegistration, PartitionState, Probe,
    SecurityProtocol,
};
use quorate_metadata::{ApiError, Batch, ErrorName, Ledger, MetadataImage, Plan, Record};

/// More than two steps and two scans.
const PARTITIONS: i32 = 12_500;

const CLUSTER: ClusterId = ClusterId::from_bytes([1; 16]);

/// Brokers 1 and 2, and a topic that broker 1 leads and broker 2 follows.
#[derive(Default)]
struct World {
    ledger: Ledger,
    /// Processes of brokers so far.
    started: u128,
}

impl World {
    fn new() -> Self {
        let mut world = Self::default();
        world.apply(checkpoint::bootstrap(world.ledger.working(), CLUSTER).records);
        (1..=2).for_each(|id| world.start(id));
        let topic = TopicId::default();
        world.apply(vec![Record::CreateTopic { topic, name: "large".to_owned(), kind: Kind::LOG }]);
        let partitions = (0..PARTITIONS).map(|id| TopicPartition::new(topic, PartitionId::new(id)));
        world.apply(partitions.map(partition).collect());
        world
    }

    fn start(&mut self, id: i32) {
        self.start_in(id, directory(id));
    }

    fn start_in(&mut self, id: i32, directory: DirectoryId) {
        let request = self.registration(id, vec![directory]);
        self.in_steps(|ledger| brokers::register(ledger.working(), request.clone(), false));
        self.in_steps(|ledger| brokers::unfence(ledger.working(), BrokerId::new(id)));
    }

    /// Of another process than before.
    fn registration(&mut self, id: i32, directories: Vec<DirectoryId>) -> RegisterBroker {
        self.started += 1;
        RegisterBroker {
            broker: BrokerId::new(id),
            cluster: CLUSTER,
            incarnation: IncarnationId::new(uuid::Uuid::from_u128(self.started)),
            endpoints: vec![Endpoint {
                name: "api".to_owned(),
                host: "host".to_owned(),
                port: 1,
                security: SecurityProtocol::Plaintext,
            }],
            kind: Kind::LOG,
            probe: Probe::Unstated,
            rack: None,
            features: quorate_metadata::plan::features::supported(),
            directories,
            cordoned_directories: None,
            previous_epoch: None,
        }
    }

    fn apply(&mut self, records: Vec<Record>) {
        let batch = Batch { controller_epoch: ControllerEpoch::new(1), timestamp_ms: 0, records };
        self.ledger.replay(&batch).expect("a plan replays");
        assert_eq!(self.ledger.working().verify_changed(&batch), []);
    }

    /// Plans until a plan is the last; how many steps it took.
    fn in_steps<R>(&mut self, plan: impl Fn(&Ledger) -> Result<Plan<R>, ApiError>) -> usize {
        for step in 1.. {
            let Plan { records, is_partial, .. } = plan(&self.ledger).expect("the request is sound");
            assert!(records.len() <= CHANGES_PER_STEP_MAX + 1, "{} records in a step", records.len());
            self.apply(records);
            if !is_partial {
                return step;
            }
        }
        unreachable!("steps end")
    }

    fn count(&self, is: impl Fn(&Partition) -> bool) -> usize {
        self.ledger.working().partitions().filter(|(_, partition)| is(partition)).count()
    }
}

fn directory(id: i32) -> DirectoryId {
    DirectoryId::from_bytes([id as u8; 16])
}

fn partition(id: TopicPartition) -> Record {
    partition_on(id, &[1, 2])
}

fn partition_on(id: TopicPartition, replicas: &[i32]) -> Record {
    let replicas: Vec<BrokerId> = replicas.iter().copied().map(BrokerId::new).collect();
    let state = PartitionState {
        directories: replicas.iter().map(|replica| directory(replica.get())).collect(),
        isr: replicas.clone(),
        leader: replicas.first().copied(),
        replicas,
        ..PartitionState::default()
    };
    Record::CreatePartition(PartitionRegistration { id, state: state.into() })
}

fn led_by(id: i32) -> impl Fn(&Partition) -> bool {
    move |partition| partition.leader == Some(BrokerId::new(id))
}

#[test]
fn a_broker_of_many_partitions_is_fenced_in_steps() {
    let mut world = World::new();
    let broker = BrokerId::new(1);
    let steps = world.in_steps(|ledger| {
        assert!(!ledger.working().broker(broker).expect("registered").fenced, "its record comes last");
        brokers::fence(ledger.working(), broker)
    });
    assert_eq!(steps, (PARTITIONS as usize).div_ceil(CHANGES_PER_STEP_MAX));
    assert!(world.ledger.working().broker(broker).expect("registered").fenced);
    assert_eq!(world.count(led_by(2)), PARTITIONS as usize);
    assert_eq!(world.ledger.working().verify(), []);
}

/// A broker that leads nothing is told to stop at once: only what it leads to the last keeps a shutdown a shutdown.
#[test]
fn a_controlled_shutdown_in_steps_leads_something_until_its_barrier() {
    for led in [1, PARTITIONS as usize] {
        for is_resumed in [false, true] {
            let mut world = World::new();
            let broker = BrokerId::new(if led == 1 { 2 } else { 1 });
            if led == 1 {
                let first = world.ledger.working().partitions().next().map(|(id, _)| id).expect("there are many");
                let leader = Some(Some(broker));
                let change = PartitionChange { leader, ..PartitionChange::none(first, Cause::ElectionRequested) };
                world.apply(vec![Record::PartitionChange(change)]);
            }
            let stops = |image: &MetadataImage| HeartbeatSteps::new(stopping(image, broker));
            let mut steps = stops(world.ledger.working());
            let (mut count, mut is_partial) = (0, true);
            while is_partial {
                assert!(world.ledger.working().index.led_count(broker) > 0 && count < PARTITIONS);
                let plan = steps.plan(world.ledger.working(), None).expect("registered");
                assert!(!plan.response.fenced && !plan.response.should_shut_down);
                world.apply(plan.records);
                (count, is_partial) = (count + 1, plan.is_partial);
                if is_resumed {
                    // As another controller does.
                    steps = stops(world.ledger.working());
                }
            }
            let stopping = world.ledger.working().broker(broker).expect("registered").clone();
            assert!(stopping.in_controlled_shutdown && !stopping.fenced);
            assert_eq!(world.count(|partition| partition.isr.contains(&broker)), 0);
            assert_eq!(count as usize, (PARTITIONS as usize).div_ceil(CHANGES_PER_STEP_MAX));
        }
    }
}

fn stopping(image: &MetadataImage, broker: BrokerId) -> Heartbeat {
    Heartbeat {
        broker,
        epoch: image.broker(broker).expect("registered").epoch,
        metadata_offset: image.next_offset,
        want_fence: false,
        want_shutdown: true,
        offline_directories: Vec::new(),
    }
}

#[test]
fn a_fencing_resumes_and_covers_seats_that_came_back() {
    let mut world = World::new();
    let broker = BrokerId::new(2);
    let mut departure = Departure::default();
    let (mut steps, mut is_partial) = (0, true);
    while is_partial {
        let plan = departure.fence(world.ledger.working(), broker).expect("registered");
        world.apply(plan.records);
        (steps, is_partial) = (steps + 1, plan.is_partial);
        if steps == 2 {
            let first = world.ledger.working().partitions().next().map(|(id, _)| id).expect("there are many");
            let isr = Some(vec![BrokerId::new(1), broker]);
            let change = PartitionChange {
                isr,
                elr: Some(Vec::new()),
                ..PartitionChange::none(first, Cause::AlterPartition(broker))
            };
            world.apply(vec![Record::PartitionChange(change)]);
        }
    }
    assert_eq!(
        steps,
        (PARTITIONS as usize).div_ceil(CHANGES_PER_STEP_MAX) + 1,
        "and the one that came back in the last step"
    );
    assert!(world.ledger.working().broker(broker).expect("registered").fenced);
    assert_eq!(world.count(|partition| partition.isr.contains(&broker)), 0);
    assert_eq!(world.ledger.working().verify(), []);
}

#[test]
fn a_fencing_moves_what_is_led_before_what_is_followed() {
    let mut world = World::new();
    let half = PARTITIONS / 2;
    // Broker 2 leads the second half now: the first steps of its fencing are about those.
    let topic = TopicId::default();
    let to_second = |id: i32| {
        let mut change = quorate_metadata::record::PartitionChange::none(
            TopicPartition::new(topic, PartitionId::new(id)),
            quorate_metadata::record::Cause::ElectionRequested,
        );
        change.leader = Some(Some(BrokerId::new(2)));
        Record::PartitionChange(change)
    };
    world.apply((half..PARTITIONS).map(to_second).collect());
    let plan = brokers::fence(world.ledger.working(), BrokerId::new(2)).expect("registered");
    assert!(plan.is_partial);
    let moves = |record: &Record| matches!(record, Record::PartitionChange(change) if change.leader.is_some());
    assert!(plan.records.iter().all(moves));
}

#[test]
fn a_registration_gives_up_seats_in_steps_and_its_record_is_the_last() {
    let mut world = World::new();
    world.start(1);
    assert_eq!(world.count(led_by(2)), PARTITIONS as usize);
    let registered = world.ledger.working().broker(BrokerId::new(1)).expect("registered");
    assert!(registered.epoch.get() > i64::from(PARTITIONS));
    assert_eq!(world.ledger.working().verify(), []);
}

#[test]
fn a_broker_that_returns_without_its_directory_gets_all_partitions_elsewhere() {
    let mut world = World::new();
    // Out of every ISR: only its directory leads to its partitions.
    world.in_steps(|ledger| brokers::fence(ledger.working(), BrokerId::new(1)));
    world.start_in(1, directory(9));
    assert_eq!(world.count(|partition| partition.directories().next() == Some(directory(1))), 0);
    assert_eq!(world.ledger.working().verify(), []);
}

#[test]
fn partitions_that_cannot_be_balanced_are_not_looked_at_while_their_broker_is_down() {
    let mut world = World::new();
    world.in_steps(|ledger| brokers::fence(ledger.working(), BrokerId::new(1)));
    let plan = elections::balance_preferred(world.ledger.working(), None, ELECTIONS_PER_RUN_MAX);
    assert_eq!((plan.response.elected, plan.response.rest), (0, None), "one run is enough");
    assert!(plan.records.is_empty());
}

#[test]
fn a_sweep_is_bounded_by_what_it_looks_at_and_goes_on_behind_it() {
    let mut world = World::new();
    world.in_steps(|ledger| brokers::fence(ledger.working(), BrokerId::new(1)));
    // Back, but in no ISR yet: nothing can be elected, and everything is looked at.
    world.in_steps(|ledger| brokers::unfence(ledger.working(), BrokerId::new(1)));
    let mut rest = None;
    let mut runs = 0;
    loop {
        let plan = elections::balance_preferred(world.ledger.working(), rest, ELECTIONS_PER_RUN_MAX);
        assert_eq!(plan.response.elected, 0);
        runs += 1;
        assert!(plan.response.rest.is_none() || plan.response.rest != rest, "a run without progress");
        rest = plan.response.rest;
        if rest.is_none() {
            break;
        }
    }
    assert_eq!(runs, PARTITIONS as usize / SCANNED_PER_RUN_MAX + 1);
}

/// Brokers 1 to 3, and topics of so many partitions each, on these replicas.
fn world_of(topics: &[&[i32]], partitions: i32) -> World {
    let mut world = World::default();
    world.apply(checkpoint::bootstrap(world.ledger.working(), CLUSTER).records);
    (1..=3).for_each(|id| world.start(id));
    for (topic, replicas) in (1..).zip(topics) {
        let topic = TopicId::from_bytes([topic; 16]);
        world.apply(vec![Record::CreateTopic { topic, name: format!("topic-{topic}"), kind: Kind::LOG }]);
        let ids = (0..partitions).map(|id| TopicPartition::new(topic, PartitionId::new(id)));
        world.apply(ids.map(|id| partition_on(id, replicas)).collect());
    }
    world
}

#[test]
fn a_sweep_begins_the_partitions_of_the_next_broker_from_the_start() {
    // The second topic of broker 1 comes after the one of broker 2.
    let mut world = world_of(&[&[2, 3], &[1, 3]], 30);
    for broker in [1, 2].map(BrokerId::new) {
        world.in_steps(|ledger| brokers::fence(ledger.working(), broker));
    }
    (1..=2).for_each(|id| world.start(id));
    let back = |id: &TopicPartition, first: i32| {
        let mut change = quorate_metadata::record::PartitionChange::none(
            *id,
            quorate_metadata::record::Cause::AlterPartition(BrokerId::new(3)),
        );
        change.isr = Some([first, 3].map(BrokerId::new).to_vec());
        Record::PartitionChange(change)
    };
    for first in [1, 2] {
        let ids: Vec<_> = world.ledger.working().index.not_preferred_of(BrokerId::new(first), None).collect();
        assert_eq!(ids.len(), 30);
        world.apply(ids.iter().map(|id| back(id, first)).collect());
    }
    let (mut rest, mut elected) = (None, 0);
    loop {
        let plan = elections::balance_preferred(world.ledger.working(), rest, 20);
        elected += plan.response.elected;
        rest = plan.response.rest;
        world.apply(plan.records);
        if rest.is_none() {
            break;
        }
    }
    assert_eq!((elected, world.count(led_by(3))), (60, 0));
}

#[test]
fn a_partition_of_several_brokers_is_elected_once_in_a_sweep() {
    let mut world = world_of(&[&[1, 2, 3]], 10);
    for broker in [1, 2, 3].map(BrokerId::new) {
        world.in_steps(|ledger| brokers::fence(ledger.working(), broker));
    }
    (1..=2).for_each(|id| world.start(id));
    assert_eq!(world.count(|partition| partition.leader.is_none()), 10);
    world.apply(vec![Record::Config {
        resource: ConfigResource::BrokerDefault,
        key: "unclean.leader.election.enable".to_owned(),
        value: Some("true".to_owned()),
    }]);
    let plan = elections::elect_uncleanly_where_allowed(world.ledger.working(), None, ELECTIONS_PER_RUN_MAX);
    assert_eq!((plan.response.elected, plan.records.len()), (10, 10));
}

#[test]
fn every_leaderless_partition_of_a_returned_broker_gets_a_leader() {
    let mut world = World::new();
    world.in_steps(|ledger| brokers::fence(ledger.working(), BrokerId::new(1)));
    world.in_steps(|ledger| brokers::fence(ledger.working(), BrokerId::new(2)));
    assert_eq!(world.count(|partition| partition.leader.is_none()), PARTITIONS as usize);
    world.in_steps(|ledger| brokers::unfence(ledger.working(), BrokerId::new(2)));
    assert!(world.count(led_by(2)) < PARTITIONS as usize, "the unfencing itself is bounded");
    let mut rest = None;
    loop {
        let plan = elections::elect_on(world.ledger.working(), BrokerId::new(2), rest, ELECTIONS_PER_RUN_MAX);
        assert!(plan.records.len() <= ELECTIONS_PER_RUN_MAX && plan.response.elected == plan.records.len());
        world.apply(plan.records);
        rest = plan.response.rest;
        if rest.is_none() {
            break;
        }
    }
    assert_eq!(world.count(led_by(2)), PARTITIONS as usize);
}

#[test]
fn a_min_isr_change_clears_many_elrs_in_steps_before_it_counts() {
    let mut world = World::new();
    let set = |value: &str| {
        let change =
            ConfigChange { key: "min.insync.replicas".to_owned(), op: ConfigOp::Set(value.to_owned()), expected: None };
        vec![AlterConfigs { resource: ConfigResource::Topic("large".to_owned()), changes: vec![change] }]
    };
    world.apply(alter_configs(world.ledger.working(), &set("2")).records);
    world.in_steps(|ledger| brokers::fence(ledger.working(), BrokerId::new(1)));
    assert_eq!(world.count(|partition| !partition.elr().is_empty()), PARTITIONS as usize);
    let steps = world.in_steps(|ledger| Ok(alter_configs(ledger.working(), &set("1"))));
    assert!(steps > 1);
    assert_eq!(world.count(|partition| !partition.elr().is_empty()), 0);
    let (value, _) =
        quorate_metadata::config::effective(world.ledger.working(), Some("large"), None, "min.insync.replicas")
            .expect("a known key");
    assert_eq!(value, "1");
}

#[test]
fn a_broker_has_so_many_log_directories_and_no_more() {
    let mut world = World::default();
    world.apply(checkpoint::bootstrap(world.ledger.working(), CLUSTER).records);
    let directories = |count: u128| (1_000..1_000 + count).map(|at| DirectoryId::new(uuid::Uuid::from_u128(at)));
    let max = DIRECTORIES_PER_BROKER_MAX as u128;
    let most = world.registration(1, directories(max).collect());
    assert!(brokers::register(world.ledger.working(), most, false).is_ok());
    let more = world.registration(1, directories(max + 1).collect());
    let refused = brokers::register(world.ledger.working(), more, false).map(|plan| plan.records);
    let refused = refused.expect_err("one too many");
    assert_eq!(refused.name, ErrorName::InvalidRegistration);
    assert!(refused.message.contains("257 log directories, expected at most 256"), "{}", refused.message);
}

fn list_change(op: ConfigOp) -> Result<(), ApiError> {
    list_change_if(op, None)
}

fn list_change_if(op: ConfigOp, expected: Option<String>) -> Result<(), ApiError> {
    let mut world = World::default();
    world.apply(checkpoint::bootstrap(world.ledger.working(), CLUSTER).records);
    world.apply(vec![Record::CreateTopic { topic: TopicId::default(), name: "t".to_owned(), kind: Kind::LOG }]);
    let key = "cleanup.policy".to_owned();
    let changes = vec![ConfigChange { key, op, expected }];
    let request = AlterConfigs { resource: ConfigResource::Topic("t".to_owned()), changes };
    alter_configs(world.ledger.working(), &[request]).response.remove(0)
}

#[test]
fn a_config_value_has_a_size_in_bytes_and_in_items() {
    let item = |at: usize| format!("{at}:1");
    let list = |items: usize| (0..items).map(item).collect::<Vec<_>>().join(",");
    let most = vec!["delete"; CONFIG_LIST_ITEMS_MAX].join(",");
    assert_eq!(list_change(ConfigOp::Set(most)), Ok(()));
    for refused in [list(CONFIG_LIST_ITEMS_MAX + 1), "x".repeat(CONFIG_VALUE_BYTES_MAX + 1), list(280_000)] {
        for op in [ConfigOp::Set(refused.clone()), ConfigOp::Append(refused.clone())] {
            let error = list_change(op).expect_err("it is too large");
            assert_eq!(error.name, ErrorName::InvalidConfig);
            assert!(error.message.contains("expected at most"), "{}", error.message);
            assert!(error.message.len() < 300, "the message does not repeat the value");
        }
    }
    let expected = Some("x".repeat(CONFIG_VALUE_BYTES_MAX));
    let error = list_change_if(ConfigOp::Delete, expected).expect_err("it has no such value");
    assert_eq!(error.name, ErrorName::InvalidUpdateVersion);
    assert!(error.message.len() < 300, "the message does not repeat the value");
    let many: BTreeMap<usize, String> = (0..280_000).map(|at| (at, item(at))).collect();
    let less = many.into_values().collect::<Vec<_>>().join(",");
    assert_eq!(list_change(ConfigOp::Subtract(less)), Ok(()), "a list is subtracted in linear time");
}
