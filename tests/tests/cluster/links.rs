//! Cut links. Whoever is cut off may say nothing any more, and has nothing to take back afterwards.

use std::time::Duration;

use quorate_client::{AdminClient, Freshness};
use quorate_proto::admin::{CreateTopicsRequest, DeleteTopicsRequest, ListTopicsRequest, ReadOptions, TopicRef};
use quorate_proto::broker::HeartbeatReply;
use quorate_proto::error::{from_status, is_ours};
use quorate_proto::metadata::record::Record;
use quorate_tests::{
    CALM, Cluster, Heartbeats, Link, Links, mutation, new_topic, outcome, records_between, refusal, wait,
};
use tonic::Status;

/// Not the id of any node.
const PHANTOM: i32 = 9;

async fn linked(settings: &[(&str, &str)]) -> (Cluster, Links) {
    let mut cluster = Cluster::prepare(3, settings).await;
    let links = Links::between(&mut cluster);
    cluster.restart_all();
    cluster.ready().await;
    (cluster, links)
}

/// The controller that these nodes agree to have.
async fn controller_of(client: &AdminClient) -> Option<i32> {
    let reply = client.describe_quorum(Freshness::Linearizable).await.ok()?;
    reply.leader_id.filter(|leader| *leader == reply.node_id)
}

#[tokio::test]
async fn a_controller_that_is_cut_off_falls_silent_and_the_majority_goes_on() {
    for link in [Link::Silent, Link::Refusing] {
        let (mut cluster, links) = linked(&[]).await;
        cluster.create(new_topic("orders", 6, 3)).await;
        let (alone, mut phantom) = cluster.join_phantom(PHANTOM).await;
        let others = cluster.others(alone);

        links.isolate(alone, link);
        // It may be in office still, and would refuse by what it knows: that there is no such topic is not for it to say.
        let topics = vec![TopicRef { name: Some("by-the-majority".into()), id: None }];
        let request = DeleteTopicsRequest { options: mutation(Duration::from_millis(500)), topics };
        let unconfirmed = outcome(cluster.admin(alone).delete_topics(request)).await;
        unconfirmed.expect_err("no majority, no answer, not even a refusal");
        let majority = cluster.client_of(&others);
        wait("another controller", async || controller_of(&majority).await.filter(|active| *active != alone)).await;
        no_leases_from(&mut phantom).await;
        let definite = refused_create(&cluster, alone).await;
        let read =
            ListTopicsRequest { options: Some(ReadOptions { stale: false, timeout_ms: 1_000 }), ..Default::default() };
        assert_eq!(refusal(cluster.admin(alone).list_topics(read)).await, "CONTROLLER_UNAVAILABLE");
        wait("the broker beside it to be fenced", async || {
            let brokers = majority.list_brokers(Freshness::Linearizable).await.ok()?.brokers;
            brokers.iter().any(|broker| broker.id == alone && broker.state == "fenced").then_some(())
        })
        .await;
        wait("its own broker to lead nothing without a lease", async || {
            cluster.printed(alone).contains("stepped down").then_some(())
        })
        .await;
        let topics = vec![new_topic("by-the-majority", 2, 2)];
        let created = majority.create_topics(topics, quorate_client::Mode::Apply).await.expect("a majority is there");
        assert!(created.topics[0].error.is_none(), "{created:?}");

        links.heal();
        cluster.ready().await;
        cluster.broker_to_be(alone, "unfenced").await;
        cluster.converged().await;
        let topics = cluster.topics().await;
        assert!(topics.contains(&"by-the-majority".to_owned()));
        assert!(!(definite && topics.contains(&"by-nobody".to_owned())), "refused as certainly not done, and done");
    }
}

/// Its API is within everybody's reach, so the brokers that heartbeat to it and follow it have to leave by themselves.
#[tokio::test]
async fn a_controller_that_lost_only_its_voters_keeps_no_broker() {
    let (mut cluster, links) = linked(CALM).await;
    cluster.create(new_topic("orders", 6, 3)).await;
    let alone = cluster.active_controller().await;
    let others = cluster.others(alone);
    let from = cluster.quorum_seen_by(others[0]).await.expect("it is up").metadata_offset;

    links.isolate_raft(alone, Link::Silent);
    let majority = cluster.client_of(&others);
    wait("another controller", async || controller_of(&majority).await.filter(|id| *id != alone)).await;
    // When a broker that came later and says nothing more is fenced, every broker that has not come is fenced too.
    let _silent = cluster.join_phantom(PHANTOM).await;
    wait("the silent broker to be fenced", async || {
        let brokers = majority.list_brokers(Freshness::Linearizable).await.ok()?.brokers;
        brokers.iter().any(|broker| broker.id == PHANTOM && broker.state == "fenced").then_some(())
    })
    .await;
    let until = cluster.quorum_seen_by(others[0]).await.expect("it is up").metadata_offset;
    for record in records_between(cluster.broker(others[0]), from, until).await {
        let Record::FenceBroker(event) = record else { continue };
        assert_eq!(event.broker, PHANTOM, "a broker that lives was fenced");
    }

    links.heal();
    cluster.ready().await;
    cluster.converged().await;
}

/// Whoever is in office has replaced the broker, so nobody hears it any more under its old epoch, but for the moment until
/// the one that is cut off knows that nobody answers.
#[tokio::test]
async fn a_controller_that_is_cut_off_hears_no_broker_that_another_has_replaced() {
    // With slower elections a controller that hears it all the same is not found out.
    let (mut cluster, links) = linked(&[]).await;
    let (alone, mut heartbeats) = cluster.join_phantom(PHANTOM).await;
    let others = cluster.others(alone);

    links.isolate(alone, Link::Silent);
    let majority = cluster.client_of(&others);
    let active = wait("another controller", async || controller_of(&majority).await.filter(|id| *id != alone)).await;
    let new_epoch =
        wait("the next incarnation to be let in", async || cluster.register_phantom(active, PHANTOM).await.ok()).await;
    assert!(new_epoch > heartbeats.epoch());
    wait("the one that is cut off to notice it", async || {
        cluster.printed(alone).contains("a majority answers this leader: false").then_some(())
    })
    .await;
    heartbeats.beat().await.expect_err("the stream speaks for a broker that is replaced");
    let anew = Heartbeats::open(cluster.broker(alone), PHANTOM, heartbeats.epoch()).await.map(|(_, reply)| reply);
    anew.expect_err("nor on another stream");

    links.heal();
    cluster.ready().await;
    cluster.converged().await;
}

/// Waits until the controller grants no lease, or hangs up; and then it grants none again.
async fn no_leases_from(phantom: &mut Heartbeats) {
    let granted = |reply: Result<HeartbeatReply, Status>| reply.ok().map(|reply| reply.lease_ms > 0);
    wait("the cut off controller to grant no more leases", async || {
        (granted(phantom.beat().await) != Some(true)).then_some(())
    })
    .await;
    for _ in 0..20 {
        match granted(phantom.beat().await) {
            Some(true) => panic!("a lease from a controller without a majority"),
            Some(false) => {}
            None => return,
        }
    }
}

/// Asks for a topic that cannot be; whether the refusal says that it certainly was not done.
async fn refused_create(cluster: &Cluster, id: i32) -> bool {
    let topics = vec![new_topic("by-nobody", 1, 1)];
    let request = CreateTopicsRequest { options: mutation(Duration::from_secs(1)), topics };
    let status = outcome(cluster.admin(id).create_topics(request)).await.expect_err("no majority, no mutation");
    assert!(is_ours(&status), "an error of ours, with its name: {status:?}");
    let error = from_status(&status);
    assert!(error.is_retryable(), "{error}");
    error.is_definite()
}

#[tokio::test]
async fn a_follower_that_is_cut_off_comes_back_without_unseating_the_controller() {
    let (mut cluster, links) = linked(CALM).await;
    let active = cluster.active_controller().await;
    let epoch = cluster.quorum_seen_by(active).await.expect("it is up").epoch;
    let alone = cluster.others(active)[0];
    links.isolate(alone, Link::Silent);
    // Its broker is gone from the others' view, so it has been alone for much longer than an election takes.
    let others = cluster.others(alone);
    let majority = cluster.client_of(&others);
    wait("its broker to be fenced", async || {
        let brokers = majority.list_brokers(Freshness::Linearizable).await.ok()?.brokers;
        brokers.iter().any(|broker| broker.id == alone && broker.state == "fenced").then_some(())
    })
    .await;
    assert_eq!(controller_of(&majority).await, Some(active));
    links.heal();
    cluster.ready().await;
    cluster.create(new_topic("afterwards", 3, 3)).await;
    cluster.converged().await;
    let quorum = cluster.quorum_seen_by(active).await.expect("it is up");
    assert_eq!((quorum.leader_id, quorum.epoch), (Some(active), epoch), "nobody had a reason to elect");
}

#[tokio::test]
async fn a_controller_that_hears_nobody_is_followed() {
    let (mut cluster, links) = linked(&[]).await;
    let deaf = cluster.active_controller().await;
    links.deafen(deaf);
    // What it is asked meanwhile must not keep it in office.
    let mut asked = cluster.admin(deaf);
    let asking = tokio::spawn(async move {
        loop {
            let options = Some(ReadOptions { stale: false, timeout_ms: 200 });
            asked
                .list_topics(ListTopicsRequest { options, ..Default::default() })
                .await
                .expect_err("no majority, no read");
        }
    });
    let others = cluster.others(deaf);
    let majority = cluster.client_of(&others);
    wait("another controller", async || controller_of(&majority).await.filter(|active| *active != deaf)).await;
    asking.abort();
    assert!(asking.await.expect_err("it goes on until it is told").is_cancelled());
    links.heal();
    cluster.ready().await;
    cluster.create(new_topic("afterwards", 3, 3)).await;
    cluster.converged().await;
}
