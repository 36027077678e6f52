//! A data directory of which a part is gone, while `quorate.meta` still names the disk: a volume that was not mounted, a
//! backup that was restored in part, a folder that was removed by hand.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

/// The name of the disk, in its data directory.
pub const META: &str = "quorate.meta";

/// What a voter keeps of the metadata, and what of that is half made.
const VOTERS: [&str; 3] = ["raft", "raft.part", "snapshots"];

/// What is gone.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Lost {
    /// The metadata log with the vote.
    Log,
    Snapshots,
    Both,
}

impl Lost {
    pub fn folders(self) -> &'static [&'static str] {
        match self {
            Self::Log => &["raft"],
            Self::Snapshots => &["snapshots"],
            Self::Both => &["raft", "snapshots"],
        }
    }
}

/// What is gone lies elsewhere. So does the name of the disk, and a copy of it in its place.
#[derive(Debug)]
pub struct Wiped {
    data: PathBuf,
    aside: PathBuf,
    folders: &'static [&'static str],
}

impl Wiped {
    /// The node must be down. The originals stay the same files, since a power cut knows them by more than their names.
    pub fn take(data: &Path, lost: Lost) -> io::Result<Self> {
        let wiped = Self { data: data.to_owned(), aside: data.with_extension("lost"), folders: lost.folders() };
        fs::create_dir(&wiped.aside)?;
        for name in wiped.folders {
            fs::rename(data.join(name), wiped.aside.join(name))?;
        }
        fs::rename(data.join(META), wiped.aside.join(META))?;
        fs::copy(wiped.aside.join(META), data.join(META))?;
        Ok(wiped)
    }

    /// As it was: what a node has made in place of what was gone is removed.
    pub fn put_back(self) -> io::Result<()> {
        for name in self.folders {
            match fs::remove_dir_all(self.data.join(name)) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                _ => fs::rename(self.aside.join(name), self.data.join(name))?,
            }
        }
        fs::rename(self.aside.join(META), self.data.join(META))?;
        fs::remove_dir(&self.aside)
    }
}

/// `quorate.meta` as it was before its disk had anything: what a new disk of the same node and cluster has, under the name
/// of this one.
pub fn unrecorded(new: &str, own: &str) -> Option<String> {
    let directory = own.lines().find(|line| is_directory(line))?;
    let mut lines: Vec<&str> = new.lines().map(|line| if is_directory(line) { directory } else { line }).collect();
    lines.push("");
    Some(lines.join("\n"))
}

fn is_directory(line: &str) -> bool {
    line.starts_with("directory = ")
}

/// The files below a folder: size and checksum of each.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Tree(BTreeMap<PathBuf, (u64, u32)>);

impl Tree {
    /// Of everything.
    pub fn of(root: &Path) -> io::Result<Self> {
        let mut tree = Self::default();
        tree.add(root, Path::new(""))?;
        Ok(tree)
    }

    /// Of a data directory without what a voter keeps of the metadata.
    pub fn without_voter(data: &Path) -> io::Result<Self> {
        let mut tree = Self::of(data)?;
        tree.0.retain(|path, _| !VOTERS.iter().any(|folder| path.starts_with(folder)));
        Ok(tree)
    }

    fn add(&mut self, root: &Path, below: &Path) -> io::Result<()> {
        for entry in fs::read_dir(root.join(below))? {
            let entry = entry?;
            let path = below.join(entry.file_name());
            if entry.file_type()?.is_dir() {
                self.add(root, &path)?;
            } else {
                let content = fs::read(root.join(&path))?;
                self.0.insert(path, (content.len() as u64, crc32fast::hash(&content)));
            }
        }
        Ok(())
    }

    /// The files that are not in `later` as they are here.
    pub fn changed_in(&self, later: &Self) -> Vec<PathBuf> {
        self.0.iter().filter(|(path, file)| later.0.get(*path) != Some(file)).map(|(path, _)| path.clone()).collect()
    }

    /// The files of one that the other has not, or has with another content.
    pub fn differs_from(&self, later: &Self) -> Vec<PathBuf> {
        let mut paths = self.changed_in(later);
        paths.extend(later.0.keys().filter(|path| !self.0.contains_key(*path)).cloned());
        paths
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt;

    use super::*;

    fn data_with(files: &[&str]) -> (tempfile::TempDir, PathBuf) {
        let folder = tempfile::tempdir().unwrap();
        let data = folder.path().join("data");
        for name in files {
            let file = data.join(name);
            fs::create_dir_all(file.parent().unwrap()).unwrap();
            fs::write(file, name).unwrap();
        }
        (folder, data)
    }

    const FILES: [&str; 4] = [META, "raft/1.log", "snapshots/7.checkpoint", "logs/2.log"];

    #[test]
    fn a_wiped_directory_lacks_a_part_and_is_then_as_it_was() {
        for lost in [Lost::Log, Lost::Snapshots, Lost::Both] {
            let (_folder, data) = data_with(&FILES);
            let inodes = || FILES.map(|name| fs::metadata(data.join(name)).unwrap().ino());
            let (before, inodes_before) = (Tree::of(&data).unwrap(), inodes());
            let wiped = Wiped::take(&data, lost).unwrap();
            for name in ["raft", "snapshots"] {
                assert_eq!(data.join(name).exists(), !lost.folders().contains(&name), "{lost:?}: {name}");
            }
            assert!(data.join(META).exists() && data.join("logs/2.log").exists());
            // So does a node that starts.
            for name in lost.folders() {
                fs::create_dir_all(data.join(name)).unwrap();
                fs::write(data.join(name).join("new"), b"new").unwrap();
            }
            fs::write(data.join(META), b"new").unwrap();
            wiped.put_back().unwrap();
            assert_eq!((Tree::of(&data).unwrap(), inodes()), (before, inodes_before), "{lost:?}");
        }
    }

    #[test]
    fn a_folder_that_nothing_was_made_in_place_of_is_put_back() {
        let (_folder, data) = data_with(&FILES);
        let before = Tree::of(&data).unwrap();
        Wiped::take(&data, Lost::Both).unwrap().put_back().unwrap();
        assert_eq!(Tree::of(&data).unwrap(), before);
    }

    #[test]
    fn a_name_without_a_record_keeps_its_directory_alone() {
        let own = "version = 1\nnode = 3\ndirectory = \"own\"\ncluster = \"c\"\n\n[floors]\nindex = 7\n";
        let new = "version = 1\nnode = 3\ndirectory = \"new\"\ncluster = \"c\"\n";
        let expected = "version = 1\nnode = 3\ndirectory = \"own\"\ncluster = \"c\"\n";
        assert_eq!(unrecorded(new, own).as_deref(), Some(expected));
        assert_eq!(unrecorded(new, "version = 1\n"), None);
    }

    #[test]
    fn trees_tell_what_changed_and_what_was_added() {
        let (_folder, data) = data_with(&FILES);
        let (before, others) = (Tree::of(&data).unwrap(), Tree::without_voter(&data).unwrap());
        fs::write(data.join("raft/1.log"), b"changed").unwrap();
        fs::write(data.join("raft/2.log"), b"added").unwrap();
        fs::remove_file(data.join("snapshots/7.checkpoint")).unwrap();
        let after = Tree::of(&data).unwrap();
        let paths = |names: &[&str]| names.iter().map(PathBuf::from).collect::<Vec<_>>();
        assert_eq!(before.changed_in(&after), paths(&["raft/1.log", "snapshots/7.checkpoint"]));
        assert_eq!(before.differs_from(&after), paths(&["raft/1.log", "snapshots/7.checkpoint", "raft/2.log"]));
        assert_eq!(Tree::without_voter(&data).unwrap(), others);
    }
}
