//! The health service of gRPC: of the whole node, and of each service that it has.

use std::collections::BTreeSet;
use std::pin::Pin;
use std::time::Duration;

use tokio::sync::mpsc;
use tokio_stream::Stream;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status};
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_health::pb::health_server::{Health, HealthServer};
use tonic_health::pb::{HealthCheckRequest, HealthCheckResponse};

use super::readiness::Readiness;

/// Between two looks on behalf of a watcher.
const LOOK_INTERVAL: Duration = Duration::from_secs(1);

/// The name that stands for the whole node.
const WHOLE_NODE: &str = "";

#[derive(Clone)]
pub struct NodeHealth {
    readiness: Readiness,
    services: BTreeSet<&'static str>,
}

impl NodeHealth {
    /// The services serve as long as the process runs; the node as a whole when it is ready.
    pub fn server(readiness: Readiness, services: BTreeSet<&'static str>) -> HealthServer<Self> {
        HealthServer::new(Self { readiness, services })
    }

    async fn status(&self, service: &str) -> Option<ServingStatus> {
        if service != WHOLE_NODE {
            return self.services.contains(service).then_some(ServingStatus::Serving);
        }
        let is_ready = self.readiness.check().await.is_ok();
        Some(if is_ready { ServingStatus::Serving } else { ServingStatus::NotServing })
    }
}

fn response(status: ServingStatus) -> HealthCheckResponse {
    HealthCheckResponse { status: status.into() }
}

#[tonic::async_trait]
impl Health for NodeHealth {
    async fn check(&self, request: Request<HealthCheckRequest>) -> Result<Response<HealthCheckResponse>, Status> {
        let status = self.status(&request.get_ref().service).await;
        status.map(|status| Response::new(response(status))).ok_or_else(|| Status::not_found("no such service"))
    }

    type WatchStream = Pin<Box<dyn Stream<Item = Result<HealthCheckResponse, Status>> + Send>>;

    /// The status now, and whenever it has changed.
    async fn watch(&self, request: Request<HealthCheckRequest>) -> Result<Response<Self::WatchStream>, Status> {
        let (health, service) = (self.clone(), request.into_inner().service);
        let (sender, statuses) = mpsc::channel(1);
        tokio::spawn(async move {
            let mut last = None;
            loop {
                let status = health.status(&service).await.unwrap_or(ServingStatus::ServiceUnknown);
                if last.replace(status) != Some(status) && sender.send(Ok(response(status))).await.is_err() {
                    return;
                }
                tokio::select! {
                    () = sender.closed() => return,
                    () = tokio::time::sleep(LOOK_INTERVAL) => {}
                }
            }
        });
        Ok(Response::new(Box::pin(ReceiverStream::new(statuses))))
    }
}
