//! Broker ids of our own, registered and kept alive through the broker API, as any broker would.

use std::time::Duration;

use quorate_metadata::ids::{DirectoryId, IncarnationId};
use quorate_metadata::plan::features;
use quorate_proto::broker::{HeartbeatReply, HeartbeatRequest, RegisterRequest};
use quorate_proto::{features_to_wire, metadata};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, timeout};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Status, Streaming};

use super::{PerfError, Samples, Target};
use crate::admin::brokers as wire;
use crate::{AdminClient, Freshness, Mode, world};

/// Until all of them are unfenced.
const UNFENCE_TIMEOUT: Duration = Duration::from_secs(10);

/// A heartbeat that takes longer would end the session.
const REPLY_TIMEOUT: Duration = Duration::from_secs(3);

/// Looking for a new active controller.
const RECONNECT_PAUSE: Duration = Duration::from_millis(50);

pub(super) struct OwnBrokers {
    client: AdminClient,
    target: Target,
    /// (id, epoch) of each.
    pub registered: Vec<(i32, i64)>,
    interval: Duration,
    stop: watch::Sender<bool>,
    hearts: JoinSet<Result<Samples, PerfError>>,
}

impl OwnBrokers {
    /// Registers the ids and starts their heartbeats, the first of which unfence them.
    pub async fn start(target: &Target, ids: &[i32], interval: Duration) -> Result<Self, PerfError> {
        let mut brokers = Self {
            client: target.client()?,
            target: target.clone(),
            registered: Vec::new(),
            interval,
            stop: watch::Sender::new(false),
            hearts: JoinSet::new(),
        };
        if let Err(error) = brokers.register_all(ids).await {
            // The first error says what went wrong; clean-up is the best we can do beside it.
            let _ = brokers.stop().await;
            return Err(error);
        }
        Ok(brokers)
    }

    async fn register_all(&mut self, ids: &[i32]) -> Result<(), PerfError> {
        let known = self.client.list_brokers(Freshness::Linearizable).await?.brokers;
        if let Some(taken) = known.iter().find(|broker| ids.contains(&broker.id)) {
            return Err(PerfError::cluster(format!(
                "broker {} is registered already: it is not ours to use",
                taken.id
            )));
        }
        let cluster = self.client.describe_quorum(Freshness::Linearizable).await?.cluster_id;
        for id in ids {
            let reply = self.client.register_broker(registration(&cluster, *id)).await?;
            self.registered.push((*id, reply.broker_epoch));
            let heart = Heart { broker: *id, epoch: reply.broker_epoch, interval: self.interval };
            self.hearts.spawn(heart.beat(self.target.clone(), self.stop.subscribe()));
        }
        self.await_unfenced().await
    }

    async fn await_unfenced(&self) -> Result<(), PerfError> {
        let deadline = Instant::now() + UNFENCE_TIMEOUT;
        loop {
            let brokers = self.client.list_brokers(Freshness::Linearizable).await?.brokers;
            let ours = |id: i32| self.registered.iter().any(|(registered, _)| *registered == id);
            let unfenced = brokers.iter().filter(|broker| ours(broker.id) && broker.state == "unfenced").count();
            if unfenced == self.registered.len() {
                return Ok(());
            }
            if Instant::now() > deadline {
                let all = self.registered.len();
                return Err(PerfError::cluster(format!("only {unfenced} of {all} brokers were unfenced in time")));
            }
            sleep(Duration::from_millis(20)).await;
        }
    }

    pub fn epoch(&self, id: i32) -> i64 {
        self.registered.iter().find(|(known, _)| *known == id).map(|(_, epoch)| *epoch).expect("one of ours")
    }

    /// Unregisters them all, and says how long their heartbeats took.
    pub async fn stop(mut self) -> Result<Samples, PerfError> {
        // While they live: a broker that is merely gone would be fenced first.
        for (id, _) in &self.registered {
            self.client.unregister_broker(*id, Mode::Apply).await?;
        }
        self.stop.send_replace(true);
        let mut samples = Samples::default();
        let mut failure = None;
        while let Some(heart) = self.hearts.join_next().await {
            match heart.expect("a heart of ours does not panic") {
                Ok(beats) => samples.merge(&beats),
                Err(error) => failure = Some(error),
            }
        }
        failure.map_or(Ok(samples), Err)
    }
}

fn registration(cluster: &str, broker: i32) -> RegisterRequest {
    RegisterRequest {
        cluster_id: cluster.to_owned(),
        broker,
        incarnation: IncarnationId::new(world::uuid()).to_string(),
        // Nobody dials it: these brokers have no data.
        endpoints: vec![metadata::Endpoint {
            name: "PLAINTEXT".to_owned(),
            host: "127.0.0.1".to_owned(),
            port: 9,
            security: 0,
        }],
        rack: None,
        features: features_to_wire(&features::supported()),
        directories: vec![DirectoryId::new(world::uuid()).to_string()],
        previous_epoch: None,
    }
}

/// One broker's heartbeats.
struct Heart {
    broker: i32,
    epoch: i64,
    interval: Duration,
}

struct Line {
    requests: mpsc::Sender<HeartbeatRequest>,
    replies: Streaming<HeartbeatReply>,
}

impl Heart {
    async fn beat(self, target: Target, mut stop: watch::Receiver<bool>) -> Result<Samples, PerfError> {
        let mut samples = Samples::default();
        let mut sequence = 0;
        while !*stop.borrow() {
            let Ok(mut line) = self.open(&target).await else {
                sleep(RECONNECT_PAUSE).await;
                continue;
            };
            while !*stop.borrow() {
                sequence += 1;
                let started = Instant::now();
                if self.exchange(&mut line, sequence).await.is_err() {
                    break;
                }
                samples.record(started.elapsed());
                let rest = self.interval.saturating_sub(started.elapsed());
                // Told to stop, or time for the next: the loop looks which.
                let _ = timeout(rest, stop.wait_for(|stop| *stop)).await;
            }
        }
        Ok(samples)
    }

    /// A stream to the active controller. The first request travels with it.
    async fn open(&self, target: &Target) -> Result<Line, PerfError> {
        let target = target.controller_first().await?;
        let client = target.client()?;
        let (requests, queue) = mpsc::channel(1);
        let mut wire = wire(client.nodes.current().1.channel.clone());
        match timeout(REPLY_TIMEOUT, wire.heartbeat(ReceiverStream::new(queue))).await {
            Ok(Ok(replies)) => Ok(Line { requests, replies: replies.into_inner() }),
            Ok(Err(status)) => Err(PerfError::cluster(status.to_string())),
            Err(_) => Err(PerfError::cluster("the heartbeat stream was not answered")),
        }
    }

    async fn exchange(&self, line: &mut Line, sequence: u64) -> Result<HeartbeatReply, Status> {
        let request = HeartbeatRequest {
            broker: self.broker,
            broker_epoch: self.epoch,
            // Past its own registration: all that unfencing asks for.
            metadata_offset: self.epoch + 1,
            sequence,
            ..HeartbeatRequest::default()
        };
        line.requests.send(request).await.map_err(|_| Status::unavailable("the stream ended"))?;
        match timeout(REPLY_TIMEOUT, line.replies.message()).await {
            Ok(reply) => reply?.ok_or_else(|| Status::unavailable("the stream ended")),
            Err(_) => Err(Status::deadline_exceeded("no reply")),
        }
    }
}
