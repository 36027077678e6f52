//! The API of a node without a controller: every call goes on, as it is, to a controller that can be reached.
//!
//! Bodies pass through untouched and unread, streams included, so a new call needs nothing here. Calls share connections, as
//! many on each as its flow control can bear: a caller that does not read its answers holds up nobody else.

use std::convert::Infallible;
use std::future::Future;
use std::pin::Pin;
use std::sync::atomic::{AtomicUsize, Ordering};
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
    /// Where to begin looking, counted up: not with the one that has just failed.
    first: Arc<AtomicUsize>,
}

#[derive(Clone)]
struct Connection {
    address: String,
    channel: Channel,
    room: Arc<Semaphore>,
}

impl Connection {
    fn place(&self) -> Option<(Channel, OwnedSemaphorePermit)> {
        let place = self.room.clone().try_acquire_owned().ok()?;
        Some((self.channel.clone(), place))
    }
}

impl Controllers {
    pub fn new(voters: Vec<VoterAddress>, dial: DialMap) -> Self {
        Self { voters: voters.into(), dial, current: Arc::default(), first: Arc::default() }
    }

    /// An open connection to any controller, for a short call.
    pub async fn channel(&self) -> Result<Channel, ApiError> {
        self.place().await.map(|(channel, _)| channel)
    }

    /// An open connection to any controller, and a place for a call on it.
    async fn place(&self) -> Result<(Channel, OwnedSemaphorePermit), ApiError> {
        let addresses = self.addresses();
        {
            let mut current = self.current();
            current.retain(|kept| addresses.contains(&kept.address));
            if let Some(place) = current.iter().find_map(Connection::place) {
                return Ok(place);
            }
            if current.len() >= CONNECTIONS_MAX {
                let message = format!("{CONNECTIONS_MAX} connections to the controllers are full; nothing was done");
                return Err(ApiError::new(ErrorName::Throttled, message));
            }
        }
        // The controller that has the others, first of all.
        let known = self.current().first().map(|kept| kept.address.clone());
        for address in known.into_iter().chain(addresses) {
            if let Some(channel) = open(self.dial.network(), &address).await {
                let room = Arc::new(Semaphore::new(CALLS_PER_CONNECTION_MAX as usize));
                let opened = Connection { address, channel, room };
                let place = opened.place().expect("it is new");
                self.current().push(opened);
                return Ok(place);
            }
        }
        Err(ApiError::new(ErrorName::ControllerUnavailable, "no controller can be reached from this node"))
    }

    /// A connection broke, or says nothing: the next call looks for another controller, and begins with another.
    pub fn forget(&self) {
        self.current().clear();
        self.first.fetch_add(1, Ordering::Relaxed);
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
        let (channel, place) = match self.controllers.place().await {
            Ok(place) => place,
            Err(error) => return to_status(&error, Context::default()).into_http(),
        };
        let unanswered = Unanswered(Some(&self.controllers));
        match channel.oneshot(request.map(Body::new)).await {
            Ok(response) => {
                unanswered.answered();
                response.map(|body| Body::new(Placed { body, _place: place }))
            }
            Err(error) => {
                let message = format!("the connection to the controller broke: {error}; it may have been applied");
                to_status(&ApiError::new(ErrorName::OutcomeUnknown, message), Context::default()).into_http()
            }
        }
    }
}

/// An answer that gives its place on the connection back when it has ended.
struct Placed {
    body: Body,
    _place: OwnedSemaphorePermit,
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

/// Forgets the connection when it is dropped: because the call failed, or because its caller gave up waiting.
struct Unanswered<'a>(Option<&'a Controllers>);

impl Unanswered<'_> {
    fn answered(mut self) {
        self.0 = None;
    }
}

impl Drop for Unanswered<'_> {
    fn drop(&mut self) {
        if let Some(controllers) = self.0 {
            controllers.forget();
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
