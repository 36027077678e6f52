//! What controllers connect to when they have no stream from this broker.
//!
//! The process listens there for as long as it lives, so that one refused connection proves that it is gone. An endpoint at
//! which nothing listens would get a healthy broker fenced whenever the controller changes.

use std::time::Duration;

use quorate_metadata::record::{Endpoint, Probe, SecurityProtocol};
use quorate_metadata::{ApiError, ErrorName};
use tokio::net::TcpListener;
use tokio::task::JoinSet;
use tokio::time::sleep;
use tracing::{info, warn};

use super::AgentConfig;

/// The name of the endpoint at which the agent itself listens.
pub const PROBE_ENDPOINT: &str = "PROBE";

/// Without free file descriptors `accept` fails at once, again and again.
const ACCEPT_AGAIN_AFTER: Duration = Duration::from_millis(100);

/// At which endpoint one refused connection proves to a controller that this process is gone.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum ProbedEndpoint {
    /// The agent listens at a free port on the host of the first endpoint, and registers it as the endpoint `PROBE`. Where
    /// that host is no address of this machine (behind a proxy or a port mapping, say), nothing is probed, and the log has a
    /// warning.
    #[default]
    Own,
    /// The endpoint of this name: the process listens there, from before it registers until it ends.
    Named(String),
    /// Nothing is probed. Only the end of its session fences the broker, which takes seconds.
    None,
}

/// What the registration says, and the task that listens where the agent does.
pub(super) struct ProbeListener {
    pub endpoints: Vec<Endpoint>,
    pub probe: Probe,
    _task: JoinSet<()>,
}

impl ProbeListener {
    pub async fn start(config: &AgentConfig) -> Result<Self, ApiError> {
        let (mut endpoints, mut task) = (config.endpoints.clone(), JoinSet::new());
        let probe = match &config.probe {
            ProbedEndpoint::None => Probe::None,
            ProbedEndpoint::Named(name) => Probe::Endpoint(name.clone()),
            ProbedEndpoint::Own => match listen(config).await? {
                Some((listener, endpoint)) => {
                    task.spawn(accept(listener));
                    endpoints.push(endpoint);
                    Probe::Endpoint(PROBE_ENDPOINT.to_owned())
                }
                None => Probe::None,
            },
        };
        Ok(Self { endpoints, probe, _task: task })
    }
}

/// None: it cannot listen at the host that it announces.
async fn listen(config: &AgentConfig) -> Result<Option<(TcpListener, Endpoint)>, ApiError> {
    if config.endpoints.iter().any(|endpoint| endpoint.name == PROBE_ENDPOINT) {
        let message = format!(
            "endpoint name {PROBE_ENDPOINT:?} is the agent's own: expected another name, or that this endpoint is stated \
             as the probed one"
        );
        return Err(ApiError::new(ErrorName::InvalidRegistration, message));
    }
    let (broker, Some(host)) = (config.broker, config.endpoints.first().map(|first| first.host.clone())) else {
        return Ok(None);
    };
    match config.network.listen_at_free_port(&host).await {
        Ok((listener, port)) => {
            info!(%broker, host, port, "listening for probes of the controllers");
            let (name, security) = (PROBE_ENDPOINT.to_owned(), SecurityProtocol::Plaintext);
            Ok(Some((listener, Endpoint { name, host, port, security })))
        }
        Err(error) => {
            warn!(%broker, host, %error, "cannot listen for probes: only the end of its session fences this broker");
            Ok(None)
        }
    }
}

/// A connection that can be made says all that there is to say.
async fn accept(listener: TcpListener) {
    loop {
        if let Err(error) = listener.accept().await {
            warn!(%error, "cannot accept a probe");
            sleep(ACCEPT_AGAIN_AFTER).await;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io;

    use tokio::net::TcpStream;

    use super::*;
    use crate::agent::tests::config;

    fn at(host: &str) -> Endpoint {
        let (name, host) = ("COUNTER".to_owned(), host.to_owned());
        Endpoint { name, host, port: 9, security: SecurityProtocol::Plaintext }
    }

    async fn start(probe: ProbedEndpoint, endpoints: Vec<Endpoint>) -> Result<ProbeListener, ApiError> {
        ProbeListener::start(&AgentConfig { probe, endpoints, ..config(Vec::new()) }).await
    }

    #[tokio::test]
    async fn own_listener_accepts_until_the_agent_ends() {
        let started = start(ProbedEndpoint::Own, vec![at("127.0.0.1")]).await.expect("the loopback is there");
        assert_eq!(started.probe, Probe::Endpoint(PROBE_ENDPOINT.to_owned()));
        let [first, probed] = &started.endpoints[..] else { panic!("{:?}", started.endpoints) };
        assert_eq!((first, &*probed.name), (&at("127.0.0.1"), PROBE_ENDPOINT));
        let address = probed.authority();
        for _ in 0..3 {
            TcpStream::connect(&address).await.expect("it listens");
        }
        drop(started);
        tokio::task::yield_now().await;
        let refused = TcpStream::connect(&address).await.expect_err("it listens no more");
        assert_eq!(refused.kind(), io::ErrorKind::ConnectionRefused);
    }

    #[tokio::test]
    async fn host_of_another_machine_is_not_probed() {
        // An address for documentation (RFC 5737): no machine has it.
        let started = start(ProbedEndpoint::Own, vec![at("192.0.2.1")]).await.expect("it is a warning");
        assert_eq!((started.probe, started.endpoints), (Probe::None, vec![at("192.0.2.1")]));
    }

    #[tokio::test]
    async fn stated_endpoint_or_none_is_registered_as_it_is() {
        let named =
            start(ProbedEndpoint::Named("COUNTER".to_owned()), vec![at("127.0.0.1")]).await.expect("no listener");
        assert_eq!((named.probe, named.endpoints.len()), (Probe::Endpoint("COUNTER".to_owned()), 1));
        let none = start(ProbedEndpoint::None, vec![at("127.0.0.1")]).await.expect("no listener");
        assert_eq!((none.probe, none.endpoints.len()), (Probe::None, 1));
    }

    #[tokio::test]
    async fn own_endpoint_name_in_use_is_refused() {
        let taken = Endpoint { name: PROBE_ENDPOINT.to_owned(), ..at("127.0.0.1") };
        let refused = start(ProbedEndpoint::Own, vec![taken]).await.err().expect("which one is probed is unclear");
        assert_eq!(refused.name, ErrorName::InvalidRegistration);
    }
}
