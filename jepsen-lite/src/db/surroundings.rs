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

#[cfg(test)]
mod tests {
    use std::fs;
    use std::path::PathBuf;
    use std::time::Duration;

    use tokio::time::{Instant, sleep};

    use super::super::fixture::one_node;
    use super::*;
    use crate::crowd::NODE_DESCRIPTORS;

    /// What a process of the node has left there, when it has.
    async fn left(file: PathBuf, lines: usize) -> String {
        let deadline = Instant::now() + Duration::from_secs(30);
        loop {
            let text = fs::read_to_string(&file).unwrap_or_default();
            if text.lines().count() >= lines && text.ends_with('\n') {
                return text;
            }
            assert!(Instant::now() < deadline, "{} has {text:?}", file.display());
            sleep(Duration::from_millis(2)).await;
        }
    }

    #[tokio::test]
    async fn nodes_have_few_descriptors_where_they_are_used_up() {
        let mut limits = Vec::new();
        for sockets in [0, 1] {
            let (_folder, mut db) = one_node("ulimit -n > \"$data/limit\"", sockets);
            db.start(1, 0).unwrap();
            limits.push(left(db.data(1).join("limit"), 1).await);
        }
        assert_eq!(limits[1].trim(), NODE_DESCRIPTORS.to_string());
        assert_ne!(limits[0], limits[1]);
    }

    #[tokio::test]
    async fn another_stderr_takes_another_process() {
        let (_folder, mut db) = one_node("(echo logged >&2); echo ran >> \"$data/runs\"", 0);
        let mut logged = Vec::new();
        for (turn, stderr) in [Stderr::File, Stderr::ClosedPipe, Stderr::File].into_iter().enumerate() {
            db.set_stderr(1, stderr).unwrap();
            assert!(db.is_down(1), "{stderr:?}");
            db.start(1, 0).unwrap();
            left(db.data(1).join("runs"), turn + 1).await;
            logged.push(fs::read_to_string(db.log(1)).unwrap().lines().count());
            db.set_stderr(1, stderr).unwrap();
            assert!(!db.is_down(1), "it has it already");
        }
        assert_eq!(logged, [1, 1, 2]);
    }
}
