//! The proof of a clean stop: the broker epoch that it had and the log directories that it wrote, left behind at the end
//! and taken away at the start.
//!
//! Taken before anything is written, so that a crash after the start never finds it.

use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use quorate_log::durable::sync_directory;
use quorate_metadata::ids::{BrokerEpoch, DirectoryId};
use tracing::warn;

pub struct CleanStop {
    path: PathBuf,
}

impl CleanStop {
    pub fn at(data: &Path) -> Self {
        Self { path: data.join("clean-stop") }
    }

    /// The epoch of the last run, if that ended cleanly and had the same log directories: a disk that is new has lost
    /// what was on the old one. Asking takes the proof away.
    pub fn take(&self, directories: &[DirectoryId]) -> Option<BrokerEpoch> {
        let text = fs::read_to_string(&self.path).ok()?;
        if let Err(error) = fs::remove_file(&self.path).and_then(|()| sync_directory(above(&self.path))) {
            warn!(path = ?self.path, %error, "cannot take the proof of a clean stop away, so it counts as unclean");
            return None;
        }
        let (epoch, proven) = text.trim().split_once(' ')?;
        if proven != listed(directories) {
            warn!(path = ?self.path, "the log directories are not those of the last run, so it counts as unclean");
            return None;
        }
        epoch.parse().ok()
    }

    pub fn leave(&self, epoch: BrokerEpoch, directories: &[DirectoryId]) {
        if let Err(error) = self.write(epoch, directories) {
            warn!(path = ?self.path, %error, "cannot leave the proof of a clean stop; the next start counts as unclean");
        }
    }

    fn write(&self, epoch: BrokerEpoch, directories: &[DirectoryId]) -> io::Result<()> {
        let mut file = fs::File::create(&self.path)?;
        writeln!(file, "{epoch} {}", listed(directories))?;
        file.sync_all()?;
        sync_directory(above(&self.path))
    }
}

/// In one order, whatever the configuration's.
fn listed(directories: &[DirectoryId]) -> String {
    let mut ids: Vec<String> = directories.iter().map(ToString::to_string).collect();
    ids.sort_unstable();
    ids.join(" ")
}

fn above(file: &Path) -> &Path {
    file.parent().expect("a file has a directory")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_proof_of_a_clean_stop_counts_once() {
        let directory = tempfile::tempdir().unwrap();
        let proof = CleanStop::at(directory.path());
        let [first, second] = [1, 2].map(|id| DirectoryId::from_bytes([id; 16]));
        assert_eq!(proof.take(&[first]), None);
        proof.leave(BrokerEpoch::new(42), &[first, second]);
        assert_eq!(proof.take(&[second, first]), Some(BrokerEpoch::new(42)));
        assert_eq!(proof.take(&[second, first]), None);
    }

    #[test]
    fn with_another_disk_nothing_is_proven() {
        let directory = tempfile::tempdir().unwrap();
        let proof = CleanStop::at(directory.path());
        let [first, second] = [1, 2].map(|id| DirectoryId::from_bytes([id; 16]));
        proof.leave(BrokerEpoch::new(42), &[first]);
        assert_eq!(proof.take(&[second]), None);
    }
}
