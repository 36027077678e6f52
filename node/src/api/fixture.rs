//! A gateway of a node that is a cluster alone, and a broker in its metadata, for the tests of the API.

use std::collections::BTreeMap;

use quorate_metadata::ids::{BrokerEpoch, BrokerId, IncarnationId};
use quorate_metadata::record::{BrokerRegistration, Kind, Probe};

use super::gateway::Gateway;
use crate::controller::EventLoop;
use crate::controller::fixture::{NODE, event_loop, lone_voter};
use crate::raft::{DialMap, Leadership};

/// Its event loop does not run: while it is kept, what is submitted to it waits.
pub async fn lone_gateway() -> (Gateway, EventLoop) {
    let (raft, view) = lone_voter().await;
    let Some(Leadership::Claimed { .. }) = raft.leadership().recv().await else { panic!("it is elected") };
    let (event_loop, controller) = event_loop(raft.clone(), view.clone());
    (Gateway::new(NODE, controller, raft, view, DialMap::none()), event_loop)
}

/// A fenced broker without endpoints and directories, whose epoch is its id.
pub fn registration(id: i32) -> BrokerRegistration {
    BrokerRegistration {
        broker: BrokerId::new(id),
        epoch: BrokerEpoch::new(i64::from(id)),
        incarnation: IncarnationId::default(),
        endpoints: Vec::new(),
        kind: Kind::LOG,
        probe: Probe::Unstated,
        rack: None,
        features: BTreeMap::new(),
        directories: Vec::new(),
        cordoned_directories: None,
        fenced: true,
        in_controlled_shutdown: false,
        controlled_shutdown_offset: None,
    }
}
