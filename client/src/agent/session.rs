//! Registration and the heartbeat stream.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use quorate_metadata::ids::{BrokerEpoch, Offset};
use quorate_metadata::{ApiError, ErrorName, MetadataImage};
use quorate_proto::broker::broker_client::BrokerClient;
use quorate_proto::broker::{HeartbeatReply, HeartbeatRequest, RegisterRequest};
use quorate_proto::{endpoint_to_wire, error, features_to_wire, probe_to_wire};
use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, sleep_until, timeout};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Status, Streaming};
use tracing::{debug, warn};

use super::connect::{Candidates, connect};
use super::lease::Lease;
use super::probe::ProbeListener;
use super::{AgentConfig, MetadataCache, Standing, Wish};

/// Until the first reply says otherwise.
const FIRST_INTERVAL: Duration = Duration::from_millis(250);

/// Until the first lease says otherwise: how long a heartbeat may go without an answer.
const FIRST_PATIENCE: Duration = Duration::from_secs(1);

/// A registration that takes longer is asked for anew elsewhere.
const REGISTER_TIMEOUT: Duration = Duration::from_secs(2);

/// Heartbeats sent and not yet answered. More of them would prove no more life.
const HEARTBEATS_OUTSTANDING_MAX: usize = 8;

/// Registers and heartbeats for ever; returns when the registration is refused for good.
pub(super) async fn run(
    config: Arc<AgentConfig>,
    cache: MetadataCache,
    told: watch::Sender<Offset>,
    standing: watch::Sender<Standing>,
    refusal: watch::Sender<Option<ApiError>>,
    wish: watch::Receiver<Wish>,
) -> ApiError {
    let probe = match ProbeListener::start(&config).await {
        Ok(probe) => probe,
        Err(error) => return error,
    };
    let mut session = Session {
        probe,
        candidates: Candidates::new(&config),
        config,
        cache,
        told,
        standing,
        refusal,
        wish,
        lease: Lease::default(),
        previous_epoch: None,
    };
    session.previous_epoch = session.config.previous_epoch;
    loop {
        let epoch = match session.register().await {
            Ok(epoch) => epoch,
            Err(error) => return error,
        };
        session.standing.send_replace(Standing { epoch: Some(epoch), ..Standing::UNREGISTERED });
        session.heartbeat_until_stale(epoch).await;
        session.standing.send_replace(Standing::UNREGISTERED);
        session.lease.revoke();
        // What it wrote under an epoch that was taken from it proves nothing.
        session.previous_epoch = None;
    }
}

struct Session {
    config: Arc<AgentConfig>,
    probe: ProbeListener,
    candidates: Candidates,
    cache: MetadataCache,
    /// How far the metadata goes, by the controller's last word.
    told: watch::Sender<Offset>,
    standing: watch::Sender<Standing>,
    /// Why the registration that is tried now has not succeeded yet.
    refusal: watch::Sender<Option<ApiError>>,
    wish: watch::Receiver<Wish>,
    lease: Lease,
    previous_epoch: Option<BrokerEpoch>,
}

impl Session {
    async fn register(&mut self) -> Result<BrokerEpoch, ApiError> {
        let deadline = self.config.registration_timeout.map(|timeout| Instant::now() + timeout);
        loop {
            let address = self.candidates.next().await;
            let error = match self.try_register(&address).await {
                Ok(epoch) => {
                    self.refusal.send_replace(None);
                    return Ok(epoch);
                }
                Err(status) => error::from_status(&status),
            };
            let before = self.refusal.send_replace(Some(error.clone()));
            if before.is_none_or(|before| before.name != error.name) {
                warn!(broker = %self.config.broker, address, %error, "not registered yet");
            }
            let passing = match error.name {
                ErrorName::InconsistentClusterId | ErrorName::InvalidRegistration | ErrorName::UnsupportedVersion => {
                    false
                }
                ErrorName::DuplicateBrokerRegistration => deadline.is_none_or(|deadline| Instant::now() < deadline),
                // No controller answers, or none in time: a broker that ends would only make it worse.
                _ => true,
            };
            if !passing {
                return Err(error);
            }
        }
    }

    async fn try_register(&mut self, address: &str) -> Result<BrokerEpoch, Status> {
        let channel = connect(&self.config, address).await.map_err(|error| Status::unavailable(error.to_string()))?;
        let config = &self.config;
        let mut request = Request::new(RegisterRequest {
            cluster_id: config.cluster.to_string(),
            broker: config.broker.get(),
            incarnation: config.incarnation.to_string(),
            endpoints: self.probe.endpoints.iter().map(endpoint_to_wire).collect(),
            probe: probe_to_wire(&self.probe.probe),
            kind: config.kind.to_recorded(),
            rack: config.rack.clone(),
            features: features_to_wire(&config.features),
            directories: self.online_directories(),
            previous_epoch: self.previous_epoch.map(BrokerEpoch::get),
        });
        request.set_timeout(REGISTER_TIMEOUT);
        let reply = BrokerClient::new(channel).register(request).await?.into_inner();
        Ok(BrokerEpoch::new(reply.broker_epoch))
    }

    /// Those that have not failed.
    fn online_directories(&self) -> Vec<String> {
        let wish = self.wish.borrow();
        let online = self.config.directories.iter().filter(|directory| !wish.offline.contains(directory));
        online.map(ToString::to_string).collect()
    }

    /// Keeps a stream to the active controller, until a heartbeat is refused that only a registration can mend.
    async fn heartbeat_until_stale(&mut self, epoch: BrokerEpoch) {
        loop {
            let address = self.candidates.next().await;
            let parted = self.heartbeat(&address, epoch).await;
            debug!(address, ?parted, "heartbeat stream over");
            match parted {
                // Ended without a word: the same node is the best guess, and says otherwise if it is not.
                Parted::Ended => self.candidates.prefer(&address),
                Parted::Refused(status) if needs_registration(error::from_status(&status).name) => return,
                Parted::Refused(status) => self.candidates.learn(&status),
                Parted::Unanswered | Parted::WithoutLease => self.candidates.pass_over(&address),
            }
        }
    }

    /// The metadata has come further: a lease may have waited for it.
    fn take_up_lease(&mut self) {
        let lease_until = self.lease.usable_until(self.cache.next_offset());
        self.standing
            .send_if_modified(|standing| std::mem::replace(&mut standing.lease_until, lease_until) != lease_until);
    }

    async fn heartbeat(&mut self, address: &str, epoch: BrokerEpoch) -> Parted {
        let channel = match connect(&self.config, address).await {
            Ok(channel) => channel,
            Err(error) => return Parted::Refused(Status::unavailable(error.to_string())),
        };
        let (sender, requests) = mpsc::channel(HEARTBEATS_OUTSTANDING_MAX);
        let mut stream = HeartbeatStream::new(self, epoch, sender);
        stream.send();
        let mut client = BrokerClient::new(channel);
        match timeout(FIRST_PATIENCE, client.heartbeat(ReceiverStream::new(requests))).await {
            Ok(Ok(replies)) => stream.run(replies.into_inner()).await,
            Ok(Err(status)) => Parted::Refused(status),
            Err(_) => Parted::Unanswered,
        }
    }
}

/// Whether a refused heartbeat leads back to the registration. That is also where a broker ends, by name, that does not
/// support a level which was finalized while it was fenced.
fn needs_registration(refusal: ErrorName) -> bool {
    matches!(refusal, ErrorName::StaleBrokerEpoch | ErrorName::UnsupportedVersion)
}

/// Why a heartbeat stream is over.
#[derive(Debug)]
enum Parted {
    /// Without a word.
    Ended,
    Refused(Status),
    /// The controller is paused or out of reach: there may be another one by now.
    Unanswered,
    /// The controller answers and grants no lease to a broker that is not fenced, as one does that has lost its
    /// majority: there may be another one by now.
    WithoutLease,
}

/// One stream to one controller.
struct HeartbeatStream<'a> {
    session: &'a mut Session,
    epoch: BrokerEpoch,
    requests: mpsc::Sender<HeartbeatRequest>,
    interval: Duration,
    /// Sequence and time of the heartbeats not yet answered: a lease runs from when its request was sent.
    outstanding: VecDeque<(u64, Instant)>,
    sequence: u64,
    next_due: Instant,
    patience: Duration,
    /// Since when it has been unfenced on this stream without a lease.
    without_lease: Option<Instant>,
}

impl<'a> HeartbeatStream<'a> {
    fn new(session: &'a mut Session, epoch: BrokerEpoch, requests: mpsc::Sender<HeartbeatRequest>) -> Self {
        let next_due = Instant::now();
        Self {
            session,
            epoch,
            requests,
            interval: FIRST_INTERVAL,
            outstanding: VecDeque::new(),
            sequence: 0,
            next_due,
            patience: FIRST_PATIENCE,
            without_lease: None,
        }
    }

    async fn run(&mut self, mut replies: Streaming<HeartbeatReply>) -> Parted {
        let mut wish = self.session.wish.clone();
        let mut metadata = self.session.cache.changes();
        loop {
            tokio::select! {
                biased;
                reply = replies.message() => match reply {
                    Ok(Some(reply)) => self.on_reply(&reply),
                    Ok(None) => return Parted::Ended,
                    Err(status) => return Parted::Refused(status),
                },
                () = at(self.unanswered_at()) => return Parted::Unanswered,
                () = at(self.without_lease.map(|since| since + self.patience)) => return Parted::WithoutLease,
                Ok(()) = wish.changed() => self.send(),
                Ok(()) = metadata.changed() => {
                    self.session.take_up_lease();
                    if self.is_awaited(&metadata.borrow_and_update().clone()) {
                        self.send();
                    }
                }
                () = sleep_until(self.next_due) => self.send(),
            }
        }
    }

    /// When the patience with the oldest heartbeat ends.
    fn unanswered_at(&self) -> Option<Instant> {
        self.outstanding.front().map(|(_, sent)| *sent + self.patience)
    }

    /// Whether someone waits for this broker to say how far it has replayed: itself to be unfenced, or another
    /// broker's controlled shutdown to pass its barrier.
    fn is_awaited(&self, image: &MetadataImage) -> bool {
        self.session.standing.borrow().fenced
            || image.brokers.values().any(|broker| broker.in_controlled_shutdown && !broker.fenced)
    }

    fn send(&mut self) {
        let now = Instant::now();
        self.next_due = now + self.interval;
        self.sequence += 1;
        let wish = self.session.wish.borrow().clone();
        let request = HeartbeatRequest {
            broker: self.session.config.broker.get(),
            broker_epoch: self.epoch.get(),
            metadata_offset: self.session.cache.next_offset().get(),
            want_fence: false,
            want_shutdown: wish.shut_down,
            sequence: self.sequence,
            offline_directories: wish.offline.iter().map(ToString::to_string).collect(),
            disk_problems: wish.disk_problems,
        };
        // Full: the controller has not read the last ones; what it will read is as good.
        if self.requests.try_send(request).is_ok() {
            self.outstanding.push_back((self.sequence, now));
        }
    }

    fn on_reply(&mut self, reply: &HeartbeatReply) {
        let sent = self.sent_at(reply.sequence);
        self.session.told.send_replace(Offset::new(reply.metadata_offset));
        if reply.interval_ms > 0 {
            self.interval = Duration::from_millis(reply.interval_ms.into());
        }
        if reply.lease_ms > 0 {
            // Three controllers can be tried within one lease, and a lost reply is no reason to leave.
            self.patience = (Duration::from_millis(reply.lease_ms.into()) / 3).max(2 * self.interval);
        }
        self.without_lease = match self.without_lease {
            _ if reply.fenced || reply.lease_ms > 0 => None,
            since => since.or(Some(Instant::now())),
        };
        let lease = sent.filter(|_| reply.lease_ms > 0).map(|at| at + Duration::from_millis(reply.lease_ms.into()));
        if reply.fenced {
            self.session.lease.revoke();
        } else if let Some(until) = lease {
            self.session.lease.grant(until, Offset::new(reply.metadata_offset), Instant::now());
        }
        let lease_until = self.session.lease.usable_until(self.session.cache.next_offset());
        self.session.standing.send_modify(|standing| {
            *standing = Standing {
                epoch: Some(self.epoch),
                fenced: reply.fenced,
                lease_until,
                may_stop: reply.should_shut_down,
            };
        });
    }

    /// When the answered request was sent; the older ones will not be answered any more.
    fn sent_at(&mut self, answered: u64) -> Option<Instant> {
        let mut sent = None;
        while let Some((_, at)) = self.outstanding.pop_front_if(|(sequence, _)| *sequence <= answered) {
            sent = Some(at);
        }
        sent
    }
}

pub(super) async fn at(instant: Option<Instant>) {
    match instant {
        Some(instant) => sleep_until(instant).await,
        None => std::future::pending().await,
    }
}
