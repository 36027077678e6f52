//! What a key takes, and what is wrong with a value that it does not take.

use std::fmt;

/// One known key.
#[derive(Debug)]
pub struct ConfigKey {
    pub name: &'static str,
    pub scope: Scope,
    pub reader: Reader,
    pub takes: ConfigType,
    pub default: &'static str,
    /// One line for a person.
    pub doc: &'static str,
}

/// What reads the key, and so which kinds of topics and brokers have it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reader {
    /// The controllers, for topics of every kind. Brokers cannot have different values.
    Controllers,
    /// Each broker of kind log, for topics of kind log.
    Log,
}

/// What may have the key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scope {
    /// Topics; and brokers, under this name, as the default for their topics.
    TopicAndBroker(&'static str),
    /// Brokers only.
    Broker,
}

#[derive(Debug)]
pub enum ConfigType {
    Bool,
    /// A 32 bit number, bounds included.
    Int(i32, i32),
    /// A 64 bit number, bounds included.
    Long(i64, i64),
    /// A fraction, bounds included.
    Double(f64, f64),
    /// One of these.
    Enum(&'static [&'static str]),
    /// A comma-separated list of these.
    ListOf(&'static [&'static str]),
}

impl ConfigKey {
    /// The name under which brokers have the key.
    pub fn broker_name(&self) -> &'static str {
        match self.scope {
            Scope::TopicAndBroker(name) => name,
            Scope::Broker => self.name,
        }
    }

    /// The name of what it takes, as Kafka calls it.
    pub fn type_name(&self) -> &'static str {
        match self.takes {
            ConfigType::Bool => "boolean",
            ConfigType::Int(..) => "int",
            ConfigType::Long(..) => "long",
            ConfigType::Double(..) => "double",
            ConfigType::Enum(_) => "string",
            ConfigType::ListOf(_) => "list",
        }
    }

    pub fn is_list(&self) -> bool {
        matches!(self.takes, ConfigType::ListOf(_))
    }

    /// What is wrong with `value`, if anything: ends the sentence "retention.ms = x is invalid: ".
    pub fn check(&self, value: &str) -> Result<(), String> {
        let valid = match &self.takes {
            ConfigType::Bool => value == "true" || value == "false",
            ConfigType::Int(min, max) => value.parse().is_ok_and(|value: i32| (*min..=*max).contains(&value)),
            ConfigType::Long(min, max) => value.parse().is_ok_and(|value: i64| (*min..=*max).contains(&value)),
            ConfigType::Double(min, max) => value.parse().is_ok_and(|value: f64| (*min..=*max).contains(&value)),
            ConfigType::Enum(allowed) => allowed.contains(&value),
            ConfigType::ListOf(allowed) => {
                items(value).next().is_some() && items(value).all(|item| allowed.contains(&item))
            }
        };
        if valid { Ok(()) } else { Err(format!("must be {}", self.takes)) }
    }
}

impl fmt::Display for ConfigType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Bool => f.write_str("true or false"),
            Self::Int(min, i32::MAX) => write!(f, "a whole number, at least {min}"),
            Self::Int(min, max) => write!(f, "a whole number from {min} to {max}"),
            Self::Long(min, i64::MAX) => write!(f, "a whole number, at least {min}"),
            Self::Long(min, max) => write!(f, "a whole number from {min} to {max}"),
            Self::Double(min, max) => write!(f, "a number from {min} to {max}"),
            Self::Enum(allowed) => write!(f, "one of {}", allowed.join(", ")),
            Self::ListOf(allowed) => write!(f, "a list of {}", allowed.join(", ")),
        }
    }
}

/// The items of a list value; an empty value has none.
pub fn items(value: &str) -> impl Iterator<Item = &str> {
    value.split(',').map(str::trim).filter(|item| !item.is_empty())
}

/// The known name that looks most like `name`, if any looks like it at all.
pub fn nearest<'a>(name: &str, known: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    // Below 0.8 of Jaro-Winkler's measure, suggestions read like guesses.
    const LIKENESS_MIN: f64 = 0.8;
    known
        .map(|candidate| (strsim::jaro_winkler(name, candidate), candidate))
        .filter(|(likeness, _)| *likeness >= LIKENESS_MIN)
        .max_by(|(a, _), (b, _)| a.total_cmp(b))
        .map(|(_, candidate)| candidate)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{TOPIC_KEYS, topic_key};

    fn check(key: &str, value: &str) -> Result<(), String> {
        topic_key(key).unwrap().check(value)
    }

    #[test]
    fn a_value_out_of_bounds_is_told_the_bound() {
        assert_eq!(check("min.insync.replicas", "0"), Err("must be a whole number, at least 1".to_owned()));
        assert_eq!(check("min.cleanable.dirty.ratio", "1.5"), Err("must be a number from 0 to 1".to_owned()));
        assert_eq!(check("retention.ms", "soon"), Err("must be a whole number, at least -1".to_owned()));
        assert_eq!(check("cleanup.policy", "delete,forget"), Err("must be a list of compact, delete".to_owned()));
        assert_eq!(check("cleanup.policy", " ,"), Err("must be a list of compact, delete".to_owned()));
        assert_eq!(check("unclean.leader.election.enable", "yes"), Err("must be true or false".to_owned()));
        assert!(check("min.cleanable.dirty.ratio", "NaN").is_err());
    }

    #[test]
    fn a_misspelt_key_is_recognised() {
        let names = || TOPIC_KEYS.iter().map(|key| key.name);
        assert_eq!(nearest("retentoin.ms", names()), Some("retention.ms"));
        assert_eq!(nearest("zzz", names()), None);
    }
}
