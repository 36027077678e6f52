//! Room on file systems.

use std::io;
use std::path::Path;

use nix::sys::statvfs::statvfs;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Space {
    /// What an ordinary process may still take.
    pub free_bytes: u64,
    pub total_bytes: u64,
}

impl Space {
    /// Of the file system that has the path, which exists.
    pub fn of(path: &Path) -> io::Result<Self> {
        let found = statvfs(path)?;
        let block_bytes = found.fragment_size();
        Ok(Self { free_bytes: found.blocks_available() * block_bytes, total_bytes: found.blocks() * block_bytes })
    }
}

/// For people.
pub fn mebibytes(bytes: u64) -> String {
    format!("{} MiB", bytes >> 20)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_system_has_room_and_a_missing_path_is_an_error() {
        let folder = tempfile::tempdir().unwrap();
        let space = Space::of(folder.path()).unwrap();
        assert!(space.free_bytes <= space.total_bytes && space.total_bytes > 0, "{space:?}");
        assert!(Space::of(&folder.path().join("missing")).is_err());
    }
}
