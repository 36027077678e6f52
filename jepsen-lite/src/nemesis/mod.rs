//! What is done to the cluster. A nemesis draws faults; a fault names its targets by what they are at the time, and
//! becomes an injury of certain nodes and links when its time has come.

mod injury;
mod target;

use clap::ValueEnum;
use serde::{Deserialize, Serialize};

use crate::disk::Mode;
use crate::link::Condition;
use crate::random::Random;

pub use injury::{Injuries, Injury, Whole};
pub use target::{Situation, Target};

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
    /// A byte of a log of writes changes while its node is down: the node must not start
    Corruption,
}

/// What happens to its targets.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub enum Fault {
    Kill {
        target: Target,
    },
    Stop {
        target: Target,
    },
    Pause {
        target: Target,
    },
    CutPower {
        target: Target,
    },
    Damage {
        target: Target,
    },
    BreakDisk {
        target: Target,
        mode: Mode,
    },
    /// Between the target and the others, both ways.
    Cut {
        target: Target,
        condition: Condition,
    },
    /// On its way to the target.
    Deafen {
        target: Target,
    },
    /// On its way from the target.
    Mute {
        target: Target,
    },
    /// Everything but this node falls into two halves.
    Bridge {
        target: Target,
    },
    /// In the order of a shuffled ring each node hears its nearest neighbours, as few as make a majority.
    MajoritiesRing {
        seed: u64,
    },
    /// All links from and to the target.
    Degrade {
        target: Target,
        condition: Condition,
    },
}

impl Fault {
    pub fn target(&self) -> Option<&Target> {
        match self {
            Self::Kill { target }
            | Self::Stop { target }
            | Self::Pause { target }
            | Self::CutPower { target }
            | Self::Damage { target }
            | Self::BreakDisk { target, .. }
            | Self::Cut { target, .. }
            | Self::Deafen { target }
            | Self::Mute { target }
            | Self::Bridge { target }
            | Self::Degrade { target, .. } => Some(target),
            Self::MajoritiesRing { .. } => None,
        }
    }

    pub fn needs_shim(&self) -> bool {
        matches!(self, Self::CutPower { .. } | Self::BreakDisk { .. })
    }
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

/// A fault of a visit.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Draft {
    /// Since the visit began.
    pub after_ms: u64,
    pub for_ms: u64,
    pub until: Option<State>,
    pub fault: Fault,
}

impl Draft {
    fn new(after_ms: u64, for_ms: u64, fault: Fault) -> Self {
        Self { after_ms, for_ms, until: None, fault }
    }

    fn now(for_ms: u64, fault: Fault) -> Vec<Self> {
        vec![Self::new(0, for_ms, fault)]
    }
}

impl Nemesis {
    /// What is done unless one says what: all that a cluster of any settings must survive.
    pub const USUAL: [Self; 16] = [
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
    ];

    /// Whether it is alone: the cluster is whole before it begins, and again before anything else does. More of this at
    /// once may lose records that nobody has promised to keep.
    pub fn is_alone(self) -> bool {
        use Nemesis::{Corruption, DiskFull, LastReplicas, PowerCut, PowerCutAll, SyncFails, SyncLies};
        matches!(self, LastReplicas | PowerCut | PowerCutAll | SyncFails | SyncLies | DiskFull | Corruption)
    }

    /// One visit of this nemesis, which may be several events.
    pub fn visit(self, random: &mut Random) -> Vec<Draft> {
        match self {
            Self::Kill => {
                let seed = random.draw();
                let choice = [
                    Target::Random { seed },
                    Target::Controller,
                    Target::Minority { seed },
                    Target::Majority { seed },
                    Target::All,
                    Target::PartitionLeader { seed },
                ];
                Draft::now(random.between(100, 4_000), Fault::Kill { target: random.pick(&choice).clone() })
            }
            Self::Stop => Draft::now(random.between(100, 2_000), Fault::Stop { target: one(random) }),
            Self::Pause => {
                // The election timeout is 150 to 300 ms.
                let for_ms = *random.pick(&[30, 100, 200, 400, 800, 1_500]);
                Draft::now(for_ms, Fault::Pause { target: one(random) })
            }
            Self::Partition => {
                let seed = random.draw();
                let choice = [
                    Target::Minority { seed },
                    Target::Random { seed },
                    Target::Controller,
                    Target::ControllersMinority { seed },
                ];
                let condition = *random.pick(&[Condition::Silent, Condition::Refusing]);
                let target = random.pick(&choice).clone();
                Draft::now(random.between(1_000, 6_000), Fault::Cut { target, condition })
            }
            Self::OneWay => {
                let target = one(random);
                let fault = if random.percent(50) { Fault::Deafen { target } } else { Fault::Mute { target } };
                Draft::now(random.between(1_000, 5_000), fault)
            }
            Self::Bridge => Draft::now(random.between(1_000, 5_000), Fault::Bridge { target: one(random) }),
            Self::MajoritiesRing => {
                Draft::now(random.between(1_000, 5_000), Fault::MajoritiesRing { seed: random.draw() })
            }
            Self::SlowLink => {
                let fault = Fault::Degrade { target: some(random), condition: slow(random) };
                Draft::now(random.between(1_500, 5_000), fault)
            }
            Self::Flap => flap(random),
            Self::Reset => {
                let condition = *random.pick(&[Condition::Resetting, Condition::HalfClosed]);
                Draft::now(random.between(500, 3_000), Fault::Degrade { target: some(random), condition })
            }
            Self::RestartStorm => storm(random),
            Self::BrokerZombie => {
                // The session timeout is 3 s.
                let target = Target::PartitionLeader { seed: random.draw() };
                Draft::now(random.between(3_500, 5_500), Fault::Pause { target })
            }
            Self::LastReplicas => last_replicas(random),
            Self::PowerCut => Draft::now(random.between(100, 1_500), Fault::CutPower { target: one(random) }),
            Self::PowerCutAll => Draft::now(random.between(100, 500), Fault::CutPower { target: Target::All }),
            Self::Corruption => Draft::now(random.between(100, 1_000), Fault::Damage { target: one(random) }),
            Self::SyncFails => broken_disk(one(random), Mode::SyncFails, random.between(1_000, 2_500)),
            Self::SyncLies => broken_disk(Target::All, Mode::SyncLies, random.between(1_000, 3_000)),
            Self::DiskFull => broken_disk(some(random), Mode::Full, random.between(1_000, 4_000)),
        }
    }
}

fn one(random: &mut Random) -> Target {
    let seed = random.draw();
    random
        .pick(&[
            Target::Controller,
            Target::Follower { seed },
            Target::Random { seed },
            Target::PartitionLeader { seed },
        ])
        .clone()
}

fn some(random: &mut Random) -> Target {
    let seed = random.draw();
    random.pick(&[Target::Controller, Target::Random { seed }, Target::Minority { seed }, Target::All]).clone()
}

fn slow(random: &mut Random) -> Condition {
    let delay_ms = *random.pick(&[50, 200, 500, 2_000]);
    *random.pick(&[
        Condition::Slow { delay_ms, jitter_ms: delay_ms / 2 },
        Condition::Stalling { after_bytes: random.clone().between(0, 100_000) },
        Condition::Limited { bytes_per_second: 125_000 },
    ])
}

fn broken_disk(target: Target, mode: Mode, for_ms: u64) -> Vec<Draft> {
    Draft::now(for_ms, Fault::BreakDisk { target, mode })
}

/// A minority is gone long enough to fall out of sync; then a leader of those that are left dies.
fn last_replicas(random: &mut Random) -> Vec<Draft> {
    let (gone, leader) = (Target::Minority { seed: random.draw() }, Target::PartitionLeader { seed: random.draw() });
    let for_ms = random.between(5_000, 7_000);
    let mut second = Draft::new(500, random.between(500, 3_000), Fault::Kill { target: leader });
    second.until = Some(State::IsrShrunk);
    vec![Draft::new(0, for_ms, Fault::Cut { target: gone, condition: Condition::Silent }), second]
}

fn flap(random: &mut Random) -> Vec<Draft> {
    let target = one(random);
    let condition = *random.pick(&[Condition::Silent, Condition::Refusing]);
    let times = random.between(4, 10);
    (0..times).map(|turn| Draft::new(turn * 400, 200, Fault::Cut { target: target.clone(), condition })).collect()
}

fn storm(random: &mut Random) -> Vec<Draft> {
    let kills = random.between(4, 8);
    let mut at_ms = 0;
    let mut events = Vec::new();
    for _ in 0..kills {
        let target = Target::Random { seed: random.draw() };
        events.push(Draft::new(at_ms, random.between(50, 400), Fault::Kill { target }));
        at_ms += random.between(300, 900);
    }
    events
}
