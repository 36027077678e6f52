//! What nodes do with disks that are not as they left them.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::ExitStatus;
use std::time::Duration;

use anyhow::Context;
use tokio::net::TcpStream;
use tokio::time::{Instant, sleep};

use super::Conductor;
use crate::disk::Mode;
use crate::disk::damage::{Harm, Kept, Part, inflict, tear};
use crate::dumps::Memory;
use crate::nemesis::Fault;
use crate::random::Random;

/// Under load every node syncs something within that.
const SYNC_SURELY: Duration = Duration::from_millis(900);

/// Within that a node has read its log.
const START_SURELY: Duration = Duration::from_secs(3);

/// Within that a node answers, however much it has to recover.
pub(super) const RECOVER_SURELY: Duration = Duration::from_secs(15);

/// Between two looks.
pub(super) const LOOK_AGAIN: Duration = Duration::from_millis(20);

/// Until what a full disk has done is seen, or something was written.
const AFTERMATH: Duration = Duration::from_millis(500);

/// Places at which the last write of a node is cut, one after the other.
const TEARS: usize = 3;

impl Conductor<'_> {
    /// Starts a node that is down on a disk that was changed; then it is down again, and the disk as it was. What came
    /// of it; nothing where it could not be done.
    pub(super) async fn try_out(&mut self, node: i32, fault: &Fault) -> anyhow::Result<Option<String>> {
        let from = Instant::now();
        let outcome = match fault {
            Fault::Damage { part, harm, seed, .. } => self.try_damaged(node, *part, *harm, *seed).await?,
            Fault::TearWrite { seed, .. } => self.try_torn(node, *seed).await?,
            Fault::Wipe { lost, unrecorded, .. } => self.try_wiped(node, *lost, *unrecorded).await?,
            Fault::SwapDisk { disk, .. } => self.try_foreign(node, *disk).await?,
            other => unreachable!("{other:?} changes no files"),
        };
        self.late += from.elapsed();
        Ok(outcome)
    }

    /// A node that reads the damage must notice, and end. One that does not read it yet may run, as long as it has
    /// forgotten nothing. No other node hears it meanwhile, since all that it did is undone.
    async fn try_damaged(&mut self, node: i32, part: Part, harm: Harm, seed: u64) -> anyhow::Result<Option<String>> {
        let Some((part, file)) = self.find(node, part).await? else {
            self.skipped.push(format!("damage to node {node}: it has no {part:?} that is long enough yet"));
            return Ok(None);
        };
        let memory = Memory::of(self.db, node)?.with_context(|| format!("node {node} cannot be read, and is sound"))?;
        let kept = Kept::swap(&self.db.data(node))?;
        let place = inflict(part, harm, &file, seed)?;
        let name = file.file_name().context("a file has a name")?.to_string_lossy();
        let what = format!("{node} {name} {harm:?} at {place}");
        self.db.start(node, self.recorder.last_offset())?;
        let refused = self.ends_within(node, START_SURELY).await?;
        self.db.kill(node)?;
        let outcome = if refused { "refused" } else { self.ran_with(node, part, &what, memory)? };
        kept.put_back()?;
        Ok(Some(format!("{what}: {outcome}")))
    }

    /// What there is to say of a node that ran on damaged files, and is down again.
    fn ran_with(&mut self, node: i32, part: Part, what: &str, memory: Memory) -> anyhow::Result<&'static str> {
        if part.counts_wholly() {
            self.report.object("refuses-damage", format!("node {node} runs with {what}"), &[]);
        }
        let Some(now) = Memory::of(self.db, node)? else { return Ok("refused by the next who read it") };
        if now.lacks(memory) {
            let message = format!("node {node} runs with {what}, and of {memory:?} has {now:?}");
            self.report.object("forgets-nothing", message, &[]);
        }
        Ok("not noticed yet")
    }

    /// The file to hit. Who has no snapshot yet has tables: a node makes them of its log of writes when it starts.
    async fn find(&mut self, node: i32, part: Part) -> anyhow::Result<Option<(Part, PathBuf)>> {
        let data = self.db.data(node);
        if let Some(file) = part.find(&data)? {
            return Ok(Some((part, file)));
        }
        if !matches!(part, Part::Snapshot | Part::Table) {
            return Ok(None);
        }
        let mut table = Part::Table.find(&data)?;
        if table.is_none() {
            self.start_once(node).await?;
            table = Part::Table.find(&data)?;
        }
        Ok(table.map(|file| (Part::Table, file)))
    }

    /// Lets a node that is down read what it has.
    async fn start_once(&mut self, node: i32) -> anyhow::Result<()> {
        self.db.start(node, self.recorder.last_offset())?;
        let ended = self.ends_within(node, AFTERMATH).await?;
        anyhow::ensure!(!ended, "node {node} does not start, and nothing is wrong with it");
        self.db.kill(node)?;
        Ok(())
    }

    /// A node whose last write was cut must come up by itself, wherever it was cut.
    async fn try_torn(&mut self, node: i32, seed: u64) -> anyhow::Result<Option<String>> {
        let mut random = Random::new(seed);
        let mut torn = Vec::new();
        for _ in 0..TEARS {
            let folder = self.db.data(node).join("raft");
            let Some(write_log) = newest_write_log(&folder)? else {
                anyhow::bail!("node {node} has no log of writes in {}", folder.display());
            };
            let bytes = tear(&write_log, random.draw())?;
            torn.push(bytes.to_string());
            self.db.start(node, self.recorder.last_offset())?;
            if let Err(why) = self.recovers(node, &folder, &write_log).await? {
                let message = format!("node {node} does not recover from a write cut after {bytes} bytes: {why}");
                self.report.object("recovers-from-torn-write", message, &[]);
                break;
            }
            // It writes something that can be cut again.
            sleep(AFTERMATH).await;
            self.db.kill(node)?;
        }
        self.db.kill(node)?;
        Ok(Some(format!("{node} cut after {} bytes", torn.join(", "))))
    }

    async fn ends_within(&mut self, node: i32, patience: Duration) -> anyhow::Result<bool> {
        Ok(self.ending_within(node, patience).await?.is_some())
    }

    /// How it ended, and the last lines of its log.
    pub(super) async fn ending_within(
        &mut self,
        node: i32,
        patience: Duration,
    ) -> anyhow::Result<Option<(ExitStatus, String)>> {
        let from = Instant::now();
        while from.elapsed() < patience {
            if let Some((_, status, log)) = self.db.ended()?.into_iter().find(|(id, ..)| *id == node) {
                return Ok(Some((status, log)));
            }
            sleep(LOOK_AGAIN).await;
        }
        Ok(None)
    }

    /// The error says why not. Its port is open before it has read the log, and after that it begins another one: what is
    /// torn again before then would be torn in the middle.
    async fn recovers(&mut self, node: i32, folder: &Path, torn: &Path) -> anyhow::Result<Result<(), String>> {
        let from = Instant::now();
        while from.elapsed() < RECOVER_SURELY {
            if let Some((_, status, log)) = self.db.ended()?.into_iter().find(|(id, ..)| *id == node) {
                return Ok(Err(format!("it has ended ({status}):\n{log}")));
            }
            let has_read_it = newest_write_log(folder)?.is_some_and(|newest| newest != torn);
            if has_read_it && TcpStream::connect(self.db.api(node)).await.is_ok() {
                return Ok(Ok(()));
            }
            sleep(LOOK_AGAIN).await;
        }
        Ok(Err(format!("it does not answer after {RECOVER_SURELY:?}")))
    }

    /// A disk whose fsync covered nothing shows it when the power is gone.
    pub(super) async fn mend_disks(
        &mut self,
        nodes: &BTreeSet<i32>,
        mode: Mode,
        lasted: Duration,
    ) -> anyhow::Result<()> {
        if mode == Mode::SyncFails && lasted > SYNC_SURELY {
            for node in nodes {
                // One that stood still for a part of that time is ending now.
                if !self.db.is_down(*node) && !self.ends_within(*node, RECOVER_SURELY).await? {
                    let message = format!("node {node} went on for {lasted:?} and more after its disk had failed");
                    self.report.object("stops-when-fsync-fails", message, &[]);
                }
            }
        }
        if mode == Mode::Hangs && lasted > super::hang::OTHERS_LEAD_SURELY {
            self.others_lead(nodes).await;
        }
        if matches!(mode, Mode::SyncFails | Mode::SyncLies) {
            nodes.iter().try_for_each(|node| self.db.kill(*node))?;
            nodes.iter().try_for_each(|node| self.db.cut_power(*node).map(drop))?;
        }
        nodes.iter().try_for_each(|node| self.db.break_disk(*node, Mode::Sound))?;
        if mode == Mode::Full {
            // Whoever cannot go on without room has met that by now.
            sleep(AFTERMATH).await;
            self.db.ended()?;
        }
        Ok(())
    }
}

fn newest_write_log(database: &Path) -> anyhow::Result<Option<PathBuf>> {
    let mut logs = Vec::new();
    for entry in fs::read_dir(database)? {
        let file = entry?.path();
        if file.extension().is_some_and(|extension| extension == "log") {
            logs.push(file);
        }
    }
    Ok(logs.into_iter().max())
}
