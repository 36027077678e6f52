//! How the rest of the broker speaks to the owner of a log directory.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use quorate_log::LogDirectory;
use quorate_log::leadership::{Outcome, Proposal};
use quorate_metadata::ids::{BrokerEpoch, BrokerId, DirectoryId, LeaderEpoch, TopicPartition};
use quorate_metadata::{ApiError, ErrorName};
use tokio::sync::{mpsc, oneshot, watch};

use super::super::replica::{Description, NewRecords, Position, Replica, Sink, Source, Supplied};
use super::super::replicas::Claim;

/// Commands waiting; the senders wait beyond it.
const COMMANDS_MAX: usize = 1_024;

/// Changes of role waiting, apart from the commands: however many they are, no producer stands behind them.
const ROLE_CHANGES_MAX: usize = 1_024;

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
        let directory = directory.id();
        let handle = Self { commands: sender, role_changes: change_sender, running: is_running, directory, path };
        (handle, Inbox { commands, role_changes, running })
    }

    pub fn directory(&self) -> DirectoryId {
        self.directory
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Waits while the owner has enough to do. Err: the node is stopping.
    pub async fn send(&self, command: Command) -> Result<(), ApiError> {
        self.commands.send(command).await.map_err(|_| stopping())
    }

    /// Waits while the owner has enough to do. Changes are made in the order in which they are sent. Err: the node is
    /// stopping.
    pub async fn change_role(&self, change: RoleChange) -> Result<(), ApiError> {
        self.role_changes.send(change).await.map_err(|_| stopping())
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
        answer.await.map_err(|_| stopping())?
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
