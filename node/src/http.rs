//! The HTTP port: `/metrics`, `/healthz`, `/readyz`.

use std::future::Future;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::extract::State;
use axum::http::StatusCode;
use axum::routing::get;
use tokio::net::TcpListener;

use crate::api::{Controllers, Gateway};
use crate::metrics::Metrics;

/// How long a readiness check may ask the quorum.
const READY_TIMEOUT: Duration = Duration::from_secs(1);

/// What the answers are read from.
#[derive(Clone)]
pub enum HttpState {
    Controller {
        gateway: Gateway,
        metrics: Arc<Metrics>,
    },
    /// A node without a controller: ready when a controller can be reached.
    BrokerOnly {
        controllers: Controllers,
    },
}

pub async fn serve(
    state: HttpState,
    listener: TcpListener,
    stop: impl Future<Output = ()> + Send + 'static,
) -> io::Result<()> {
    let router = Router::new()
        .route("/healthz", get(|| async { "ok\n" }))
        .route("/readyz", get(ready))
        .route("/metrics", get(metrics))
        .with_state(state);
    axum::serve(listener, router).with_graceful_shutdown(stop).await
}

/// Ready: there is an active controller, and this node has replayed what a majority has committed.
async fn ready(State(state): State<HttpState>) -> (StatusCode, String) {
    let refused = |error: String| (StatusCode::SERVICE_UNAVAILABLE, format!("not ready: {error}\n"));
    match state {
        HttpState::Controller { gateway, .. } => match gateway.raft.read_barrier(READY_TIMEOUT).await {
            Ok(()) => (StatusCode::OK, format!("ready at offset {}\n", gateway.view.image().next_offset)),
            Err(error) => refused(error.to_string()),
        },
        HttpState::BrokerOnly { controllers } => match controllers.channel().await {
            Ok(_) => (StatusCode::OK, "ready\n".to_owned()),
            Err(error) => refused(error.message),
        },
    }
}

async fn metrics(State(state): State<HttpState>) -> String {
    match state {
        HttpState::Controller { gateway, metrics } => {
            metrics.render(&gateway.view.image(), gateway.view.feed.load(), gateway.claimed().is_some())
        }
        HttpState::BrokerOnly { .. } => String::new(),
    }
}
