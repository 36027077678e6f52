//! Brokers that cannot register, and heartbeats from nobody.

use quorate_client::world;
use quorate_metadata::ErrorName;
use quorate_metadata::ids::{ClusterId, DirectoryId};
use quorate_proto::broker::RegisterRequest;
use quorate_proto::error::{CONTROLLER_ENDPOINT, fact, from_status};
use quorate_proto::metadata::VersionRange;
use quorate_tests::{Cluster, Heartbeats, outcome, registration, wait};

use super::{ABSENT, STRANGER, Untouched, cluster_with_an_absent_broker, name_of};

async fn register(cluster: &Cluster, request: RegisterRequest) -> String {
    name_of(outcome(cluster.broker(2).register(request)).await, |_| None)
}

#[tokio::test]
async fn brokers_that_cannot_register() {
    let cluster = cluster_with_an_absent_broker().await;
    let cluster_id = cluster.quorum_seen_by(1).await.expect("it is up").cluster_id;
    let right = registration(&cluster_id, STRANGER);
    let others_directory = cluster.broker_seen(ABSENT).await.expect("it is registered").directories[0].clone();
    let own = right.directories[0].clone();
    let nameless = right.endpoints.iter().cloned().map(|mut endpoint| {
        endpoint.host.clear();
        endpoint
    });
    let far = right.endpoints.iter().cloned().map(|mut endpoint| {
        endpoint.port = 70_000;
        endpoint
    });
    let feature = |min, max| [("metadata.version".to_owned(), VersionRange { min, max })].into();
    let rows = [
        (
            RegisterRequest { cluster_id: ClusterId::new(world::uuid()).to_string(), ..right.clone() },
            "INCONSISTENT_CLUSTER_ID",
        ),
        (RegisterRequest { cluster_id: String::new(), ..right.clone() }, "INCONSISTENT_CLUSTER_ID"),
        (RegisterRequest { broker: 1, ..right.clone() }, "DUPLICATE_BROKER_REGISTRATION"),
        (RegisterRequest { broker: -1, ..right.clone() }, "INVALID_REGISTRATION"),
        (RegisterRequest { incarnation: "not an id".to_owned(), ..right.clone() }, "INVALID_REGISTRATION"),
        (RegisterRequest { features: feature(100, 200), ..right.clone() }, "UNSUPPORTED_VERSION"),
        (RegisterRequest { directories: Vec::new(), ..right.clone() }, "INVALID_REGISTRATION"),
        (RegisterRequest { directories: vec![own.clone(), own], ..right.clone() }, "INVALID_REGISTRATION"),
        (RegisterRequest { directories: vec![others_directory], ..right.clone() }, "INVALID_REGISTRATION"),
        (
            RegisterRequest { directories: vec![DirectoryId::UNASSIGNED.to_string()], ..right.clone() },
            "INVALID_REGISTRATION",
        ),
        (RegisterRequest { directories: vec!["not an id".to_owned()], ..right.clone() }, "INVALID_REGISTRATION"),
        (RegisterRequest { endpoints: Vec::new(), ..right.clone() }, "INVALID_REGISTRATION"),
        (RegisterRequest { endpoints: nameless.collect(), ..right.clone() }, "INVALID_REGISTRATION"),
        (RegisterRequest { endpoints: far.collect(), ..right.clone() }, "INVALID_REGISTRATION"),
    ];
    let untouched = Untouched::since_now(&cluster).await;
    for (request, expected) in rows {
        let description = format!("{request:?}");
        assert_eq!(register(&cluster, request).await, expected, "{description}");
    }
    untouched.check(&cluster).await;
    assert_eq!(register(&cluster, right).await, "none", "each row was wrong in nothing but what it shows");
}

#[tokio::test]
async fn heartbeats_that_cannot_count() {
    let cluster = cluster_with_an_absent_broker().await;
    let active = cluster.active_controller().await;
    let standby = cluster.others(active)[0];
    let epoch = cluster.broker_seen(ABSENT).await.expect("it is registered").epoch;
    let untouched = Untouched::since_now(&cluster).await;
    for (broker, epoch) in [(ABSENT, epoch + 1), (ABSENT, -1), (STRANGER, 0), (-1, 0)] {
        let name = wait("a controller that confirms its office in time", async || {
            let refused = Heartbeats::open(cluster.broker(active), broker, epoch).await;
            let name = from_status(&refused.err().expect("an epoch that nobody has")).name;
            (name != ErrorName::RequestTimedOut).then_some(name)
        })
        .await;
        assert_eq!(name, ErrorName::StaleBrokerEpoch, "broker {broker} epoch {epoch}");
    }
    let status = Heartbeats::open(cluster.broker(standby), ABSENT, epoch).await.err().expect("not the controller");
    assert_eq!(from_status(&status).name.as_str(), "NOT_CONTROLLER");
    assert_eq!(fact(&status, CONTROLLER_ENDPOINT).as_deref(), Some(cluster.api(active)));
    untouched.check(&cluster).await;
}
