//! What the last run of this broker left behind, and whether its log directories still have all that it acknowledged.
//!
//! They have it where all of it was on stable storage: after a clean stop, or where each commit is synced. They have it as
//! well where the process ended without warning and the machine was not started again: what was written is with the
//! operating system. A broker that proves this keeps its places in the ELR (KIP-966 asks for a clean stop, since Kafka
//! cannot tell a crash of the process from a loss of power).
//!
//! Each directory knows the run that had it open last, so an older copy of one, or a directory that another run wrote,
//! proves nothing. A directory that failed in a run proves nothing afterwards: what the disk has may not be what was
//! written.

use std::collections::BTreeSet;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard};

use quorate_log::Flush;
use quorate_metadata::ids::{BrokerEpoch, DirectoryId, IncarnationId};
use serde::{Deserialize, Serialize};
use tracing::warn;

use crate::note::Note;

/// Clones are the same record.
#[derive(Clone)]
pub struct RunRecord {
    note: Note,
    /// Where releases before this record left the proof of a clean stop.
    earlier: Option<Note>,
    /// Another text after each start of the machine.
    boot_id: Note,
    /// Held while the note is read or written. Whether a directory has failed in this process.
    has_failed: Arc<Mutex<bool>>,
}

/// A broker from its registration to its end.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Run {
    pub epoch: BrokerEpoch,
    pub incarnation: IncarnationId,
    pub directories: BTreeSet<DirectoryId>,
}

/// An open log directory, and the run that had it open last.
#[derive(Debug, Clone, Copy)]
pub struct Found {
    pub directory: DirectoryId,
    pub last_run: Option<IncarnationId>,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Stored {
    epoch: i64,
    run: String,
    directories: BTreeSet<String>,
    /// All is there for as long as the machine is not started again. None: on stable storage.
    boot_id: Option<String>,
}

impl RunRecord {
    pub fn new(note: Note, earlier: Option<Note>, boot_id: Note) -> Self {
        Self { note, earlier, boot_id, has_failed: Arc::default() }
    }

    /// The epoch of the last run, if these directories have all that it acknowledged. They may be marked by `current` already,
    /// which has written nothing else to them.
    pub fn proven(&self, found: &[Found], current: IncarnationId) -> Option<BrokerEpoch> {
        let proven = self.prove(found, current);
        if let Err(reason) = &proven {
            warn!(note = ?self.note, reason, "the last run counts as unclean");
        }
        proven.unwrap_or_default()
    }

    /// None: there was no run before.
    fn prove(&self, found: &[Found], current: IncarnationId) -> Result<Option<BrokerEpoch>, String> {
        let has_failed = self.lock();
        if *has_failed {
            return Err("a log directory has failed in it".to_owned());
        }
        match self.note.read().map_err(|error| format!("its record cannot be read: {error}"))? {
            Some(text) => self.prove_recorded(&text, found, current).map(Some),
            None if found.iter().all(|found| found.last_run.is_none()) => self.prove_earlier(found),
            None => Err("it left no record".to_owned()),
        }
    }

    fn prove_recorded(&self, text: &str, found: &[Found], current: IncarnationId) -> Result<BrokerEpoch, String> {
        let stored: Stored = toml::from_str(text).map_err(|error| format!("its record is damaged: {error}"))?;
        check_directories(&stored.directories, found)?;
        let is_of_the_run = |run: IncarnationId| run == current || run.to_string() == stored.run;
        if let Some(other) = found.iter().find(|found| !found.last_run.is_some_and(is_of_the_run)) {
            return Err(format!("log directory {} is not the one that it had open, but a copy", other.directory));
        }
        match stored.boot_id {
            Some(boot_id) if boot_id != self.read_boot_id()? => {
                Err("the machine was started again, and the run had not stopped before".to_owned())
            }
            Some(_) | None => Ok(BrokerEpoch::new(stored.epoch)),
        }
    }

    /// By what a release left that marked no directories: the epoch and the directories of a run that stopped.
    fn prove_earlier(&self, found: &[Found]) -> Result<Option<BrokerEpoch>, String> {
        let read = self.earlier.as_ref().map_or(Ok(None), Note::read);
        let Some(text) = read.map_err(|error| format!("its proof cannot be read: {error}"))? else { return Ok(None) };
        let mut words = text.split_whitespace().map(str::to_owned);
        let epoch = words.next().and_then(|word| word.parse().ok()).ok_or("its proof is damaged")?;
        check_directories(&words.collect(), found)?;
        Ok(Some(epoch))
    }

    /// The run is registered: from now on it counts, also if the process ends without warning.
    pub fn begin(&self, run: &Run, flush: Flush) {
        let boot_id = match flush {
            Flush::Always => None,
            Flush::Os => match self.read_boot_id() {
                Ok(boot_id) => Some(boot_id),
                Err(reason) => {
                    warn!(reason, "if this process ends without warning, that counts as unclean");
                    return;
                }
            },
        };
        self.write(run, boot_id);
    }

    /// The run has ended, and all that it wrote is on stable storage.
    pub fn end(&self, run: &Run) {
        self.write(run, None);
    }

    fn write(&self, run: &Run, boot_id: Option<String>) {
        let has_failed = self.lock();
        if *has_failed {
            return;
        }
        let stored = Stored {
            epoch: run.epoch.get(),
            run: run.incarnation.to_string(),
            directories: texts(run.directories.iter().copied()),
            boot_id,
        };
        let text = toml::to_string(&stored).expect("texts and numbers can be written");
        if let Err(error) = self.note.write(&text) {
            warn!(note = ?self.note, %error, "cannot write the record of this run, so it counts as unclean");
        }
    }

    /// A directory has failed: what was written to it may not be there, whatever ends this process.
    pub fn fail(&self) {
        let mut has_failed = self.lock();
        *has_failed = true;
        if let Err(error) = self.note.remove() {
            warn!(note = ?self.note, %error, "cannot remove the record of this run, which a log directory has failed in");
        }
    }

    fn read_boot_id(&self) -> Result<String, String> {
        let read = self.boot_id.read();
        let read = read.and_then(|text| text.ok_or_else(|| io::ErrorKind::NotFound.into()));
        let text = read.map_err(|error| format!("the boot id cannot be read from {:?}: {error}", self.boot_id))?;
        Ok(text.trim().to_owned())
    }

    fn lock(&self) -> MutexGuard<'_, bool> {
        self.has_failed.lock().expect("no thread panics while it holds the record")
    }
}

fn check_directories(recorded: &BTreeSet<String>, found: &[Found]) -> Result<(), String> {
    if *recorded == texts(found.iter().map(|found| found.directory)) {
        return Ok(());
    }
    Err("the log directories are not those that it had".to_owned())
}

fn texts(directories: impl Iterator<Item = DirectoryId>) -> BTreeSet<String> {
    directories.map(|directory| directory.to_string()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const FIRST: DirectoryId = DirectoryId::from_bytes([1; 16]);
    const SECOND: DirectoryId = DirectoryId::from_bytes([2; 16]);
    const RUN: IncarnationId = IncarnationId::from_bytes([3; 16]);
    const NEXT: IncarnationId = IncarnationId::from_bytes([4; 16]);
    const EPOCH: BrokerEpoch = BrokerEpoch::new(42);

    struct Machine {
        folder: tempfile::TempDir,
    }

    impl Machine {
        fn booted() -> Self {
            let machine = Self { folder: tempfile::tempdir().unwrap() };
            machine.boot("first");
            machine
        }

        fn boot(&self, id: &str) {
            self.file("boot-id").write(id).unwrap();
        }

        fn file(&self, name: &str) -> Note {
            Note::File(self.folder.path().join(name))
        }

        /// As a new process has it.
        fn record(&self) -> RunRecord {
            RunRecord::new(self.file("last-run"), Some(self.file("clean-stop")), self.file("boot-id"))
        }
    }

    fn run() -> Run {
        Run { epoch: EPOCH, incarnation: RUN, directories: [FIRST, SECOND].into() }
    }

    fn marked(last_run: Option<IncarnationId>) -> Vec<Found> {
        [SECOND, FIRST].map(|directory| Found { directory, last_run }).to_vec()
    }

    #[test]
    fn a_clean_stop_counts_after_another_boot() {
        let machine = Machine::booted();
        machine.record().begin(&run(), Flush::Os);
        machine.record().end(&run());
        machine.boot("second");
        assert_eq!(machine.record().proven(&marked(Some(RUN)), NEXT), Some(EPOCH));
    }

    #[test]
    fn a_crash_of_the_process_counts_until_the_machine_is_started_again() {
        let machine = Machine::booted();
        machine.record().begin(&run(), Flush::Os);
        assert_eq!(machine.record().proven(&marked(Some(RUN)), NEXT), Some(EPOCH));
        machine.boot("second");
        assert_eq!(machine.record().proven(&marked(Some(RUN)), NEXT), None);
    }

    #[test]
    fn a_crash_counts_where_each_commit_is_synced() {
        let machine = Machine::booted();
        machine.record().begin(&run(), Flush::Always);
        machine.boot("second");
        assert_eq!(machine.record().proven(&marked(Some(RUN)), NEXT), Some(EPOCH));
    }

    #[test]
    fn without_a_boot_id_a_crash_does_not_count() {
        let machine = Machine::booted();
        machine.file("boot-id").remove().unwrap();
        machine.record().begin(&run(), Flush::Os);
        assert_eq!(machine.record().proven(&marked(Some(RUN)), NEXT), None);
    }

    #[test]
    fn another_disk_or_an_older_copy_of_one_proves_nothing() {
        let machine = Machine::booted();
        machine.record().end(&run());
        let mut found = marked(Some(RUN));
        assert_eq!(machine.record().proven(&found[..1], NEXT), None);
        for last_run in [None, Some(IncarnationId::from_bytes([9; 16]))] {
            found[1].last_run = last_run;
            assert_eq!(machine.record().proven(&found, NEXT), None);
        }
        // Marked by an attempt to start that went no further.
        found[1].last_run = Some(NEXT);
        assert_eq!(machine.record().proven(&found, NEXT), Some(EPOCH));
    }

    #[test]
    fn a_directory_that_failed_proves_nothing() {
        let machine = Machine::booted();
        let record = machine.record();
        record.begin(&run(), Flush::Os);
        record.fail();
        record.begin(&run(), Flush::Os);
        record.end(&run());
        assert_eq!(record.proven(&marked(Some(RUN)), NEXT), None);
        assert_eq!(machine.record().proven(&marked(Some(RUN)), NEXT), None);
    }

    #[test]
    fn a_clean_stop_of_an_earlier_release_counts_once() {
        let machine = Machine::booted();
        assert_eq!(machine.record().proven(&marked(None), NEXT), None);
        machine.file("clean-stop").write(&format!("{EPOCH} {FIRST} {SECOND}\n")).unwrap();
        assert_eq!(machine.record().proven(&marked(None), NEXT), Some(EPOCH));
        assert_eq!(machine.record().proven(&marked(Some(NEXT)), NEXT), None);
    }
}
