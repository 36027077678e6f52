//! Levels of `metadata.version`: what the log of a cluster may hold.
//!
//! A record kind, or a field of one, belongs to the level of the release that introduced it. Plans write it only where
//! that level is finalized, so that a node of an older release never meets it; `verify_changed` refuses a plan that
//! does not check. `Record::level` is the only place that knows which level brings which kind. Example:
//! `if image.may_write(&bulk) { vec![bulk] } else { one_record_a_partition() }`.

use super::MetadataImage;
use crate::error::{ApiError, ErrorName};
use crate::record::{BrokerRegistration, Kind, Probe, Record};

/// Gates the formats of records and messages.
pub const METADATA_VERSION: &str = "metadata.version";

/// What every release understands, and what a member that states no range is taken to support.
pub const LEVEL_LOWEST: i16 = 1;

/// What this release understands.
pub const LEVEL_HIGHEST: i16 = 4;

/// Brokers and topics may be of another kind than a log.
const LEVEL_OF_KINDS: i16 = 3;

/// Removed topics are remembered.
pub const LEVEL_OF_REMOVED_TOPICS: i16 = 3;

/// A registration states what of the broker is probed.
pub const LEVEL_OF_PROBES: i16 = 4;

impl MetadataImage {
    /// The finalized level. Before the first records of a cluster it is the lowest.
    pub fn level(&self) -> i16 {
        self.features.get(METADATA_VERSION).copied().unwrap_or(LEVEL_LOWEST)
    }

    /// Refuses a kind that nodes of an earlier release would take for a log.
    pub(crate) fn check_kind(&self, kind: &Kind) -> Result<(), ApiError> {
        let (level, needed) = (self.level(), kind.level());
        if level >= needed {
            return Ok(());
        }
        let message = format!("kind {kind} needs {METADATA_VERSION} {needed}, the cluster is at {level}");
        Err(ApiError::new(ErrorName::UnsupportedVersion, message))
    }

    /// Whether every node that this cluster may have understands the record.
    pub fn may_write(&self, record: &Record) -> bool {
        record.level() <= self.level()
    }
}

impl Kind {
    /// The level from which on plans may write it.
    fn level(&self) -> i16 {
        if self.is_log() { LEVEL_LOWEST } else { LEVEL_OF_KINDS }
    }
}

impl Probe {
    /// The level from which on plans may write it.
    fn level(&self) -> i16 {
        match self {
            Self::Unstated => LEVEL_LOWEST,
            Self::None | Self::Endpoint(_) => LEVEL_OF_PROBES,
        }
    }
}

impl Record {
    /// The level from which on plans may write this record. A field of a later level counts where it is set.
    pub fn level(&self) -> i16 {
        match self {
            Self::ClusterCreated { .. }
            | Self::FeatureLevel { .. }
            | Self::RegisterController(_)
            | Self::FenceBroker { .. }
            | Self::UnfenceBroker { .. }
            | Self::BeginControlledShutdown { .. }
            | Self::UnregisterBroker { .. }
            | Self::RemoveTopic { .. }
            | Self::CreatePartition(_)
            | Self::PartitionChange(_)
            | Self::Config { .. }
            | Self::ProducerIds { .. }
            | Self::RequestApplied { .. }
            | Self::Digest { .. }
            | Self::BeginTransaction { .. }
            | Self::EndTransaction
            | Self::AbortTransaction { .. }
            | Self::BeginReassignment(_)
            | Self::ChangeReassignment { .. } => 1,
            Self::RemovedTopic { .. } => LEVEL_OF_REMOVED_TOPICS,
            Self::RegisterBroker(BrokerRegistration { kind, probe, .. }) => kind.level().max(probe.level()),
            Self::CreateTopic { kind, .. } => kind.level(),
        }
    }

    /// The level that a reader must understand to keep an image from this record on. One that only lists records does
    /// not need it: the record that finalizes a level is itself of the lowest.
    pub fn level_for_followers(&self) -> i16 {
        match self {
            Self::FeatureLevel { name, level } if name == METADATA_VERSION => *level,
            other => other.level(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::image::fixture::{batch, feature};

    #[test]
    fn the_level_is_the_lowest_until_one_is_finalized() {
        let mut image = MetadataImage::default();
        assert_eq!(image.level(), LEVEL_LOWEST);
        image.replay(&batch(1, &[feature(METADATA_VERSION, 2)])).expect("a feature level always replays");
        assert_eq!(image.level(), 2);
    }

    #[test]
    fn a_follower_needs_the_level_from_the_record_that_finalizes_it() {
        assert_eq!(feature(METADATA_VERSION, 2).level(), 1);
        assert_eq!(feature(METADATA_VERSION, 2).level_for_followers(), 2);
        assert_eq!(feature("another.feature", 7).level_for_followers(), 1);
        assert_eq!(Record::EndTransaction.level_for_followers(), 1);
    }
}
