//! Simulated brokers: thousands in one process, each with a registration, a heartbeat stream, a filtered feed of the
//! metadata and the ISR changes that it owes as a leader. They hold no records.
//!
//! ```text
//! Fleet ── register, unfence, fence, unregister
//!   ├─ connection.rs   channels that several brokers share, and which node is the active controller
//!   ├─ heart.rs        a heartbeat stream for each broker
//!   └─ follower.rs     a feed for each broker ──► partitions.rs, the state they share ──► AlterPartition
//! ```

mod connection;
mod follower;
mod heart;
mod partitions;
#[cfg(test)]
mod tests;

use std::convert::Infallible;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures::{StreamExt, TryStreamExt, stream};
use quorate_metadata::ids::{DirectoryId, IncarnationId};
use quorate_metadata::plan::features;
use quorate_proto::broker::RegisterRequest;
use quorate_proto::{features_to_wire, metadata};
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::task::{JoinHandle, JoinSet};
use tokio::time::timeout;
use uuid::Uuid;

use self::connection::Connections;
use self::heart::{Heart, Order};
use self::partitions::Partitions;
use super::side_thread::SideThread;
use super::{PerfError, Samples, Target};
use crate::{AdminClient, Freshness, Mode, world};

/// Until all of them are unfenced: ten seconds, and more for thousands at once.
const UNFENCE_TIMEOUT: Duration = Duration::from_secs(10);
/// A broker that returns to many partitions changes each of them, on few processors that it shares with all nodes.
const UNFENCE_TIMEOUT_EACH: Duration = Duration::from_millis(150);

/// Registrations under way at once: enough for the controller to group them into batches.
const REGISTRATIONS_AT_ONCE: usize = 64;

/// What simulated brokers do.
#[derive(Debug, Clone)]
pub(super) struct Behaviour {
    /// Between the heartbeats of one broker; zero: the next as soon as one is answered.
    pub interval: Duration,
    /// Each follows the feed of what concerns it, and asks for the ISR members that are missing in partitions it leads.
    pub follows: bool,
    /// Brokers that share a connection to a node. A real broker has one of its own.
    pub per_connection: usize,
    /// Registers ids again that are registered and fenced, as restarted brokers do.
    pub takes_over: bool,
}

impl Default for Behaviour {
    fn default() -> Self {
        Self { interval: Duration::from_millis(250), follows: false, per_connection: 1, takes_over: false }
    }
}

/// Brokers with one port between them, which is closed when the last of them is gone.
pub(super) struct Fleet {
    admin: AdminClient,
    shared: Arc<Shared>,
    /// (id, epoch) of each.
    registered: Vec<(i32, i64)>,
    port: u16,
    listener: JoinHandle<Infallible>,
    /// A thread for the heartbeats alone: feeds of a million partitions would hold them up past the session timeout.
    heart_thread: SideThread,
    hearts: JoinSet<Result<Samples, PerfError>>,
    followers: JoinSet<Infallible>,
}

struct Shared {
    connections: Connections,
    /// Those of the heartbeats, which the thread of the heartbeats serves.
    heart_connections: Connections,
    behaviour: Behaviour,
    order: watch::Sender<Order>,
    /// How many of them have been answered that they are unfenced.
    unfenced: watch::Sender<usize>,
    /// Whether heartbeats are measured.
    recording: AtomicBool,
    partitions: Mutex<Partitions>,
}

impl Fleet {
    /// Registers the ids and starts their heartbeats, the first of which unfence them.
    pub async fn start(target: &Target, ids: &[i32], behaviour: Behaviour) -> Result<Self, PerfError> {
        let admin = target.client()?;
        if !behaviour.takes_over {
            refuse_taken(&admin, ids).await?;
        }
        let io = |source| PerfError::Io { what: "cannot listen on loopback".to_owned(), source };
        let listener = TcpListener::bind("127.0.0.1:0").await.map_err(io)?;
        let port = listener.local_addr().map_err(io)?.port();
        let heart_thread = SideThread::start("hearts")?;
        let shared = Shared {
            connections: Connections::new(target.clone(), behaviour.per_connection),
            heart_connections: Connections::new(target.clone(), behaviour.per_connection),
            behaviour,
            order: watch::Sender::new(Order::Run),
            unfenced: watch::Sender::new(0),
            recording: AtomicBool::new(false),
            partitions: Mutex::default(),
        };
        let mut fleet = Self {
            admin,
            shared: Arc::new(shared),
            registered: Vec::new(),
            port,
            listener: tokio::spawn(accept(listener)),
            heart_thread,
            hearts: JoinSet::new(),
            followers: JoinSet::new(),
        };
        match fleet.join(ids).await {
            Ok(()) => Ok(fleet),
            Err(error) => {
                // The first error says what went wrong; clean-up is the best that can be done beside it.
                let _ = fleet.stop().await;
                Err(error)
            }
        }
    }

    async fn join(&mut self, ids: &[i32]) -> Result<(), PerfError> {
        let cluster = self.admin.describe_quorum(Freshness::Linearizable).await?.cluster_id;
        let (admin, port) = (&self.admin, self.port);
        let register = |id: i32| {
            let request = registration(&cluster, id, port);
            async move { Ok::<_, PerfError>((id, admin.register_broker(request).await?.broker_epoch)) }
        };
        let mut registering = stream::iter(ids.to_vec()).map(register).buffer_unordered(REGISTRATIONS_AT_ONCE);
        while let Some((id, epoch)) = registering.try_next().await? {
            self.registered.push((id, epoch));
            let place = self.registered.len() - 1;
            let heart = Heart::new(self.shared.clone(), place, id, epoch).beat();
            self.hearts.spawn_on(heart, self.heart_thread.handle());
            if self.shared.behaviour.follows {
                self.followers.spawn(follower::run(self.shared.clone(), place, id, epoch));
            }
        }
        drop(registering);
        self.await_unfenced().await
    }

    async fn await_unfenced(&self) -> Result<(), PerfError> {
        let all = self.registered.len();
        let patience = UNFENCE_TIMEOUT + UNFENCE_TIMEOUT_EACH * u32::try_from(all).unwrap_or(u32::MAX);
        let mut unfenced = self.shared.unfenced.subscribe();
        let outcome = timeout(patience, unfenced.wait_for(|unfenced| *unfenced >= all)).await.map(|_| ());
        outcome.map_err(|_| {
            let unfenced = *self.shared.unfenced.borrow();
            PerfError::cluster(format!("only {unfenced} of {all} brokers were unfenced within {patience:?}"))
        })
    }

    pub fn epoch(&self, id: i32) -> i64 {
        self.registered.iter().find(|(known, _)| *known == id).map(|(_, epoch)| *epoch).expect("one of ours")
    }

    /// Heartbeats that are answered from now on are measured, or no longer.
    pub fn record(&self, recording: bool) {
        self.shared.recording.store(recording, Ordering::Relaxed);
    }

    /// Asks for the fencing of all of them.
    pub fn request_fencing(&self) {
        self.shared.order.send_replace(Order::Fence);
    }

    /// As if the process had been killed: the port first, then every stream.
    pub async fn kill(&mut self) {
        self.listener.abort();
        // It was aborted: there is nothing in it.
        let _ = (&mut self.listener).await;
        self.hearts.shutdown().await;
        self.followers.shutdown().await;
    }

    /// Ends without a word to the controllers, and returns how long the measured heartbeats took.
    pub async fn halt(mut self) -> Result<Samples, PerfError> {
        self.shared.order.send_replace(Order::Stop);
        self.samples().await
    }

    async fn samples(&mut self) -> Result<Samples, PerfError> {
        let mut samples = Samples::default();
        while let Some(heart) = self.hearts.join_next().await {
            samples.merge(&heart.expect("a heart does not panic")?);
        }
        Ok(samples)
    }

    /// Unregisters them all, and returns how long the measured heartbeats took.
    pub async fn stop(mut self) -> Result<Samples, PerfError> {
        self.followers.shutdown().await;
        self.shared.order.send_replace(Order::Leave);
        // While they live: a broker that is merely gone would be fenced first.
        let admin = &self.admin;
        let unregister =
            |(id, _): (i32, i64)| async move { admin.unregister_broker(id, true, Mode::Apply).await.map(drop) };
        let unregistered: Result<(), _> = stream::iter(self.registered.clone())
            .map(unregister)
            .buffer_unordered(REGISTRATIONS_AT_ONCE)
            .try_collect()
            .await;
        self.shared.order.send_replace(Order::Stop);
        let samples = self.samples().await?;
        unregistered?;
        Ok(samples)
    }
}

impl Drop for Fleet {
    fn drop(&mut self) {
        self.listener.abort();
    }
}

async fn refuse_taken(admin: &AdminClient, ids: &[i32]) -> Result<(), PerfError> {
    let known = admin.list_brokers(Freshness::Linearizable).await?.brokers;
    match known.iter().find(|broker| ids.contains(&broker.id)) {
        Some(taken) => Err(PerfError::cluster(format!(
            "broker {} is registered already: name other ids with --first-broker",
            taken.id
        ))),
        None => Ok(()),
    }
}

/// What a controller that probes a broker needs to see: a port that accepts connections.
async fn accept(listener: TcpListener) -> Infallible {
    loop {
        if let Err(error) = listener.accept().await {
            // Out of descriptors, say: connections wait in the backlog meanwhile, which is as good to a probe.
            tracing::debug!(%error, "cannot accept");
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }
}

/// A broker that starts again has the disk that it had.
fn directory(broker: i32) -> DirectoryId {
    DirectoryId::new(Uuid::from_u128(u128::from(broker.unsigned_abs()) << 64))
}

fn registration(cluster: &str, broker: i32, port: u16) -> RegisterRequest {
    RegisterRequest {
        cluster_id: cluster.to_owned(),
        broker,
        incarnation: IncarnationId::new(world::uuid()).to_string(),
        endpoints: vec![metadata::Endpoint {
            name: "PLAINTEXT".to_owned(),
            host: "127.0.0.1".to_owned(),
            port: port.into(),
            security: 0,
        }],
        kind: None,
        probe: None,
        rack: None,
        features: features_to_wire(&features::supported()),
        directories: vec![directory(broker).to_string()],
        previous_epoch: None,
    }
}
