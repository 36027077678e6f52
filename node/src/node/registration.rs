//! A controller registers when it starts, so that upgrades know what it supports before it is elected.

use std::time::Duration;

use quorate_metadata::record::ControllerRegistration;
use quorate_metadata::{ApiError, ErrorName, MetadataImage};
use tokio::time::sleep;
use tracing::{debug, info};

use crate::api::Gateway;

/// Between two attempts, and until what was registered is replayed here.
const RETRY_PAUSE: Duration = Duration::from_millis(100);

/// Between two looks at what is registered. It changes only if a request of an earlier process of this node, which was
/// still under way, arrived late.
const CHECK_INTERVAL: Duration = Duration::from_secs(10);

/// Keeps this process registered. Returns only when the registration is refused for good.
pub async fn run(gateway: Gateway, registration: ControllerRegistration) -> ApiError {
    let mut announced = false;
    loop {
        if is_registered(&gateway, &registration) {
            if !std::mem::replace(&mut announced, true) {
                info!(controller = %registration.controller, "controller registered");
            }
            sleep(CHECK_INTERVAL).await;
            continue;
        }
        if let Err(error) = gateway.register_controller(&registration).await {
            if is_final(error.name) {
                return error;
            }
            debug!(%error, "controller not yet registered");
        }
        sleep(RETRY_PAUSE).await;
    }
}

fn is_registered(gateway: &Gateway, registration: &ControllerRegistration) -> bool {
    let is_known =
        |image: &MetadataImage| image.controllers.get(&registration.controller).map(|known| **known == *registration);
    gateway.view.inspect(is_known).unwrap_or_default()
}

/// Whether no later attempt of this process can succeed.
fn is_final(name: ErrorName) -> bool {
    matches!(
        name,
        ErrorName::UnsupportedVersion
            | ErrorName::InvalidVoterKey
            | ErrorName::InconsistentClusterId
            | ErrorName::InvalidRegistration
    )
}
