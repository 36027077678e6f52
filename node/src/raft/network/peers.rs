//! Connections to the other voters, by the dial map. A changed address drops the connection at once.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, OnceLock};
use std::time::Duration;

use openraft::async_runtime::watch::WatchReceiver;
use prost::Message;
use tokio::sync::watch;
use tonic::metadata::MetadataValue;
use tonic::transport::{Channel, Endpoint};
use tonic::{Request, Response, Status};

use quorate_client::network::Network;
use quorate_metadata::ids::{ControllerId, DirectoryId};
use quorate_proto::raft as proto;
use quorate_proto::raft::raft_client::RaftClient;

use super::super::dial::DialMap;
use super::super::identity::LocalVoter;
use super::super::types::{NodeId, Types, VoterNode, controller_id, node_id};
use super::super::{Raft, VoterAddress, wire};
use super::{CONNECTION_WINDOW_BYTES, HEADER, MESSAGE_BYTES_MAX, PING_INTERVAL, PING_TIMEOUT, STREAM_WINDOW_BYTES};

const CONNECT_TIMEOUT: Duration = Duration::from_millis(500);
const GREET_TIMEOUT: Duration = Duration::from_millis(500);
/// How soon a changed dial map is noticed by connections in use.
const DIAL_MAP_INTERVAL: Duration = Duration::from_millis(100);

/// What a connection is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Link {
    Log,
    /// Heartbeats, votes, and the other small calls.
    Liveness,
    Snapshot,
}

/// Cheap to clone; all clones share the connections.
#[derive(Clone)]
pub struct Peers {
    shared: Arc<Shared>,
}

struct Shared {
    local: LocalVoter,
    dial: DialMap,
    /// By configuration. It outranks what the membership remembers, so that an address can change with a restart.
    configured: BTreeMap<NodeId, VoterAddress>,
    connections: Mutex<BTreeMap<(NodeId, Link), Connection>>,
    moved: watch::Sender<()>,
    /// Once Raft has started.
    metrics: OnceLock<Metrics>,
}

type Metrics = openraft::alias::WatchReceiverOf<Types, openraft::RaftMetrics<Types>>;

struct Connection {
    address: String,
    announced: String,
    channel: Channel,
}

impl Peers {
    pub fn new(local: LocalVoter, dial: DialMap, voters: &[VoterAddress]) -> Self {
        let configured = voters.iter().map(|voter| (node_id(voter.id), voter.clone())).collect();
        let (connections, moved) = (Mutex::default(), watch::Sender::new(()));
        let metrics = OnceLock::new();
        Self { shared: Arc::new(Shared { local, dial, configured, connections, moved, metrics }) }
    }

    pub fn local(&self) -> &LocalVoter {
        &self.shared.local
    }

    pub fn network(&self) -> &Network {
        self.shared.dial.network()
    }

    /// Where `peer` is dialed now.
    pub fn address(&self, peer: NodeId, announced: &str) -> String {
        self.shared.dial.raft(controller_id(peer), self.raft(peer, announced))
    }

    pub fn configured(&self, peer: NodeId) -> Option<&VoterAddress> {
        self.shared.configured.get(&peer)
    }

    /// Where the Raft port of `peer` is, before the dial map.
    pub fn raft<'a>(&'a self, peer: NodeId, announced: &'a str) -> &'a str {
        self.shared.configured.get(&peer).map_or(announced, |voter| &voter.raft)
    }

    /// Where the API of `peer` is, before the dial map.
    pub fn api<'a>(&'a self, peer: NodeId, announced: &'a str) -> &'a str {
        self.shared.configured.get(&peer).map_or(announced, |voter| &voter.api)
    }

    /// From now on calls say what this node has seen acknowledged as a leader.
    pub fn raft_started(&self, raft: &Raft) {
        // Raft starts once.
        let _ = self.shared.metrics.set(raft.metrics());
    }

    /// The last entry that `peer` has acknowledged to this leader.
    fn acknowledged(&self, peer: NodeId) -> Option<Acknowledged> {
        let metrics = self.shared.metrics.get()?.borrow_watched();
        let matched = metrics.replication.as_ref()?.get(&peer).copied().flatten()?;
        Some(Acknowledged { term: metrics.current_term, index: matched.index })
    }

    /// A client that connects when it is used, and again when it has to.
    pub fn client(&self, peer: NodeId, announced: &str, link: Link) -> Result<RaftClient<Channel>, Status> {
        let address = self.address(peer, announced);
        let mut connections = self.shared.connections.lock().expect("no holder panics");
        let known = connections.get(&(peer, link)).filter(|connection| connection.address == address);
        let channel = match known {
            Some(connection) => connection.channel.clone(),
            None => {
                let channel = self.network().open_lazily(&endpoint(&address)?);
                let connection = Connection { address, announced: announced.to_owned(), channel: channel.clone() };
                connections.insert((peer, link), connection);
                channel
            }
        };
        let client = RaftClient::new(channel);
        Ok(client.max_decoding_message_size(MESSAGE_BYTES_MAX).max_encoding_message_size(MESSAGE_BYTES_MAX))
    }

    /// A call to the voter that the membership knows as (`peer`, directory of `node`).
    pub fn request<T>(&self, peer: NodeId, node: &VoterNode, message: T) -> Request<T> {
        let local = &self.shared.local;
        let header = proto::Header {
            cluster_id: wire::cluster_out(local.cluster()),
            from_id: local.node.get(),
            from_directory: wire::directory_out(local.directory),
            to_id: wire::id_out(peer),
            to_directory: wire::directory_out(node.directory()),
            acknowledged: self.acknowledged(peer).map(|Acknowledged { term, index }| proto::LogId { term, index }),
        };
        let mut request = Request::new(message);
        request.metadata_mut().insert_bin(HEADER, MetadataValue::from_bytes(&header.encode_to_vec()));
        request
    }

    /// Asks the node at the voter's address who it is.
    pub async fn greet(&self, voter: &VoterAddress) -> Result<proto::GreetResponse, Status> {
        let local = &self.shared.local;
        let mut client = self.client(node_id(voter.id), &voter.raft, Link::Liveness)?;
        let request = proto::GreetRequest {
            cluster_id: wire::cluster_out(local.cluster()),
            node_id: local.node.get(),
            directory: wire::directory_out(local.directory),
        };
        match tokio::time::timeout(GREET_TIMEOUT, client.greet(Request::new(request))).await {
            Ok(answer) => answer.map(Response::into_inner),
            Err(_) => Err(Status::deadline_exceeded(format!("nothing within {GREET_TIMEOUT:?}"))),
        }
    }

    /// Changes whenever a connection was dropped because its peer is dialed elsewhere now.
    pub fn moved(&self) -> watch::Receiver<()> {
        self.shared.moved.subscribe()
    }

    /// Drops connections to addresses that are no longer the ones to dial. Runs until dropped.
    pub async fn follow_dial_map(self) {
        loop {
            tokio::time::sleep(DIAL_MAP_INTERVAL).await;
            let mut connections = self.shared.connections.lock().expect("no holder panics");
            let before = connections.len();
            connections
                .retain(|(peer, _), connection| self.address(*peer, &connection.announced) == connection.address);
            if connections.len() < before {
                self.shared.moved.send_replace(());
            }
        }
    }
}

fn endpoint(address: &str) -> Result<Endpoint, Status> {
    let endpoint = Endpoint::from_shared(format!("http://{address}"))
        .map_err(|error| Status::unavailable(format!("{address:?} is no address: {error}")))?;
    Ok(endpoint
        .connect_timeout(CONNECT_TIMEOUT)
        .tcp_nodelay(true)
        .initial_stream_window_size(STREAM_WINDOW_BYTES)
        .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
        .http2_keep_alive_interval(PING_INTERVAL)
        .keep_alive_timeout(PING_TIMEOUT)
        .keep_alive_while_idle(true))
}

/// Who called, and whom it meant.
pub struct Header {
    pub cluster: Option<quorate_metadata::ids::ClusterId>,
    pub from: (ControllerId, DirectoryId),
    pub to: (ControllerId, DirectoryId),
    pub acknowledged: Option<Acknowledged>,
}

/// The last entry that a leader has seen acknowledged by the voter that it calls.
#[derive(Debug, Clone, Copy)]
pub struct Acknowledged {
    /// The term in which it leads.
    pub term: u64,
    pub index: u64,
}

pub fn header_of<T>(request: &Request<T>) -> Result<Header, Status> {
    let value = request
        .metadata()
        .get_bin(HEADER)
        .ok_or_else(|| Status::invalid_argument("a call without a voter's header"))?;
    let bytes = value.to_bytes().map_err(|error| Status::invalid_argument(error.to_string()))?;
    let header = proto::Header::decode(bytes).map_err(|error| Status::invalid_argument(error.to_string()))?;
    let malformed = |error: wire::Malformed| Status::invalid_argument(error.to_string());
    Ok(Header {
        cluster: wire::cluster_in(&header.cluster_id).map_err(malformed)?,
        from: (ControllerId::new(header.from_id), wire::directory_in(&header.from_directory).map_err(malformed)?),
        to: (ControllerId::new(header.to_id), wire::directory_in(&header.to_directory).map_err(malformed)?),
        acknowledged: header.acknowledged.map(|proto::LogId { term, index }| Acknowledged { term, index }),
    })
}
