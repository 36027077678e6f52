//! The API of a node without a controller: every call goes on, as it is, to a controller that can be reached.
//!
//! Bodies pass through untouched and unread, streams included, so a new call needs nothing here. Calls share connections, as
//! many on each as its flow control can bear: a caller that does not read its answers holds up nobody else.

use std::convert::Infallible;
use std::future::Future;
use std::pin::Pin;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::task::{Context as TaskContext, Poll};
use std::time::Duration;

use bytes::Bytes;
use quorate_client::network::Network;
use quorate_metadata::{ApiError, ErrorName};
use quorate_proto::error::{Context, to_status};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tonic::Status;
use tonic::body::Body;
use tonic::transport::{Channel, Endpoint};
use tower::{Service, ServiceExt};

use crate::raft::{DialMap, VoterAddress};

const CONNECT_TIMEOUT: Duration = Duration::from_millis(500);

/// A controller that is paused keeps its connections: so long, and the calls on them fail.
const KEEP_ALIVE_INTERVAL: Duration = Duration::from_secs(1);
const KEEP_ALIVE_TIMEOUT: Duration = Duration::from_secs(2);

/// Calls on one connection, streams among them; well below what a server allows (256).
const CALLS_PER_CONNECTION_MAX: u32 = 64;

/// Each call may have so much on its way that its caller has not read.
const STREAM_WINDOW_BYTES: u32 = 64 * 1024;

/// Enough for all calls of a connection, none of which is read.
const CONNECTION_WINDOW_BYTES: u32 = 2 * CALLS_PER_CONNECTION_MAX * STREAM_WINDOW_BYTES;

/// Calls beyond what they bear are refused.
const CONNECTIONS_MAX: usize = 64;

/// Connections to one controller at a time: the one that works is kept until it does not.
#[derive(Clone)]
pub struct Controllers {
    voters: Arc<[VoterAddress]>,
    dial: DialMap,
    current: Arc<Mutex<Vec<Connection>>>,
    /// Held while a connection is opened: whoever needs one meanwhile may have a place on it.
    opening: Arc<tokio::sync::Mutex<()>>,
    /// Where to begin looking, counted up: not with the one that has just failed.
    first: Arc<AtomicUsize>,
    opened: Arc<AtomicU64>,
}

#[derive(Clone)]
struct Connection {
    /// Counted up.
    number: u64,
    address: String,
    channel: Channel,
    room: Arc<Semaphore>,
}

impl Connection {
    fn place(&self) -> Option<Place> {
        let permit = self.room.clone().try_acquire_owned().ok()?;
        Some(Place { connection: self.number, channel: self.channel.clone(), permit })
    }
}

/// For one call.
struct Place {
    connection: u64,
    channel: Channel,
    permit: OwnedSemaphorePermit,
}

impl Controllers {
    pub fn new(voters: Vec<VoterAddress>, dial: DialMap) -> Self {
        Self {
            voters: voters.into(),
            dial,
            current: Arc::default(),
            opening: Arc::default(),
            first: Arc::default(),
            opened: Arc::default(),
        }
    }

    /// An open connection to any controller, for a short call.
    pub async fn channel(&self) -> Result<Channel, ApiError> {
        self.place().await.map(|place| place.channel)
    }

    /// An open connection to any controller, and a place for a call on it.
    async fn place(&self) -> Result<Place, ApiError> {
        if let Some(place) = self.known_place() {
            return Ok(place);
        }
        let _opening = self.opening.lock().await;
        if let Some(place) = self.known_place() {
            return Ok(place);
        }
        let (open_already, known) = {
            let current = self.current();
            (current.len(), current.first().map(|kept| kept.address.clone()))
        };
        if open_already >= CONNECTIONS_MAX {
            let message = format!("{CONNECTIONS_MAX} connections to the controllers are full; nothing was done");
            return Err(ApiError::new(ErrorName::Throttled, message));
        }
        // The controller that has the others, first of all.
        for address in known.into_iter().chain(self.addresses()) {
            if let Some(channel) = open(self.dial.network(), &address).await {
                let room = Arc::new(Semaphore::new(CALLS_PER_CONNECTION_MAX as usize));
                let number = self.opened.fetch_add(1, Ordering::Relaxed);
                let opened = Connection { number, address, channel, room };
                let place = opened.place().expect("it is new");
                self.current().push(opened);
                return Ok(place);
            }
        }
        Err(ApiError::new(ErrorName::ControllerUnavailable, "no controller can be reached from this node"))
    }

    fn known_place(&self) -> Option<Place> {
        let addresses = self.addresses();
        let mut current = self.current();
        current.retain(|kept| addresses.contains(&kept.address));
        let place = current.iter().find_map(Connection::place)?;
        // One that is idle beside the one that has a place is not needed any more.
        let is_idle = |kept: &Connection| kept.room.available_permits() == CALLS_PER_CONNECTION_MAX as usize;
        current.retain(|kept| kept.number == place.connection || !is_idle(kept));
        Some(place)
    }

    /// The controller cannot be reached: the next call looks for another one first.
    pub fn forget(&self) {
        self.current().clear();
        self.first.fetch_add(1, Ordering::Relaxed);
    }

    /// A call has got no answer on this connection. Others may.
    fn forget_connection(&self, number: u64) {
        let mut current = self.current();
        current.retain(|kept| kept.number != number);
        if current.is_empty() {
            self.first.fetch_add(1, Ordering::Relaxed);
        }
    }

    fn addresses(&self) -> Vec<String> {
        let first = self.first.load(Ordering::Relaxed) % self.voters.len();
        let (before, from) = self.voters.split_at(first);
        from.iter().chain(before).map(|voter| self.dial.api(voter.id, &voter.api)).collect()
    }

    fn current(&self) -> std::sync::MutexGuard<'_, Vec<Connection>> {
        self.current.lock().expect("no one panics while holding the connections")
    }
}

async fn open(network: &Network, address: &str) -> Option<Channel> {
    let endpoint = Endpoint::from_shared(format!("http://{address}")).ok()?;
    let endpoint = endpoint
        .connect_timeout(CONNECT_TIMEOUT)
        .tcp_nodelay(true)
        .initial_stream_window_size(STREAM_WINDOW_BYTES)
        .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
        .http2_keep_alive_interval(KEEP_ALIVE_INTERVAL)
        .keep_alive_timeout(KEEP_ALIVE_TIMEOUT)
        .keep_alive_while_idle(true);
    network.open(&endpoint).await.ok()
}

#[derive(Clone)]
pub struct Proxy {
    pub controllers: Controllers,
}

impl Proxy {
    async fn forward(self, request: http::Request<axum::body::Body>) -> http::Response<Body> {
        let Place { connection, channel, permit } = match self.controllers.place().await {
            Ok(place) => place,
            Err(error) => return to_status(&error, Context::default()).into_http(),
        };
        let unanswered = Unanswered { controllers: &self.controllers, connection: Some(connection) };
        match channel.oneshot(request.map(Body::new)).await {
            Ok(response) => {
                unanswered.answered();
                response.map(|body| Body::new(Placed { body, _permit: permit }))
            }
            Err(error) => {
                unanswered.answered();
                self.controllers.forget();
                let message = format!("the connection to the controller broke: {error}; it may have been applied");
                to_status(&ApiError::new(ErrorName::OutcomeUnknown, message), Context::default()).into_http()
            }
        }
    }
}

/// An answer that gives its place on the connection back when it has ended.
struct Placed {
    body: Body,
    _permit: OwnedSemaphorePermit,
}

impl http_body::Body for Placed {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut TaskContext<'_>,
    ) -> Poll<Option<Result<http_body::Frame<Bytes>, Status>>> {
        Pin::new(&mut self.body).poll_frame(cx)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> http_body::SizeHint {
        self.body.size_hint()
    }
}

/// Forgets the connection when its caller gives up waiting: a controller that is paused keeps its connections.
struct Unanswered<'a> {
    controllers: &'a Controllers,
    connection: Option<u64>,
}

impl Unanswered<'_> {
    fn answered(mut self) {
        self.connection = None;
    }
}

impl Drop for Unanswered<'_> {
    fn drop(&mut self) {
        if let Some(connection) = self.connection {
            self.controllers.forget_connection(connection);
        }
    }
}

impl Service<http::Request<axum::body::Body>> for Proxy {
    type Response = http::Response<Body>;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Infallible>> + Send>>;

    fn poll_ready(&mut self, _: &mut TaskContext<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<axum::body::Body>) -> Self::Future {
        let proxy = self.clone();
        Box::pin(async move { Ok(proxy.forward(request).await) })
    }
}
