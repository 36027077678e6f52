//! Reading partitions: from their leaders or, where that is wanted, from followers; over elections and broken
//! connections, without gap or repeat, and never without saying so where records that were read have been lost.
//!
//! Each broker is asked in a call of its own, and a call goes on while its consumer does something else: a partition
//! has at most one under way, so that what it brings fits where the partition stands. A broker that no longer leads
//! names the new leader, which is asked at once; otherwise the cluster is asked who leads, at growing intervals.
//!
//! ```no_run
//! # async fn example(client: quorate_client::AdminClient) -> Result<(), quorate_client::ClientError> {
//! use std::time::Duration;
//! use quorate_client::log::{Consumer, ConsumerOptions, Start};
//!
//! let mut consumer = Consumer::new(client, ConsumerOptions::default());
//! consumer.assign("orders", 0, Start::Beginning);
//! for record in consumer.poll(Duration::from_secs(1)).await? {
//!     println!("{} {:?}", record.offset, record.value);
//! }
//! # Ok(())
//! # }
//! ```

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::fmt;
use std::future::Future;
use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use quorate_metadata::ApiError;
use quorate_proto::log::{FetchReply, FetchRequest, ListOffsetsReply, ListOffsetsRequest};
use tokio::task::{JoinError, JoinSet};
use tokio::time::{Instant, sleep_until, timeout, timeout_at};
use tonic::{Response, Status};

use self::assigned::{Assigned, Progress, Question};
use self::cluster::{Brokers, Cluster, Unanswered};
use crate::admin::{AdminClient, Freshness};
use crate::error::ClientError;

mod assigned;
mod cluster;
mod epochs;
#[cfg(test)]
mod fake;
mod records;
#[cfg(test)]
mod tests;

/// What a broker is given beyond the time that it was asked to wait: then it hangs, or is cut off.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(1);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ConsumerOptions {
    /// How long a broker waits for records before it answers that there are none.
    pub max_wait: Duration,
    /// Of one answer of a broker.
    pub max_bytes: u32,
    /// Read from in-sync followers, up to the high watermark that they know.
    pub from_follower: bool,
    pub reset: Reset,
}

impl Default for ConsumerOptions {
    fn default() -> Self {
        Self { max_wait: Duration::from_millis(500), max_bytes: 8 << 20, from_follower: false, reset: Reset::None }
    }
}

/// Where to go on when the log does not have the offset (any more). A reader that has read nothing yet begins anew where
/// it was to begin; what a reset passes over is told by `Consumer::take_skipped`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reset {
    /// Nowhere: the caller is told.
    None,
    Earliest,
    Latest,
}

/// Where to begin.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Start {
    At(i64),
    Beginning,
    /// With what comes from now on.
    End,
    /// With the first record of this time or later, in milliseconds since 1970.
    Timestamp(i64),
}

#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Partition {
    pub topic: Arc<str>,
    pub partition: i32,
}

impl fmt::Display for Partition {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}", self.topic, self.partition)
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConsumedRecord {
    pub topic: Arc<str>,
    pub partition: i32,
    pub offset: i64,
    pub leader_epoch: i32,
    pub timestamp_ms: i64,
    pub key: Option<Bytes>,
    /// Absent: a tombstone.
    pub value: Option<Bytes>,
    pub headers: Vec<(String, Bytes)>,
}

/// Offsets that a reset has passed over: by `Reset::Earliest` those that the log no longer has, by `Reset::Latest` also
/// those that it still has.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Skipped {
    pub partition: Partition,
    pub offsets: Range<i64>,
}

#[derive(Debug)]
pub struct Consumer {
    client: AdminClient,
    options: ConsumerOptions,
    brokers: Brokers,
    partitions: BTreeMap<Partition, Assigned>,
    /// Ended with the consumer.
    calls: JoinSet<Answer>,
    /// The cluster is being asked who has the partitions.
    is_looking: bool,
    /// To be told when there are no records to hand out.
    failures: VecDeque<(Partition, ApiError)>,
    skipped: BTreeMap<Partition, Range<i64>>,
    assignments: u64,
}

/// A partition that a call is about, as it was then.
#[derive(Debug)]
struct Asked {
    partition: Partition,
    assignment: u64,
    /// How many entries of the request are about it.
    entries: usize,
}

#[derive(Debug)]
enum Answer {
    Looked { topics: BTreeSet<Arc<str>>, cluster: Result<Cluster, ClientError>, is_certain: bool },
    Listed { from: Arc<str>, asked: Vec<Asked>, reply: Result<ListOffsetsReply, Unanswered> },
    Fetched { from: Arc<str>, asked: Vec<Asked>, reply: Result<FetchReply, Unanswered> },
}

impl Consumer {
    pub fn new(client: AdminClient, options: ConsumerOptions) -> Self {
        Self {
            brokers: Brokers::new(&client.options),
            client,
            options,
            partitions: BTreeMap::new(),
            calls: JoinSet::new(),
            is_looking: false,
            failures: VecDeque::new(),
            skipped: BTreeMap::new(),
            assignments: 0,
        }
    }

    /// Reads this partition too or, where it is read already, goes to this place.
    pub fn assign(&mut self, topic: &str, partition: i32, start: Start) {
        self.assignments += 1;
        let partition = Partition { topic: topic.into(), partition };
        self.failures.retain(|(failed, _)| *failed != partition);
        self.partitions.insert(partition, Assigned::new(self.assignments, start, Instant::now()));
    }

    /// The next records, waited for up to `max_wait`; none where none have come, or where there is nobody to ask: see
    /// `troubles`.
    ///
    /// Fails with OFFSET_OUT_OF_RANGE where the log does not have the offset and no reset is wanted, and where it was
    /// truncated below what was read: there the next poll goes on at the truncation, as `positions` tells. Fails with
    /// CORRUPT_MESSAGE where a batch does not have its checksum; the next poll fetches it again.
    ///
    /// Cancel safe: no record is lost.
    pub async fn poll(&mut self, max_wait: Duration) -> Result<Vec<ConsumedRecord>, ClientError> {
        let deadline = Instant::now() + max_wait;
        loop {
            if let Some((partition, error)) = self.failures.pop_front() {
                return Err(ClientError::failed(error.name, format!("{partition}: {}", error.message)));
            }
            self.call();
            let wake = self.wake(deadline);
            let mut records = Vec::new();
            match timeout_at(wake, self.calls.join_next()).await {
                Ok(Some(answer)) => {
                    self.accept(answer, &mut records);
                    while let Some(answer) = self.calls.try_join_next() {
                        self.accept(answer, &mut records);
                    }
                }
                Ok(None) => sleep_until(wake).await,
                Err(_) => {}
            }
            if !records.is_empty() {
                // The next ones are fetched while these are looked at.
                self.call();
                return Ok(records);
            }
            if self.failures.is_empty() && Instant::now() >= deadline {
                return Ok(records);
            }
        }
    }

    /// The next offset of each partition, where it is known.
    pub fn positions(&self) -> BTreeMap<Partition, i64> {
        self.each(Assigned::position)
    }

    /// Of each partition that a broker has answered for, as of its last answer.
    pub fn high_watermarks(&self) -> BTreeMap<Partition, i64> {
        self.each(|assigned| assigned.high_watermark)
    }

    /// What was passed over by resets since the last call; of each partition all in one, from the first to the last.
    pub fn take_skipped(&mut self) -> Vec<Skipped> {
        let skipped = std::mem::take(&mut self.skipped);
        skipped.into_iter().map(|(partition, offsets)| Skipped { partition, offsets }).collect()
    }

    fn skip(&mut self, partition: &Partition, offsets: Range<i64>) {
        let known = self.skipped.entry(partition.clone()).or_insert_with(|| offsets.clone());
        *known = known.start.min(offsets.start)..known.end.max(offsets.end);
    }

    /// Why partitions cannot be read just now.
    pub fn troubles(&self) -> BTreeMap<Partition, ApiError> {
        self.each(|assigned| assigned.trouble.clone())
    }

    fn each<T>(&self, of: impl Fn(&Assigned) -> Option<T>) -> BTreeMap<Partition, T> {
        let known = self.partitions.iter().filter_map(|(partition, assigned)| Some((partition.clone(), of(assigned)?)));
        known.collect()
    }

    /// When something is to be done even if nothing is answered.
    fn wake(&self, deadline: Instant) -> Instant {
        // Those without a route wait for it, however long it takes.
        let waits_for_look = |assigned: &&Assigned| self.is_looking && assigned.needs_route(Instant::now());
        let idle = self.partitions.values().filter(|assigned| !waits_for_look(assigned));
        idle.filter_map(Assigned::due_at).fold(deadline, Instant::min)
    }

    /// Begins every call that is due.
    fn call(&mut self) {
        let now = Instant::now();
        self.look(now);
        let mut lists: BTreeMap<Arc<str>, (Vec<Asked>, ListOffsetsRequest)> = BTreeMap::new();
        let mut fetches: BTreeMap<Arc<str>, (Vec<Asked>, FetchRequest)> = BTreeMap::new();
        for (partition, assigned) in &mut self.partitions {
            let question = assigned.ask(partition.partition, self.options.from_follower, now);
            let Some((to, question)) = question else { continue };
            let asked = |entries| Asked { partition: partition.clone(), assignment: assigned.assignment, entries };
            match question {
                Question::List(queries) => {
                    let (about, request) = lists.entry(to).or_default();
                    about.push(asked(queries.len()));
                    request.partitions.extend(queries);
                }
                Question::Fetch(fetch) => {
                    let (about, request) = fetches.entry(to).or_default();
                    about.push(asked(1));
                    request.partitions.push(fetch);
                }
            }
        }
        for (to, (asked, request)) in lists {
            self.list(to, asked, request);
        }
        for (to, (asked, request)) in fetches {
            self.fetch(to, asked, request);
        }
    }

    /// Asks who has the partitions of which that is not known.
    fn look(&mut self, now: Instant) {
        let wanting = || self.partitions.iter().filter(|(_, assigned)| assigned.needs_route(now));
        if self.is_looking || wanting().next().is_none() {
            return;
        }
        let topics: BTreeSet<Arc<str>> = wanting().map(|(partition, _)| partition.topic.clone()).collect();
        let is_certain = wanting().any(|(_, assigned)| assigned.needs_certainty());
        let freshness = if is_certain { Freshness::Linearizable } else { Freshness::Stale };
        let client = self.client.clone();
        self.calls.spawn(async move {
            let cluster = Cluster::look(client, &topics, freshness).await;
            Answer::Looked { topics, cluster, is_certain }
        });
        self.is_looking = true;
    }

    fn list(&mut self, from: Arc<str>, asked: Vec<Asked>, request: ListOffsetsRequest) {
        let client = self.brokers.client(&from);
        self.calls.spawn(async move {
            let reply = match client {
                Ok(mut client) => answer(&from, ANSWER_TIMEOUT, client.list_offsets(request)).await,
                Err(error) => Err(error),
            };
            Answer::Listed { from, asked, reply }
        });
    }

    fn fetch(&mut self, from: Arc<str>, asked: Vec<Asked>, mut request: FetchRequest) {
        // A partition with much to read must not keep the others from their turn.
        let share = self.options.max_bytes / u32::try_from(asked.len()).unwrap_or(u32::MAX);
        request.partitions.iter_mut().for_each(|partition| partition.max_bytes = share.max(1));
        request.max_wait_ms = u32::try_from(self.options.max_wait.as_millis()).unwrap_or(u32::MAX);
        request.min_bytes = 1;
        request.max_bytes = self.options.max_bytes;
        request.from_follower = self.options.from_follower;
        let limit = self.options.max_wait + ANSWER_TIMEOUT;
        let client = self.brokers.client(&from);
        self.calls.spawn(async move {
            let reply = match client {
                Ok(mut client) => answer(&from, limit, client.fetch(request)).await,
                Err(error) => Err(error),
            };
            Answer::Fetched { from, asked, reply }
        });
    }

    fn accept(&mut self, answer: Result<Answer, JoinError>, records: &mut Vec<ConsumedRecord>) {
        let answer = answer.unwrap_or_else(|error| std::panic::resume_unwind(error.into_panic()));
        match answer {
            Answer::Looked { topics, cluster, is_certain } => self.on_looked(&topics, cluster, is_certain),
            Answer::Listed { from, asked, reply } => match reply.map(|reply| reply.partitions) {
                Ok(listed) if listed.len() == asked.iter().map(|asked| asked.entries).sum::<usize>() => {
                    let mut listed = listed.as_slice();
                    for asked in &asked {
                        let (own, others) = listed.split_at(asked.entries);
                        listed = others;
                        self.on_answer(asked, records, |assigned, now| assigned.on_listed(own, now));
                    }
                }
                Ok(_) => self.on_unanswered(&from, &asked, &Unanswered::incomplete(&from)),
                Err(error) => self.on_unanswered(&from, &asked, &error),
            },
            Answer::Fetched { from, asked, reply } => match reply.map(|reply| reply.partitions) {
                Ok(fetched) if fetched.len() == asked.len() => {
                    let reset = self.options.reset;
                    for (asked, fetched) in asked.iter().zip(fetched) {
                        self.on_answer(asked, records, |assigned, now| {
                            assigned.on_fetched(&asked.partition, &from, fetched, reset, now)
                        });
                    }
                }
                Ok(_) => self.on_unanswered(&from, &asked, &Unanswered::incomplete(&from)),
                Err(error) => self.on_unanswered(&from, &asked, &error),
            },
        }
    }

    fn on_looked(&mut self, topics: &BTreeSet<Arc<str>>, cluster: Result<Cluster, ClientError>, is_certain: bool) {
        self.is_looking = false;
        let now = Instant::now();
        let cluster = cluster.map_err(|error| error.error().clone());
        for (partition, assigned) in &mut self.partitions {
            if !assigned.needs_route(now) || !topics.contains(&partition.topic) {
                continue;
            }
            let progress = match cluster.as_ref().map_err(Clone::clone).and_then(|cluster| cluster.route(partition)) {
                Ok(route) => assigned.on_route(route, now),
                Err(error) => assigned.on_no_route(error, is_certain, now),
            };
            self.failures.extend(progress.failure.map(|failure| (partition.clone(), failure)));
        }
    }

    fn on_unanswered(&mut self, from: &Arc<str>, asked: &[Asked], why: &Unanswered) {
        if why.is_broken {
            self.brokers.forget(from);
        }
        for asked in asked {
            self.on_answer(asked, &mut Vec::new(), |assigned, now| {
                assigned.on_unanswered(why.error.clone(), why.is_passing, now)
            });
        }
    }

    /// Takes what an answer says of one partition, unless it is about an assignment that is no more.
    fn on_answer(
        &mut self,
        asked: &Asked,
        records: &mut Vec<ConsumedRecord>,
        take: impl FnOnce(&mut Assigned, Instant) -> Progress,
    ) {
        let assigned = self.partitions.get_mut(&asked.partition);
        let Some(assigned) = assigned.filter(|assigned| assigned.assignment == asked.assignment) else { return };
        let progress = take(assigned, Instant::now());
        records.extend(progress.records);
        self.failures.extend(progress.failure.map(|failure| (asked.partition.clone(), failure)));
        if let Some(offsets) = progress.skipped {
            self.skip(&asked.partition, offsets);
        }
    }
}

async fn answer<Reply>(
    from: &str,
    limit: Duration,
    call: impl Future<Output = Result<Response<Reply>, Status>>,
) -> Result<Reply, Unanswered> {
    match timeout(limit, call).await {
        Ok(Ok(reply)) => Ok(reply.into_inner()),
        Ok(Err(status)) => Err(Unanswered::new(from, &status)),
        Err(_) => Err(Unanswered::late(from, limit)),
    }
}
