//! A network namespace for each node, joined by a bridge: packets are lost on their way, which no proxy can do.
//!
//! The whole run is in a network and a mount namespace of its own, which it enters before anything else. The bridge, the
//! pairs of interfaces and the names are made in there, so the machine's own network is never touched, and whatever ends
//! the run, the kernel clears all away when the last process in there is gone.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::io::Write as _;
use std::os::unix::fs::MetadataExt;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Context, ensure};

use crate::link::{Condition, Direction, Port};

/// Set for who is inside.
const INSIDE: &str = "JEPSEN_LITE_NETNS";

const BRIDGE: &str = "hub";

/// What a limited interface may send at once, and how long what is beyond it may wait.
const SHAPE: [&str; 4] = ["burst", "32kbit", "latency", "400ms"];

pub fn address(id: i32) -> String {
    format!("10.99.0.{id}")
}

fn name(id: i32) -> String {
    format!("node-{id}")
}

/// Begins this program again, in namespaces of its own, unless it has. Returns when it is inside.
pub fn enter() -> anyhow::Result<()> {
    if std::env::var_os(INSIDE).is_some() {
        return Ok(());
    }
    ensure!(std::fs::metadata("/proc/self")?.uid() == 0, "the layer netns needs root");
    for (program, question) in [("ip", "-V"), ("nft", "-v"), ("tc", "-V"), ("nsenter", "-V"), ("unshare", "-V")] {
        let answered = Command::new(program).arg(question).output().is_ok_and(|output| output.status.success());
        ensure!(answered, "the layer netns needs {program}, which is missing");
    }
    let mut inside = Command::new("unshare");
    inside.args(["--net", "--mount", "--"]).arg(std::env::current_exe()?).args(std::env::args_os().skip(1));
    // This process becomes it, so whoever waits for us or sends us a signal notices nothing.
    Err(inside.env(INSIDE, "1").exec()).context("cannot begin again in namespaces")
}

/// The nodes' namespaces. Dropping it removes them.
pub struct Namespaces {
    ids: Vec<i32>,
    /// By node: the rules and the rates that are in force.
    rules: BTreeMap<i32, String>,
    rates: BTreeMap<i32, Rates>,
}

/// Bits a second that a node may send and be sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
struct Rates {
    out: Option<u64>,
    into: Option<u64>,
}

impl Namespaces {
    pub fn build(ids: Vec<i32>) -> anyhow::Result<Self> {
        ensure!(std::env::var_os(INSIDE).is_some(), "namespaces are built within one");
        if !Path::new("/run/netns").exists() {
            // Names are kept there, and nobody outside shall see them.
            run(Command::new("mount").args(["-t", "tmpfs", "tmpfs", "/run"]))?;
        }
        let namespaces = Self { ids, rules: BTreeMap::new(), rates: BTreeMap::new() };
        ip("link set lo up")?;
        ip(&format!("link add {BRIDGE} type bridge"))?;
        ip(&format!("addr add {}/24 dev {BRIDGE}", address(254)))?;
        ip(&format!("link set {BRIDGE} up"))?;
        for id in &namespaces.ids {
            let node = name(*id);
            ip(&format!("netns add {node}"))?;
            ip(&format!("link add v{id} type veth peer name eth0 netns {node}"))?;
            ip(&format!("link set v{id} master {BRIDGE} up"))?;
            ip(&format!("-n {node} addr add {}/24 dev eth0", address(*id)))?;
            ip(&format!("-n {node} link set eth0 up"))?;
            ip(&format!("-n {node} link set lo up"))?;
        }
        Ok(namespaces)
    }

    pub fn command(&self, node: i32, program: &Path) -> Command {
        let mut command = Command::new("nsenter");
        command.arg(format!("--net=/run/netns/{}", name(node))).arg("--").arg(program);
        command
    }

    pub fn set(&mut self, of: impl Fn(Direction) -> Condition) -> anyhow::Result<()> {
        let condition = |from: i32, to: i32| of((from, to, Port::Raft));
        for id in self.ids.clone() {
            let rules = rules(id, &self.ids, condition);
            if self.rules.get(&id) != Some(&rules) {
                self.filter(id, &rules)?;
                self.rules.insert(id, rules);
            }
            let rates = rates(id, &self.ids, condition);
            let before = self.rates.insert(id, rates).unwrap_or_default();
            shape(&["-n", &name(id)], "eth0", before.out, rates.out)?;
            shape(&[], &format!("v{id}"), before.into, rates.into)?;
        }
        Ok(())
    }

    fn filter(&self, id: i32, rules: &str) -> anyhow::Result<()> {
        let mut nft = self.command(id, Path::new("nft"));
        nft.args(["-f", "-"]).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = nft.spawn().context("cannot start nft")?;
        child.stdin.take().context("it is piped")?.write_all(rules.as_bytes())?;
        let output = child.wait_with_output()?;
        ensure!(output.status.success(), "nft: {}\n{rules}", String::from_utf8_lossy(&output.stderr).trim());
        Ok(())
    }
}

impl Drop for Namespaces {
    fn drop(&mut self) {
        // What cannot be removed goes when this process does.
        for id in &self.ids {
            let _ = ip(&format!("netns del {}", name(*id)));
            let _ = ip(&format!("link del v{id}"));
        }
        let _ = ip(&format!("link del {BRIDGE}"));
    }
}

/// What a node does with packets, by who has sent them.
fn rules(to: i32, ids: &[i32], condition: impl Fn(i32, i32) -> Condition) -> String {
    let mut rules = String::from(
        "flush ruleset\ntable ip faults {\n  chain arriving {\n    type filter hook input priority 0; policy accept;\n",
    );
    for from in ids.iter().copied().filter(|from| *from != to) {
        let sender = format!("ip saddr {}", address(from));
        match condition(from, to) {
            Condition::Silent => writeln!(rules, "    {sender} drop"),
            Condition::Lossy { percent } => writeln!(rules, "    {sender} numgen random mod 100 < {percent} drop"),
            // The answer of the other side, which does the same, still arrives.
            Condition::Refusing | Condition::Resetting => {
                writeln!(rules, "    {sender} tcp flags & rst == 0 reject with tcp reset")
            }
            Condition::Open
            | Condition::Shaped { .. }
            | Condition::Slow { .. }
            | Condition::Limited { .. }
            | Condition::Stalling { .. }
            | Condition::HalfClosed => Ok(()),
        }
        .expect("a string takes all");
    }
    rules + "  }\n}\n"
}

/// An interface is limited where all its links are.
fn rates(id: i32, ids: &[i32], condition: impl Fn(i32, i32) -> Condition) -> Rates {
    let shaped = |condition: Condition| match condition {
        Condition::Shaped { bits_per_second } => Some(bits_per_second),
        _ => None,
    };
    let others = || ids.iter().copied().filter(|other| *other != id);
    let least = |links: Vec<Option<u64>>| links.into_iter().min_by_key(|rate| rate.map_or(0, |_| 1)).flatten();
    Rates {
        out: least(others().map(|other| shaped(condition(id, other))).collect()),
        into: least(others().map(|other| shaped(condition(other, id))).collect()),
    }
}

fn shape(namespace: &[&str], interface: &str, before: Option<u64>, now: Option<u64>) -> anyhow::Result<()> {
    let mut tc = Command::new("tc");
    tc.args(namespace).arg("qdisc");
    match (before, now) {
        (before, now) if before == now => return Ok(()),
        (_, Some(rate)) => {
            tc.args(["replace", "dev", interface, "root", "tbf", "rate", &format!("{rate}bit")]).args(SHAPE)
        }
        (_, None) => tc.args(["del", "dev", interface, "root"]),
    };
    run(&mut tc)
}

fn ip(arguments: &str) -> anyhow::Result<()> {
    run(Command::new("ip").args(arguments.split(' ')))
}

fn run(command: &mut Command) -> anyhow::Result<()> {
    let output = command.output().with_context(|| format!("cannot start {command:?}"))?;
    ensure!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr).trim());
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    const IDS: [i32; 3] = [1, 2, 3];

    #[test]
    fn packets_are_dropped_by_who_has_sent_them_one_way_only() {
        let condition = |from, to| if (from, to) == (1, 2) { Condition::Silent } else { Condition::Open };
        assert!(rules(2, &IDS, condition).contains("ip saddr 10.99.0.1 drop"));
        assert!(!rules(2, &IDS, condition).contains("10.99.0.3"));
        assert!(!rules(1, &IDS, condition).contains("saddr"));
        let lossy = rules(1, &IDS, |_, _| Condition::Lossy { percent: 20 });
        assert_eq!(lossy.matches("numgen random mod 100 < 20 drop").count(), 2);
    }

    #[test]
    fn an_interface_is_limited_where_all_its_links_are() {
        let shaped = Condition::Shaped { bits_per_second: 5 };
        let from_or_to_two = |from, to| if from == 2 || to == 2 { shaped } else { Condition::Open };
        assert_eq!(rates(2, &IDS, from_or_to_two), Rates { out: Some(5), into: Some(5) });
        assert_eq!(rates(1, &IDS, from_or_to_two), Rates::default());
        let from_two = |from, _| if from == 2 { shaped } else { Condition::Open };
        assert_eq!(rates(2, &IDS, from_two), Rates { out: Some(5), into: None });
    }
}
