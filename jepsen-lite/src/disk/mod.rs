//! The disk of a node: what of it survives when the power goes, and how it fails.
//!
//! `kill -9` loses nothing that was written, synced or not, so it cannot show a missing fsync. Here a shim, preloaded into
//! the node, writes down at each fsync how large the file was. When the power is cut, the process is killed, and every
//! file goes back to what was synced of it; what was created in a directory since that was last synced is gone.
//!
//! What this does not show: bytes that are written over (nothing of ours is), and that later writes may survive earlier
//! ones.

pub mod damage;
pub mod foreign;
pub mod wipe;

use std::collections::HashMap;
use std::ffi::OsString;
use std::fs::{self, File};
use std::io::{self, Write};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::UNIX_EPOCH;

use serde::{Deserialize, Serialize};

const SHIM: &str = include_str!("shim.c");

/// Compiles the shim into the folder. The error is a reason to leave out what needs it.
pub fn compile_shim(folder: &Path) -> Result<PathBuf, String> {
    if !cfg!(target_os = "linux") {
        return Err("the shim of the disk is for Linux".to_owned());
    }
    let (source, library) = (folder.join("shim.c"), folder.join("shim.so"));
    fs::write(&source, SHIM).map_err(|error| format!("cannot write {}: {error}", source.display()))?;
    let compiled = Command::new("cc").args(["-O2", "-shared", "-fPIC", "-o"]).arg(&library).arg(&source).output();
    match compiled {
        Err(error) => Err(format!("no C compiler, cc: {error}")),
        Ok(output) if !output.status.success() => {
            Err(format!("cc: {}", String::from_utf8_lossy(&output.stderr).trim()))
        }
        Ok(_) if born(folder).is_err() => Err("this file system does not say when files were created".to_owned()),
        Ok(_) => Ok(library),
    }
}

/// How the disk behaves.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Mode {
    #[default]
    Sound,
    /// fsync returns EIO, and what it should have covered is lost for good.
    SyncFails,
    /// fsync returns at once, and covers nothing.
    SyncLies,
    /// No byte can be written any more.
    Full,
    /// What writes or syncs waits until the disk is mended.
    Hangs,
    /// As `Full`, of the records of brokers alone.
    LogsFull,
}

/// The disk of one node.
#[derive(Debug)]
pub struct Disk {
    shim: PathBuf,
    data: PathBuf,
    ledger: PathBuf,
    mode: PathBuf,
}

/// What a power cut took.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Cut {
    pub shortened: usize,
    pub removed: usize,
}

impl Disk {
    /// Of a node that keeps its data there, and has not begun yet.
    pub fn prepare(shim: &Path, folder: &Path, data: &Path) -> io::Result<Self> {
        fs::create_dir_all(data)?;
        let (ledger, mode) = (folder.join("disk-ledger"), folder.join("disk-mode"));
        let disk = Self { shim: shim.to_owned(), data: data.canonicalize()?, ledger, mode };
        File::create(&disk.ledger)?;
        disk.set(Mode::Sound)?;
        Ok(disk)
    }

    /// To be preloaded into a process that runs on this disk.
    pub fn shim(&self) -> &Path {
        &self.shim
    }

    /// What it needs in its environment beside that.
    pub fn environment(&self) -> [(&'static str, OsString); 3] {
        [
            ("JEPSEN_LITE_DATA", self.data.clone().into()),
            ("JEPSEN_LITE_LEDGER", self.ledger.clone().into()),
            ("JEPSEN_LITE_MODE", self.mode.clone().into()),
        ]
    }

    /// From now on. Also of a process that runs.
    pub fn set(&self, mode: Mode) -> io::Result<()> {
        let byte = match mode {
            Mode::Sound => b"0",
            Mode::SyncFails => b"1",
            Mode::SyncLies => b"2",
            Mode::Full => b"3",
            Mode::Hangs => b"4",
            Mode::LogsFull => b"5",
        };
        // In place: the process has this file mapped.
        File::options().write(true).create(true).truncate(false).open(&self.mode)?.write_all(byte)
    }

    /// Takes away what is not durable. The process must be gone.
    pub fn cut_power(&self) -> io::Result<Cut> {
        let durable = Durable::read(&self.ledger)?;
        let mut cut = Cut::default();
        durable.apply(&self.data, &mut cut)?;
        Ok(cut)
    }
}

/// Inode and nanosecond of birth: an inode number alone is used again.
type Identity = (u64, u128);

fn born(path: &Path) -> io::Result<(Identity, u128)> {
    let file = fs::symlink_metadata(path)?;
    let born = file.created()?.duration_since(UNIX_EPOCH).map_err(io::Error::other)?.as_nanos();
    Ok(((file.ino(), born), born))
}

/// What the shim has seen to become durable.
#[derive(Debug, Default)]
struct Durable {
    sizes: HashMap<Identity, u64>,
    /// What was born in a directory until then is in it.
    entries: HashMap<Identity, u128>,
}

impl Durable {
    fn read(ledger: &Path) -> io::Result<Self> {
        let mut durable = Self::default();
        let mut lost = std::collections::HashSet::new();
        for line in fs::read_to_string(ledger)?.lines() {
            let wrong = || io::Error::other(format!("not a line of a ledger: {line}"));
            let [kind, inode, born, value] = line.split(' ').collect::<Vec<_>>()[..] else { return Err(wrong()) };
            let file = (inode.parse().map_err(|_| wrong())?, born.parse().map_err(|_| wrong())?);
            let value: u128 = value.parse().map_err(|_| wrong())?;
            match kind {
                // After an fsync that failed nobody knows what a later one covers.
                _ if lost.contains(&file) => {}
                "x" => drop(lost.insert(file)),
                "f" => drop(durable.sizes.insert(file, u64::try_from(value).map_err(|_| wrong())?)),
                "d" => drop(durable.entries.insert(file, value)),
                _ => return Err(wrong()),
            }
        }
        Ok(durable)
    }

    fn apply(&self, directory: &Path, cut: &mut Cut) -> io::Result<()> {
        let synced = self.entries.get(&born(directory)?.0);
        for entry in fs::read_dir(directory)? {
            let path = entry?.path();
            let (identity, born) = born(&path)?;
            if synced.is_none_or(|synced| born > *synced) {
                cut.removed += 1;
                if path.is_dir() { fs::remove_dir_all(&path)? } else { fs::remove_file(&path)? }
            } else if path.is_dir() {
                self.apply(&path, cut)?;
            } else {
                let durable = self.sizes.get(&identity).copied().unwrap_or(0);
                if fs::metadata(&path)?.len() > durable {
                    cut.shortened += 1;
                    File::options().write(true).open(&path)?.set_len(durable)?;
                }
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;
