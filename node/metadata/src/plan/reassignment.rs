//! Moving replicas from broker to broker.
//!
//! Goals, in this order: no acknowledged record is lost; every move can be undone; nothing of a move is left over.
//!
//! What moves together is one operation, with a throttle and a pause of its own. A partition under way has all its
//! replicas, old and new: first the targets, then those to be removed. Once the ISR holds every target, the change that
//! brings in the last one also drops the others (`partition_change`), and the partition leaves its operation.
//!
//! Example: replicas [1,2,3] are to be [4,2,3]. The plan is `replicas [4,2,3,1] adding [4] removing [1]`, led by whom it
//! was. When 4 is in sync: `replicas [4,2,3]`, and leadership moves, since 1 is gone. A newer operation that wants
//! [5,2,3] instead makes it `replicas [5,2,3,4,1] adding [5] removing [4,1]`. Cancelling leads back to [1,2,3].

use std::collections::BTreeMap;

use crate::config;
use crate::error::{ApiError, ErrorName};
use crate::ids::{BrokerId, DirectoryId, PartitionId, ReassignmentId, TopicPartition};
use crate::image::{MetadataImage, Reassignment, Topic};
use crate::limits;
use crate::plan::Plan;
use crate::plan::brokers::{is_cordoned, not_registered};
use crate::plan::partition_change::{Election, ElectionRules, PartitionChangeBuilder};
use crate::record::{Cause, Partition, PartitionChange, ReassignedPartition, ReassignmentStart, Record};

/// A partition as requests name it.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct PartitionRef {
    pub topic: String,
    pub partition: PartitionId,
}

impl std::fmt::Display for PartitionRef {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}-{}", self.topic, self.partition)
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StartReassignment {
    /// Each with the replicas it shall have, preferred leader first.
    pub targets: Vec<(PartitionRef, Vec<BrokerId>)>,
    pub throttle_bytes_per_second: Option<u64>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StartedReassignment {
    /// None where nothing has to be waited for.
    pub id: Option<ReassignmentId>,
    /// In the order of the request.
    pub partitions: Vec<Result<Progress, ApiError>>,
}

/// How far a partition gets at once.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Progress {
    /// Its new replicas are yet to come into sync.
    Moving,
    /// It only had to be written.
    Done,
    /// It is as asked for, or on its way there.
    Unchanged,
}

/// What to cancel: a whole operation, or partitions of any.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Cancelled {
    Operation(ReassignmentId),
    Partitions(Vec<PartitionRef>),
}

type Answer = (PartitionRef, Result<(), ApiError>);

/// How an operation is to go on; `None` is as before.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct ChangeReassignment {
    pub paused: Option<bool>,
    /// `Some(None)` lifts it.
    pub throttle_bytes_per_second: Option<Option<u64>>,
}

/// Begins to move partitions. Each is answered by itself; the good ones become one operation.
pub fn start(image: &MetadataImage, request: &StartReassignment) -> Result<Plan<StartedReassignment>, ApiError> {
    check_throttle(request.throttle_bytes_per_second)?;
    let times_named = count(request.targets.iter().map(|(partition, _)| partition));
    let (mut moving, mut changes, mut done) = (Vec::new(), Vec::new(), Vec::new());
    let mut move_to = |asked: &PartitionRef, target: &[BrokerId]| {
        check_named_once(&times_named, asked)?;
        let found = find(image, asked)?;
        check_target(image, &found, target)?;
        let Some(change) = found.move_to(image, target) else { return Ok(Progress::Unchanged) };
        if change.adding.as_deref().unwrap_or(found.state.adding()).is_empty()
            && change.removing.as_deref().unwrap_or(found.state.removing()).is_empty()
        {
            done.push(Record::PartitionChange(change));
            return Ok(Progress::Done);
        }
        moving.push(ReassignedPartition { id: found.id, original: found.original(image).to_vec() });
        changes.push(Record::PartitionChange(change));
        Ok(Progress::Moving)
    };
    let partitions: Vec<_> = request.targets.iter().map(|(asked, target)| move_to(asked, target)).collect();
    let id = (!moving.is_empty()).then_some(ReassignmentId::from(image.next_offset));
    let begin = id.map(|id| {
        Record::BeginReassignment(ReassignmentStart {
            id,
            partitions: moving,
            paused: false,
            throttle_bytes_per_second: request.throttle_bytes_per_second,
            started_ms: None,
        })
    });
    let records: Vec<Record> = begin.into_iter().chain(changes).chain(done).collect();
    check_size(&records)?;
    let all_refused = !partitions.is_empty() && partitions.iter().all(Result::is_err);
    Ok(Plan::of_items(records, StartedReassignment { id, partitions }, all_refused))
}

/// Leads partitions back to the replicas they had. It is refused where that would leave one without a leader, or with
/// fewer in sync than `min.insync.replicas`, unless it is forced; but never to where nobody has the records.
pub fn cancel(image: &MetadataImage, what: &Cancelled, force: bool) -> Result<Plan<Vec<Answer>>, ApiError> {
    let partitions = match what {
        Cancelled::Operation(id) => {
            operation(image, *id)?.partitions.keys().map(|&partition| named(image, partition)).collect()
        }
        Cancelled::Partitions(partitions) => partitions.clone(),
    };
    let times_named = count(&partitions);
    let mut records = Vec::new();
    let mut go_back = |asked: &PartitionRef| {
        check_named_once(&times_named, asked)?;
        let found = find(image, asked)?;
        records.push(Record::PartitionChange(found.go_back(image, force)?));
        Ok(())
    };
    let answers: Vec<_> = partitions.iter().map(&mut go_back).collect();
    let all_refused = !answers.is_empty() && answers.iter().all(Result::is_err);
    Ok(Plan::of_items(records, partitions.into_iter().zip(answers).collect(), all_refused))
}

/// Pauses, resumes or throttles an operation.
pub fn change(image: &MetadataImage, id: ReassignmentId, wanted: ChangeReassignment) -> Result<Plan<()>, ApiError> {
    let operation = operation(image, id)?;
    let paused = wanted.paused.unwrap_or(operation.paused);
    let throttle_bytes_per_second = wanted.throttle_bytes_per_second.unwrap_or(operation.throttle_bytes_per_second);
    check_throttle(throttle_bytes_per_second)?;
    if (paused, throttle_bytes_per_second) == (operation.paused, operation.throttle_bytes_per_second) {
        return Ok(Plan::new(Vec::new(), ()));
    }
    Ok(Plan::new(vec![Record::ChangeReassignment { reassignment: id, paused, throttle_bytes_per_second }], ()))
}

/// One replica to another log directory of its broker.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MoveReplica {
    pub partition: PartitionRef,
    pub broker: BrokerId,
    pub directory: DirectoryId,
}

/// Moves a replica within its broker: it starts afresh, and is out of the ISR until it has caught up. So it is refused
/// where the others are too few without it.
pub fn move_replica(image: &MetadataImage, wanted: &MoveReplica) -> Result<Plan<()>, ApiError> {
    let MoveReplica { partition, broker, directory } = wanted;
    let found = find(image, partition)?;
    let registered = image.broker(*broker).ok_or_else(|| not_registered(*broker))?;
    if !found.state.replicas.contains(broker) {
        let message = format!("broker {broker} has no replica of {found}");
        return Err(ApiError::new(ErrorName::InvalidReplicaAssignment, message));
    }
    if directory.is_reserved() || !registered.has_online(*directory) {
        let message = format!("broker {broker} has no log directory {directory} online");
        return Err(ApiError::new(ErrorName::LogDirNotFound, message));
    }
    if found.state.directory_of(*broker) == *directory {
        return Ok(Plan::new(Vec::new(), ()));
    }
    let left = found.state.isr.iter().filter(|member| *member != broker).count();
    let needed = ElectionRules::of(image, found.topic).needed_in_sync(found.state.replicas.len()).max(1);
    if found.state.isr.contains(broker) && left < needed {
        let message =
            format!("without broker {broker}, {left} replicas of {found} are in sync, and {needed} are needed");
        return Err(ApiError::new(ErrorName::NotEnoughReplicas, message));
    }
    if found.state.elr().contains(broker) || found.state.last_known_elr().contains(broker) {
        let message = format!("broker {broker} may be the last to have all records of {found}");
        return Err(ApiError::new(ErrorName::NotEnoughReplicas, message));
    }
    let change = found.builder(image).relocate(*broker, *directory).build();
    Ok(Plan::new(change.into_iter().map(Record::PartitionChange).collect(), ()))
}

/// A partition that was found.
struct Found<'a> {
    id: TopicPartition,
    topic: &'a Topic,
    state: &'a Partition,
}

impl Found<'_> {
    fn builder<'a>(&'a self, image: &'a MetadataImage) -> PartitionChangeBuilder<'a> {
        let rules = ElectionRules::of(image, self.topic);
        PartitionChangeBuilder::new(image, self.id, self.state, rules, Cause::Reassignment)
    }

    /// The replicas from before it was first reassigned: a newer operation leads back as far as the older one.
    fn original<'a>(&'a self, image: &'a MetadataImage) -> &'a [BrokerId] {
        let operation = image.reassignment_of(self.id);
        operation
            .and_then(|operation| operation.partitions.get(&self.id))
            .map_or(&self.state.replicas[..], |original| original)
    }

    fn move_to(&self, image: &MetadataImage, target: &[BrokerId]) -> Option<PartitionChange> {
        let original = self.original(image);
        let adding = target.iter().copied().filter(|replica| !original.contains(replica)).collect();
        let leaves = |replica: &BrokerId| !target.contains(replica);
        let removing: Vec<BrokerId> = self.state.replicas.iter().copied().filter(leaves).collect();
        let replicas = target.iter().chain(&removing).copied().collect();
        // Whoever is new has no records: it must not come to lead because it was named.
        self.builder(image).election(Election::Online).replicas(replicas, adding, removing).build()
    }

    fn go_back(&self, image: &MetadataImage, force: bool) -> Result<PartitionChange, ApiError> {
        if !self.state.is_reassigning() {
            let message = format!("partition {self} is not being reassigned");
            return Err(ApiError::new(ErrorName::NoReassignmentInProgress, message));
        }
        let original = self.original(image);
        let change = self.builder(image).replicas(original.to_vec(), Vec::new(), Vec::new()).build();
        let change = change.expect("the lists of adding and removing replicas become empty");
        self.check_way_back(image, &change, original, force)?;
        Ok(change)
    }

    fn check_way_back(
        &self,
        image: &MetadataImage,
        change: &PartitionChange,
        original: &[BrokerId],
        force: bool,
    ) -> Result<(), ApiError> {
        let before = self.state;
        let isr = change.isr.as_deref().unwrap_or(&before.isr);
        let refuse = |outcome: &str, advice: &str| {
            let absent = original.iter().filter(|replica| !isr.contains(replica) || change.unclean);
            let absent: Vec<String> = absent.map(|&replica| standing(image, replica)).collect();
            let message = format!(
                "going back to replicas {original:?} would leave partition {self} {outcome}: {}{advice}",
                absent.join(", ")
            );
            Err(ApiError::new(ErrorName::InvalidReplicaAssignment, message))
        };
        let elr = change.elr.as_deref().unwrap_or(before.elr());
        let last_known = change.last_known_elr.as_deref().unwrap_or(before.last_known_elr());
        if isr.is_empty() && elr.is_empty() && last_known.is_empty() {
            return refuse("to nobody who has its records", "");
        }
        if force {
            return Ok(());
        }
        let advice = "; it can be forced";
        if change.leader.unwrap_or(before.leader).is_none() || change.unclean {
            return refuse("without a live in-sync replica", advice);
        }
        let needed = ElectionRules::of(image, self.topic).needed_in_sync(original.len());
        if isr.len() < needed && isr.len() < before.isr.len() {
            return refuse(&format!("with {} in sync where min.insync.replicas is {needed}", isr.len()), advice);
        }
        Ok(())
    }
}

impl std::fmt::Display for Found<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}-{}", self.topic.name, self.id.partition)
    }
}

/// Why `broker` does not count as in sync.
fn standing(image: &MetadataImage, broker: BrokerId) -> String {
    let why = match image.broker(broker) {
        None => "is not registered",
        Some(at) if at.fenced => "is fenced",
        Some(at) if at.in_controlled_shutdown => "is in controlled shutdown",
        Some(_) => "is not in sync",
    };
    format!("broker {broker} {why}")
}

fn find<'a>(image: &'a MetadataImage, asked: &PartitionRef) -> Result<Found<'a>, ApiError> {
    let unknown = |message| ApiError::new(ErrorName::UnknownTopicOrPartition, message);
    let topic = image.topic_named(&asked.topic);
    let topic = topic.ok_or_else(|| unknown(format!("topic {:?} does not exist", asked.topic)))?;
    let state = topic.partition(asked.partition);
    let state = state.ok_or_else(|| unknown(format!("topic {:?} has no partition {}", topic.name, asked.partition)))?;
    Ok(Found { id: TopicPartition::new(topic.id, asked.partition), topic, state })
}

fn named(image: &MetadataImage, id: TopicPartition) -> PartitionRef {
    let topic = image.topic(id.topic).expect("an operation names partitions of the image");
    PartitionRef { topic: topic.name.clone(), partition: id.partition }
}

fn operation(image: &MetadataImage, id: ReassignmentId) -> Result<&Reassignment, ApiError> {
    let unknown = || ApiError::new(ErrorName::NoReassignmentInProgress, format!("no reassignment has the id {id}"));
    image.reassignments.get(&id).map(AsRef::as_ref).ok_or_else(unknown)
}

fn count<'a>(partitions: impl IntoIterator<Item = &'a PartitionRef>) -> BTreeMap<&'a PartitionRef, usize> {
    let mut times = BTreeMap::new();
    for partition in partitions {
        *times.entry(partition).or_default() += 1;
    }
    times
}

fn check_named_once(times_named: &BTreeMap<&PartitionRef, usize>, asked: &PartitionRef) -> Result<(), ApiError> {
    if times_named.get(asked).is_none_or(|&times| times == 1) {
        return Ok(());
    }
    let message = format!("partition {asked} is named more than once in the request");
    Err(ApiError::new(ErrorName::InvalidRequest, message))
}

/// A fenced broker may be a target: it will be back. One that takes no new replicas may not, unless it has one already.
fn check_target(image: &MetadataImage, found: &Found<'_>, target: &[BrokerId]) -> Result<(), ApiError> {
    let refuse =
        |why: String| Err(ApiError::new(ErrorName::InvalidReplicaAssignment, format!("partition {found} {why}")));
    if target.is_empty() {
        return refuse("would have no replicas; cancelling is a request of its own".to_owned());
    }
    for (at, replica) in target.iter().enumerate() {
        if target[..at].contains(replica) {
            return refuse(format!("would have two replicas on broker {replica}"));
        }
        let Some(broker) = image.broker(*replica) else {
            return refuse(format!("would have a replica on broker {replica}, which is not registered"));
        };
        if broker.kind != found.topic.kind {
            let (has, kind) = (&broker.kind, &found.topic.kind);
            return refuse(format!("of kind {kind} would have a replica on broker {replica}, which is of kind {has}"));
        }
        if is_cordoned(broker) && !found.state.replicas.contains(replica) {
            return refuse(format!("would have a replica on broker {replica}, whose directories are all cordoned"));
        }
    }
    // The topic would acknowledge less than it asks for.
    let min_isr = config::own_min_insync_replicas(image, &found.topic.name);
    if let Some(min_isr) = min_isr.filter(|&min_isr| target.len() < min_isr.min(found.original(image).len())) {
        let (count, key) = (target.len(), config::MIN_INSYNC_REPLICAS);
        return refuse(format!("would have {count} replicas, and {key} of its topic is {min_isr}"));
    }
    Ok(())
}

fn check_throttle(throttle_bytes_per_second: Option<u64>) -> Result<(), ApiError> {
    if throttle_bytes_per_second != Some(0) {
        return Ok(());
    }
    let message = "a throttle of 0 bytes per second would move nothing; pause the reassignment instead";
    Err(ApiError::new(ErrorName::InvalidRequest, message))
}

/// An operation begins in one batch: cut in two, there would be a moment when it names partitions that do not move.
/// Since it is never a transaction of several batches, it may also name its own offset.
fn check_size(records: &[Record]) -> Result<(), ApiError> {
    let bytes: usize = records.iter().map(Record::approximate_bytes).sum();
    if bytes <= limits::BATCH_BYTES_MAX {
        return Ok(());
    }
    let max = limits::BATCH_BYTES_MAX;
    let message = format!("the reassignment takes {bytes} bytes of records, one may take {max}; name fewer partitions");
    Err(ApiError::new(ErrorName::RecordListTooLarge, message))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::image::fixture::{batch, broker, create_partition, image, registration, topic};
    use crate::plan::checkpoint::into_batches;
    use crate::record::BrokerRegistration;

    /// A reassignment of so many partitions of "orders", each by one replica.
    fn reassign(partitions: i32) -> Result<Plan<StartedReassignment>, ApiError> {
        let mut image = image();
        let mut more: Vec<Record> = (2..partitions).map(|id| create_partition(topic(1), id, &[1, 2])).collect();
        let directories = vec![DirectoryId::from_bytes([3; 16])];
        more.push(Record::RegisterBroker(BrokerRegistration { directories, ..registration(3) }));
        image.replay(&batch(1, &more)).expect("the next partitions of the topic replay");
        let partition = |id| PartitionRef { topic: "orders".to_owned(), partition: PartitionId::new(id) };
        let targets = (2..partitions).map(|id| (partition(id), vec![broker(1), broker(3)])).collect();
        start(&image, &StartReassignment { targets, throttle_bytes_per_second: None })
    }

    #[test]
    fn a_reassignment_begins_in_one_batch_or_not_at_all() {
        let plan = reassign(3_000).expect("it is within the bound");
        assert_eq!(into_batches(plan.records, true, "start-reassignment").len(), 1);
        let refused = reassign(10_000).expect_err("it is too large for one batch");
        assert_eq!(refused.name, ErrorName::RecordListTooLarge);
    }
}
