//! A node without a controller: a broker that passes every other call on to the quorum.

use std::future::Future;
use std::time::Duration;

use quorate_metadata::ids::ClusterId;
use quorate_metadata::{ApiError, ErrorName};
use quorate_proto::admin::admin_client::AdminClient;
use quorate_proto::admin::{DescribeQuorumRequest, ReadOptions};
use tokio::time::timeout;
use tracing::info;

use super::{BrokerRole, Listeners, NodeError, Servers, assembly, dial_map, log, report, started};
use crate::api::{Api, Control, Controllers, DataPlaneSlot, Proxy, Readiness};
use crate::config::NodeConfig;
use crate::disks::DiskProblems;
use crate::http::HttpState;
use crate::machine::{Disks, Machine};
use crate::raft;

/// A controller that says nothing for so long is left for another.
const ASK_TIMEOUT: Duration = Duration::from_secs(1);

/// Between two attempts to reach a controller at the start.
const RETRY_PAUSE: Duration = Duration::from_millis(100);

pub async fn run(machine: Machine, config: NodeConfig, stop: impl Future<Output = ()>) -> Result<(), NodeError> {
    tokio::pin!(stop);
    let dial = dial_map(&machine, &config)?;
    let listeners = Listeners::bind(&machine.network, &config).await?;
    if let Disks::Files = machine.disks {
        raft::identify(&config.data_dir, config.controller_id(), config.may_auto_format()?)?;
    }
    let (controllers, readiness) = (Controllers::new(config.voter_addresses()?, dial.clone()), Readiness::default());
    let slot = DataPlaneSlot::default();
    readiness.controllers_known(controllers.clone());
    readiness.has_broker(config.broker_id(), slot.clone());
    let mut servers = Servers::start(listeners.http, HttpState { readiness: readiness.clone(), metrics: None });
    let control = Control::Elsewhere(Proxy { controllers: controllers.clone() });
    servers.serve_api(listeners.api, Api { control, log: log(&config, &slot), readiness: readiness.clone() });

    let configured = config.cluster()?;
    let cluster = tokio::select! {
        cluster = cluster(&controllers) => cluster,
        () = &mut stop => return Ok(()),
    };
    if let Some(configured) = configured.filter(|configured| *configured != cluster) {
        let reason = format!("the configuration names cluster {configured}, the controllers are of {cluster}");
        return Err(raft::RaftError::InconsistentClusterId(reason).into());
    }
    if let Disks::Files = machine.disks {
        raft::join(&config.data_dir, config.controller_id(), cluster)?;
    }
    let problems = DiskProblems::default();
    let broker = assembly::broker(&machine, &config, &dial, cluster, None, (slot, problems))?;
    let mut broker = BrokerRole::start(&machine, broker);
    started(&config, cluster);
    let outcome = tokio::select! {
        () = stop => Ok(()),
        error = broker.ended() => Err(error),
        error = servers.ended() => Err(error),
    };
    let outcome = report(outcome);
    if outcome.is_ok() {
        readiness.stops();
        broker.stop().await;
        servers.stop().await;
        info!(node = config.node_id, "stopped");
    } else {
        // The process must not end while a directory is being closed.
        drop((servers, readiness));
        broker.abort().await;
    }
    outcome
}

/// The cluster of the controllers. It is written to the disks, so a configured one is not taken for it.
async fn cluster(controllers: &Controllers) -> ClusterId {
    loop {
        match timeout(ASK_TIMEOUT, ask(controllers)).await {
            Ok(Ok(cluster)) => return cluster,
            Ok(Err(_)) | Err(_) => controllers.forget(),
        }
        tokio::time::sleep(RETRY_PAUSE).await;
    }
}

async fn ask(controllers: &Controllers) -> Result<ClusterId, ApiError> {
    let mut client = AdminClient::new(controllers.channel().await?);
    let options = Some(ReadOptions { stale: true, timeout_ms: 0 });
    let reply = client
        .describe_quorum(DescribeQuorumRequest { options })
        .await
        .map_err(|status| quorate_proto::error::from_status(&status))?;
    let text = reply.into_inner().cluster_id;
    text.parse().map_err(|_| ApiError::new(ErrorName::InconsistentClusterId, format!("{text:?} is no cluster id")))
}
