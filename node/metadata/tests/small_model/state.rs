//! A state of the whole: controllers, three replicas, and what is on its way.
//!
//! Offsets of the metadata log differ with the path that led to a state, and decide nothing but who is who: states are
//! compared by `Facts`, in which a broker epoch is the number of the incarnation.

use std::hash::{Hash, Hasher};

use quorate_metadata::ids::{BrokerEpoch, BrokerId, LeaderEpoch, Offset, PartitionEpoch};
use quorate_metadata::record::LeaderRecoveryState;

use crate::bounds::Used;
use crate::controller::{Controller, Metadata};
use crate::log::{Entry, Log, Value};
use crate::members::{Members, REPLICAS, at};
use crate::replica::{Process, Replica, Up};

#[derive(Debug, Clone)]
pub struct State {
    pub controller: Controller,
    pub replicas: [Replica; 3],
    /// The epochs of each broker's incarnations, oldest first.
    pub incarnations: [Vec<BrokerEpoch>; 3],
    /// Requests on their way, sorted.
    pub network: Vec<Request>,
    pub used: Used,
    /// The partition epoch from which its changes are counted.
    pub changes_before: i32,
    /// The number of the next record.
    pub written: Value,
    /// What leaders have said is committed, but for what an unclean election has excused since.
    pub committed: Log,
    /// Two leaders have said otherwise of the same position.
    pub has_forked: bool,
    /// The leader epoch that the last unclean election began. What is committed under an older one may be lost.
    pub unclean_epoch: Option<LeaderEpoch>,
    /// The leader of an unclean election lacked a committed record.
    pub has_lost: bool,
    /// A broker followed the feed and came to another image than the controllers.
    pub has_diverged: bool,
}

/// Each replica that shall be in the ISR, with the epoch under which it fetched.
pub type RequestedIsr = [Option<Option<BrokerEpoch>>; 3];

/// An AlterPartition of a leader.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Request {
    pub sender: BrokerId,
    pub broker_epoch: BrokerEpoch,
    pub leader_epoch: LeaderEpoch,
    pub partition_epoch: PartitionEpoch,
    pub isr: RequestedIsr,
    /// Takes back what was asked for: it moves the partition epoch where nothing else differs.
    pub supersedes: bool,
    /// It was asked for before, so that another copy may be under way.
    pub is_repeated: bool,
}

impl State {
    pub fn replica(&self, broker: BrokerId) -> &Replica {
        &self.replicas[at(broker)]
    }

    pub fn replica_mut(&mut self, broker: BrokerId) -> &mut Replica {
        &mut self.replicas[at(broker)]
    }

    /// Who may be elected without loss, and which of them run.
    pub fn candidates(&self) -> impl Iterator<Item = &Replica> {
        let partition = self.controller.now.partition();
        let candidates = Members::of(&partition.isr).and(Members::of(partition.elr()));
        candidates.iter().map(|broker| self.replica(broker)).filter(|replica| replica.up().is_some())
    }

    pub fn send(&mut self, request: Request) {
        let at = self.network.partition_point(|other| *other < request);
        self.network.insert(at, request);
    }

    /// Brokers that can do nothing with what they know hear the latest at once: whoever follows a leader that is not in
    /// office, and never will be again, might as well have heard. Whether it then does something is still open.
    pub fn inform_idle(&mut self) {
        for broker in REPLICAS {
            let replica = self.replica(broker);
            let Some(up) = replica.up().filter(|up| up.office.is_none()) else { continue };
            let has_source = replica.source().is_some_and(|(leader, epoch)| self.leads(leader, epoch));
            if has_source || up.known.image.next_offset == self.controller.now.image.next_offset {
                continue;
            }
            let now = self.controller.now.clone();
            if let Some(up) = self.replica_mut(broker).up_mut() {
                up.known = now;
            }
        }
    }

    /// Whether `broker` is in office at `epoch`, from its own point of view.
    pub fn leads(&self, broker: BrokerId, epoch: LeaderEpoch) -> bool {
        self.replica(broker).office().is_some_and(|office| office.leader_epoch == epoch)
    }

    /// Whether the metadata has something for `broker` to do.
    pub fn has_news(&self, broker: BrokerId, up: &Up) -> bool {
        let latest = self.controller.now.partition();
        match &up.office {
            Some(office) => office.partition_epoch < latest.partition_epoch,
            None => latest.leader == Some(broker) || self.view(&up.known) != self.view(&self.controller.now),
        }
    }

    /// A leader says that this is committed. One that an unclean election has deposed does not count.
    pub fn commit(&mut self, leader: BrokerId) {
        let replica = self.replica(leader);
        let Some(office) = replica.office() else { return };
        if self.unclean_epoch.is_some_and(|epoch| office.leader_epoch < epoch) {
            return;
        }
        let said = replica.committed();
        let agreed = said.len().min(self.committed.end());
        let new: Vec<Entry> = said[agreed..].to_vec();
        self.has_forked |= said[..agreed] != self.committed.entries()[..agreed];
        self.committed.extend(&new);
    }

    /// Requests that the controllers can only refuse are as good as lost.
    pub fn forget_late_requests(&mut self) {
        let partition = self.controller.now.partition();
        let now = (partition.leader_epoch, partition.partition_epoch);
        self.network.retain(|request| (request.leader_epoch, request.partition_epoch) >= now);
    }

    /// An unclean election is on record: what the new leader lacks may be lost.
    pub fn excuse(&mut self) {
        let partition = self.controller.now.partition();
        let (leader, epoch) = (partition.leader, partition.leader_epoch);
        let kept = leader.map_or(0, |leader| self.committed.common(&self.replica(leader).log));
        self.has_lost |= kept < self.committed.end();
        self.committed.truncate(kept);
        self.unclean_epoch = Some(epoch);
    }

    fn incarnation(&self, broker: BrokerId, epoch: BrokerEpoch) -> usize {
        let epochs = &self.incarnations[at(broker)];
        epochs.iter().position(|&known| known == epoch).unwrap_or(usize::MAX)
    }

    fn facts(&self) -> Facts<'_> {
        Facts {
            partition: PartitionFacts::of(&self.controller.now),
            registrations: REPLICAS.map(|broker| self.registration(broker)),
            replicas: REPLICAS.map(|broker| self.replica_facts(broker)),
            network: self.network.iter().map(|request| self.request_facts(request)).collect(),
            used: self.used,
            committed: &self.committed,
            unclean_epoch: self.unclean_epoch,
            marks: [self.has_forked, self.has_lost, self.has_diverged, self.controller.is_unsound],
        }
    }

    fn registration(&self, broker: BrokerId) -> (bool, bool, usize) {
        let registration = self.controller.now.broker(broker);
        let incarnation = self.incarnation(broker, registration.epoch);
        (registration.fenced, registration.in_controlled_shutdown, incarnation)
    }

    fn replica_facts(&self, broker: BrokerId) -> ReplicaFacts<'_> {
        let replica = self.replica(broker);
        let process = match &replica.process {
            Process::Up(up) => ProcessFacts::Up(self.up_facts(broker, up)),
            Process::Down { stopped_at } => ProcessFacts::Down(stopped_at.map(|epoch| self.incarnation(broker, epoch))),
        };
        ReplicaFacts { log: &replica.log, process }
    }

    fn up_facts(&self, broker: BrokerId, up: &Up) -> UpFacts {
        let office = up.office.map(|office| OfficeFacts {
            partition_epoch: office.partition_epoch,
            epoch_start: office.epoch_start,
            high_watermark: office.high_watermark,
            isr: office.isr,
            is_recovering: office.is_recovering,
            asked: office.asked,
            is_in_doubt: office.is_in_doubt,
            fetched: REPLICAS.map(|follower| {
                office.fetched[at(follower)].map(|(end, epoch)| (end, self.incarnation(follower, epoch)))
            }),
        });
        UpFacts { incarnation: self.incarnation(broker, up.epoch), view: self.view(&up.known), office }
    }

    fn request_facts(&self, request: &Request) -> RequestFacts {
        let member = |broker| {
            let member = request.isr[at(broker)]?;
            Some(member.map(|epoch| self.incarnation(broker, epoch)))
        };
        RequestFacts {
            sender: request.sender,
            incarnation: self.incarnation(request.sender, request.broker_epoch),
            leader_epoch: request.leader_epoch,
            partition_epoch: request.partition_epoch,
            isr: REPLICAS.map(member),
            supersedes: request.supersedes,
            is_repeated: request.is_repeated,
        }
    }

    /// What a broker that is not in office reads from the metadata. The rest makes no difference to what it does.
    fn view(&self, known: &Metadata) -> View {
        let partition = known.partition();
        View {
            leader: partition.leader,
            leader_epoch: partition.leader_epoch,
            passed: self.barrier().map(|barrier| known.image.next_offset > barrier),
        }
    }

    /// Where the last controlled shutdown that is under way began: who has passed it has seen its moves.
    fn barrier(&self) -> Option<Offset> {
        let brokers = self.controller.now.image.brokers.values();
        brokers.filter_map(|broker| broker.controlled_shutdown_offset).max()
    }
}

#[derive(PartialEq, Eq, Hash)]
struct Facts<'a> {
    partition: PartitionFacts,
    registrations: [(bool, bool, usize); 3],
    replicas: [ReplicaFacts<'a>; 3],
    network: Vec<RequestFacts>,
    used: Used,
    committed: &'a Log,
    unclean_epoch: Option<LeaderEpoch>,
    marks: [bool; 4],
}

/// Sets will do: elections go by the order of the replicas, which does not change.
#[derive(PartialEq, Eq, Hash)]
struct PartitionFacts {
    leader: Option<BrokerId>,
    leader_epoch: LeaderEpoch,
    partition_epoch: PartitionEpoch,
    isr: Members,
    elr: Members,
    last_known: Members,
    is_recovering: bool,
}

impl PartitionFacts {
    fn of(known: &Metadata) -> Self {
        let partition = known.partition();
        Self {
            leader: partition.leader,
            leader_epoch: partition.leader_epoch,
            partition_epoch: partition.partition_epoch,
            isr: Members::of(&partition.isr),
            elr: Members::of(partition.elr()),
            last_known: Members::of(partition.last_known_elr()),
            is_recovering: partition.recovery() == LeaderRecoveryState::Recovering,
        }
    }
}

#[derive(PartialEq, Eq, Hash)]
struct ReplicaFacts<'a> {
    log: &'a Log,
    process: ProcessFacts,
}

#[derive(PartialEq, Eq, Hash)]
enum ProcessFacts {
    Up(UpFacts),
    Down(Option<usize>),
}

#[derive(PartialEq, Eq, Hash)]
struct UpFacts {
    incarnation: usize,
    view: View,
    office: Option<OfficeFacts>,
}

#[derive(PartialEq, Eq, Hash)]
struct View {
    leader: Option<BrokerId>,
    leader_epoch: LeaderEpoch,
    passed: Option<bool>,
}

#[derive(PartialEq, Eq, Hash)]
struct OfficeFacts {
    partition_epoch: PartitionEpoch,
    epoch_start: usize,
    high_watermark: usize,
    isr: Members,
    is_recovering: bool,
    asked: Option<Members>,
    is_in_doubt: bool,
    fetched: [Option<(usize, usize)>; 3],
}

#[derive(PartialEq, Eq, Hash)]
struct RequestFacts {
    sender: BrokerId,
    incarnation: usize,
    leader_epoch: LeaderEpoch,
    partition_epoch: PartitionEpoch,
    isr: [Option<Option<usize>>; 3],
    supersedes: bool,
    is_repeated: bool,
}

impl PartialEq for State {
    fn eq(&self, other: &Self) -> bool {
        self.facts() == other.facts()
    }
}

impl Hash for State {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.facts().hash(state);
    }
}
