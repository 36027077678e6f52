//! What a disk does to files without being asked: a byte that is not what it was, an end that is missing, a write that
//! was cut in the middle.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::random::Random;

/// Which of a node's files.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Part {
    /// The log of writes of the database that has the metadata log.
    #[default]
    WriteLog,
    /// A sorted table of that database.
    Table,
    /// Which files that database consists of.
    Manifest,
    /// The newest snapshot of the metadata.
    Snapshot,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Harm {
    /// One bit is not what it was.
    #[default]
    Flip,
    /// The end is missing.
    Truncate,
}

impl Part {
    /// Below the folder of a node's data.
    fn folder(self) -> &'static str {
        if self == Self::Snapshot { "snapshots" } else { "raft" }
    }

    fn is(self, file: &Path) -> bool {
        let ends = |extension: &str| file.extension().is_some_and(|it| it == extension);
        match self {
            Self::WriteLog => ends("log"),
            Self::Table => ends("sst"),
            Self::Snapshot => ends("checkpoint"),
            Self::Manifest => file.file_name().is_some_and(|name| name.as_encoded_bytes().starts_with(b"MANIFEST-")),
        }
    }

    /// A shorter log of writes has its last record in the middle, which a crash may have cut.
    fn bytes_min(self) -> u64 {
        if self == Self::WriteLog { 8 * 1024 } else { 32 }
    }

    /// Whether all of it counts, and is read when a node starts. Of tables and snapshots it may read a part, and what the
    /// end of a manifest says may be in the logs of writes as well.
    pub fn counts_wholly(self) -> bool {
        self == Self::WriteLog
    }

    /// The newest one that is long enough.
    pub fn find(self, data: &Path) -> io::Result<Option<PathBuf>> {
        let mut found = Vec::new();
        let entries = match fs::read_dir(data.join(self.folder())) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            entries => entries?,
        };
        for entry in entries {
            let file = entry?.path();
            if self.is(&file) && fs::metadata(&file)?.len() >= self.bytes_min() {
                found.push(file);
            }
        }
        // The names have numbers of a fixed width, which grow.
        Ok(found.into_iter().max())
    }
}

/// Harms a file that nobody has open, and says where. A log of writes is hit well before its end.
pub fn inflict(part: Part, harm: Harm, file: &Path, seed: u64) -> io::Result<u64> {
    let whole = fs::metadata(file)?.len();
    let at = if part == Part::WriteLog { whole / 2 } else { Random::new(seed).below(whole) };
    let handle = File::options().read(true).write(true).open(file)?;
    match harm {
        Harm::Flip => {
            let mut byte = [0];
            handle.read_exact_at(&mut byte, at)?;
            handle.write_all_at(&[byte[0] ^ 0x40], at)?;
        }
        Harm::Truncate => handle.set_len(at)?,
    }
    Ok(at)
}

/// What damage can hit lies elsewhere, and a copy of it in its place: whatever a node does to that is undone.
#[derive(Debug)]
pub struct Kept {
    data: PathBuf,
    aside: PathBuf,
}

const FOLDERS: [&str; 2] = ["raft", "snapshots"];

impl Kept {
    /// The node must be down. The originals stay the same files, since a power cut knows them by more than their names.
    pub fn swap(data: &Path) -> io::Result<Self> {
        let kept = Self { data: data.to_owned(), aside: data.with_extension("kept") };
        fs::create_dir(&kept.aside)?;
        for (original, aside) in kept.folders() {
            fs::rename(&original, &aside)?;
            fs::create_dir(&original)?;
            for entry in fs::read_dir(&aside)? {
                let entry = entry?;
                fs::copy(entry.path(), original.join(entry.file_name()))?;
            }
        }
        Ok(kept)
    }

    /// As it was.
    pub fn put_back(self) -> io::Result<()> {
        for (original, aside) in self.folders() {
            fs::remove_dir_all(&original)?;
            fs::rename(aside, original)?;
        }
        fs::remove_dir(&self.aside)
    }

    fn folders(&self) -> impl Iterator<Item = (PathBuf, PathBuf)> {
        FOLDERS.iter().map(|folder| (self.data.join(folder), self.aside.join(folder)))
    }
}

/// Records of a log of writes do not cross the borders of blocks of this size.
const BLOCK: u64 = 32 * 1024;
/// Checksum, length, kind.
const HEAD_BYTES: u64 = 7;
const WHOLE_RECORD: u8 = 1;
const RECORD_BYTES_MAX: u64 = 2_000;

/// Adds what a crash leaves of a record: its first bytes, and never all. Nothing that was synced is touched, since only
/// that may be cut which was acknowledged to nobody. How many bytes it added.
pub fn tear(write_log: &Path, seed: u64) -> io::Result<u64> {
    let mut random = Random::new(seed);
    let end = fs::metadata(write_log)?.len();
    let room = BLOCK - end % BLOCK;
    // Too little for a head is filled with zeros.
    let (padding, room) = if room <= HEAD_BYTES { (room, BLOCK) } else { (0, room) };
    let content = random.between(1, (room - HEAD_BYTES).min(RECORD_BYTES_MAX));
    let mut record: Vec<u8> = (0..HEAD_BYTES + content).map(|_| random.draw().to_le_bytes()[0]).collect();
    record[4..6].copy_from_slice(&u16::try_from(content).expect("it fits a block").to_le_bytes());
    record[6] = WHOLE_RECORD;
    record.truncate(usize::try_from(random.between(1, HEAD_BYTES + content - 1)).expect("it fits a block"));
    record.splice(0..0, vec![0; usize::try_from(padding).expect("it fits a block")]);
    File::options().write(true).open(write_log)?.write_all_at(&record, end)?;
    Ok(record.len() as u64)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt;

    use super::*;

    fn folder_with(files: &[(&str, usize)]) -> tempfile::TempDir {
        let folder = tempfile::tempdir().unwrap();
        for (name, length) in files {
            let file = folder.path().join(name);
            fs::create_dir_all(file.parent().unwrap()).unwrap();
            fs::write(file, vec![7; *length]).unwrap();
        }
        folder
    }

    #[test]
    fn parts_are_the_newest_files_that_are_long_enough() {
        let folder = folder_with(&[
            ("raft/000004.log", 10_000),
            ("raft/000009.log", 100),
            ("raft/000005.sst", 1_000),
            ("raft/000011.sst", 1_000),
            ("raft/MANIFEST-000003", 500),
            ("snapshots/00000000000000000007-0000000001.checkpoint", 100),
            ("snapshots/00000000000000000090-0000000001.checkpoint", 100),
        ]);
        let name = |part: Part| {
            part.find(folder.path()).unwrap().map(|file| file.file_name().unwrap().to_str().unwrap().to_owned())
        };
        assert_eq!(name(Part::WriteLog).as_deref(), Some("000004.log"));
        assert_eq!(name(Part::Table).as_deref(), Some("000011.sst"));
        assert_eq!(name(Part::Manifest).as_deref(), Some("MANIFEST-000003"));
        assert!(name(Part::Snapshot).unwrap().contains("90-"));
        assert_eq!(Part::Snapshot.find(&folder.path().join("nowhere")).unwrap(), None);
    }

    #[test]
    fn one_byte_is_another_or_the_end_is_missing_and_then_all_is_as_it_was() {
        for (part, harm) in [Part::WriteLog, Part::Table].into_iter().zip([Harm::Flip, Harm::Truncate]) {
            let folder =
                folder_with(&[("data/raft/1.log", 10_000), ("data/raft/1.sst", 10_000), ("data/snapshots/x", 1)]);
            let data = folder.path().join("data");
            let file = part.find(&data).unwrap().unwrap();
            let (before, inode) = (fs::read(&file).unwrap(), fs::metadata(&file).unwrap().ino());
            for seed in 0..20 {
                let kept = Kept::swap(&data).unwrap();
                inflict(part, harm, &file, seed).unwrap();
                let now = fs::read(&file).unwrap();
                let differing = now.iter().zip(&before).filter(|(now, before)| now != before).count();
                match harm {
                    Harm::Flip => assert_eq!((differing, now.len()), (1, before.len())),
                    Harm::Truncate => assert!(differing == 0 && now.len() < before.len()),
                }
                // So does a database that opens.
                fs::remove_file(&file).unwrap();
                fs::write(data.join("raft/2.log"), b"new").unwrap();
                kept.put_back().unwrap();
                assert_eq!((fs::read(&file).unwrap(), fs::metadata(&file).unwrap().ino()), (before.clone(), inode));
                assert!(!data.join("raft/2.log").exists());
            }
        }
    }

    #[test]
    fn a_torn_write_adds_part_of_a_record_and_keeps_what_was_there() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("1.log");
        for (seed, before) in (0..300).map(|seed| (seed, seed * 331 % 40_000)) {
            let content = vec![7; usize::try_from(before).unwrap()];
            fs::write(&file, &content).unwrap();
            let added = tear(&file, seed).unwrap();
            let now = fs::read(&file).unwrap();
            assert!(now.starts_with(&content) && now.len() as u64 == before + added && added > 0);
            let begins = if BLOCK - before % BLOCK <= HEAD_BYTES { before.next_multiple_of(BLOCK) } else { before };
            let head = &now[usize::try_from(begins).unwrap()..];
            if head.len() as u64 >= HEAD_BYTES {
                let said = u64::from(u16::from_le_bytes([head[4], head[5]]));
                assert!((head.len() as u64) < HEAD_BYTES + said, "the record is never whole");
                assert!(begins % BLOCK + HEAD_BYTES + said <= BLOCK, "and stays within its block");
            }
        }
    }
}
