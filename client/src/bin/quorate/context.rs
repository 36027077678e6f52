//! Which cluster is meant: a flag, the environment, a named context, or the cluster that `scripts/cluster` starts.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde::Deserialize;

use crate::failure::Failure;

/// The nodes of a local cluster.
const LOCAL: [&str; 3] = ["127.0.0.1:7001", "127.0.0.1:7002", "127.0.0.1:7003"];

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct Contexts {
    current: Option<String>,
    #[serde(default)]
    contexts: BTreeMap<String, Context>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Context {
    bootstrap: String,
}

/// The addresses to ask; an explicit choice on the command line wins over the environment.
pub fn bootstrap(flag: &[String], context: Option<&str>) -> Result<Vec<String>, Failure> {
    if !flag.is_empty() {
        return Ok(flag.to_vec());
    }
    if context.is_none()
        && let Ok(addresses) = std::env::var("QUORATE_BOOTSTRAP")
        && !addresses.is_empty()
    {
        return Ok(split(&addresses));
    }
    let text = match file() {
        Some(path) => read(&path)?,
        None => String::new(),
    };
    choose(&text, context)
}

fn choose(text: &str, context: Option<&str>) -> Result<Vec<String>, Failure> {
    let contexts: Contexts =
        toml::from_str(text).map_err(|error| Failure::usage(format!("the contexts file is malformed: {error}")))?;
    let Some(name) = context.or(contexts.current.as_deref()) else {
        return Ok(LOCAL.map(str::to_owned).to_vec());
    };
    match contexts.contexts.get(name) {
        Some(context) => Ok(split(&context.bootstrap)),
        None => {
            let known: Vec<&str> = contexts.contexts.keys().map(String::as_str).collect();
            Err(Failure::usage(format!("there is no context \"{name}\" (known: {})", known.join(", "))))
        }
    }
}

fn split(addresses: &str) -> Vec<String> {
    addresses.split(',').map(str::trim).filter(|address| !address.is_empty()).map(str::to_owned).collect()
}

fn file() -> Option<PathBuf> {
    let set = |name| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    let folder = set("XDG_CONFIG_HOME").or_else(|| set("HOME").map(|home| home.join(".config")))?;
    Some(folder.join("quorate").join("config.toml"))
}

fn read(path: &Path) -> Result<String, Failure> {
    match std::fs::read_to_string(path) {
        Ok(text) => Ok(text),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(String::new()),
        Err(error) => Err(Failure::local(format!("cannot read {}", path.display()), error)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FILE: &str =
        "current = \"home\"\n[contexts.home]\nbootstrap = \"a:1, b:2\"\n[contexts.work]\nbootstrap = \"c:3\"\n";

    #[test]
    fn the_current_context_is_taken_unless_another_is_named() {
        assert_eq!(choose(FILE, None).expect("known"), ["a:1", "b:2"]);
        assert_eq!(choose(FILE, Some("work")).expect("known"), ["c:3"]);
    }

    #[test]
    fn without_any_context_the_local_cluster_is_meant() {
        assert_eq!(choose("", None).expect("default"), LOCAL);
    }

    #[test]
    fn an_unknown_context_is_refused_with_the_known_ones() {
        let failure = choose(FILE, Some("lab")).expect_err("unknown");
        assert!(failure.to_string().contains("known: home, work"), "{failure}");
    }
}
