//! What a data directory holds, a JSON object a line: for people, and for checkers of what was promised.

use std::fmt::Display;
use std::io::{self, Write};
use std::path::Path;

use quorate_metadata::{Batch, Record};
use quorate_proto::{batch, snapshot};
use serde_json::{Value, json};

use crate::raft::{DumpedEntry, EntryKind, RaftError, dump_log, dump_snapshot, dump_vote};

#[derive(Debug, thiserror::Error)]
pub enum InspectError {
    #[error(transparent)]
    Raft(#[from] RaftError),
    #[error("cannot write: {0}")]
    Write(#[from] io::Error),
    #[error("{what}: {reason}")]
    Content { what: String, reason: String },
}

/// Every entry from the first that is kept.
pub fn log(data: &Path, mut out: impl Write) -> Result<(), InspectError> {
    for entry in dump_log(data)? {
        writeln!(out, "{}", line(&entry?)?)?;
    }
    Ok(())
}

/// The newest snapshot: a line about it, then the records it holds.
pub fn snapshot(data: &Path, mut out: impl Write) -> Result<(), InspectError> {
    let Some(mut found) = dump_snapshot(data)? else {
        return Ok(writeln!(out, "{}", json!({ "snapshot": null }))?);
    };
    let ledger = snapshot::read(&mut found.content).map_err(content(&found.name))?;
    let image = ledger.visible();
    let about = json!({
        "snapshot": found.name,
        "index": found.index,
        "term": found.term,
        "next_offset": image.next_offset.get(),
        "controller_epoch": image.controller_epoch.get(),
        "time_ms": image.timestamp_ms,
        "digest": format!("{:032x}", image.digest()),
        "open_transaction": ledger.has_open_transaction(),
    });
    writeln!(out, "{about}")?;
    for item in image.to_records() {
        writeln!(out, "{}", record(&item))?;
    }
    Ok(())
}

pub fn vote(data: &Path, mut out: impl Write) -> Result<(), InspectError> {
    let found = dump_vote(data)?.map(|vote| {
        json!({
            "term": vote.term,
            "voted_for": vote.voted_for.get(),
            "leads": vote.leads,
            "committed": vote.committed,
        })
    });
    Ok(writeln!(out, "{}", json!({ "vote": found }))?)
}

fn line(entry: &DumpedEntry) -> Result<Value, InspectError> {
    let about = |kind: &str| json!({ "index": entry.index, "term": entry.term, "kind": kind });
    Ok(match &entry.kind {
        EntryKind::Blank => about("blank"),
        EntryKind::Membership(voters) => {
            let mut line = about("membership");
            line["voters"] = voters.iter().map(|voter| voter.get()).collect();
            line
        }
        EntryKind::Normal => {
            let (base, batch) = batch::decode(&entry.payload).map_err(content(&format!("entry {}", entry.index)))?;
            let mut line = about("records");
            line["base_offset"] = base.get().into();
            line["controller_epoch"] = batch.controller_epoch.get().into();
            line["time_ms"] = batch.timestamp_ms.into();
            line["records"] = records(&batch);
            line
        }
    })
}

fn records(batch: &Batch) -> Value {
    batch.records.iter().map(record).collect()
}

fn record(record: &Record) -> Value {
    json!({ "type": record.kind(), "record": format!("{record:?}") })
}

fn content<E: Display>(what: &str) -> impl FnOnce(E) -> InspectError {
    let what = what.to_owned();
    move |reason| InspectError::Content { what, reason: reason.to_string() }
}
