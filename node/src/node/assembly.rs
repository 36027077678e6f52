//! From the node's configuration to that of its parts.

use std::sync::Arc;
use std::time::Duration;

use quorate_client::agent::{LocalMetadata, Resolve};
use quorate_client::world;
use quorate_log::Flush;
use quorate_metadata::ids::{ClusterId, ControllerId, IncarnationId};
use quorate_metadata::record::{ControllerRegistration, Endpoint, SecurityProtocol};

use super::NodeError;
use crate::api::{DataPlaneSlot, HeartbeatTerms};
use crate::broker::{BrokerConfig, Dial, Dialing, Places, RunRecord};
use crate::config::{LogFlush, NodeConfig, host_and_port};
use crate::controller::ControllerConfig;
use crate::disks::{DiskProblems, Reserve};
use crate::machine::{Disks, Machine};
use crate::note::Note;
use crate::raft::{DialMap, RaftConfig, RocksStore, Store, VoterAddress};

pub fn raft(machine: &Machine, config: &NodeConfig, dial: &DialMap) -> Result<RaftConfig, NodeError> {
    Ok(RaftConfig {
        node: config.controller_id(),
        voters: config.voter_addresses()?,
        data: config.data_dir.clone(),
        cluster: config.cluster()?,
        dial: dial.clone(),
        auto_format: config.may_auto_format()?,
        heartbeat_ms: config.raft_heartbeat_ms,
        election_min_ms: config.raft_election_min_ms,
        election_max_ms: config.raft_election_max_ms,
        fast_election: config.fast_election,
        snapshot_log_bytes: config.snapshot_log_bytes,
        log_entries_kept: config.log_entries_kept,
        workers: machine.workers,
        level_max: machine.level_max(),
    })
}

pub fn controller(machine: &Machine, config: &NodeConfig, dial: &DialMap) -> ControllerConfig {
    ControllerConfig {
        registration: ControllerRegistration {
            controller: config.controller_id(),
            incarnation: IncarnationId::new(world::uuid()),
            endpoints: vec![endpoint(config)],
            features: machine.features(),
        },
        session_timeout: config.session_timeout(),
        workers: machine.workers,
        dial: dial.clone(),
        seed: world::uuid().as_u64_pair().0,
    }
}

pub fn heartbeat(config: &NodeConfig) -> HeartbeatTerms {
    HeartbeatTerms {
        interval: Duration::from_millis(config.broker_heartbeat_interval_ms),
        lease: config.lease(),
        quorum_silence_max: Duration::from_millis(config.raft_election_max_ms),
    }
}

pub fn broker(
    machine: &Machine,
    config: &NodeConfig,
    dial: &DialMap,
    cluster: ClusterId,
    local_metadata: Option<Arc<dyn LocalMetadata>>,
    (slot, problems): (DataPlaneSlot, DiskProblems),
) -> Result<BrokerConfig, NodeError> {
    // A controller stays in the quorum, whatever becomes of the broker beside it.
    let registration_timeout = local_metadata.is_none().then_some(config.broker_registration_timeout_ms);
    let registration_timeout = registration_timeout.map(Duration::from_millis);
    let voters = config.voter_addresses()?;
    // The nearest first: this node itself, where it is a controller.
    let own = config.controller_id();
    let (nearest, others): (Vec<_>, Vec<_>) = voters.iter().partition(|voter| voter.id == own);
    Ok(BrokerConfig {
        broker: config.broker_id(),
        cluster,
        endpoint: endpoint(config),
        rack: (!config.rack.is_empty()).then(|| config.rack.clone()),
        features: machine.features(),
        log_directories: places(machine, config),
        run_record: run_record(machine, config),
        flush: match config.log_flush {
            LogFlush::Os => Flush::Os,
            LogFlush::Always => Flush::Always,
        },
        bootstrap: nearest.into_iter().chain(others).map(|voter| voter.api.clone()).collect(),
        local_metadata,
        resolve: resolve(voters, dial.clone()),
        dialing: Dialing { dial: dial_brokers(dial.clone()), network: machine.network.clone() },
        workers: machine.workers,
        registration_timeout,
        controlled_shutdown_timeout: Duration::from_millis(config.controlled_shutdown_timeout_ms),
        stray_grace: Duration::from_millis(config.stray_grace_ms),
        disk_timeout: config.disk_timeout(),
        free_bytes_min: config.log_dir_free_bytes_min,
        problems,
        slot,
    })
}

pub fn store(machine: &Machine, config: &NodeConfig, problems: &DiskProblems) -> Arc<dyn Store> {
    match &machine.disks {
        Disks::Files => {
            let reserve = Reserve::in_directory(&config.data_dir, config.raft_reserve_bytes, problems.clone());
            Arc::new(RocksStore::new(&config.data_dir).with_reserve(reserve))
        }
        Disks::Memory(disks) => Arc::new(disks.raft.clone()),
    }
}

fn places(machine: &Machine, config: &NodeConfig) -> Places {
    match &machine.disks {
        Disks::Files => Places::Paths(config.log_directories()),
        Disks::Memory(disks) => Places::Memory(disks.logs.clone()),
    }
}

fn run_record(machine: &Machine, config: &NodeConfig) -> RunRecord {
    match &machine.disks {
        Disks::Files => {
            let [last_run, clean_stop] = ["last-run", "clean-stop"].map(|name| Note::File(config.data_dir.join(name)));
            RunRecord::new(last_run, Some(clean_stop), Note::File(config.boot_id_file.clone()))
        }
        Disks::Memory(disks) => RunRecord::new(disks.last_run.clone(), None, disks.boot_id.clone()),
    }
}

/// The broker dials controllers through the same map as everyone on this node.
fn resolve(voters: Vec<VoterAddress>, dial: DialMap) -> Resolve {
    Arc::new(move |announced: &str| match voters.iter().find(|voter| voter.api == announced) {
        Some(voter) => dial.api(voter.id, announced),
        None => announced.to_owned(),
    })
}

/// Brokers and controllers share their ids, and with them the map.
fn dial_brokers(dial: DialMap) -> Dial {
    Arc::new(move |broker, announced| dial.api(ControllerId::new(broker.get()), announced))
}

fn endpoint(config: &NodeConfig) -> Endpoint {
    let address = config.api_address().expect("the configuration was checked");
    let (host, port) = host_and_port(&address).expect("the configuration was checked");
    Endpoint { name: "API".to_owned(), host: host.to_owned(), port, security: SecurityProtocol::Plaintext }
}
