//! What can be seen of a cluster between two ticks.

use std::hash::{DefaultHasher, Hash, Hasher};

use quorate_metadata::MetadataImage;
use quorate_metadata::ids::Offset;
use quorate_node::raft::{Logged, MemoryStore, QuorumStatus};
use serde::{Deserialize, Serialize};

use crate::cluster::Cluster;

pub struct Seen {
    pub nodes: Vec<NodeSeen>,
}

pub struct NodeSeen {
    pub id: i32,
    pub incarnation: u32,
    pub disk: MemoryStore,
    /// None: it does not run, or is not part of a cluster yet.
    pub inside: Option<InsideSeen>,
}

pub struct InsideSeen {
    pub quorum: QuorumStatus,
    pub image: MetadataImage,
}

impl NodeSeen {
    pub fn logged(&self, from: u64) -> Logged {
        self.disk.logged(from)
    }

    pub fn is_controller(&self) -> bool {
        let leader = self.inside.as_ref().and_then(|inside| inside.quorum.leader);
        leader.is_some_and(|leader| leader.get() == self.id)
    }
}

impl Seen {
    pub fn of(cluster: &Cluster) -> Self {
        let nodes = cluster.nodes.iter().map(|(id, node)| {
            let window = node.window();
            let inside = window.get().filter(|_| node.is_up && node.ended().is_none());
            let inside = inside.map(|inside| InsideSeen { quorum: inside.raft.status(), image: inside.view.image() });
            NodeSeen { id: *id, incarnation: node.incarnation, disk: node.disks.raft.clone(), inside }
        });
        Self { nodes: nodes.collect() }
    }

    /// The image of the node that is furthest.
    pub fn latest(&self) -> Option<&MetadataImage> {
        let images = self.nodes.iter().filter_map(|node| node.inside.as_ref()).map(|inside| &inside.image);
        images.max_by_key(|image| image.next_offset)
    }

    pub fn controller(&self) -> Option<i32> {
        let epoch = |node: &&NodeSeen| node.inside.as_ref().map(|inside| inside.quorum.epoch);
        self.nodes.iter().filter(|node| node.is_controller()).max_by_key(epoch).map(|node| node.id)
    }
}

/// The images of a cluster one after the other, but those that were replaced within a tick.
#[derive(Default)]
pub struct Images {
    last: Offset,
}

impl Images {
    /// The latest, if it was not there before.
    pub fn next<'a>(&mut self, seen: &'a Seen) -> Option<&'a MetadataImage> {
        let image = seen.latest().filter(|image| image.next_offset > self.last)?;
        self.last = image.next_offset;
        Some(image)
    }
}

/// How much simulated time one fingerprint stands for.
const FINGERPRINT_MS: u64 = 100;

/// Fingerprints of all that was seen and told, in order.
#[derive(Debug, Default, Serialize, Deserialize)]
pub struct Trace {
    fingerprints: Vec<u64>,
    /// Of what was seen, to the last tick.
    seen: u64,
    /// Of what clients were told.
    told: u64,
    #[serde(skip)]
    seeing: DefaultHasher,
    #[serde(skip)]
    telling: DefaultHasher,
}

impl Trace {
    pub fn note(&mut self, at_ms: u64, seen: &Seen) {
        for node in &seen.nodes {
            (at_ms, node.id, node.incarnation, node.disk.version()).hash(&mut self.seeing);
            if let Some(InsideSeen { quorum, image }) = &node.inside {
                let quorum = (quorum.epoch, quorum.leader, quorum.log_end, quorum.committed, quorum.applied);
                (quorum, image.next_offset, image.digest()).hash(&mut self.seeing);
            }
        }
        self.seen = self.seeing.finish();
        if at_ms.is_multiple_of(FINGERPRINT_MS) {
            self.fingerprints.push(self.seen);
        }
    }

    pub fn tell(&mut self, text: &str) {
        text.hash(&mut self.telling);
        self.told = self.telling.finish();
    }

    /// Where two runs of one seed part.
    pub fn difference(&self, other: &Self) -> Option<String> {
        let (mine, others) = (&self.fingerprints, &other.fingerprints);
        let same = mine.iter().zip(others).take_while(|(mine, other)| mine == other).count();
        if same < mine.len().max(others.len()) || self.seen != other.seen {
            return Some(format!("two runs of this seed differ from {} ms on", same as u64 * FINGERPRINT_MS));
        }
        (self.told != other.told).then(|| "two runs of this seed differ in what clients were told".to_owned())
    }
}
