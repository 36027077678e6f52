//! What nodes do while something around them is not as it should be: looked at when it ends, and before it is mended.

use std::collections::BTreeSet;
use std::time::Duration;

use quorate_client::{ClientError, Freshness};
use tokio::time::{Instant, sleep};

use super::Conductor;
use super::trials::{LOOK_AGAIN, RECOVER_SURELY};
use crate::metrics;
use crate::workload::client;

/// Of one call to a node with very many connections.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(2);

const LINES_DROPPED: &str = "quorate_log_lines_dropped_total";

impl Conductor<'_> {
    /// A node whose log goes nowhere counts the lines: it has logged that it has started, at the least.
    pub(super) async fn look_at_unlogged(&mut self, nodes: &BTreeSet<i32>) {
        let from = Instant::now();
        for node in self.undisturbed(nodes) {
            let found = self.lines_dropped(node, from).await;
            if let Some((rule, what)) = flaw_of_unlogged(found) {
                self.report.object(rule, format!("node {node}, whose stderr takes nothing, {what}"), &[]);
            }
        }
        self.late += from.elapsed();
    }

    /// How many lines it has counted; it may only have been started a moment ago.
    async fn lines_dropped(&self, node: i32, from: Instant) -> Result<f64, String> {
        loop {
            let found = metrics::read(self.db.http(node), LINES_DROPPED).await;
            match found {
                Ok(lines) if lines > 0.0 => return Ok(lines),
                _ if from.elapsed() < RECOVER_SURELY => sleep(LOOK_AGAIN).await,
                found => return found.map_err(|error| format!("{error:#}")),
            }
        }
    }

    /// A node with very many connections that say nothing answers to one that asks.
    pub(super) async fn look_at_crowded(&mut self, nodes: &BTreeSet<i32>, sockets: u64) {
        let from = Instant::now();
        for node in self.undisturbed(nodes) {
            // A node that was down for a part of the time has fewer.
            while self.db.crowded(node) < sockets && from.elapsed() < RECOVER_SURELY {
                sleep(LOOK_AGAIN).await;
            }
            let (answer, made) = (self.answers(node).await, self.db.crowded(node));
            if let Err(why) = answer {
                let message = format!("node {node} with {sockets} silent connections does not answer: {why}");
                self.report.object("answers-beside-silent-connections", message, &[]);
            } else if made < sockets {
                let message = format!("{made} of {sockets} silent connections to node {node} were made");
                self.report.doubt("too-few-silent-connections", message);
            }
        }
        self.late += from.elapsed();
    }

    /// Over a connection of its own, which needs a descriptor; of what the node knows itself.
    async fn answers(&self, node: i32) -> Result<(), ClientError> {
        let from = Instant::now();
        let address = self.db.api(node).to_owned();
        loop {
            match client(std::slice::from_ref(&address), ANSWER_TIMEOUT).describe_quorum(Freshness::Stale).await {
                Ok(_) => return Ok(()),
                Err(error) if from.elapsed() > RECOVER_SURELY => return Err(error),
                Err(_) => sleep(LOOK_AGAIN).await,
            }
        }
    }

    /// Those that run, and that no other fault keeps from answering.
    fn undisturbed(&self, nodes: &BTreeSet<i32>) -> Vec<i32> {
        let up = self.db.up();
        nodes.intersection(&up).copied().filter(|node| self.injuries.memory(*node).is_none()).collect()
    }
}

/// The rule that a node breaks which has counted so many lines, and how.
fn flaw_of_unlogged(dropped: Result<f64, String>) -> Option<(&'static str, String)> {
    match dropped {
        Ok(lines) if lines > 0.0 => None,
        Ok(_) => Some(("counts-dropped-lines", format!("has {LINES_DROPPED} 0"))),
        Err(why) => Some(("answers-without-log", format!("does not answer: {why}"))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_node_without_a_log_counts_lines_and_answers() {
        let rule = |dropped| flaw_of_unlogged(dropped).map(|(rule, _)| rule);
        assert_eq!(rule(Ok(3.0)), None);
        assert_eq!(rule(Ok(0.0)), Some("counts-dropped-lines"));
        assert_eq!(rule(Err("connection refused".to_owned())), Some("answers-without-log"));
    }
}
