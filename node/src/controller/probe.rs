//! Asking a silent broker's host whether the process is still there.
//!
//! Only a refused connection is evidence: the host answered that nobody listens. A reset or a time-out says nothing
//! about the process, so then the session timeout decides.

use std::io;
use std::time::Duration;

use quorate_client::network::Network;
use quorate_metadata::ids::{BrokerEpoch, BrokerId, ControllerId};
use quorate_metadata::record::BrokerRegistration;
use tokio::time::{sleep, timeout};

use crate::raft::DialMap;

/// Long enough for a loaded host on the same site to answer, short enough to be worth asking again.
const PROBE_TIMEOUT: Duration = Duration::from_millis(500);

/// What a probe found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Evidence {
    /// Host up, process gone.
    Refused,
    /// Somebody accepts connections there.
    Listening,
    /// Nothing learned.
    Unknown,
}

/// The result of probing one incarnation of a broker.
#[derive(Debug, Clone, Copy)]
pub struct Probed {
    pub broker: BrokerId,
    pub epoch: BrokerEpoch,
    pub evidence: Evidence,
}

/// Pauses between knocks while somebody still listens: a dying process loses its connections before its ports.
const KNOCK_AGAIN_AFTER: [Duration; 5] = [
    Duration::from_millis(5),
    Duration::from_millis(10),
    Duration::from_millis(20),
    Duration::from_millis(40),
    Duration::from_millis(80),
];

/// Connects to the endpoint that the registration names for it, by the address that this node dials it under.
pub async fn probe(broker: &BrokerRegistration, dial: &DialMap) -> Probed {
    let evidence = match broker.probed_endpoint() {
        // Brokers and controllers share one namespace, and one map of addresses.
        Some(endpoint) => {
            let address = dial.api(ControllerId::new(broker.broker.get()), &endpoint.authority());
            knock_patiently(dial.network(), &address).await
        }
        None => Evidence::Unknown,
    };
    Probed { broker: broker.broker, epoch: broker.epoch, evidence }
}

async fn knock_patiently(network: &Network, address: &str) -> Evidence {
    let mut evidence = knock(network, address).await;
    for pause in KNOCK_AGAIN_AFTER {
        if evidence != Evidence::Listening {
            break;
        }
        sleep(pause).await;
        evidence = knock(network, address).await;
    }
    evidence
}

async fn knock(network: &Network, address: &str) -> Evidence {
    match timeout(PROBE_TIMEOUT, network.knock(address)).await {
        Ok(Ok(())) => Evidence::Listening,
        Ok(Err(error)) if error.kind() == io::ErrorKind::ConnectionRefused => Evidence::Refused,
        Ok(Err(_)) | Err(_) => Evidence::Unknown,
    }
}

#[cfg(test)]
mod tests {
    use quorate_metadata::record::{Endpoint, Kind, Probe, SecurityProtocol};
    use tokio::net::TcpListener;

    use super::*;
    use crate::api::fixture::registration;

    fn endpoint(name: &str, listener: &TcpListener) -> Endpoint {
        let (name, port) = (name.to_owned(), listener.local_addr().expect("bound").port());
        Endpoint { name, host: "127.0.0.1".to_owned(), port, security: SecurityProtocol::Plaintext }
    }

    /// Nothing listens at the endpoint OWN, and something does at the endpoint PROBE.
    #[tokio::test]
    async fn stated_endpoint_alone_is_probed() {
        let closed = TcpListener::bind("127.0.0.1:0").await.expect("loopback");
        let open = TcpListener::bind("127.0.0.1:0").await.expect("loopback");
        let endpoints = vec![endpoint("OWN", &closed), endpoint("PROBE", &open)];
        drop(closed);
        let named = |name: &str| Probe::Endpoint(name.to_owned());
        let (log, counter) = (Kind::LOG, Kind::from("counter"));
        for (kind, stated, expected) in [
            (&log, Probe::Unstated, Evidence::Refused),
            (&counter, Probe::Unstated, Evidence::Unknown),
            (&log, Probe::None, Evidence::Unknown),
            (&counter, named("OWN"), Evidence::Refused),
            (&counter, named("PROBE"), Evidence::Listening),
        ] {
            let (kind, endpoints) = (kind.clone(), endpoints.clone());
            let broker = BrokerRegistration { kind, endpoints, probe: stated, ..registration(1) };
            assert_eq!(probe(&broker, &DialMap::none()).await.evidence, expected, "{} {:?}", broker.kind, broker.probe);
        }
    }

    #[tokio::test]
    async fn only_a_refused_connection_is_evidence() {
        let sockets = Network::default();
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("loopback");
        let address = listener.local_addr().expect("bound").to_string();
        assert_eq!(knock(&sockets, &address).await, Evidence::Listening);
        let dying = tokio::spawn(async move {
            sleep(Duration::from_millis(20)).await;
            drop(listener);
        });
        assert_eq!(
            knock_patiently(&sockets, &address).await,
            Evidence::Refused,
            "the port of a dying process outlives its connections"
        );
        dying.await.expect("it only waits");
        assert_eq!(knock(&sockets, "host.invalid:1").await, Evidence::Unknown);
    }
}
