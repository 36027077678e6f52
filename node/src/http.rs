//! The HTTP port: `/metrics`, `/healthz`, `/readyz`. It answers from the start of the process on.

use std::io;
use std::sync::Arc;

use axum::Router;
use axum::extract::State;
use axum::http::StatusCode;
use axum::routing::get;
use tokio::net::TcpListener;

use crate::api::Readiness;
use crate::incoming::HttpListener;
use crate::metrics::Metrics;
use crate::replica::MetadataView;

/// What the answers are read from.
#[derive(Clone)]
pub struct HttpState {
    pub readiness: Readiness,
    /// On a node with a controller.
    pub metrics: Option<(Arc<Metrics>, MetadataView)>,
}

pub async fn serve(state: HttpState, listener: TcpListener) -> io::Result<()> {
    let router = Router::new()
        .route("/healthz", get(|| async { "ok\n" }))
        .route("/readyz", get(ready))
        .route("/metrics", get(metrics))
        .with_state(state);
    axum::serve(HttpListener::new(listener)?, router).await
}

async fn ready(State(state): State<HttpState>) -> (StatusCode, String) {
    match state.readiness.check().await {
        Ok(said) => (StatusCode::OK, format!("{said}\n")),
        Err(reason) => (StatusCode::SERVICE_UNAVAILABLE, format!("not ready: {reason}\n")),
    }
}

async fn metrics(State(state): State<HttpState>) -> String {
    let Some((metrics, view)) = state.metrics else { return String::new() };
    metrics.render(&view.image(), view.feed.load(), state.readiness.is_active_controller())
}
