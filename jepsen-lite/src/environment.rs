//! Where a run took place: `env.json`. Its part about the cluster is what a replay goes by.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::Path;
use std::process::Command;
use std::thread::available_parallelism;

use anyhow::Context;
use serde::{Deserialize, Serialize};

use crate::run::Setup;
use crate::schedule::Schedule;

const FILE: &str = "env.json";

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Environment {
    /// Of whatever could tell.
    pub versions: BTreeMap<String, String>,
    pub kernel: String,
    pub cores: usize,
    pub nodes: i32,
    pub seed: u64,
    /// Of the processes, where it has an effect on them.
    pub variables: BTreeMap<String, String>,
    #[serde(flatten)]
    pub setup: Setup,
}

/// They change what the binaries are or do.
const VARIABLES: [&str; 3] = ["MUTANT", "FAILPOINTS", "RUST_LOG"];

impl Environment {
    pub fn of(schedule: &Schedule, setup: &Setup) -> Self {
        let uname = first_line(Command::new("uname").args(["-s", "-r", "-m"]));
        let variable = |name: &str| std::env::var(name).ok().map(|value| (name.to_owned(), value));
        Self {
            versions: [("jepsen-lite".to_owned(), env!("CARGO_PKG_VERSION").to_owned())].into(),
            kernel: uname.unwrap_or_else(|| std::env::consts::OS.to_owned()),
            cores: available_parallelism().map_or(0, usize::from),
            nodes: schedule.nodes,
            seed: schedule.seed,
            variables: VARIABLES.into_iter().filter_map(variable).collect(),
            setup: setup.clone(),
        }
    }

    /// With what these programs say about themselves.
    pub fn with_versions(mut self, programs: &[(&str, &Path)]) -> Self {
        for (name, path) in programs {
            let version = first_line(Command::new(path).arg("--version")).unwrap_or_else(|| "unknown".to_owned());
            self.versions.insert((*name).to_owned(), version);
        }
        self
    }

    pub fn write(&self, folder: &Path) -> anyhow::Result<()> {
        let file = folder.join(FILE);
        fs::write(&file, serde_json::to_string_pretty(self)?).with_context(|| file.display().to_string())
    }

    /// None where nobody has written one.
    pub fn read(folder: &Path) -> anyhow::Result<Option<Self>> {
        let file = folder.join(FILE);
        match fs::read_to_string(&file) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            text => Ok(Some(serde_json::from_str(&text?).with_context(|| file.display().to_string())?)),
        }
    }
}

fn first_line(command: &mut Command) -> Option<String> {
    let output = command.output().ok()?;
    Some(String::from_utf8_lossy(&output.stdout).lines().next()?.trim().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::nemesis::Nemesis;
    use crate::workload::WorkloadName;

    #[test]
    fn what_a_run_was_made_of_is_read_as_it_was_written() {
        let folder = tempfile::tempdir().unwrap();
        assert_eq!(Environment::read(folder.path()).unwrap(), None);
        let settings = vec!["log_flush=always".to_owned()];
        let setup = Setup { workloads: vec![WorkloadName::Log], settings, ..Setup::default() };
        let schedule = Schedule::draw(3, 7, &Nemesis::USUAL, 10_000);
        let environment = Environment::of(&schedule, &setup).with_versions(&[("shell", Path::new("/bin/bash"))]);
        assert!(environment.versions["shell"].contains("bash"), "{environment:?}");
        environment.write(folder.path()).unwrap();
        assert_eq!(Environment::read(folder.path()).unwrap(), Some(environment));
    }
}
