//! What the metadata logs hold after a run: each node ends at once, and tells what its disk has.

use std::fs;

use crate::checker::Report;
use crate::checker::metadata_logs::{self, Entry};
use crate::db::Db;

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
        let dump = db.inspect(id)?;
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
