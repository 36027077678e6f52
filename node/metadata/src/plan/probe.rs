//! What a registration states of the endpoint that controllers probe.

use crate::error::{ApiError, ErrorName};
use crate::image::{LEVEL_OF_PROBES, METADATA_VERSION, MetadataImage};
use crate::plan::brokers::{RegisterBroker, invalid_registration};
use crate::record::Probe;

/// The probe as the finalized level records it. Below the level of probes it stands in no record: a controller probes the
/// first endpoint of a reference broker, and nothing of others.
pub(super) fn recorded(image: &MetadataImage, request: &RegisterBroker) -> Result<Probe, ApiError> {
    if let Probe::Endpoint(name) = &request.probe
        && !request.endpoints.iter().any(|endpoint| endpoint.name == *name)
    {
        let names: Vec<&str> = request.endpoints.iter().map(|endpoint| endpoint.name.as_str()).collect();
        let why = format!("names the probed endpoint {name:?}, expected one of its endpoints: {}", names.join(", "));
        return Err(invalid_registration(request, &why));
    }
    let level = image.level();
    if level >= LEVEL_OF_PROBES {
        return Ok(request.probe.clone());
    }
    let is_first = |name: &str| request.endpoints.first().is_some_and(|first| first.name == name);
    let is_in_effect = match &request.probe {
        Probe::Unstated => true,
        Probe::Endpoint(name) => !request.kind.is_log() || is_first(name),
        Probe::None => !request.kind.is_log(),
    };
    if is_in_effect {
        return Ok(Probe::Unstated);
    }
    let message = format!(
        "broker {}: probe {} of kind {} needs {METADATA_VERSION} {LEVEL_OF_PROBES}, the cluster is at {level}, where its \
         first endpoint is probed",
        request.broker,
        request.probe.endpoint_name().unwrap_or("none"),
        request.kind
    );
    Err(ApiError::new(ErrorName::UnsupportedVersion, message))
}
