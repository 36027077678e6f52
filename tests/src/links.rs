//! The links between the nodes of a cluster, each direction of which can be cut.

use std::fs;

use jepsen_lite::link::{Condition, Member, Port};

use crate::Cluster;

/// The links of a cluster. Dropping them cuts all.
pub struct Links {
    links: jepsen_lite::link::Links,
}

impl Links {
    /// Puts proxies between the nodes of a cluster that has not been started.
    pub fn between(cluster: &mut Cluster) -> Self {
        let member = |id: i32| Member { id, raft: cluster.raft(id).to_owned(), api: cluster.api(id).to_owned() };
        let members: Vec<Member> = cluster.ids().into_iter().map(member).collect();
        let links = jepsen_lite::link::Links::between(&members);
        for (from, map) in links.dial_maps() {
            let path = cluster.file(&format!("dial-{from}.toml"));
            fs::write(&path, map).expect("the test's folder can be written");
            cluster.set(*from, "dial_map", &path.display().to_string());
        }
        Self { links }
    }

    pub fn set(&self, from: i32, to: i32, condition: Condition) {
        self.links.change(|(dialler, dialled, _)| ((dialler, dialled) == (from, to)).then_some(condition));
    }

    /// Cuts a node off from all others, in both directions.
    pub fn isolate(&self, id: i32, condition: Condition) {
        self.links.change(|(from, to, _)| (from == id || to == id).then_some(condition));
    }

    /// Cuts a voter off from the other voters, and leaves its API within everybody's reach.
    pub fn isolate_raft(&self, id: i32, condition: Condition) {
        self.links.change(|(from, to, port)| (port == Port::Raft && (from == id || to == id)).then_some(condition));
    }

    /// The node hears nobody, and everybody hears it.
    pub fn deafen(&self, id: i32) {
        self.links.change(|(_, to, _)| (to == id).then_some(Condition::Silent));
    }

    pub fn heal(&self) {
        self.links.set(|_| Condition::Open);
    }
}
