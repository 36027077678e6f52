//! What `/healthz`, `/readyz` and the health service say, from the start of a process to its end.

use quorate_tests::{Cluster, ENDLESS_SESSIONS, channel, new_topic, wait};
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_health::pb::health_client::HealthClient;

const OK: u16 = 200;
const UNAVAILABLE: u16 = 503;

async fn answers(cluster: &Cluster, id: i32, path: &str) -> (u16, String) {
    wait("the HTTP port to be open", async || cluster.http(id, path).await).await
}

async fn is_ready(cluster: &Cluster, id: i32) {
    wait("the node to be ready", async || {
        let (status, _) = cluster.http(id, "/readyz").await?;
        (status == OK).then_some(())
    })
    .await;
}

/// What the health service says of the whole node.
async fn health(cluster: &Cluster, id: i32) -> ServingStatus {
    let mut client = HealthClient::new(channel(cluster.api(id)));
    let reply = client.check(HealthCheckRequest::default()).await.expect("it is served").into_inner();
    ServingStatus::try_from(reply.status).expect("a status that is known")
}

#[tokio::test]
async fn a_node_that_waits_for_the_others_answers_at_once_and_is_not_ready() {
    let mut cluster = Cluster::prepare(3, &[]).await;
    cluster.restart(1);
    assert_eq!(answers(&cluster, 1, "/healthz").await, (OK, "ok\n".to_owned()));
    let (status, reason) = answers(&cluster, 1, "/readyz").await;
    assert_eq!(status, UNAVAILABLE);
    assert!(reason.contains("have not formed a cluster yet"), "{reason}");
    let (status, metrics) = answers(&cluster, 1, "/metrics").await;
    assert_eq!(status, OK);
    assert!(metrics.contains("quorate_"), "{metrics}");
    cluster.restart(2);
    cluster.restart(3);
    for id in cluster.ids() {
        is_ready(&cluster, id).await;
        assert_eq!(health(&cluster, id).await, ServingStatus::Serving);
    }
}

#[tokio::test]
async fn a_node_that_was_stopped_is_ready_again_when_it_is_back_in_its_isrs() {
    let mut cluster = Cluster::start(3).await;
    cluster.create(new_topic("orders", 20, 3)).await;
    for id in cluster.ids() {
        is_ready(&cluster, id).await;
    }
    for id in cluster.ids() {
        cluster.stop(id).await;
        cluster.restart(id);
        is_ready(&cluster, id).await;
        for partition in cluster.topic("orders").await.partitions {
            assert!(partition.isr.contains(&id), "{partition:?}");
        }
    }
}

#[tokio::test]
async fn a_voter_stays_in_the_quorum_when_its_broker_is_refused() {
    let mut cluster = Cluster::start_with(3, &[ENDLESS_SESSIONS]).await;
    let active = cluster.active_controller().await;
    let [refused, other] = cluster.others(active)[..] else { panic!("three nodes") };
    cluster.kill(refused);
    cluster.broker_to_be(refused, "fenced").await;
    let (_, _taken) = cluster.join_phantom(refused).await;
    cluster.set(refused, "broker_registration_timeout_ms", "100");
    cluster.restart(refused);
    wait("the reason why it is not ready", async || {
        let (status, reason) = cluster.http(refused, "/readyz").await?;
        (status == UNAVAILABLE && reason.contains("DUPLICATE_BROKER_REGISTRATION")).then_some(())
    })
    .await;
    cluster.kill(other);
    cluster.create(new_topic("by-the-two-voters", 1, 1)).await;
    cluster.assert_alive();
}
