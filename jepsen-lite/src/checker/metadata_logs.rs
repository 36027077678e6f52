//! The metadata logs of stopped nodes: what two of them share is the same.
//!
//! An entry with the same index and term has the same content everywhere, committed or not. Up to where a majority has
//! the same entry, which is committed when a cluster has been whole, nobody has another one. Logs begin where their
//! node's snapshot ends, so only what several nodes still have is compared.

use std::collections::BTreeMap;

use anyhow::Context;
use serde_json::Value;

use super::Report;

pub const NAME: &str = "metadata-logs";

/// A line of a dump.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    pub index: u64,
    pub term: u64,
    pub content: String,
}

impl Entry {
    pub fn parse(line: &str) -> anyhow::Result<Self> {
        let value: Value = serde_json::from_str(line).context("a line of a dump is no object")?;
        let number =
            |name: &str| value[name].as_u64().with_context(|| format!("a line of a dump has no {name}: {line}"));
        Ok(Self { index: number("index")?, term: number("term")?, content: line.to_owned() })
    }
}

/// By index and term: the content, and who has it.
type Holders<'a> = BTreeMap<(u64, u64), Vec<(i32, &'a str)>>;

pub fn check(logs: &[(i32, Vec<Entry>)]) -> Report {
    let mut report = Report::new(NAME);
    let mut holders = Holders::new();
    for (node, entries) in logs {
        report.count("entries", entries.len());
        for pair in entries.windows(2).filter(|pair| pair[1].index != pair[0].index + 1) {
            let message = format!("node {node} has nothing between {} and {}", pair[0].index, pair[1].index);
            report.object("no-hole", message, &[]);
        }
        for entry in entries {
            holders.entry((entry.index, entry.term)).or_default().push((*node, &entry.content));
        }
    }
    same_content(&holders, &mut report);
    one_entry(&holders, logs.len(), &mut report);
    report
}

fn same_content(holders: &Holders<'_>, report: &mut Report) {
    for ((index, term), contents) in holders {
        let (first, expected) = contents[0];
        if contents.len() > 1 {
            report.count("entries that several have", 1);
        }
        for (node, _) in contents.iter().filter(|(_, content)| *content != expected) {
            let message = format!("entry {index} of term {term} is not the same on nodes {first} and {node}");
            report.object("same-content", message, &[]);
        }
    }
}

fn one_entry(holders: &Holders<'_>, nodes: usize, report: &mut Report) {
    let is_agreed = |of: &[(i32, &str)]| of.len() > nodes / 2;
    let agreed = holders.iter().filter(|(_, of)| is_agreed(of)).map(|((index, _), _)| *index).max();
    let Some(agreed) = agreed else {
        return report.doubt("nothing-shared", "no entry is there on a majority of nodes".to_owned());
    };
    let mut terms: BTreeMap<u64, Vec<(u64, i32)>> = BTreeMap::new();
    for ((index, term), of) in holders.range(..=(agreed, u64::MAX)) {
        terms.entry(*index).or_default().push((*term, of[0].0));
    }
    for (index, terms) in terms.iter().filter(|(_, terms)| terms.len() > 1) {
        let said: Vec<String> = terms.iter().map(|(term, node)| format!("term {term} on node {node}")).collect();
        report.object("one-entry-per-index", format!("entry {index} is of {}", said.join(", of ")), &[]);
    }
}

#[cfg(test)]
mod tests {
    use super::super::Verdict;
    use super::*;

    fn log(node: i32, entries: &[(u64, u64, &str)]) -> (i32, Vec<Entry>) {
        let entry = |(index, term, content): &(u64, u64, &str)| {
            let content = (*content).to_owned();
            Entry { index: *index, term: *term, content }
        };
        (node, entries.iter().map(entry).collect())
    }

    const AGREED: [(u64, u64, &str); 3] = [(1, 1, "a"), (2, 1, "b"), (3, 2, "c")];

    #[test]
    fn logs_that_begin_and_end_elsewhere_agree() {
        let logs = [log(1, &AGREED), log(2, &AGREED[1..]), log(3, &[&AGREED[..], &[(4, 2, "d")]].concat())];
        let report = check(&logs);
        assert_eq!((report.verdict, report.findings), (Verdict::Valid, vec![]));
    }

    #[test]
    fn another_content_is_found() {
        let logs = [log(1, &AGREED), log(2, &AGREED), log(3, &[(1, 1, "a"), (2, 1, "x"), (3, 2, "c")])];
        assert!(check(&logs).has("same-content"));
    }

    #[test]
    fn another_entry_below_what_is_agreed_is_found_and_one_behind_it_may_be() {
        let stale = [(1, 1, "a"), (2, 1, "b"), (3, 1, "x")];
        assert!(check(&[log(1, &AGREED), log(2, &AGREED), log(3, &stale)]).has("one-entry-per-index"));
        let ahead = [&AGREED[..], &[(4, 2, "y")]].concat();
        let beside = [&AGREED[..], &[(4, 3, "z")]].concat();
        assert_eq!(check(&[log(1, &AGREED), log(2, &ahead), log(3, &beside)]).verdict, Verdict::Valid);
    }

    #[test]
    fn a_hole_is_found_and_nothing_in_common_shows_nothing() {
        let hole = [AGREED[0], AGREED[2]];
        assert!(check(&[log(1, &AGREED), log(2, &hole), log(3, &AGREED)]).has("no-hole"));
        assert_eq!(check(&[log(1, &AGREED[..1]), log(2, &AGREED[1..2]), log(3, &[])]).verdict, Verdict::Unknown);
    }

    #[test]
    fn a_line_of_a_dump_is_an_entry_or_named() {
        let line = r#"{"index":7,"term":2,"kind":"blank"}"#;
        assert_eq!(Entry::parse(line).unwrap(), Entry { index: 7, term: 2, content: line.to_owned() });
        assert!(Entry::parse(r#"{"index":7}"#).is_err());
    }
}
