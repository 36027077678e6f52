//! What lies between the nodes: proxies, or namespaces of the kernel.

mod namespaces;

use std::collections::BTreeMap;
use std::path::Path;
use std::process::Command;

use clap::ValueEnum;
use serde::{Deserialize, Serialize};

use crate::link::{Condition, Direction, Links, Member};
use crate::ports::free_port;

pub use namespaces::{Namespaces, enter};

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Layer {
    /// A proxy on every link, in each direction; needs no privileges
    #[default]
    Proxy,
    /// A network namespace for each node, with packets dropped on their way; needs root, nft and tc
    Netns,
}

impl Layer {
    /// A node, and where it shall listen.
    pub fn member(self, id: i32) -> Member {
        let [raft, api] = match self {
            Self::Proxy => [free_port(), free_port()].map(|port| format!("127.0.0.1:{port}")),
            Self::Netns => [7_101, 7_001].map(|port| format!("{}:{port}", namespaces::address(id))),
        };
        Member { id, raft, api }
    }

    /// Where a node shall say what it counts.
    pub fn http(self, id: i32) -> String {
        match self {
            Self::Proxy => format!("127.0.0.1:{}", free_port()),
            Self::Netns => format!("{}:7201", namespaces::address(id)),
        }
    }
}

/// Dropping it undoes it.
pub enum Network {
    Proxies(Links),
    Namespaces(Namespaces),
}

impl Network {
    pub fn between(layer: Layer, members: &[Member]) -> anyhow::Result<Self> {
        Ok(match layer {
            Layer::Proxy => Self::Proxies(Links::between(members)),
            Layer::Netns => Self::Namespaces(Namespaces::build(members.iter().map(|member| member.id).collect())?),
        })
    }

    /// Whether nodes listen elsewhere than on loopback, which they want to be told twice.
    pub fn is_open(&self) -> bool {
        matches!(self, Self::Namespaces(_))
    }

    /// Where each node has to dial, if that is not where the others listen.
    pub fn dial_maps(&self) -> Option<&BTreeMap<i32, String>> {
        match self {
            Self::Proxies(links) => Some(links.dial_maps()),
            Self::Namespaces(_) => None,
        }
    }

    /// The program as a node of this network.
    pub fn command(&self, node: i32, program: &Path) -> Command {
        match self {
            Self::Proxies(_) => Command::new(program),
            Self::Namespaces(namespaces) => namespaces.command(node, program),
        }
    }

    /// Why links cannot get into this condition here, if they cannot.
    pub fn cannot(&self, condition: Condition) -> Option<String> {
        use Condition::{Lossy, Open, Refusing, Resetting, Shaped, Silent};
        let (layer, can) = match self {
            Self::Proxies(_) => ("proxy", !matches!(condition, Lossy { .. } | Shaped { .. })),
            Self::Namespaces(_) => {
                ("netns", matches!(condition, Open | Silent | Refusing | Resetting | Lossy { .. } | Shaped { .. }))
            }
        };
        (!can).then(|| format!("the layer {layer} has no links that are {condition:?}"))
    }

    /// Puts each link into the condition that `of` gives.
    pub fn set(&mut self, of: impl Fn(Direction) -> Condition) -> anyhow::Result<()> {
        match self {
            Self::Proxies(links) => {
                links.set(of);
                Ok(())
            }
            Self::Namespaces(namespaces) => namespaces.set(of),
        }
    }
}
