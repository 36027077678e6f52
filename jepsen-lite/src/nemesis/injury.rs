//! What is wrong at a moment: the sum of all faults that last. When one ends, the others stay as they are.

use std::collections::{BTreeMap, BTreeSet};

use super::{Fault, Situation};
use crate::disk::Mode;
use crate::generator::Tempo;
use crate::link::{Condition, Direction};
use crate::random::Random;
use crate::stderr::Stderr;

/// What a fault does to certain nodes and links.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Injury {
    Killed(BTreeSet<i32>),
    Stopped(BTreeSet<i32>),
    Paused(BTreeSet<i32>),
    /// Down, and without what was not synced.
    Dark(BTreeSet<i32>),
    /// Down, after it was tried with a damaged file.
    Damaged(BTreeSet<i32>),
    /// Down, after its last writes were torn.
    Torn(BTreeSet<i32>),
    /// Down, after it was tried without a part of its data.
    Wiped(BTreeSet<i32>),
    /// Down, after it was tried on a disk of another cluster.
    Foreign(BTreeSet<i32>),
    Stderr(BTreeSet<i32>, Stderr),
    /// Connections that say nothing.
    Crowded(BTreeSet<i32>, u64),
    Disk(BTreeSet<i32>, Mode),
    /// By how many milliseconds the wall clock is wrong.
    Clock(BTreeSet<i32>, i64),
    /// Mebibytes of memory.
    Squeezed(BTreeSet<i32>, u64),
    Asked(Tempo),
    /// By who sends and who receives.
    Links(BTreeMap<(i32, i32), Condition>),
}

/// What a node is to be like.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Whole {
    Running,
    Paused,
    Down,
}

impl Fault {
    pub fn resolve(&self, situation: &Situation) -> Injury {
        let nodes = &situation.nodes;
        let target = self.target().map(|target| target.resolve(situation)).unwrap_or_default();
        let is_hit = |node: i32| target.contains(&node);
        match self {
            Self::Kill { .. } => Injury::Killed(target),
            Self::Stop { .. } => Injury::Stopped(target),
            Self::Pause { .. } => Injury::Paused(target),
            Self::CutPower { .. } => Injury::Dark(target),
            Self::Damage { .. } => Injury::Damaged(target),
            Self::TearWrite { .. } => Injury::Torn(target),
            Self::Wipe { .. } => Injury::Wiped(target),
            Self::SwapDisk { .. } => Injury::Foreign(target),
            Self::SwapStderr { stderr, .. } => Injury::Stderr(target, *stderr),
            Self::Crowd { sockets, .. } => Injury::Crowded(target, *sockets),
            Self::SetClock { offset_ms, .. } => Injury::Clock(target, *offset_ms),
            Self::Squeeze { mebibytes, .. } => Injury::Squeezed(target, *mebibytes),
            Self::Ask { tempo } => Injury::Asked(*tempo),
            Self::BreakDisk { mode, .. } => Injury::Disk(target, *mode),
            Self::Cut { condition, .. } => links(nodes, *condition, |from, to| is_hit(from) != is_hit(to)),
            Self::Deafen { .. } => links(nodes, Condition::Silent, |_, to| is_hit(to)),
            Self::Mute { .. } => links(nodes, Condition::Silent, |from, _| is_hit(from)),
            Self::Degrade { condition, .. } => links(nodes, *condition, |from, to| is_hit(from) || is_hit(to)),
            Self::Bridge { .. } => {
                let others: Vec<i32> = nodes.iter().copied().filter(|node| !is_hit(*node)).collect();
                let half: BTreeSet<i32> = others[..others.len() / 2].iter().copied().collect();
                links(nodes, Condition::Silent, |from, to| {
                    !is_hit(from) && !is_hit(to) && half.contains(&from) != half.contains(&to)
                })
            }
            Self::MajoritiesRing { seed } => majorities_ring(nodes, *seed),
        }
    }
}

fn links(nodes: &[i32], condition: Condition, concerns: impl Fn(i32, i32) -> bool) -> Injury {
    let pairs = nodes.iter().flat_map(|from| nodes.iter().map(move |to| (*from, *to)));
    Injury::Links(pairs.filter(|(from, to)| from != to && concerns(*from, *to)).map(|at| (at, condition)).collect())
}

/// With five nodes each one hears two on either side of it, so nobody is cut off and no two agree who is there; with
/// `majority - 1` neighbours that follow it in the ring, hearing is also not mutual.
fn majorities_ring(nodes: &[i32], seed: u64) -> Injury {
    let mut ring = nodes.to_vec();
    Random::new(seed).shuffle(&mut ring);
    let place = |node: i32| ring.iter().position(|other| *other == node).expect("all are in the ring");
    let neighbours = nodes.len() / 2;
    links(nodes, Condition::Silent, |from, to| {
        let distance = (place(from) + nodes.len() - place(to)) % nodes.len();
        distance > neighbours
    })
}

/// The faults that last, by the number of their event.
#[derive(Debug, Default)]
pub struct Injuries {
    lasting: BTreeMap<usize, Injury>,
}

impl Injuries {
    pub fn begin(&mut self, event: usize, injury: Injury) {
        self.lasting.insert(event, injury);
    }

    pub fn end(&mut self, event: usize) -> Option<Injury> {
        self.lasting.remove(&event)
    }

    /// The events that last, in the order in which they began.
    pub fn lasting(&self) -> Vec<usize> {
        self.lasting.keys().copied().collect()
    }

    pub fn node(&self, id: i32) -> Whole {
        let state = |injury: &Injury| match injury {
            Injury::Killed(nodes)
            | Injury::Stopped(nodes)
            | Injury::Dark(nodes)
            | Injury::Damaged(nodes)
            | Injury::Torn(nodes)
            | Injury::Wiped(nodes)
            | Injury::Foreign(nodes)
                if nodes.contains(&id) =>
            {
                Whole::Down
            }
            Injury::Paused(nodes) if nodes.contains(&id) => Whole::Paused,
            _ => Whole::Running,
        };
        self.lasting.values().map(state).max().unwrap_or(Whole::Running)
    }

    pub fn disk(&self, id: i32) -> Mode {
        let mode = |injury: &Injury| match injury {
            Injury::Disk(nodes, mode) if nodes.contains(&id) => Some(*mode),
            _ => None,
        };
        self.lasting.values().find_map(mode).unwrap_or_default()
    }

    /// By how much its clock is wrong: what came last counts.
    pub fn clock(&self, id: i32) -> i64 {
        let offset_ms = |injury: &Injury| match injury {
            Injury::Clock(nodes, offset_ms) if nodes.contains(&id) => Some(*offset_ms),
            _ => None,
        };
        self.lasting.values().rev().find_map(offset_ms).unwrap_or(0)
    }

    /// How many mebibytes it may have, if not any number.
    pub fn memory(&self, id: i32) -> Option<u64> {
        let limit = |injury: &Injury| match injury {
            Injury::Squeezed(nodes, mebibytes) if nodes.contains(&id) => Some(*mebibytes),
            _ => None,
        };
        self.lasting.values().filter_map(limit).min()
    }

    /// Where it writes its log: what came last counts.
    pub fn stderr(&self, id: i32) -> Stderr {
        let stderr = |injury: &Injury| match injury {
            Injury::Stderr(nodes, stderr) if nodes.contains(&id) => Some(*stderr),
            _ => None,
        };
        self.lasting.values().rev().find_map(stderr).unwrap_or_default()
    }

    /// How many connections say nothing to it.
    pub fn sockets(&self, id: i32) -> u64 {
        let sockets = |injury: &Injury| match injury {
            Injury::Crowded(nodes, sockets) if nodes.contains(&id) => Some(*sockets),
            _ => None,
        };
        self.lasting.values().filter_map(sockets).max().unwrap_or(0)
    }

    pub fn tempo(&self) -> Tempo {
        let tempo = |injury: &Injury| match injury {
            Injury::Asked(tempo) => Some(*tempo),
            _ => None,
        };
        self.lasting.values().rev().find_map(tempo).unwrap_or_default()
    }

    /// Of those that concern a link the last one counts, but what cuts it off counts before what degrades it.
    pub fn link(&self, (from, to, _): Direction) -> Condition {
        let conditions = self.lasting.values().filter_map(|injury| match injury {
            Injury::Links(links) => links.get(&(from, to)).copied(),
            // Nobody is there to refuse, or to be heard.
            Injury::Dark(nodes) | Injury::Damaged(nodes) | Injury::Wiped(nodes)
                if nodes.contains(&from) || nodes.contains(&to) =>
            {
                Some(Condition::Silent)
            }
            _ => None,
        });
        conditions
            .max_by_key(|condition| matches!(condition, Condition::Silent | Condition::Refusing))
            .unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::super::Target;
    use super::*;
    use crate::disk::foreign::Foreign;
    use crate::disk::wipe::Lost;
    use crate::link::Port;

    fn situation() -> Situation {
        Situation { nodes: vec![1, 2, 3, 4, 5], controller: Some(3), ..Situation::default() }
    }

    fn cut_links(fault: &Fault) -> BTreeSet<(i32, i32)> {
        match fault.resolve(&situation()) {
            Injury::Links(links) => links.into_keys().collect(),
            other => panic!("{other:?} is not about links"),
        }
    }

    #[test]
    fn one_way_faults_leave_the_other_way_open() {
        let deaf = cut_links(&Fault::Deafen { target: Target::Controller });
        assert_eq!(deaf, [(1, 3), (2, 3), (4, 3), (5, 3)].into());
        let mute = cut_links(&Fault::Mute { target: Target::Controller });
        assert_eq!(mute, [(3, 1), (3, 2), (3, 4), (3, 5)].into());
    }

    #[test]
    fn a_bridge_reaches_both_halves_that_do_not_reach_each_other() {
        let cut = cut_links(&Fault::Bridge { target: Target::Controller });
        assert!(cut.iter().all(|(from, to)| *from != 3 && *to != 3));
        assert_eq!(cut.len(), 2 * 2 * 2);
    }

    #[test]
    fn in_a_ring_of_majorities_everyone_hears_a_majority_and_no_two_the_same() {
        for seed in 0..20 {
            let cut = cut_links(&Fault::MajoritiesRing { seed });
            let heard_by =
                |node: i32| -> BTreeSet<i32> { (1..=5).filter(|from| !cut.contains(&(*from, node))).collect() };
            let views: BTreeSet<BTreeSet<i32>> = (1..=5).map(heard_by).collect();
            assert!(views.iter().all(|view| view.len() == 3));
            assert_eq!(views.len(), 5);
        }
    }

    #[test]
    fn what_lasts_longer_stays_when_something_else_ends() {
        let mut injuries = Injuries::default();
        let all_of = |fault: Fault| fault.resolve(&situation());
        injuries.begin(0, all_of(Fault::Kill { target: Target::Controller }));
        injuries.begin(1, all_of(Fault::Pause { target: Target::All }));
        assert_eq!((injuries.node(3), injuries.node(4)), (Whole::Down, Whole::Paused));
        injuries.begin(2, all_of(Fault::Deafen { target: Target::Controller }));
        let slow = Condition::Slow { delay_ms: 1, jitter_ms: 0 };
        injuries.begin(3, all_of(Fault::Degrade { target: Target::All, condition: slow }));
        let conditions = |injuries: &Injuries| [(1, 3), (3, 1)].map(|(from, to)| injuries.link((from, to, Port::Raft)));
        assert_eq!(conditions(&injuries), [Condition::Silent, slow]);
        injuries.end(0);
        injuries.end(2);
        assert_eq!((injuries.node(3), conditions(&injuries)), (Whole::Paused, [slow, slow]));
        injuries.lasting().into_iter().for_each(|event| drop(injuries.end(event)));
        assert_eq!((injuries.node(3), injuries.node(4)), (Whole::Running, Whole::Running));
    }

    #[test]
    fn clock_memory_and_tempo_are_as_the_last_fault_has_left_them() {
        let mut injuries = Injuries::default();
        let mut begin = |event, fault: Fault| injuries.begin(event, fault.resolve(&situation()));
        begin(0, Fault::SetClock { target: Target::All, offset_ms: 5 });
        begin(1, Fault::SetClock { target: Target::Controller, offset_ms: -7 });
        begin(2, Fault::Squeeze { target: Target::Controller, mebibytes: 256 });
        begin(3, Fault::Ask { tempo: Tempo::Burst });
        assert_eq!([1, 3].map(|id| injuries.clock(id)), [5, -7]);
        assert_eq!([1, 3].map(|id| injuries.memory(id)), [None, Some(256)]);
        assert_eq!(injuries.tempo(), Tempo::Burst);
        (0..4).for_each(|event| drop(injuries.end(event)));
        assert_eq!((injuries.clock(3), injuries.memory(3), injuries.tempo()), (0, None, Tempo::Usual));
    }

    #[test]
    fn stderr_and_silent_connections_are_as_the_last_fault_has_left_them() {
        let mut injuries = Injuries::default();
        let mut begin = |event, fault: Fault| injuries.begin(event, fault.resolve(&situation()));
        begin(0, Fault::SwapStderr { target: Target::All, stderr: Stderr::ClosedPipe });
        begin(1, Fault::SwapStderr { target: Target::Controller, stderr: Stderr::FullDevice });
        begin(2, Fault::Crowd { target: Target::Controller, sockets: 700 });
        assert_eq!([1, 3].map(|id| injuries.stderr(id)), [Stderr::ClosedPipe, Stderr::FullDevice]);
        assert_eq!([1, 3].map(|id| injuries.sockets(id)), [0, 700]);
        assert_eq!([1, 3].map(|id| injuries.node(id)), [Whole::Running; 2], "it must go on");
        (0..3).for_each(|event| drop(injuries.end(event)));
        assert_eq!((injuries.stderr(3), injuries.sockets(3)), (Stderr::File, 0));
    }

    #[test]
    fn a_wiped_node_is_cut_off_and_one_with_a_foreign_disk_is_not() {
        let mut injuries = Injuries::default();
        let target = Target::Controller;
        injuries.begin(0, Fault::SwapDisk { target: target.clone(), disk: Foreign::Data }.resolve(&situation()));
        assert_eq!(injuries.node(3), Whole::Down);
        assert_eq!(injuries.link((3, 1, Port::Raft)), Condition::Open, "the others tell it of which cluster they are");
        let wipe = Fault::Wipe { target, lost: Lost::Both, unrecorded: false };
        injuries.begin(1, wipe.resolve(&situation()));
        assert_eq!((injuries.node(3), injuries.link((3, 1, Port::Raft))), (Whole::Down, Condition::Silent));
    }

    #[test]
    fn a_swizzle_cuts_one_after_the_other_and_heals_in_another_order() {
        let mut orders = BTreeSet::new();
        for seed in 0..30 {
            let visit = super::super::Nemesis::SwizzleClog.visit(&mut Random::new(seed));
            let hit: Vec<Injury> = visit.iter().map(|draft| draft.fault.resolve(&situation())).collect();
            assert!((1..hit.len()).all(|place| hit[place] != hit[place - 1]), "each one is another node");
            let all_cut_ms = visit.iter().map(|draft| draft.after_ms).max();
            let healed: Vec<u64> = visit.iter().map(|draft| draft.after_ms + draft.for_ms).collect();
            assert!(healed.iter().min() > all_cut_ms.as_ref());
            orders.insert(healed.is_sorted());
        }
        assert_eq!(orders, [false, true].into(), "also in the same order, now and then");
    }
}
