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

use crate::api::Gateway;
use crate::metrics::Metrics;

/// How long a readiness check may ask the quorum.
const READY_TIMEOUT: Duration = Duration::from_secs(1);

#[derive(Clone)]
pub struct HttpState {
    pub gateway: Gateway,
    pub metrics: Arc<Metrics>,
}

pub async fn serve(state: HttpState, listener: TcpListener, stop: impl Future<Output = ()> + Send + 'static) -> io::Result<()> {
    let router = Router::new()
        .route("/healthz", get(|| async { "ok\n" }))
        .route("/readyz", get(ready))
        .route("/metrics", get(metrics))
        .with_state(state);
    axum::serve(listener, router).with_graceful_shutdown(stop).await
}

/// Ready: there is an active controller, and this node has replayed what a majority has committed.
async fn ready(State(state): State<HttpState>) -> (StatusCode, String) {
    match state.gateway.raft.read_barrier(READY_TIMEOUT).await {
        Ok(()) => (StatusCode::OK, format!("ready at offset {}\n", state.gateway.view.image().next_offset)),
        Err(error) => (StatusCode::SERVICE_UNAVAILABLE, format!("not ready: {error}\n")),
    }
}

async fn metrics(State(state): State<HttpState>) -> String {
    state.metrics.render(&state.gateway.view.image(), state.gateway.claimed().is_some())
}
