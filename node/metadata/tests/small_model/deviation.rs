//! Mistakes that the model can be told to make, one at a time: each must be found, or a green run says little.

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Deviation {
    /// A leader commits what it has, whoever else has it.
    CommitsAlone,
    /// A leader commits while fewer than `min.insync.replicas` are in sync.
    CommitsBelowMinIsr,
    /// A leader does not wait for whom it has asked to add.
    CommitsByCommittedIsr,
    /// A leader does not wait for whom it has asked to remove.
    CommitsByAskedIsr,
    /// A leader asks for a follower that lacks committed records.
    AsksForLaggards,
    /// A leader does not say as which incarnations it saw its followers.
    NamesNoEpochs,
    /// A leader takes a refusal for the end of a change that was asked for more than once.
    TrustsAnyRefusal,
    /// A leader takes a change back by asking for what is, which moves nothing.
    TakesBackNothing,
    /// Followers go on from their ends, whatever their leader has there.
    NeverTruncates,
    /// A broker that lost the end of its log registers as one that stopped cleanly.
    ClaimsCleanStop,
    /// The controllers take a change for another state of the partition than the one that is.
    TakesAnyPartitionEpoch,
    /// The controllers take a change by a leader that was.
    TakesAnyLeaderEpoch,
    /// The controllers elect a replica that is in neither ISR nor ELR.
    ElectsAnyone,
    /// The controllers do not say that an election was unclean.
    ConcealsUncleanElections,
}
