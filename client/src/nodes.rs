//! The nodes that a client knows, a lazily opened channel to each, and which of them it talks to now.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use tonic::transport::{Channel, ClientTlsConfig, Endpoint};

use crate::error::InvalidAddress;
use crate::network::Network;

/// How a client behaves.
#[derive(Debug, Clone)]
pub struct Options {
    /// Of a whole call, its retries included.
    pub timeout: Duration,
    /// Of one attempt. A node that is paused or cut off costs so much before the next one is asked.
    pub attempt_timeout: Duration,
    /// To a host that does not answer; a refused connection is noticed at once.
    pub connect_timeout: Duration,
    pub tls: Option<ClientTlsConfig>,
    pub network: Network,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            timeout: Duration::from_secs(10),
            attempt_timeout: Duration::from_secs(3),
            connect_timeout: Duration::from_secs(1),
            tls: None,
            network: Network::default(),
        }
    }
}

#[derive(Debug, Clone)]
pub(crate) struct Node {
    pub address: String,
    pub channel: Channel,
    has_answered: Arc<AtomicBool>,
}

impl Node {
    pub fn new(address: String, channel: Channel) -> Self {
        Self { address, channel, has_answered: Arc::default() }
    }

    /// Whether it has ever answered a call.
    pub fn has_answered(&self) -> bool {
        self.has_answered.load(Ordering::Relaxed)
    }

    pub fn answered(&self) {
        self.has_answered.store(true, Ordering::Relaxed);
    }
}

#[derive(Debug)]
pub(crate) struct Nodes {
    nodes: Vec<Node>,
    current: AtomicUsize,
}

impl Nodes {
    pub fn open(addresses: &[impl AsRef<str>], options: &Options) -> Result<Self, InvalidAddress> {
        let nodes: Vec<Node> =
            addresses.iter().map(|address| open(address.as_ref(), options)).collect::<Result<_, _>>()?;
        if nodes.is_empty() {
            return Err(InvalidAddress::None);
        }
        Ok(Self::new(nodes))
    }

    pub fn new(nodes: Vec<Node>) -> Self {
        Self { nodes, current: AtomicUsize::new(0) }
    }

    pub fn len(&self) -> usize {
        self.nodes.len()
    }

    /// The node to ask now, and its place.
    pub fn current(&self) -> (usize, &Node) {
        let place = self.current.load(Ordering::Relaxed) % self.nodes.len();
        (place, &self.nodes[place])
    }

    pub fn at(&self, place: usize) -> &Node {
        &self.nodes[place]
    }

    /// Turns to the next node, unless another call has done so already.
    pub fn leave(&self, place: usize) {
        self.leave_for(place, (place + 1) % self.nodes.len());
    }

    /// Turns to another node, unless another call has turned away already.
    pub fn leave_for(&self, place: usize, other: usize) {
        // A lost race means that a concurrent call has turned already: once is enough.
        let _ = self.current.compare_exchange(place, other, Ordering::Relaxed, Ordering::Relaxed);
    }
}

fn open(address: &str, options: &Options) -> Result<Node, InvalidAddress> {
    let malformed = || InvalidAddress::Malformed(address.to_owned());
    let (host, port) = address.rsplit_once(':').ok_or_else(malformed)?;
    if host.is_empty() || port.parse::<u16>().is_err() {
        return Err(malformed());
    }
    let scheme = if options.tls.is_some() { "https" } else { "http" };
    let mut endpoint = Endpoint::from_shared(format!("{scheme}://{address}"))
        .map_err(|_| malformed())?
        .connect_timeout(options.connect_timeout)
        .tcp_nodelay(true)
        .http2_keep_alive_interval(Duration::from_secs(10))
        .keep_alive_timeout(Duration::from_secs(5))
        .keep_alive_while_idle(true);
    if let Some(tls) = &options.tls {
        endpoint = endpoint.tls_config(tls.clone()).map_err(|error| InvalidAddress::Tls(error.to_string()))?;
    }
    Ok(Node::new(address.to_owned(), options.network.open_lazily(&endpoint)))
}
