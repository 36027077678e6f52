//! What is done to the cluster. A nemesis draws faults; a fault names its targets by what they are at the time, and
//! becomes an injury of certain nodes and links when its time has come.

mod injury;
mod target;

use clap::ValueEnum;
use serde::{Deserialize, Serialize};

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
            | Self::Cut { target, .. }
            | Self::Deafen { target }
            | Self::Mute { target }
            | Self::Bridge { target }
            | Self::Degrade { target, .. } => Some(target),
            Self::MajoritiesRing { .. } => None,
        }
    }
}

/// After how long, for how long, what.
type Drawn = Vec<(u64, u64, Fault)>;

impl Nemesis {
    pub const P0: [Self; 12] = [
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
    ];

    /// One visit of this nemesis, which may be several events.
    pub fn events(self, random: &mut Random) -> Drawn {
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
                vec![(0, random.between(100, 4_000), Fault::Kill { target: random.pick(&choice).clone() })]
            }
            Self::Stop => vec![(0, random.between(100, 2_000), Fault::Stop { target: one(random) })],
            Self::Pause => {
                // The election timeout is 150 to 300 ms.
                let for_ms = *random.pick(&[30, 100, 200, 400, 800, 1_500]);
                vec![(0, for_ms, Fault::Pause { target: one(random) })]
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
                vec![(0, random.between(1_000, 6_000), Fault::Cut { target, condition })]
            }
            Self::OneWay => {
                let target = one(random);
                let fault = if random.percent(50) { Fault::Deafen { target } } else { Fault::Mute { target } };
                vec![(0, random.between(1_000, 5_000), fault)]
            }
            Self::Bridge => vec![(0, random.between(1_000, 5_000), Fault::Bridge { target: one(random) })],
            Self::MajoritiesRing => {
                vec![(0, random.between(1_000, 5_000), Fault::MajoritiesRing { seed: random.draw() })]
            }
            Self::SlowLink => vec![(
                0,
                random.between(1_500, 5_000),
                Fault::Degrade { target: some(random), condition: slow(random) },
            )],
            Self::Flap => flap(random),
            Self::Reset => {
                let condition = *random.pick(&[Condition::Resetting, Condition::HalfClosed]);
                vec![(0, random.between(500, 3_000), Fault::Degrade { target: some(random), condition })]
            }
            Self::RestartStorm => storm(random),
            Self::BrokerZombie => {
                // The session timeout is 3 s.
                let target = Target::PartitionLeader { seed: random.draw() };
                vec![(0, random.between(3_500, 5_500), Fault::Pause { target })]
            }
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

fn flap(random: &mut Random) -> Drawn {
    let target = one(random);
    let condition = *random.pick(&[Condition::Silent, Condition::Refusing]);
    let times = random.between(4, 10);
    (0..times).map(|turn| (turn * 400, 200, Fault::Cut { target: target.clone(), condition })).collect()
}

fn storm(random: &mut Random) -> Drawn {
    let kills = random.between(4, 8);
    let mut at_ms = 0;
    let mut events = Vec::new();
    for _ in 0..kills {
        let target = Target::Random { seed: random.draw() };
        events.push((at_ms, random.between(50, 400), Fault::Kill { target }));
        at_ms += random.between(300, 900);
    }
    events
}
