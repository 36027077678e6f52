//! The broker role: a member of the cluster that knows, at every moment, which partitions it leads and follows.

mod clean_stop;
mod roles;

use std::path::PathBuf;
use std::time::Duration;

use quorate_client::agent::{AgentConfig, BrokerAgent, Resolve, Standing};
use quorate_metadata::ids::{BrokerId, ClusterId, DirectoryId, IncarnationId};
use quorate_metadata::plan::features;
use quorate_metadata::record::Endpoint;
use quorate_metadata::{ApiError, MetadataImage};
use tokio::sync::watch;
use tokio::time::{Instant, sleep_until};
use tracing::{info, warn};

use clean_stop::CleanStop;
use roles::Roles;

pub struct BrokerConfig {
    pub broker: BrokerId,
    pub cluster: ClusterId,
    pub incarnation: IncarnationId,
    pub endpoint: Endpoint,
    pub rack: Option<String>,
    pub directory: DirectoryId,
    pub data: PathBuf,
    pub bootstrap: Vec<String>,
    pub resolve: Resolve,
    pub registration_timeout: Duration,
    pub controlled_shutdown_timeout: Duration,
}

/// Runs until told to stop; then hands its leaderships over. Fails when its registration is refused for good.
pub async fn run(config: BrokerConfig, mut stop: watch::Receiver<bool>) -> Result<(), ApiError> {
    let clean_stop = CleanStop::at(&config.data);
    let agent_config = AgentConfig {
        broker: config.broker,
        cluster: config.cluster,
        incarnation: config.incarnation,
        endpoints: vec![config.endpoint],
        rack: config.rack,
        features: features::supported(),
        directories: vec![config.directory],
        previous_epoch: clean_stop.take(),
        bootstrap: config.bootstrap,
        resolve: config.resolve,
        registration_timeout: config.registration_timeout,
    };
    let mut agent = BrokerAgent::start(agent_config);
    let follower = follow(config.broker, agent.standing(), agent.metadata().changes());
    tokio::select! {
        () = told(&mut stop) => {}
        error = agent.failed() => return Err(error),
        // It ends with the agent, which knows why.
        () = follower => return Err(agent.failed().await),
    }
    match agent.shut_down(config.controlled_shutdown_timeout).await {
        Some(epoch) => {
            clean_stop.leave(epoch);
            info!(broker = %config.broker, "controlled shutdown done");
        }
        None => warn!(broker = %config.broker, "controlled shutdown not confirmed in time; stopping anyway"),
    }
    Ok(())
}

async fn told(stop: &mut watch::Receiver<bool>) {
    // A dropped sender means that the node is gone, which is a reason to stop as well.
    let _ = stop.wait_for(|stop| *stop).await;
}

/// Notices every change of what the broker may do, and the end of its lease.
async fn follow(
    broker: BrokerId,
    mut standing: watch::Receiver<Standing>,
    mut metadata: watch::Receiver<MetadataImage>,
) {
    let mut roles = Roles::default();
    let mut led = false;
    loop {
        let now = *standing.borrow_and_update();
        let may_lead = now.may_lead(Instant::now());
        if may_lead != led {
            led = may_lead;
            if may_lead {
                info!(%broker, epoch = ?now.epoch, "may lead: unfenced, lease granted");
            } else {
                warn!(%broker, epoch = ?now.epoch, fenced = now.fenced, "stepped down: fenced or lease ended");
            }
        }
        roles.update(broker, &metadata.borrow_and_update().clone(), may_lead);
        tokio::select! {
            changed = standing.changed() => if changed.is_err() { return },
            changed = metadata.changed() => if changed.is_err() { return },
            () = lease_end(&now), if may_lead => {}
        }
    }
}

async fn lease_end(standing: &Standing) {
    match standing.lease_until {
        Some(until) => sleep_until(until).await,
        None => std::future::pending().await,
    }
}
