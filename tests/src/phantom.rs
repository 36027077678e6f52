//! A broker without a process: the test itself speaks for it.

use quorate_client::world;
use quorate_metadata::ids::{DirectoryId, IncarnationId};
use quorate_metadata::plan::features;
use quorate_proto::broker::{HeartbeatReply, HeartbeatRequest, RegisterRequest};
use quorate_proto::features_to_wire;
use quorate_proto::metadata::Endpoint;
use tokio::sync::mpsc;
use tokio::time::timeout;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Status, Streaming};

use crate::call::Broker;
use crate::{Cluster, PATIENCE, free_port, outcome, wait};

/// A registration that is accepted.
pub fn registration(cluster_id: &str, broker: i32) -> RegisterRequest {
    let endpoint =
        Endpoint { name: "API".to_owned(), host: "127.0.0.1".to_owned(), port: u32::from(free_port()), security: 0 };
    RegisterRequest {
        cluster_id: cluster_id.to_owned(),
        broker,
        incarnation: IncarnationId::new(world::uuid()).to_string(),
        endpoints: vec![endpoint],
        kind: None,
        probe: None,
        rack: None,
        features: features_to_wire(&features::supported()),
        directories: vec![DirectoryId::new(world::uuid()).to_string()],
        previous_epoch: None,
    }
}

impl Cluster {
    /// Registers a broker without a process at that node. Its epoch.
    pub async fn register_phantom(&self, at: i32, broker: i32) -> Result<i64, Status> {
        let cluster_id = self.quorum_seen_by(at).await.expect("it is up").cluster_id;
        let reply = outcome(self.broker(at).register(registration(&cluster_id, broker))).await;
        reply.map(|registered| registered.broker_epoch)
    }

    /// Registers a broker without a process at the active controller, and heartbeats until it may lead: it is unfenced and
    /// has a lease. The controller is told with it, as it may have changed meanwhile.
    pub async fn join_phantom(&self, broker: i32) -> (i32, Heartbeats) {
        let mut epoch = None;
        wait("a broker without a process to be let in", async || {
            let active = self.active_controller().await;
            if epoch.is_none() {
                epoch = self.register_phantom(active, broker).await.ok();
            }
            let (heartbeats, reply) = Heartbeats::open(self.broker(active), broker, epoch?).await.ok()?;
            (!reply.fenced && reply.lease_ms > 0).then_some((active, heartbeats))
        })
        .await
    }
}

/// A heartbeat stream, one heartbeat at a time.
pub struct Heartbeats {
    broker: i32,
    epoch: i64,
    sequence: u64,
    requests: mpsc::Sender<HeartbeatRequest>,
    replies: Option<Streaming<HeartbeatReply>>,
}

impl Heartbeats {
    /// Opens a stream with its first heartbeat.
    pub async fn open(mut node: Broker, broker: i32, epoch: i64) -> Result<(Self, HeartbeatReply), Status> {
        let (requests, sent) = mpsc::channel(1);
        let mut heartbeats = Self { broker, epoch, sequence: 0, requests, replies: None };
        heartbeats.send().await?;
        let call = timeout(PATIENCE, node.heartbeat(ReceiverStream::new(sent)));
        heartbeats.replies = Some(call.await.expect("the stream is opened or refused")?.into_inner());
        let reply = heartbeats.reply().await?;
        Ok((heartbeats, reply))
    }

    pub fn epoch(&self) -> i64 {
        self.epoch
    }

    pub async fn beat(&mut self) -> Result<HeartbeatReply, Status> {
        self.send().await?;
        self.reply().await
    }

    /// As a broker that has seen everything, so that nobody waits for it.
    async fn send(&mut self) -> Result<(), Status> {
        self.sequence += 1;
        let request = HeartbeatRequest {
            broker: self.broker,
            broker_epoch: self.epoch,
            metadata_offset: i64::MAX,
            sequence: self.sequence,
            ..HeartbeatRequest::default()
        };
        self.requests.send(request).await.map_err(|_| Status::unavailable("the stream has ended"))
    }

    async fn reply(&mut self) -> Result<HeartbeatReply, Status> {
        let replies = self.replies.as_mut().expect("opened");
        let reply = timeout(PATIENCE, replies.message()).await.expect("a heartbeat is answered");
        reply?.ok_or_else(|| Status::unavailable("the stream has ended"))
    }
}
