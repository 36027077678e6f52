//! A voter that fails at a named point stops with that reason, and starts again with all it acknowledged.
#![cfg(feature = "failpoints")]
#![allow(clippy::unwrap_used)]

use std::io::{self, Read, Write};
use std::net::TcpListener;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use quorate_client::network::Port;
use quorate_metadata::ids::{ControllerEpoch, ControllerId, Offset};
use quorate_node::machine::Workers;
use quorate_node::raft::{
    DialMap, FrozenReplica, Leadership, Outcome, ProposeError, RaftConfig, RaftNode, Replica, ReplicaError, RocksStore,
    VoterAddress,
};
use tokio::time::timeout;

const PATIENCE: Duration = Duration::from_secs(20);

struct Count(i64);

impl Replica for Count {
    fn replay(&mut self, _: ControllerEpoch, _: &Bytes) -> Result<Outcome, ReplicaError> {
        self.0 += 1;
        Ok(Outcome::Replayed { next_offset: Offset::new(self.0) })
    }

    fn publish(&mut self) {}

    fn freeze(&self) -> Box<dyn FrozenReplica> {
        Box::new(Count(self.0))
    }

    fn install(&mut self, content: &mut dyn Read) -> Result<(), ReplicaError> {
        let mut bytes = [0; 8];
        content.read_exact(&mut bytes).map_err(|error| ReplicaError(error.to_string()))?;
        self.0 = i64::from_le_bytes(bytes);
        Ok(())
    }
}

impl FrozenReplica for Count {
    fn write_to(&self, out: &mut dyn Write) -> io::Result<()> {
        out.write_all(&self.0.to_le_bytes())
    }
}

async fn start(data: &Path) -> RaftNode {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let raft = listener.local_addr().unwrap().to_string();
    let node = ControllerId::new(1);
    let config = RaftConfig {
        node,
        voters: vec![VoterAddress { id: node, raft, api: String::new() }],
        data: data.to_owned(),
        cluster: None,
        dial: DialMap::none(),
        auto_format: true,
        heartbeat_ms: 50,
        election_min_ms: 150,
        election_max_ms: 300,
        fast_election: true,
        snapshot_log_bytes: 1 << 30,
        log_entries_kept: 1000,
        workers: Workers::Threads,
    };
    RaftNode::start(config, Arc::new(RocksStore::new(data)), Port::Socket(listener), Box::new(Count(0))).await.unwrap()
}

async fn claim(raft: &RaftNode) -> ControllerEpoch {
    match timeout(PATIENCE, raft.leadership().recv()).await.expect("a claim in time") {
        Some(Leadership::Claimed { epoch }) => epoch,
        other => panic!("{other:?}"),
    }
}

async fn write(raft: &RaftNode, epoch: ControllerEpoch) -> Result<Outcome, ProposeError> {
    timeout(PATIENCE, raft.propose(epoch, Bytes::from_static(b"x"))).await.expect("an answer in time").unwrap()
}

async fn reason(raft: &RaftNode) -> String {
    let mut stopped = raft.stopped();
    let reason = timeout(PATIENCE, stopped.wait_for(Option::is_some)).await.expect("stopped in time").unwrap().clone();
    reason.unwrap()
}

/// One test: failpoints are of the process.
#[tokio::test]
async fn each_point_stops_the_voter_with_its_name_and_nothing_acknowledged_is_lost() {
    let data = tempfile::tempdir().unwrap();
    let mut acknowledged = 0;
    for point in ["raft.append", "raft.flush", "raft.apply", "raft.snapshot"] {
        let raft = start(data.path()).await;
        let epoch = claim(&raft).await;
        let Ok(Outcome::Replayed { next_offset }) = write(&raft, epoch).await else { panic!("{point}: not written") };
        assert!(next_offset.get() > acknowledged, "{point}: {next_offset} after {acknowledged}");
        acknowledged = next_offset.get();
        fail::cfg(point, "return").unwrap();
        if point == "raft.snapshot" {
            assert!(raft.trigger_snapshot().await.is_err());
        } else {
            assert!(write(&raft, epoch).await.is_err(), "{point}");
        }
        let reason = reason(&raft).await;
        assert!(reason.contains(point), "{point}: {reason}");
        fail::remove(point);
        raft.shutdown().await;
    }
    // Nobody is elected whose vote is not on the disk.
    fail::cfg("raft.vote", "return").unwrap();
    let raft = start(data.path()).await;
    let reason = reason(&raft).await;
    assert!(reason.contains("raft.vote"), "{reason}");
    fail::remove("raft.vote");
    raft.shutdown().await;
}
