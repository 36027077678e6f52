//! What the metadata logs hold after a run: each node ends at once, and tells what its disk has.

use std::fs;

use anyhow::Context;
use serde_json::Value;

use crate::checker::Report;
use crate::checker::metadata_logs::{self, Entry};
use crate::db::Db;

/// What a voter must never forget.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Memory {
    /// Of its vote.
    pub term: u64,
    /// The index of the last entry.
    pub last: u64,
}

impl Memory {
    /// Of a node that is down. None where its files are refused.
    pub fn of(db: &Db, node: i32) -> anyhow::Result<Option<Self>> {
        let (vote, log) = (db.inspect(node, "vote")?, db.inspect(node, "log")?);
        if !vote.status.success() || !log.status.success() {
            return Ok(None);
        }
        let vote: Value = serde_json::from_slice(&vote.stdout).context("a vote is no object")?;
        let last = String::from_utf8_lossy(&log.stdout).lines().last().map(Entry::parse).transpose()?;
        let term = vote["vote"]["term"].as_u64().unwrap_or(0);
        Ok(Some(Self { term, last: last.map_or(0, |entry| entry.index) }))
    }

    pub fn lacks(self, earlier: Self) -> bool {
        self.term < earlier.term || self.last < earlier.last
    }
}

/// Ends all nodes, leaves `dump.jsonl` in the folder of each, and compares them.
pub fn take(db: &mut Db) -> anyhow::Result<Report> {
    // Together, so that none writes down what the others have done last.
    for id in db.ids() {
        db.pause(id)?;
    }
    for id in db.ids() {
        db.kill(id)?;
    }
    let mut unreadable = Vec::new();
    let mut logs = Vec::new();
    for id in db.ids() {
        let dump = db.inspect(id, "log")?;
        fs::write(db.folder(id).join("dump.jsonl"), &dump.stdout)?;
        if dump.status.success() {
            let entries = String::from_utf8_lossy(&dump.stdout).lines().map(Entry::parse).collect::<Result<_, _>>()?;
            logs.push((id, entries));
        } else {
            unreadable.push(format!("node {id}: {}", String::from_utf8_lossy(&dump.stderr).trim()));
        }
    }
    let mut report = metadata_logs::check(&logs);
    unreadable.into_iter().for_each(|message| report.object("readable", message, &[]));
    Ok(report)
}
