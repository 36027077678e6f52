//! A leader: takes records, supplies followers, and acknowledges what they have.

use std::collections::BTreeMap;

use bytes::Bytes;
use quorate_client::agent::LeaderState;
use quorate_client::world;
use quorate_log::leadership::{Durability, Leadership, Outcome, Proposal};
use quorate_log::{AppendRefused, LogOffset, LogReader, NewBatch, PartitionLog, Writes};
use quorate_metadata::ids::{BrokerEpoch, BrokerId, LeaderEpoch, TopicPartition};
use quorate_metadata::{ApiError, ErrorName};
use tokio::sync::{mpsc, oneshot};

use super::acknowledgements::{Acknowledgements, Waiting, answer};
use super::rate::FollowerRate;
use super::tail::Tail;
use super::{Effects, Replica, Role, Situation, check_epoch, not_leader};

/// How soon a leader is looked at again while producers wait, whose lease may end, or after a change of the ISR that was
/// refused and may be granted the next time.
const CHECK_SOON_MS: i64 = 250;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Acks {
    /// Nobody waits for an answer.
    None,
    Leader,
    All,
}

/// Records on their way into the log.
pub struct NewRecords {
    /// As the producer knows it; `None`: not checked.
    pub leader_epoch: Option<LeaderEpoch>,
    pub batch: NewBatch,
    pub acks: Acks,
    pub reply: oneshot::Sender<Result<Produced, ApiError>>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Produced {
    pub base_offset: LogOffset,
    pub leader_epoch: LeaderEpoch,
    pub log_start: LogOffset,
}

/// Where a follower stands. It is answered at most once, so that it is also the permission to send.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Position {
    pub id: TopicPartition,
    pub leader_epoch: LeaderEpoch,
    pub fetch_offset: LogOffset,
    pub last_fetched_epoch: Option<LeaderEpoch>,
    pub max_bytes: usize,
    pub high_watermark: LogOffset,
}

/// Where the answers for one follower go. Never more than the positions that are parked.
pub type Sink = mpsc::UnboundedSender<Answer>;

pub struct Answer {
    pub id: TopicPartition,
    pub said: Result<Supply, Refused>,
}

pub struct Refused {
    pub error: ErrorName,
    pub log_start: LogOffset,
}

pub struct Supply {
    pub high_watermark: LogOffset,
    pub log_start: LogOffset,
    pub log_end: LogOffset,
    pub diverging: Option<(LeaderEpoch, LogOffset)>,
    pub batches: Batches,
}

pub enum Batches {
    None,
    Here(Vec<Bytes>),
    /// To be read by whoever sends them, so that the owner of the logs goes on.
    OnDisk {
        reader: LogReader,
        from: LogOffset,
        below: LogOffset,
        max_bytes: usize,
    },
}

struct Parked {
    position: Position,
    sink: Sink,
}

pub struct Leading {
    leadership: Leadership,
    parked: BTreeMap<BrokerId, Parked>,
    waiting: Acknowledgements,
    rates: BTreeMap<BrokerId, FollowerRate>,
    /// Something happened that may change who belongs into the ISR.
    isr_due: bool,
    /// A change of the ISR was refused, and is to be asked for again a little later.
    is_refused: bool,
    /// Where the log began when each follower was last told.
    told_log_start: BTreeMap<BrokerId, LogOffset>,
}

impl Leading {
    pub fn new(leadership: Leadership, waiting: Acknowledgements) -> Self {
        Self {
            leadership,
            parked: BTreeMap::new(),
            waiting,
            rates: BTreeMap::new(),
            isr_due: true,
            is_refused: false,
            told_log_start: BTreeMap::new(),
        }
    }

    pub fn leader_epoch(&self) -> LeaderEpoch {
        self.leadership.leader_epoch()
    }

    pub fn leadership(&self) -> &Leadership {
        &self.leadership
    }

    /// None: not measured lately.
    pub fn records_per_second(&self, follower: BrokerId, now_ms: i64) -> Option<i64> {
        self.rates.get(&follower)?.records_per_second(now_ms)
    }

    pub fn on_metadata(&mut self, situation: &Situation, now_ms: i64) {
        self.leadership.on_metadata(situation.known(), now_ms);
        self.isr_due = true;
    }

    /// The same broker leads at a newer epoch: followers come again, producers go on waiting.
    pub fn hand_over(self) -> Acknowledgements {
        self.refuse_parked(ErrorName::FencedLeaderEpoch);
        self.waiting
    }

    /// It leads no more, at least for now.
    pub fn resign(mut self, leader_epoch: LeaderEpoch) -> Leadership {
        self.refuse_parked(ErrorName::NotLeaderOrFollower);
        let own_epoch = self.leader_epoch();
        self.waiting.give_up(&format!("the leadership at epoch {own_epoch} is over; it is {leader_epoch} now"));
        self.leadership
    }

    /// The replica is no more.
    pub fn fail(mut self, error: ErrorName) {
        self.refuse_parked(error);
        self.waiting.give_up(&format!("the replica is gone: {error}"));
    }

    fn refuse_parked(&self, error: ErrorName) {
        for parked in self.parked.values() {
            refuse(&parked.sink, parked.position.id, error, LogOffset(0));
        }
    }

    /// After a commit. Returns the high watermark.
    pub fn settle(
        &mut self,
        id: TopicPartition,
        (log, tail): (&PartitionLog, &mut Tail),
        state: LeaderState,
        now_ms: i64,
        effects: &mut Effects,
    ) -> LogOffset {
        self.leadership.on_append(log.log_end(), now_ms);
        if std::mem::take(&mut self.isr_due)
            && let Some(proposal) = self.leadership.propose(now_ms)
        {
            effects.proposals.push((id, proposal));
        }
        self.acknowledge(state);
        self.supply(log, tail);
        let high_watermark = self.leadership.high_watermark();
        effects.bounds_due |= self.parked.iter().any(|(broker, parked)| self.lacks_bounds(*broker, parked, log));
        effects.check_at_ms = self.check_at_ms(now_ms);
        tail.drop_below(high_watermark);
        high_watermark
    }

    /// By when it has to be looked at though nothing has come in: an idle leader whose followers have everything never.
    fn check_at_ms(&self, now_ms: i64) -> Option<i64> {
        let is_soon = self.is_refused || !self.waiting.is_empty();
        let soon = is_soon.then_some(now_ms + CHECK_SOON_MS);
        soon.into_iter().chain(self.leadership.lag_due_ms(now_ms)).min()
    }

    /// Whoever cannot lead now acknowledges nothing, whatever it has appended: another may lead already.
    fn acknowledge(&mut self, state: LeaderState) {
        match state {
            LeaderState::Current => {}
            // The change of role that is on its way answers.
            LeaderState::Superseded => return,
            LeaderState::LeaseEnded => return self.waiting.give_up("the lease of this broker has ended"),
        }
        self.waiting.acknowledge(self.leadership.high_watermark());
        if self.leadership.durability() == Durability::NotEnough {
            self.waiting.not_enough_replicas();
        }
    }

    fn supply(&mut self, log: &PartitionLog, tail: &Tail) {
        let log_end = log.log_end();
        let due = |parked: &Parked| parked.position.fetch_offset < log_end;
        let due: Vec<_> = self.parked.extract_if(.., |_, parked| due(parked)).collect();
        for (broker, parked) in due {
            let Position { fetch_offset: from, max_bytes, .. } = parked.position;
            let batches = match tail.from(from, max_bytes) {
                Some(frames) => Batches::Here(frames),
                None => Batches::OnDisk { reader: log.reader(), from, below: log_end, max_bytes },
            };
            self.say(broker, log, parked, batches);
        }
    }

    /// Tells the followers that are in step how far the high watermark is, and where the log begins.
    pub fn tell_bounds(&mut self, log: &PartitionLog) {
        let lacking = self.parked.iter().filter(|(broker, parked)| self.lacks_bounds(**broker, parked, log));
        let lacking: Vec<BrokerId> = lacking.map(|(broker, _)| *broker).collect();
        for broker in lacking {
            if let Some(parked) = self.parked.remove(&broker) {
                self.say(broker, log, parked, Batches::None);
            }
        }
    }

    fn lacks_bounds(&self, broker: BrokerId, parked: &Parked, log: &PartitionLog) -> bool {
        let told = self.told_log_start.get(&broker).copied().unwrap_or_default();
        parked.position.high_watermark < self.leadership.high_watermark() || told < log.log_start()
    }

    fn say(&mut self, broker: BrokerId, log: &PartitionLog, parked: Parked, batches: Batches) {
        self.told_log_start.insert(broker, log.log_start());
        let supply = Supply {
            high_watermark: self.leadership.high_watermark(),
            log_start: log.log_start(),
            log_end: log.log_end(),
            diverging: None,
            batches,
        };
        send(&parked.sink, Answer { id: parked.position.id, said: Ok(supply) });
    }

    fn observe(&mut self, follower: BrokerId, end: LogOffset, now_ms: i64) {
        self.rates.entry(follower).or_insert(FollowerRate::starting(end, now_ms)).observe(end, now_ms);
    }
}

impl Replica {
    /// Stages records. The answer comes when they are as safe as was asked for.
    pub fn produce(&mut self, writes: &mut Writes, records: NewRecords, state: LeaderState) {
        match self.append(writes, &records, state) {
            Ok((end, produced)) => self.park_producer(end, produced, records),
            Err(error) => answer(records.reply, Err(error)),
        }
    }

    fn append(
        &mut self,
        writes: &mut Writes,
        records: &NewRecords,
        state: LeaderState,
    ) -> Result<(LogOffset, Produced), ApiError> {
        let id = self.id();
        let Role::Leader(leading) = &self.role else { return Err(not_leader(id)) };
        let leader_epoch = leading.leader_epoch();
        if state != LeaderState::Current {
            return Err(not_leader(id));
        }
        check_epoch(records.leader_epoch, leader_epoch)?;
        if records.acks == Acks::All && leading.leadership.durability() == Durability::NotEnough {
            let message = format!("{} replicas of {id} are in sync", leading.leadership.isr().len());
            return Err(ApiError::new(ErrorName::NotEnoughReplicas, message));
        }
        if records.acks == Acks::All && leading.waiting.is_full() {
            let message = format!("the replicas of {id} are too far behind to take more");
            return Err(ApiError::new(ErrorName::Throttled, message));
        }
        let appended =
            self.log.append_as_leader(writes, &records.batch, leader_epoch, world::wall_ms()).map_err(refusal)?;
        if let Some(batch) = appended.batch {
            self.tail.push(batch);
        }
        let log_start = self.log.log_start();
        Ok((appended.next_offset, Produced { base_offset: appended.base_offset, leader_epoch, log_start }))
    }

    fn park_producer(&mut self, end: LogOffset, produced: Produced, records: NewRecords) {
        let Role::Leader(leading) = &mut self.role else { return };
        let bytes = records.batch.records.len();
        leading.waiting.add(records.acks, Waiting { end, bytes, produced, reply: records.reply });
    }

    /// A follower says where it stands, and is answered when there is something to say.
    pub fn take_position(&mut self, follower: (BrokerId, BrokerEpoch), position: Position, sink: &Sink, now_ms: i64) {
        let id = self.id();
        let log_start = self.log.log_start();
        let Role::Leader(leading) = &mut self.role else {
            return refuse(sink, id, ErrorName::NotLeaderOrFollower, log_start);
        };
        if let Err(error) = check_epoch(Some(position.leader_epoch), leading.leader_epoch()) {
            return refuse(sink, id, error.name, log_start);
        }
        match agreement(&self.log, position.fetch_offset, position.last_fetched_epoch) {
            Agreement::Agree => {}
            Agreement::OutOfRange => return refuse(sink, id, ErrorName::OffsetOutOfRange, log_start),
            Agreement::DivergeAt(epoch, end) => {
                let supply = Supply {
                    high_watermark: leading.leadership.high_watermark(),
                    log_start,
                    log_end: self.log.log_end(),
                    diverging: Some((epoch, end)),
                    batches: Batches::None,
                };
                return send(sink, Answer { id, said: Ok(supply) });
            }
        }
        let (broker, epoch) = follower;
        if !leading.leadership.on_fetch(broker, epoch, position.fetch_offset, now_ms) {
            // The metadata may know of it sooner than this leader.
            return refuse(sink, id, ErrorName::ReplicaNotAvailable, log_start);
        }
        leading.observe(broker, position.fetch_offset, now_ms);
        leading.isr_due |= !leading.leadership.isr().contains(&broker);
        let displaced = leading.parked.insert(broker, Parked { position, sink: sink.clone() });
        if let Some(displaced) = displaced.filter(|displaced| !displaced.sink.same_channel(sink)) {
            // Which of two streams is the late one is not known here: a follower that still reads the other comes again.
            refuse(&displaced.sink, id, ErrorName::ReplicaNotAvailable, log_start);
        }
    }

    pub fn on_outcome(&mut self, proposal: &Proposal, outcome: Outcome, now_ms: i64) {
        let leadership = match &mut self.role {
            Role::Leader(leading) => {
                leading.isr_due |= matches!(outcome, Outcome::Applied { .. });
                leading.is_refused |= outcome == Outcome::NotApplied;
                &mut leading.leadership
            }
            Role::Offline { suspended: Some(leadership), .. } => leadership,
            Role::Offline { .. } | Role::Follower(_) => return,
        };
        if leadership.leader_epoch() == proposal.leader_epoch {
            leadership.on_outcome(proposal, outcome, now_ms);
        }
    }

    /// Time has passed: a follower may have lagged for too long.
    pub fn tick(&mut self) {
        if let Role::Leader(leading) = &mut self.role {
            leading.isr_due = true;
            leading.is_refused = false;
        }
    }

    pub fn tell_bounds(&mut self) {
        if let Role::Leader(leading) = &mut self.role {
            leading.tell_bounds(&self.log);
        }
    }

    pub fn leading(&self) -> Option<&Leading> {
        match &self.role {
            Role::Leader(leading) => Some(leading),
            Role::Offline { .. } | Role::Follower(_) => None,
        }
    }
}

enum Agreement {
    Agree,
    /// What follows is not here, or not any more.
    OutOfRange,
    /// The largest epoch that both may have, and where it ends here.
    DivergeAt(LeaderEpoch, LogOffset),
}

/// Whether a log that ends at `end` with a record of `last` is a prefix of this one (KIP-101, KIP-279).
fn agreement(log: &PartitionLog, end: LogOffset, last: Option<LeaderEpoch>) -> Agreement {
    if let Some(last) = last {
        match log.end_of_epoch(last) {
            None => return Agreement::OutOfRange,
            Some((epoch, own_end)) if epoch != last || own_end < end => return Agreement::DivergeAt(epoch, own_end),
            Some(_) => {}
        }
    }
    if end < log.log_start() || end > log.log_end() { Agreement::OutOfRange } else { Agreement::Agree }
}

fn refusal(error: AppendRefused) -> ApiError {
    let name = match &error {
        AppendRefused::InvalidBatch(_) | AppendRefused::NotAtEnd { .. } => ErrorName::InvalidRecord,
        AppendRefused::EpochWentBack { .. } => ErrorName::NotLeaderOrFollower,
        AppendRefused::InvalidProducerEpoch { .. } => ErrorName::InvalidProducerEpoch,
        AppendRefused::OutOfOrderSequence { .. } => ErrorName::OutOfOrderSequenceNumber,
        AppendRefused::UnknownProducerId { .. } => ErrorName::UnknownProducerId,
        AppendRefused::DuplicateSequence { .. } => ErrorName::DuplicateSequenceNumber,
    };
    ApiError::new(name, error.to_string())
}

fn refuse(sink: &Sink, id: TopicPartition, error: ErrorName, log_start: LogOffset) {
    send(sink, Answer { id, said: Err(Refused { error, log_start }) });
}

/// A follower whose stream has ended comes again on another.
fn send(sink: &Sink, answer: Answer) {
    let _ = sink.send(answer);
}
