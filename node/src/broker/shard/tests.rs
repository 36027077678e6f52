mod compacting;
mod ends;
mod news;

use std::sync::Arc;

use bytes::Bytes;
use quorate_client::agent::Standing;
use quorate_client::network::Network;
use quorate_log::{Flush, MemoryLogs, NewBatch};
use quorate_metadata::ids::{BrokerEpoch, ClusterId, ControllerEpoch, LeaderEpoch, PartitionId, TopicId};
use quorate_metadata::record::{Cause, ConfigResource, Kind, PartitionChange, PartitionRegistration, PartitionState};
use quorate_metadata::{ApiError, Batch, Record};

use super::super::fetchers::Dialing;
use super::super::replica::{Acks, NewRecords, Produced, Source};
use super::*;

const COUNT: i32 = 1_000;

fn broker(id: i32) -> BrokerId {
    BrokerId::new(id)
}

fn topic(id: u8) -> TopicId {
    TopicId::from_bytes([id; 16])
}

fn id(partition: i32) -> TopicPartition {
    TopicPartition::new(topic(1), PartitionId::new(partition))
}

fn replay(image: &mut MetadataImage, records: Vec<Record>) {
    let controller_epoch = ControllerEpoch::new(1);
    image.replay(&Batch { controller_epoch, timestamp_ms: 0, records }).expect("the records of this test replay");
}

/// A topic of `COUNT` partitions, led by broker 1, which alone has them.
fn image() -> MetadataImage {
    let state = PartitionState {
        replicas: vec![broker(1)],
        directories: vec![DirectoryId::UNASSIGNED],
        isr: vec![broker(1)],
        leader: Some(broker(1)),
        ..PartitionState::default()
    };
    let mut records = vec![
        Record::ClusterCreated { cluster: ClusterId::from_bytes([1; 16]) },
        Record::CreateTopic { topic: topic(1), name: "orders".to_owned(), kind: Kind::LOG },
        Record::CreateTopic { topic: topic(2), name: "payments".to_owned(), kind: Kind::LOG },
    ];
    let create = |partition| PartitionRegistration { id: id(partition), state: state.clone().into() };
    records.extend((0..COUNT).map(create).map(Record::CreatePartition));
    let mut image = MetadataImage::default();
    replay(&mut image, records);
    image
}

/// A shard whose rounds the test makes.
struct Driven {
    shard: Shard,
    inbox: Inbox,
    handle: ShardHandle,
    logs: MemoryLogs,
    metadata: watch::Sender<MetadataImage>,
    _standing: watch::Sender<Standing>,
    _plane: watch::Sender<()>,
    proposed: mpsc::UnboundedReceiver<(TopicPartition, Proposal)>,
    failed: mpsc::UnboundedReceiver<(DirectoryId, Outage)>,
}

impl Driven {
    fn start(found: Vec<TopicPartition>) -> Self {
        let lease_until = Some(Instant::now() + Duration::from_secs(3_600));
        let leads = Standing { epoch: Some(BrokerEpoch::new(1)), fenced: false, lease_until, may_stop: false };
        let ((proposals, proposed), (failures, failed)) = (mpsc::unbounded_channel(), mpsc::unbounded_channel());
        let (metadata, standing, plane) =
            (watch::Sender::new(image()), watch::Sender::new(leads), watch::Sender::new(()));
        let dialing = Dialing { dial: Arc::new(|_, address| address.to_owned()), network: Network::default() };
        let around = Surroundings {
            broker: broker(1),
            replicas: Replicas::default(),
            fetchers: Fetchers::new(broker(1), metadata.subscribe(), standing.subscribe(), dialing),
            proposals,
            failures,
            metadata: metadata.subscribe(),
            leaders: LeaderCheck::new(broker(1), standing.subscribe(), metadata.subscribe()),
            plane: plane.subscribe(),
        };
        let logs = MemoryLogs::new(DirectoryId::from_bytes([9; 16]));
        let directory = LogDirectory::in_memory(&logs, Flush::Os);
        let (handle, inbox) = ShardHandle::new(&directory);
        let mut shard = Shard::new(directory, found, around, handle.clone(), Workers::Tasks);
        shard.on_metadata(metadata.borrow().clone());
        Self { shard, inbox, handle, logs, metadata, _standing: standing, _plane: plane, proposed, failed }
    }

    /// With all partitions led.
    async fn leading() -> Self {
        let mut driven = Self::start(Vec::new());
        for partition in 0..COUNT {
            driven.change(RoleChange::Lead { id: id(partition), leader_epoch: LeaderEpoch::default() }).await;
        }
        while driven.shard.owned.len() < COUNT as usize {
            driven.round();
        }
        driven
    }

    async fn change(&self, change: RoleChange) {
        self.handle.change_role(change).await.expect("the owner lives");
    }

    /// Returns how many replicas the round has settled.
    fn round(&mut self) -> usize {
        let mut round = Round::default();
        self.shard.take_waiting(&mut round, &mut self.inbox);
        self.end(round)
    }

    fn end(&mut self, mut round: Round) -> usize {
        self.shard.do_a_slice(&mut round);
        let settled = round.touched.len();
        assert!(self.shard.end(round).is_none());
        settled
    }

    fn tick(&mut self) -> usize {
        let mut round = Round::default();
        self.shard.tick(&mut round);
        self.end(round)
    }

    fn learn(&mut self, records: Vec<Record>) {
        self.metadata.send_modify(|image| replay(image, records));
        let image = self.metadata.borrow().clone();
        self.shard.on_metadata(image);
    }

    async fn produce(&self, id: TopicPartition) -> oneshot::Receiver<Result<Produced, ApiError>> {
        let (reply, answer) = oneshot::channel();
        let batch = NewBatch {
            record_count: 1,
            base_timestamp_ms: 0,
            max_timestamp_ms: 0,
            producer: None,
            records: Bytes::from_static(b"a"),
        };
        let records = NewRecords { leader_epoch: None, batch, acks: Acks::All, reply };
        self.handle.send(Command::Produce(id, records)).await.expect("the owner lives");
        answer
    }

    fn is_found(&self, id: TopicPartition) -> bool {
        self.shard.around.replicas.place_of(id).is_some()
    }

    /// As the data plane asks for a role.
    async fn assign(&self, id: TopicPartition, change: RoleChange) {
        self.shard.around.replicas.place([id], &self.handle);
        self.change(change).await;
    }

    async fn delete(&self, id: TopicPartition, done: Option<oneshot::Sender<()>>) {
        let claim = self.shard.around.replicas.place_of(id).expect("it has a place").claim;
        self.change(RoleChange::Delete { id, claim, done }).await;
    }
}

#[tokio::test]
async fn a_producer_does_not_wait_for_the_replicas_that_are_being_created() {
    let mut driven = Driven::start(Vec::new());
    driven.change(RoleChange::Lead { id: id(0), leader_epoch: LeaderEpoch::default() }).await;
    driven.round();
    for partition in 1..COUNT {
        driven.change(RoleChange::Lead { id: id(partition), leader_epoch: LeaderEpoch::default() }).await;
    }
    let mut answer = driven.produce(id(0)).await;
    let mut unknown = driven.produce(id(COUNT - 1)).await;
    driven.round();
    assert!(matches!(answer.try_recv(), Ok(Ok(_))));
    assert!(matches!(unknown.try_recv(), Ok(Err(error)) if error.name == ErrorName::NotLeaderOrFollower));
    assert_eq!(driven.shard.owned.len(), 1 + ROUND_OPENED_MAX);
    while driven.shard.owned.len() < COUNT as usize {
        driven.round();
    }
    let mut known = driven.produce(id(COUNT - 1)).await;
    driven.round();
    assert!(matches!(known.try_recv(), Ok(Ok(_))));
}

#[tokio::test]
async fn replicas_found_at_the_start_are_opened_in_slices_and_on_demand() {
    let mut driven = Driven::start((0..COUNT).map(id).collect());
    assert!(driven.shard.has_more_to_do());
    driven.change(RoleChange::Lead { id: id(COUNT - 1), leader_epoch: LeaderEpoch::default() }).await;
    driven.round();
    assert_eq!(driven.shard.owned.len(), ROUND_OPENED_MAX);
    assert!(driven.shard.owned[&id(COUNT - 1)].leads());
    assert!(driven.is_found(id(COUNT / 2)), "it is known before it is open");
    assert!(driven.shard.around.replicas.get(id(COUNT / 2)).is_none());
    while driven.shard.has_more_to_do() {
        driven.round();
    }
    assert_eq!(driven.shard.owned.len(), COUNT as usize);
    assert_eq!(driven.shard.around.replicas.count_in(&driven.handle), COUNT as usize);
}

#[tokio::test]
async fn a_replica_has_its_place_before_it_is_open() {
    let mut driven = Driven::start(Vec::new());
    let replicas = driven.shard.around.replicas.clone();
    replicas.place([id(0)], &driven.handle);
    replicas.place([id(0)], &driven.handle);
    assert_eq!((driven.is_found(id(0)), replicas.count_in(&driven.handle)), (true, 1));
    driven.change(RoleChange::Lead { id: id(0), leader_epoch: LeaderEpoch::default() }).await;
    driven.delete(id(0), None).await;
    driven.round();
    driven.tick();
    assert!(driven.shard.owned.is_empty() && !driven.is_found(id(0)));
    assert_eq!(replicas.count_in(&driven.handle), 0);
    assert_eq!(driven.shard.directory.partitions().expect("the disk works"), []);
}

#[tokio::test]
async fn metadata_of_one_partition_concerns_one_replica() {
    let mut driven = Driven::leading().await;
    driven.learn(vec![Record::PartitionChange(PartitionChange::none(id(700), Cause::ElectionRequested))]);
    assert_eq!(driven.round(), 1);
    let retention = |name: &str| Record::Config {
        resource: ConfigResource::Topic(name.to_owned()),
        key: "retention.ms".to_owned(),
        value: Some("1000".to_owned()),
    };
    driven.learn(vec![retention("payments")]);
    assert_eq!(driven.round(), 0, "another topic's config");
    driven.learn(vec![retention("orders")]);
    let mut told = 0;
    while driven.shard.has_more_to_do() {
        let settled = driven.round();
        assert!(settled < COUNT as usize / 4, "{settled} in one round");
        told += settled;
    }
    assert_eq!(told, COUNT as usize);
}

#[tokio::test]
async fn a_tick_costs_nothing_for_leaders_to_which_nothing_happens() {
    let mut driven = Driven::leading().await;
    assert_eq!(driven.tick(), 0);
    let _answer = driven.produce(id(3)).await;
    driven.round();
    assert_eq!(driven.tick(), 0, "everything is acknowledged");
}

#[tokio::test]
async fn deleted_replicas_are_found_until_one_sync_covers_them_all() {
    let mut driven = Driven::leading().await;
    for partition in 0..10 {
        driven.delete(id(partition), None).await;
    }
    driven.round();
    assert_eq!(driven.shard.owned.len(), COUNT as usize - 10);
    assert!(driven.is_found(id(0)), "it must not come to another directory yet");
    driven
        .change(RoleChange::Follow {
            id: id(1),
            source: Source { leader: broker(2), leader_epoch: LeaderEpoch::new(1) },
        })
        .await;
    driven.round();
    driven.tick();
    assert!(!driven.is_found(id(0)));
    assert!(driven.is_found(id(1)), "it has come back");
    assert_eq!(driven.shard.around.replicas.count_in(&driven.handle), COUNT as usize - 9);
    let (done, mut deleted) = oneshot::channel();
    driven.delete(id(1), Some(done)).await;
    driven.round();
    assert_eq!(deleted.try_recv(), Ok(()), "who waits for it does not wait for a tick");
    assert!(!driven.is_found(id(1)));
}

/// Between the deletion and what is behind it in the queue lie as many rounds and syncs as the queue takes.
#[tokio::test]
async fn a_replica_claimed_again_behind_its_deletion_keeps_its_place() {
    let mut driven = Driven::leading().await;
    let replicas = driven.shard.around.replicas.clone();
    driven.delete(id(0), None).await;
    driven.round();
    replicas.place([id(0)], &driven.handle);
    driven.tick();
    assert!(driven.is_found(id(0)), "another directory must not take it");
    assert!(replicas.get(id(0)).is_none(), "the deleted one is served no more");
    driven.change(RoleChange::Lead { id: id(0), leader_epoch: LeaderEpoch::default() }).await;
    driven.round();
    driven.tick();
    assert!(driven.shard.owned.contains_key(&id(0)) && replicas.get(id(0)).is_some());
    assert_eq!(replicas.count_in(&driven.handle), COUNT as usize);
}

#[tokio::test]
async fn of_two_deletions_the_last_one_frees_the_place() {
    let mut driven = Driven::leading().await;
    let replicas = driven.shard.around.replicas.clone();
    driven.delete(id(0), None).await;
    driven.round();
    let source = Source { leader: broker(2), leader_epoch: LeaderEpoch::new(1) };
    driven.assign(id(0), RoleChange::Follow { id: id(0), source }).await;
    driven.delete(id(0), None).await;
    driven.tick();
    assert!(driven.is_found(id(0)), "the change of role between the two is not done yet");
    driven.round();
    driven.tick();
    assert!(!driven.is_found(id(0)) && !driven.shard.owned.contains_key(&id(0)));
    assert_eq!(replicas.count_in(&driven.handle), COUNT as usize - 1);
}

#[tokio::test]
async fn a_failed_directory_keeps_the_place_of_a_replica_claimed_again() {
    let mut driven = Driven::leading().await;
    driven.delete(id(0), None).await;
    driven.delete(id(1), None).await;
    driven.round();
    driven.shard.around.replicas.place([id(0)], &driven.handle);
    let reason = "the disk is gone".to_owned();
    driven.shard.fail(&LogError::Io { path: driven.handle.path().to_owned(), reason });
    assert!(driven.is_found(id(0)) && !driven.is_found(id(1)));
}
