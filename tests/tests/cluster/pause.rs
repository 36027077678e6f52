//! A broker that stands still: its connections are open and nothing comes.

use std::time::Duration;

use quorate_client::Freshness;
use quorate_proto::admin::{CreateTopicsRequest, MutationOptions};
use quorate_proto::metadata::record::Record;
use quorate_tests::{
    CALM, Cluster, ENDLESS_SESSIONS, UNHURRIED, beginning_of, mutation, new_topic, outcome, records_between, refusal,
    wait,
};

#[tokio::test]
async fn a_paused_broker_is_fenced_when_its_session_ends_and_comes_back_by_itself() {
    let mut cluster = Cluster::start_with(3, CALM).await;
    cluster.create(new_topic("orders", 6, 3)).await;
    let active = cluster.active_controller().await;
    let paused = cluster.others(active)[0];
    let before = cluster.broker_seen(paused).await.expect("it is registered");
    let partitions = cluster.partitions().await;
    assert!(partitions.iter().any(|partition| partition.leader == Some(paused)), "node {paused} leads something");
    cluster.pause(paused);
    cluster.broker_to_be(paused, "fenced").await;
    for (before, after) in partitions.iter().zip(cluster.topic("orders").await.partitions) {
        assert!(!after.isr.contains(&paused) && after.leader != Some(paused), "{after:?}");
        // Where it followed, the leader may have put it out for its lag before.
        if before.leader == Some(paused) {
            assert_eq!(beginning_of(before.leader_epoch + 1, &after).cause, format!("broker-fenced {paused}"));
        }
    }
    assert!(cluster.printed(active).contains("session timed out"), "the evidence is silence");
    assert_eq!(cluster.active_controller().await, active);

    cluster.resume(paused);
    let after = cluster.broker_to_be(paused, "unfenced").await;
    assert_eq!(after.epoch, before.epoch, "the same process keeps its epoch");
    assert_eq!(after.incarnation, before.incarnation);
    // It learned that it may not lead, and then that it may again.
    wait("the broker to step down and to be let in again", async || {
        let printed = cluster.printed(paused);
        let stepped_down = printed.find("stepped down")?;
        printed[stepped_down..].contains("may lead").then_some(())
    })
    .await;
    cluster.converged().await;
}

#[tokio::test]
async fn a_paused_broker_keeps_its_place_while_its_session_lasts() {
    let mut cluster = Cluster::start_with(3, &[ENDLESS_SESSIONS]).await;
    cluster.create(new_topic("orders", 6, 3)).await;
    let paused = cluster.standby().await;
    let (from, _) = cluster.converged().await;
    cluster.pause(paused);
    for round in 0..30 {
        cluster.create(new_topic(format!("meanwhile-{round}"), 1, 1)).await;
    }
    cluster.resume(paused);
    cluster.create(new_topic("afterwards", 1, 3)).await;
    let (until, _) = cluster.converged().await;
    for record in records_between(cluster.broker(paused), from, until).await {
        assert!(!matches!(record, Record::FenceBroker(_)), "fenced within its session");
    }
}

#[tokio::test]
async fn a_paused_controller_takes_no_other_broker_with_it() {
    let mut cluster = Cluster::start_with(3, CALM).await;
    cluster.create(new_topic("orders", 6, 3)).await;
    let paused = cluster.active_controller().await;
    let others = cluster.others(paused);
    let (from, _) = cluster.converged().await;
    cluster.pause(paused);
    cluster.broker_to_be(paused, "fenced").await;
    let (until, _) = cluster.converged().await;
    for record in records_between(cluster.broker(others[0]), from, until).await {
        let Record::FenceBroker(event) = record else { continue };
        assert_eq!(event.broker, paused, "a broker that lives was fenced");
    }
    for id in others {
        assert!(!cluster.printed(id).contains("stepped down"), "node {id} lost its lease to another node's pause");
    }
    cluster.resume(paused);
    cluster.broker_to_be(paused, "unfenced").await;
    cluster.converged().await;
}

#[tokio::test]
async fn a_forwarded_request_does_not_wait_for_a_paused_controller() {
    /// The longest that a request may ask for, and longer than a test waits for an answer.
    const TIMEOUT: Duration = Duration::from_secs(120);
    let create = |name: &str, options| CreateTopicsRequest { options, topics: vec![new_topic(name, 1, 3)] };
    let mut cluster = Cluster::start_with(3, UNHURRIED).await;
    let paused = cluster.active_controller().await;
    let follower = cluster.others(paused)[0];
    let (mut once, mut again) = (cluster.admin(follower), cluster.admin(follower));
    outcome(once.create_topics(create("before", mutation(TIMEOUT)))).await.expect("it is forwarded");

    cluster.pause(paused);
    let unmarked = MutationOptions { timeout_ms: 120_000, ..MutationOptions::default() };
    let (refused, repeated) = tokio::join!(
        refusal(once.create_topics(create("unknown", Some(unmarked)))),
        outcome(again.create_topics(create("recognised", mutation(TIMEOUT)))),
    );
    assert_eq!(refused, "OUTCOME_UNKNOWN", "the paused controller may have it in its log");
    let reply = repeated.expect("it is sent again to the successor");
    assert!(reply.topics[0].error.is_none(), "{reply:?}");
    cluster.resume(paused);
    cluster.converged().await;
}

#[tokio::test]
async fn a_node_without_a_controller_leaves_one_that_is_paused() {
    let mut cluster = Cluster::prepare(3, &[]).await;
    cluster.add_broker(4);
    cluster.restart_all();
    cluster.ready().await;
    let beside = cluster.client_of(&[4]);
    // It talks to the first controller that it finds, which is the first in its list.
    beside.list_topics(Freshness::Linearizable).await.expect("it passes calls on");
    cluster.pause(1);
    beside.list_topics(Freshness::Linearizable).await.expect("it passes calls on to another");
    cluster.resume(1);
    cluster.broker_to_be(1, "unfenced").await;
    cluster.converged().await;
}
