//! The follower's side of replication: one task for each broker that is followed, and one stream to it.
//!
//! The owners of the logs say where their followers stand; a fetcher carries that to the leader and its answers back.
//! It decides nothing: what an answer means is the replica's affair. A position is held until its answer has come, so
//! that a new stream begins with what the broken one has left open.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use quorate_client::agent::Standing;
use quorate_client::network::Network;
use quorate_log::{FORMAT, LogOffset};
use quorate_metadata::ids::{BrokerId, LeaderEpoch, TopicPartition};
use quorate_metadata::{ErrorName, MetadataImage};
use quorate_proto::error;
use quorate_proto::log::log_client::LogClient;
use quorate_proto::log::{ReplicateReply, ReplicateRequest, ReplicatedPartition};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep_until, timeout};
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::{Channel, Endpoint};
use tracing::debug;

use super::replica::{Position, Source, Supplied};
use super::shard::{Command, ShardHandle};
use super::wire;

const CONNECT_TIMEOUT: Duration = Duration::from_millis(500);
const KEEP_ALIVE_INTERVAL: Duration = Duration::from_secs(1);
const KEEP_ALIVE_TIMEOUT: Duration = Duration::from_secs(2);

/// A leader that does not answer may be about to be replaced: the pause stays short at first.
const RETRY_MIN: Duration = Duration::from_millis(20);
const RETRY_MAX: Duration = Duration::from_millis(500);

/// An answer of many partitions, each with a batch or more.
const REPLY_BYTES_MAX: usize = 64 << 20;

/// Requests on their way; more wait with their positions.
const REQUESTS_MAX: usize = 8;

/// Positions in one request, of about 50 bytes each: far below gRPC's default limit of 4 MiB, and the owner of the
/// leader's logs takes them in one round of a few milliseconds.
const POSITIONS_PER_REQUEST_MAX: usize = 2_000;

/// Which address to dial for a broker that announces one.
pub type Dial = Arc<dyn Fn(BrokerId, &str) -> String + Send + Sync>;

/// How other brokers are reached.
#[derive(Clone)]
pub struct Dialing {
    pub dial: Dial,
    pub network: Network,
}

/// What an owner wants of a fetcher.
enum Wish {
    Fetch(Source, Position, ShardHandle),
    Forget(TopicPartition),
}

/// A handle; clones share the fetchers.
#[derive(Clone)]
pub struct Fetchers {
    inner: Arc<Inner>,
}

struct Inner {
    runtime: tokio::runtime::Handle,
    ground: Ground,
    running: Mutex<Running>,
}

#[derive(Default)]
struct Running {
    /// Never more waiting than replicas, because each stands in one place until it is answered.
    by_leader: BTreeMap<BrokerId, mpsc::UnboundedSender<Wish>>,
    tasks: JoinSet<()>,
}

/// What every fetcher needs to know.
#[derive(Clone)]
struct Ground {
    broker: BrokerId,
    metadata: watch::Receiver<MetadataImage>,
    standing: watch::Receiver<Standing>,
    dialing: Dialing,
}

impl Fetchers {
    /// Their tasks end when the last handle is gone.
    pub fn new(
        broker: BrokerId,
        metadata: watch::Receiver<MetadataImage>,
        standing: watch::Receiver<Standing>,
        dialing: Dialing,
    ) -> Self {
        let ground = Ground { broker, metadata, standing, dialing };
        let inner = Inner { runtime: tokio::runtime::Handle::current(), ground, running: Mutex::default() };
        Self { inner: Arc::new(inner) }
    }

    /// The replica wants what its leader has from there on.
    pub fn fetch(&self, source: Source, position: Position, shard: ShardHandle) {
        let mut running = self.running();
        let Running { by_leader, tasks } = &mut *running;
        let sender = by_leader.entry(source.leader).or_insert_with(|| {
            let (sender, commands) = mpsc::unbounded_channel();
            let fetcher = Fetcher::new(source.leader, self.inner.ground.clone());
            tasks.spawn_on(fetcher.run(commands), &self.inner.runtime);
            sender
        });
        // It ends only with this.
        let _ = sender.send(Wish::Fetch(source, position, shard));
    }

    /// The replica follows no one.
    pub fn forget(&self, id: TopicPartition) {
        self.forget_where(id, |_| true);
    }

    /// The replica follows no one but `leader`.
    pub fn only(&self, id: TopicPartition, leader: BrokerId) {
        self.forget_where(id, |other| other != leader);
    }

    fn forget_where(&self, id: TopicPartition, is_meant: impl Fn(BrokerId) -> bool) {
        for (_, sender) in self.running().by_leader.iter().filter(|(leader, _)| is_meant(**leader)) {
            let _ = sender.send(Wish::Forget(id));
        }
    }

    fn running(&self) -> std::sync::MutexGuard<'_, Running> {
        self.inner.running.lock().expect("no one panics while holding the fetchers")
    }
}

struct Fetcher {
    leader: BrokerId,
    ground: Ground,
    held: BTreeMap<TopicPartition, Held>,
    /// To be sent with the next requests.
    due: BTreeSet<TopicPartition>,
    /// Sent on this stream and not answered, wanted or not.
    asked: BTreeSet<TopicPartition>,
    /// Something is to be asked again before its answer has come. That must not be taken for the answer of a later
    /// leadership, so that the stream is left.
    is_stale: bool,
    /// To be sent again, from then on.
    later: BTreeSet<(Instant, TopicPartition)>,
}

struct Held {
    source: Source,
    position: Position,
    shard: ShardHandle,
    /// Grows with every refusal in a row.
    pause: Duration,
}

/// Why a stream is over.
enum Over {
    Stopped,
    Broken(String),
}

impl Fetcher {
    fn new(leader: BrokerId, ground: Ground) -> Self {
        Self {
            leader,
            ground,
            held: BTreeMap::new(),
            due: BTreeSet::new(),
            asked: BTreeSet::new(),
            is_stale: false,
            later: BTreeSet::new(),
        }
    }

    async fn run(mut self, mut commands: mpsc::UnboundedReceiver<Wish>) {
        let mut pause = RETRY_MIN;
        loop {
            while self.held.is_empty() {
                let Some(command) = commands.recv().await else { return };
                self.take(command);
            }
            match self.stream(&mut commands, &mut pause).await {
                Over::Stopped => return,
                Over::Broken(reason) => debug!(leader = %self.leader, reason, "replication stream over"),
            }
            if !self.wait(&mut commands, pause).await {
                return;
            }
            pause = (pause * 2).min(RETRY_MAX);
        }
    }

    /// Takes what comes meanwhile. False: there is nothing to do any more.
    async fn wait(&mut self, commands: &mut mpsc::UnboundedReceiver<Wish>, pause: Duration) -> bool {
        let until = Instant::now() + pause;
        loop {
            tokio::select! {
                command = commands.recv() => match command {
                    Some(command) => self.take(command),
                    None => return false,
                },
                () = sleep_until(until) => return true,
            }
        }
    }

    fn take(&mut self, command: Wish) {
        match command {
            Wish::Fetch(source, position, shard) => {
                self.is_stale |= self.asked.contains(&position.id);
                let pause = self.held.get(&position.id).map_or(RETRY_MIN, |held| held.pause);
                self.due.insert(position.id);
                self.held.insert(position.id, Held { source, position, shard, pause });
            }
            // An answer that is under way finds nothing here, and is dropped: mass changes of role break no stream.
            Wish::Forget(id) => {
                self.held.remove(&id);
                self.due.remove(&id);
            }
        }
    }

    async fn stream(&mut self, commands: &mut mpsc::UnboundedReceiver<Wish>, pause: &mut Duration) -> Over {
        let channel = match self.connect().await {
            Ok(channel) => channel,
            Err(reason) => return Over::Broken(reason),
        };
        self.later.clear();
        self.is_stale = false;
        self.asked.clear();
        self.due = self.held.keys().copied().collect();
        let (requests, outbound) = mpsc::channel(REQUESTS_MAX);
        let mut standing = self.ground.standing.clone();
        let broker_epoch = standing.borrow_and_update().epoch;
        let mut client = LogClient::new(channel).max_decoding_message_size(REPLY_BYTES_MAX);
        // The leader answers the call at once, before the first position.
        let opened = timeout(CONNECT_TIMEOUT, client.replicate(ReceiverStream::new(outbound))).await;
        let mut replies = match opened {
            Ok(Ok(replies)) => replies.into_inner(),
            Ok(Err(status)) => return Over::Broken(status.to_string()),
            Err(_) => return Over::Broken("not answered in time".to_owned()),
        };
        loop {
            tokio::select! {
                reply = replies.message() => match reply {
                    Ok(Some(reply)) => {
                        *pause = RETRY_MIN;
                        self.on_reply(reply).await;
                    }
                    Ok(None) => return Over::Broken("ended".to_owned()),
                    Err(status) => return Over::Broken(status.to_string()),
                },
                command = commands.recv() => {
                    let Some(command) = command else { return Over::Stopped };
                    self.take(command);
                    while let Ok(command) = commands.try_recv() {
                        self.take(command);
                    }
                    if self.is_stale {
                        return Over::Broken("what was asked is not wanted any more".to_owned());
                    }
                }
                permit = requests.reserve(), if !self.due.is_empty() => match permit {
                    Ok(permit) => permit.send(self.request()),
                    Err(_) => return Over::Broken("closed".to_owned()),
                },
                // The leader takes no one into the ISR that asked under another registration.
                Ok(()) = standing.changed() => {
                    if standing.borrow_and_update().epoch != broker_epoch {
                        return Over::Broken("this broker has registered anew".to_owned());
                    }
                }
                () = at(self.later.first().map(|(at, _)| *at)) => self.retry(),
            }
        }
    }

    async fn connect(&self) -> Result<Channel, String> {
        let announced = {
            let image = self.ground.metadata.borrow();
            let registered = image.broker(self.leader).ok_or_else(|| "not registered".to_owned())?;
            let endpoint = registered.endpoints.first().ok_or_else(|| "has no endpoint".to_owned())?;
            endpoint.authority()
        };
        let Dialing { dial, network } = &self.ground.dialing;
        let endpoint = Endpoint::from_shared(format!("http://{}", dial(self.leader, &announced)))
            .map_err(|error| error.to_string())?
            .connect_timeout(CONNECT_TIMEOUT)
            .tcp_nodelay(true)
            .http2_keep_alive_interval(KEEP_ALIVE_INTERVAL)
            .keep_alive_timeout(KEEP_ALIVE_TIMEOUT)
            .keep_alive_while_idle(true)
            .initial_stream_window_size(4 << 20)
            .initial_connection_window_size(8 << 20);
        network.open(&endpoint).await.map_err(|error| error.to_string())
    }

    /// What was refused is asked for again when its pause is over.
    fn retry(&mut self) {
        let now = Instant::now();
        while let Some((at, id)) = self.later.pop_first() {
            if at > now {
                self.later.insert((at, id));
                return;
            }
            if self.held.contains_key(&id) {
                self.due.insert(id);
            }
        }
    }

    fn request(&mut self) -> ReplicateRequest {
        let mut positions = Vec::new();
        while positions.len() < POSITIONS_PER_REQUEST_MAX
            && let Some(id) = self.due.pop_first()
        {
            let Some(held) = self.held.get(&id) else { continue };
            positions.push(wire::position_to_wire(&held.position));
            self.asked.insert(id);
        }
        let broker_epoch = self.ground.standing.borrow().epoch.map_or(-1, |epoch| epoch.get());
        ReplicateRequest { broker: self.ground.broker.get(), broker_epoch, positions, frame_version: FORMAT }
    }

    /// Hands each answer to the owner of its replica, who then says where that stands. Waits while an owner has enough
    /// to do: the leader is then not read from either.
    async fn on_reply(&mut self, reply: ReplicateReply) {
        let mut by_shard: Vec<(ShardHandle, Vec<Supplied>)> = Vec::new();
        for partition in reply.partitions {
            let Some((shard, supplied)) = self.supplied(partition) else { continue };
            match by_shard.iter_mut().find(|(other, _)| other.directory() == shard.directory()) {
                Some((_, list)) => list.push(supplied),
                None => by_shard.push((shard, vec![supplied])),
            }
        }
        for (shard, supplied) in by_shard {
            // The broker is stopping: so is this.
            let _ = shard.send(Command::Supplied(supplied)).await;
        }
    }

    /// `None`: nothing for the replica. It was forgotten, or is to be asked for again a little later.
    fn supplied(&mut self, partition: ReplicatedPartition) -> Option<(ShardHandle, Supplied)> {
        let id = wire::replica_from_wire(partition.replica.as_ref()).ok()?;
        self.asked.remove(&id);
        let held = self.held.get_mut(&id)?;
        let refused = partition.error.as_ref().map(|error| error::from_item(error).name);
        if let Some(name) = refused
            && name != ErrorName::OffsetOutOfRange
        {
            debug!(partition = %id, leader = %self.leader, error = %name, "fetch refused");
            self.later.insert((Instant::now() + held.pause, id));
            held.pause = (held.pause * 2).min(RETRY_MAX);
            return None;
        }
        let held = self.held.remove(&id)?;
        let supplied = Supplied {
            id,
            source: held.source,
            error: refused,
            high_watermark: LogOffset(partition.high_watermark),
            log_start: LogOffset(partition.log_start_offset),
            diverging: partition.diverging.map(|end| (LeaderEpoch::new(end.leader_epoch), LogOffset(end.end_offset))),
            gaps_below: LogOffset(partition.gaps_below_offset),
            batches: partition.batches,
        };
        Some((held.shard, supplied))
    }
}

async fn at(instant: Option<Instant>) {
    match instant {
        Some(instant) => sleep_until(instant).await,
        None => std::future::pending().await,
    }
}

#[cfg(test)]
mod tests;
