//! The features that this release knows, and the levels a new cluster starts with.

use std::collections::BTreeMap;

use crate::record::VersionRange;

/// Gates the formats of records and messages.
pub const METADATA_VERSION: &str = "metadata.version";

/// Gates eligible leader replicas (KIP-966).
pub const ELIGIBLE_LEADER_REPLICAS: &str = "eligible.leader.replicas.version";

/// A broker that does not say which metadata versions it can read is taken to read the first one only.
pub const METADATA_VERSION_OLDEST: VersionRange = VersionRange { min: 1, max: 1 };

/// Every feature, with the levels this release works with. A new cluster starts at the highest.
pub fn supported() -> BTreeMap<String, VersionRange> {
    BTreeMap::from([
        (METADATA_VERSION.to_owned(), METADATA_VERSION_OLDEST),
        (ELIGIBLE_LEADER_REPLICAS.to_owned(), VersionRange { min: 0, max: 1 }),
    ])
}
