//! One partition on four brokers, with the controller's real plans and without a network: whatever is lost, late or
//! repeated, and in whatever order, what was acknowledged by all in-sync replicas stays, and is there once.
//!
//! Nobody's lease ever ends here: the safety of acks=all must not rest on clocks.

use std::collections::{BTreeMap, BTreeSet};

use quorate_client::agent::LeaderState;
use quorate_log::leadership::{Outcome, Proposal};
use quorate_log::{Flush, LogDirectory, LogOffset, NewBatch, Producer, Writes};
use quorate_metadata::ids::{
    BrokerEpoch, BrokerId, ClusterId, ControllerEpoch, DirectoryId, IncarnationId, LeaderEpoch, PartitionId,
    TopicPartition,
};
use quorate_metadata::plan::alter_partition::{AlterPartition, IsrMember, PartitionAlteration, alter_partition};
use quorate_metadata::plan::brokers::{self, RegisterBroker};
use quorate_metadata::plan::topics::{CreateTopic, create_topics};
use quorate_metadata::plan::{checkpoint, features};
use quorate_metadata::record::{Endpoint, Kind, LeaderRecoveryState, Partition, Probe, SecurityProtocol};
use quorate_metadata::{ErrorName, MetadataImage, Record, rng};
use rand::rngs::SmallRng;
use rand::{RngExt, SeedableRng};
use tokio::sync::{mpsc, oneshot};
use uuid::Uuid;

use super::{Acks, Answer, Batches, Effects, NewRecords, Position, Produced, Replica, Sink, Source, Supplied};
use crate::broker::situation::Situation;

const BROKERS: [i32; 4] = [1, 2, 3, 4];
const STEPS: usize = 400;

struct Node {
    folder: tempfile::TempDir,
    running: Option<Running>,
    epoch: BrokerEpoch,
}

struct Running {
    directory: LogDirectory,
    replica: Replica,
    /// Said, and not yet answered.
    standing: Option<(Source, Position)>,
    /// Whether that is with the leader.
    asked: bool,
    sink: Sink,
    answers: mpsc::UnboundedReceiver<Answer>,
    proposals: Vec<Proposal>,
}

/// High watermark and batches.
type Log = (LogOffset, Vec<(LogOffset, LeaderEpoch, bytes::Bytes)>);

type Reply = oneshot::Receiver<Result<Produced, quorate_metadata::ApiError>>;

struct World {
    rng: SmallRng,
    image: MetadataImage,
    id: TopicPartition,
    nodes: BTreeMap<BrokerId, Node>,
    now_ms: i64,
    /// The producer repeats one record until it is acknowledged, as an idempotent one does.
    sequence: i32,
    replies: Vec<(i32, Reply)>,
    acknowledged: BTreeMap<i32, LogOffset>,
}

impl World {
    fn new(seed: u64) -> Self {
        let mut world = Self {
            rng: SmallRng::seed_from_u64(seed),
            image: MetadataImage::default(),
            id: TopicPartition::new(Default::default(), PartitionId::new(0)),
            nodes: BTreeMap::new(),
            now_ms: 0,
            sequence: 0,
            replies: Vec::new(),
            acknowledged: BTreeMap::new(),
        };
        let bootstrap = checkpoint::bootstrap(&world.image, cluster());
        world.replay(bootstrap.records);
        for broker in BROKERS.map(BrokerId::new) {
            let folder = tempfile::tempdir().expect("a folder");
            world.nodes.insert(broker, Node { folder, running: None, epoch: BrokerEpoch::new(-1) });
            world.register(broker, true);
        }
        let topic = CreateTopic {
            name: "orders".to_owned(),
            kind: Kind::LOG,
            partitions: None,
            replication_factor: None,
            assignment: vec![(PartitionId::new(0), BROKERS[..3].iter().copied().map(BrokerId::new).collect())],
            configs: vec![("min.insync.replicas".to_owned(), Some("2".to_owned()))],
        };
        let created = create_topics(&world.image, &[topic], &mut rng::Rng::new(seed)).expect("it can be created");
        world.replay(created.records);
        let topic = world.image.topic_named("orders").expect("it was created").id;
        world.id = TopicPartition::new(topic, PartitionId::new(0));
        BROKERS.map(BrokerId::new).into_iter().for_each(|broker| world.open(broker, false));
        world
    }

    fn replay(&mut self, records: Vec<Record>) {
        self.image.controller_epoch = ControllerEpoch::new(1);
        self.image.replay_records(&records).expect("a plan replays");
    }

    fn partition(&self) -> &Partition {
        self.image.partition(self.id).expect("it was created")
    }

    /// The replicas that the controllers trust to have everything.
    fn trusted(&self) -> BTreeSet<BrokerId> {
        self.partition().isr.iter().chain(self.partition().elr()).copied().collect()
    }

    fn up(&self) -> Vec<BrokerId> {
        self.nodes.iter().filter(|(_, node)| node.running.is_some()).map(|(id, _)| *id).collect()
    }

    fn pick(&mut self, of: &[BrokerId]) -> Option<BrokerId> {
        if of.is_empty() { None } else { Some(of[self.rng.random_range(0..of.len())]) }
    }

    /// One round of the owner: stage, commit, settle.
    fn round(&mut self, broker: BrokerId, stage: impl FnOnce(&mut Replica, &mut Writes)) {
        self.now_ms += 10;
        let node = self.nodes.get_mut(&broker).expect("it is known");
        let Some(running) = &mut node.running else { return };
        let mut writes = running.directory.begin();
        stage(&mut running.replica, &mut writes);
        running.directory.commit(writes).expect("the disk works");
        let mut effects = Effects::default();
        running.replica.settle(LeaderState::Current, self.now_ms, &mut effects);
        running.replica.tell_bounds();
        running.proposals.extend(effects.proposals.into_iter().map(|(_, proposal)| proposal));
        if let Some(said) = effects.positions.pop() {
            running.standing = Some(said);
            running.asked = false;
        }
        self.hear();
    }

    fn hear(&mut self) {
        let mut open = Vec::new();
        for (sequence, mut reply) in std::mem::take(&mut self.replies) {
            match reply.try_recv() {
                Ok(Ok(produced)) => {
                    let before = self.acknowledged.insert(sequence, produced.base_offset);
                    assert!(before.is_none_or(|before| before == produced.base_offset), "acknowledged in two places");
                    self.sequence = self.sequence.max(sequence + 1);
                }
                Ok(Err(_)) | Err(oneshot::error::TryRecvError::Closed) => {}
                Err(oneshot::error::TryRecvError::Empty) => open.push((sequence, reply)),
            }
        }
        self.replies = open;
    }

    /// The broker hears of the metadata as it is now.
    fn tell(&mut self, broker: BrokerId) {
        let Some(situation) = Situation::of(&self.image, broker, self.id) else { return };
        if !situation.partition.replicas.contains(&broker) {
            return;
        }
        let (now_ms, epoch) = (self.now_ms, situation.partition.leader_epoch);
        match situation.partition.leader {
            Some(leader) if leader == broker => {
                self.round(broker, |replica, writes| replica.lead(writes, &situation, now_ms));
            }
            Some(leader) => self.round(broker, |replica, writes| {
                replica.follow(writes, Source { leader, leader_epoch: epoch }).expect("the disk works");
            }),
            None => self.round(broker, |replica, _| replica.suspend(epoch)),
        }
    }

    fn produce(&mut self, broker: BrokerId) {
        let (reply, outcome) = oneshot::channel();
        let sequence = self.sequence;
        let producer = Some(Producer { id: 7, epoch: 0, base_sequence: sequence });
        let records = sequence.to_string().into_bytes().into();
        let batch =
            NewBatch { record_count: 1, base_timestamp_ms: 0, max_timestamp_ms: self.now_ms, producer, records };
        let records = NewRecords { leader_epoch: None, batch, acks: Acks::All, reply };
        self.replies.push((sequence, outcome));
        self.round(broker, |replica, writes| replica.produce(writes, records, LeaderState::Current));
    }

    /// The follower's position reaches its leader.
    fn ask(&mut self, follower: BrokerId) {
        let node = self.nodes.get_mut(&follower).expect("it is known");
        let epoch = node.epoch;
        let Some(running) = node.running.as_mut().filter(|running| !running.asked) else { return };
        let Some((source, position)) = running.standing else { return };
        running.asked = true;
        let sink = running.sink.clone();
        let now_ms = self.now_ms;
        if self.nodes[&source.leader].running.is_none() {
            return self.forget_answers(follower);
        }
        self.round(source.leader, |replica, _| replica.take_position((follower, epoch), position, &sink, now_ms));
    }

    /// Its stream broke: what it said is to be said again.
    fn forget_answers(&mut self, follower: BrokerId) {
        let Some(running) = &mut self.nodes.get_mut(&follower).expect("it is known").running else { return };
        let (sink, answers) = mpsc::unbounded_channel();
        (running.sink, running.answers, running.asked) = (sink, answers, false);
    }

    /// The leader's answer reaches the follower.
    fn deliver(&mut self, follower: BrokerId) {
        let Some(running) = &mut self.nodes.get_mut(&follower).expect("it is known").running else { return };
        let Ok(answer) = running.answers.try_recv() else { return };
        let Some((source, _)) = running.standing else { return };
        running.asked = false;
        let supplied = match answer.said {
            Err(refused) if refused.error != ErrorName::OffsetOutOfRange => return,
            Err(refused) => Supplied {
                id: answer.id,
                source,
                error: Some(refused.error),
                high_watermark: LogOffset(0),
                log_start: refused.log_start,
                diverging: None,
                gaps_below: LogOffset(0),
                batches: Vec::new(),
            },
            Ok(supply) => Supplied {
                id: answer.id,
                source,
                error: None,
                high_watermark: supply.high_watermark,
                log_start: supply.log_start,
                diverging: supply.diverging,
                gaps_below: LogOffset(0),
                batches: read(supply.batches),
            },
        };
        running.standing = None;
        self.round(follower, |replica, writes| {
            replica.supply(writes, &supplied).expect("the disk works");
        });
    }

    /// The controller decides on a change of the ISR, and the leader hears of it, or only that it may have been made.
    fn decide(&mut self, leader: BrokerId) {
        let node = self.nodes.get_mut(&leader).expect("it is known");
        let broker_epoch = node.epoch;
        let Some(proposal) = node.running.as_mut().and_then(|running| running.proposals.pop()) else { return };
        let isr = proposal.isr.iter().map(|(broker, epoch)| IsrMember { broker: *broker, epoch: *epoch }).collect();
        let alteration = PartitionAlteration {
            id: self.id,
            leader_epoch: proposal.leader_epoch,
            partition_epoch: proposal.partition_epoch,
            isr,
            recovery: LeaderRecoveryState::Recovered,
            supersedes: false,
        };
        let request = AlterPartition { broker: leader, broker_epoch, partitions: vec![alteration] };
        let outcome = match alter_partition(&self.image, &request, |_| false) {
            Err(_) => Outcome::Unknown,
            Ok(plan) => {
                self.replay(plan.records);
                match plan.response.into_iter().next().expect("one was asked for").1 {
                    Ok(now) => Outcome::Applied { partition_epoch: now.partition_epoch, isr: now.isr },
                    Err(error) if error.name == ErrorName::IneligibleReplica => Outcome::NotApplied,
                    Err(_) => Outcome::Unknown,
                }
            }
        };
        let outcome =
            if self.rng.random_bool(0.2) && outcome != Outcome::NotApplied { Outcome::Unknown } else { outcome };
        let now_ms = self.now_ms;
        self.round(leader, |replica, _| replica.on_outcome(&proposal, outcome, now_ms));
    }

    /// The process is gone, and the controllers notice.
    fn crash(&mut self, broker: BrokerId) {
        self.nodes.get_mut(&broker).expect("it is known").running = None;
        for follower in self.up() {
            let running = self.nodes[&follower].running.as_ref().expect("it is up");
            if running.standing.is_some_and(|(source, _)| source.leader == broker) {
                self.forget_answers(follower);
            }
        }
        self.fence(broker);
    }

    fn fence(&mut self, broker: BrokerId) {
        if let Ok(plan) = brokers::fence(&self.image, broker) {
            self.replay(plan.records);
        }
    }

    fn unfence(&mut self, broker: BrokerId) {
        if let Ok(plan) = brokers::unfence(&self.image, broker) {
            self.replay(plan.records);
        }
    }

    /// `loses`: the end of its log is gone.
    fn open(&mut self, broker: BrokerId, loses: bool) {
        let node = self.nodes.get_mut(&broker).expect("it is known");
        let directory = LogDirectory::open(node.folder.path(), Flush::Os).expect("the folder can be opened");
        let mut log = directory.log(self.id, 0).expect("the log can be opened");
        if loses && log.log_end().0 > 0 {
            let mut writes = directory.begin();
            let end = LogOffset(self.rng.random_range(0..log.log_end().0));
            log.truncate_to(&mut writes, end).expect("the disk works");
            directory.commit(writes).expect("the disk works");
        }
        let (sink, answers) = mpsc::unbounded_channel();
        let replica = Replica::new(broker, log);
        node.running =
            Some(Running { directory, replica, standing: None, asked: false, sink, answers, proposals: Vec::new() });
    }

    /// `clean`: it can prove that it stopped well.
    fn register(&mut self, broker: BrokerId, clean: bool) {
        let endpoint = Endpoint {
            name: "API".to_owned(),
            host: "localhost".to_owned(),
            port: 1,
            security: SecurityProtocol::Plaintext,
        };
        let request = RegisterBroker {
            broker,
            cluster: cluster(),
            incarnation: IncarnationId::new(Uuid::from_u128(self.rng.random())),
            endpoints: vec![endpoint],
            kind: Kind::LOG,
            probe: Probe::Unstated,
            rack: None,
            features: features::supported(),
            directories: vec![DirectoryId::from_bytes([u8::try_from(broker.get()).expect("small"); 16])],
            cordoned_directories: None,
            previous_epoch: clean.then(|| self.nodes[&broker].epoch),
        };
        let plan = brokers::register(&self.image, request, false).expect("it may register");
        let epoch = plan.response;
        self.replay(plan.records);
        self.nodes.get_mut(&broker).expect("it is known").epoch = epoch;
        self.unfence(broker);
    }

    /// At least one of those that are trusted comes back with the proof of a clean stop: a cluster of which all have
    /// lost the ends of their logs promises nothing.
    fn restart(&mut self, broker: BrokerId) {
        let mut others = self.trusted();
        others.remove(&broker);
        let clean = others.is_empty() || self.rng.random_bool(0.3);
        let loses = !clean && self.rng.random_bool(0.5);
        self.open(broker, loses);
        self.register(broker, clean);
    }

    fn step(&mut self) {
        let up = self.up();
        let down: Vec<BrokerId> = BROKERS.map(BrokerId::new).into_iter().filter(|id| !up.contains(id)).collect();
        let Some(one) = self.pick(&up) else { return self.restart(down[0]) };
        match self.rng.random_range(0..100) {
            0..20 => self.produce(one),
            20..45 => self.ask(one),
            45..70 => self.deliver(one),
            70..82 => self.tell(one),
            82..90 => self.decide(one),
            90..92 => self.now_ms += 4_000,
            92..93 => self.round(one, |replica, _| replica.tick()),
            93..95 => self.fence(one),
            95..97 => self.unfence(one),
            97..98 => self.crash(one),
            _ => {
                if let Some(one) = self.pick(&down) {
                    self.restart(one);
                }
            }
        }
    }

    /// Everything works again: the partition has to.
    fn heal(&mut self) {
        for broker in BROKERS.map(BrokerId::new) {
            if self.nodes[&broker].running.is_none() {
                self.restart(broker);
            }
            self.unfence(broker);
        }
        for _ in 0..200 {
            for broker in BROKERS.map(BrokerId::new) {
                self.tell(broker);
                self.ask(broker);
                self.deliver(broker);
                self.round(broker, |replica, _| replica.tick());
                self.decide(broker);
            }
        }
    }

    fn check(&mut self) {
        let state = self.partition().clone();
        let leader = state.leader.unwrap_or_else(|| panic!("nobody leads: {state:?}"));
        assert_eq!(state.isr.len(), 3, "all have caught up: {state:?}");
        let logs: Vec<Log> = state.replicas.iter().map(|broker| self.log_of(*broker)).collect();
        assert!(logs.iter().all(|log| *log == logs[0]), "the logs differ: {logs:?}");
        let (high_watermark, batches) = self.log_of(leader);
        assert_eq!(batches.last().map_or(0, |last| last.0.0 + 1), high_watermark.0, "all of it is committed");
        let mut places: BTreeMap<String, Vec<LogOffset>> = BTreeMap::new();
        for (offset, _, records) in &batches {
            places.entry(String::from_utf8(records.to_vec()).expect("a number")).or_default().push(*offset);
        }
        for (sequence, offset) in &self.acknowledged {
            assert_eq!(places.get(&sequence.to_string()), Some(&vec![*offset]), "record {sequence}: {places:?}");
        }
        assert!(places.values().all(|places| places.len() == 1), "there twice: {places:?}");
    }

    fn log_of(&self, broker: BrokerId) -> Log {
        let replica = &self.nodes[&broker].running.as_ref().expect("it is up").replica;
        let batches = replica.log().reader().read(LogOffset(0), replica.log().log_end(), usize::MAX);
        let batches = batches.expect("the disk works");
        let seen = |batch: &quorate_log::StoredBatch| (batch.base_offset(), batch.leader_epoch(), batch.records());
        (replica.published().borrow().high_watermark, batches.iter().map(seen).collect())
    }
}

fn read(batches: Batches) -> Vec<bytes::Bytes> {
    match batches {
        Batches::None => Vec::new(),
        Batches::Here(frames) => frames,
        Batches::OnDisk { reader, from, below, max_bytes } => {
            let batches = reader.read(from, below, max_bytes).expect("the disk works");
            batches.iter().map(|batch| batch.frame().clone()).collect()
        }
    }
}

fn cluster() -> ClusterId {
    ClusterId::from_bytes([1; 16])
}

/// How many of the seeds have acknowledged something: a run without load would prove nothing.
fn run(seeds: impl Iterator<Item = u64>) -> usize {
    let mut acknowledged = 0;
    for seed in seeds {
        println!("seed {seed}");
        let mut world = World::new(seed);
        for _ in 0..STEPS {
            world.step();
        }
        world.heal();
        world.check();
        acknowledged += world.acknowledged.len();
    }
    acknowledged
}

#[test]
fn what_is_acknowledged_by_all_in_sync_replicas_stays_and_is_there_once() {
    let acknowledged = run(0..60);
    assert!(acknowledged > 60, "hardly anything was acknowledged: {acknowledged}");
}
