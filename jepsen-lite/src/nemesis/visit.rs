//! What each nemesis draws when its turn has come.

use super::{Fault, Nemesis, State, Target};
use crate::disk::Mode;
use crate::disk::damage::{Harm, Part};
use crate::disk::foreign::Foreign;
use crate::disk::wipe::Lost;
use crate::generator::Tempo;
use crate::link::Condition;
use crate::random::Random;
use crate::stderr::Stderr;

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
    /// One visit of this nemesis, which may be several events.
    pub fn visit(self, random: &mut Random) -> Vec<Draft> {
        match self {
            Self::Kill => kill(random),
            Self::Stop => Draft::now(random.between(100, 2_000), Fault::Stop { target: one(random) }),
            Self::Pause => {
                // The election timeout is 150 to 300 ms.
                let for_ms = *random.pick(&[30, 100, 200, 400, 800, 1_500]);
                Draft::now(for_ms, Fault::Pause { target: one(random) })
            }
            Self::Partition => partition(random),
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
            Self::Corruption => damage(random, Part::WriteLog, Harm::Flip),
            Self::FileDamage => file_damage(random),
            Self::TornWrite => {
                let (target, seed) = (one(random), random.draw());
                Draft::now(random.between(100, 1_000), Fault::TearWrite { target, seed })
            }
            Self::Clock => clock(random),
            Self::SwizzleClog => swizzle_clog(random),
            Self::PacketLoss => packet_loss(random),
            Self::Rate => {
                let condition = Condition::Shaped { bits_per_second: 1_000_000 };
                Draft::now(random.between(2_000, 6_000), Fault::Degrade { target: one(random), condition })
            }
            Self::Overload => overload(random),
            Self::PauseClients => {
                Draft::now(*random.pick(&[300, 1_000, 3_000, 5_000]), Fault::Ask { tempo: Tempo::HalfStill })
            }
            Self::SyncFails => broken_disk(one(random), Mode::SyncFails, random.between(1_000, 2_500)),
            Self::SyncLies => broken_disk(Target::All, Mode::SyncLies, random.between(1_000, 3_000)),
            Self::PartialWipe => wipe(random, false),
            Self::UnrecordedWipe => wipe(random, true),
            Self::ForeignDisk => {
                let (target, disk) = (one(random), *random.pick(&[Foreign::Data, Foreign::Logs]));
                Draft::now(random.between(100, 1_000), Fault::SwapDisk { target, disk })
            }
            Self::StderrGone => swap_stderr(random),
            Self::Descriptors => crowd(random),
            Self::DiskFullAll => broken_disk(Target::All, Mode::Full, random.between(1_000, 4_000)),
            Self::LogsFull => broken_disk(Target::All, Mode::LogsFull, random.between(1_000, 5_000)),
            // The disk timeout and the session timeout are 3 s each.
            Self::DiskHangs => broken_disk(one(random), Mode::Hangs, random.between(9_000, 12_000)),
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

/// More than the descriptors that a node may have.
const SILENT_SOCKETS: u64 = 1_500;

fn swap_stderr(random: &mut Random) -> Vec<Draft> {
    let (target, stderr) = (one(random), *random.pick(&[Stderr::ClosedPipe, Stderr::FullDevice]));
    Draft::now(random.between(2_000, 5_000), Fault::SwapStderr { target, stderr })
}

fn crowd(random: &mut Random) -> Vec<Draft> {
    Draft::now(random.between(2_000, 5_000), Fault::Crowd { target: one(random), sockets: SILENT_SOCKETS })
}

fn wipe(random: &mut Random, unrecorded: bool) -> Vec<Draft> {
    // Missing snapshots are found without a record: the log says that it was trimmed.
    let parts: &[Lost] = if unrecorded { &[Lost::Log, Lost::Both] } else { &[Lost::Log, Lost::Snapshots, Lost::Both] };
    let (target, lost) = (one(random), *random.pick(parts));
    Draft::now(random.between(100, 1_000), Fault::Wipe { target, lost, unrecorded })
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

fn damage(random: &mut Random, part: Part, harm: Harm) -> Vec<Draft> {
    let (target, seed) = (one(random), random.draw());
    Draft::now(random.between(100, 1_000), Fault::Damage { target, part, harm, seed })
}

const SECOND_MS: i64 = 1_000;
const HOUR_MS: i64 = 3_600 * SECOND_MS;

fn clock(random: &mut Random) -> Vec<Draft> {
    let offset_ms = *random.pick(&[SECOND_MS, -SECOND_MS, HOUR_MS, -HOUR_MS]);
    let for_ms = random.between(1_500, 5_000);
    match random.below(3) {
        0 => Draft::now(for_ms, Fault::SetClock { target: some(random), offset_ms }),
        1 => Draft::now(for_ms, Fault::SetClock { target: Target::Controller, offset_ms: -offset_ms.abs() }),
        // To and fro, and right in between.
        _ => {
            let target = one(random);
            let turn = |turn: u64| {
                let offset_ms = if turn.is_multiple_of(2) { offset_ms } else { -offset_ms };
                Draft::new(turn * 250, 150, Fault::SetClock { target: target.clone(), offset_ms })
            };
            (0..random.between(6, 14)).map(turn).collect()
        }
    }
}

/// How many nodes are cut off is drawn as well: up to four of them, which is a majority of five.
fn swizzle_clog(random: &mut Random) -> Vec<Draft> {
    let (seed, count) = (random.draw(), random.between(2, 4));
    let step_ms = random.between(200, 900);
    let mut heals: Vec<u64> = (0..count).collect();
    random.shuffle(&mut heals);
    let cut = |place: u64, heal: &u64| {
        let (begins_ms, ends_ms) = (place * step_ms, (count + heal) * step_ms);
        let (target, condition) = (Target::Shuffled { seed, place }, Condition::Silent);
        Draft::new(begins_ms, ends_ms - begins_ms, Fault::Cut { target, condition })
    };
    (0..count).zip(&heals).map(|(place, heal)| cut(place, heal)).collect()
}

/// The smallest memory that a node is run with.
const MEBIBYTES_MIN: u64 = 512;

fn overload(random: &mut Random) -> Vec<Draft> {
    let for_ms = random.between(3_000, 6_000);
    let squeeze = Fault::Squeeze { target: Target::All, mebibytes: MEBIBYTES_MIN };
    vec![Draft::new(0, for_ms, squeeze), Draft::new(0, for_ms, Fault::Ask { tempo: Tempo::Burst })]
}

fn kill(random: &mut Random) -> Vec<Draft> {
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

fn partition(random: &mut Random) -> Vec<Draft> {
    let seed = random.draw();
    let choice =
        [Target::Minority { seed }, Target::Random { seed }, Target::Controller, Target::ControllersMinority { seed }];
    let condition = *random.pick(&[Condition::Silent, Condition::Refusing]);
    let target = random.pick(&choice).clone();
    Draft::now(random.between(1_000, 6_000), Fault::Cut { target, condition })
}

fn file_damage(random: &mut Random) -> Vec<Draft> {
    let part = *random.pick(&[Part::Table, Part::Manifest, Part::Snapshot]);
    let harm = *random.pick(&[Harm::Flip, Harm::Truncate]);
    damage(random, part, harm)
}

fn packet_loss(random: &mut Random) -> Vec<Draft> {
    let condition = Condition::Lossy { percent: random.between(5, 30) };
    Draft::now(random.between(2_000, 6_000), Fault::Degrade { target: some(random), condition })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::crowd::NODE_DESCRIPTORS;

    fn drawn(nemesis: Nemesis) -> Vec<Fault> {
        (0..40).flat_map(|seed| nemesis.visit(&mut Random::new(seed))).map(|draft| draft.fault).collect()
    }

    #[test]
    fn a_partial_wipe_takes_log_or_snapshots_or_both() {
        for (nemesis, expected, parts) in [
            (Nemesis::PartialWipe, false, &[Lost::Log, Lost::Snapshots, Lost::Both][..]),
            (Nemesis::UnrecordedWipe, true, &[Lost::Log, Lost::Both]),
        ] {
            let faults = drawn(nemesis);
            for part in parts {
                let is_drawn = |fault: &Fault| matches!(fault, Fault::Wipe { lost, unrecorded, .. } if lost == part && *unrecorded == expected);
                assert!(faults.iter().any(is_drawn), "{nemesis:?}: {part:?}");
            }
        }
    }

    #[test]
    fn a_foreign_disk_has_data_or_records_of_another_cluster() {
        let faults = drawn(Nemesis::ForeignDisk);
        for expected in [Foreign::Data, Foreign::Logs] {
            let is_drawn = |fault: &Fault| matches!(fault, Fault::SwapDisk { disk, .. } if *disk == expected);
            assert!(faults.iter().any(is_drawn), "{expected:?}");
        }
    }

    #[test]
    fn silent_connections_are_more_than_a_node_has_descriptors() {
        let takes_all = |fault: &Fault| fault.sockets() > NODE_DESCRIPTORS && fault.target() != Some(&Target::All);
        assert!(drawn(Nemesis::Descriptors).iter().all(takes_all));
    }

    #[test]
    fn an_overload_limits_the_memory_of_all_nodes_while_they_are_asked_more() {
        for seed in 0..20 {
            let drafts = Nemesis::Overload.visit(&mut Random::new(seed));
            let [squeeze, ask] = &drafts[..] else { panic!("{drafts:?}") };
            assert_eq!(squeeze.fault, Fault::Squeeze { target: Target::All, mebibytes: 512 });
            assert_eq!(ask.fault, Fault::Ask { tempo: Tempo::Burst });
            assert_eq!((squeeze.after_ms, squeeze.for_ms), (ask.after_ms, ask.for_ms), "they are one");
        }
    }
}
