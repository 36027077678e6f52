//! Where the configuration comes from: built-in defaults, one TOML file, `QUORATE_*` variables, flags; the later wins.

use std::collections::BTreeMap;
use std::path::Path;

use toml::{Table, Value};

use super::{ConfigError, NodeConfig};

/// Keys of earlier releases, each with the reason why it was removed.
const REMOVED_KEYS: &[(&str, &str)] = &[("lease_reads", "every linearizable read is confirmed by a majority")];

pub(super) fn suggestion(key: &str, nearest: Option<&str>) -> String {
    if let Some((_, reason)) = REMOVED_KEYS.iter().find(|(removed, _)| *removed == key) {
        return format!("; it was removed: {reason}");
    }
    nearest.map(|key| format!("; did you mean {key:?}?")).unwrap_or_default()
}

/// Puts the sources together: a file if there is one, the environment, then `KEY=VALUE` settings.
pub fn load(
    file: Option<&Path>,
    environment: impl Iterator<Item = (String, String)>,
    settings: &[(String, String)],
) -> Result<NodeConfig, ConfigError> {
    let Some(path) = file else { return merge("", "", environment, settings) };
    let text = std::fs::read_to_string(path).map_err(|source| ConfigError::Read { path: path.to_owned(), source })?;
    merge(&path.display().to_string(), &text, environment, settings)
}

/// As `load`, of a file's text; `origin` is what errors call it.
pub fn merge(
    origin: &str,
    text: &str,
    environment: impl Iterator<Item = (String, String)>,
    settings: &[(String, String)],
) -> Result<NodeConfig, ConfigError> {
    let table: Table = text.parse().map_err(|error: toml::de::Error| ConfigError::Parse {
        origin: origin.to_owned(),
        message: error.message().to_owned(),
    })?;
    let mut merged = Merged::default();
    for (key, value) in table {
        merged.put(origin, &key, value)?;
    }
    for (name, text) in environment {
        let Some(key) = name.strip_prefix(PREFIX).map(str::to_ascii_lowercase) else { continue };
        if !merged.has(&key) && (is_foreign(&name) || is_service_variable(&name)) {
            continue;
        }
        merged.put_text(&name, &key, &text)?;
    }
    for (key, text) in settings {
        merged.put_text("command line", key, text)?;
    }
    merged.finish()
}

const PREFIX: &str = "QUORATE_";

/// Beginnings of variables that are the command line tool's or the tests', and that a shell may carry along.
const FOREIGN_VARIABLES: &[&str] = &["QUORATE_BOOTSTRAP", "QUORATE_CONTEXT", "QUORATE_BIN", "QUORATE_TEST"];

fn is_foreign(name: &str) -> bool {
    FOREIGN_VARIABLES.iter().any(|foreign| name.starts_with(foreign))
}

/// Whether Kubernetes sets a variable of this name in its containers, for a service called `quorate` or `quorate-…`:
/// `_SERVICE_HOST`, `_SERVICE_PORT` and `_SERVICE_PORT_<NAME>`, `_PORT`, and `_PORT_<N>_<PROTOCOL>` with what follows.
pub fn is_service_variable(name: &str) -> bool {
    let Some(rest) = name.strip_prefix("QUORATE") else { return false };
    let is_numbered = rest.match_indices("_PORT_").any(|(at, found)| {
        let (number, protocol) = rest[at + found.len()..].split_once('_').unwrap_or_default();
        number.parse::<u16>().is_ok() && ["TCP", "UDP", "SCTP"].iter().any(|known| protocol.starts_with(known))
    });
    is_numbered || rest.ends_with("_SERVICE_HOST") || rest.contains("_SERVICE_PORT") || rest.ends_with("_PORT")
}

/// The keys that are set so far.
struct Merged {
    keys: Table,
    /// Where those were set that have not their default.
    origins: BTreeMap<String, String>,
}

impl Default for Merged {
    fn default() -> Self {
        match Value::try_from(NodeConfig::default()) {
            Ok(Value::Table(keys)) => Self { keys, origins: BTreeMap::new() },
            other => unreachable!("the default configuration is a table, not {other:?}"),
        }
    }
}

impl Merged {
    fn has(&self, key: &str) -> bool {
        self.keys.contains_key(key)
    }

    fn put_text(&mut self, origin: &str, key: &str, text: &str) -> Result<(), ConfigError> {
        self.put(origin, key, typed(self.keys.get(key), text))
    }

    /// Each value is looked at by itself, so that the error names it.
    fn put(&mut self, origin: &str, key: &str, value: Value) -> Result<(), ConfigError> {
        if !self.has(key) {
            return Err(ConfigError::UnknownKey {
                origin: origin.to_owned(),
                key: key.to_owned(),
                nearest: self.nearest(key),
            });
        }
        self.keys.insert(key.to_owned(), value);
        self.origins.insert(key.to_owned(), origin.to_owned());
        self.parsed().map(drop).map_err(|message| ConfigError::Value {
            origin: origin.to_owned(),
            key: key.to_owned(),
            message,
        })
    }

    fn nearest(&self, key: &str) -> Option<String> {
        let distances = self.keys.keys().map(|known| (strsim::damerau_levenshtein(known, key), known));
        distances.min().filter(|(distance, _)| *distance <= 4).map(|(_, known)| known.clone())
    }

    fn parsed(&self) -> Result<NodeConfig, String> {
        Value::Table(self.keys.clone()).try_into().map_err(|error: toml::de::Error| error.message().to_owned())
    }

    /// What the keys come to together; an error says where its key was set.
    fn finish(self) -> Result<NodeConfig, ConfigError> {
        let config =
            self.parsed().map_err(|message| ConfigError::Parse { origin: "configuration".to_owned(), message })?;
        match config.check() {
            Ok(()) => Ok(config),
            Err(ConfigError::Invalid { key, message }) => Err(match self.origins.get(key) {
                Some(origin) => ConfigError::Value { origin: origin.clone(), key: key.to_owned(), message },
                None => ConfigError::Invalid { key, message },
            }),
            Err(other) => Err(other),
        }
    }
}

/// A text as the type that its key has, by the value before it; lists are separated by commas.
fn typed(before: Option<&Value>, text: &str) -> Value {
    let parsed = |value: Option<Value>| value.unwrap_or_else(|| Value::String(text.to_owned()));
    match before {
        Some(Value::Array(_)) => Value::Array(
            text.split(',').filter(|item| !item.is_empty()).map(|item| Value::String(item.trim().to_owned())).collect(),
        ),
        Some(Value::Integer(_)) => parsed(text.parse().ok().map(Value::Integer)),
        Some(Value::Boolean(_)) => parsed(text.parse().ok().map(Value::Boolean)),
        _ => Value::String(text.to_owned()),
    }
}
