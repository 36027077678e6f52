//! How much memory a node may have: a control group for each, of whichever version the machine has.

use std::fs;
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};

use anyhow::Context;

const MEBIBYTE: u64 = 1 << 20;

/// Where control groups are mounted.
const MOUNTED: &str = "/sys/fs/cgroup";

/// The two versions of control groups name things differently.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Version {
    First,
    Second,
}

impl Version {
    /// Where groups for memory are made.
    fn root(self) -> PathBuf {
        match self {
            Self::First => Path::new(MOUNTED).join("memory"),
            Self::Second => PathBuf::from(MOUNTED),
        }
    }

    fn limit_file(self) -> &'static str {
        match self {
            Self::First => "memory.limit_in_bytes",
            Self::Second => "memory.max",
        }
    }

    fn unlimited(self) -> &'static str {
        match self {
            Self::First => "-1",
            Self::Second => "max",
        }
    }

    /// Has a line `oom_kill` with the number of processes that were killed for memory.
    fn events_file(self) -> &'static str {
        match self {
            Self::First => "memory.oom_control",
            Self::Second => "memory.events",
        }
    }
}

/// A group for each node in one that is ours. What is cached of files counts, and is given back.
#[derive(Debug)]
pub struct Limiter {
    version: Version,
    ours: PathBuf,
}

impl Limiter {
    /// The error is a reason to leave out what needs it.
    pub fn find() -> Result<Self, String> {
        let name = format!("jepsen-lite-{}", std::process::id());
        let mut reasons = Vec::new();
        for version in [Version::Second, Version::First] {
            match make(version, &name) {
                Ok(ours) => return Ok(Self { version, ours }),
                Err(error) => reasons.push(format!("{}: {error}", version.root().display())),
            }
        }
        Err(format!("no control group for memory can be made here ({})", reasons.join("; ")))
    }

    /// Puts a process that has just been started into the group of its node.
    pub fn enter(&self, node: i32, pid: u32) -> anyhow::Result<()> {
        self.write(node, "cgroup.procs", &pid.to_string())
    }

    /// From now on; without a number, there is no limit any more.
    pub fn limit(&self, node: i32, mebibytes: Option<u64>) -> anyhow::Result<()> {
        let unlimited = self.version.unlimited();
        let limit = mebibytes.map_or(unlimited.to_owned(), |mebibytes| (mebibytes * MEBIBYTE).to_string());
        self.write(node, self.version.limit_file(), &limit)
    }

    /// How many processes of this node were killed because there was no memory left.
    pub fn kills(&self, node: i32) -> anyhow::Result<u64> {
        let file = self.group(node)?.join(self.version.events_file());
        let text = fs::read_to_string(&file).with_context(|| format!("cannot read {}", file.display()))?;
        kills_in(&text).with_context(|| format!("{} has no line oom_kill", file.display()))
    }

    fn group(&self, node: i32) -> anyhow::Result<PathBuf> {
        let group = self.ours.join(format!("node-{node}"));
        fs::create_dir_all(&group).with_context(|| format!("cannot make {}", group.display()))?;
        Ok(group)
    }

    fn write(&self, node: i32, file: &str, text: &str) -> anyhow::Result<()> {
        let file = self.group(node)?.join(file);
        fs::write(&file, text).with_context(|| format!("cannot write {text} to {}", file.display()))
    }
}

/// Makes our group, in which groups for nodes can be made.
fn make(version: Version, name: &str) -> io::Result<PathBuf> {
    let root = version.root();
    if version == Version::Second {
        delegate_memory(&root)?;
    }
    let ours = root.join(name);
    match fs::create_dir(&ours) {
        // Of a run before in this process.
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
        Ok(()) | Err(_) => {}
    }
    if version == Version::Second {
        delegate_memory(&ours)?;
    }
    // Where no memory controller is mounted, this is a plain folder.
    if ours.join(version.limit_file()).exists() {
        return Ok(ours);
    }
    fs::remove_dir(&ours)?;
    Err(io::Error::other("there is no memory controller"))
}

/// Lets the groups in this one limit their memory.
fn delegate_memory(group: &Path) -> io::Result<()> {
    // In a folder that is no control group, writing would make a file.
    let mut control = fs::File::options().write(true).open(group.join("cgroup.subtree_control"))?;
    control.write_all(b"+memory")
}

fn kills_in(events: &str) -> Option<u64> {
    let of_kills = |line: &str| line.strip_prefix("oom_kill ").map(str::to_owned);
    events.lines().find_map(of_kills)?.trim().parse().ok()
}

impl Drop for Limiter {
    fn drop(&mut self) {
        // The processes are gone, so nothing holds a group. What is left behind costs nothing.
        for group in fs::read_dir(&self.ours).into_iter().flatten().flatten() {
            let _ = fs::remove_dir(group.path());
        }
        let _ = fs::remove_dir(&self.ours);
    }
}

#[cfg(test)]
mod tests {
    use std::io::{BufRead, BufReader};
    use std::process::{Child, Command, Stdio};

    use super::*;

    /// Takes as many mebibytes as it is told, a line at a time, and says whether it got them.
    const HUNGRY: &str = "import sys\nkept = []\nprint('up', flush=True)\n\
        for line in sys.stdin:\n    try:\n        kept.append(bytearray(int(line) << 20))\n        print('had', flush=True)\n    \
        except MemoryError:\n        print('refused', flush=True)";

    fn hungry() -> Child {
        let mut python = Command::new("python3");
        python.arg("-c").arg(HUNGRY).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap()
    }

    fn eats(limiter: &Limiter, node: i32, limits: &[(Option<u64>, u64)]) -> Vec<Option<String>> {
        let mut child = hungry();
        let mut asked = child.stdin.take().unwrap();
        let mut told = BufReader::new(child.stdout.take().unwrap()).lines();
        assert_eq!(told.next().unwrap().unwrap(), "up");
        limiter.enter(node, child.id()).unwrap();
        let mut answers = Vec::new();
        for (limit, mebibytes) in limits {
            limiter.limit(node, *limit).unwrap();
            // Whoever was killed for it hears nothing.
            let _ = writeln!(asked, "{mebibytes}");
            answers.push(told.next().map(Result::unwrap));
        }
        drop(asked);
        child.wait().unwrap();
        answers
    }

    #[test]
    fn more_than_the_limit_ends_a_process_and_is_counted() {
        match Limiter::find() {
            Ok(limiter) => {
                let had = Some("had".to_owned());
                assert_eq!(eats(&limiter, 1, &[(Some(64), 16), (None, 100)]), [had.clone(), had.clone()]);
                assert_eq!(limiter.kills(1).unwrap(), 0);
                assert_eq!(eats(&limiter, 2, &[(Some(64), 16), (Some(64), 200)]), [had, None]);
                assert_eq!((limiter.kills(1).unwrap(), limiter.kills(2).unwrap()), (0, 1));
            }
            Err(why) => eprintln!("skipped: {why}"),
        }
    }

    #[test]
    fn kills_are_read_in_both_versions() {
        assert_eq!(kills_in("oom_kill_disable 0\nunder_oom 0\noom_kill 3\n"), Some(3));
        assert_eq!(kills_in("low 0\nhigh 0\nmax 12\noom 2\noom_kill 1\noom_group_kill 0\n"), Some(1));
        assert_eq!(kills_in("oom_kill_disable 0\nunder_oom 0\n"), None, "a kernel that does not count them");
    }
}
