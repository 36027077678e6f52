//! Directories and files that are still there when the power has gone.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::Path;

/// Makes the directory and those above it that are missing. What is synced in it later is of no use while its own name,
/// in the directory above, is not.
pub fn create_directory(path: &Path) -> io::Result<()> {
    let above = above(path);
    if !path.is_dir() {
        create_directory(above)?;
        match fs::create_dir(path) {
            // Somebody else was faster.
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists && path.is_dir() => {}
            made => made?,
        }
    }
    // Also of one that is there: whoever made it may have died just then.
    sync_directory(above)
}

/// Names in it that were made, changed or removed stay so.
pub fn sync_directory(path: &Path) -> io::Result<()> {
    File::open(path)?.sync_all()
}

/// Gives the file this content: after a crash it has the old one or the new one, and never a part.
pub fn replace(path: &Path, content: &[u8]) -> io::Result<()> {
    let part = path.with_extension("part");
    let mut file = File::create(&part)?;
    file.write_all(content)?;
    file.sync_all()?;
    fs::rename(&part, path)?;
    sync_directory(above(path))
}

/// Removes the file for good, if there is one.
pub fn remove(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        removed => removed.and_then(|()| sync_directory(above(path))),
    }
}

/// The directory that has it; of `/` itself.
fn above(path: &Path) -> &Path {
    match path.parent() {
        Some(above) if !above.as_os_str().is_empty() => above,
        Some(_) => Path::new("."),
        None => path,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_that_is_missing_is_made_once() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a/b/c");
        create_directory(&path).unwrap();
        create_directory(&path).unwrap();
        assert!(path.is_dir());
        File::create(folder.path().join("file")).unwrap();
        assert!(create_directory(&folder.path().join("file/below")).is_err(), "a file is no directory");
    }
}
