//! Which system a broker runs, and a topic is for.

use std::borrow::Cow;
use std::fmt;

use crate::error::{ApiError, ErrorName};

/// Which system a broker runs, and a topic is for: a topic has its replicas on brokers of its own kind.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Kind(Cow<'static, str>);

impl Kind {
    /// The replicated log of the reference broker.
    pub const LOG: Self = Self(Cow::Borrowed("log"));

    /// Characters of a name: it is in every registration, and in every topic.
    const LENGTH_MAX: usize = 32;

    /// A kind as a request states it; none is a log.
    pub fn parse(name: Option<&str>) -> Result<Self, ApiError> {
        let Some(name) = name else { return Ok(Self::LOG) };
        let is_allowed = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
        if name.is_empty() || name.len() > Self::LENGTH_MAX || !name.chars().all(is_allowed) {
            let max = Self::LENGTH_MAX;
            let message = format!("invalid kind {name:?}: expected 1 to {max} characters of a-z, 0-9 and -");
            return Err(ApiError::new(ErrorName::InvalidRequest, message));
        }
        Ok(Self::from(name))
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }

    pub fn is_log(&self) -> bool {
        *self == Self::LOG
    }

    /// As records carry it: a log is not named, as in records from before there were kinds.
    pub fn to_recorded(&self) -> Option<String> {
        (!self.is_log()).then(|| self.0.clone().into_owned())
    }
}

/// As records carry it, which hold what was checked before.
impl From<&str> for Kind {
    fn from(name: &str) -> Self {
        if name == Self::LOG.as_str() { Self::LOG } else { Self(Cow::Owned(name.to_owned())) }
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_kind_is_short_and_plain() {
        assert_eq!(Kind::parse(None), Ok(Kind::LOG));
        assert_eq!(Kind::parse(Some("log")), Ok(Kind::LOG));
        assert_eq!(Kind::parse(Some("sharded-counter-2")).map(|kind| kind.to_string()), Ok("sharded-counter-2".into()));
        for name in ["", "Counter", "a b", "zähler", &"x".repeat(33)] {
            assert_eq!(Kind::parse(Some(name)).map_err(|error| error.name), Err(ErrorName::InvalidRequest), "{name}");
        }
    }
}
