//! Features: the levels that this release supports, and how a finalized level is raised.
//!
//! A finalized level may be raised only to what every voter and every unfenced broker supports. What is raised is not
//! lowered again: a later level changes what is written, and an earlier release could not read it.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Display;

use crate::error::{ApiError, ErrorName};
use crate::ids::ControllerId;
use crate::image::{LEVEL_HIGHEST, LEVEL_LOWEST, MetadataImage};
use crate::plan::Plan;
use crate::record::{Record, VersionRange};

pub use crate::image::METADATA_VERSION;

/// Gates eligible leader replicas (KIP-966).
pub const ELIGIBLE_LEADER_REPLICAS: &str = "eligible.leader.replicas.version";

/// A member that does not state which metadata versions it supports is taken to support the first one only.
pub const METADATA_VERSION_OLDEST: VersionRange = VersionRange { min: LEVEL_LOWEST, max: LEVEL_LOWEST };

/// A member that does not state another feature is taken not to support it.
const UNSTATED: VersionRange = VersionRange { min: 0, max: 0 };

/// Every feature, with the levels that this release supports.
pub fn supported() -> BTreeMap<String, VersionRange> {
    supported_up_to(LEVEL_HIGHEST)
}

/// As `supported`, of a release whose highest `metadata.version` is `level`.
pub fn supported_up_to(level: i16) -> BTreeMap<String, VersionRange> {
    let metadata_version = VersionRange { min: LEVEL_LOWEST, max: level.clamp(LEVEL_LOWEST, LEVEL_HIGHEST) };
    BTreeMap::from([
        (METADATA_VERSION.to_owned(), metadata_version),
        (ELIGIBLE_LEADER_REPLICAS.to_owned(), VersionRange { min: 0, max: 1 }),
    ])
}

/// The levels of one feature that a member supports, by what it has stated.
pub fn range(stated: &BTreeMap<String, VersionRange>, name: &str) -> VersionRange {
    let unstated = if name == METADATA_VERSION { METADATA_VERSION_OLDEST } else { UNSTATED };
    stated.get(name).copied().unwrap_or(unstated)
}

/// The finalized level of a feature; 0 where there is none.
pub fn finalized(image: &MetadataImage, name: &str) -> i16 {
    image.features.get(name).copied().unwrap_or_default()
}

/// Whether a member works at every finalized level.
pub fn check_member(
    image: &MetadataImage,
    member: impl Display,
    stated: &BTreeMap<String, VersionRange>,
) -> Result<(), ApiError> {
    for (name, &level) in &image.features {
        let VersionRange { min, max } = range(stated, name);
        if level < min || level > max {
            let message = format!("{member} supports {name} {min} to {max}, the cluster is at {level}");
            return Err(ApiError::new(ErrorName::UnsupportedVersion, message));
        }
    }
    Ok(())
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FeatureChange {
    pub name: String,
    pub level: i16,
    pub direction: Direction,
}

/// What the caller accepts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Direction {
    Upgrade,
    /// Only where nothing is lost.
    SafeDowngrade,
    /// Also where what was written since is lost.
    UnsafeDowngrade,
}

/// A finalized level before and after a change.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UpdatedFeature {
    pub name: String,
    pub from: i16,
    pub to: i16,
}

/// Changes finalized levels, all of them or none. `voters` are the controllers that have a vote.
///
/// The check of all members is rare and costs two look-ups each, so it is not indexed.
pub fn update(
    image: &MetadataImage,
    changes: &[FeatureChange],
    voters: &BTreeSet<ControllerId>,
) -> Result<Plan<Vec<UpdatedFeature>>, ApiError> {
    if changes.is_empty() {
        return Err(ApiError::new(ErrorName::InvalidRequest, "no feature is named"));
    }
    let mut updated: Vec<UpdatedFeature> = Vec::with_capacity(changes.len());
    for change in changes {
        if updated.iter().any(|earlier| earlier.name == change.name) {
            return Err(ApiError::new(ErrorName::InvalidRequest, format!("feature {:?} is named twice", change.name)));
        }
        updated.push(check_change(image, change, voters)?);
    }
    let changed = updated.iter().filter(|feature| feature.from != feature.to);
    let records = changed.map(|feature| Record::FeatureLevel { name: feature.name.clone(), level: feature.to });
    Ok(Plan::new(records.collect(), updated))
}

fn check_change(
    image: &MetadataImage,
    change: &FeatureChange,
    voters: &BTreeSet<ControllerId>,
) -> Result<UpdatedFeature, ApiError> {
    let FeatureChange { name, level, .. } = change;
    let supported = supported();
    let Some(VersionRange { min, max }) = supported.get(name) else {
        let known: Vec<&str> = supported.keys().map(String::as_str).collect();
        return Err(refused(format!("unknown feature {name:?}; there are {}", known.join(", "))));
    };
    if level < min || level > max {
        return Err(refused(format!("invalid level {level} of {name}: this release supports {min} to {max}")));
    }
    let from = finalized(image, name);
    if *level > from {
        check_upgrade(image, change, from, voters)?;
    } else if *level < from {
        return Err(refuse_downgrade(change, from));
    }
    Ok(UpdatedFeature { name: name.clone(), from, to: *level })
}

fn check_upgrade(
    image: &MetadataImage,
    change: &FeatureChange,
    from: i16,
    voters: &BTreeSet<ControllerId>,
) -> Result<(), ApiError> {
    let FeatureChange { name, level, direction } = change;
    if *direction != Direction::Upgrade {
        return Err(refused(format!("{name} is at {from}, so level {level} is an upgrade and not a downgrade")));
    }
    let check = |member: &dyn Display, stated: &BTreeMap<String, VersionRange>| {
        let VersionRange { min, max } = range(stated, name);
        if (min..=max).contains(level) {
            return Ok(());
        }
        Err(refused(format!("{member} supports {name} {min} to {max}, not {level}")))
    };
    for voter in voters {
        let Some(registration) = image.controllers.get(voter) else {
            return Err(refused(format!("controller {voter} has not registered, so it counts at the lowest level")));
        };
        check(&format_args!("controller {voter}"), &registration.features)?;
    }
    // One that is fenced does not count: it is not unfenced again at a level that it does not support.
    let mut unfenced = image.brokers.values().filter(|broker| !broker.fenced);
    unfenced.try_for_each(|broker| check(&format_args!("broker {}", broker.broker), &broker.features))
}

/// No level of this release can be left again.
fn refuse_downgrade(change: &FeatureChange, from: i16) -> ApiError {
    let FeatureChange { name, level, direction } = change;
    refused(match direction {
        Direction::Upgrade => format!("{name} is at {from}, so level {level} is a downgrade and not an upgrade"),
        Direction::SafeDowngrade => {
            format!("{name} cannot be lowered from {from} to {level}: what was written since could not be read")
        }
        Direction::UnsafeDowngrade => format!("unsafe downgrades are not supported: {name} stays at {from}"),
    })
}

fn refused(message: String) -> ApiError {
    ApiError::new(ErrorName::InvalidUpdateVersion, message)
}
