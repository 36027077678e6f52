//! The API of a node without a controller: every call goes on, as it is, to a controller that can be reached.
//!
//! Bodies pass through untouched and unread, streams included, so a new call needs nothing here.

use std::convert::Infallible;
use std::future::Future;
use std::pin::Pin;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::task::{Context as TaskContext, Poll};
use std::time::Duration;

use quorate_client::network::Network;
use quorate_metadata::{ApiError, ErrorName};
use quorate_proto::error::{Context, to_status};
use tonic::body::Body;
use tonic::transport::{Channel, Endpoint};
use tower::{Service, ServiceExt};

use crate::raft::{DialMap, VoterAddress};

const CONNECT_TIMEOUT: Duration = Duration::from_millis(500);

/// A controller that is paused keeps its connections: so long, and the calls on them fail.
const KEEP_ALIVE_INTERVAL: Duration = Duration::from_secs(1);
const KEEP_ALIVE_TIMEOUT: Duration = Duration::from_secs(2);

/// Connections to the controllers, one at a time: the one that works is kept until it does not.
#[derive(Clone)]
pub struct Controllers {
    voters: Arc<[VoterAddress]>,
    dial: DialMap,
    current: Arc<Mutex<Option<(String, Channel)>>>,
    /// Where to begin looking, counted up: not with the one that has just failed.
    first: Arc<AtomicUsize>,
}

impl Controllers {
    pub fn new(voters: Vec<VoterAddress>, dial: DialMap) -> Self {
        Self { voters: voters.into(), dial, current: Arc::default(), first: Arc::default() }
    }

    /// An open connection to any controller.
    pub async fn channel(&self) -> Result<Channel, ApiError> {
        let addresses = self.addresses();
        let kept = self.current().clone().filter(|(address, _)| addresses.contains(address));
        if let Some((_, channel)) = kept {
            return Ok(channel);
        }
        for address in addresses {
            if let Some(channel) = open(self.dial.network(), &address).await {
                *self.current() = Some((address, channel.clone()));
                return Ok(channel);
            }
        }
        Err(ApiError::new(ErrorName::ControllerUnavailable, "no controller can be reached from this node"))
    }

    /// The connection broke, or says nothing: the next call looks for another, and begins with another.
    pub fn forget(&self) {
        *self.current() = None;
        self.first.fetch_add(1, Ordering::Relaxed);
    }

    fn addresses(&self) -> Vec<String> {
        let first = self.first.load(Ordering::Relaxed) % self.voters.len();
        let (before, from) = self.voters.split_at(first);
        from.iter().chain(before).map(|voter| self.dial.api(voter.id, &voter.api)).collect()
    }

    fn current(&self) -> std::sync::MutexGuard<'_, Option<(String, Channel)>> {
        self.current.lock().expect("no one panics while holding the connection")
    }
}

async fn open(network: &Network, address: &str) -> Option<Channel> {
    let endpoint = Endpoint::from_shared(format!("http://{address}")).ok()?;
    let endpoint = endpoint
        .connect_timeout(CONNECT_TIMEOUT)
        .tcp_nodelay(true)
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
        let channel = match self.controllers.channel().await {
            Ok(channel) => channel,
            Err(error) => return to_status(&error, Context::default()).into_http(),
        };
        let unanswered = Unanswered(Some(&self.controllers));
        match channel.oneshot(request.map(Body::new)).await {
            Ok(response) => {
                unanswered.answered();
                response
            }
            Err(error) => {
                let message = format!("the connection to the controller broke: {error}; it may have been applied");
                to_status(&ApiError::new(ErrorName::OutcomeUnknown, message), Context::default()).into_http()
            }
        }
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
