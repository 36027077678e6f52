//! A gateway of a node that is a cluster alone, for the tests of the API.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use futures::{StreamExt, stream};
use quorate_client::network::Port;
use quorate_metadata::ids::{ControllerId, IncarnationId};
use quorate_metadata::image::LEVEL_HIGHEST;
use quorate_metadata::plan::features;
use quorate_metadata::record::ControllerRegistration;

use super::gateway::Gateway;
use crate::controller::{ControllerConfig, EventLoop};
use crate::machine::Workers;
use crate::metrics::Metrics;
use crate::raft::{DialMap, MemoryStore, RaftConfig, RaftNode, VoterAddress};
use crate::replica::{MetadataReplica, MetadataView};

const NODE: ControllerId = ControllerId::new(1);

/// Its event loop does not run.
pub async fn lone_gateway() -> Gateway {
    let view = MetadataView::new();
    let port = Port::Given(stream::pending().boxed());
    let replica = Box::new(MetadataReplica::new(view.clone(), features::supported()));
    let raft = RaftNode::start(raft_config(), Arc::new(MemoryStore::new()), port, replica).await;
    let raft = raft.expect("a voter alone is a cluster");
    let (_, controller) = EventLoop::new(controller_config(), raft.clone(), view.clone(), Arc::new(Metrics::new()));
    Gateway::new(NODE, controller, raft, view, DialMap::none())
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
