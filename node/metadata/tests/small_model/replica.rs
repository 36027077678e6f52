//! A broker: its log, and what it has in memory while it runs. What it knows of the metadata is an image of its own.

use quorate_metadata::ids::{BrokerEpoch, BrokerId, LeaderEpoch, PartitionEpoch};
use quorate_metadata::record::{LeaderRecoveryState, Partition};

use crate::controller::Metadata;
use crate::deviation::Deviation;
use crate::log::{Entry, Log};
use crate::members::{Members, REPLICAS, at};

#[derive(Debug, Clone)]
pub struct Replica {
    pub id: BrokerId,
    pub log: Log,
    pub process: Process,
}

#[derive(Debug, Clone)]
pub enum Process {
    Up(Up),
    /// With the epoch that it had, if its log is whole.
    Down {
        stopped_at: Option<BrokerEpoch>,
    },
}

#[derive(Debug, Clone)]
pub struct Up {
    /// As which it is registered.
    pub epoch: BrokerEpoch,
    /// Its own registration is in it.
    pub known: Metadata,
    pub office: Option<Office>,
}

/// A leader, from its own point of view: what `quorate_log::leadership` has, without time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Office {
    pub leader_epoch: LeaderEpoch,
    pub partition_epoch: PartitionEpoch,
    /// A follower that has not reached it may hold records of an older leader.
    pub epoch_start: usize,
    /// Everything below it is committed. It begins at 0: what the leader had heard while it followed it finds again.
    pub high_watermark: usize,
    pub isr: Members,
    pub is_recovering: bool,
    /// The ISR that it asked for, until it knows what became of it.
    pub asked: Option<Members>,
    /// It was refused while a copy of the request was under way.
    pub is_in_doubt: bool,
    /// To where each follower has fetched, and as which incarnation.
    pub fetched: [Option<(usize, BrokerEpoch)>; 3],
}

impl Office {
    fn begin(partition: &Partition, log: &Log) -> Self {
        Self {
            leader_epoch: partition.leader_epoch,
            partition_epoch: partition.partition_epoch,
            epoch_start: log.end(),
            high_watermark: 0,
            isr: Members::of(&partition.isr),
            is_recovering: partition.recovery() == LeaderRecoveryState::Recovering,
            asked: None,
            is_in_doubt: false,
            fetched: [None; 3],
        }
    }

    fn follow(&mut self, partition: &Partition) {
        if partition.partition_epoch > self.partition_epoch {
            self.partition_epoch = partition.partition_epoch;
            self.isr = Members::of(&partition.isr);
            self.is_recovering = partition.recovery() == LeaderRecoveryState::Recovering;
            (self.asked, self.is_in_doubt) = (None, false);
        }
    }

    /// What it asked for at `asked_at` was not done and will not be.
    pub fn on_refused(&mut self, asked_at: PartitionEpoch) {
        if asked_at == self.partition_epoch {
            (self.asked, self.is_in_doubt) = (None, false);
        }
    }

    /// What it asked for at `asked_at` was not done, and may be yet.
    pub fn on_refused_in_doubt(&mut self, asked_at: PartitionEpoch) {
        self.is_in_doubt |= asked_at == self.partition_epoch;
    }

    pub fn maximal_isr(&self) -> Members {
        self.isr.and(self.asked.unwrap_or_default())
    }
}

impl Replica {
    pub fn up(&self) -> Option<&Up> {
        match &self.process {
            Process::Up(up) => Some(up),
            Process::Down { .. } => None,
        }
    }

    pub fn up_mut(&mut self) -> Option<&mut Up> {
        match &mut self.process {
            Process::Up(up) => Some(up),
            Process::Down { .. } => None,
        }
    }

    pub fn office(&self) -> Option<&Office> {
        self.up()?.office.as_ref()
    }

    pub fn office_mut(&mut self) -> Option<&mut Office> {
        self.up_mut()?.office.as_mut()
    }

    /// Whom it follows, and at which epoch.
    pub fn source(&self) -> Option<(BrokerId, LeaderEpoch)> {
        let partition = self.up()?.known.partition();
        let leader = partition.leader.filter(|&leader| leader != self.id)?;
        Some((leader, partition.leader_epoch))
    }

    /// Runs, registered at `epoch`, with the metadata of then.
    pub fn start(&mut self, epoch: BrokerEpoch, known: Metadata) {
        self.process = Process::Up(Up { epoch, known: known.clone(), office: None });
        self.learn(known);
    }

    /// Takes office, stays in it or leaves it, as the metadata says.
    pub fn learn(&mut self, known: Metadata) {
        let (id, log) = (self.id, &self.log);
        let Process::Up(up) = &mut self.process else { return };
        let partition = known.partition();
        up.office = match up.office {
            _ if partition.leader != Some(id) => None,
            Some(mut office) if office.leader_epoch == partition.leader_epoch => {
                office.follow(partition);
                Some(office)
            }
            _ => Some(Office::begin(partition, log)),
        };
        up.known = known;
    }

    pub fn write(&mut self, value: u8) {
        let Some(&Office { leader_epoch: epoch, .. }) = self.office() else { return };
        self.log.extend(&[Entry { epoch, value }]);
    }

    /// A follower has everything that is below `end`. That it has nothing says nothing, unless there was nothing to have.
    pub fn note_fetch(&mut self, follower: BrokerId, epoch: BrokerEpoch, end: usize) {
        let Some(office) = self.office_mut() else { return };
        if end > 0 || office.epoch_start == 0 && office.high_watermark == 0 {
            office.fetched[at(follower)] = Some((end, epoch));
        }
    }

    /// The high watermark of a leader: everything below it is on every member of the maximal ISR. It never goes back,
    /// and stands still while the committed ISR is too small (KIP-966).
    pub fn advance(&mut self, min_isr: usize, deviation: Option<Deviation>) {
        let Some(office) = self.office() else { return };
        if office.isr.len() < min_isr && deviation != Some(Deviation::CommitsBelowMinIsr) {
            return;
        }
        let counted = match deviation {
            Some(Deviation::CommitsAlone) => Members::default(),
            Some(Deviation::CommitsByCommittedIsr) => office.isr,
            Some(Deviation::CommitsByAskedIsr) => office.asked.unwrap_or(office.isr),
            _ => office.maximal_isr(),
        };
        let end_of = |follower| office.fetched[at(follower)].map_or(0, |(end, _)| end);
        let log_end = self.log.end();
        let lowest = counted.without(self.id).iter().map(end_of).min().unwrap_or(log_end).min(log_end);
        if let Some(office) = self.office_mut() {
            office.high_watermark = office.high_watermark.max(lowest);
        }
    }

    /// What it says is committed.
    pub fn committed(&self) -> &[Entry] {
        let end = self.office().map_or(0, |office| office.high_watermark);
        &self.log.entries()[..end.min(self.log.end())]
    }

    /// The changes of the ISR that are due, any of them: time is not modelled, so one that lags may be out of time.
    pub fn wishes(&self, deviation: Option<Deviation>) -> Vec<Members> {
        let Some(office) = self.office().filter(|office| office.asked.is_none()) else { return Vec::new() };
        if office.is_recovering {
            return vec![Members::default().with(self.id)];
        }
        let followers = REPLICAS.into_iter().filter(|&broker| broker != self.id);
        let wish = |follower| match office.isr.contains(follower) {
            true => self.lags(office, follower).then_some(office.isr.without(follower)),
            false => self.may_join(office, follower, deviation).then_some(office.isr.with(follower)),
        };
        followers.filter_map(wish).collect()
    }

    fn lags(&self, office: &Office, follower: BrokerId) -> bool {
        office.fetched[at(follower)].is_none_or(|(end, _)| end < self.log.end())
    }

    /// It has all that is committed, and nothing of an older leader. Whether it is active a real leader knows in time, as
    /// a rule; here it finds out by asking.
    fn may_join(&self, office: &Office, follower: BrokerId, deviation: Option<Deviation>) -> bool {
        let Some((end, _)) = office.fetched[at(follower)] else { return false };
        let has_all = end >= office.high_watermark && end >= office.epoch_start;
        has_all || deviation == Some(Deviation::AsksForLaggards)
    }
}
