//! How much memory a node may have: by a control group where there are such and we may, else by what it may map.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, ensure};

const MEBIBYTE: u64 = 1 << 20;

/// Control groups of the first version, for memory.
const GROUPS: &str = "/sys/fs/cgroup/memory";

/// How memory is limited here.
#[derive(Debug)]
pub enum Limiter {
    /// A group for each node in this one, which is ours. What is cached of files counts, and is given back.
    Groups(PathBuf),
    /// `prlimit`: what a process maps beyond what it has mapped when the limit comes.
    Mappings,
}

impl Limiter {
    /// The error is a reason to leave out what needs it.
    pub fn find() -> Result<Self, String> {
        let ours = Path::new(GROUPS).join(format!("jepsen-lite-{}", std::process::id()));
        match fs::create_dir(&ours) {
            Ok(()) if ours.join("memory.limit_in_bytes").exists() => return Ok(Self::Groups(ours)),
            // Of a run before in this process.
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => return Ok(Self::Groups(ours)),
            Ok(()) => drop(fs::remove_dir(&ours)),
            Err(_) => {}
        }
        match Command::new("prlimit").arg("--version").output() {
            Ok(output) if output.status.success() => Ok(Self::Mappings),
            _ => Err("no control group for memory can be made here, and there is no prlimit".to_owned()),
        }
    }

    /// From now on, of a process that runs; without a number, there is no limit any more.
    pub fn limit(&self, node: i32, pid: u32, mebibytes: Option<u64>) -> anyhow::Result<()> {
        match self {
            Self::Groups(ours) => {
                let group = ours.join(format!("node-{node}"));
                fs::create_dir_all(&group)?;
                let write = |file: &str, text: String| {
                    fs::write(group.join(file), text)
                        .with_context(|| format!("cannot write {}", group.join(file).display()))
                };
                let limit = mebibytes.map_or("-1".to_owned(), |mebibytes| (mebibytes * MEBIBYTE).to_string());
                write("memory.limit_in_bytes", limit)?;
                write("cgroup.procs", pid.to_string())
            }
            Self::Mappings => {
                let limit = match mebibytes {
                    Some(mebibytes) => (mapped_bytes(pid)? + mebibytes * MEBIBYTE).to_string(),
                    None => "unlimited".to_owned(),
                };
                let mut prlimit = Command::new("prlimit");
                let output = prlimit.arg("--pid").arg(pid.to_string()).arg(format!("--as={limit}:")).output()?;
                ensure!(output.status.success(), "prlimit: {}", String::from_utf8_lossy(&output.stderr).trim());
                Ok(())
            }
        }
    }
}

impl Drop for Limiter {
    fn drop(&mut self) {
        if let Self::Groups(ours) = self {
            // The processes are gone, so nothing holds a group. What is left behind costs nothing.
            for group in fs::read_dir(&*ours).into_iter().flatten().flatten() {
                let _ = fs::remove_dir(group.path());
            }
            let _ = fs::remove_dir(ours);
        }
    }
}

fn mapped_bytes(pid: u32) -> anyhow::Result<u64> {
    const PAGE_BYTES: u64 = 4096;
    let pages = fs::read_to_string(format!("/proc/{pid}/statm"))?;
    let first = pages.split(' ').next().context("statm has numbers")?;
    Ok(first.parse::<u64>()? * PAGE_BYTES)
}

#[cfg(test)]
mod tests {
    use std::io::{BufRead, BufReader, Write};
    use std::process::{Child, Stdio};

    use super::*;

    /// Takes as many mebibytes as it is told, a line at a time, and says whether it got them.
    const HUNGRY: &str = "import sys\nkept = []\nprint('up', flush=True)\n\
        for line in sys.stdin:\n    try:\n        kept.append(bytearray(int(line) << 20))\n        print('had', flush=True)\n    \
        except MemoryError:\n        print('refused', flush=True)";

    fn hungry() -> Child {
        let mut python = Command::new("python3");
        python.arg("-c").arg(HUNGRY).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap()
    }

    fn eats(limiter: &Limiter, limits: &[(Option<u64>, u64)]) -> Vec<Option<String>> {
        let mut child = hungry();
        let mut asked = child.stdin.take().unwrap();
        let mut told = BufReader::new(child.stdout.take().unwrap()).lines();
        assert_eq!(told.next().unwrap().unwrap(), "up");
        let mut answers = Vec::new();
        for (limit, mebibytes) in limits {
            limiter.limit(1, child.id(), *limit).unwrap();
            // Whoever was killed for it hears nothing.
            let _ = writeln!(asked, "{mebibytes}");
            answers.push(told.next().map(Result::unwrap));
        }
        drop(asked);
        child.wait().unwrap();
        answers
    }

    #[test]
    fn more_than_the_limit_is_refused_by_mappings() {
        let answers = eats(&Limiter::Mappings, &[(Some(64), 16), (Some(64), 200), (None, 200)]);
        assert_eq!(answers, ["had", "refused", "had"].map(|answer| Some(answer.to_owned())));
    }

    #[test]
    fn more_than_the_limit_ends_a_process_in_a_control_group() {
        match Limiter::find() {
            Ok(limiter @ Limiter::Groups(_)) => {
                let had = Some("had".to_owned());
                assert_eq!(eats(&limiter, &[(Some(64), 16), (None, 100)]), [had.clone(), had.clone()]);
                assert_eq!(eats(&limiter, &[(Some(64), 16), (Some(64), 200)]), [had, None]);
            }
            other => eprintln!("skipped: {other:?}"),
        }
    }
}
