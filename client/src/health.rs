//! Whether a node that does not answer a call answers at all: a process that is stopped, or a host that is cut off, keeps
//! its connections. It is left when it answers no health check while another node does, so that an overloaded cluster is
//! not taken for a broken node.

use std::time::Duration;

use futures::StreamExt;
use futures::stream::FuturesUnordered;
use quorate_proto::admin::admin_server::AdminServer;
use tokio::time::{sleep, timeout};
use tonic::Code;
use tonic::server::NamedService;
use tonic::transport::Channel;
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_client::HealthClient;

use crate::nodes::Nodes;

/// How soon a node is suspected, and how long it has to answer a check.
#[derive(Debug, Clone, Copy)]
struct Patience {
    check_after: Duration,
    check_timeout: Duration,
}

/// With a node that has answered before, which may have much to do.
const KNOWN: Patience = Patience { check_after: Duration::from_millis(250), check_timeout: Duration::from_secs(1) };

/// With a node that has not answered anything yet.
const NEW: Patience = Patience { check_after: Duration::from_millis(100), check_timeout: Duration::from_millis(300) };

/// Between two checks of a node that is not left.
const CHECK_INTERVAL: Duration = Duration::from_secs(1);

/// Waits until the node at `place` answers nothing although another one does; the place of that one.
pub async fn silence(nodes: &Nodes, place: usize) -> usize {
    if nodes.len() == 1 {
        return std::future::pending().await;
    }
    let node = nodes.at(place);
    let Patience { check_after, check_timeout } = if node.has_answered() { KNOWN } else { NEW };
    sleep(check_after).await;
    loop {
        if !answers(&node.channel, check_timeout).await
            && let Some(other) = first_to_answer(nodes, place, check_timeout).await
        {
            return other;
        }
        sleep(CHECK_INTERVAL).await;
    }
}

async fn first_to_answer(nodes: &Nodes, except: usize, within: Duration) -> Option<usize> {
    let others = (0..nodes.len()).filter(|place| *place != except);
    let check = |place: usize| async move { answers(&nodes.at(place).channel, within).await.then_some(place) };
    let mut checks: FuturesUnordered<_> = others.map(check).collect();
    while let Some(checked) = checks.next().await {
        if checked.is_some() {
            return checked;
        }
    }
    None
}

/// Asks for a service, which a node answers by itself: the node as a whole (no name) would ask the quorum first. Whatever it
/// answers, a node that does not know the check is there as well.
async fn answers(channel: &Channel, within: Duration) -> bool {
    let mut client = HealthClient::new(channel.clone());
    let request = HealthCheckRequest { service: AdminServer::<()>::NAME.to_owned() };
    match timeout(within, client.check(request)).await {
        Ok(Ok(_)) => true,
        Ok(Err(status)) => matches!(status.code(), Code::Unimplemented | Code::NotFound),
        Err(_) => false,
    }
}
