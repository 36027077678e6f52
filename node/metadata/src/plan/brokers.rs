//! The life of a broker: registered and fenced, unfenced, in controlled shutdown, fenced again, unregistered.
//!
//! Where a broker stops being active, the changes of its partitions come first and the record about the broker
//! comes last; where it becomes active, its own record comes first. So the image is sound after every prefix of the
//! records, and a plan may be cut between any two: what is left is found and finished later. A broker with many
//! partitions is changed in steps (`Plan::is_partial`), and the record about it is in the last one.

use std::collections::{BTreeMap, BTreeSet};

use crate::error::{ApiError, ErrorName};
use crate::ids::{BrokerEpoch, BrokerId, ClusterId, ControllerId, DirectoryId, IncarnationId, TopicPartition};
use crate::image::MetadataImage;
use crate::limits;
use crate::plan::partition_change::{Step, change_step};
pub use crate::plan::unregister::unregister;
use crate::plan::{Plan, directories, features, probe};
use crate::record::{BrokerRegistration, Cause, ControllerRegistration, Endpoint, Kind, Probe, Record, VersionRange};

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RegisterBroker {
    pub broker: BrokerId,
    pub cluster: ClusterId,
    pub incarnation: IncarnationId,
    pub kind: Kind,
    pub probe: Probe,
    pub endpoints: Vec<Endpoint>,
    pub rack: Option<String>,
    pub features: BTreeMap<String, VersionRange>,
    pub directories: Vec<DirectoryId>,
    pub cordoned_directories: Option<Vec<DirectoryId>>,
    /// The epoch that it had before, if its copies still have all that it acknowledged then.
    pub previous_epoch: Option<BrokerEpoch>,
}

/// Registers a broker, or amends the registration of one that is running.
///
/// The epoch is the offset of the record that registers it, which is the plan's last: the records must be
/// proposed at `image.next_offset`, with nothing before them.
pub fn register(
    image: &MetadataImage,
    request: RegisterBroker,
    has_live_session: bool,
) -> Result<Plan<BrokerEpoch>, ApiError> {
    check_cluster(image, &request)?;
    check_duplicate(image, &request, has_live_session)?;
    features::check_member(image, format_args!("broker {}", request.broker), &request.features)?;
    check_kind(image, &request)?;
    check_directories(image, &request)?;
    check_endpoints(&request)?;
    let probe = probe::recorded(image, &request)?;
    let request = RegisterBroker { probe, ..request };
    match image.broker(request.broker) {
        Some(before) if before.incarnation == request.incarnation => Ok(amend(image, before, request)),
        before => Ok(register_incarnation(image, before.map(AsRef::as_ref), request)),
    }
}

fn check_cluster(image: &MetadataImage, request: &RegisterBroker) -> Result<(), ApiError> {
    match image.cluster {
        Some(cluster) if cluster == request.cluster => Ok(()),
        Some(cluster) => Err(ApiError::new(
            ErrorName::InconsistentClusterId,
            format!("broker {} belongs to cluster {}, this is cluster {cluster}", request.broker, request.cluster),
        )),
        None => Err(ApiError::new(ErrorName::ControllerUnavailable, "the cluster has not been created yet")),
    }
}

/// Two processes under one id: the one that is alive keeps it, unless it is about to stop anyway.
fn check_duplicate(image: &MetadataImage, request: &RegisterBroker, has_live_session: bool) -> Result<(), ApiError> {
    let Some(before) = image.broker(request.broker) else { return Ok(()) };
    let other_is_running = before.incarnation != request.incarnation && has_live_session && before.is_active();
    if !other_is_running {
        return Ok(());
    }
    Err(ApiError::new(
        ErrorName::DuplicateBrokerRegistration,
        format!("broker {} is running as incarnation {}", request.broker, before.incarnation),
    ))
}

/// A broker may change its kind while it has no replicas: all that it has are of one kind, whether or not it is registered.
fn check_kind(image: &MetadataImage, request: &RegisterBroker) -> Result<(), ApiError> {
    image.check_kind(&request.kind)?;
    let hosted = image.index.hosted_by(request.broker).next().and_then(|id| image.topic(id.topic));
    match hosted.filter(|topic| topic.kind != request.kind) {
        Some(topic) => {
            let count = image.index.replica_count(request.broker);
            let why = format!("is of kind {} and has {count} replicas of kind {}", request.kind, topic.kind);
            Err(invalid_registration(request, &why))
        }
        None => Ok(()),
    }
}

fn check_directories(image: &MetadataImage, request: &RegisterBroker) -> Result<(), ApiError> {
    if request.directories.is_empty() {
        return Err(invalid_registration(request, "has no log directory"));
    }
    let (count, max) = (request.directories.len(), limits::DIRECTORIES_PER_BROKER_MAX);
    if count > max {
        return Err(invalid_registration(request, &format!("has {count} log directories, expected at most {max}")));
    }
    let running = image.broker(request.broker).filter(|before| before.incarnation == request.incarnation);
    let mut seen = BTreeSet::new();
    for &directory in &request.directories {
        if directory.is_reserved() {
            return Err(invalid_registration(request, &format!("uses the reserved directory id {directory}")));
        }
        if !seen.insert(directory) {
            return Err(invalid_registration(request, &format!("names directory {directory} twice")));
        }
        if running.is_some_and(|running| !running.directories.contains(&directory)) {
            // One that has failed stays out of use until the process is another: what it had was given up.
            return Err(invalid_registration(request, &format!("gains directory {directory} while it runs")));
        }
        let others = image.brokers.values().filter(|other| other.broker != request.broker);
        if let Some(owner) = others.into_iter().find(|other| other.directories.contains(&directory)) {
            let why = format!("names directory {directory}, which broker {} has", owner.broker);
            return Err(invalid_registration(request, &why));
        }
    }
    Ok(())
}

fn check_endpoints(request: &RegisterBroker) -> Result<(), ApiError> {
    if request.broker.get() < 0 {
        return Err(invalid_registration(request, "has a negative id"));
    }
    if request.endpoints.is_empty() {
        return Err(invalid_registration(request, "has no endpoint"));
    }
    match request.endpoints.iter().find(|endpoint| endpoint.host.is_empty()) {
        Some(endpoint) => Err(invalid_registration(request, &format!("has no host for endpoint {:?}", endpoint.name))),
        None => Ok(()),
    }
}

pub(super) fn invalid_registration(request: &RegisterBroker, why: &str) -> ApiError {
    ApiError::new(ErrorName::InvalidRegistration, format!("broker {} {why}", request.broker))
}

/// The same process again: what it says of itself is taken over, what it is stays.
fn amend(image: &MetadataImage, before: &BrokerRegistration, request: RegisterBroker) -> Plan<BrokerEpoch> {
    let epoch = before.epoch;
    let after = BrokerRegistration {
        fenced: before.fenced,
        in_controlled_shutdown: before.in_controlled_shutdown,
        controlled_shutdown_offset: before.controlled_shutdown_offset,
        ..registration(request, epoch)
    };
    if after == *before {
        return Plan::new(Vec::new(), epoch);
    }
    let lost = hosted_elsewhere(image, before.broker, &after.directories);
    let cause = Cause::UncleanRestart(before.broker);
    let step = change_step(image, lost, cause, |change| change.rehome(before.broker, &after.directories));
    finish(step, epoch, Record::RegisterBroker(after))
}

/// The step itself, and after the last one the record that concludes the whole.
pub(super) fn finish<R>(step: Step, response: R, conclusion: Record) -> Plan<R> {
    let Step { mut records, is_last } = step;
    if !is_last {
        return Plan::partial(records, response);
    }
    records.push(conclusion);
    Plan::new(records, response)
}

/// A new process: born fenced, and out of every ISR. Out of the ELR as well, unless it proves that its copies
/// are whole: otherwise the end of its log may be gone.
fn register_incarnation(
    image: &MetadataImage,
    before: Option<&BrokerRegistration>,
    request: RegisterBroker,
) -> Plan<BrokerEpoch> {
    let step = give_up_seats(image, before, &request);
    let epoch = BrokerEpoch::from(image.next_offset.advance(step.records.len()));
    finish(step, epoch, Record::RegisterBroker(registration(request, epoch)))
}

fn give_up_seats(image: &MetadataImage, before: Option<&BrokerRegistration>, request: &RegisterBroker) -> Step {
    let broker = request.broker;
    let directories = &request.directories;
    let elsewhere = hosted_elsewhere(image, broker, directories);
    let in_isr = image.index.in_isr(broker);
    if before.is_some_and(|before| request.previous_epoch == Some(before.epoch)) {
        let seats = union(elsewhere.into_iter(), in_isr);
        let cause = Cause::BrokerFenced(broker);
        return change_step(image, seats, cause, |change| change.without(broker).rehome(broker, directories));
    }
    let seats = union(union(elsewhere.into_iter(), in_isr), image.index.in_elr(broker));
    let cause = Cause::UncleanRestart(broker);
    change_step(image, seats, cause, |change| change.distrust(broker).rehome(broker, directories))
}

/// Two ascending lists as one, each id once.
pub(super) fn union(
    first: impl Iterator<Item = TopicPartition>,
    second: impl Iterator<Item = TopicPartition>,
) -> impl Iterator<Item = TopicPartition> {
    let (mut first, mut second) = (first.peekable(), second.peekable());
    std::iter::from_fn(move || match (first.peek(), second.peek()) {
        (Some(one), Some(other)) if one == other => {
            second.next();
            first.next()
        }
        (Some(one), Some(other)) if other < one => second.next(),
        (None, _) => second.next(),
        (Some(_), _) => first.next(),
    })
}

/// The partitions whose copy was in a directory that the broker no longer has. What it was registered with says too
/// little: it may have been unregistered since, or a directory have failed. A broker with the directories that it had
/// costs no look at its partitions. At most one more than a step takes.
fn hosted_elsewhere(image: &MetadataImage, broker: BrokerId, directories: &[DirectoryId]) -> BTreeSet<TopicPartition> {
    let lost = image.index.directories_of(broker).filter(|directory| !directories.contains(directory));
    let there = lost.flat_map(move |directory| image.in_directory(broker, directory));
    there.take(limits::CHANGES_PER_STEP_MAX + 1).collect()
}

/// As a new incarnation: fenced, with its directories sorted.
fn registration(request: RegisterBroker, epoch: BrokerEpoch) -> BrokerRegistration {
    let mut directories = request.directories;
    directories.sort_unstable();
    BrokerRegistration {
        broker: request.broker,
        epoch,
        incarnation: request.incarnation,
        kind: request.kind,
        probe: request.probe,
        endpoints: request.endpoints,
        rack: request.rack,
        features: request.features,
        directories,
        cordoned_directories: request.cordoned_directories,
        fenced: true,
        in_controlled_shutdown: false,
        controlled_shutdown_offset: None,
    }
}

/// Unfences a broker; the leaderless partitions that it can lead get it as their leader. Of very many the first ones:
/// `elections::elect_on` goes through them all.
pub fn unfence(image: &MetadataImage, broker: BrokerId) -> Result<Plan<()>, ApiError> {
    let registration = registered(image, broker)?;
    if !registration.fenced {
        return Ok(Plan::new(Vec::new(), ()));
    }
    // A level may have been raised above what it supports while it was fenced.
    features::check_member(image, format_args!("broker {broker}"), &registration.features)?;
    let leaderless = image.index.leaderless_on(broker, None).take(limits::SCANNED_PER_RUN_MAX);
    let mut records = vec![Record::UnfenceBroker { broker, epoch: registration.epoch }];
    let elected = change_step(image, leaderless, Cause::BrokerUnfenced(broker), |change| change.admit(broker));
    records.extend(elected.records);
    Ok(Plan::new(records, ()))
}

/// Fences a broker: it leaves every ISR, and what it led elects among who remains. What it leads comes first.
pub fn fence(image: &MetadataImage, broker: BrokerId) -> Result<Plan<()>, ApiError> {
    let registration = registered(image, broker)?;
    if registration.fenced {
        return Ok(Plan::new(Vec::new(), ()));
    }
    let step = leave_when_fenced(image, broker, None);
    Ok(finish(step, (), Record::FenceBroker { broker, epoch: registration.epoch }))
}

/// The departure of a broker from every ISR in steps, each of which goes on where the one before ended. Without `reached`
/// each would walk what the others have changed already.
#[derive(Debug, Default)]
pub struct Departure {
    /// The last partition that the broker has left, of those that it left in the order of their ids.
    reached: Option<TopicPartition>,
}

impl Departure {
    pub fn fence(&mut self, image: &MetadataImage, broker: BrokerId) -> Result<Plan<()>, ApiError> {
        let step = self.reached.map(|reached| leave_when_fenced(image, broker, Some(reached)));
        let plan = match step {
            Some(step) if !step.records.is_empty() => Plan::partial(step.records, ()),
            // From the start: the broker may have got seats behind the place that was reached.
            Some(_) | None => fence(image, broker)?,
        };
        let has_led = |id| image.partition(id).is_some_and(|partition| partition.leader == Some(broker));
        self.reached = last_changed(&plan).filter(|&id| !has_led(id));
        Ok(plan)
    }

    pub fn begin_controlled_shutdown(&mut self, image: &MetadataImage, broker: BrokerId) -> Result<Plan<()>, ApiError> {
        let step = self.reached.map(|reached| leave_when_stopping(image, broker, Some(reached)));
        let plan = match step {
            Some(step) if !step.is_last => Plan::partial(step.records, ()),
            Some(_) | None => begin_controlled_shutdown(image, broker)?,
        };
        self.reached = last_changed(&plan);
        Ok(plan)
    }
}

fn last_changed(plan: &Plan<()>) -> Option<TopicPartition> {
    match plan.records.last() {
        Some(Record::PartitionChange(change)) => Some(change.id),
        _ => None,
    }
}

/// Begins a controlled shutdown. Its record stands last, so that its offset is the barrier: who has replayed it
/// has seen every move.
pub fn begin_controlled_shutdown(image: &MetadataImage, broker: BrokerId) -> Result<Plan<()>, ApiError> {
    let registration = registered(image, broker)?;
    if !registration.is_active() {
        return Ok(Plan::new(Vec::new(), ()));
    }
    let step = leave_when_stopping(image, broker, None);
    Ok(finish(step, (), Record::BeginControlledShutdown { broker, epoch: registration.epoch }))
}

/// A partition without a leader serves nothing, so those that `broker` leads come before those that it follows, of which
/// those up to `after` are left out.
fn leave_when_fenced(image: &MetadataImage, broker: BrokerId, after: Option<TopicPartition>) -> Step {
    let leads = |id: &TopicPartition| image.partition(*id).is_some_and(|at| at.leader == Some(broker));
    let follows = image.index.in_isr_after(broker, after).filter(|id| !leads(id));
    let seats = image.index.led_by(broker).chain(follows);
    change_step(image, seats, Cause::BrokerFenced(broker), |change| change.without(broker))
}

/// The broker serves on, so the order does not matter, but for one partition that it leads, which comes last: a broker that
/// leads nothing may stop at once, so until then any controller finds that the shutdown is not at its end.
fn leave_when_stopping(image: &MetadataImage, broker: BrokerId, after: Option<TopicPartition>) -> Step {
    let last = image.index.led_by(broker).next();
    let seats = image.index.in_isr_after(broker, after).filter(|id| Some(*id) != last).chain(last);
    change_step(image, seats, Cause::ControlledShutdown(broker), |change| change.without(broker))
}

/// Which of the directories that `broker` has online are among those that it reports as failed.
pub(super) fn newly_failed(broker: &BrokerRegistration, reported: &[DirectoryId]) -> Vec<DirectoryId> {
    broker.directories.iter().filter(|directory| reported.contains(directory)).copied().collect()
}

/// Some directories of a broker have failed, and others have not (KIP-858): what it had there leaves the ISR, and is
/// led by others. It stays where it is: a disk that comes back has what it had. The registration is the last record,
/// so that what is cut short is begun anew by the next report.
pub(super) fn fail_directories(image: &MetadataImage, broker: &BrokerRegistration, failed: &[DirectoryId]) -> Plan<()> {
    let is_in_isr = |id: &TopicPartition| {
        let partition = image.partition(*id).expect("the index names partitions of the image");
        partition.isr.contains(&broker.broker)
    };
    let there = failed.iter().flat_map(|&directory| image.in_directory(broker.broker, directory));
    let lost = there.filter(is_in_isr);
    let cause = Cause::DirectoryFailed(broker.broker);
    let step = change_step(image, lost, cause, |change| change.without(broker.broker));
    let is_online = |directory: &DirectoryId| !failed.contains(directory);
    let directories = broker.directories.iter().copied().filter(is_online).collect();
    finish(step, (), Record::RegisterBroker(BrokerRegistration { directories, ..broker.clone() }))
}

/// Registers a controller, so that upgrades can check what every voter supports. The same registration again changes
/// nothing. `voters` are the controllers that have a vote.
pub fn register_controller(
    image: &MetadataImage,
    registration: ControllerRegistration,
    voters: &BTreeSet<ControllerId>,
) -> Result<Plan<()>, ApiError> {
    let controller = registration.controller;
    if image.cluster.is_none() {
        return Err(ApiError::new(ErrorName::ControllerUnavailable, "the cluster has not been created yet"));
    }
    if !voters.contains(&controller) {
        return Err(ApiError::new(ErrorName::InvalidVoterKey, format!("controller {controller} is not a voter")));
    }
    features::check_member(image, format_args!("controller {controller}"), &registration.features)?;
    let is_known = image.controllers.get(&controller).is_some_and(|before| **before == registration);
    let records = if is_known { Vec::new() } else { vec![Record::RegisterController(registration)] };
    Ok(Plan::new(records, ()))
}

pub(super) fn registered(image: &MetadataImage, broker: BrokerId) -> Result<&BrokerRegistration, ApiError> {
    image.broker(broker).map(AsRef::as_ref).ok_or_else(|| not_registered(broker))
}

pub(super) fn not_registered(broker: BrokerId) -> ApiError {
    ApiError::new(ErrorName::BrokerIdNotRegistered, format!("broker {broker} is not registered"))
}

/// Whether a new replica may be put on this broker: not on its way out, and not cordoned in every directory.
pub(super) fn takes_replicas(broker: &BrokerRegistration) -> bool {
    !broker.in_controlled_shutdown && !is_cordoned(broker)
}

/// Whether all its directories are.
pub(super) fn is_cordoned(broker: &BrokerRegistration) -> bool {
    directories::open(broker).next().is_none()
}
