//! The API's listener, with every limit set on purpose: tonic's own defaults leave streams and time unbounded.

use std::collections::BTreeSet;
use std::future::Future;
use std::io;
use std::time::Duration;

use quorate_client::network::{Port, to_tokio};
use quorate_metadata::{ApiError, ErrorName};
use quorate_proto::admin::admin_server::AdminServer;
use quorate_proto::encoded::broker_server::BrokerServer;
use quorate_proto::error::{Context, to_status};
use quorate_proto::log::log_server::LogServer;
use tonic::Status;
use tonic::server::NamedService;
use tonic::service::Routes;
use tonic::transport::Server;
use tower::ServiceBuilder;
use tower::util::MapResponseLayer;

use super::admin::AdminService;
use super::broker::BrokerService;
use super::gateway::Gateway;
use super::health::NodeHealth;
use super::heartbeat::HeartbeatTerms;
use super::log::{DataPlaneSlot, LogService};
use super::proxy::Proxy;
use super::readiness::Readiness;
use crate::incoming::{self, Purpose};

/// A request of 10 000 topics with explicit assignments fits four times over.
pub const REQUEST_BYTES_MAX: usize = 4 * 1024 * 1024;

/// An answer to a request that knows no pages (16 MiB) fits four times over, and clients take no more than this.
pub const REPLY_BYTES_MAX: usize = 64 * 1024 * 1024;

/// HTTP/2's customary bound; hyper's own is unlimited when unset.
const STREAMS_PER_CONNECTION_MAX: u32 = 256;

const HEADER_BYTES_MAX: u32 = 16 * 1024;

/// Requests under way per connection; those beyond it wait on the connection, which is back-pressure.
const REQUESTS_PER_CONNECTION_MAX: usize = 256;

const KEEP_ALIVE_INTERVAL: Duration = Duration::from_secs(10);
const KEEP_ALIVE_TIMEOUT: Duration = Duration::from_secs(5);

/// Lists with thousands of items come through in one window.
const WINDOW_BYTES: u32 = 4 * 1024 * 1024;

pub struct ApiServer {
    pub gateway: Gateway,
    pub heartbeat: HeartbeatTerms,
}

/// What a node's API is made of.
pub struct Api {
    pub control: Control,
    /// On a node with a broker.
    pub log: Option<DataPlaneSlot>,
    pub readiness: Readiness,
}

/// Where the control plane is served.
pub enum Control {
    /// On a node with a controller: here.
    Here(Box<ApiServer>),
    /// Every call goes on to a controller.
    Elsewhere(Proxy),
}

/// Serves until `stop` resolves, then lets the calls under way end.
pub async fn serve(api: Api, port: Port, stop: impl Future<Output = ()>) -> Result<(), ServeError> {
    let router = Server::builder()
        .max_concurrent_streams(STREAMS_PER_CONNECTION_MAX)
        .concurrency_limit_per_connection(REQUESTS_PER_CONNECTION_MAX)
        .http2_max_header_list_size(HEADER_BYTES_MAX)
        .http2_keepalive_interval(Some(KEEP_ALIVE_INTERVAL))
        .http2_keepalive_timeout(Some(KEEP_ALIVE_TIMEOUT))
        .initial_stream_window_size(WINDOW_BYTES)
        .initial_connection_window_size(WINDOW_BYTES)
        .layer(ServiceBuilder::new().layer(MapResponseLayer::new(name_oversized)))
        .add_routes(routes(api));
    match port {
        Port::Given(incoming) => Ok(router.serve_with_incoming_shutdown(incoming, stop).await?),
        Port::Socket(listener) => {
            let incoming = incoming::accept(to_tokio(listener)?, Purpose::Api)?;
            Ok(router.serve_with_incoming_shutdown(incoming, stop).await?)
        }
    }
}

#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    #[error(transparent)]
    Socket(#[from] io::Error),
    #[error(transparent)]
    Transport(#[from] tonic::transport::Error),
}

fn routes(api: Api) -> Routes {
    let mut names = BTreeSet::from([AdminServer::<AdminService>::NAME, BrokerServer::<BrokerService>::NAME]);
    let reflection = tonic_reflection::server::Builder::configure()
        .register_encoded_file_descriptor_set(quorate_proto::DESCRIPTORS)
        .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
        .build_v1()
        .expect("our own descriptors are well formed");
    names.extend(api.log.is_some().then_some(LogServer::<LogService>::NAME));
    let mut common = Routes::new(NodeHealth::server(api.readiness, names)).add_service(reflection);
    if let Some(slot) = api.log {
        common = common.add_service(LogService::server(slot));
    }
    match api.control {
        Control::Here(server) => services(common, *server),
        Control::Elsewhere(proxy) => Routes::from(common.into_axum_router().fallback_service(proxy)),
    }
}

fn services(routes: Routes, server: ApiServer) -> Routes {
    let admin = AdminServer::new(AdminService { gateway: server.gateway.clone() })
        .max_decoding_message_size(REQUEST_BYTES_MAX)
        .max_encoding_message_size(REPLY_BYTES_MAX);
    let broker = BrokerServer::new(BrokerService { gateway: server.gateway, heartbeat: server.heartbeat })
        .max_decoding_message_size(REQUEST_BYTES_MAX)
        .max_encoding_message_size(REPLY_BYTES_MAX);
    routes.add_service(admin).add_service(broker)
}

/// The limit that the library names: services have their own.
fn limit_in(message: &str) -> Option<usize> {
    let (_, limit) = message.split_once("the limit is: ")?;
    limit.split(' ').next()?.parse().ok()
}

/// The library refuses a message above the limit without a name of ours: gives it one.
fn name_oversized<B: Default>(response: http::Response<B>) -> http::Response<B> {
    const OUT_OF_RANGE: &str = "11";
    let headers = response.headers();
    let oversized = headers.get("grpc-status").is_some_and(|status| status == OUT_OF_RANGE)
        && !headers.contains_key("grpc-status-details-bin");
    if !oversized {
        return response;
    }
    let limit = Status::from_header_map(headers).and_then(|status| limit_in(status.message()));
    let message = match limit {
        Some(limit) => format!("the message is larger than {limit} bytes"),
        None => "the message is larger than this service takes".to_owned(),
    };
    to_status(&ApiError::new(ErrorName::MessageTooLarge, message), Context::default()).into_http()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_oversized_message_is_refused_with_the_limit_that_counted() {
        let refuse = |message: &str| {
            let response = Status::out_of_range(message).into_http::<()>();
            Status::from_header_map(name_oversized(response).headers()).expect("it has a status").message().to_owned()
        };
        let by_library = "Error, decoded message length too large: found 20000000 bytes, the limit is: 16777216 bytes";
        assert!(refuse(by_library).contains("the message is larger than 16777216 bytes"));
        assert!(refuse("otherwise").contains("the message is larger than this service takes"));
    }
}
