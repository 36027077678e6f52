//! What is asked of the cluster while it is being broken: each workload has its operations here and its checker beside.

use clap::ValueEnum;
use serde::{Deserialize, Serialize};

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum WorkloadName {
    /// Registers in the configs of topics: reads, writes, compare-and-set.
    MetaRegister,
    /// Topics are created, deleted and listed.
    TopicSet,
    /// What every node has is sampled.
    LeaderEpoch,
    /// Records are produced and fetched.
    Log,
}
