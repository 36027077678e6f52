//! The calls of a producer to brokers.

use std::collections::HashMap;
use std::time::Duration;

use quorate_metadata::{ApiError, ErrorName};
use quorate_proto::error::from_status;
use quorate_proto::log::log_client::LogClient;
use quorate_proto::log::{InitProducerRequest, ProduceReply, ProduceRequest};
use tokio::time::timeout;
use tonic::transport::{Channel, ClientTlsConfig, Endpoint};
use tonic::{Request, Status};

use crate::network::Network;

const CONNECT_TIMEOUT: Duration = Duration::from_millis(300);
const KEEP_ALIVE_INTERVAL: Duration = Duration::from_secs(1);
const KEEP_ALIVE_TIMEOUT: Duration = Duration::from_secs(2);

/// One channel for each broker, by its address.
pub struct Channels {
    network: Network,
    tls: Option<ClientTlsConfig>,
    open: HashMap<String, Channel>,
}

impl Channels {
    pub fn over(network: Network, tls: Option<ClientTlsConfig>) -> Self {
        Self { network, tls, open: HashMap::new() }
    }

    pub fn open(&mut self, address: &str) -> Result<Channel, Status> {
        if let Some(open) = self.open.get(address) {
            return Ok(open.clone());
        }
        let unusable = |error: tonic::transport::Error| Status::unavailable(error.to_string());
        let scheme = if self.tls.is_some() { "https" } else { "http" };
        let mut endpoint = Endpoint::from_shared(format!("{scheme}://{address}"))
            .map_err(unusable)?
            .connect_timeout(CONNECT_TIMEOUT)
            .tcp_nodelay(true)
            .http2_keep_alive_interval(KEEP_ALIVE_INTERVAL)
            .keep_alive_timeout(KEEP_ALIVE_TIMEOUT)
            .initial_stream_window_size(4 << 20);
        if let Some(tls) = &self.tls {
            endpoint = endpoint.tls_config(tls.clone()).map_err(unusable)?;
        }
        let channel = self.network.open_lazily(&endpoint);
        self.open.insert(address.to_owned(), channel.clone());
        Ok(channel)
    }

    /// The next call connects anew.
    pub fn forget(&mut self, endpoint: &str) {
        self.open.remove(endpoint);
    }
}

/// A broker that keeps to the time of the request answers before this gives up.
pub async fn produce(
    channel: Result<Channel, Status>,
    request: ProduceRequest,
    limit: Duration,
) -> Result<ProduceReply, Status> {
    let mut client = LogClient::new(channel?);
    let limit = limit + Duration::from_secs(1);
    match timeout(limit, client.produce(Request::new(request))).await {
        Ok(reply) => reply.map(tonic::Response::into_inner),
        Err(_) => Err(Status::deadline_exceeded("the broker does not answer")),
    }
}

/// `newest`: an id above all that were given so far.
pub async fn identify(channel: Result<Channel, Status>, newest: bool) -> Result<i64, ApiError> {
    let failed = |status: Status| from_status(&status);
    let mut client = LogClient::new(channel.map_err(failed)?);
    let request = InitProducerRequest { timeout_ms: 4_000, newest };
    let reply = timeout(Duration::from_secs(5), client.init_producer(request)).await;
    let late = |_| ApiError::new(ErrorName::RequestTimedOut, "no producer id in time");
    Ok(reply.map_err(late)?.map_err(failed)?.into_inner().producer_id)
}
