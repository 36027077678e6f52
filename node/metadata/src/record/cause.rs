//! Why a partition changed.

use std::fmt;

use crate::ids::BrokerId;

/// Why a partition changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cause {
    /// The topic was created or got more partitions.
    Created,
    BrokerFenced(BrokerId),
    BrokerUnfenced(BrokerId),
    ControlledShutdown(BrokerId),
    BrokerUnregistered(BrokerId),
    /// A new incarnation registered without proof that its copy is whole: it may lack records.
    UncleanRestart(BrokerId),
    /// The leader asked for another ISR.
    AlterPartition(BrokerId),
    /// An operator asked for the election.
    ElectionRequested,
    /// The periodic return to the preferred leader.
    PreferredElection,
    /// The periodic unclean election, where the topic allows it.
    UncleanElection,
    /// `min.insync.replicas` changed, so the ELR was cleared.
    MinIsrChanged,
    Reassignment,
    /// A log directory of the broker has failed.
    DirectoryFailed(BrokerId),
}

impl Cause {
    /// The highest tag.
    #[cfg(test)]
    pub(crate) const TAG_MAX: u8 = 13;

    /// A number for digests and encodings: it never changes.
    pub(crate) fn tag(self) -> u8 {
        match self {
            Self::Created => 1,
            Self::BrokerFenced(_) => 2,
            Self::BrokerUnfenced(_) => 3,
            Self::ControlledShutdown(_) => 4,
            Self::BrokerUnregistered(_) => 5,
            Self::UncleanRestart(_) => 6,
            Self::AlterPartition(_) => 7,
            Self::ElectionRequested => 8,
            Self::PreferredElection => 9,
            Self::UncleanElection => 10,
            Self::MinIsrChanged => 11,
            Self::Reassignment => 12,
            Self::DirectoryFailed(_) => 13,
        }
    }

    /// The cause with this tag, and this broker exactly if it has one.
    pub(crate) fn from_tag(tag: u8, broker: Option<BrokerId>) -> Option<Self> {
        Some(match (tag, broker) {
            (1, None) => Self::Created,
            (2, Some(broker)) => Self::BrokerFenced(broker),
            (3, Some(broker)) => Self::BrokerUnfenced(broker),
            (4, Some(broker)) => Self::ControlledShutdown(broker),
            (5, Some(broker)) => Self::BrokerUnregistered(broker),
            (6, Some(broker)) => Self::UncleanRestart(broker),
            (7, Some(broker)) => Self::AlterPartition(broker),
            (8, None) => Self::ElectionRequested,
            (9, None) => Self::PreferredElection,
            (10, None) => Self::UncleanElection,
            (11, None) => Self::MinIsrChanged,
            (12, None) => Self::Reassignment,
            (13, Some(broker)) => Self::DirectoryFailed(broker),
            _ => return None,
        })
    }

    /// The cause's name on the wire and in `partition explain`.
    pub fn name(self) -> &'static str {
        match self {
            Self::Created => "created",
            Self::BrokerFenced(_) => "broker-fenced",
            Self::BrokerUnfenced(_) => "broker-unfenced",
            Self::ControlledShutdown(_) => "controlled-shutdown",
            Self::BrokerUnregistered(_) => "broker-unregistered",
            Self::UncleanRestart(_) => "unclean-restart",
            Self::AlterPartition(_) => "alter-partition",
            Self::ElectionRequested => "election-requested",
            Self::PreferredElection => "preferred-election",
            Self::UncleanElection => "unclean-election",
            Self::MinIsrChanged => "min-isr-changed",
            Self::Reassignment => "reassignment",
            Self::DirectoryFailed(_) => "directory-failed",
        }
    }

    /// The broker that caused it, where one did.
    pub fn broker(self) -> Option<BrokerId> {
        match self {
            Self::BrokerFenced(broker)
            | Self::BrokerUnfenced(broker)
            | Self::ControlledShutdown(broker)
            | Self::BrokerUnregistered(broker)
            | Self::UncleanRestart(broker)
            | Self::AlterPartition(broker)
            | Self::DirectoryFailed(broker) => Some(broker),
            Self::Created
            | Self::ElectionRequested
            | Self::PreferredElection
            | Self::UncleanElection
            | Self::MinIsrChanged
            | Self::Reassignment => None,
        }
    }
}

impl fmt::Display for Cause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.broker() {
            Some(broker) => write!(f, "{} {broker}", self.name()),
            None => f.write_str(self.name()),
        }
    }
}
