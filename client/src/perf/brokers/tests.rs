//! Heartbeats of simulated brokers against a node in this process.

use std::pin::Pin;

use quorate_metadata::{ApiError, ErrorName};
use quorate_proto::broker::broker_server::{Broker, BrokerServer};
use quorate_proto::broker::*;
use quorate_proto::error;
use tokio::sync::mpsc;
use tokio_stream::wrappers::TcpListenerStream;
use tokio_stream::{Stream, StreamExt};
use tonic::transport::Server;
use tonic::{Request, Response, Status, Streaming};

use super::*;
use crate::Options;

const EPOCH: i64 = 7;

struct Fake {
    heartbeats: mpsc::UnboundedSender<HeartbeatRequest>,
}

type Replies<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

fn unused<T>() -> Result<Response<T>, Status> {
    Err(Status::unimplemented("not part of the test"))
}

#[tonic::async_trait]
impl Broker for Fake {
    type HeartbeatStream = Replies<HeartbeatReply>;
    type WatchStream = Replies<WatchEvent>;

    async fn heartbeat(
        &self,
        requests: Request<Streaming<HeartbeatRequest>>,
    ) -> Result<Response<Self::HeartbeatStream>, Status> {
        let heartbeats = self.heartbeats.clone();
        let replies = requests.into_inner().map(move |request| {
            let request = request?;
            let (sequence, fenced) = (request.sequence, request.want_fence);
            if request.broker_epoch != EPOCH {
                let stale = ApiError::new(ErrorName::StaleBrokerEpoch, "registered anew");
                return Err(error::to_status(&stale, error::Context::default()));
            }
            heartbeats.send(request).map_err(|_| Status::cancelled("the test is over"))?;
            Ok(HeartbeatReply { sequence, fenced, ..HeartbeatReply::default() })
        });
        Ok(Response::new(Box::pin(replies)))
    }

    async fn register(&self, _: Request<RegisterRequest>) -> Result<Response<RegisterReply>, Status> {
        unused()
    }

    async fn alter_partition(
        &self,
        _: Request<AlterPartitionRequest>,
    ) -> Result<Response<AlterPartitionReply>, Status> {
        unused()
    }

    async fn allocate_producer_ids(
        &self,
        _: Request<AllocateProducerIdsRequest>,
    ) -> Result<Response<AllocateProducerIdsReply>, Status> {
        unused()
    }

    async fn register_controller(
        &self,
        _: Request<RegisterControllerRequest>,
    ) -> Result<Response<RegisterControllerReply>, Status> {
        unused()
    }

    async fn watch(&self, _: Request<WatchRequest>) -> Result<Response<Self::WatchStream>, Status> {
        unused()
    }
}

/// What the brokers of a fleet share, and the heartbeats that the node receives from them.
async fn node(interval: Duration) -> (Arc<Shared>, mpsc::UnboundedReceiver<HeartbeatRequest>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let address = listener.local_addr().expect("it is bound").to_string();
    let (sender, heartbeats) = mpsc::unbounded_channel();
    let server = Server::builder().add_service(BrokerServer::new(Fake { heartbeats: sender }));
    tokio::spawn(server.serve_with_incoming(TcpListenerStream::new(listener)));
    let target = Target::new(vec![address.clone()], Options::default());
    let shared = Shared {
        connections: Connections::new(target.clone(), 1),
        heart_connections: Connections::to_controller(target, address),
        behaviour: Behaviour { interval, ..Behaviour::default() },
        order: watch::Sender::new(Order::Run),
        unfenced: watch::Sender::new(0),
        recording: AtomicBool::new(false),
        partitions: Mutex::default(),
    };
    (Arc::new(shared), heartbeats)
}

async fn receive(heartbeats: &mut mpsc::UnboundedReceiver<HeartbeatRequest>, count: u64) {
    for _ in 0..count {
        heartbeats.recv().await.expect("heartbeats go on");
    }
}

#[tokio::test]
async fn heartbeats_outside_the_measured_window_are_not_counted() {
    let (shared, mut heartbeats) = node(Duration::ZERO).await;
    let heart = tokio::spawn(Heart::new(shared.clone(), 0, 1, EPOCH).beat());
    receive(&mut heartbeats, 50).await;
    shared.recording.store(true, Ordering::Relaxed);
    receive(&mut heartbeats, 10).await;
    shared.recording.store(false, Ordering::Relaxed);
    let ahead = heartbeats.len() as u64;
    receive(&mut heartbeats, ahead + 50).await;
    shared.order.send_replace(Order::Stop);
    let samples = heart.await.expect("no panic").expect("no refusal");
    let counted = samples.len();
    assert!(counted > 0, "what is in the window counts");
    assert!(counted <= 10 + ahead + 1, "{counted} were counted, where at most {} were answered in time", 11 + ahead);
}

#[tokio::test]
async fn a_broker_that_waits_for_its_next_heartbeat_asks_for_its_fencing_at_once() {
    let (shared, mut heartbeats) = node(Duration::from_secs(3600)).await;
    let heart = tokio::spawn(Heart::new(shared.clone(), 0, 1, EPOCH).beat());
    assert!(!heartbeats.recv().await.expect("the first").want_fence);
    shared.unfenced.subscribe().wait_for(|unfenced| *unfenced == 1).await.expect("it was answered");
    shared.order.send_replace(Order::Fence);
    assert!(heartbeats.recv().await.expect("the second").want_fence);
    shared.order.send_replace(Order::Stop);
    heart.await.expect("no panic").expect("no refusal");
}

#[tokio::test]
async fn a_refused_epoch_is_a_failure_unless_the_broker_leaves() {
    let (shared, _heartbeats) = node(Duration::ZERO).await;
    let failure = Heart::new(shared.clone(), 0, 1, EPOCH - 1).beat().await.expect_err("a stale epoch");
    assert!(failure.to_string().contains("registered anew"), "{failure}");
    shared.order.send_replace(Order::Leave);
    Heart::new(shared, 0, 1, EPOCH - 1).beat().await.expect("it was unregistered on purpose");
}
