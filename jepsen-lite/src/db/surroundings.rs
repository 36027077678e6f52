//! What is around a node: the name of its disk, where its log goes, and who is connected to it.

use std::path::Path;
use std::process::Command;

use anyhow::{Context, ensure};
use quorate_client::world;
use quorate_metadata::ids::ClusterId;

use super::Db;
use crate::crowd::Crowd;
use crate::disk::Disk;
use crate::stderr::Stderr;

impl Db {
    /// Gives each disk its identity.
    pub(super) fn format(&self) -> anyhow::Result<()> {
        let cluster = ClusterId::new(world::uuid()).to_string();
        self.nodes.keys().try_for_each(|id| self.format_at(&self.data(*id), *id, &cluster))
    }

    /// Makes a folder the data directory of a node in a cluster.
    pub fn format_at(&self, data: &Path, id: i32, cluster: &str) -> anyhow::Result<()> {
        let mut command = Command::new(self.binary());
        // One word, because an id may begin with a hyphen.
        command.args(["format", "--node-id", &id.to_string(), &format!("--cluster-id={cluster}")]);
        command.arg("--data").arg(data).envs(self.nodes[&id].environment());
        let output = command.output().context("cannot start quorate-node")?;
        ensure!(output.status.success(), "format: {}", String::from_utf8_lossy(&output.stderr).trim());
        Ok(())
    }

    /// What is preloaded into a process on a disk that is watched, where that can be.
    pub fn shim(&self, id: i32) -> Option<&Path> {
        self.nodes[&id].disk.as_ref().map(Disk::shim)
    }

    /// Where this node writes its log from now on: a process that writes it elsewhere ends.
    pub fn set_stderr(&mut self, id: i32, stderr: Stderr) -> anyhow::Result<()> {
        if self.node(id).stderr != stderr {
            self.kill(id)?;
            self.node(id).stderr = stderr;
        }
        Ok(())
    }

    /// So many connections say nothing to this node from now on. Within a tokio runtime.
    pub fn crowd(&mut self, id: i32, sockets: u64) {
        let node = self.node(id);
        if node.crowd.as_ref().map_or(0, Crowd::sockets) != sockets {
            let addresses = [node.member.api.clone(), node.member.api.clone(), node.member.raft.clone()];
            node.crowd = (sockets > 0).then(|| Crowd::around(&addresses, sockets));
        }
    }

    /// The connections to this node that said nothing, since they were first made.
    pub fn crowded(&self, id: i32) -> u64 {
        self.nodes[&id].crowd.as_ref().map_or(0, Crowd::made)
    }

    /// Where this node says what it counts.
    pub fn http(&self, id: i32) -> &str {
        &self.nodes[&id].http
    }
}
