//! A voter that is a cluster alone, for the tests of the controller and of the API.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use futures::{StreamExt, stream};
use quorate_client::network::Port;
use quorate_metadata::ids::{ControllerId, IncarnationId};
use quorate_metadata::image::LEVEL_HIGHEST;
use quorate_metadata::plan::features;
use quorate_metadata::record::ControllerRegistration;

use super::{ControllerConfig, ControllerHandle, EventLoop};
use crate::machine::Workers;
use crate::metrics::Metrics;
use crate::raft::{DialMap, MemoryStore, RaftConfig, RaftNode, VoterAddress};
use crate::replica::{MetadataReplica, MetadataView};

pub const NODE: ControllerId = ControllerId::new(1);

/// Its log, kept in memory, and what it is replayed on.
pub async fn lone_voter() -> (RaftNode, MetadataView) {
    let view = MetadataView::new();
    let replica = Box::new(MetadataReplica::new(view.clone(), features::supported()));
    let port = Port::Given(stream::pending().boxed());
    let raft = RaftNode::start(raft_config(), Arc::new(MemoryStore::new()), port, replica).await;
    (raft.expect("a voter alone is a cluster"), view)
}

/// An event loop that the test drives, and the handle of it.
pub fn event_loop(raft: RaftNode, view: MetadataView) -> (EventLoop, ControllerHandle) {
    EventLoop::new(controller_config(), raft, view, Arc::new(Metrics::default()))
}

fn raft_config() -> RaftConfig {
    RaftConfig {
        node: NODE,
        voters: vec![VoterAddress { id: NODE, raft: "raft.invalid:1".to_owned(), api: "api.invalid:1".to_owned() }],
        data: PathBuf::new(),
        cluster: None,
        dial: DialMap::none(),
        auto_format: true,
        heartbeat_ms: 50,
        election_min_ms: 1_000,
        election_max_ms: 2_000,
        fast_election: false,
        snapshot_log_bytes: 1 << 30,
        log_entries_kept: 1_000,
        level_max: LEVEL_HIGHEST,
        workers: Workers::Tasks,
    }
}

fn controller_config() -> ControllerConfig {
    ControllerConfig {
        registration: ControllerRegistration {
            controller: NODE,
            incarnation: IncarnationId::default(),
            endpoints: Vec::new(),
            features: features::supported(),
        },
        session_timeout: Duration::from_secs(3_600),
        dial: DialMap::none(),
        seed: 1,
        workers: Workers::Tasks,
    }
}
