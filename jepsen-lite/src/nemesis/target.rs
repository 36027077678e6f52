//! Whom a fault is meant for, decided when it begins: who is in office then is not known before.

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};

use crate::random::Random;

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub enum Target {
    /// The active controller.
    Controller,
    /// A node that is not the active controller.
    Follower {
        seed: u64,
    },
    Random {
        seed: u64,
    },
    /// A node that leads partitions.
    PartitionLeader {
        seed: u64,
    },
    /// As many as the quorum can spare.
    Minority {
        seed: u64,
    },
    /// The same, the active controller among them.
    ControllersMinority {
        seed: u64,
    },
    /// One more than the quorum can spare.
    Majority {
        seed: u64,
    },
    All,
    /// The node at this place of a shuffled order, from 0.
    Shuffled {
        seed: u64,
        place: u64,
    },
}

/// What is known of the cluster when a fault begins.
#[derive(Debug, Clone, Default)]
pub struct Situation {
    pub nodes: Vec<i32>,
    pub controller: Option<i32>,
    pub partition_leaders: BTreeSet<i32>,
}

impl Target {
    /// The nodes that are meant. Where nobody is in office, somebody else stands in.
    pub fn resolve(&self, situation: &Situation) -> BTreeSet<i32> {
        let spare = situation.nodes.len().saturating_sub(1) / 2;
        match self {
            Self::All => situation.nodes.iter().copied().collect(),
            Self::Controller => situation.controller.or(situation.nodes.first().copied()).into_iter().collect(),
            Self::Random { seed } => some(&situation.nodes, 1, *seed),
            Self::Minority { seed } => some(&situation.nodes, spare, *seed),
            Self::Majority { seed } => some(&situation.nodes, spare + 1, *seed),
            Self::Follower { seed } => {
                let is_follower = |node: &i32| Some(*node) != situation.controller;
                some(&situation.nodes.iter().copied().filter(is_follower).collect::<Vec<_>>(), 1, *seed)
            }
            Self::Shuffled { seed, place } => {
                let mut nodes = situation.nodes.clone();
                Random::new(*seed).shuffle(&mut nodes);
                let place = usize::try_from(*place).unwrap_or(usize::MAX);
                nodes.get(place).copied().into_iter().collect()
            }
            Self::PartitionLeader { seed } if situation.partition_leaders.is_empty() => {
                some(&situation.nodes, 1, *seed)
            }
            Self::PartitionLeader { seed } => {
                some(&situation.partition_leaders.iter().copied().collect::<Vec<_>>(), 1, *seed)
            }
            Self::ControllersMinority { seed } => {
                let others = |node: &i32| Some(*node) != situation.controller;
                let others: Vec<i32> = situation.nodes.iter().copied().filter(others).collect();
                let missing = spare - usize::from(situation.controller.is_some()).min(spare);
                some(&others, missing, *seed).into_iter().chain(situation.controller).collect()
            }
        }
    }
}

fn some(nodes: &[i32], count: usize, seed: u64) -> BTreeSet<i32> {
    let mut nodes = nodes.to_vec();
    Random::new(seed).shuffle(&mut nodes);
    nodes.into_iter().take(count).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn situation() -> Situation {
        Situation { nodes: vec![1, 2, 3, 4, 5], controller: Some(3), partition_leaders: [2, 4].into() }
    }

    #[test]
    fn targets_are_who_they_say() {
        let situation = situation();
        for seed in 0..50 {
            let of = |target: Target| target.resolve(&situation);
            assert_eq!(of(Target::Controller), [3].into());
            assert!(!of(Target::Follower { seed }).contains(&3));
            assert_eq!(of(Target::Minority { seed }).len(), 2);
            assert_eq!(of(Target::Majority { seed }).len(), 3);
            let with_controller = of(Target::ControllersMinority { seed });
            assert!(with_controller.contains(&3) && with_controller.len() == 2);
            assert!(of(Target::PartitionLeader { seed }).is_subset(&situation.partition_leaders));
            assert_eq!(of(Target::All).len(), 5);
            let shuffled: BTreeSet<i32> = (0..5).flat_map(|place| of(Target::Shuffled { seed, place })).collect();
            assert_eq!(shuffled.len(), 5, "each place has another node");
        }
    }

    #[test]
    fn somebody_stands_in_where_nobody_is_in_office() {
        let situation = Situation { nodes: vec![1, 2, 3], ..Situation::default() };
        for target in [Target::Controller, Target::PartitionLeader { seed: 1 }, Target::ControllersMinority { seed: 1 }]
        {
            assert_eq!(target.resolve(&situation).len(), 1, "{target:?}");
        }
    }
}
