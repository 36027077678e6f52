//! One replica: its log, and what it does with it.
//!
//! Changes are staged by the owner's round and settled after its commit: nothing is told to anyone, neither an
//! acknowledgement nor a record to a follower, before it is in the log for good.
//!
//! ```text
//!   stage:   append, truncate, change of role      -> Writes of the round
//!   commit:  one write for all replicas of the directory
//!   settle:  high watermark, acknowledgements, answers to followers, what others may read
//! ```

mod acknowledgements;
mod describe;
mod following;
mod leading;
mod rate;
mod tail;

use std::sync::Arc;

use quorate_client::agent::{LeaderCheck, LeaderState};
use quorate_log::leadership::{Beginning, Leadership, Proposal};
use quorate_log::{Compaction, CompactionEnd, Epochs, LogError, LogOffset, PartitionLog, Rewritten, Writes};
use quorate_metadata::ids::{BrokerId, LeaderEpoch, TopicPartition};
use quorate_metadata::mutant::Mutant;
use quorate_metadata::{ApiError, ErrorName};
use tokio::sync::watch;

use super::situation::Situation;
use acknowledgements::Acknowledgements;
pub use describe::{Description, Progress};
use following::Following;
pub use following::{Cut, Source, Supplied};
use leading::Leading;
pub use leading::{Acks, Answer, Batches, NewRecords, Position, Produced, Refused, Sink};
use tail::Tail;

pub struct Replica {
    broker: BrokerId,
    log: PartitionLog,
    role: Role,
    high_watermark: LogOffset,
    /// What was appended last and may still be wanted by followers.
    tail: Tail,
    published: watch::Sender<Published>,
}

enum Role {
    /// With the leadership that it may take up again: what it had asked of the controllers may yet be granted.
    Offline {
        leader_epoch: LeaderEpoch,
        suspended: Option<Box<Leadership>>,
    },
    Leader(Box<Leading>),
    Follower(Following),
}

/// What other tasks may know of a replica, as of the last commit.
#[derive(Debug, Clone)]
pub struct Published {
    pub role: RoleName,
    pub leader_epoch: LeaderEpoch,
    pub log_start: LogOffset,
    pub high_watermark: LogOffset,
    pub log_end: LogOffset,
    pub epochs: Arc<Epochs>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RoleName {
    Offline,
    Leader,
    Follower,
}

impl RoleName {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Offline => "offline",
            Self::Leader => "leader",
            Self::Follower => "follower",
        }
    }
}

/// What is to be told to others once a round is committed.
#[derive(Default)]
pub struct Effects {
    pub proposals: Vec<(TopicPartition, Proposal)>,
    /// Where followers stand now, by the broker that leads.
    pub positions: Vec<(Source, Position)>,
    /// Followers are in step but do not know the high watermark, or where the log begins.
    pub bounds_due: bool,
    /// A follower is to be settled again then: it is throttled.
    pub again_at_ms: Option<i64>,
    /// A leader is to be looked at by then, if nothing comes in for it.
    pub check_at_ms: Option<i64>,
}

impl Replica {
    pub fn new(broker: BrokerId, log: PartitionLog) -> Self {
        let high_watermark = log.high_watermark();
        let published = Published {
            role: RoleName::Offline,
            leader_epoch: LeaderEpoch::new(-1),
            log_start: log.log_start(),
            high_watermark,
            log_end: log.log_end(),
            epochs: Arc::new(log.epochs().clone()),
        };
        let role = Role::Offline { leader_epoch: LeaderEpoch::new(-1), suspended: None };
        Self { broker, log, role, high_watermark, tail: Tail::default(), published: watch::Sender::new(published) }
    }

    pub fn id(&self) -> TopicPartition {
        self.log.partition()
    }

    pub fn log(&self) -> &PartitionLog {
        &self.log
    }

    pub fn published(&self) -> watch::Receiver<Published> {
        self.published.subscribe()
    }

    pub fn leads(&self) -> bool {
        matches!(self.role, Role::Leader(_))
    }

    /// What a leader may do now. One that does not lead has nothing to acknowledge.
    pub fn leader_state(&self, leaders: &LeaderCheck) -> LeaderState {
        self.leading().map_or(LeaderState::Superseded, |leading| leaders.state(self.id(), leading.leader_epoch()))
    }

    /// Leads at the epoch of the situation, or goes on to.
    pub fn lead(&mut self, writes: &mut Writes, situation: &Situation, now_ms: i64) {
        let epoch = situation.partition.leader_epoch;
        self.bound_segments(situation);
        let before = std::mem::replace(&mut self.role, Role::Offline { leader_epoch: epoch, suspended: None });
        let mut leading = match before {
            Role::Leader(leading) if leading.leader_epoch() == epoch => leading,
            Role::Offline { suspended: Some(mut leadership), .. } if leadership.leader_epoch() == epoch => {
                leadership.resume(now_ms);
                Box::new(Leading::new(*leadership, Acknowledgements::default()))
            }
            before => {
                // Led before at an older epoch: what it appended then is still there, and who waits for it may.
                let waiting = match before {
                    Role::Leader(leading) => leading.hand_over(),
                    Role::Offline { .. } | Role::Follower(_) => Acknowledgements::default(),
                };
                self.log.begin_epoch(writes, epoch);
                let at = Beginning { log_end: self.log.log_end(), high_watermark: self.high_watermark, now_ms };
                let leadership = Leadership::begin(self.broker, situation.known(), at);
                Box::new(Leading::new(leadership, waiting))
            }
        };
        leading.on_metadata(situation, now_ms);
        self.role = Role::Leader(leading);
    }

    /// Follows `leader` at `epoch`. What only its own unwritten epoch left behind goes.
    pub fn follow(&mut self, writes: &mut Writes, source: Source) -> Result<(), LogError> {
        if let Role::Follower(now) = &self.role
            && now.source() == source
        {
            return Ok(());
        }
        self.leave_office(source.leader_epoch);
        let end = if Mutant::TruncatesToHighWatermark.is_on() { self.high_watermark } else { self.log.log_end() };
        self.log.truncate_to(writes, end)?;
        self.role = Role::Follower(Following::new(source));
        Ok(())
    }

    /// Neither leads nor follows. A leadership is kept, to be taken up again at the same epoch.
    pub fn suspend(&mut self, leader_epoch: LeaderEpoch) {
        let before = std::mem::replace(&mut self.role, Role::Offline { leader_epoch, suspended: None });
        let suspended = match before {
            Role::Leader(leading) => Some(Box::new(leading.resign(leader_epoch))),
            Role::Offline { suspended, .. } => suspended,
            Role::Follower(_) => None,
        };
        self.tail.clear();
        self.role = Role::Offline { leader_epoch, suspended };
    }

    fn leave_office(&mut self, leader_epoch: LeaderEpoch) {
        let before = std::mem::replace(&mut self.role, Role::Offline { leader_epoch, suspended: None });
        if let Role::Leader(leading) = before {
            leading.resign(leader_epoch);
        }
        self.tail.clear();
    }

    /// The replica is no more: whoever waits for it hears so.
    pub fn abandon(mut self, error: ErrorName) -> PartitionLog {
        let role =
            std::mem::replace(&mut self.role, Role::Offline { leader_epoch: LeaderEpoch::new(-1), suspended: None });
        if let Role::Leader(leading) = role {
            leading.fail(error);
        }
        self.publish();
        self.log
    }

    /// What has changed around a leader: its followers, its configs.
    pub fn on_metadata(&mut self, situation: &Situation, now_ms: i64) {
        self.bound_segments(situation);
        match &mut self.role {
            Role::Leader(leading) if leading.leader_epoch() == situation.partition.leader_epoch => {
                leading.on_metadata(situation, now_ms);
            }
            Role::Leader(_) | Role::Follower(_) | Role::Offline { .. } => {}
        }
    }

    /// Told after a commit: what is in the log now is there for good.
    pub fn settle(&mut self, state: LeaderState, now_ms: i64, effects: &mut Effects) {
        let id = self.id();
        let log_end = self.log.log_end();
        match &mut self.role {
            Role::Leader(leading) => {
                let log = (&self.log, &mut self.tail);
                self.high_watermark = leading.settle(id, log, state, now_ms, effects);
            }
            Role::Follower(following) => {
                self.high_watermark = self.high_watermark.min(log_end);
                let position = Position {
                    id,
                    leader_epoch: following.source().leader_epoch,
                    fetch_offset: log_end,
                    last_fetched_epoch: self.log.last_epoch(),
                    max_bytes: following::FETCH_BYTES_MAX,
                    high_watermark: self.high_watermark,
                };
                following.stand_at(position, now_ms, effects);
            }
            Role::Offline { .. } => {}
        }
        self.publish();
    }

    fn publish(&self) {
        let (role, leader_epoch) = match &self.role {
            Role::Offline { leader_epoch, .. } => (RoleName::Offline, *leader_epoch),
            Role::Leader(leading) => (RoleName::Leader, leading.leader_epoch()),
            Role::Follower(following) => (RoleName::Follower, following.source().leader_epoch),
        };
        let (log_start, log_end, high_watermark) = (self.log.log_start(), self.log.log_end(), self.high_watermark);
        self.published.send_if_modified(|now| {
            let same_epochs = *now.epochs == *self.log.epochs();
            let same = (now.role, now.leader_epoch, now.log_start, now.high_watermark, now.log_end)
                == (role, leader_epoch, log_start, high_watermark, log_end);
            if same && same_epochs {
                return false;
            }
            let epochs = if same_epochs { now.epochs.clone() } else { Arc::new(self.log.epochs().clone()) };
            *now = Published { role, leader_epoch, log_start, high_watermark, log_end, epochs };
            true
        });
    }

    /// Segments are closed at the size and age that the topic has.
    pub fn bound_segments(&mut self, situation: &Situation) {
        self.log.set_segment_bytes(situation.segment_bytes);
        self.log.set_segment_ms(situation.segment_ms);
    }

    /// Whether `housekeep` may find something: a leader has records, or the high watermark has moved since it was written.
    /// Where the topic is compacted, it may on each replica that has records.
    pub fn needs_housekeeping(&self, is_compacted: impl FnOnce() -> bool) -> bool {
        let has_records = self.log.log_end() > self.log.log_start();
        self.high_watermark != self.log.high_watermark() || (has_records && (self.leads() || is_compacted()))
    }

    /// The compaction that is due, of what is committed.
    pub fn compaction(&self, situation: &Situation, wall_ms: i64) -> Option<Compaction> {
        self.log.compaction(situation.compaction.as_ref()?, self.high_watermark, wall_ms)
    }

    /// Stages what a compaction has found. False: it is over, since the log was truncated meanwhile.
    pub fn rewrite(&mut self, writes: &mut Writes, rewritten: &Rewritten) -> bool {
        self.log.rewrite(writes, rewritten)
    }

    pub fn end_compaction(&mut self, writes: &mut Writes, end: &CompactionEnd) {
        self.log.end_compaction(writes, end);
    }

    /// Now and then: what retention takes, and what a restart should know.
    pub fn housekeep(&mut self, writes: &mut Writes, situation: &Situation, wall_ms: i64) {
        self.bound_segments(situation);
        if situation.compaction.is_some() {
            self.log.roll_old_segment(writes, wall_ms);
        }
        if self.leads()
            && let Some(start) = self.log.expired(wall_ms, situation.retention, self.high_watermark)
        {
            self.log.advance_log_start(writes, start);
        }
        self.checkpoint(writes);
    }

    pub fn checkpoint(&mut self, writes: &mut Writes) {
        self.log.checkpoint_high_watermark(writes, self.high_watermark);
    }
}

/// Where a call that only a leader at this epoch answers stands.
pub fn check_epoch(asked: Option<LeaderEpoch>, current: LeaderEpoch) -> Result<(), ApiError> {
    match asked {
        Some(asked) if asked < current => {
            let message = format!("leader epoch {asked} is over: it is {current} now");
            Err(ApiError::new(ErrorName::FencedLeaderEpoch, message))
        }
        Some(asked) if asked > current => {
            let message = format!("leader epoch {asked} is not known here yet: it is {current}");
            Err(ApiError::new(ErrorName::UnknownLeaderEpoch, message))
        }
        Some(_) | None => Ok(()),
    }
}

pub fn not_leader(id: TopicPartition) -> ApiError {
    ApiError::new(ErrorName::NotLeaderOrFollower, format!("this broker does not lead {id}"))
}

#[cfg(test)]
mod tests;
