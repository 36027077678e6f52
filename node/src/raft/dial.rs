//! Which address to dial for a peer, as seen from this node. Without a map it is the address that the peer announces;
//! with one, each directed link can be led through a fault proxy. The file is read again when it changes:
//!
//! ```toml
//! [peers]
//! 2 = { raft = "127.0.0.1:9001", api = "127.0.0.1:9002" }
//! ```

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::SystemTime;
use std::{fs, io};

use serde::Deserialize;

use quorate_client::network::Network;
use quorate_metadata::ids::ControllerId;

/// Cheap to clone; all clones see the same file.
#[derive(Clone, Default)]
pub struct DialMap {
    file: Option<Arc<Watched>>,
    network: Network,
}

struct Watched {
    path: PathBuf,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    /// What the file looked like when it was read: (modified, length). None before the first read.
    seen: Option<(SystemTime, u64)>,
    peers: BTreeMap<String, Addresses>,
}

#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields)]
struct File {
    #[serde(default)]
    peers: BTreeMap<String, Addresses>,
}

#[derive(Deserialize, Clone, Default, Debug)]
#[serde(deny_unknown_fields)]
struct Addresses {
    raft: Option<String>,
    api: Option<String>,
}

impl DialMap {
    /// Announced addresses only.
    pub fn none() -> Self {
        Self::default()
    }

    /// Refuses a file that cannot be read now; one that turns bad later leaves the last good map in force.
    pub fn file(path: &Path) -> io::Result<Self> {
        let watched = Watched { path: path.to_owned(), state: Mutex::default() };
        watched.reload()?;
        Ok(Self { file: Some(Arc::new(watched)), network: Network::default() })
    }

    /// The same addresses, on this network.
    #[must_use]
    pub fn over(self, network: Network) -> Self {
        Self { network, ..self }
    }

    /// What the addresses are dialed on.
    pub fn network(&self) -> &Network {
        &self.network
    }

    /// Where to dial the Raft port of `peer`, which announces `announced`.
    pub fn raft(&self, peer: ControllerId, announced: &str) -> String {
        self.lookup(peer, |addresses| addresses.raft.clone()).unwrap_or_else(|| announced.to_owned())
    }

    /// Where to dial the API port of `peer`, which announces `announced`.
    pub fn api(&self, peer: ControllerId, announced: &str) -> String {
        self.lookup(peer, |addresses| addresses.api.clone()).unwrap_or_else(|| announced.to_owned())
    }

    fn lookup(&self, peer: ControllerId, pick: impl Fn(&Addresses) -> Option<String>) -> Option<String> {
        let watched = self.file.as_ref()?;
        if let Err(error) = watched.reload() {
            tracing::warn!(path = ?watched.path, %error, "cannot read the dial map, keeping the last one");
        }
        let state = watched.state.lock().expect("no holder panics");
        state.peers.get(&peer.to_string()).and_then(pick)
    }
}

impl Watched {
    fn reload(&self) -> io::Result<()> {
        let metadata = fs::metadata(&self.path)?;
        let seen = Some((metadata.modified()?, metadata.len()));
        let mut state = self.state.lock().expect("no holder panics");
        if state.seen == seen {
            return Ok(());
        }
        // Remembered even when the content is bad, so that it is complained of once and not at each call.
        state.seen = seen;
        let file: File = toml::from_str(&fs::read_to_string(&self.path)?).map_err(io::Error::other)?;
        tracing::info!(path = ?self.path, peers = file.peers.len(), "dial map read");
        state.peers = file.peers;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_changed_file_is_read_again_and_a_bad_one_changes_nothing() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("dial.toml");
        fs::write(&path, "[peers]\n2 = { raft = \"a:1\" }\n").unwrap();
        let dial = DialMap::file(&path).unwrap();
        let (two, three) = (ControllerId::new(2), ControllerId::new(3));
        assert_eq!(
            (dial.raft(two, "x:0"), dial.raft(three, "x:0"), dial.api(two, "y:0")),
            ("a:1".into(), "x:0".into(), "y:0".into())
        );
        fs::write(&path, "[peers]\n2 = { raft = \"bb:22\", api = \"c:3\" }\n").unwrap();
        assert_eq!((dial.raft(two, "x:0"), dial.api(two, "y:0")), ("bb:22".into(), "c:3".into()));
        fs::write(&path, "[peers\n").unwrap();
        assert_eq!(dial.raft(two, "x:0"), "bb:22");
    }
}
