//! Brokers of another system beside those of the log: each topic has its replicas on brokers of its own kind.

use std::sync::Arc;
use std::time::Duration;

use quorate_client::agent::{AgentConfig, BrokerAgent, PROBE_ENDPOINT, ProbedEndpoint, STRAY_GRACE};
use quorate_client::log::{ProducedRecord, Producer, ProducerOptions};
use quorate_client::network::Network;
use quorate_client::{Freshness, world};
use quorate_metadata::ErrorName;
use quorate_metadata::ids::{BrokerId, DirectoryId, IncarnationId};
use quorate_metadata::plan::features;
use quorate_metadata::record::{Endpoint, Kind, SecurityProtocol};
use quorate_proto::admin::NewTopic;
use quorate_proto::metadata::record::Record;
use quorate_tests::{Cluster, Follower, free_port, new_topic, records_between};

const COUNTER: &str = "counter";
const COUNTERS: [i32; 2] = [11, 12];

/// A broker of another system in this process. Nothing listens at its own endpoint.
struct Counter {
    agent: BrokerAgent,
}

impl Counter {
    async fn start(cluster: &Cluster, id: i32, probe: ProbedEndpoint) -> Self {
        let port = free_port();
        let quorum = cluster.client().describe_quorum(Freshness::Linearizable).await.expect("it is up");
        let (name, host) = ("COUNTER".to_owned(), "127.0.0.1".to_owned());
        let agent = BrokerAgent::start(AgentConfig {
            broker: BrokerId::new(id),
            cluster: quorum.cluster_id.parse().expect("an id"),
            incarnation: IncarnationId::new(world::uuid()),
            kind: Kind::from(COUNTER),
            endpoints: vec![Endpoint { name, host, port, security: SecurityProtocol::Plaintext }],
            probe,
            rack: None,
            features: features::supported(),
            directories: vec![DirectoryId::new(world::uuid())],
            previous_epoch: None,
            bootstrap: cluster.ids().into_iter().map(|id| cluster.api(id).to_owned()).collect(),
            local_metadata: None,
            resolve: Arc::new(str::to_owned),
            network: Network::default(),
            registration_timeout: Some(Duration::from_secs(30)),
            stray_grace: STRAY_GRACE,
        });
        cluster.broker_to_be(id, "unfenced").await;
        Self { agent }
    }
}

fn of_counters(topic: NewTopic) -> NewTopic {
    NewTopic { kind: Some(COUNTER.to_owned()), ..topic }
}

/// The replicas of all partitions of a topic, each broker once.
async fn hosts(cluster: &Cluster, topic: &str) -> Vec<i32> {
    let topic = cluster.topic(topic).await;
    let mut hosts: Vec<i32> = topic.partitions.into_iter().flat_map(|partition| partition.replicas).collect();
    hosts.sort_unstable();
    hosts.dedup();
    hosts
}

#[tokio::test]
async fn each_topic_is_on_brokers_of_its_kind() {
    let mut cluster = Cluster::start(3).await;
    let [first, second] = COUNTERS;
    let counters = [
        Counter::start(&cluster, first, ProbedEndpoint::Own).await,
        Counter::start(&cluster, second, ProbedEndpoint::None).await,
    ];
    cluster.create(new_topic("orders", 12, 3)).await;
    cluster.create(of_counters(new_topic("counts", 12, 2))).await;
    assert_eq!(hosts(&cluster, "orders").await, [1, 2, 3]);
    assert_eq!(hosts(&cluster, "counts").await, COUNTERS);
    assert_eq!(cluster.topic("counts").await.kind, COUNTER);
    assert_eq!(cluster.broker_seen(COUNTERS[0]).await.expect("it is registered").kind, COUNTER);

    for (topic, expected) in [
        (new_topic("more", 1, 4), ErrorName::InvalidReplicationFactor),
        (of_counters(new_topic("more", 1, 3)), ErrorName::InvalidReplicationFactor),
        (NewTopic { kind: Some("Counter".to_owned()), ..new_topic("more", 1, 1) }, ErrorName::InvalidRequest),
    ] {
        let description = format!("{topic:?}");
        let reply = cluster.client().create_topics(vec![topic], quorate_client::Mode::Apply).await;
        let refused = reply.and_then(|reply| quorate_client::check_item(reply.topics[0].error.as_ref()));
        assert_eq!(refused.expect_err(&description).name(), expected, "{description}");
    }
    is_refused_by_producers(&cluster).await;
    cluster.converged().await;
    cluster.assert_alive();
    for counter in counters {
        assert!(counter.agent.shut_down(Duration::from_secs(10)).await.is_confirmed, "it stops in order");
    }
}

/// Nothing listens at the first endpoint of either, and the new controller asks every broker at once.
#[tokio::test]
async fn brokers_without_a_listener_outlive_the_controller() {
    let mut cluster = Cluster::start(3).await;
    let [first, second] = COUNTERS;
    let _counters = [
        Counter::start(&cluster, first, ProbedEndpoint::Own).await,
        Counter::start(&cluster, second, ProbedEndpoint::None).await,
    ];
    let probed = cluster.broker_seen(first).await.and_then(|broker| broker.probed_endpoint);
    assert_eq!(probed.as_deref(), Some(PROBE_ENDPOINT));
    assert_eq!(cluster.broker_seen(second).await.expect("it is registered").probed_endpoint, None);
    let active = cluster.active_controller().await;
    let mut follower = Follower::default();
    let standby = cluster.standby().await;
    follower.follow(cluster.broker(standby), |_| true).await;
    let from = follower.next_offset();
    cluster.kill(active);
    // The one that was killed is fenced by its refused probe; by then the others have been asked, too.
    cluster.broker_to_be(active, "fenced").await;
    cluster.create(of_counters(new_topic("counts", 12, 2))).await;
    let (until, _) = cluster.converged().await;
    let fenced: Vec<i32> = records_between(cluster.broker(standby), from, until)
        .await
        .into_iter()
        .filter_map(|record| if let Record::FenceBroker(fenced) = record { Some(fenced.broker) } else { None })
        .collect();
    assert_eq!(fenced, [active]);
}

/// It has no records, and its brokers do not speak the protocol of the log.
async fn is_refused_by_producers(cluster: &Cluster) {
    let addresses: Vec<String> = cluster.ids().iter().map(|id| cluster.api(*id).to_owned()).collect();
    let producer = Producer::start(&addresses, ProducerOptions::default()).expect("the addresses are well formed");
    let record = ProducedRecord { value: Some(b"x".to_vec().into()), ..ProducedRecord::default() };
    let sent = producer.send("counts", Some(0), record).await;
    let refused = match sent {
        Ok(delivery) => delivery.acknowledged().await.map(|_| ()),
        Err(refused) => Err(refused),
    };
    assert_eq!(refused.expect_err("it is no log").name(), ErrorName::InvalidTopic);
}
