//! A small text that outlives the process.

use std::fs;
use std::io::{self, ErrorKind};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard};

use quorate_log::durable;

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
            Self::File(path) => durable::replace(path, new.as_bytes())?,
        }
        Ok(())
    }

    /// Durably.
    pub fn remove(&self) -> io::Result<()> {
        match self {
            Self::Memory(text) => *held(text) = None,
            Self::File(path) => durable::remove(path)?,
        }
        Ok(())
    }
}

fn held(text: &Mutex<Option<String>>) -> MutexGuard<'_, Option<String>> {
    text.lock().expect("no thread panics while it holds the text")
}
