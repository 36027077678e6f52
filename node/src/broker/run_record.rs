//! What the last run of this broker left behind, and whether its log directories still have all that it acknowledged.
//!
//! They have it where all of it was on stable storage: after a clean stop, or where each commit is synced. They have it as
//! well where the process ended without warning and the machine was not started again: what was written is with the
//! operating system. A broker that proves this keeps its places in the ELR (KIP-966 asks for a clean stop, since Kafka
//! cannot tell a crash of the process from a loss of power).
//!
//! Each directory is marked with the run that opened it last, so an older copy of one, made in an earlier run, proves
//! nothing. A directory that failed in a run proves nothing afterwards: what the disk has may not be what was written.
//! A run that ends before it is registered has written nothing but its marks, and leaves the record as valid as it was.

use std::collections::BTreeSet;
use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
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
    /// A directory has failed in this process.
    has_failed: Arc<AtomicBool>,
    /// Held while the note is written: the run that has ended.
    ended: Arc<Mutex<Option<IncarnationId>>>,
}

/// A broker from its registration to its end.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Run {
    pub epoch: BrokerEpoch,
    pub incarnation: IncarnationId,
    pub directories: BTreeSet<DirectoryId>,
}

/// An open log directory.
#[derive(Debug, Clone, Copy)]
pub struct OpenDirectory {
    pub id: DirectoryId,
    /// The run that opened it last.
    pub mark: Option<IncarnationId>,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Stored {
    epoch: i64,
    directories: BTreeSet<String>,
    /// With which the directories may be marked.
    marks: BTreeSet<String>,
    survives: Survives,
}

/// What may have happened since, if all that was acknowledged is to be there.
#[derive(PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum Survives {
    LossOfPower,
    /// The end of the process, in this boot.
    Crash(String),
}

impl RunRecord {
    pub fn new(note: Note, earlier: Option<Note>, boot_id: Note) -> Self {
        Self { note, earlier, boot_id, has_failed: Arc::default(), ended: Arc::default() }
    }

    /// The epoch of the last run, if these directories have all that it acknowledged. It proves the same after they were marked
    /// with `next`.
    pub fn proven(&self, directories: &[OpenDirectory], next: IncarnationId) -> Option<BrokerEpoch> {
        let proven = self.prove(directories, next);
        if let Err(reason) = &proven {
            warn!(note = ?self.note, reason, "the last run counts as unclean");
        }
        proven.unwrap_or_default()
    }

    /// None: there was no run before.
    fn prove(&self, directories: &[OpenDirectory], next: IncarnationId) -> Result<Option<BrokerEpoch>, String> {
        let _writing = self.lock();
        if self.has_failed.load(Ordering::Acquire) {
            return Err("a log directory has failed in it".to_owned());
        }
        // A release that is earlier has run since, if it left something: it does not write the record.
        if let Some(epoch) = self.prove_earlier(directories)? {
            return Ok(Some(epoch));
        }
        match self.note.read().map_err(|error| format!("its record cannot be read: {error}"))? {
            Some(text) => self.prove_recorded(&text, directories, next).map(Some),
            None if directories.iter().all(|directory| directory.mark.is_none()) => Ok(None),
            None => Err("it left no record".to_owned()),
        }
    }

    fn prove_recorded(
        &self,
        text: &str,
        directories: &[OpenDirectory],
        next: IncarnationId,
    ) -> Result<BrokerEpoch, String> {
        let mut stored: Stored = toml::from_str(text).map_err(|error| format!("its record is damaged: {error}"))?;
        check_directories(&stored.directories, directories)?;
        let is_known = |mark: IncarnationId| stored.marks.contains(&mark.to_string());
        if let Some(other) = directories.iter().find(|directory| !directory.mark.is_some_and(is_known)) {
            return Err(format!("log directory {} is not the one that it had open, but a copy", other.id));
        }
        if let Survives::Crash(boot_id) = &stored.survives
            && *boot_id != self.read_boot_id()?
        {
            return Err("the machine was started again, and the run had not stopped before".to_owned());
        }
        let marks = directories.iter().filter_map(|directory| directory.mark).chain([next]);
        stored.marks = marks.map(|mark| mark.to_string()).collect();
        if let Err(error) = self.note.write(&stored.to_text()) {
            warn!(note = ?self.note, %error, "cannot write the record; it counts no more if this run ends before it is registered");
        }
        Ok(BrokerEpoch::new(stored.epoch))
    }

    /// By what a release left that marked no directories: the epoch and the directories of a run that stopped.
    fn prove_earlier(&self, directories: &[OpenDirectory]) -> Result<Option<BrokerEpoch>, String> {
        let read = self.earlier.as_ref().map_or(Ok(None), Note::read);
        let Some(text) = read.map_err(|error| format!("its proof cannot be read: {error}"))? else { return Ok(None) };
        let mut words = text.split_whitespace().map(str::to_owned);
        let epoch = words.next().and_then(|word| word.parse().ok()).ok_or("its proof is damaged")?;
        check_directories(&words.collect(), directories)?;
        Ok(Some(epoch))
    }

    /// The run is registered: from now on it counts, also if the process ends without warning.
    pub fn begin(&self, run: &Run, flush: Flush) {
        let survives = match flush {
            Flush::Always => Survives::LossOfPower,
            Flush::Os => match self.read_boot_id() {
                Ok(boot_id) => Survives::Crash(boot_id),
                Err(reason) => {
                    warn!(reason, "if this process ends without warning, that counts as unclean");
                    return;
                }
            },
        };
        let ended = self.lock();
        if *ended != Some(run.incarnation) {
            self.write(run, survives);
        }
    }

    /// The run has ended, and all that it wrote is on stable storage.
    pub fn end(&self, run: &Run) {
        let mut ended = self.lock();
        *ended = Some(run.incarnation);
        self.write(run, Survives::LossOfPower);
    }

    fn write(&self, run: &Run, survives: Survives) {
        if self.has_failed.load(Ordering::Acquire) {
            return;
        }
        let stored = Stored {
            epoch: run.epoch.get(),
            directories: texts(run.directories.iter().copied()),
            marks: [run.incarnation.to_string()].into(),
            survives,
        };
        let earlier = self.earlier.as_ref().map_or(Ok(()), Note::remove);
        if let Err(error) = earlier.and_then(|()| self.note.write(&stored.to_text())) {
            warn!(note = ?self.note, %error, "cannot write the record of this run, so it counts as unclean");
        }
    }

    /// A directory has failed: what was written to it may not be there, whatever ends this process.
    pub fn fail(&self) {
        self.has_failed.store(true, Ordering::Release);
        let _writing = self.lock();
        if let Err(error) = self.note.remove() {
            warn!(note = ?self.note, %error, "cannot remove the record of this run, in which a log directory has failed");
        }
    }

    fn read_boot_id(&self) -> Result<String, String> {
        let read = self.boot_id.read().and_then(|text| text.ok_or_else(|| io::ErrorKind::NotFound.into()));
        let text = read.map_err(|error| format!("the boot id cannot be read from {:?}: {error}", self.boot_id))?;
        match text.trim() {
            "" => Err(format!("the boot id in {:?} is empty", self.boot_id)),
            boot_id => Ok(boot_id.to_owned()),
        }
    }

    fn lock(&self) -> MutexGuard<'_, Option<IncarnationId>> {
        self.ended.lock().expect("no thread panics while it holds the record")
    }
}

impl Stored {
    fn to_text(&self) -> String {
        toml::to_string(self).expect("texts and numbers can be written")
    }
}

fn check_directories(recorded: &BTreeSet<String>, open: &[OpenDirectory]) -> Result<(), String> {
    if *recorded == texts(open.iter().map(|directory| directory.id)) {
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

    fn marked(mark: Option<IncarnationId>) -> Vec<OpenDirectory> {
        [SECOND, FIRST].map(|id| OpenDirectory { id, mark }).to_vec()
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
        machine.boot(" \n");
        machine.record().begin(&run(), Flush::Os);
        assert_eq!(machine.record().proven(&marked(Some(RUN)), NEXT), None);
        machine.file("boot-id").remove().unwrap();
        machine.record().begin(&run(), Flush::Os);
        assert_eq!(machine.record().proven(&marked(Some(RUN)), NEXT), None);
    }

    #[test]
    fn starts_that_end_before_they_are_registered_take_nothing_away() {
        let machine = Machine::booted();
        machine.record().begin(&run(), Flush::Os);
        let [first, second] = [5, 6].map(|id| IncarnationId::from_bytes([id; 16]));
        assert_eq!(machine.record().proven(&marked(Some(RUN)), first), Some(EPOCH));
        // It had marked one of them when it ended.
        let mut half = marked(Some(RUN));
        half[0].mark = Some(first);
        assert_eq!(machine.record().proven(&half, second), Some(EPOCH));
        assert_eq!(machine.record().proven(&marked(Some(second)), NEXT), Some(EPOCH));
        machine.boot("second");
        assert_eq!(machine.record().proven(&marked(Some(NEXT)), RUN), None);
    }

    #[test]
    fn a_begin_that_comes_late_does_not_undo_the_end() {
        let machine = Machine::booted();
        let record = machine.record();
        record.end(&run());
        record.begin(&run(), Flush::Os);
        machine.boot("second");
        assert_eq!(machine.record().proven(&marked(Some(RUN)), NEXT), Some(EPOCH));
    }

    #[test]
    fn another_disk_or_an_older_copy_of_one_proves_nothing() {
        let machine = Machine::booted();
        machine.record().end(&run());
        let mut directories = marked(Some(RUN));
        assert_eq!(machine.record().proven(&directories[..1], NEXT), None);
        for mark in [None, Some(IncarnationId::from_bytes([9; 16]))] {
            directories[1].mark = mark;
            assert_eq!(machine.record().proven(&directories, NEXT), None);
        }
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
    fn a_clean_stop_of_an_earlier_release_counts_until_the_next_registration() {
        let machine = Machine::booted();
        assert_eq!(machine.record().proven(&marked(None), NEXT), None);
        let stop = |epoch: i64| machine.file("clean-stop").write(&format!("{epoch} {FIRST} {SECOND}\n")).unwrap();
        stop(41);
        assert_eq!(machine.record().proven(&marked(None), NEXT), Some(BrokerEpoch::new(41)));
        machine.record().begin(&run(), Flush::Os);
        assert_eq!(machine.record().proven(&marked(Some(RUN)), NEXT), Some(EPOCH));
        // It has run again.
        stop(43);
        assert_eq!(machine.record().proven(&marked(Some(RUN)), NEXT), Some(BrokerEpoch::new(43)));
    }
}
