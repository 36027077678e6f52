//! What is done to whom, in the words of a schedule.

use serde::{Deserialize, Serialize};

use super::Target;
use crate::disk::Mode;
use crate::disk::damage::{Harm, Part};
use crate::disk::foreign::Foreign;
use crate::disk::wipe::Lost;
use crate::generator::Tempo;
use crate::link::Condition;
use crate::stderr::Stderr;

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
        #[serde(default)]
        part: Part,
        #[serde(default)]
        harm: Harm,
        /// Of the place in the file.
        #[serde(default)]
        seed: u64,
    },
    TearWrite {
        target: Target,
        seed: u64,
    },
    /// A part of its data directory is gone, and the name of the disk is left.
    Wipe {
        target: Target,
        lost: Lost,
        /// The name does not say either what the disk had: no node can find out.
        #[serde(default)]
        unrecorded: bool,
    },
    /// A disk of another cluster is in the place of its own.
    SwapDisk {
        target: Target,
        disk: Foreign,
    },
    /// Its log is written to what takes nothing.
    SwapStderr {
        target: Target,
        stderr: Stderr,
    },
    /// So many connections that say nothing are open to it.
    Crowd {
        target: Target,
        sockets: u64,
    },
    /// Its wall clock is wrong by so much.
    SetClock {
        target: Target,
        offset_ms: i64,
    },
    /// No more memory than that.
    Squeeze {
        target: Target,
        mebibytes: u64,
    },
    /// Nodes are asked at another pace.
    Ask {
        tempo: Tempo,
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
            | Self::Damage { target, .. }
            | Self::TearWrite { target, .. }
            | Self::Wipe { target, .. }
            | Self::SwapDisk { target, .. }
            | Self::SwapStderr { target, .. }
            | Self::Crowd { target, .. }
            | Self::SetClock { target, .. }
            | Self::Squeeze { target, .. }
            | Self::BreakDisk { target, .. }
            | Self::Cut { target, .. }
            | Self::Deafen { target }
            | Self::Mute { target }
            | Self::Bridge { target }
            | Self::Degrade { target, .. } => Some(target),
            Self::MajoritiesRing { .. } | Self::Ask { .. } => None,
        }
    }

    /// What it does to links, where it does.
    pub fn condition(&self) -> Option<Condition> {
        match self {
            Self::Cut { condition, .. } | Self::Degrade { condition, .. } => Some(*condition),
            Self::Deafen { .. } | Self::Mute { .. } | Self::Bridge { .. } | Self::MajoritiesRing { .. } => {
                Some(Condition::Silent)
            }
            _ => None,
        }
    }

    pub fn needs_clock(&self) -> bool {
        matches!(self, Self::SetClock { .. })
    }

    pub fn needs_limits(&self) -> bool {
        matches!(self, Self::Squeeze { .. })
    }

    /// Connections beside those of its load and its links.
    pub fn sockets(&self) -> u64 {
        if let Self::Crowd { sockets, .. } = self { *sockets } else { 0 }
    }

    pub fn needs_shim(&self) -> bool {
        matches!(self, Self::CutPower { .. } | Self::BreakDisk { .. })
    }
}
