//! A small text that outlives the process.

use std::fs;
use std::io::{self, ErrorKind, Write};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard};

use quorate_log::durable::sync_directory;

/// Clones are the same text.
#[derive(Clone, Debug)]
pub enum Note {
    File(PathBuf),
    Memory(Arc<Mutex<Option<String>>>),
}

impl Note {
    pub fn in_memory() -> Self {
        Self::Memory(Arc::default())
    }

    /// None: there is none.
    pub fn read(&self) -> io::Result<Option<String>> {
        match self {
            Self::Memory(text) => Ok(held(text).clone()),
            Self::File(path) => match fs::read_to_string(path) {
                Ok(text) => Ok(Some(text)),
                Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
                Err(error) => Err(error),
            },
        }
    }

    /// Durably: after a crash either the new text is there or the one before it.
    pub fn write(&self, new: &str) -> io::Result<()> {
        match self {
            Self::Memory(text) => *held(text) = Some(new.to_owned()),
            Self::File(path) => {
                let unfinished = path.with_extension("new");
                let mut file = fs::File::create(&unfinished)?;
                file.write_all(new.as_bytes())?;
                file.sync_all()?;
                fs::rename(&unfinished, path)?;
                sync_directory(folder_of(path))?;
            }
        }
        Ok(())
    }

    /// Durably.
    pub fn remove(&self) -> io::Result<()> {
        match self {
            Self::Memory(text) => *held(text) = None,
            Self::File(path) => {
                match fs::remove_file(path) {
                    Err(error) if error.kind() == ErrorKind::NotFound => return Ok(()),
                    removed => removed?,
                }
                sync_directory(folder_of(path))?;
            }
        }
        Ok(())
    }
}

fn held(text: &Mutex<Option<String>>) -> MutexGuard<'_, Option<String>> {
    text.lock().expect("no thread panics while it holds the text")
}

fn folder_of(file: &Path) -> &Path {
    file.parent().expect("a file has a directory")
}
