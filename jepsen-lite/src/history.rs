//! What was asked of the cluster, when, and what came of it: one operation a line of `history.jsonl`.
//!
//! An operation that was neither answered nor refused for certain is `info`: it may take effect at any time after it
//! was invoked, also long after its client has given up. Its end is therefore no bound for any checker.

use std::fs::{self, File};
use std::io::{self, BufWriter, Write};
use std::path::Path;

use rayon::prelude::*;
use serde::{Deserialize, Serialize};

use crate::op::Op;
use crate::workload::WorkloadName;

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Outcome {
    /// Answered.
    Ok,
    /// Refused: it certainly changed nothing, and never will.
    Fail,
    /// Unknown.
    Info,
}

/// An operation, with times in microseconds since the run began.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Operation {
    pub workload: WorkloadName,
    /// Who asked: one operation at a time.
    pub process: u32,
    pub invoked_us: u64,
    /// When the answer came; of `info`, when it was given up.
    pub ended_us: u64,
    pub outcome: Outcome,
    /// The name of the refusal, or why the outcome is open.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
    pub op: Op,
}

impl Operation {
    pub fn is_ok(&self) -> bool {
        self.outcome == Outcome::Ok
    }

    /// When it had certainly taken effect, if it ever does.
    pub fn settled_us(&self) -> u64 {
        if self.is_ok() { self.ended_us } else { u64::MAX }
    }
}

#[derive(Debug, thiserror::Error)]
pub enum HistoryError {
    #[error("cannot read the history")]
    Io(#[from] io::Error),
    #[error("line {line} of the history is not an operation")]
    Malformed { line: usize, source: serde_json::Error },
    #[error("line {line} of the history ends before it begins")]
    Backwards { line: usize },
}

pub fn read(path: &Path) -> Result<Vec<Operation>, HistoryError> {
    parse(&fs::read(path)?)
}

pub fn parse(text: &[u8]) -> Result<Vec<Operation>, HistoryError> {
    let mut lines: Vec<&[u8]> = text.split(|byte| *byte == b'\n').collect();
    // What follows the end of the last line is no line.
    lines.pop_if(|rest| rest.is_empty());
    let operations: Vec<_> = lines.par_iter().enumerate().map(|(at, text)| parse_line(at + 1, text)).collect();
    // One after the other, so that the first mistake is the one that is told.
    operations.into_iter().collect()
}

fn parse_line(line: usize, text: &[u8]) -> Result<Operation, HistoryError> {
    let operation: Operation =
        serde_json::from_slice(text).map_err(|source| HistoryError::Malformed { line, source })?;
    if operation.ended_us < operation.invoked_us {
        return Err(HistoryError::Backwards { line });
    }
    Ok(operation)
}

pub fn write(path: &Path, operations: &[Operation]) -> io::Result<()> {
    let mut file = BufWriter::with_capacity(1 << 20, File::create(path)?);
    for operation in operations {
        serde_json::to_writer(&mut file, operation)?;
        file.write_all(b"\n")?;
    }
    file.flush()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read_of(text: &str) -> Result<Vec<Operation>, HistoryError> {
        parse(text.as_bytes())
    }

    const READ: &str = r#"{"workload":"meta-register","process":1,"invoked_us":5,"ended_us":9,"outcome":"ok","op":{"read":{"key":0,"value":7,"offset":12}}}"#;

    #[test]
    fn a_history_survives_being_written_and_read() {
        let operations = read_of(READ).unwrap();
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("history.jsonl");
        write(&path, &operations).unwrap();
        assert_eq!(read(&path).unwrap(), operations);
    }

    #[test]
    fn a_line_that_is_no_operation_is_named() {
        let cut = format!("{READ}\n{}", &READ[..40]);
        assert!(matches!(read_of(&cut), Err(HistoryError::Malformed { line: 2, .. })));
        let twice = format!("{READ}\n\n{}\n", &READ[..40]);
        assert!(matches!(read_of(&twice), Err(HistoryError::Malformed { line: 2, .. })), "the first of two");
        let unknown = READ.replace("\"process\"", "\"proces\"");
        assert!(matches!(read_of(&unknown), Err(HistoryError::Malformed { line: 1, .. })));
        let backwards = READ.replace("\"ended_us\":9", "\"ended_us\":4");
        assert!(matches!(read_of(&backwards), Err(HistoryError::Backwards { line: 1 })));
    }
}
