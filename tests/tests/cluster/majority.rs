//! How many nodes may be gone.

use std::time::Duration;

use quorate_proto::admin::{CreateTopicsRequest, ListTopicsRequest, ReadOptions};
use quorate_proto::error::{fact, from_status, is_ours};
use quorate_tests::{CALM, Cluster, mutation, new_topic, outcome, refusal};

#[tokio::test]
async fn five_nodes_serve_without_any_two_and_say_so_without_three() {
    let mut cluster = Cluster::start_with(5, CALM).await;
    cluster.create(new_topic("before", 10, 5)).await;
    let active = cluster.active_controller().await;
    let other = cluster.others(active)[0];
    cluster.kill(active);
    cluster.kill(other);
    cluster.create(new_topic("without-two", 3, 3)).await;
    cluster.broker_to_be(active, "fenced").await;
    cluster.broker_to_be(other, "fenced").await;
    for partition in cluster.partitions().await {
        let leader = partition.leader.expect("three of five are enough");
        assert!(leader != active && leader != other, "{partition:?}");
    }

    let third = cluster.active_controller().await;
    cluster.kill(third);
    let mut asked = Vec::new();
    for id in cluster.running() {
        asked.push((format!("asked-of-{id}"), create_without_majority(&cluster, id).await));
        let linearizable =
            ListTopicsRequest { options: Some(ReadOptions { stale: false, timeout_ms: 1_000 }), ..Default::default() };
        assert_eq!(refusal(cluster.admin(id).list_topics(linearizable)).await, "CONTROLLER_UNAVAILABLE");
        let stale =
            ListTopicsRequest { options: Some(ReadOptions { stale: true, timeout_ms: 1_000 }), ..Default::default() };
        let served = outcome(cluster.admin(id).list_topics(stale)).await.expect("what it has needs no quorum");
        assert!(served.topics.iter().any(|topic| topic.name == "without-two"));
    }

    cluster.restart(third);
    cluster.create(new_topic("with-three-again", 2, 2)).await;
    cluster.restart_all();
    cluster.ready().await;
    cluster.converged().await;
    let topics = cluster.topics().await;
    for (name, was_definite) in asked {
        if !topics.contains(&name) {
            continue;
        }
        assert!(!was_definite, "{name} was refused as certainly not done, and is there");
        assert_eq!(cluster.topic(&name).await.partitions.len(), 4, "{name} is half done");
    }
}

/// Asks one node for a topic while no majority is there; whether it was refused as certainly not done.
async fn create_without_majority(cluster: &Cluster, id: i32) -> bool {
    let topics = vec![new_topic(format!("asked-of-{id}"), 4, 2)];
    let request = CreateTopicsRequest { options: mutation(Duration::from_secs(1)), topics };
    let status = outcome(cluster.admin(id).create_topics(request)).await.expect_err("no majority, no mutation");
    assert!(is_ours(&status), "an error of ours, with its name: {status:?}");
    let error = from_status(&status);
    let name = error.name.to_string();
    let expected = ["CONTROLLER_UNAVAILABLE", "REQUEST_TIMED_OUT", "OUTCOME_UNKNOWN"];
    assert!(expected.contains(&name.as_str()), "{error}");
    assert!(error.is_retryable());
    assert_eq!(fact(&status, "definite"), Some(error.is_definite().to_string()));
    error.is_definite()
}

#[tokio::test]
async fn a_controller_that_lost_its_majority_answers_in_time_and_may_serve_again() {
    let mut cluster = Cluster::start_with(3, CALM).await;
    let active = cluster.active_controller().await;
    let others = cluster.others(active);
    others.iter().for_each(|id| cluster.kill(*id));
    let definite = create_without_majority(&cluster, active).await;
    others.iter().for_each(|id| cluster.restart(*id));
    cluster.ready().await;
    let name = format!("asked-of-{active}");
    // The same name again: either the first attempt takes effect after all, or this one does. Nothing in between.
    let request =
        CreateTopicsRequest { options: mutation(Duration::from_secs(20)), topics: vec![new_topic(&name, 4, 2)] };
    let reply = outcome(cluster.admin(others[0]).create_topics(request)).await.expect("a majority is there");
    match reply.topics[0].error.as_ref().map(|error| error.name.as_str()) {
        None => {}
        Some("TOPIC_ALREADY_EXISTS") => assert!(!definite, "refused as certainly not done, and done"),
        Some(other) => panic!("{other}"),
    }
    assert_eq!(cluster.topic(&name).await.partitions.len(), 4);
    cluster.converged().await;
}
