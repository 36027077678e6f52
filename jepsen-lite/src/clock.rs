//! The wall clock of a node: libfaketime, preloaded, adds what a file says. What a node measures durations with goes on
//! as ever.

use std::ffi::OsString;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// Where distributions put it, below `/usr/lib` or a folder there that is named after the machine.
const PLACES: [&str; 2] = ["faketime/libfaketimeMT.so.1", "libfaketimeMT.so.1"];

/// What the trial adds, and how far from it the answer may be.
const TRIAL: Duration = Duration::from_secs(100_000);
const TRIAL_TOLERANCE: Duration = Duration::from_secs(100);

/// The library, after it was tried. The error is a reason to leave out what needs it.
pub fn find_library() -> Result<PathBuf, String> {
    let roots = [PathBuf::from("/usr/lib"), PathBuf::from("/usr/lib64"), PathBuf::from("/usr/local/lib")];
    let below = fs::read_dir("/usr/lib").into_iter().flatten().flatten().map(|entry| entry.path());
    let candidates = roots.into_iter().chain(below).flat_map(|root| PLACES.map(|place| root.join(place)));
    let library = candidates.into_iter().find(|path| path.exists());
    let library = library.ok_or("libfaketime is missing: Debian calls its package faketime")?;
    try_out(&library).map(|()| library)
}

#[expect(clippy::disallowed_methods, reason = "it is compared with the real time of day")]
fn try_out(library: &Path) -> Result<(), String> {
    let folder = tempfile::tempdir().map_err(|error| format!("cannot make a folder: {error}"))?;
    let clock = Clock::prepare(library, folder.path()).map_err(|error| format!("cannot set a clock: {error}"))?;
    clock.set(i64::try_from(TRIAL.as_millis()).expect("a day or so")).map_err(|error| error.to_string())?;
    let mut date = Command::new("date");
    date.arg("+%s").env("LD_PRELOAD", library).envs(clock.environment());
    let output = date.output().map_err(|error| format!("cannot ask for the date: {error}"))?;
    let said = String::from_utf8_lossy(&output.stdout).trim().parse().ok().map(Duration::from_secs);
    let expected = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default() + TRIAL;
    match said {
        Some(said) if said.abs_diff(expected) < TRIAL_TOLERANCE => Ok(()),
        _ => Err(format!("{} moves no clock here", library.display())),
    }
}

/// The clock of one node.
#[derive(Debug)]
pub struct Clock {
    library: PathBuf,
    file: PathBuf,
}

impl Clock {
    /// Of a node with this folder. It is right at first.
    pub fn prepare(library: &Path, folder: &Path) -> io::Result<Self> {
        let clock = Self { library: library.to_owned(), file: folder.join("clock") };
        clock.set(0)?;
        Ok(clock)
    }

    pub fn library(&self) -> &Path {
        &self.library
    }

    /// What a process needs in its environment, beside the preloaded library, to go by this clock.
    pub fn environment(&self) -> [(&'static str, OsString); 4] {
        [
            ("FAKETIME_TIMESTAMP_FILE", self.file.clone().into()),
            ("FAKETIME_NO_CACHE", "1".into()),
            ("FAKETIME_DONT_FAKE_MONOTONIC", "1".into()),
            ("NO_FAKE_STAT", "1".into()),
        ]
    }

    /// From now on it is wrong by so much. Also of a process that runs.
    pub fn set(&self, offset_ms: i64) -> io::Result<()> {
        let sign = if offset_ms < 0 { '-' } else { '+' };
        let (seconds, millis) = (offset_ms.unsigned_abs() / 1_000, offset_ms.unsigned_abs() % 1_000);
        // Whoever reads it meanwhile finds the old one or the new one.
        let part = self.file.with_extension("part");
        fs::write(&part, format!("{sign}{seconds}.{millis:03}\n"))?;
        fs::rename(part, &self.file)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_clock_is_set_forth_and_back_while_the_process_runs() {
        let folder = tempfile::tempdir().unwrap();
        let library = match find_library() {
            Ok(library) => library,
            Err(why) => return eprintln!("skipped: {why}"),
        };
        let clock = Clock::prepare(&library, folder.path()).unwrap();
        let program = "import os, sys, time\n\
                       for line in sys.stdin:\n    print(time.time(), time.monotonic(), flush=True)";
        let mut python = Command::new("python3");
        python.arg("-c").arg(program).env("LD_PRELOAD", clock.library()).envs(clock.environment());
        python.stdin(std::process::Stdio::piped()).stdout(std::process::Stdio::piped());
        let mut child = python.spawn().unwrap();
        let (mut asked, told) = (child.stdin.take().unwrap(), child.stdout.take().unwrap());
        let mut told = io::BufRead::lines(io::BufReader::new(told));
        let mut times = |offset_ms: i64| {
            clock.set(offset_ms).unwrap();
            io::Write::write_all(&mut asked, b"\n").unwrap();
            let line = told.next().unwrap().unwrap();
            let times: Vec<f64> = line.split(' ').map(|time| time.parse().unwrap()).collect();
            (times[0], times[1])
        };
        let (wall, monotonic) = times(0);
        for offset_s in [3_600, -3_600, 1] {
            let (later, monotonic_later) = times(offset_s * 1_000);
            assert!((later - wall - offset_s as f64).abs() < 5.0, "{offset_s}: {wall}, then {later}");
            assert!((0.0..5.0).contains(&(monotonic_later - monotonic)));
        }
        drop(asked);
        child.wait().unwrap();
    }
}
