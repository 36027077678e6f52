//! Where a node writes its log: to a file, or to something that takes nothing.

use std::fs::File;
use std::io;
use std::path::Path;
use std::process::Stdio;

use serde::{Deserialize, Serialize};

const FULL_DEVICE: &str = "/dev/full";

/// What the stderr of a node's process is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Stderr {
    /// A file, to which lines are appended.
    #[default]
    File,
    /// A pipe that nobody reads: a write returns EPIPE.
    ClosedPipe,
    /// A device that is full: a write returns ENOSPC.
    FullDevice,
}

impl Stderr {
    /// For a process whose log would be this file.
    pub fn open(self, log: &Path) -> io::Result<Stdio> {
        match self {
            Self::File => Ok(File::options().create(true).append(true).open(log)?.into()),
            Self::ClosedPipe => {
                let (reader, writer) = io::pipe()?;
                drop(reader);
                Ok(writer.into())
            }
            Self::FullDevice => Ok(File::options().write(true).open(FULL_DEVICE)?.into()),
        }
    }

    /// Why a process cannot have it here, if it cannot.
    pub fn cannot(self) -> Option<String> {
        let is_missing = self == Self::FullDevice && !Path::new(FULL_DEVICE).exists();
        is_missing.then(|| format!("this machine has no {FULL_DEVICE}"))
    }
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;

    #[test]
    fn only_a_file_takes_what_a_process_writes() {
        let folder = tempfile::tempdir().unwrap();
        let log = folder.path().join("log");
        let writes = |stderr: Stderr| {
            // An external program, so that its exit status says whether the write failed.
            let mut shell = Command::new("sh");
            shell.args(["-c", "echo line | cat >&2"]).stderr(stderr.open(&log).unwrap());
            shell.status().unwrap().success()
        };
        assert!(writes(Stderr::File) && writes(Stderr::File));
        assert_eq!(std::fs::read_to_string(&log).unwrap(), "line\nline\n");
        assert!(!writes(Stderr::ClosedPipe));
        assert!(Stderr::FullDevice.cannot().is_some() || !writes(Stderr::FullDevice));
        assert_eq!(std::fs::read_to_string(&log).unwrap(), "line\nline\n");
    }
}
