//! Disks that a node must refuse: its own without a part, and those of another cluster.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::ExitStatus;

use anyhow::Context;
use quorate_client::world;
use quorate_metadata::ids::ClusterId;

use super::Conductor;
use super::trials::RECOVER_SURELY;
use crate::checker::metadata_logs::Entry;
use crate::disk::foreign::{Foreign, Swapped};
use crate::disk::wipe::{self, Lost, Tree, Wiped};
use crate::stranger::Stranger;

/// Starts on a wiped disk: that a node was refused once must not make the disk acceptable.
const STARTS: usize = 2;

/// How Rust ends a process that panics.
const PANICKED: i32 = 101;

/// How `quorate-node` begins what it says when it cannot go on.
const ERROR: &str = "error: ";

const OTHER_CLUSTER: &str = "INCONSISTENT_CLUSTER_ID";

impl Conductor<'_> {
    /// A node whose disk has lost what its name says that it had must refuse it by name, each time, and change nothing.
    /// No other node hears it meanwhile, since all that it did is undone.
    pub(super) async fn try_wiped(
        &mut self,
        node: i32,
        lost: Lost,
        unrecorded: bool,
    ) -> anyhow::Result<Option<String>> {
        let data = self.db.data(node);
        let lost = self.lost_for_good(node, lost)?;
        let wiped = Wiped::take(&data, lost)?;
        if unrecorded {
            self.forget_record(node, &data)?;
        }
        let before = Tree::without_voter(&data)?;
        let (what, words) = (format!("{node} without {}", lost.folders().join(" and ")), data.display().to_string());
        let mut refused = true;
        for _ in 0..STARTS {
            refused = self.refuses(node, &what, &words, "refuses-partial-wipe").await?;
            if !refused {
                break;
            }
            let changed = before.differs_from(&Tree::without_voter(&data)?);
            if !changed.is_empty() {
                let message = format!("node {what} refused its disk, and changed {changed:?}");
                self.report.object("refusal-changes-nothing", message, &[]);
                break;
            }
        }
        wiped.put_back()?;
        Ok(Some(outcome(&what, refused)))
    }

    /// Of a log that begins at its first entry, the state can be made again without a snapshot.
    fn lost_for_good(&self, node: i32, lost: Lost) -> anyhow::Result<Lost> {
        if lost != Lost::Snapshots {
            return Ok(lost);
        }
        let log = self.db.inspect(node, "log")?;
        anyhow::ensure!(log.status.success(), "node {node} cannot be read, and is sound");
        let first = String::from_utf8_lossy(&log.stdout).lines().next().map(Entry::parse).transpose()?;
        let is_needed = first.is_some_and(|entry| entry.index > 1);
        Ok(if is_needed { lost } else { Lost::Log })
    }

    /// Makes the name of the disk that of one that never had anything.
    fn forget_record(&self, node: i32, data: &Path) -> anyhow::Result<()> {
        let file = data.join(wipe::META);
        let own = fs::read_to_string(&file)?;
        let new = self.format_aside(node, &cluster_of(&own).context("the disk has no cluster yet")?)?;
        let text = wipe::unrecorded(&fs::read_to_string(new.join(wipe::META))?, &own);
        fs::write(&file, text.context("the name of a disk has no directory")?)?;
        Ok(fs::remove_dir_all(new)?)
    }

    /// An empty data directory of this node in a cluster. It is the caller's to remove or to move.
    fn format_aside(&self, node: i32, cluster: &str) -> anyhow::Result<PathBuf> {
        let aside = self.db.folder(node).join("formatted");
        self.db.format_at(&aside, node, cluster)?;
        Ok(aside)
    }

    /// A node on a disk of another cluster must say so by name, and leave it as it is.
    pub(super) async fn try_foreign(&mut self, node: i32, disk: Foreign) -> anyhow::Result<Option<String>> {
        match disk {
            Foreign::Data => self.try_foreign_data(node).await,
            Foreign::Logs => self.try_foreign_logs(node).await,
        }
    }

    async fn try_foreign_data(&mut self, node: i32) -> anyhow::Result<Option<String>> {
        let foreign = self.format_aside(node, &ClusterId::new(world::uuid()).to_string())?;
        let (before, place) = (Tree::of(&foreign)?, Foreign::Data.place(&self.db.data(node)));
        let name = || fs::read_to_string(foreign.join(wipe::META)).map(|meta| identity_of(&meta));
        let named = name()?;
        let swapped = Swapped::swap(place, foreign.clone(), self.db.folder(node).join("own"))?;
        let what = format!("{node} on a data directory of another cluster");
        let refused = self.refuses(node, &what, OTHER_CLUSTER, "refuses-foreign-disk").await?;
        swapped.put_back()?;
        let mut changed = before.changed_in(&Tree::of(&foreign)?);
        // A node that starts there raises the floor of the disk, before it hears that it is of another cluster.
        let keeps_name = name()? == named;
        changed.retain(|path| path != Path::new(wipe::META) || !keeps_name);
        if !changed.is_empty() {
            self.report.object("keeps-foreign-data", format!("node {what} changed {changed:?}"), &[]);
        }
        fs::remove_dir_all(foreign)?;
        Ok(Some(outcome(&what, refused)))
    }

    async fn try_foreign_logs(&mut self, node: i32) -> anyhow::Result<Option<String>> {
        let place = Foreign::Logs.place(&self.db.data(node));
        if !place.exists() {
            self.skipped.push(format!("records of another cluster for node {node}: it has no {}", place.display()));
            return Ok(None);
        }
        let stranger = match self.strangers.remove(&node) {
            Some(stranger) => stranger,
            None => {
                let folder = self.db.folder(node).join("stranger");
                Stranger::found(&self.db.binary(), self.db.shim(node), folder, node).await?
            }
        };
        let swapped = Swapped::swap(place, stranger.logs(), self.db.folder(node).join("own"))?;
        let what = format!("{node} on records of cluster {}", stranger.cluster());
        let refused = self.refuses(node, &what, OTHER_CLUSTER, "refuses-foreign-disk").await?;
        swapped.put_back()?;
        if let Err(why) = stranger.has_kept_all().await? {
            self.report.object("keeps-foreign-data", format!("node {what} was started there: {why}"), &[]);
        }
        self.strangers.insert(node, stranger);
        Ok(Some(outcome(&what, refused)))
    }

    /// Starts a node that is down. Whether it has ended by itself; that it has not breaks the rule. It is down again.
    async fn refuses(&mut self, node: i32, what: &str, words: &str, rule: &str) -> anyhow::Result<bool> {
        self.db.start(node, self.recorder.last_offset())?;
        let ending = self.ending_within(node, RECOVER_SURELY).await?;
        self.db.kill(node)?;
        let Some((status, log)) = ending else {
            self.report.object(rule, format!("node {what} runs"), &[]);
            return Ok(false);
        };
        if let Some(flaw) = flaw(status, &log, words) {
            self.report.object("refuses-by-name", format!("node {what} {flaw}:\n{log}"), &[]);
        }
        Ok(true)
    }
}

fn outcome(what: &str, refused: bool) -> String {
    format!("{what}: {}", if refused { "refused" } else { "not refused" })
}

/// What `quorate.meta` says of whose disk it is.
fn identity_of(meta: &str) -> Vec<String> {
    let is_name = |line: &&str| ["node = ", "directory = ", "cluster = "].iter().any(|name| line.starts_with(name));
    meta.lines().filter(is_name).map(str::to_owned).collect()
}

/// What `quorate.meta` says of its cluster.
fn cluster_of(meta: &str) -> Option<String> {
    let value = meta.lines().find_map(|line| line.strip_prefix("cluster = "))?;
    Some(value.trim_matches('"').to_owned())
}

/// Why that is no refusal by name, if it is none: the process fails, and says these words in its error.
fn flaw(status: ExitStatus, log: &str, words: &str) -> Option<String> {
    if status.code().is_none_or(|code| code == 0 || code == PANICKED) {
        return Some(format!("has ended with {status} instead of a refusal"));
    }
    let lines: Vec<&str> = log.lines().collect();
    let error = lines.iter().rposition(|line| line.starts_with(ERROR)).map(|at| lines[at..].join("\n"));
    match error {
        None => Some("has ended without an error".to_owned()),
        Some(error) if !error.contains(words) => Some(format!("does not name {words}")),
        Some(_) => None,
    }
}

#[cfg(test)]
mod tests;
