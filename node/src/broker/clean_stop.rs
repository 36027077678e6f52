//! The proof of a clean stop: the broker epoch that it had, left behind at the end and taken away at the start.
//!
//! Taken before anything is written, so that a crash after the start never finds it.

use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use quorate_metadata::ids::BrokerEpoch;
use tracing::warn;

pub struct CleanStop {
    path: PathBuf,
}

impl CleanStop {
    pub fn at(data: &Path) -> Self {
        Self { path: data.join("clean-stop") }
    }

    /// The epoch of the last run, if that ended cleanly. Asking takes the proof away.
    pub fn take(&self) -> Option<BrokerEpoch> {
        let text = fs::read_to_string(&self.path).ok()?;
        if let Err(error) = fs::remove_file(&self.path).and_then(|()| sync_directory(&self.path)) {
            warn!(path = ?self.path, %error, "cannot take the proof of a clean stop away, so it counts as unclean");
            return None;
        }
        text.trim().parse().ok()
    }

    pub fn leave(&self, epoch: BrokerEpoch) {
        if let Err(error) = self.write(epoch) {
            warn!(path = ?self.path, %error, "cannot leave the proof of a clean stop; the next start counts as unclean");
        }
    }

    fn write(&self, epoch: BrokerEpoch) -> io::Result<()> {
        let mut file = fs::File::create(&self.path)?;
        writeln!(file, "{epoch}")?;
        file.sync_all()?;
        sync_directory(&self.path)
    }
}

fn sync_directory(file: &Path) -> io::Result<()> {
    match file.parent() {
        Some(directory) => fs::File::open(directory)?.sync_all(),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_proof_of_a_clean_stop_counts_once() {
        let directory = tempfile::tempdir().unwrap();
        let proof = CleanStop::at(directory.path());
        assert_eq!(proof.take(), None);
        proof.leave(BrokerEpoch::new(42));
        assert_eq!(proof.take(), Some(BrokerEpoch::new(42)));
        assert_eq!(proof.take(), None);
    }
}
