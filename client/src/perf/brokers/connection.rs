//! Channels that several simulated brokers share, and which node is the active controller.

use std::collections::HashMap;
use std::sync::Mutex;
use std::time::Duration;

use tokio::time::Instant;
use tonic::transport::Channel;

use crate::nodes::{Node, Nodes};
use crate::perf::{PerfError, Target};
use crate::{AdminClient, InvalidAddress};

/// How long an answer about the active controller serves all brokers, also that there is none: thousands ask at the same
/// time.
const CONTROLLER_KNOWN_FOR: Duration = Duration::from_millis(50);

pub(super) struct Connections {
    target: Target,
    per_connection: usize,
    /// By address and group of brokers.
    channels: Mutex<HashMap<(String, usize), Channel>>,
    controller: tokio::sync::Mutex<Option<Known>>,
}

/// What was found out about the active controller, and when.
struct Known {
    since: Instant,
    /// `None`: no node named it.
    address: Option<String>,
}

impl Connections {
    pub fn new(target: Target, per_connection: usize) -> Self {
        Self { target, per_connection, channels: Mutex::default(), controller: tokio::sync::Mutex::default() }
    }

    /// To a node that is known to be the active controller, for as long as an answer about it counts.
    #[cfg(test)]
    pub fn to_controller(target: Target, address: String) -> Self {
        let since = Instant::now() + Duration::from_secs(3600);
        let controller = tokio::sync::Mutex::new(Some(Known { since, address: Some(address) }));
        Self { controller, ..Self::new(target, 1) }
    }

    /// To the active controller, for the broker at this place of its fleet.
    pub async fn controller(&self, place: usize) -> Result<Channel, PerfError> {
        let mut known = self.controller.lock().await;
        let address = match &*known {
            Some(known) if known.since.elapsed() < CONTROLLER_KNOWN_FOR => known.address.clone(),
            _ => {
                let found = self.target.controller_first().await;
                let address = found.as_ref().ok().map(|target| target.bootstrap[0].clone());
                *known = Some(Known { since: Instant::now(), address: address.clone() });
                found?;
                address
            }
        };
        drop(known);
        let address = address.ok_or_else(|| PerfError::cluster("no node knows the active controller"))?;
        Ok(self.channel(&address, place)?)
    }

    /// A client of the broker at this place, which begins with a node of its own: brokers spread over the nodes.
    pub fn client(&self, place: usize) -> Result<AdminClient, InvalidAddress> {
        let mut addresses = self.target.bootstrap.clone();
        let first = place % addresses.len().max(1);
        addresses.rotate_left(first);
        let node = |address: String| {
            let channel = self.channel(&address, place)?;
            Ok::<_, InvalidAddress>(Node::new(address, channel))
        };
        let nodes: Vec<Node> = addresses.into_iter().map(node).collect::<Result<_, InvalidAddress>>()?;
        if nodes.is_empty() {
            return Err(InvalidAddress::None);
        }
        Ok(AdminClient::over(Nodes::new(nodes), self.target.options.clone()))
    }

    fn channel(&self, address: &str, place: usize) -> Result<Channel, InvalidAddress> {
        let group = place / self.per_connection.max(1);
        let mut channels = self.channels.lock().expect("no one panics while holding the channels");
        if let Some(channel) = channels.get(&(address.to_owned(), group)) {
            return Ok(channel.clone());
        }
        let channel = Nodes::open(&[address], &self.target.options)?.current().1.channel.clone();
        channels.insert((address.to_owned(), group), channel.clone());
        Ok(channel)
    }
}
