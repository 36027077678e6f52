//! The owner of a log directory: one thread, so that a replica's state has one writer, and one write to the disk
//! covers whatever has come in for any of its replicas meanwhile.
//!
//! A round costs what came in and what is due, never all replicas: opening and deleting replicas, telling leaders of new
//! metadata, and housekeeping go on in slices, and between two of them the waiting requests are served.

mod commands;
mod compacting;
mod handle;
mod metadata;
mod outage;
mod roles;
mod upkeep;

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use quorate_client::agent::LeaderCheck;
use quorate_log::leadership::Proposal;
use quorate_log::{LogDirectory, LogError, Writes};
use quorate_metadata::ids::{BrokerId, DirectoryId, TopicPartition};
use quorate_metadata::{ErrorName, MetadataImage};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::yield_now;
use tokio::time::{Instant, MissedTickBehavior, interval, sleep_until};
use tracing::{error, info};

use super::fetchers::Fetchers;
use super::pacing::Pacing;
use super::readers::Reader;
use super::replica::{Effects, Position, Replica, Source};
use super::replicas::Replicas;
use crate::machine::{Worker, Workers};
use compacting::Compactions;
use handle::Inbox;
pub use handle::{Command, RoleChange, ShardHandle};
use metadata::Untold;
pub use outage::{Outage, OutageCause};
use roles::Deletions;
use upkeep::{Checks, Housekeeping, MassChanges};

/// One commit takes what is waiting, up to so much.
const ROUND_COMMANDS_MAX: usize = 256;
const ROUND_BYTES_MAX: usize = 8 << 20;

/// Replicas that a round opens or deletes: about 50 microseconds each, so that a producer waits for 2 ms more.
const ROUND_OPENED_MAX: usize = 32;

/// How often the replicas that are due are looked at, and deletions are synced.
const TICK: Duration = Duration::from_millis(250);

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
    pub failures: mpsc::UnboundedSender<(DirectoryId, Outage)>,
    pub metadata: watch::Receiver<MetadataImage>,
    pub leaders: LeaderCheck,
    /// Closed when the owners have to end at once.
    pub plane: watch::Receiver<()>,
}

/// Starts the owner of a directory, which opens the logs that are in it beside its other work.
pub fn start(
    directory: LogDirectory,
    found: Vec<TopicPartition>,
    around: Surroundings,
    workers: Workers,
) -> (ShardHandle, Worker) {
    let (handle, inbox) = ShardHandle::new(&directory);
    info!(directory = %handle.directory(), path = %handle.path().display(), replicas = found.len(), "log directory opened");
    let shard = Shard::new(directory, found, around, handle.clone(), workers);
    let worker = workers.start(format!("log-{}", handle.directory()), async move {
        let mut inbox = inbox;
        shard.run(&mut inbox).await;
        // Last: it says that the directory is free.
        drop(inbox);
    });
    (handle, worker)
}

struct Shard {
    around: Surroundings,
    directory: LogDirectory,
    handle: ShardHandle,
    /// Boxed: the nodes of the tree are half empty where partitions come in their order.
    owned: BTreeMap<TopicPartition, Box<Replica>>,
    /// On the disk, and not opened yet.
    unopened: BTreeSet<TopicPartition>,
    deletions: Deletions,
    /// Why the directory is offline, once it is.
    failure: Option<Outage>,
    started: Instant,
    bounds_due_at: Option<Instant>,
    /// The leaders whose followers are to be told where the log begins and what is committed.
    lagging: BTreeSet<TopicPartition>,
    pacing: Pacing,
    /// Followers that go on when the disk has room.
    without_room: BTreeMap<TopicPartition, (Source, Position)>,
    /// Followers that go on later.
    throttled: BTreeSet<(i64, TopicPartition)>,
    /// The newest metadata that was looked at.
    seen: MetadataImage,
    /// The replicas that have not acted on it yet.
    untold: Untold,
    checks: Checks,
    housekeeping: Housekeeping,
    compactions: Compactions,
    mass_changes: MassChanges,
}

/// What came in together and is written together.
#[derive(Default)]
struct Round {
    writes: Writes,
    touched: BTreeSet<TopicPartition>,
    /// Replicas opened or deleted.
    opened: usize,
    stopped: Option<oneshot::Sender<bool>>,
}

impl Shard {
    fn new(
        directory: LogDirectory,
        found: Vec<TopicPartition>,
        around: Surroundings,
        handle: ShardHandle,
        workers: Workers,
    ) -> Self {
        around.replicas.place(found.iter().copied(), &handle);
        Self {
            around,
            handle,
            owned: BTreeMap::new(),
            unopened: found.into_iter().collect(),
            deletions: Deletions::default(),
            failure: None,
            started: Instant::now(),
            bounds_due_at: None,
            lagging: BTreeSet::new(),
            pacing: Pacing::default(),
            without_room: BTreeMap::new(),
            throttled: BTreeSet::new(),
            seen: MetadataImage::default(),
            untold: Untold::default(),
            checks: Checks::default(),
            housekeeping: Housekeeping::default(),
            compactions: Compactions::new(Reader::start(&format!("compaction-{}", directory.id()), workers)),
            mass_changes: MassChanges::default(),
            directory,
        }
    }

    async fn run(mut self, inbox: &mut Inbox) {
        let mut tick = interval(TICK);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut metadata = self.around.metadata.clone();
        let mut plane = self.around.plane.clone();
        let handle = self.handle.clone();
        loop {
            let mut round = Round::default();
            tokio::select! {
                command = inbox.commands.recv() => match command {
                    Some(command) => self.handle(&mut round, command),
                    None => return,
                },
                change = inbox.role_changes.recv() => match change {
                    Some(change) => self.change_role(&mut round, change),
                    None => return,
                },
                _ = plane.changed() => return,
                () = at(self.bounds_due_at) => self.tell_bounds(),
                () = at(self.next_throttled()) => self.go_on(&mut round),
                _ = tick.tick() => self.tick(&mut round),
                stepped = self.compactions.stepped() => self.on_step(&mut round, stepped),
                changed = metadata.changed() => {
                    if changed.is_err() { return }
                    let image = metadata.borrow_and_update().clone();
                    self.on_metadata(image);
                }
                () = yield_now(), if self.has_more_to_do() => {}
                () = handle.failed(), if self.failure.is_none() => self.notice_outage(),
            }
            self.take_waiting(&mut round, inbox);
            self.do_a_slice(&mut round);
            if let Some(done) = self.end(round) {
                // Nobody waits when the broker was dropped.
                let _ = done.send(self.sync_at_the_end());
                return;
            }
        }
    }

    /// What waits, requests first; each kind up to its bound.
    fn take_waiting(&mut self, round: &mut Round, inbox: &mut Inbox) {
        for _ in 1..ROUND_COMMANDS_MAX {
            if round.writes.size_bytes() > ROUND_BYTES_MAX {
                break;
            }
            let Ok(command) = inbox.commands.try_recv() else { break };
            self.handle(round, command);
        }
        for _ in 1..ROUND_COMMANDS_MAX {
            if round.opened >= ROUND_OPENED_MAX {
                break;
            }
            let Ok(change) = inbox.role_changes.try_recv() else { break };
            self.change_role(round, change);
        }
        if round.stopped.is_some() {
            while let Ok(change) = inbox.role_changes.try_recv() {
                self.change_role(round, change);
            }
        }
    }

    /// Work that nobody has to wait for as a whole.
    fn do_a_slice(&mut self, round: &mut Round) {
        self.tell_metadata(round);
        while round.opened < ROUND_OPENED_MAX
            && let Some(id) = self.unopened.pop_first()
        {
            if let Err(error) = self.open(round, id) {
                self.fail(&error);
            }
        }
    }

    fn has_more_to_do(&self) -> bool {
        !self.unopened.is_empty() || !self.untold.is_empty()
    }

    /// Writes what the round has staged, and only then tells anyone.
    fn end(&mut self, round: Round) -> Option<oneshot::Sender<bool>> {
        if let Err(error) = self.directory.commit(round.writes) {
            self.fail(&error);
        }
        self.notice_outage();
        if self.deletions.are_awaited() {
            self.finish_deletions();
        }
        let now_ms = self.now_ms();
        for id in round.touched {
            let mut effects = Effects::default();
            if let Some(replica) = self.owned.get_mut(&id) {
                let state = replica.leader_state(&self.around.leaders);
                replica.settle(state, now_ms, &mut effects);
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
        let is_scarce = !effects.positions.is_empty() && self.handle.room().is_scarce();
        for (source, position) in effects.positions {
            if is_scarce {
                self.without_room.insert(id, (source, position));
                continue;
            }
            self.around.fetchers.fetch(source, position, self.handle.clone());
        }
        if let Some(at_ms) = effects.again_at_ms {
            self.throttled.insert((at_ms, id));
        }
        if let Some(at_ms) = effects.check_at_ms {
            self.checks.by(id, at_ms);
        }
        if effects.bounds_due {
            self.lagging.insert(id);
            self.bounds_due_at.get_or_insert_with(|| Instant::now() + BOUNDS_LINGER);
        }
    }

    /// The proof of a clean stop is worth what is on stable storage then.
    fn sync_at_the_end(&mut self) -> bool {
        let changes = self.mass_changes.take_all();
        self.tell_of(changes);
        // One that is offline proves nothing, and may not answer.
        if self.failure.is_some() {
            return false;
        }
        let synced = self.directory.sync();
        if let Err(error) = &synced {
            error!(directory = %self.handle.directory(), %error, "cannot sync, so that the stop is not clean");
            self.handle.take_offline(Outage::of(error));
        }
        synced.is_ok()
    }

    /// Takes the directory offline with all its replicas, and no other.
    fn fail(&mut self, error: &LogError) {
        self.go_offline(Outage::of(error));
    }

    /// The disk has not answered in time, and does now: others lead what was led here.
    fn notice_outage(&mut self) {
        if self.failure.is_none()
            && let Some(outage) = self.handle.outage()
        {
            self.go_offline(outage);
        }
    }

    fn go_offline(&mut self, outage: Outage) {
        if self.failure.is_some() {
            return;
        }
        let (replicas, reason) = (self.owned.len() + self.unopened.len(), &outage.reason);
        error!(directory = %self.handle.directory(), reason, replicas, "log directory failed; its replicas are offline");
        self.failure = Some(outage.clone());
        self.unopened.clear();
        self.compactions.stop();
        for (id, replica) in std::mem::take(&mut self.owned) {
            self.around.fetchers.forget(id);
            replica.abandon(ErrorName::KafkaStorageError);
        }
        // What is left on the disk of those is a stray when that comes back.
        self.release_deleted();
        // Last: who waited for it has been answered.
        if self.handle.take_offline(outage.clone()) {
            // Nobody listens when the broker is stopping.
            let _ = self.around.failures.send((self.handle.directory(), outage));
        }
    }

    fn tell_bounds(&mut self) {
        self.bounds_due_at = None;
        for id in std::mem::take(&mut self.lagging) {
            if let Some(replica) = self.owned.get_mut(&id) {
                replica.tell_bounds();
            }
        }
    }

    /// By the monotonic clock, which goes on while the process is stopped.
    fn now_ms(&self) -> i64 {
        i64::try_from(self.started.elapsed().as_millis()).unwrap_or(i64::MAX)
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
