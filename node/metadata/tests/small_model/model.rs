//! What can happen, and what comes of it.

use std::sync::Arc;

use quorate_metadata::ErrorName;
use quorate_metadata::ids::BrokerId;
use quorate_metadata::plan::alter_partition::{AlterPartition, IsrMember, PartitionAlteration, alter_partition};
use quorate_metadata::plan::heartbeat::{Heartbeat, heartbeat};
use quorate_metadata::plan::{brokers, elections};
use quorate_metadata::record::{LeaderRecoveryState, PartitionChange, Record};
use stateright::{Model, Property};

use crate::bounds::{Bounds, Used};
use crate::controller::{Controller, Metadata};
use crate::deviation::Deviation;
use crate::log::Log;
use crate::members::{Members, REPLICAS, at};
use crate::properties;
use crate::replica::{Office, Process, Replica, Up};
use crate::state::{Request, RequestedIsr, State};

#[derive(Debug, Clone)]
pub struct Cluster {
    pub min_isr: usize,
    pub unclean_allowed: bool,
    /// What has happened before.
    pub start: &'static [Action],
    pub bounds: Bounds,
    pub deviation: Option<Deviation>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Action {
    /// A leader takes a record with acks=all.
    Produce(BrokerId),
    /// A follower says where it stands; it goes back, or gets what it lacks.
    Fetch(BrokerId),
    /// A broker follows the metadata feed to its end.
    Learn(BrokerId),
    /// A leader asks for another ISR.
    Ask(BrokerId, Members),
    /// A leader whose change was refused in doubt asks for the ISR that is.
    TakeBack(BrokerId),
    /// A request reaches the controllers. A copy of it may stay under way, because the leader has asked again. What it
    /// led to the leader learns from the feed, which tells the same as the answer; a refusal is told by the answer only.
    Deliver {
        request: usize,
        copy_stays: bool,
    },
    /// A session ends.
    Fence(BrokerId),
    /// A fenced broker that runs comes back by its heartbeat.
    Unfence(BrokerId),
    /// A broker says that it wants to stop, and does if it may.
    Stop(BrokerId),
    /// A process is gone, and its log is whole: the machine was not started again.
    Kill(BrokerId),
    /// A process is gone, and of its log all but the first records.
    Crash {
        broker: BrokerId,
        keeps: usize,
    },
    /// A process starts and registers.
    Start(BrokerId),
    ElectPreferred,
    ElectUncleanly,
}

impl Model for Cluster {
    type State = State;
    type Action = Action;

    fn init_states(&self) -> Vec<State> {
        let unbounded = Self { bounds: Bounds::NONE, ..self.clone() };
        let play = |state, &action: &Action| unbounded.next_state(&state, action).expect("it can happen then");
        let start = self.start.iter().fold(self.fresh(), play);
        let changes_before = start.controller.now.partition().partition_epoch.get();
        vec![State { used: Used::default(), changes_before, ..start }]
    }

    fn actions(&self, state: &State, actions: &mut Vec<Action>) {
        for broker in REPLICAS {
            self.actions_of_replica(state, state.replica(broker), actions);
            let is_fenced = state.controller.now.broker(broker).fenced;
            actions.push(if is_fenced { Action::Unfence(broker) } else { Action::Fence(broker) });
        }
        for request in 0..state.network.len() {
            actions.push(Action::Deliver { request, copy_stays: false });
            if self.bounds.repeats {
                actions.push(Action::Deliver { request, copy_stays: true });
            }
        }
        actions.push(Action::ElectPreferred);
        if state.controller.now.partition().leader.is_none() {
            actions.push(Action::ElectUncleanly);
        }
    }

    fn next_state(&self, state: &State, action: Action) -> Option<State> {
        let mut next = state.clone();
        let happens = match action {
            Action::Produce(broker) => self.produce(&mut next, broker),
            Action::Fetch(broker) => self.fetch(&mut next, broker),
            Action::Learn(broker) => self.learn(&mut next, broker),
            Action::Ask(broker, isr) => self.ask(&mut next, broker, isr),
            Action::TakeBack(broker) => self.take_back(&mut next, broker),
            Action::Deliver { request, copy_stays } => self.deliver(&mut next, request, copy_stays),
            Action::Fence(broker) => self.fence(&mut next, broker),
            Action::Unfence(broker) => self.unfence(&mut next, broker),
            Action::Stop(broker) => self.stop(&mut next, broker),
            Action::Kill(broker) => self.kill(&mut next, broker),
            Action::Crash { broker, keeps } => self.crash(&mut next, broker, keeps),
            Action::Start(broker) => self.start(&mut next, broker),
            Action::ElectPreferred => self.elect_preferred(&mut next),
            Action::ElectUncleanly => self.elect_uncleanly(&mut next),
        };
        next.inform_idle();
        if !self.bounds.late {
            next.forget_late_requests();
        }
        let changes = next.controller.now.partition().partition_epoch.get() - next.changes_before;
        (happens && next.used.fits(self.bounds.used) && changes <= self.bounds.changes).then_some(next)
    }

    fn properties(&self) -> Vec<Property<Self>> {
        properties::all()
    }
}

impl Cluster {
    fn fresh(&self) -> State {
        let controller = Controller::new(self.min_isr, self.unclean_allowed);
        let epoch_of = |broker| controller.now.broker(broker).epoch;
        let replica = |id| {
            let process = Process::Down { stopped_at: None };
            let mut replica = Replica { id, log: Log::default(), process };
            replica.start(epoch_of(id), controller.feed(None).0);
            replica
        };
        State {
            replicas: REPLICAS.map(replica),
            incarnations: REPLICAS.map(|broker| vec![epoch_of(broker)]),
            controller,
            changes_before: 0,
            network: Vec::new(),
            used: Used::default(),
            written: 0,
            committed: Log::default(),
            has_forked: false,
            unclean_epoch: None,
            has_lost: false,
            has_diverged: false,
        }
    }

    fn actions_of_replica(&self, state: &State, replica: &Replica, actions: &mut Vec<Action>) {
        let (broker, bounds) = (replica.id, self.bounds);
        let Some(up) = replica.up() else { return actions.push(Action::Start(broker)) };
        if up.office.is_none() {
            actions.push(Action::Fetch(broker));
        } else {
            if state.used.writes < bounds.used.writes {
                actions.push(Action::Produce(broker));
            }
            if may_take_back(state, replica) {
                actions.push(Action::TakeBack(broker));
            }
            if state.network.len() < bounds.requests {
                actions.extend(replica.wishes(self.deviation).into_iter().map(|isr| Action::Ask(broker, isr)));
            }
        }
        if state.has_news(broker, up) {
            actions.push(Action::Learn(broker));
        }
        if state.used.stops < bounds.used.stops || state.controller.now.broker(broker).in_controlled_shutdown {
            actions.push(Action::Stop(broker));
        }
        if state.used.stops < bounds.used.stops {
            actions.push(Action::Kill(broker));
        }
        if state.used.crashes < bounds.used.crashes {
            actions.extend((0..=replica.log.end()).map(|keeps| Action::Crash { broker, keeps }));
        }
    }
}

/// What each action does. False: it cannot happen now, or would change nothing.
impl Cluster {
    fn produce(&self, next: &mut State, broker: BrokerId) -> bool {
        let enough = if self.deviation == Some(Deviation::CommitsBelowMinIsr) { 1 } else { self.min_isr };
        let value = next.written;
        let replica = next.replica_mut(broker);
        if replica.office().is_none_or(|office| office.isr.len() < enough) {
            return false;
        }
        replica.write(value);
        next.written += 1;
        next.used.writes += 1;
        self.advance(next, broker);
        true
    }

    /// A follower says where it stands. What its leader does not have goes, by itself; what it lacks comes.
    fn fetch(&self, next: &mut State, follower: BrokerId) -> bool {
        let replica = next.replica(follower);
        let (Some(up), Some((leader, leader_epoch))) = (replica.up(), replica.source()) else { return false };
        let (epoch, end) = (up.epoch, replica.log.end());
        let Some(office) = next.replica(leader).office().filter(|office| office.leader_epoch == leader_epoch) else {
            return false;
        };
        let (heard_before, log) = (office.fetched, next.replica(leader).log.clone());
        let cut = log.cut(&replica.log).filter(|_| self.deviation != Some(Deviation::NeverTruncates));
        if let Some(end) = cut {
            next.replica_mut(follower).log.truncate(end);
            return true;
        }
        next.replica_mut(leader).note_fetch(follower, epoch, end);
        self.advance(next, leader);
        next.replica_mut(follower).log.append_from(&log);
        let is_news = next.replica(leader).office().is_some_and(|office| office.fetched != heard_before);
        is_news || log.end() > end
    }

    /// A leader's high watermark, and what it commits.
    fn advance(&self, next: &mut State, leader: BrokerId) {
        next.replica_mut(leader).advance(self.min_isr, self.deviation);
        next.commit(leader);
    }

    fn learn(&self, next: &mut State, broker: BrokerId) -> bool {
        let Some(up) = next.replica(broker).up() else { return false };
        let (known, matches) = next.controller.feed(Some(&up.known));
        next.has_diverged |= !matches;
        next.replica_mut(broker).learn(known);
        self.advance(next, broker);
        true
    }

    fn ask(&self, next: &mut State, broker: BrokerId, isr: Members) -> bool {
        let names_epochs = self.deviation != Some(Deviation::NamesNoEpochs);
        let Some(office) = next.replica_mut(broker).office_mut() else { return false };
        let seen_as = |member| office.fetched[at(member)].map(|(_, epoch)| epoch).filter(|_| names_epochs);
        let members = REPLICAS.map(|member| isr.contains(member).then(|| seen_as(member)));
        office.asked = Some(isr);
        self.request(next, broker, members, false)
    }

    fn take_back(&self, next: &mut State, broker: BrokerId) -> bool {
        let Some(office) = next.replica(broker).office() else { return false };
        let members = REPLICAS.map(|member| office.isr.contains(member).then_some(None));
        self.request(next, broker, members, true)
    }

    /// A leader asks the controllers for an ISR.
    fn request(&self, next: &mut State, sender: BrokerId, isr: RequestedIsr, supersedes: bool) -> bool {
        let Some(Up { epoch, office: Some(office), .. }) = next.replica(sender).up() else { return false };
        let request = Request {
            sender,
            broker_epoch: *epoch,
            leader_epoch: office.leader_epoch,
            partition_epoch: office.partition_epoch,
            isr,
            supersedes,
            is_repeated: false,
        };
        next.send(request);
        true
    }

    fn deliver(&self, next: &mut State, request: usize, copy_stays: bool) -> bool {
        let mut request = next.network.remove(request);
        if copy_stays {
            request.is_repeated = true;
            next.send(request);
        }
        // Another copy may be granted yet.
        let is_final = !request.is_repeated || self.deviation == Some(Deviation::TrustsAnyRefusal);
        let refusal = self.decide(next, request);
        if !next.leads(request.sender, request.leader_epoch) {
            return true;
        }
        let Some(office) = next.replica_mut(request.sender).office_mut() else { return true };
        self.hear(office, request, refusal, is_final);
        self.advance(next, request.sender);
        true
    }

    /// What becomes of the request, as the leader is told.
    fn hear(&self, office: &mut Office, request: Request, refusal: Option<ErrorName>, is_final: bool) {
        let epoch = request.partition_epoch;
        if request.supersedes {
            // Whatever is said of this one, what it takes back is in doubt until the metadata tells.
            if self.deviation == Some(Deviation::TakesBackNothing) && refusal.is_none() {
                office.on_refused(epoch);
            }
            return;
        }
        match refusal {
            Some(ErrorName::IneligibleReplica) if is_final => office.on_refused(epoch),
            Some(ErrorName::IneligibleReplica) => office.on_refused_in_doubt(epoch),
            _ => {}
        }
    }

    /// Why the controllers refuse, if they do.
    fn decide(&self, next: &mut State, request: Request) -> Option<ErrorName> {
        let image = Arc::clone(&next.controller.now.image);
        match alter_partition(&image, &self.to_plan(next, request), |_| false) {
            Ok(plan) => {
                self.commit(next, plan.records);
                plan.response.into_iter().find_map(|(_, answer)| answer.err()).map(|error| error.name)
            }
            Err(error) => Some(error.name),
        }
    }

    fn to_plan(&self, state: &State, request: Request) -> AlterPartition {
        let partition = state.controller.now.partition();
        let member = |broker: BrokerId| request.isr[at(broker)].map(|epoch| IsrMember { broker, epoch });
        let mut wanted = PartitionAlteration {
            id: state.controller.now.id(),
            leader_epoch: request.leader_epoch,
            partition_epoch: request.partition_epoch,
            isr: REPLICAS.into_iter().filter_map(member).collect(),
            recovery: LeaderRecoveryState::Recovered,
            supersedes: request.supersedes && self.deviation != Some(Deviation::TakesBackNothing),
        };
        match self.deviation {
            Some(Deviation::TakesAnyPartitionEpoch) => wanted.partition_epoch = partition.partition_epoch,
            Some(Deviation::TakesAnyLeaderEpoch) => {
                (wanted.leader_epoch, wanted.partition_epoch) = (partition.leader_epoch, partition.partition_epoch);
            }
            _ => {}
        }
        AlterPartition { broker: request.sender, broker_epoch: request.broker_epoch, partitions: vec![wanted] }
    }

    fn fence(&self, next: &mut State, broker: BrokerId) -> bool {
        let plan = brokers::fence(&next.controller.now.image, broker).expect("it is registered");
        self.commit(next, plan.records)
    }

    fn unfence(&self, next: &mut State, broker: BrokerId) -> bool {
        self.beat(next, broker, false).is_some_and(|(changed, _)| changed)
    }

    fn stop(&self, next: &mut State, broker: BrokerId) -> bool {
        let registration = next.controller.now.broker(broker);
        let begins = !registration.in_controlled_shutdown;
        if registration.fenced {
            return false;
        }
        next.used.stops += u8::from(begins);
        let Some(epoch) = next.replica(broker).up().map(|up| up.epoch) else { return false };
        let Some((changed, may_stop)) = self.beat(next, broker, true) else { return false };
        if may_stop {
            next.replica_mut(broker).process = Process::Down { stopped_at: Some(epoch) };
        }
        changed || may_stop
    }

    /// A heartbeat. Returns whether it changed something, and whether the broker may stop now; None: there is none.
    fn beat(&self, next: &mut State, broker: BrokerId, want_shutdown: bool) -> Option<(bool, bool)> {
        let image = Arc::clone(&next.controller.now.image);
        let up = next.replica(broker).up()?;
        let beat = Heartbeat {
            broker,
            epoch: up.epoch,
            metadata_offset: up.known.image.next_offset,
            want_fence: false,
            want_shutdown,
            offline_directories: Vec::new(),
        };
        let others = next.replicas.iter().filter(|other| other.id != broker && image.is_active(other.id));
        let offset = |other: &Replica| other.up().map(|up| up.known.image.next_offset);
        // Whoever is counted as active and has died has not seen the newest.
        let lowest = others.map(|other| offset(other).unwrap_or_default()).min();
        let plan = heartbeat(&image, &beat, lowest).expect("it is registered as the one that it is");
        Some((self.commit(next, plan.records), plan.response.should_shut_down))
    }

    fn kill(&self, next: &mut State, broker: BrokerId) -> bool {
        let replica = next.replica_mut(broker);
        let Some(epoch) = replica.up().map(|up| up.epoch) else { return false };
        replica.process = Process::Down { stopped_at: Some(epoch) };
        next.used.stops += 1;
        true
    }

    fn crash(&self, next: &mut State, broker: BrokerId, keeps: usize) -> bool {
        let replica = next.replica_mut(broker);
        let Some(epoch) = replica.up().map(|up| up.epoch) else { return false };
        let claims_clean_stop = self.deviation == Some(Deviation::ClaimsCleanStop);
        replica.log.truncate(keeps);
        replica.process = Process::Down { stopped_at: claims_clean_stop.then_some(epoch) };
        next.used.crashes += 1;
        true
    }

    fn start(&self, next: &mut State, broker: BrokerId) -> bool {
        let Process::Down { stopped_at } = next.replica(broker).process else { return false };
        let incarnation = next.incarnations[at(broker)].len();
        let plan = next.controller.plan_registration(broker, incarnation, stopped_at);
        let epoch = plan.response;
        self.commit(next, plan.records);
        next.incarnations[at(broker)].push(epoch);
        let (known, matches) = next.controller.feed(None);
        next.has_diverged |= !matches;
        next.replica_mut(broker).start(epoch, known);
        true
    }

    fn elect_preferred(&self, next: &mut State) -> bool {
        let plan = elections::balance_preferred(&next.controller.now.image, None, 1);
        self.commit(next, plan.records)
    }

    fn elect_uncleanly(&self, next: &mut State) -> bool {
        let plan = elections::elect_uncleanly_where_allowed(&next.controller.now.image, None, 1);
        self.commit(next, plan.records)
    }

    /// Commits what was planned. Returns whether there was anything.
    fn commit(&self, next: &mut State, mut records: Vec<Record>) -> bool {
        let mut is_unclean = false;
        for record in &mut records {
            let Record::PartitionChange(change) = record else { continue };
            if self.deviation == Some(Deviation::ElectsAnyone) {
                elect_anyone(&next.controller.now, change);
            }
            is_unclean |= change.unclean && self.deviation != Some(Deviation::ConcealsUncleanElections);
        }
        let changes = next.controller.write(records);
        if is_unclean {
            next.excuse();
        }
        changes
    }
}

/// One request that takes something back is under way at a time, whatever else is.
fn may_take_back(state: &State, leader: &Replica) -> bool {
    let takes_back = |request: &Request| request.supersedes && request.sender == leader.id;
    leader.office().is_some_and(|office| office.is_in_doubt) && !state.network.iter().any(takes_back)
}

/// Makes a change elect whoever is active and neither in the ISR nor in the ELR.
fn elect_anyone(now: &Metadata, change: &mut PartitionChange) {
    let before = now.partition();
    let eligible = Members::of(&before.isr).and(Members::of(before.elr()));
    let stranger = REPLICAS.into_iter().find(|&broker| now.image.is_active(broker) && !eligible.contains(broker));
    if let (Some(Some(_)), Some(stranger)) = (change.leader, stranger) {
        change.leader = Some(Some(stranger));
        change.isr = Some(vec![stranger]);
    }
}
