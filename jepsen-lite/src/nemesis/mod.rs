//! What is done to the cluster. A nemesis draws faults; a fault names its targets by what they are at the time, and
//! becomes an injury of certain nodes and links when its time has come.

mod fault;
mod injury;
mod target;
mod visit;

use clap::ValueEnum;
use serde::{Deserialize, Serialize};

pub use fault::Fault;
pub use injury::{Injuries, Injury, Whole};
pub use target::{Situation, Target};
pub use visit::Draft;

/// A kind of trouble.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Nemesis {
    /// kill -9 of one, a minority, a majority, all, or the active controller
    Kill,
    /// SIGTERM of one
    Stop,
    /// SIGSTOP, from a fraction of the election timeout to several of it
    Pause,
    /// The nodes fall apart into two groups
    Partition,
    /// One node hears no one, or no one hears it
    OneWay,
    /// Two halves that meet at one node
    Bridge,
    /// Each node sees another majority
    MajoritiesRing,
    /// Links that take 50 to 2000 ms, or hang after some bytes
    SlowLink,
    /// Links that go and come every 200 ms
    Flap,
    /// Connections that end with a reset, or one way only
    Reset,
    /// Every node is killed every one to three seconds
    RestartStorm,
    /// A broker sleeps past its session, and wakes up in the middle of things
    BrokerZombie,
    /// A partition's leader dies when fewer than all are in sync
    LastReplicas,
    /// Power fails at one node, which loses what was not synced
    PowerCut,
    /// Power fails everywhere at once; records survive it with log_flush=always only
    PowerCutAll,
    /// fsync fails, so the node must not go on
    SyncFails,
    /// fsync does nothing, and then power fails everywhere: no cluster survives it, so it must be found invalid
    SyncLies,
    /// There is no room on the disk for a while
    DiskFull,
    /// There is no room on any disk for a while
    DiskFullAll,
    /// No broker has room for records for a while: all nodes must live on, and the directories come back by themselves
    LogsFull,
    /// The disk of a node does not answer for a while: others must lead, and its directories come back by themselves
    DiskHangs,
    /// A byte of a log of writes changes while its node is down: the node must not start
    Corruption,
    /// A table, a manifest or a snapshot changes or is cut while its node is down: the node must find out
    FileDamage,
    /// The last write of a node is cut in the middle, again and again: the node must recover by itself
    TornWrite,
    /// Wall clocks that are wrong by a second or an hour, jump to and fro, or go back at the active controller
    Clock,
    /// Nodes are cut off one after the other, and come back in another order
    SwizzleClog,
    /// 5 to 30 % of the packets are lost: --layer netns
    PacketLoss,
    /// All that a node sends or is sent shares 1 Mbit/s: --layer netns
    Rate,
    /// Ten times the load and large requests without a pause, with 512 MiB of memory for each node
    Overload,
    /// Every second client stands still
    PauseClients,
    /// The metadata log, the snapshots or both are gone while a node is down, and quorate.meta is left: it must not start
    PartialWipe,
    /// The same, and quorate.meta says nothing of what was there: no node finds out, so it must be found invalid
    UnrecordedWipe,
    /// A data directory or the records of another cluster are in the place of a node's own: it must not start
    ForeignDisk,
    /// A node's stderr is a pipe that nobody reads, or a full device: it must go on
    StderrGone,
    /// More connections than a node may have descriptors (1024) say nothing to it: it must go on and answer
    Descriptors,
}

/// What a fault waits for, beyond its time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum State {
    /// Every node runs, is let in, and all replicas are in sync.
    Whole,
    /// Some replica is not in sync.
    IsrShrunk,
}

impl Nemesis {
    /// What is done unless one says what: all that a cluster of any settings must survive.
    pub const USUAL: [Self; 26] = [
        Self::Kill,
        Self::Stop,
        Self::Pause,
        Self::Partition,
        Self::OneWay,
        Self::Bridge,
        Self::MajoritiesRing,
        Self::SlowLink,
        Self::Flap,
        Self::Reset,
        Self::RestartStorm,
        Self::BrokerZombie,
        Self::LastReplicas,
        Self::PowerCut,
        Self::SyncFails,
        Self::Corruption,
        Self::FileDamage,
        Self::TornWrite,
        Self::Clock,
        Self::SwizzleClog,
        Self::Overload,
        Self::PauseClients,
        Self::PartialWipe,
        Self::ForeignDisk,
        Self::StderrGone,
        Self::Descriptors,
    ];

    /// Whether it is alone: the cluster is whole before it begins, and again before anything else does. More of this at
    /// once may lose records that nobody has promised to keep.
    pub fn is_alone(self) -> bool {
        use Nemesis::{
            Corruption, DiskFull, DiskFullAll, DiskHangs, FileDamage, ForeignDisk, LastReplicas, LogsFull, PartialWipe,
            PowerCut, PowerCutAll, SyncFails, SyncLies, TornWrite, UnrecordedWipe,
        };
        let breaks_disks = matches!(self, SyncFails | SyncLies | DiskFull | Corruption | FileDamage | TornWrite);
        let takes_disks = matches!(self, DiskFullAll | DiskHangs | LogsFull);
        let swaps_disks = matches!(self, PartialWipe | UnrecordedWipe | ForeignDisk);
        breaks_disks || takes_disks || swaps_disks || matches!(self, LastReplicas | PowerCut | PowerCutAll)
    }
}
