//! The task behind a producer.

use std::collections::{BTreeMap, HashMap};
use std::time::Duration;

use quorate_metadata::{ApiError, ErrorName};
use quorate_proto::error::{from_item, from_status};
use quorate_proto::log::{ProduceReply, ProduceRequest, ProducedBatch, ProducedPartition};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::{AbortHandle, JoinSet};
use tokio::time::{Instant, sleep_until};
use tonic::Status;

use super::calls::{Channels, identify, produce};
use super::lane::Lane;
use super::routes::{Found, Routes, look_up};
use super::{Acks, Message, ProducerOptions, REQUEST_BYTES_MAX, Sent};
use crate::AdminClient;
use crate::error::ClientError;
use crate::log::partitioner::partition_of_key;

/// Between two looks for a leader that is not known.
const LOOK_AGAIN: Duration = Duration::from_millis(20);

/// A request that takes longer is reason to look whether its leader still leads.
const SUSPICIOUS: Duration = Duration::from_millis(300);

/// A topic that no node knows fails its records after so long.
const UNKNOWN_TOPIC: Duration = Duration::from_secs(5);

type Place = (String, i32);

pub struct Owner {
    admin: AdminClient,
    options: ProducerOptions,
    lanes: BTreeMap<Place, Lane>,
    /// Records whose topic is not known yet, and since when.
    unrouted: HashMap<String, (Instant, Vec<Sent>)>,
    /// Where records without a key go at the moment.
    sticky: HashMap<String, i32>,
    routes: Routes,
    channels: Channels,
    producer: Option<i64>,
    flights: HashMap<u64, Flight>,
    last_flight: u64,
    work: JoinSet<Done>,
    looking: bool,
    /// A leader may be another than the one that is known.
    look_wanted: bool,
    looked_at: Option<Instant>,
    asking_id: bool,
    ask_id_at: Option<Instant>,
    /// A partition has forgotten producers with higher ids.
    needs_newest_id: bool,
    flushing: Vec<Flush>,
    /// The number of the youngest batch.
    last_batch: u64,
    /// Why the last look for leaders has failed, if it has.
    look_failed: Option<ApiError>,
    /// Why records are not acknowledged: one reason of those there are.
    trouble: watch::Sender<Option<ApiError>>,
}

/// Someone waits for everything that was sent before.
struct Flush {
    /// The youngest batch that is waited for; `None` while some of it is not in a batch yet.
    up_to: Option<u64>,
    done: oneshot::Sender<()>,
}

/// A request under way.
struct Flight {
    /// In its order; `None` for one whose answer is not waited for any more.
    places: Vec<Option<Place>>,
    endpoint: String,
    since: Instant,
    handle: AbortHandle,
}

enum Done {
    Produced(u64, Result<ProduceReply, Status>),
    Looked(Result<Found, ClientError>),
    Identified(Result<i64, ApiError>),
}

impl Owner {
    pub fn new(admin: AdminClient, options: ProducerOptions, trouble: watch::Sender<Option<ApiError>>) -> Self {
        Self {
            channels: Channels::over(options.network.clone(), options.tls.clone()),
            admin,
            options,
            lanes: BTreeMap::new(),
            unrouted: HashMap::new(),
            sticky: HashMap::new(),
            routes: Routes::default(),
            producer: None,
            flights: HashMap::new(),
            last_flight: 0,
            work: JoinSet::new(),
            looking: false,
            look_wanted: false,
            looked_at: None,
            asking_id: false,
            ask_id_at: None,
            needs_newest_id: false,
            flushing: Vec::new(),
            last_batch: 0,
            look_failed: None,
            trouble,
        }
    }

    pub async fn run(mut self, mut messages: mpsc::Receiver<Message>) {
        let mut open = true;
        while open || !self.is_idle() {
            let timer = self.next_timer();
            tokio::select! {
                message = messages.recv(), if open => match message {
                    Some(message) => {
                        self.take(message);
                        while let Ok(message) = messages.try_recv() {
                            self.take(message);
                        }
                    }
                    None => open = false,
                },
                Some(done) = self.work.join_next() => self.on_done(done),
                () = at(timer) => {}
            }
            self.expire();
            self.search();
            self.dispatch();
            self.end_flushes();
            self.tell_trouble();
        }
    }

    fn is_idle(&self) -> bool {
        self.unrouted.is_empty() && self.lanes.values().all(Lane::is_empty)
    }

    pub(super) fn end_flushes(&mut self) {
        let is_routed = self.unrouted.is_empty();
        let (lanes, last) = (&self.lanes, self.last_batch);
        let is_over = |flush: &mut Flush| {
            if is_routed {
                flush.up_to.get_or_insert(last);
            }
            flush.up_to.is_some_and(|up_to| !lanes.values().any(|lane| lane.has_up_to(up_to)))
        };
        for flush in self.flushing.extract_if(.., is_over) {
            // Who asked may have gone.
            let _ = flush.done.send(());
        }
    }

    pub(super) fn take(&mut self, message: Message) {
        match message {
            Message::Flush(done) => {
                let up_to = self.unrouted.is_empty().then_some(self.last_batch);
                self.flushing.push(Flush { up_to, done });
            }
            Message::Send(sent) if self.routes.topic(&sent.topic).is_some() => self.enqueue(sent),
            Message::Send(sent) => {
                let waiting = self.unrouted.entry(sent.topic.clone());
                waiting.or_insert_with(|| (Instant::now(), Vec::new())).1.push(sent);
            }
        }
    }

    fn enqueue(&mut self, sent: Sent) {
        let partitions = self.routes.topic(&sent.topic).map_or(0, |route| route.partitions());
        let partition = match (sent.partition, &sent.record.key) {
            (Some(partition), _) => partition,
            (None, Some(key)) => i32::try_from(partition_of_key(key, partitions)).unwrap_or(0),
            (None, None) => self.sticky(&sent.topic, partitions),
        };
        if usize::try_from(partition).map_or(true, |partition| partition >= partitions) {
            let message = format!("topic {} has {partitions} partitions, no {partition}", sent.topic);
            return sent.promise.keep(Err(ClientError::failed(ErrorName::UnknownTopicOrPartition, message)));
        }
        let is_keyless = sent.partition.is_none() && sent.record.key.is_none();
        let place = (sent.topic, partition);
        let lane = self.lanes.entry(place.clone()).or_default();
        let next_batch = self.last_batch + 1;
        let is_new = lane.push((sent.record, sent.promise), self.options.batch_bytes, next_batch, Instant::now());
        if is_new {
            self.last_batch = next_batch;
        }
        if is_new && is_keyless {
            // The batch after this one goes elsewhere.
            self.sticky.insert(place.0, partition + 1);
        }
    }

    /// Where records without a key go at the moment. Beyond the last partition, also of a topic that was created again
    /// with fewer, it begins anew.
    fn sticky(&mut self, topic: &str, partitions: usize) -> i32 {
        let at = self.sticky.entry(topic.to_owned()).or_insert(0);
        if usize::try_from(*at).map_or(true, |at| at >= partitions) {
            *at = 0;
        }
        *at
    }

    /// Fails what has waited for too long.
    pub(super) fn expire(&mut self) {
        let now = Instant::now();
        let timeout = self.options.delivery_timeout;
        let mut needs_id = false;
        for lane in self.lanes.values_mut() {
            while let Some(first) = lane.first().filter(|first| now >= first.begun + timeout)
                && !lane.is_in_flight()
            {
                let error = not_in_time(lane.trouble.as_ref());
                let error = if first.maybe_appended { ClientError::Unknown(error) } else { ClientError::Failed(error) };
                needs_id |= lane.failed(&error);
            }
        }
        if needs_id {
            self.producer = None;
        }
        for (_, (_, late)) in self.unrouted.extract_if(|_, (since, _)| now >= *since + timeout) {
            let error = ClientError::Failed(not_in_time(self.look_failed.as_ref()));
            late.into_iter().for_each(|sent| sent.promise.keep(Err(error.clone())));
        }
    }

    /// Looks for leaders where one is not known, or may be another by now.
    fn search(&mut self) {
        if self.looking || self.look_due().is_none_or(|due| due > Instant::now()) {
            return;
        }
        self.looking = true;
        self.look_wanted = false;
        let busy = self.lanes.iter().filter(|(_, lane)| !lane.is_empty()).map(|((topic, _), _)| topic.clone());
        let mut names: Vec<String> = self.unrouted.keys().cloned().chain(busy).collect();
        names.sort_unstable();
        names.dedup();
        let admin = self.admin.clone();
        self.work.spawn(async move { Done::Looked(look_up(admin, names).await) });
    }

    fn look_due(&self) -> Option<Instant> {
        let after = |pause| self.looked_at.map_or_else(Instant::now, |at| at + pause);
        let is_unknown = |((topic, partition), lane): (&Place, &Lane)| {
            !lane.is_empty() && self.routes.leader(topic, *partition).is_none()
        };
        if self.look_wanted || !self.unrouted.is_empty() || self.lanes.iter().any(is_unknown) {
            return Some(after(LOOK_AGAIN));
        }
        let suspicious_at = self.flights.values().map(|flight| flight.since + SUSPICIOUS).min()?;
        Some(self.looked_at.map_or(suspicious_at, |at| suspicious_at.max(at + SUSPICIOUS)))
    }

    /// Sends what is due, in one request for each leader.
    pub(super) fn dispatch(&mut self) {
        let now = Instant::now();
        if self.options.idempotent && self.producer.is_none() {
            if self.lanes.values().any(|lane| !lane.is_empty()) {
                self.ask_for_id();
            }
            return;
        }
        let mut by_leader: BTreeMap<String, Vec<(Place, ProducedBatch)>> = BTreeMap::new();
        let mut bytes: HashMap<String, usize> = HashMap::new();
        for (place, lane) in &mut self.lanes {
            let is_due = lane.due_at(self.options.linger, self.options.batch_bytes).is_some_and(|due| due <= now);
            let (Some(leader), true) = (self.routes.leader(&place.0, place.1), is_due) else { continue };
            let taken = bytes.entry(leader.to_owned()).or_default();
            if *taken > 0 && *taken + lane.first_bytes() > REQUEST_BYTES_MAX {
                continue;
            }
            let Some(batch) = lane.take_off(self.producer) else { continue };
            *taken += batch.records.len();
            let topic_id = self.routes.topic(&place.0).map(|route| route.id.clone()).unwrap_or_default();
            let produced = ProducedBatch { topic_id, partition: place.1, leader_epoch: None, batch: Some(batch) };
            by_leader.entry(leader.to_owned()).or_default().push((place.clone(), produced));
        }
        for (endpoint, batches) in by_leader {
            let (places, batches) = batches.into_iter().map(|(place, batch)| (Some(place), batch)).unzip();
            self.take_off(endpoint, places, batches);
        }
    }

    fn take_off(&mut self, endpoint: String, places: Vec<Option<Place>>, batches: Vec<ProducedBatch>) {
        let acks = match self.options.acks {
            Acks::None => 0,
            Acks::Leader => 1,
            Acks::All => -1,
        };
        let timeout = self.options.request_timeout;
        let timeout_ms = u32::try_from(timeout.as_millis()).unwrap_or(u32::MAX);
        let request = ProduceRequest { acks, timeout_ms, batches };
        self.last_flight += 1;
        let flight = self.last_flight;
        let channel = self.channels.open(&endpoint);
        let handle = self.work.spawn(async move { Done::Produced(flight, produce(channel, request, timeout).await) });
        self.flights.insert(flight, Flight { places, endpoint, since: Instant::now(), handle });
    }

    fn ask_for_id(&mut self) {
        let is_early = self.ask_id_at.is_some_and(|at| at > Instant::now());
        if is_early || std::mem::replace(&mut self.asking_id, true) {
            return;
        }
        let leader =
            |((topic, partition), _): (&Place, &Lane)| self.routes.leader(topic, *partition).map(str::to_owned);
        let Some(endpoint) = self.lanes.iter().find_map(leader) else {
            self.asking_id = false;
            self.ask_id_at = Some(Instant::now() + LOOK_AGAIN);
            return;
        };
        let channel = self.channels.open(&endpoint);
        let newest = self.needs_newest_id;
        self.work.spawn(async move { Done::Identified(identify(channel, newest).await) });
    }

    fn on_done(&mut self, done: Result<Done, tokio::task::JoinError>) {
        match done {
            Ok(Done::Produced(flight, outcome)) => self.on_reply(flight, outcome),
            Ok(Done::Looked(found)) => self.on_looked(found),
            Ok(Done::Identified(id)) => {
                self.asking_id = false;
                match id {
                    Ok(id) => {
                        self.producer = Some(id);
                        self.needs_newest_id = false;
                    }
                    // The leader that was asked may be gone: whoever leads then is asked.
                    Err(error) => {
                        self.note(&error, |_| true);
                        self.ask_id_at = Some(Instant::now() + LOOK_AGAIN);
                        self.look_wanted = true;
                    }
                }
            }
            // Given up, because the leader is another by now.
            Err(error) if error.is_cancelled() => {}
            Err(error) => std::panic::resume_unwind(error.into_panic()),
        }
    }

    pub(super) fn on_reply(&mut self, flight: u64, outcome: Result<ProduceReply, Status>) {
        if let Some(flight) = self.flights.remove(&flight) {
            self.on_produced(flight, outcome);
        }
    }

    #[cfg(test)]
    pub(super) fn trouble(&self) -> watch::Receiver<Option<ApiError>> {
        self.trouble.subscribe()
    }

    #[cfg(test)]
    pub(super) fn identified(&mut self, producer: i64) {
        self.producer.get_or_insert(producer);
    }

    #[cfg(test)]
    pub(super) fn last_flight(&self) -> u64 {
        self.last_flight
    }

    fn on_produced(&mut self, flight: Flight, outcome: Result<ProduceReply, Status>) {
        let now = Instant::now();
        match outcome {
            Ok(reply) => {
                let mut answers = reply.partitions.iter();
                for place in flight.places {
                    match (place, answers.next()) {
                        (Some(place), Some(answer)) => self.on_answer(&place, answer, now),
                        // The broker owes an answer: nobody knows what became of the batch.
                        (Some(place), None) => {
                            let error = ApiError::new(ErrorName::OutcomeUnknown, "the broker has not answered for it");
                            self.note(&error, |it| *it == place);
                            self.lanes.entry(place).or_default().again(false, true, now);
                        }
                        (None, _) => {}
                    }
                }
            }
            Err(status) => {
                // Nothing of ours was said: the broker is gone, or its outcome is.
                if !quorate_proto::error::is_ours(&status) {
                    self.channels.forget(&flight.endpoint);
                }
                self.note(&from_status(&status), |it| flight.places.iter().flatten().any(|place| place == it));
                for place in flight.places.iter().flatten() {
                    if let Some(lane) = self.lanes.get_mut(place) {
                        lane.again(false, true, now);
                    }
                }
                self.look_wanted = true;
            }
        }
    }

    /// Why the records of these partitions are not acknowledged.
    fn note(&mut self, error: &ApiError, is_meant: impl Fn(&Place) -> bool) {
        let meant = self.lanes.iter_mut().filter(|(place, lane)| !lane.is_empty() && is_meant(place));
        meant.for_each(|(_, lane)| lane.trouble = Some(error.clone()));
    }

    pub(super) fn tell_trouble(&self) {
        let unrouted = self.look_failed.as_ref().filter(|_| !self.unrouted.is_empty());
        let trouble = self.lanes.values().find_map(|lane| lane.trouble.as_ref()).or(unrouted);
        self.trouble.send_if_modified(|told| {
            let differs = told.as_ref() != trouble;
            if differs {
                *told = trouble.cloned();
            }
            differs
        });
    }

    fn on_answer(&mut self, place: &Place, answer: &ProducedPartition, now: Instant) {
        let error = answer.error.as_ref().map(from_item);
        if let Some(error) = &error {
            self.note(error, |it| it == place);
        }
        let (topic, partition) = place;
        let Some(lane) = self.lanes.get_mut(place) else { return };
        let Some(error) = error else {
            let offset = (answer.base_offset >= 0).then_some(answer.base_offset);
            return lane.landed(*partition, offset, answer.leader_epoch);
        };
        match error.name {
            ErrorName::UnknownProducerId if lane.first().is_some_and(|first| !first.maybe_appended) => {
                lane.begin_anew();
                self.producer = None;
                self.needs_newest_id = true;
            }
            ErrorName::DuplicateSequenceNumber => lane.landed(*partition, None, answer.leader_epoch),
            name if error.is_retryable() || name == ErrorName::FencedLeaderEpoch => {
                let hint = answer.current_leader.as_ref();
                let is_news = hint.is_some_and(|hint| self.routes.learn(topic, *partition, hint));
                lane.again(is_news, !error.is_definite(), now);
                if !is_news {
                    self.look_wanted = true;
                }
            }
            _ => {
                // An earlier attempt may have been taken, whatever is said of this one.
                let maybe_appended = lane.first().is_some_and(|first| first.maybe_appended);
                let error = if maybe_appended { ClientError::Unknown(error) } else { ClientError::from(error) };
                if lane.failed(&error) {
                    self.producer = None;
                }
            }
        }
    }

    pub(super) fn on_looked(&mut self, found: Result<Found, ClientError>) {
        let now = Instant::now();
        self.looking = false;
        self.looked_at = Some(now);
        self.look_failed = found.as_ref().err().map(|error| error.error().clone());
        if let Some(error) = self.look_failed.clone() {
            self.note(&error, |_| true);
        }
        for (name, route) in found.into_iter().flatten() {
            match route {
                Ok(route) => {
                    self.routes.take(&name, route);
                    let waiting = self.unrouted.remove(&name).map(|(_, waiting)| waiting);
                    waiting.into_iter().flatten().for_each(|sent| self.enqueue(sent));
                }
                Err(error) => {
                    self.note(error.error(), |(topic, _)| *topic == name);
                    let is_late = |(since, _): &(Instant, Vec<Sent>)| now >= *since + UNKNOWN_TOPIC;
                    if self.unrouted.get(&name).is_some_and(is_late) {
                        let waiting = self.unrouted.remove(&name).map(|(_, waiting)| waiting);
                        waiting.into_iter().flatten().for_each(|sent| sent.promise.keep(Err(error.clone())));
                    }
                }
            }
        }
        self.leave_former_leaders(now);
    }

    /// What waits for a broker that is slow to answer, and that leads the partition no more, is sent to who does.
    fn leave_former_leaders(&mut self, now: Instant) {
        let (routes, lanes) = (&self.routes, &mut self.lanes);
        for flight in self.flights.values_mut().filter(|flight| now >= flight.since + SUSPICIOUS) {
            let Flight { places, endpoint, .. } = flight;
            let has_moved = |(topic, partition): &mut Place| {
                routes.leader(topic, *partition).is_some_and(|leader| leader != endpoint.as_str())
            };
            for place in places.iter_mut().filter_map(|place| place.take_if(has_moved)) {
                if let Some(lane) = lanes.get_mut(&place) {
                    lane.again(true, true, now);
                }
            }
        }
        for (_, flight) in self.flights.extract_if(|_, flight| flight.places.iter().all(Option::is_none)) {
            flight.handle.abort();
        }
    }

    fn next_timer(&self) -> Option<Instant> {
        let can_send = !self.options.idempotent || self.producer.is_some();
        let lanes = self.lanes.iter().filter_map(|((topic, partition), lane)| {
            let is_known = can_send && self.routes.leader(topic, *partition).is_some();
            let due = lane.due_at(self.options.linger, self.options.batch_bytes).filter(|_| is_known);
            let expires = lane.first().map(|first| first.begun + self.options.delivery_timeout);
            due.into_iter().chain(expires.filter(|_| !lane.is_in_flight())).min()
        });
        let look = self.look_due().filter(|_| !self.looking);
        let ask = self.ask_id_at.filter(|_| !can_send && !self.asking_id && !self.lanes.is_empty());
        lanes.chain(look).chain(ask).min()
    }
}

fn not_in_time(trouble: Option<&ApiError>) -> ApiError {
    let why = trouble.map(|error| format!(": {error}")).unwrap_or_default();
    ApiError::new(ErrorName::RequestTimedOut, format!("not delivered in time{why}"))
}

async fn at(instant: Option<Instant>) {
    match instant {
        Some(instant) => sleep_until(instant).await,
        None => std::future::pending().await,
    }
}
