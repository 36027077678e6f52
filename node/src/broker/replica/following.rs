//! A follower: what its leader sends goes into the log, and what the leader does not have goes out of it.

use bytes::Bytes;
use quorate_client::world;
use quorate_log::{LogError, LogOffset, StoredBatch, Writes};
use quorate_metadata::ErrorName;
use quorate_metadata::ids::{BrokerId, LeaderEpoch, TopicPartition};
use tracing::{debug, error, warn};

use super::leading::Position;
use super::{Effects, Replica, Role};

/// Of one partition in one answer.
pub const FETCH_BYTES_MAX: usize = 1 << 20;

/// Whom a replica follows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Source {
    pub leader: BrokerId,
    pub leader_epoch: LeaderEpoch,
}

#[derive(Debug)]
pub struct Following {
    source: Source,
    pace: Pace,
    /// Where it last said that it stands, until it is answered.
    told: Option<Position>,
}

/// How a replica that is being added may fetch.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Pace {
    /// It asks for nothing.
    pub paused: bool,
    /// It asks for nothing before then.
    pub not_before_ms: i64,
}

/// What a leader has sent for one position.
#[derive(Debug)]
pub struct Supplied {
    pub id: TopicPartition,
    pub source: Source,
    pub error: Option<ErrorName>,
    pub high_watermark: LogOffset,
    pub log_start: LogOffset,
    pub diverging: Option<(LeaderEpoch, LogOffset)>,
    /// Below it the leader may have compacted batches away.
    pub gaps_below: LogOffset,
    pub batches: Vec<Bytes>,
}

impl Following {
    pub fn new(source: Source) -> Self {
        Self { source, pace: Pace::default(), told: None }
    }

    pub fn source(&self) -> Source {
        self.source
    }

    /// Says where it stands, unless it has said so and was not answered yet.
    pub fn stand_at(&mut self, position: Position, now_ms: i64, effects: &mut Effects) {
        if self.told.is_some() || self.pace.paused {
            return;
        }
        if self.pace.not_before_ms > now_ms {
            effects.again_at_ms = Some(self.pace.not_before_ms);
            return;
        }
        self.told = Some(position);
        effects.positions.push((self.source, position));
    }
}

/// Whether a follower has given records up to agree with its leader.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cut {
    None,
    /// The end of its log.
    Truncated,
    /// All of its log.
    Restarted,
}

impl Replica {
    pub fn follows(&self, source: Source) -> bool {
        matches!(&self.role, Role::Follower(following) if following.source == source)
    }

    pub fn set_pace(&mut self, change: impl FnOnce(&mut Pace)) {
        if let Role::Follower(following) = &mut self.role {
            change(&mut following.pace);
        }
    }

    /// Takes what the leader has sent. What comes from another leadership is of no interest any more.
    pub fn supply(&mut self, writes: &mut Writes, supplied: &Supplied) -> Result<Cut, LogError> {
        let Role::Follower(following) = &mut self.role else { return Ok(Cut::None) };
        if following.source != supplied.source {
            return Ok(Cut::None);
        }
        following.told = None;
        if supplied.error == Some(ErrorName::OffsetOutOfRange) {
            debug!(partition = %self.id(), log_end = %self.log.log_end(), leader_log_start = %supplied.log_start, "begins anew where its leader's log begins");
            self.log.start_at(writes, supplied.log_start);
            self.high_watermark = supplied.log_start;
            return Ok(Cut::Restarted);
        }
        if let Some(end) = supplied.diverging {
            return self.truncate(writes, end);
        }
        self.log.allow_gaps_below(writes, supplied.gaps_below);
        for frame in &supplied.batches {
            if let Err(reason) = self.append_supplied(writes, supplied.source.leader_epoch, frame) {
                // It asks again from where it stands; what is damaged on the way comes whole the next time.
                error!(partition = %self.id(), reason, "a batch of the leader is not taken");
                break;
            }
        }
        if supplied.log_start > self.log.log_start() {
            self.log.advance_log_start(writes, supplied.log_start);
        }
        self.high_watermark = self.high_watermark.max(supplied.high_watermark.min(self.log.log_end()));
        Ok(Cut::None)
    }

    fn append_supplied(&mut self, writes: &mut Writes, leader_epoch: LeaderEpoch, frame: &Bytes) -> Result<(), String> {
        let batch = StoredBatch::decode(frame.clone()).map_err(|error| error.to_string())?;
        if batch.leader_epoch() > leader_epoch {
            return Err(format!("it is of leader epoch {}, which is not followed", batch.leader_epoch()));
        }
        self.log.append_as_follower(writes, &batch, world::wall_ms()).map_err(|error| error.to_string())
    }

    /// The leader's log has `epoch` and ends it at `end`: what this log has beyond the common part goes (KIP-279).
    fn truncate(&mut self, writes: &mut Writes, (epoch, end): (LeaderEpoch, LogOffset)) -> Result<Cut, LogError> {
        let own_end = match self.log.end_of_epoch(epoch) {
            Some((_, own_end)) => own_end,
            None => self.log.log_start(),
        };
        let to = end.min(own_end);
        let (id, from, high_watermark) = (self.id(), self.log.log_end(), self.high_watermark);
        if to < high_watermark {
            warn!(partition = %id, %from, %to, %epoch, %high_watermark, "committed records are truncated: the leader lacks them");
        } else {
            debug!(partition = %id, %from, %to, %epoch, %high_watermark, "truncated to where its leader's log agrees");
        }
        self.log.truncate_to(writes, to)?;
        self.high_watermark = self.high_watermark.min(self.log.log_end());
        Ok(Cut::Truncated)
    }
}
