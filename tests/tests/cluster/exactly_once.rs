//! A mutation with a client id and a request id takes effect once, however often and wherever it is sent (P8).

use std::time::Duration;

use quorate_client::world;
use quorate_proto::admin::{
    AlterConfigsRequest, ConfigAlteration, ConfigChange, ConfigOp, ConfigResource, CreateTopicsReply,
    CreateTopicsRequest, config_resource,
};
use quorate_proto::metadata::record::Record;
use quorate_tests::{Cluster, mutation, new_topic, outcome, records_between, wait};

fn create(name: &str) -> CreateTopicsRequest {
    CreateTopicsRequest { options: mutation(Duration::from_secs(30)), topics: vec![new_topic(name, 3, 3)] }
}

async fn send(cluster: &Cluster, id: i32, request: &CreateTopicsRequest) -> CreateTopicsReply {
    outcome(cluster.admin(id).create_topics(request.clone())).await.expect("answered within its time")
}

#[tokio::test]
async fn a_retry_gets_the_first_answer_over_failover_restart_and_snapshot() {
    let settings = [("snapshot_log_bytes", "20000"), ("log_entries_kept", "5")];
    let mut cluster = Cluster::start_with(3, &settings).await;
    let request = create("once");
    let active = cluster.active_controller().await;
    let first = send(&cluster, active, &request).await;
    assert!(first.topics[0].error.is_none(), "{first:?}");
    for id in cluster.ids() {
        assert_eq!(send(&cluster, id, &request).await, first, "a retry through node {id}");
    }

    cluster.kill(active);
    for id in cluster.running() {
        assert_eq!(send(&cluster, id, &request).await, first, "after a failover, through node {id}");
    }
    cluster.restart(active);
    cluster.ready().await;

    // Other clients write until every node has put the request into a snapshot.
    wait("a snapshot on every node", async || {
        for _ in 0..10 {
            let request = create(&format!("filler-{}", world::uuid()));
            outcome(cluster.admin(active).create_topics(request)).await.expect("answered within its time");
        }
        cluster.ids().into_iter().all(|id| cluster.printed(id).contains("snapshot written")).then_some(())
    })
    .await;
    cluster.kill_all();
    cluster.restart_all();
    cluster.ready().await;
    for id in cluster.ids() {
        assert_eq!(send(&cluster, id, &request).await, first, "after a restart from snapshots, through node {id}");
    }
    assert_eq!(cluster.topic("once").await.id, first.topics[0].id);
    cluster.converged().await;
}

#[tokio::test]
async fn copies_that_arrive_everywhere_at_once_take_effect_once() {
    let cluster = Cluster::start(3).await;
    let (from, _) = cluster.converged().await;
    let mut until = from;
    for round in 0..5 {
        let request = create(&format!("at-once-{round}"));
        let (one, two, three) =
            tokio::join!(send(&cluster, 1, &request), send(&cluster, 2, &request), send(&cluster, 3, &request));
        assert!(one.topics[0].error.is_none(), "{one:?}");
        assert!(one == two && two == three, "{one:?} {two:?} {three:?}");
        until = one.result.expect("a mutation has a place in the log").offset;
    }
    let records = records_between(cluster.broker(1), from, until).await;
    let written = |is_meant: fn(&Record) -> bool| records.iter().filter(|record| is_meant(record)).count();
    assert_eq!(written(|record| matches!(record, Record::CreateTopic(_))), 5, "{records:?}");
    assert_eq!(written(|record| matches!(record, Record::CreatePartition(_))), 15, "{records:?}");
    assert_eq!(written(|record| matches!(record, Record::RequestApplied(_))), 5, "{records:?}");
}

#[tokio::test]
async fn the_same_ids_with_a_mutation_in_flight_when_the_controller_dies() {
    let mut cluster = Cluster::start(3).await;
    for round in 0..3 {
        let active = cluster.active_controller().await;
        let standby = cluster.others(active)[0];
        let request = create(&format!("in-flight-{round}"));
        let mut node = cluster.admin(standby);
        let sent = request.clone();
        let first = tokio::spawn(async move { node.create_topics(sent).await });
        tokio::task::yield_now().await;
        cluster.kill(active);
        let first = first.await.expect("a call does not panic").map(tonic::Response::into_inner);
        let second = send(&cluster, standby, &request).await;
        assert!(second.topics[0].error.is_none(), "done once, by the first or by the second: {second:?}");
        if let Ok(first) = first {
            assert_eq!(first, second);
        }
        cluster.restart(active);
        cluster.ready().await;
    }
    cluster.converged().await;
}

#[tokio::test]
async fn a_retried_append_appends_once() {
    let mut cluster = Cluster::start(3).await;
    cluster.create(new_topic("compacted", 1, 3)).await;
    let resource = ConfigResource { resource: Some(config_resource::Resource::Topic("compacted".to_owned())) };
    let change = ConfigChange {
        key: "cleanup.policy".to_owned(),
        op: ConfigOp::Append.into(),
        value: "compact".to_owned(),
        ..ConfigChange::default()
    };
    let request = AlterConfigsRequest {
        options: mutation(Duration::from_secs(30)),
        resources: vec![ConfigAlteration { resource: Some(resource), changes: vec![change] }],
    };
    let active = cluster.active_controller().await;
    let first = outcome(cluster.admin(active).alter_configs(request.clone())).await.expect("answered");
    cluster.kill(active);
    for id in cluster.running() {
        assert_eq!(outcome(cluster.admin(id).alter_configs(request.clone())).await.expect("answered"), first);
    }
    assert_eq!(cluster.topic("compacted").await.configs["cleanup.policy"], "delete,compact");
}
