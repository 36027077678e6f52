//! What a controller may connect to, to learn whether the process of a broker is gone.

use super::{BrokerRegistration, Endpoint};

/// What a controller connects to when it has no stream from a broker: a refused connection there proves that the process is
/// gone, and fences the broker without waiting for the end of its session.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum Probe {
    /// Registered without a statement, or below level 4 of `metadata.version`. A reference broker listens at its first
    /// endpoint; of brokers of another kind nothing is known, and they are not probed.
    #[default]
    Unstated,
    /// Nothing: the end of the session alone fences the broker.
    None,
    /// The endpoint of this name, at which the process listens as long as it lives.
    Endpoint(String),
}

impl Probe {
    /// The endpoint that is named, for messages.
    pub fn endpoint_name(&self) -> Option<&str> {
        match self {
            Self::Unstated | Self::None => None,
            Self::Endpoint(name) => Some(name),
        }
    }
}

impl BrokerRegistration {
    /// The endpoint at which a refused connection proves that the process is gone.
    pub fn probed_endpoint(&self) -> Option<&Endpoint> {
        match &self.probe {
            Probe::Unstated if self.kind.is_log() => self.endpoints.first(),
            Probe::Unstated | Probe::None => None,
            Probe::Endpoint(name) => self.endpoints.iter().find(|endpoint| endpoint.name == *name),
        }
    }
}
