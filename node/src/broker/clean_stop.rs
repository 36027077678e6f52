//! The proof of a clean stop: the broker epoch that it had and the log directories that it wrote, left behind at the end
//! and taken away at the start.
//!
//! Taken before anything is written, so that a crash after the start never finds it.

use std::fs;
use std::io::{self, Write};
use std::path::Path;

use quorate_log::durable::sync_directory;
use quorate_metadata::ids::{BrokerEpoch, DirectoryId};
use tracing::warn;

use crate::machine::Note;

pub struct CleanStop {
    note: Note,
}

impl CleanStop {
    pub fn at(note: Note) -> Self {
        Self { note }
    }

    /// The epoch of the last run, if that ended cleanly and had the same log directories: a disk that is new has lost
    /// what was on the old one. Asking takes the proof away.
    pub fn take(&self, directories: &[DirectoryId]) -> Option<BrokerEpoch> {
        let text = match tear_off(&self.note) {
            Ok(text) => text?,
            Err(error) => {
                warn!(note = ?self.note, %error, "cannot take the proof of a clean stop away, so it counts as unclean");
                return None;
            }
        };
        let (epoch, proven) = text.trim().split_once(' ')?;
        if proven != listed(directories) {
            warn!(note = ?self.note, "the log directories are not those of the last run, so it counts as unclean");
            return None;
        }
        epoch.parse().ok()
    }

    pub fn leave(&self, epoch: BrokerEpoch, directories: &[DirectoryId]) {
        if let Err(error) = write(&self.note, &format!("{epoch} {}\n", listed(directories))) {
            warn!(note = ?self.note, %error, "cannot leave the proof of a clean stop; the next start counts as unclean");
        }
    }
}

/// What the note says, and it is gone for good.
fn tear_off(note: &Note) -> io::Result<Option<String>> {
    match note {
        Note::Memory(text) => Ok(text.lock().expect("no holder panics").take()),
        Note::File(path) => {
            // What cannot be read proves nothing.
            let Ok(text) = fs::read_to_string(path) else { return Ok(None) };
            fs::remove_file(path)?;
            sync_directory(above(path))?;
            Ok(Some(text))
        }
    }
}

fn write(note: &Note, text: &str) -> io::Result<()> {
    match note {
        Note::Memory(kept) => *kept.lock().expect("no holder panics") = Some(text.to_owned()),
        Note::File(path) => {
            let mut file = fs::File::create(path)?;
            file.write_all(text.as_bytes())?;
            file.sync_all()?;
            sync_directory(above(path))?;
        }
    }
    Ok(())
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
        let proof = CleanStop::at(Note::File(directory.path().join("clean-stop")));
        let [first, second] = [1, 2].map(|id| DirectoryId::from_bytes([id; 16]));
        assert_eq!(proof.take(&[first]), None);
        proof.leave(BrokerEpoch::new(42), &[first, second]);
        assert_eq!(proof.take(&[second, first]), Some(BrokerEpoch::new(42)));
        assert_eq!(proof.take(&[second, first]), None);
    }

    #[test]
    fn with_another_disk_nothing_is_proven() {
        let directory = tempfile::tempdir().unwrap();
        let proof = CleanStop::at(Note::File(directory.path().join("clean-stop")));
        let [first, second] = [1, 2].map(|id| DirectoryId::from_bytes([id; 16]));
        proof.leave(BrokerEpoch::new(42), &[first]);
        assert_eq!(proof.take(&[second]), None);
    }
}
