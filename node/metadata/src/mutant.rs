//! Bugs made on purpose, one at a time, to see that the fault runs find them: `jepsen-lite mutants`.
//!
//! They exist with the feature `mutants` only, which a release build refuses. The environment variable `MUTANT` names the
//! one that is on, such as `M7`.

#[cfg(all(feature = "mutants", not(debug_assertions)))]
compile_error!("mutants must not be in a release build");

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mutant {
    /// Answered when proposed.
    AckBeforeCommit = 1,
    /// Commits are not synced.
    UnsyncedLog,
    /// A vote is given, and not written down.
    UnsavedVote,
    /// What a node has is served as the latest.
    LocalReads,
    /// A lease lasts longer than the next election takes.
    LongLease,
    AnyBrokerEpoch,
    AnyPartitionEpoch,
    /// Whoever lives may lead.
    AnyLeader,
    /// Records count as committed when the leader has them.
    EarlyHighWatermark,
    SameLeaderEpoch,
    /// A follower goes back to its high watermark before it asks where the logs agree (KIP-101).
    TruncatesToHighWatermark,
    /// A snapshot has no answered requests.
    ForgottenRequests,
    /// A resumed feed leaves out its first batch, tells it twice, or tells it after the second one.
    DroppedDelta,
    RepeatedDelta,
    SwappedDeltas,
    /// A snapshot lacks a partition.
    LostPartition,
    /// A voter counts before it has answered.
    SmallQuorum,
    /// A client that asks again does not say that it does.
    UnnamedRequests,
    /// Damaged bytes are taken as they are.
    UncheckedBytes,
    /// A partition without a leader stays so.
    NoElection,
    /// The event loop of a controller waits for ever, and its watchdog looks away.
    HeldLoop,
    /// A log directory of another cluster is taken as one of this.
    AcceptForeignDirectory,
    /// A line of the log that cannot be written is an error of whoever logs.
    LogPanics,
    /// Connections that say nothing are all kept, and leave no descriptors for anything else.
    NoAcceptReserve,
    /// A disk that does not answer is waited for.
    HangingDisk,
    /// A log directory that was full stays offline.
    FullForGood,
    /// A voter that has lost its log starts with an empty one.
    AcceptLostState,
}

impl Mutant {
    #[cfg(feature = "mutants")]
    pub fn is_on(self) -> bool {
        static ON: std::sync::OnceLock<Option<String>> = std::sync::OnceLock::new();
        let on = ON.get_or_init(|| std::env::var("MUTANT").ok());
        on.as_ref().is_some_and(|on| *on == format!("M{}", self as u8))
    }

    #[cfg(not(feature = "mutants"))]
    #[inline]
    pub const fn is_on(self) -> bool {
        false
    }
}
