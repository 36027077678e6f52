//! How the rest of the broker speaks to the owner of a log directory.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use quorate_log::leadership::{Outcome, Proposal};
use quorate_log::{LogDirectory, Operations};
use quorate_metadata::ids::{BrokerEpoch, BrokerId, DirectoryId, LeaderEpoch, TopicPartition};
use quorate_metadata::{ApiError, ErrorName};
use tokio::sync::{mpsc, oneshot, watch};

use super::super::replica::{Description, NewRecords, Position, Replica, Sink, Source, Supplied};
use super::super::replicas::Claim;
use super::super::room::Room;
use super::outage::Outage;
use crate::disks::Space;

/// Commands waiting; the senders wait beyond it.
const COMMANDS_MAX: usize = 1_024;

/// Changes of role waiting, apart from the commands: however many they are, no producer stands behind them.
const ROLE_CHANGES_MAX: usize = 1_024;

/// Nothing that holds the lock of the room can panic.
const UNPOISONED: &str = "no thread panics while it holds the room";

/// With the time by the owner's clock.
type Question = Box<dyn FnOnce(Option<&Replica>, i64) + Send>;

/// What a replica has to become, by the metadata.
pub enum RoleChange {
    Lead {
        id: TopicPartition,
        leader_epoch: LeaderEpoch,
    },
    Follow {
        id: TopicPartition,
        source: Source,
    },
    Suspend {
        id: TopicPartition,
        leader_epoch: LeaderEpoch,
    },
    /// Ends the claim of the replica to its place. `done`, if anyone waits, is answered when nothing of the replica can come back after a loss of power.
    Delete {
        id: TopicPartition,
        claim: Claim,
        done: Option<oneshot::Sender<()>>,
    },
}

/// A request to the replicas as they are.
pub enum Command {
    Produce(TopicPartition, NewRecords),
    Positions {
        follower: (BrokerId, BrokerEpoch),
        positions: Vec<Position>,
        sink: Sink,
    },
    Supplied(Vec<Supplied>),
    /// What became of proposals of its leaders.
    Outcomes(Vec<(TopicPartition, Proposal, Outcome)>),
    Ask(TopicPartition, Question),
    /// Writes what a restart should know, and ends. Says whether everything is on stable storage.
    Stop(oneshot::Sender<bool>),
}

/// A handle to the owner of a directory.
#[derive(Clone)]
pub struct ShardHandle {
    commands: mpsc::Sender<Command>,
    role_changes: mpsc::Sender<RoleChange>,
    /// Closed when the owner has ended and has let go of its directory.
    running: watch::Receiver<()>,
    directory: DirectoryId,
    path: Arc<PathBuf>,
    operations: Operations,
    /// Why the directory is offline, once it is: for as long as its owner lives.
    outage: watch::Sender<Option<Outage>>,
    /// With the bytes that its disk had free when it was last looked at.
    room: Arc<Mutex<(Room, u64)>>,
}

/// The owner's end.
pub struct Inbox {
    pub commands: mpsc::Receiver<Command>,
    pub role_changes: mpsc::Receiver<RoleChange>,
    /// Dropped when the owner has ended.
    pub running: watch::Sender<()>,
}

impl ShardHandle {
    pub fn new(directory: &LogDirectory) -> (Self, Inbox) {
        let (sender, commands) = mpsc::channel(COMMANDS_MAX);
        let (change_sender, role_changes) = mpsc::channel(ROLE_CHANGES_MAX);
        let (running, is_running) = watch::channel(());
        let path = Arc::new(directory.path().to_owned());
        let handle = Self {
            commands: sender,
            role_changes: change_sender,
            running: is_running,
            directory: directory.id(),
            path,
            operations: directory.operations().clone(),
            outage: watch::Sender::new(None),
            room: Arc::new(Mutex::new((Room::Enough, u64::MAX))),
        };
        (handle, Inbox { commands, role_changes, running })
    }

    pub fn directory(&self) -> DirectoryId {
        self.directory
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    /// What its disk is being asked for now.
    pub fn operations(&self) -> &Operations {
        &self.operations
    }

    /// Why the directory is offline, if it is.
    pub fn outage(&self) -> Option<Outage> {
        self.outage.borrow().clone()
    }

    /// From now on nobody waits for the owner, which may itself be waiting for the disk. False: the directory was offline, and
    /// returns no later than it would have.
    pub fn take_offline(&self, outage: Outage) -> bool {
        self.outage.send_if_modified(|now| {
            let is_news = now.as_ref().is_none_or(|now| now.may_pass() && !outage.may_pass());
            if is_news {
                *now = Some(outage);
            }
            is_news
        })
    }

    pub fn room(&self) -> Room {
        self.room.lock().expect(UNPOISONED).0
    }

    pub fn set_room(&self, room: Room, space: Space) {
        *self.room.lock().expect(UNPOISONED) = (room, space.free_bytes);
    }

    pub fn free_bytes(&self) -> u64 {
        self.room.lock().expect(UNPOISONED).1
    }

    /// Whether producers may write to the directory now.
    pub fn check_producers(&self) -> Result<(), ApiError> {
        match self.room().shortage() {
            Some(shortage) => Err(shortage.error(self.directory)),
            None => Ok(()),
        }
    }

    /// The result, unless the directory goes offline first: then KAFKA_STORAGE_ERROR with the reason.
    pub async fn unless_offline<T>(&self, result: impl Future<Output = Result<T, ApiError>>) -> Result<T, ApiError> {
        tokio::select! {
            biased;
            error = self.offline() => Err(error),
            result = result => result,
        }
    }

    async fn offline(&self) -> ApiError {
        let mut outage = self.outage.subscribe();
        let outage = outage.wait_for(Option::is_some).await.ok().and_then(|outage| outage.clone());
        outage.map_or_else(stopping, |outage| outage.error(self.directory))
    }

    /// When the directory has gone offline.
    pub async fn failed(&self) {
        self.offline().await;
    }

    /// Waits while the owner has enough to do. Err: the directory is offline, or the node is stopping.
    pub async fn send(&self, command: Command) -> Result<(), ApiError> {
        self.unless_offline(async { self.commands.send(command).await.map_err(|_| stopping()) }).await
    }

    /// As `send`. Changes are made in the order in which they are sent.
    pub async fn change_role(&self, change: RoleChange) -> Result<(), ApiError> {
        self.unless_offline(async { self.role_changes.send(change).await.map_err(|_| stopping()) }).await
    }

    /// Writes what a restart should know, and ends the owner. Whether everything is on stable storage: of a directory whose
    /// disk does not answer it is not, and its owner is left behind.
    pub async fn stop(&self) -> bool {
        let (done, stopped) = oneshot::channel();
        let stop = async {
            let is_clean = self.commands.send(Command::Stop(done)).await.is_ok() && stopped.await.unwrap_or(false);
            self.ended().await;
            is_clean
        };
        tokio::select! {
            is_clean = stop => is_clean,
            () = self.hangs() => false,
        }
    }

    async fn hangs(&self) {
        let mut outage = self.outage.subscribe();
        let is_hung = |outage: &Option<Outage>| outage.as_ref().is_some_and(Outage::is_hang);
        let hangs = outage.wait_for(is_hung).await.is_ok();
        if !hangs || self.operations.oldest().is_none() {
            std::future::pending::<()>().await;
        }
    }

    /// Looks at a replica between two rounds.
    pub async fn ask<T: Send + 'static>(
        &self,
        id: TopicPartition,
        question: impl FnOnce(&Replica, i64) -> T + Send + 'static,
    ) -> Result<T, ApiError> {
        let (reply, answer) = oneshot::channel();
        let question = Box::new(move |replica: Option<&Replica>, now_ms: i64| {
            let said = replica.map(|replica| question(replica, now_ms)).ok_or_else(|| not_available(id));
            // Who asked may have gone.
            let _ = reply.send(said);
        });
        self.send(Command::Ask(id, question)).await?;
        self.unless_offline(async { answer.await.map_err(|_| stopping())? }).await
    }

    /// When its owner has ended: told to, or by a broken invariant.
    pub async fn ended(&self) {
        let mut running = self.running.clone();
        while running.changed().await.is_ok() {}
    }

    pub async fn describe(&self, id: TopicPartition) -> Result<Description, ApiError> {
        self.ask(id, Replica::describe).await
    }
}

fn not_available(id: TopicPartition) -> ApiError {
    ApiError::new(ErrorName::ReplicaNotAvailable, format!("this broker has no replica of {id} online"))
}

fn stopping() -> ApiError {
    ApiError::new(ErrorName::NotLeaderOrFollower, "this broker is stopping")
}
