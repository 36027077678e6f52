//! What the disk of a voter must hold at least.
//!
//! `quorate.meta` keeps the floor, the raft log keeps its generation. A raft log or a folder of snapshots that holds less was
//! lost or replaced by an older copy: this voter may have voted and acknowledged entries that it no longer knows of, so it
//! is refused. Two losses cannot be seen here: an older copy of the whole disk, which a leader that knows more refuses
//! (see `network::check`), and an older copy of the raft log that was taken since the last start, snapshot or trim.

use std::path::Path;

use quorate_metadata::mutant::Mutant;

use super::RaftError;
use super::store::Loaded;

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Floor {
    /// How many times this voter has started.
    pub generation: u64,
    /// It has taken part in this term.
    pub term: u64,
    /// Entries below this index are committed, and are in the log or in a snapshot.
    pub committed_end: u64,
}

impl Floor {
    /// The floor of the next start: the raft log gets its generation first, so that it is never behind by a crash.
    pub fn next(self, loaded: &Loaded) -> Self {
        Self { generation: self.generation + 1, ..self.raised(term(loaded), committed_end(loaded)) }
    }

    #[must_use]
    pub fn raised(self, term: u64, committed_end: u64) -> Self {
        Self { term: self.term.max(term), committed_end: self.committed_end.max(committed_end), ..self }
    }

    /// Refuses a log that is below the floor, and one that lacks its snapshot. `snapshot_end`: the first index after the
    /// newest snapshot.
    pub fn check(&self, data: &Path, loaded: &Loaded, snapshot_end: u64) -> Result<(), RaftError> {
        if Mutant::AcceptLostState.is_on() {
            return Ok(());
        }
        let lost = |reason: String| Err(RaftError::VoterStateLost { data: data.to_owned(), reason });
        let (generation, newest) = (loaded.generation, self.generation + 1);
        if generation < self.generation {
            let expected = self.generation;
            return lost(format!(
                "its raft log is an older copy, of start {generation}; quorate.meta is of start {expected}"
            ));
        }
        if generation > newest {
            let found = self.generation;
            return lost(format!(
                "the raft log is of start {generation}, but quorate.meta is new or an older copy, of start {found}"
            ));
        }
        if term(loaded) < self.term {
            return lost(format!(
                "its raft log knows term {}, but this voter took part in {}",
                term(loaded),
                self.term
            ));
        }
        let purged_end = loaded.purged.map_or(0, |purged| purged.index + 1);
        if snapshot_end < purged_end {
            let first = snapshot_end;
            return lost(format!(
                "entries {first} to {} are in no snapshot and no longer in the log: the files in snapshots/ are missing",
                purged_end - 1
            ));
        }
        let end = end(loaded, snapshot_end);
        if end < self.committed_end {
            return lost(format!(
                "its raft log ends before entry {end}, but entries up to {} are committed",
                self.committed_end - 1
            ));
        }
        Ok(())
    }
}

/// The first index that is neither in the log nor in a snapshot.
pub fn end(loaded: &Loaded, snapshot_end: u64) -> u64 {
    loaded.last.map_or(0, |last| last.index + 1).max(snapshot_end)
}

fn term(loaded: &Loaded) -> u64 {
    loaded.vote.map_or(0, |vote| vote.leader_id.term)
}

fn committed_end(loaded: &Loaded) -> u64 {
    loaded.known_committed().max(loaded.purged).map_or(0, |id| id.index + 1)
}

#[cfg(test)]
mod tests {
    use super::super::types::Vote;
    use super::super::wire::log_id;
    use super::*;

    fn loaded() -> Loaded {
        Loaded {
            generation: 3,
            vote: Some(Vote::new(7, 1)),
            committed: Some(log_id(7, 20)),
            purged: Some(log_id(6, 9)),
            first: 10,
            last: Some(log_id(7, 21)),
        }
    }

    const FLOOR: Floor = Floor { generation: 3, term: 7, committed_end: 21 };

    fn refused(loaded: &Loaded, snapshot_end: u64) -> String {
        FLOOR.check(Path::new("/data"), loaded, snapshot_end).expect_err("refused").to_string()
    }

    #[test]
    fn a_disk_at_its_floor_is_accepted() {
        FLOOR.check(Path::new("/data"), &loaded(), 10).unwrap();
        // Of a start that ended before quorate.meta was written.
        FLOOR.check(Path::new("/data"), &Loaded { generation: 4, ..loaded() }, 10).unwrap();
        assert_eq!(FLOOR.next(&loaded()), Floor { generation: 4, ..FLOOR });
    }

    #[test]
    fn the_floor_of_a_new_disk_accepts_an_empty_log() {
        Floor::default().check(Path::new("/data"), &Loaded::default(), 0).unwrap();
        assert_eq!(Floor::default().next(&loaded()), Floor { generation: 1, term: 7, committed_end: 21 });
    }

    #[test]
    fn a_committed_index_ahead_of_the_log_ends_with_the_log() {
        let ahead = Loaded { committed: Some(log_id(7, 40)), ..loaded() };
        assert_eq!(ahead.known_committed(), Some(log_id(7, 21)));
        assert_eq!(FLOOR.next(&ahead).committed_end, 22);
        assert_eq!(Loaded { last: None, ..ahead }.known_committed(), None);
        assert_eq!(Loaded { committed: None, ..loaded() }.known_committed(), None);
    }

    #[test]
    fn what_is_below_the_floor_is_refused_by_name() {
        let older = refused(&Loaded { generation: 2, ..loaded() }, 10);
        assert!(older.contains("VOTER_STATE_LOST") && older.contains("raft log is an older copy"), "{older}");
        let meta = refused(&Loaded { generation: 5, ..loaded() }, 10);
        assert!(meta.contains("quorate.meta is new or an older copy, of start 3"), "{meta}");
        let vote = refused(&Loaded { vote: Some(Vote::new(6, 1)), ..loaded() }, 10);
        assert!(vote.contains("knows term 6, but this voter took part in 7"), "{vote}");
        let log = refused(&Loaded { last: Some(log_id(7, 19)), ..loaded() }, 10);
        assert!(log.contains("ends before entry 20, but entries up to 20 are committed"), "{log}");
        let snapshot = refused(&loaded(), 0);
        assert!(snapshot.contains("entries 0 to 9 are in no snapshot"), "{snapshot}");
    }
}
