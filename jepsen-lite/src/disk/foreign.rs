//! A disk of another cluster in the place of a node's own.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

/// What is not the node's own.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Foreign {
    /// The data directory: formatted for another cluster, and empty beside that.
    Data,
    /// The log directory: it has records of another cluster.
    Logs,
}

impl Foreign {
    /// The node's own, given its data directory.
    pub fn place(self, data: &Path) -> PathBuf {
        match self {
            Self::Data => data.to_owned(),
            Self::Logs => data.join("logs"),
        }
    }
}

/// A folder that lies aside, with another one in its place.
#[derive(Debug)]
pub struct Swapped {
    place: PathBuf,
    aside: PathBuf,
    foreign: PathBuf,
}

impl Swapped {
    /// Moves both. Nobody may use either of them. `aside` is free, and on the same file system.
    pub fn swap(place: PathBuf, foreign: PathBuf, aside: PathBuf) -> io::Result<Self> {
        fs::rename(&place, &aside)?;
        fs::rename(&foreign, &place)?;
        Ok(Self { place, aside, foreign })
    }

    /// Both are where they were.
    pub fn put_back(self) -> io::Result<()> {
        fs::rename(&self.place, &self.foreign)?;
        fs::rename(&self.aside, &self.place)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::disk::wipe::Tree;

    #[test]
    fn a_foreign_folder_takes_the_place_and_goes_back() {
        let root = tempfile::tempdir().unwrap();
        let place = Foreign::Logs.place(&root.path().join("data"));
        let foreign = root.path().join("foreign");
        for (folder, content) in [(&place, "own"), (&foreign, "foreign")] {
            fs::create_dir_all(folder).unwrap();
            fs::write(folder.join("file"), content).unwrap();
        }
        let before = Tree::of(root.path()).unwrap();
        let swapped = Swapped::swap(place.clone(), foreign.clone(), root.path().join("aside")).unwrap();
        assert_eq!(fs::read_to_string(place.join("file")).unwrap(), "foreign");
        assert!(!foreign.exists());
        swapped.put_back().unwrap();
        assert_eq!(Tree::of(root.path()).unwrap(), before);
    }
}
