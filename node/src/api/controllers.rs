//! The registration of controllers: those of other nodes, and this node's own on its way to the active controller.

use std::time::Duration;

use quorate_metadata::ids::{ClusterId, ControllerId};
use quorate_metadata::plan::brokers;
use quorate_metadata::record::ControllerRegistration;
use quorate_metadata::{ApiError, ErrorName};
use quorate_proto::broker::broker_client::BrokerClient;
use quorate_proto::broker::{RegisterControllerReply, RegisterControllerRequest};
use quorate_proto::error::from_status;
use quorate_proto::{endpoint_from_wire, endpoint_to_wire, features_from_wire, features_to_wire};
use tonic::{Response, Status};

use super::broker::{passage, terms};
use super::gateway::Gateway;
use super::request::result;

pub async fn register(
    gateway: &Gateway,
    forwarded: bool,
    body: RegisterControllerRequest,
) -> Result<Response<RegisterControllerReply>, Status> {
    let local = |body: RegisterControllerRequest, left: Duration| async move {
        let wanted = registration(gateway.raft.cluster(), body)?;
        let voters = gateway.raft.voters();
        gateway
            .controller
            .mutate(
                "register-controller",
                terms().within(left),
                move |image, _| brokers::register_controller(image, wanted.clone(), &voters),
                |(), position, planned| RegisterControllerReply { result: result(position, planned) },
            )
            .await
    };
    let remote = |channel, request| async move { BrokerClient::new(channel).register_controller(request).await };
    gateway.route(passage(forwarded), body, local, remote).await
}

impl Gateway {
    /// Registers this node's controller with the active one, which it may be itself.
    pub async fn register_controller(&self, registration: &ControllerRegistration) -> Result<(), ApiError> {
        let request = RegisterControllerRequest {
            cluster_id: self.raft.cluster().to_string(),
            controller: registration.controller.get(),
            incarnation: registration.incarnation.to_string(),
            endpoints: registration.endpoints.iter().map(endpoint_to_wire).collect(),
            features: features_to_wire(&registration.features),
        };
        register(self, false, request).await.map(drop).map_err(|status| from_status(&status))
    }
}

fn registration(cluster: ClusterId, body: RegisterControllerRequest) -> Result<ControllerRegistration, ApiError> {
    let RegisterControllerRequest { cluster_id, controller, incarnation, endpoints, features } = body;
    if cluster_id != cluster.to_string() {
        let message = format!("controller {controller} belongs to cluster {cluster_id:?}, this is cluster {cluster}");
        return Err(ApiError::new(ErrorName::InconsistentClusterId, message));
    }
    let malformed = |what: &str, error: String| {
        ApiError::new(ErrorName::InvalidRegistration, format!("controller {controller}: {what}: {error}"))
    };
    Ok(ControllerRegistration {
        controller: ControllerId::new(controller),
        incarnation: incarnation.parse().map_err(|error| malformed("incarnation", format!("{error}")))?,
        endpoints: endpoints
            .into_iter()
            .map(endpoint_from_wire)
            .collect::<Result<_, _>>()
            .map_err(|error| malformed("endpoint", error.to_string()))?,
        features: features_from_wire(features).map_err(|error| malformed("feature", error.to_string()))?,
    })
}
