//! What a run leaves to look at: one page that needs nothing else.

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use anyhow::Context;
use serde_json::json;

use crate::history::Operation;
use crate::run::Results;

const PAGE: &str = include_str!("timeline.html");
const PLACE: &str = "/*DATA*/";

/// Beyond it a browser has trouble; the rest is in `history.jsonl`.
const OPERATIONS_MAX: usize = 200_000;

/// Writes the page of a run.
pub fn write(file: &Path, results: &Results, history: &[Operation]) -> anyhow::Result<()> {
    let shown = &history[..history.len().min(OPERATIONS_MAX)];
    let data = serde_json::to_string(&json!({ "results": results, "history": shown }))?;
    // Inside a script element only this could end it.
    let page = PAGE.replacen(PLACE, &data.replace('<', "\\u003c"), 1);
    fs::write(file, page).with_context(|| format!("cannot write {}", file.display()))
}

/// Writes a script that does the run again; arguments, such as another `--out`, are added to what was asked for.
pub fn write_script(file: &Path, again: &str) -> anyhow::Result<()> {
    let script = format!("#!/bin/sh\n# The same run once more. `jepsen-lite` is looked for in PATH.\n{again} \"$@\"\n");
    fs::write(file, script).with_context(|| format!("cannot write {}", file.display()))?;
    Ok(fs::set_permissions(file, Permissions::from_mode(0o755))?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::checker::{Report, Verdict};

    #[test]
    fn what_the_history_says_cannot_end_the_script() {
        assert_eq!(PAGE.matches(PLACE).count(), 1);
        let again = "</script><b>".to_owned();
        let (fired, skipped, reports) = (Vec::new(), Vec::new(), vec![Report::new("log")]);
        let results = Results { verdict: Verdict::Valid, reports, fired, skipped, operations: 0, again };
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("timeline.html");
        write(&file, &results, &[]).unwrap();
        let page = fs::read_to_string(file).unwrap();
        assert!(page.contains("\\u003c/script>\\u003cb>") && !page.contains(PLACE));
    }
}
