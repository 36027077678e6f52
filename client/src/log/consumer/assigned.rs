//! A partition that is read: where its reader stands, whom it asks, and when it asks again.

use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use quorate_metadata::{ApiError, ErrorName};
use quorate_proto::error::from_item;
use quorate_proto::log::offset_query::At;
use quorate_proto::log::{CurrentLeader, FetchPartition, FetchedPartition, ListedOffset, OffsetQuery};
use tokio::time::Instant;

use super::epochs::ReadEpochs;
use super::records::{decode, end_offset};
use super::{ConsumedRecord, Partition, Reset, Start};

/// The first pause after a failure: shorter than an election.
const PAUSE_MIN: Duration = Duration::from_millis(20);

/// No pause is longer: a new leader should not wait for its readers.
const PAUSE_MAX: Duration = Duration::from_millis(200);

#[derive(Debug)]
pub struct Assigned {
    /// Tells the answers to this assignment from those to an earlier one.
    pub assignment: u64,
    pub high_watermark: Option<i64>,
    /// Why it cannot be read just now.
    pub trouble: Option<ApiError>,
    position: Position,
    /// Where to begin again if the log does not have the first offset any more: until a record is read.
    begins_at: Option<Start>,
    /// The next offset to read when the log turned out not to have it.
    lost_at: Option<i64>,
    read: ReadEpochs,
    route: Option<Route>,
    /// A call about it is under way.
    is_busy: bool,
    /// The route has proved wrong, or is not complete.
    is_stale: bool,
    /// A follower may lag behind what was read: only the leader can tell whether it is lost.
    needs_leader: bool,
    /// The followers take turns when they fail.
    turn: usize,
    retry_at: Instant,
    pause: Duration,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Position {
    /// The leader has still to say which offset this is.
    Start(Start),
    At(i64),
}

/// Who has the partition.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Route {
    pub topic_id: String,
    pub leader_epoch: i32,
    pub leader: Option<Arc<str>>,
    pub followers: Vec<Arc<str>>,
}

/// What to ask of whom.
#[derive(Debug, Clone, PartialEq)]
pub enum Question {
    List(Vec<OffsetQuery>),
    Fetch(FetchPartition),
}

/// What an answer came to.
#[derive(Debug, Default, PartialEq)]
pub struct Progress {
    pub records: Vec<ConsumedRecord>,
    /// For the caller to know.
    pub failure: Option<ApiError>,
    /// Offsets that were not read, since the log no longer has them.
    pub skipped: Option<Range<i64>>,
}

impl Assigned {
    pub fn new(assignment: u64, start: Start, now: Instant) -> Self {
        let (position, begins_at) = match start {
            Start::At(offset) => (Position::At(offset), None),
            Start::End => (Position::Start(start), None),
            Start::Beginning | Start::Timestamp(_) => (Position::Start(start), Some(start)),
        };
        Self {
            assignment,
            high_watermark: None,
            trouble: None,
            position,
            begins_at,
            lost_at: None,
            read: ReadEpochs::default(),
            route: None,
            is_busy: false,
            is_stale: true,
            needs_leader: false,
            turn: 0,
            retry_at: now,
            pause: PAUSE_MIN,
        }
    }

    /// The next offset to read, once it is known.
    pub fn position(&self) -> Option<i64> {
        match self.position {
            Position::At(offset) => Some(offset),
            Position::Start(_) => None,
        }
    }

    pub fn topic_id(&self) -> Option<&str> {
        self.route.as_ref().map(|route| route.topic_id.as_str())
    }

    /// When something is to be done about it; `None` while an answer is awaited.
    pub fn due_at(&self) -> Option<Instant> {
        (!self.is_busy).then_some(self.retry_at)
    }

    pub fn needs_route(&self, now: Instant) -> bool {
        self.is_stale && self.due_at().is_some_and(|due| due <= now)
    }

    /// The next question, and the address of whom to ask; from then on an answer is awaited.
    pub fn ask(&mut self, partition: i32, any_replica: bool, now: Instant) -> Option<(Arc<str>, Question)> {
        if self.is_stale || self.due_at().is_none_or(|due| due > now) {
            return None;
        }
        let route = self.route.as_ref()?;
        let (to, question) = match self.position {
            Position::Start(start) => (route.leader.clone(), Question::List(self.queries(route, partition, start))),
            Position::At(offset) => {
                let fetch = FetchPartition {
                    topic_id: route.topic_id.clone(),
                    partition,
                    leader_epoch: Some(route.leader_epoch),
                    offset,
                    last_fetched_epoch: self.read.last(),
                    max_bytes: 0,
                };
                (self.source(route, any_replica), Question::Fetch(fetch))
            }
        };
        let Some(to) = to else {
            self.retry_later(now);
            return None;
        };
        self.is_busy = true;
        Some((to, question))
    }

    /// Where the log is to be begun, and where it ends.
    fn queries(&self, route: &Route, partition: i32, start: Start) -> Vec<OffsetQuery> {
        let query = |at| OffsetQuery {
            topic_id: route.topic_id.clone(),
            partition,
            leader_epoch: Some(route.leader_epoch),
            at: Some(at),
        };
        let mut queries = vec![query(At::Latest(true))];
        match start {
            Start::Beginning => queries.push(query(At::Earliest(true))),
            Start::Timestamp(timestamp) => queries.push(query(At::TimestampMs(timestamp))),
            Start::End | Start::At(_) => {}
        }
        queries
    }

    fn source(&self, route: &Route, any_replica: bool) -> Option<Arc<str>> {
        if any_replica && !self.needs_leader && !route.followers.is_empty() {
            return Some(route.followers[self.turn % route.followers.len()].clone());
        }
        route.leader.clone()
    }

    /// The answers to the queries, in their order.
    pub fn on_listed(&mut self, listed: &[ListedOffset], now: Instant) -> Progress {
        self.is_busy = false;
        for answer in listed {
            if let Some(error) = &answer.error {
                return self.on_error(from_item(error), answer.current_leader.as_ref(), now);
            }
        }
        let Some(end) = listed.first().and_then(|latest| latest.offset) else {
            let error = ApiError::new(ErrorName::UnknownServerError, "the broker did not say where the log ends");
            return self.fail(error, now);
        };
        self.recovered();
        self.high_watermark = Some(end);
        // No record is as late as the timestamp: the next one will be.
        let position = listed.get(1).map_or(end, |start| start.offset.unwrap_or(end));
        self.position = Position::At(position);
        let skipped = self.lost_at.take().map(|lost_at| lost_at..position).filter(|skipped| !skipped.is_empty());
        Progress { skipped, ..Progress::default() }
    }

    pub fn on_fetched(
        &mut self,
        partition: &Partition,
        from: &str,
        fetched: FetchedPartition,
        reset: Reset,
        now: Instant,
    ) -> Progress {
        self.is_busy = false;
        let Position::At(position) = self.position else { return Progress::default() };
        let by_leader = self.route.as_ref().is_some_and(|route| route.leader.as_deref() == Some(from));
        let error = fetched.error.as_ref().map(from_item);
        let is_lost = error.as_ref().is_some_and(|error| error.name == ErrorName::OffsetOutOfRange);
        if (is_lost || fetched.diverging.is_some()) && !by_leader {
            self.needs_leader = true;
            return Progress::default();
        }
        if let Some(error) = error {
            if is_lost && self.begin_again(position, reset) {
                return Progress::default();
            }
            return self.on_error(error, fetched.current_leader.as_ref(), now);
        }
        self.recovered();
        self.high_watermark = Some(fetched.high_watermark);
        if let Some(common) = fetched.diverging {
            let end = self.read.truncate(position, &common);
            self.position = Position::At(end);
            let message =
                format!("the log was truncated to offset {end}: what was read from there to {position} is gone");
            return Progress {
                failure: Some(ApiError::new(ErrorName::OffsetOutOfRange, message)),
                ..Progress::default()
            };
        }
        self.take(partition, fetched, position, now)
    }

    /// Where nothing has been read, the place to begin has moved, and nothing is lost by that.
    fn begin_again(&mut self, lost_at: i64, reset: Reset) -> bool {
        if let Some(start) = self.begins_at {
            self.position = Position::Start(start);
            return true;
        }
        let Some(start) = reset.start() else { return false };
        self.position = Position::Start(start);
        self.lost_at = Some(lost_at);
        self.read = ReadEpochs::default();
        true
    }

    fn take(&mut self, partition: &Partition, fetched: FetchedPartition, from: i64, now: Instant) -> Progress {
        let mut records = Vec::new();
        let mut position = from;
        let mut failure = None;
        for batch in fetched.batches {
            let (epoch, end) = (batch.leader_epoch, end_offset(&batch));
            let is_behind_gap = batch.record_count == 0 && end > position;
            match decode(partition, batch, position) {
                Ok(decoded) => {
                    if let Some(first) = decoded.first() {
                        self.begins_at = None;
                        self.read.read(epoch, first.offset);
                    }
                    if is_behind_gap {
                        // Compaction has removed the records before it, of which the last had this epoch.
                        self.read.read(epoch, end - 1);
                    }
                    records.extend(decoded);
                    position = position.max(end);
                }
                Err(error) => {
                    failure = self.fail(error, now).failure;
                    break;
                }
            }
        }
        self.position = Position::At(position);
        if position > from {
            self.needs_leader = false;
        }
        Progress { records, failure, skipped: None }
    }

    /// The broker could not be asked, or its answer does not speak of the partition.
    pub fn on_unanswered(&mut self, error: ApiError, is_passing: bool, now: Instant) -> Progress {
        self.is_busy = false;
        if !is_passing {
            return self.fail(error, now);
        }
        self.trouble = Some(error);
        self.reroute(now);
        Progress::default()
    }

    fn on_error(&mut self, error: ApiError, leader: Option<&CurrentLeader>, now: Instant) -> Progress {
        if !is_passing(error.name) {
            return self.fail(error, now);
        }
        self.trouble = Some(error);
        if !leader.is_some_and(|leader| self.follow(leader)) {
            self.reroute(now);
        }
        Progress::default()
    }

    /// Turns to the leader that a broker has named, if that is news.
    fn follow(&mut self, leader: &CurrentLeader) -> bool {
        let Some(route) = &mut self.route else { return false };
        if leader.leader_epoch <= route.leader_epoch || leader.endpoint.is_empty() {
            return false;
        }
        let endpoint: Arc<str> = leader.endpoint.as_str().into();
        route.leader_epoch = leader.leader_epoch;
        route.followers.retain(|follower| *follower != endpoint);
        route.leader = Some(endpoint);
        true
    }

    /// What the cluster says of the partition.
    pub fn on_route(&mut self, route: Route, now: Instant) -> Progress {
        if self.topic_id().is_some_and(|known| known != route.topic_id) {
            let error =
                ApiError::new(ErrorName::UnknownTopicId, "the topic was deleted and created anew: assign it again");
            return self.fail(error, now);
        }
        let is_older = self.route.as_ref().is_some_and(|known| known.leader_epoch > route.leader_epoch);
        if is_older {
            self.retry_later(now);
            return Progress::default();
        }
        if route.leader.is_none() && route.followers.is_empty() {
            self.trouble = Some(ApiError::new(ErrorName::NotLeaderOrFollower, "it has no leader that is up"));
            self.route = Some(route);
            self.retry_later(now);
            return Progress::default();
        }
        self.is_stale = false;
        self.route = Some(route);
        Progress::default()
    }

    /// Whether the cluster has to be sure of its answer: a topic that is there must not be taken for one that is not.
    pub fn needs_certainty(&self) -> bool {
        self.route.is_none() || self.trouble.as_ref().is_some_and(|error| is_missing(error.name))
    }

    /// The cluster did not say who has the partition.
    pub fn on_no_route(&mut self, error: ApiError, is_certain: bool, now: Instant) -> Progress {
        let is_final = if is_missing(error.name) { is_certain } else { !error.is_retryable() };
        if is_final {
            return self.fail(error, now);
        }
        self.trouble = Some(error);
        self.retry_later(now);
        Progress::default()
    }

    fn fail(&mut self, error: ApiError, now: Instant) -> Progress {
        self.trouble = Some(error.clone());
        self.reroute(now);
        Progress { failure: Some(error), ..Progress::default() }
    }

    fn reroute(&mut self, now: Instant) {
        self.is_stale = true;
        self.turn = self.turn.wrapping_add(1);
        self.retry_later(now);
    }

    fn retry_later(&mut self, now: Instant) {
        self.is_stale = true;
        self.retry_at = now + self.pause;
        self.pause = (self.pause * 2).min(PAUSE_MAX);
    }

    fn recovered(&mut self) {
        self.trouble = None;
        self.pause = PAUSE_MIN;
    }
}

impl Reset {
    fn start(self) -> Option<Start> {
        match self {
            Self::None => None,
            Self::Earliest => Some(Start::Beginning),
            Self::Latest => Some(Start::End),
        }
    }
}

/// Whether another attempt, at the leader that there will be then, may succeed.
pub fn is_passing(name: ErrorName) -> bool {
    name == ErrorName::FencedLeaderEpoch || name.is_retryable() && name != ErrorName::CorruptMessage
}

fn is_missing(name: ErrorName) -> bool {
    matches!(name, ErrorName::UnknownTopicOrPartition | ErrorName::UnknownTopicId)
}

#[cfg(test)]
mod tests {
    use super::super::fake::{batch, fetched, partition};
    use super::*;

    fn route(leader_epoch: i32, leader: Option<&str>) -> Route {
        Route {
            topic_id: "id".to_owned(),
            leader_epoch,
            leader: leader.map(Into::into),
            followers: vec!["b:1".into(), "c:1".into()],
        }
    }

    fn assigned(now: Instant) -> Assigned {
        let mut assigned = Assigned::new(1, Start::At(0), now);
        assigned.on_route(route(3, Some("a:1")), now);
        assigned
    }

    fn whom(assigned: &mut Assigned, any_replica: bool, now: Instant) -> Option<String> {
        assigned.ask(0, any_replica, now).map(|(to, _)| to.to_string())
    }

    fn passing() -> ApiError {
        ApiError::new(ErrorName::NotLeaderOrFollower, "elsewhere")
    }

    #[test]
    fn pauses_double_up_to_a_limit_and_begin_anew_after_a_success() {
        let mut now = Instant::now();
        let mut assigned = assigned(now);
        for pause_ms in [20, 40, 80, 160, 200, 200] {
            assert!(whom(&mut assigned, false, now).is_some());
            assigned.on_unanswered(passing(), true, now);
            let due = now + Duration::from_millis(pause_ms);
            assert_eq!(assigned.due_at(), Some(due));
            now = due;
            assert!(assigned.needs_route(now));
            assigned.on_route(route(3, Some("a:1")), now);
        }
        assert!(whom(&mut assigned, false, now).is_some());
        assigned.on_fetched(&partition(), "a:1", fetched(1, vec![batch(0, 3, &["x"])]), Reset::None, now);
        assigned.on_unanswered(passing(), true, now);
        assert_eq!(assigned.due_at(), Some(now + PAUSE_MIN));
    }

    #[test]
    fn a_partition_is_asked_about_once_at_a_time() {
        let now = Instant::now();
        let mut assigned = assigned(now);
        assert_eq!(whom(&mut assigned, false, now), Some("a:1".to_owned()));
        assert_eq!(whom(&mut assigned, false, now), None);
    }

    #[test]
    fn followers_take_turns_when_they_fail_and_serve_while_there_is_no_leader() {
        let mut now = Instant::now();
        let mut assigned = assigned(now);
        assert_eq!(whom(&mut assigned, true, now), Some("b:1".to_owned()));
        assigned.on_unanswered(passing(), true, now);
        now += PAUSE_MAX;
        assigned.on_route(route(3, None), now);
        assert_eq!(whom(&mut assigned, true, now), Some("c:1".to_owned()));
    }

    #[test]
    fn a_leader_is_never_left_for_one_of_an_earlier_epoch() {
        let mut now = Instant::now();
        let mut assigned = assigned(now);
        let named = |leader_epoch| CurrentLeader { leader_epoch, endpoint: "old:1".to_owned(), broker: Some(9) };
        assert!(!assigned.follow(&named(2)) && !assigned.follow(&named(3)));
        assigned.on_unanswered(passing(), true, now);
        now += PAUSE_MAX;
        assigned.on_route(route(2, Some("old:1")), now);
        assert_eq!(whom(&mut assigned, false, now + PAUSE_MAX), None);
        assigned.on_route(route(4, Some("new:1")), now);
        assert_eq!(whom(&mut assigned, false, now + PAUSE_MAX), Some("new:1".to_owned()));
    }

    #[test]
    fn a_topic_that_was_created_anew_is_not_read_on() {
        let now = Instant::now();
        let other = Route { topic_id: "other".to_owned(), ..route(0, Some("a:1")) };
        let failure = assigned(now).on_route(other, now).failure;
        assert_eq!(failure.map(|error| error.name), Some(ErrorName::UnknownTopicId));
    }

    #[test]
    fn only_a_certain_answer_makes_a_topic_missing() {
        let now = Instant::now();
        let mut assigned = assigned(now);
        assert!(!assigned.needs_certainty());
        let missing = ApiError::new(ErrorName::UnknownTopicOrPartition, "there is no such topic");
        assert_eq!(assigned.on_no_route(missing.clone(), false, now), Progress::default());
        assert!(assigned.needs_certainty());
        assert_eq!(assigned.on_no_route(missing.clone(), true, now).failure, Some(missing));
    }
}
