//! Up to which `metadata.version` a watcher follows the feed.
//!
//! One that wants every record keeps an image, and what is written at a level that it does not understand would give it
//! another image: it is refused by name, at the start or where the level is finalized. One that names kinds of records
//! understands those, and gets no others.

use quorate_metadata::image::{LEVEL_LOWEST, METADATA_VERSION};
use quorate_metadata::{ApiError, ErrorName};
use quorate_proto::broker::WatchRequest;

/// The highest level that a watcher understands. None: any.
#[derive(Debug, Clone, Copy)]
pub struct LevelGate(Option<i32>);

impl LevelGate {
    pub fn new(request: &WatchRequest) -> Self {
        let understood = request.max_level.unwrap_or(LEVEL_LOWEST.into());
        Self(request.kinds.is_empty().then_some(understood))
    }

    /// Whether the watcher may follow what needs this level.
    pub fn check(self, needed: i16) -> Result<(), ApiError> {
        match self.0 {
            Some(understood) if i32::from(needed) > understood => Err(refusal(understood, needed)),
            _ => Ok(()),
        }
    }
}

fn refusal(understood: i32, needed: i16) -> ApiError {
    let message = format!(
        "the feed is at level {needed} of {METADATA_VERSION}, the watcher understands up to {understood}: \
         a newer client states a higher max_level"
    );
    ApiError::new(ErrorName::UnsupportedVersion, message)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn checked(gate: LevelGate, level: i16) -> Option<ErrorName> {
        gate.check(level).err().map(|error| error.name)
    }

    #[test]
    fn a_watcher_is_refused_above_the_level_it_states() {
        let gate = LevelGate::new(&WatchRequest { max_level: Some(2), ..WatchRequest::default() });
        assert_eq!(checked(gate, 2), None);
        assert_eq!(checked(gate, 3), Some(ErrorName::UnsupportedVersion));
    }

    #[test]
    fn a_watcher_that_states_no_level_understands_the_lowest() {
        let gate = LevelGate::new(&WatchRequest::default());
        assert_eq!(checked(gate, LEVEL_LOWEST), None);
        assert_eq!(checked(gate, LEVEL_LOWEST + 1), Some(ErrorName::UnsupportedVersion));
    }

    #[test]
    fn a_watcher_that_names_kinds_is_served_at_any_level() {
        let kinds = vec!["FeatureLevel".to_owned()];
        assert_eq!(checked(LevelGate::new(&WatchRequest { kinds, ..WatchRequest::default() }), i16::MAX), None);
    }
}
