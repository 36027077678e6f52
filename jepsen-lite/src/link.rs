//! A proxy on every directed link between nodes, which needs no privileges: each node is led through its own proxies by
//! its dial map, so that the two directions of a pair can differ.
//!
//! A proxy cannot lose a single packet, and the kernel acknowledges what it has received. So a silent link looks like a
//! network that swallows everything while the connection stays up: only who asks for an answer finds out. Nothing is
//! lost for good either: what was on its way arrives when the link is open again, as with TCP.

mod relay;

use std::collections::BTreeMap;
use std::fmt::Write;
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use tokio::sync::watch;
use tokio::task::JoinSet;

use crate::ports::free_port;
use relay::Proxy;

/// What happens to bytes on their way from one node to another.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Condition {
    #[default]
    Open,
    /// They do not arrive, and nobody says so.
    Silent,
    /// Connections are closed, and new ones refused: the host is up, the process is not.
    Refusing,
    /// Connections end with a reset, new ones as soon as they are made.
    Resetting,
    /// They take so long, more or less.
    Slow { delay_ms: u64, jitter_ms: u64 },
    /// No more of them a second, on each connection.
    Limited { bytes_per_second: u64 },
    /// So many get through on each connection, and then no more.
    Stalling { after_bytes: u64 },
    /// The sender has said that it is done; what comes back still arrives.
    HalfClosed,
    /// So many packets of a hundred are lost. Namespaces only.
    Lossy { percent: u64 },
    /// No more bits a second, of all connections of a node together. Namespaces only.
    Shaped { bits_per_second: u64 },
}

/// Which of a node's ports a link leads to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Port {
    Raft,
    Api,
}

/// A node, and where it listens.
#[derive(Debug, Clone)]
pub struct Member {
    pub id: i32,
    pub raft: String,
    pub api: String,
}

/// Who dials, who is dialled, and at which port.
pub type Direction = (i32, i32, Port);

/// The links between some nodes. Dropping them cuts all.
pub struct Links {
    directions: Arc<BTreeMap<Direction, watch::Sender<Condition>>>,
    dial_maps: BTreeMap<i32, String>,
    _proxies: JoinSet<()>,
}

impl Links {
    /// To be called within a tokio runtime. The nodes must be started with their dial maps.
    pub fn between(members: &[Member]) -> Self {
        let pairs = || members.iter().flat_map(|from| members.iter().map(move |to| (from.id, to)));
        let others = || pairs().filter(|(from, to)| *from != to.id);
        let directions = others().flat_map(|(from, to)| [Port::Raft, Port::Api].map(|port| (from, to.id, port)));
        let directions: Arc<BTreeMap<_, _>> =
            Arc::new(directions.map(|at| (at, watch::Sender::new(Condition::Open))).collect());
        let mut proxies = JoinSet::new();
        let mut dial_maps: BTreeMap<i32, String> =
            members.iter().map(|member| (member.id, "[peers]\n".to_owned())).collect();
        for (from, to) in others() {
            let mut lead = |port: Port, target: &str| {
                let address = format!("127.0.0.1:{}", free_port());
                let [there, back] = [(from, to.id, port), (to.id, from, port)].map(|at| directions[&at].subscribe());
                let proxy = Proxy { address: address.clone(), target: target.to_owned(), there, back };
                proxies.spawn(proxy.serve());
                address
            };
            let (raft, api) = (lead(Port::Raft, &to.raft), lead(Port::Api, &to.api));
            let map = dial_maps.get_mut(&from).expect("every member has one");
            writeln!(map, "{} = {{ raft = \"{raft}\", api = \"{api}\" }}", to.id).expect("a string takes all");
        }
        Self { directions, dial_maps, _proxies: proxies }
    }

    /// The dial map of each node, in the form of a node's configuration.
    pub fn dial_maps(&self) -> &BTreeMap<i32, String> {
        &self.dial_maps
    }

    /// Puts each link into the condition that `of` gives.
    pub fn set(&self, of: impl Fn(Direction) -> Condition) {
        self.change(|at| Some(of(at)));
    }

    /// Puts those links for which `of` gives a condition into it.
    pub fn change(&self, of: impl Fn(Direction) -> Option<Condition>) {
        for (at, direction) in self.directions.iter() {
            if let Some(condition) = of(*at) {
                direction.send_if_modified(|now| std::mem::replace(now, condition) != condition);
            }
        }
    }
}

#[cfg(test)]
mod tests;
