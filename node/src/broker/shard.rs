//! The owner of a log directory: one thread, so that a replica's state has one writer, and one write to the disk
//! covers whatever has come in for any of its replicas meanwhile.

mod handle;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use quorate_client::agent::Standing;
use quorate_client::world;
use quorate_log::leadership::Proposal;
use quorate_log::{LogDirectory, LogError, Writes};
use quorate_metadata::ids::{BrokerId, DirectoryId, LeaderEpoch, TopicPartition};
use quorate_metadata::{ApiError, ErrorName, MetadataImage};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::{Instant, MissedTickBehavior, interval, sleep_until};
use tracing::{error, info};

use super::fetchers::Fetchers;
use super::pacing::{Pacing, adding};
use super::replica::{Effects, Replica, Sink, not_leader};
use super::replicas::{ReplicaHandle, Replicas};
use super::situation::Situation;
use crate::machine::{Worker, Workers};
use handle::Inbox;
pub use handle::{Command, ShardHandle};

/// One commit takes what is waiting, up to so much.
const ROUND_COMMANDS_MAX: usize = 256;
const ROUND_BYTES_MAX: usize = 8 << 20;

/// Followers that lag are looked for so often.
const TICK: Duration = Duration::from_millis(250);

/// Retention and checkpoints of the high watermark.
const HOUSEKEEPING: Duration = Duration::from_secs(5);

/// A follower that is in step hears of a new high watermark with the next records, or after so long: told at once, it
/// would have to come again before it could be sent records.
const BOUNDS_LINGER: Duration = Duration::from_millis(5);

/// What all owners on a broker share.
#[derive(Clone)]
pub struct Surroundings {
    pub broker: BrokerId,
    pub replicas: Replicas,
    pub fetchers: Fetchers,
    pub proposals: mpsc::UnboundedSender<(TopicPartition, Proposal)>,
    /// Directories that fail, and why.
    pub failures: mpsc::UnboundedSender<(DirectoryId, String)>,
    pub metadata: watch::Receiver<MetadataImage>,
    pub standing: watch::Receiver<Standing>,
    /// Closed when the owners have to end at once.
    pub plane: watch::Receiver<()>,
}

/// Opens the logs of a directory, and starts its owner. Where that fails, the directory is offline.
pub fn start(directory: LogDirectory, around: Surroundings, workers: Workers) -> (ShardHandle, Worker) {
    let (handle, inbox) = ShardHandle::new(&directory);
    let mut shard = Shard {
        around,
        directory,
        handle: handle.clone(),
        owned: BTreeMap::new(),
        failure: None,
        started: Instant::now(),
        bounds_due_at: None,
        lagging: BTreeSet::new(),
        pacing: Pacing::default(),
        throttled: BTreeSet::new(),
        seen: MetadataImage::default(),
    };
    match shard.open_all() {
        Ok(()) => {
            let path = handle.path().display();
            info!(directory = %handle.directory(), %path, replicas = shard.owned.len(), "log directory opened");
        }
        Err(error) => shard.fail(&error),
    }
    let worker = workers.start(format!("log-{}", handle.directory()), async move {
        let Inbox { commands, running } = inbox;
        shard.run(commands).await;
        drop(running);
    });
    (handle, worker)
}

struct Shard {
    around: Surroundings,
    directory: LogDirectory,
    handle: ShardHandle,
    owned: BTreeMap<TopicPartition, Replica>,
    /// Why the directory is offline, once it is.
    failure: Option<String>,
    started: Instant,
    bounds_due_at: Option<Instant>,
    /// The leaders whose followers are to be told where the log begins and what is committed.
    lagging: BTreeSet<TopicPartition>,
    pacing: Pacing,
    /// Followers that go on later.
    throttled: BTreeSet<(i64, TopicPartition)>,
    /// The metadata that was last acted on.
    seen: MetadataImage,
}

/// What came in together and is written together.
#[derive(Default)]
struct Round {
    writes: Writes,
    touched: BTreeSet<TopicPartition>,
    stopped: Option<oneshot::Sender<bool>>,
}

impl Shard {
    async fn run(mut self, mut commands: mpsc::Receiver<Command>) {
        let mut tick = interval(TICK);
        let mut housekeeping = interval(HOUSEKEEPING);
        for timer in [&mut tick, &mut housekeeping] {
            timer.set_missed_tick_behavior(MissedTickBehavior::Delay);
        }
        let mut metadata = self.around.metadata.clone();
        let mut plane = self.around.plane.clone();
        loop {
            let mut round = Round::default();
            tokio::select! {
                command = commands.recv() => {
                    let Some(command) = command else { return };
                    self.take(&mut round, command, &mut commands);
                }
                _ = plane.changed() => return,
                () = at(self.bounds_due_at) => self.tell_bounds(),
                () = at(self.next_throttled()) => self.go_on(&mut round),
                _ = tick.tick() => self.tick(&mut round),
                _ = housekeeping.tick() => self.housekeep(&mut round),
                changed = metadata.changed() => {
                    if changed.is_err() { return }
                    let image = metadata.borrow_and_update().clone();
                    self.on_metadata(&mut round, image);
                }
            }
            if let Some(done) = self.end(round) {
                // The proof of a clean stop is worth what is on stable storage then.
                let synced = self.directory.sync();
                if let Err(error) = &synced {
                    error!(directory = %self.handle.directory(), %error, "cannot sync, so that the stop is not clean");
                }
                // Nobody waits when the broker was dropped.
                let _ = done.send(synced.is_ok() && self.failure.is_none());
                return;
            }
        }
    }

    fn take(&mut self, round: &mut Round, first: Command, commands: &mut mpsc::Receiver<Command>) {
        self.handle(round, first);
        for _ in 1..ROUND_COMMANDS_MAX {
            if round.writes.size_bytes() > ROUND_BYTES_MAX {
                return;
            }
            let Ok(command) = commands.try_recv() else { return };
            self.handle(round, command);
        }
    }

    /// Writes what the round has staged, and only then tells anyone.
    fn end(&mut self, round: Round) -> Option<oneshot::Sender<bool>> {
        if let Err(error) = self.directory.commit(round.writes) {
            self.fail(&error);
        }
        let (now_ms, may_lead) = (self.now_ms(), self.may_lead());
        for id in round.touched {
            let mut effects = Effects::default();
            if let Some(replica) = self.owned.get_mut(&id) {
                replica.settle(may_lead, now_ms, &mut effects);
            }
            self.tell(id, effects);
        }
        round.stopped
    }

    fn tell(&mut self, id: TopicPartition, effects: Effects) {
        for proposal in effects.proposals {
            // Nobody listens when the broker is stopping: then nothing is changed.
            let _ = self.around.proposals.send(proposal);
        }
        for (source, position) in effects.positions {
            self.around.fetchers.fetch(source, position, self.handle.clone());
        }
        if let Some(at_ms) = effects.again_at_ms {
            self.throttled.insert((at_ms, id));
        }
        if effects.bounds_due {
            self.lagging.insert(id);
            self.bounds_due_at.get_or_insert_with(|| Instant::now() + BOUNDS_LINGER);
        }
    }

    fn handle(&mut self, round: &mut Round, command: Command) {
        if self.failure.is_some() {
            return self.refuse(round, command);
        }
        if let Err(error) = self.try_handle(round, command) {
            self.fail(&error);
        }
    }

    fn try_handle(&mut self, round: &mut Round, command: Command) -> Result<(), LogError> {
        let now_ms = self.now_ms();
        match command {
            Command::Lead { id, leader_epoch } => self.lead(round, id, leader_epoch)?,
            Command::Follow { id, source } => {
                round.touched.insert(id);
                self.replica(id)?.follow(&mut round.writes, source)?;
                self.set_pace(id, false);
                self.around.fetchers.only(id, source.leader);
            }
            Command::Suspend { id, leader_epoch } => {
                round.touched.insert(id);
                self.replica(id)?.suspend(leader_epoch);
                self.around.fetchers.forget(id);
            }
            Command::Delete { id, done } => {
                self.delete(round, id)?;
                let _ = done.send(());
            }
            Command::Produce(id, records) => {
                let may_lead = self.may_lead();
                round.touched.insert(id);
                match self.owned.get_mut(&id) {
                    Some(replica) => replica.produce(&mut round.writes, records, may_lead),
                    None => drop(records.reply.send(Err(not_leader(id)))),
                }
            }
            Command::Positions { follower, positions, sink } => {
                for position in positions {
                    round.touched.insert(position.id);
                    match self.owned.get_mut(&position.id) {
                        Some(replica) => replica.take_position(follower, position, &sink, now_ms),
                        None => refuse_position(&sink, position.id, ErrorName::NotLeaderOrFollower),
                    }
                }
            }
            Command::Supplied(supplied) => {
                for supplied in supplied {
                    round.touched.insert(supplied.id);
                    let bytes = supplied.batches.iter().map(bytes::Bytes::len).sum();
                    if let Some(replica) = self.owned.get_mut(&supplied.id) {
                        replica.supply(&mut round.writes, &supplied)?;
                    }
                    self.slow_down(supplied.id, bytes);
                }
            }
            Command::Outcome { id, proposal, outcome } => {
                round.touched.insert(id);
                if let Some(replica) = self.owned.get_mut(&id) {
                    replica.on_outcome(&proposal, outcome, now_ms);
                }
            }
            Command::Ask(id, question) => question(self.owned.get(&id), now_ms),
            Command::Stop(done) => {
                self.owned.values_mut().for_each(|replica| replica.checkpoint(&mut round.writes));
                round.stopped = Some(done);
            }
        }
        Ok(())
    }

    /// The directory is offline: nothing of it is served, and whoever asks hears why.
    fn refuse(&mut self, round: &mut Round, command: Command) {
        match command {
            Command::Produce(_, records) => drop(records.reply.send(Err(self.offline()))),
            Command::Positions { positions, sink, .. } => {
                positions.iter().for_each(|at| refuse_position(&sink, at.id, ErrorName::KafkaStorageError));
            }
            Command::Ask(_, question) => question(None, self.now_ms()),
            // What is left on the disk is a stray when that comes back.
            Command::Delete { id, done } => {
                self.around.replicas.remove(id);
                let _ = done.send(());
            }
            Command::Stop(done) => round.stopped = Some(done),
            Command::Lead { .. }
            | Command::Follow { .. }
            | Command::Suspend { .. }
            | Command::Supplied(_)
            | Command::Outcome { .. } => {}
        }
    }

    fn offline(&self) -> ApiError {
        let reason = self.failure.as_deref().unwrap_or_default();
        ApiError::new(
            ErrorName::KafkaStorageError,
            format!("log directory {} is offline: {reason}", self.handle.directory()),
        )
    }

    /// Takes the directory offline with all its replicas, and no other.
    fn fail(&mut self, error: &LogError) {
        if self.failure.is_some() {
            return;
        }
        error!(directory = %self.handle.directory(), %error, replicas = self.owned.len(), "log directory failed; its replicas are offline");
        self.failure = Some(error.to_string());
        for (id, replica) in std::mem::take(&mut self.owned) {
            self.around.fetchers.forget(id);
            replica.abandon(ErrorName::KafkaStorageError);
        }
        // Nobody listens when the broker is stopping.
        let _ = self.around.failures.send((self.handle.directory(), error.to_string()));
    }

    fn lead(&mut self, round: &mut Round, id: TopicPartition, leader_epoch: LeaderEpoch) -> Result<(), LogError> {
        let now_ms = self.now_ms();
        let situation = Situation::of(&self.around.metadata.borrow(), id);
        // The metadata may have gone on since: what it says then is about to be told as well.
        let Some(situation) = situation.filter(|now| now.partition.leader_epoch == leader_epoch) else {
            return Ok(());
        };
        round.touched.insert(id);
        self.around.fetchers.forget(id);
        self.replica(id)?.lead(&mut round.writes, &situation, now_ms);
        Ok(())
    }

    fn delete(&mut self, round: &mut Round, id: TopicPartition) -> Result<(), LogError> {
        self.around.fetchers.forget(id);
        self.around.replicas.remove(id);
        let Some(replica) = self.owned.remove(&id) else { return Ok(()) };
        drop(replica.abandon(ErrorName::UnknownTopicOrPartition));
        // What is staged of the log must not come after its removal.
        self.directory.commit(std::mem::take(&mut round.writes))?;
        self.directory.remove(id)?;
        // It may come to another directory now, and must not be in both after a loss of power.
        self.directory.sync()
    }

    fn replica(&mut self, id: TopicPartition) -> Result<&mut Replica, LogError> {
        if !self.owned.contains_key(&id) {
            self.open(id)?;
        }
        Ok(self.owned.get_mut(&id).expect("it was just opened"))
    }

    fn open_all(&mut self) -> Result<(), LogError> {
        self.directory.partitions()?.into_iter().try_for_each(|id| self.open(id))
    }

    fn open(&mut self, id: TopicPartition) -> Result<(), LogError> {
        let log = self.directory.log(id)?;
        let reader = log.reader();
        let replica = Replica::new(self.around.broker, log);
        let handle = ReplicaHandle { shard: self.handle.clone(), published: replica.published(), reader };
        self.around.replicas.insert(id, handle);
        self.owned.insert(id, replica);
        Ok(())
    }

    fn tell_bounds(&mut self) {
        self.bounds_due_at = None;
        for id in std::mem::take(&mut self.lagging) {
            if let Some(replica) = self.owned.get_mut(&id) {
                replica.tell_bounds();
            }
        }
    }

    fn next_throttled(&self) -> Option<Instant> {
        let (at_ms, _) = self.throttled.first()?;
        Some(self.started + Duration::from_millis(u64::try_from(*at_ms).unwrap_or(0)))
    }

    fn go_on(&mut self, round: &mut Round) {
        let now_ms = self.now_ms();
        while let Some((at_ms, id)) = self.throttled.pop_first() {
            if at_ms > now_ms {
                self.throttled.insert((at_ms, id));
                return;
            }
            round.touched.insert(id);
        }
    }

    /// The replica has fetched so much: where it is throttled it waits before it asks for more.
    fn slow_down(&mut self, id: TopicPartition, bytes: usize) {
        let now_ms = self.now_ms();
        let not_before = {
            let image = self.around.metadata.borrow();
            self.pacing.spend(&image, self.around.broker, id, bytes, now_ms)
        };
        if let (Some(replica), Some(at_ms)) = (self.owned.get_mut(&id), not_before) {
            replica.set_pace(|pace| pace.not_before_ms = at_ms);
        }
    }

    /// How the replica may fetch by what the metadata says now. Its wait ends with the throttle that it was for.
    fn set_pace(&mut self, id: TopicPartition, is_forgiven: bool) {
        let image = self.around.metadata.borrow();
        let operation = adding(&image, self.around.broker, id);
        let paused = operation.is_some_and(|operation| operation.paused);
        let throttled = operation.is_some_and(|operation| operation.throttle_bytes_per_second.is_some());
        if let Some(replica) = self.owned.get_mut(&id) {
            replica.set_pace(|pace| {
                pace.paused = paused;
                if is_forgiven || !throttled {
                    pace.not_before_ms = 0;
                }
            });
        }
    }

    fn tick(&mut self, round: &mut Round) {
        for (id, replica) in self.owned.iter_mut().filter(|(_, replica)| replica.leads()) {
            replica.tick();
            round.touched.insert(*id);
        }
    }

    fn housekeep(&mut self, round: &mut Round) {
        let wall_ms = world::wall_ms();
        let image = self.around.metadata.borrow().clone();
        for (id, replica) in &mut self.owned {
            if let Some(situation) = Situation::of(&image, *id) {
                replica.housekeep(&mut round.writes, &situation, wall_ms);
                round.touched.insert(*id);
            }
        }
    }

    /// Brokers and configs change beside the partitions, whose changes of role come as commands.
    fn on_metadata(&mut self, round: &mut Round, image: MetadataImage) {
        let now_ms = self.now_ms();
        let before = std::mem::replace(&mut self.seen, image);
        let image = &self.seen;
        let reassignments_changed = !image.reassignments.ptr_eq(&before.reassignments);
        let same_around = image.brokers.ptr_eq(&before.brokers) && image.configs.ptr_eq(&before.configs);
        let same = |id| match (image.partition(id), before.partition(id)) {
            (Some(now), Some(then)) => same_around && Arc::ptr_eq(now, then),
            _ => false,
        };
        for (id, replica) in self.owned.iter_mut().filter(|(id, replica)| replica.leads() && !same(**id)) {
            if let Some(situation) = Situation::of(image, *id) {
                replica.on_metadata(&situation, now_ms);
                round.touched.insert(*id);
            }
        }
        let is_paced = |id: &TopicPartition| reassignments_changed || !same(*id);
        let paced = self.owned.iter().filter(|(id, replica)| !replica.leads() && is_paced(id));
        let paced: Vec<TopicPartition> = paced.map(|(id, _)| *id).collect();
        if reassignments_changed {
            self.pacing.forgive();
        }
        for id in paced {
            self.set_pace(id, reassignments_changed);
            round.touched.insert(id);
        }
    }

    /// By the monotonic clock, which goes on while the process is stopped.
    fn now_ms(&self) -> i64 {
        i64::try_from(self.started.elapsed().as_millis()).unwrap_or(i64::MAX)
    }

    fn may_lead(&self) -> bool {
        self.around.standing.borrow().may_lead(Instant::now())
    }
}

fn refuse_position(sink: &Sink, id: TopicPartition, error: ErrorName) {
    use super::replica::{Answer, Refused};
    // A follower whose stream has ended comes again on another.
    let _ = sink.send(Answer { id, said: Err(Refused { error, log_start: quorate_log::LogOffset(0) }) });
}

async fn at(instant: Option<Instant>) {
    match instant {
        Some(instant) => sleep_until(instant).await,
        None => std::future::pending().await,
    }
}
