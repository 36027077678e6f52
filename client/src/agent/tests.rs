//! The agent against a node in this process.

use std::collections::VecDeque;
use std::pin::Pin;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};

use quorate_metadata::ErrorName;
use quorate_metadata::ids::{LeaderEpoch, PartitionEpoch, TopicPartition};
use quorate_metadata::record::{Kind, LeaderRecoveryState};
use quorate_proto::broker::broker_server::{Broker, BrokerServer};
use quorate_proto::broker::*;
use quorate_proto::{error, record};
use tokio::net::TcpListener;
use tokio::sync::mpsc;
use tokio::time::timeout;
use tokio_stream::wrappers::TcpListenerStream;
use tokio_stream::{Stream, StreamExt};
use tonic::transport::Server;
use tonic::{Request, Response, Status, Streaming};

use super::fixture::{broker, id, image};
use super::*;

/// Below what the metadata holds.
const EPOCH: i64 = 2;

/// Of the topic that the node has.
const PARTITIONS: usize = 1_500;

/// For what must not go on for ever.
const PATIENCE: Duration = Duration::from_secs(20);

/// How the node answers a change of an ISR.
#[derive(Debug, Clone, Copy)]
enum Act {
    Apply,
    RefuseAll(ErrorName),
    Refuse(ErrorName),
}

struct Fake {
    /// Done one after the other.
    acts: Mutex<VecDeque<Act>>,
    heartbeats: mpsc::UnboundedSender<HeartbeatRequest>,
    changes: mpsc::UnboundedSender<AlterPartitionRequest>,
    /// Refuses every heartbeat, and every registration after the first, as where a level was raised.
    is_level_raised: bool,
    has_registered: AtomicBool,
}

fn above_level() -> Status {
    let refusal = ApiError::new(ErrorName::UnsupportedVersion, "the level was raised");
    error::to_status(&refusal, error::Context::default())
}

type Replies<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

#[tonic::async_trait]
impl Broker for Fake {
    type HeartbeatStream = Replies<HeartbeatReply>;
    type WatchStream = Replies<WatchEvent>;

    async fn register(&self, _: Request<RegisterRequest>) -> Result<Response<RegisterReply>, Status> {
        if self.has_registered.swap(true, Ordering::Relaxed) && self.is_level_raised {
            return Err(above_level());
        }
        Ok(Response::new(RegisterReply { broker_epoch: EPOCH, result: None }))
    }

    async fn heartbeat(
        &self,
        requests: Request<Streaming<HeartbeatRequest>>,
    ) -> Result<Response<Self::HeartbeatStream>, Status> {
        if self.is_level_raised {
            return Err(above_level());
        }
        let heard = self.heartbeats.clone();
        let replies = requests.into_inner().map(move |request| {
            let request = request?;
            let sequence = request.sequence;
            heard.send(request).map_err(|_| Status::cancelled("the test is over"))?;
            Ok(HeartbeatReply {
                sequence,
                lease_ms: 60_000,
                interval_ms: 30_000,
                metadata_offset: EPOCH + 1,
                ..Default::default()
            })
        });
        Ok(Response::new(Box::pin(replies)))
    }

    async fn allocate_producer_ids(
        &self,
        _: Request<AllocateProducerIdsRequest>,
    ) -> Result<Response<AllocateProducerIdsReply>, Status> {
        Err(Status::unimplemented("not part of the test"))
    }

    async fn register_controller(
        &self,
        _: Request<RegisterControllerRequest>,
    ) -> Result<Response<RegisterControllerReply>, Status> {
        Err(Status::unimplemented("not part of the test"))
    }

    async fn alter_partition(
        &self,
        request: Request<AlterPartitionRequest>,
    ) -> Result<Response<AlterPartitionReply>, Status> {
        let request = request.into_inner();
        self.changes.send(request.clone()).map_err(|_| Status::cancelled("the test is over"))?;
        let act = self.acts.lock().expect("unpoisoned").pop_front().unwrap_or(Act::Apply);
        let refusal = |name| ApiError::new(name, "refused");
        let answer = |wanted: PartitionAlteration| AlteredPartition {
            topic_id: wanted.topic_id,
            partition: wanted.partition,
            error: if let Act::Refuse(name) = act { Some(error::to_item(&refusal(name))) } else { None },
            isr: wanted.isr.iter().map(|member| member.broker).collect(),
            partition_epoch: wanted.partition_epoch + 1,
            ..Default::default()
        };
        if let Act::RefuseAll(name) = act {
            return Err(error::to_status(&refusal(name), error::Context::default()));
        }
        let partitions = request.partitions.into_iter().map(answer).collect();
        Ok(Response::new(AlterPartitionReply { result: None, partitions }))
    }

    async fn watch(&self, _: Request<WatchRequest>) -> Result<Response<Self::WatchStream>, Status> {
        let image = image(&[&[1, 2][..]; PARTITIONS]);
        let header = image.header();
        let snapshot = SnapshotPart {
            next_offset: header.next_offset.get(),
            controller_epoch: header.controller_epoch.get(),
            records: image.to_records().map(|record| record::to_wire(&record)).collect(),
            last: true,
            digest: header.digest.to_be_bytes().to_vec(),
            time_ms: header.timestamp_ms,
        };
        let event = WatchEvent { event: Some(watch_event::Event::Snapshot(snapshot)) };
        Ok(Response::new(Box::pin(tokio_stream::once(Ok(event)).chain(tokio_stream::pending()))))
    }
}

struct Node {
    agent: BrokerAgent,
    heartbeats: mpsc::UnboundedReceiver<HeartbeatRequest>,
    changes: mpsc::UnboundedReceiver<AlterPartitionRequest>,
}

async fn start(acts: &[Act]) -> Node {
    start_at(acts, false, None).await
}

async fn start_at(acts: &[Act], is_level_raised: bool, local_metadata: Option<Arc<dyn LocalMetadata>>) -> Node {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let address = listener.local_addr().expect("it is bound").to_string();
    let (heartbeats, heard) = mpsc::unbounded_channel();
    let (changes, asked) = mpsc::unbounded_channel();
    let acts = Mutex::new(acts.iter().copied().collect());
    let fake = Fake { acts, heartbeats, changes, is_level_raised, has_registered: AtomicBool::new(false) };
    let server = Server::builder().add_service(BrokerServer::new(fake));
    tokio::spawn(server.serve_with_incoming(TcpListenerStream::new(listener)));
    let agent = BrokerAgent::start(AgentConfig { local_metadata, ..config(vec![address]) });
    Node { agent, heartbeats: heard, changes: asked }
}

pub(super) fn config(bootstrap: Vec<String>) -> AgentConfig {
    AgentConfig {
        broker: broker(1),
        cluster: ClusterId::from_bytes([1; 16]),
        incarnation: IncarnationId::default(),
        endpoints: Vec::new(),
        probe: ProbedEndpoint::None,
        kind: Kind::LOG,
        rack: None,
        features: BTreeMap::new(),
        directories: Vec::new(),
        previous_epoch: None,
        bootstrap,
        local_metadata: None,
        resolve: Arc::new(str::to_owned),
        network: Network::default(),
        registration_timeout: Some(Duration::from_secs(60)),
        stray_grace: STRAY_GRACE,
    }
}

fn change(partition: i32) -> IsrChange {
    IsrChange {
        partition: id(partition),
        leader_epoch: LeaderEpoch::new(3),
        partition_epoch: PartitionEpoch::new(5),
        isr: vec![(broker(1), None), (broker(2), Some(BrokerEpoch::new(9)))],
        recovery: LeaderRecoveryState::Recovered,
    }
}

fn applied() -> IsrOutcome {
    IsrOutcome::Applied {
        partition_epoch: PartitionEpoch::new(6),
        isr: vec![broker(1), broker(2)],
        recovery: LeaderRecoveryState::Recovered,
    }
}

#[tokio::test]
async fn a_change_of_the_isr_is_asked_for_until_a_controller_answers_it() {
    let mut node = start(&[Act::RefuseAll(ErrorName::NotController), Act::Refuse(ErrorName::NotController)]).await;
    assert_eq!(node.agent.isr_changes().alter(change(0)).await, applied());
    for attempt in 0..3 {
        let request = node.changes.recv().await.expect("three attempts");
        assert_eq!((request.broker, request.broker_epoch), (1, EPOCH), "attempt {attempt}");
        let members: Vec<_> = request.partitions[0].isr.iter().map(|member| (member.broker, member.epoch)).collect();
        assert_eq!(members, [(1, None), (2, Some(9))], "attempt {attempt}");
    }
    assert!(node.changes.is_empty());
}

#[tokio::test]
async fn an_ineligible_replica_ends_the_change_and_the_next_one_is_asked_for() {
    let node = start(&[Act::Refuse(ErrorName::IneligibleReplica)]).await;
    let changes = node.agent.isr_changes();
    let refused = ApiError::new(ErrorName::IneligibleReplica, "refused");
    assert_eq!(changes.alter(change(0)).await, IsrOutcome::NotApplied(refused));
    assert_eq!(changes.alter(change(0)).await, applied());
}

#[tokio::test]
async fn what_waits_goes_in_one_call_and_a_second_change_of_a_partition_is_refused() {
    let mut node = start(&[]).await;
    let changes = node.agent.isr_changes();
    let (first, second, other) =
        tokio::join!(changes.alter(change(0)), changes.alter(change(0)), changes.alter(change(1)));
    assert_eq!((first, other), (applied(), applied()));
    assert!(matches!(second, IsrOutcome::NotApplied(error) if error.name == ErrorName::InvalidRequest));
    assert_eq!(node.changes.recv().await.expect("one call").partitions.len(), 2);
    assert!(node.changes.is_empty());
}

#[tokio::test]
async fn a_mass_change_is_one_request() {
    let mut node = start(&[]).await;
    let changes = node.agent.isr_changes();
    let mass: Vec<_> = (0..).map(change).take(PARTITIONS).collect();
    for outcome in changes.submit(mass).await {
        assert_eq!(outcome.known().await, applied());
    }
    assert_eq!(node.changes.recv().await.expect("one request").partitions.len(), PARTITIONS);
    assert!(node.changes.is_empty());
}

#[tokio::test]
async fn a_broker_below_a_raised_level_ends_by_name() {
    let mut node = start_at(&[], true, None).await;
    let ended = timeout(PATIENCE, node.agent.failed()).await.expect("it does not beat in vain for ever");
    assert_eq!(ended.name, ErrorName::UnsupportedVersion);
}

#[tokio::test]
async fn failed_directories_are_reported_at_once_and_with_every_later_heartbeat() {
    let mut node = start(&[]).await;
    assert_eq!(node.heartbeats.recv().await.expect("the first").offline_directories, [""; 0]);
    let failed = DirectoryId::from_bytes([4; 16]);
    node.agent.report_offline(BTreeSet::from([failed]));
    // The interval is far longer than the test: this one was sent for the report, and the next for the wish to stop.
    let reported = async |node: &mut Node| node.heartbeats.recv().await.expect("the agent lives").offline_directories;
    while reported(&mut node).await.is_empty() {}
    node.agent.wish.send_modify(|wish| wish.shut_down = true);
    assert_eq!(reported(&mut node).await, [failed.to_string()]);
}

#[tokio::test]
async fn disk_problems_are_reported_until_they_are_over() {
    let mut node = start(&[]).await;
    let reported = async |node: &mut Node| {
        let heartbeat = timeout(PATIENCE, node.heartbeats.recv()).await.expect("a report is sent at once");
        heartbeat.expect("the agent lives").disk_problems
    };
    assert_eq!(reported(&mut node).await, [""; 0]);
    let problem = "log directory /a has 3 MiB free".to_owned();
    // The interval is far longer than the test: each report is sent at once.
    node.agent.report_disk_problems(vec![problem.clone()]);
    while reported(&mut node).await != [problem.clone()] {}
    node.agent.report_disk_problems(Vec::new());
    while !reported(&mut node).await.is_empty() {}
}

/// The metadata of this process, which ends before what the controller tells of.
struct Local(watch::Sender<Offset>);

impl LocalMetadata for Local {
    fn image(&self) -> MetadataImage {
        let mut image = MetadataImage::default();
        image.next_offset = *self.0.borrow();
        image
    }

    fn offsets(&self) -> watch::Receiver<Offset> {
        self.0.subscribe()
    }
}

#[tokio::test]
async fn an_agent_whose_own_process_lags_follows_a_node() {
    let local = Arc::new(Local(watch::Sender::new(Offset::default())));
    let node = start_at(&[], false, Some(local.clone())).await;
    let mut changes = node.agent.metadata().changes();
    let image = changes.wait_for(|image| !image.topics.is_empty()).await.expect("the agent lives").clone();
    assert!(image.next_offset > *local.0.borrow());
}

/// A host that cannot lead.
struct Broken;

#[tonic::async_trait]
impl PartitionHost for Broken {
    fn hosted(&self) -> Vec<TopicPartition> {
        Vec::new()
    }

    async fn become_leader(&self, assignment: Assignment) {
        panic!("{} cannot be led", assignment.id.partition);
    }

    async fn become_follower(&self, _: Assignment) {}

    async fn become_offline(&self, _: Assignment, _: OfflineReason) {}

    async fn delete_replica(&self, _: TopicPartition, _: DeleteReason) {}
}

#[tokio::test]
#[should_panic(expected = "0 cannot be led")]
async fn a_panic_of_the_host_goes_on_where_the_agent_is_waited_for() {
    let mut node = start(&[]).await;
    node.agent.drive(Arc::new(Broken));
    node.agent.failed().await;
}

#[tokio::test(start_paused = true)]
async fn a_broker_that_stops_waits_for_a_controller_while_its_lease_lasts_and_not_for_long_after() {
    let started = Instant::now();
    let leased =
        |seconds| Standing { lease_until: Some(started + Duration::from_secs(seconds)), ..Standing::UNREGISTERED };
    let (sender, standing) = watch::channel(leased(10));
    let waiting = tokio::spawn(out_of_reach(standing));
    tokio::time::sleep(Duration::from_secs(9)).await;
    sender.send_replace(leased(20));
    waiting.await.expect("it does not panic");
    let waited = started.elapsed().saturating_sub(Duration::from_secs(20));
    assert!(waited >= OUT_OF_REACH_AFTER && waited < 2 * OUT_OF_REACH_AFTER, "{waited:?}");
}

#[tokio::test(start_paused = true)]
async fn a_broker_that_stops_without_a_lease_does_not_wait_for_long() {
    let (_sender, standing) = watch::channel(Standing::UNREGISTERED);
    let started = Instant::now();
    out_of_reach(standing).await;
    assert!(started.elapsed() < 2 * OUT_OF_REACH_AFTER, "{:?}", started.elapsed());
}
