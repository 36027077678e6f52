//! What can be seen of a cluster from outside.

use quorate_client::{Freshness, Mode, check_item};
use quorate_proto::admin::{
    BrokerDescription, CreatedTopic, DescribeQuorumReply, DescribeQuorumRequest, ListPartitionsRequest, NewTopic,
    PartitionChangeNote, PartitionDescription, ReadOptions, TopicDescription,
};
use tokio::time::timeout;

use crate::call::topic_named;
use crate::node::Run;
use crate::{Cluster, PATIENCE, wait};

/// The change that began a leader epoch of the partition; the ISR may have changed since.
pub fn beginning_of(leader_epoch: i32, partition: &PartitionDescription) -> &PartitionChangeNote {
    let mut changes = partition.history.iter();
    let began = changes.find(|change| change.leader_epoch == leader_epoch);
    began.unwrap_or_else(|| panic!("no leader epoch {leader_epoch}: {partition:?}"))
}

impl Cluster {
    /// Waits for a controller, for every voter that runs to be registered, and for every broker that runs to be let in:
    /// this process of it, not the one before.
    /// Fails at once when a node has ended.
    pub async fn ready(&mut self) {
        let up = self.running();
        let client = self.client();
        wait("every broker that runs to be unfenced", async || {
            self.assert_alive();
            let is_up = |id: i32| {
                let printed = self.printed(id);
                let is_registered = !self.node(id).is_voter || printed.contains("controller registered");
                is_registered && printed.contains("may lead")
            };
            if !up.iter().all(|id| is_up(*id)) {
                return None;
            }
            let brokers = client.list_brokers(Freshness::Linearizable).await.ok()?.brokers;
            let unfenced = |id: &i32| brokers.iter().any(|broker| broker.id == *id && broker.state == "unfenced");
            up.iter().all(unfenced).then_some(())
        })
        .await;
    }

    /// Fails when a node has ended that nobody has killed or stopped.
    pub fn assert_alive(&mut self) {
        for (id, node) in &mut self.nodes {
            let ended = node.run.as_mut().and_then(Run::has_ended);
            assert!(ended.is_none(), "node {id} has ended: {ended:?}");
        }
    }

    /// The node that leads the quorum and answers for it.
    pub async fn active_controller(&self) -> i32 {
        let client = self.client();
        wait("an active controller", async || {
            let reply = client.describe_quorum(Freshness::Linearizable).await.ok()?;
            reply.leader_id.filter(|leader| *leader == reply.node_id)
        })
        .await
    }

    /// A running node that is not the active controller. For whoever has asked for that one: the next of its `others`.
    pub async fn standby(&self) -> i32 {
        self.others(self.active_controller().await)[0]
    }

    /// What one node says of the quorum, from what it has.
    pub async fn quorum_seen_by(&self, id: i32) -> Option<DescribeQuorumReply> {
        let options = Some(ReadOptions { stale: true, timeout_ms: 0 });
        let mut admin = self.admin(id);
        let call = admin.describe_quorum(DescribeQuorumRequest { options });
        timeout(PATIENCE, call).await.ok()?.ok().map(tonic::Response::into_inner)
    }

    /// Waits until all running nodes are at one offset. Fails when their digests differ there.
    pub async fn converged(&self) -> (i64, String) {
        wait("all nodes at the same offset", async || {
            let mut seen = Vec::new();
            for id in self.running() {
                seen.push(self.quorum_seen_by(id).await?);
            }
            let (offset, digest) = (seen[0].metadata_offset, seen[0].digest.clone());
            if seen.iter().any(|other| other.metadata_offset != offset) {
                return None;
            }
            for other in &seen {
                assert_eq!(other.digest, digest, "node {} differs at offset {offset}", other.node_id);
            }
            Some((offset, digest))
        })
        .await
    }

    pub async fn partitions(&self) -> Vec<PartitionDescription> {
        let all = ListPartitionsRequest::default();
        let reply = self.client().list_partitions(all, Freshness::Linearizable).await;
        reply.expect("a read is answered").partitions
    }

    pub async fn topic(&self, name: &str) -> TopicDescription {
        let reply = self.client().describe_topics(vec![topic_named(name)], Freshness::Linearizable).await;
        let topic = reply.expect("a read is answered").topics.remove(0);
        check_item(topic.error.as_ref()).unwrap_or_else(|error| panic!("topic {name}: {error}"));
        topic
    }

    /// The names of all topics.
    pub async fn topics(&self) -> Vec<String> {
        let reply = self.client().list_topics(Freshness::Linearizable).await.expect("a read is answered");
        reply.topics.into_iter().map(|topic| topic.name).collect()
    }

    pub async fn broker_seen(&self, id: i32) -> Option<BrokerDescription> {
        let reply = self.client().list_brokers(Freshness::Linearizable).await.ok()?;
        reply.brokers.into_iter().find(|broker| broker.id == id)
    }

    /// Waits until the broker is fenced, unfenced or in controlled-shutdown.
    pub async fn broker_to_be(&self, id: i32, state: &str) -> BrokerDescription {
        wait(&format!("broker {id} to be {state}"), async || {
            self.broker_seen(id).await.filter(|broker| broker.state == state)
        })
        .await
    }

    /// Deletes a topic, with retries.
    pub async fn delete(&self, name: &str) {
        let reply = self.client().delete_topics(vec![topic_named(name)], Mode::Apply).await;
        let deleted = reply.unwrap_or_else(|error| panic!("delete {name}: {error}")).topics.remove(0);
        check_item(deleted.error.as_ref()).unwrap_or_else(|error| panic!("delete {name}: {error}"));
    }

    /// Creates a topic, with retries.
    pub async fn create(&self, topic: NewTopic) -> CreatedTopic {
        let name = topic.name.clone();
        let reply = self.client().create_topics(vec![topic], Mode::Apply).await;
        let created = reply.unwrap_or_else(|error| panic!("create {name}: {error}")).topics.remove(0);
        check_item(created.error.as_ref()).unwrap_or_else(|error| panic!("create {name}: {error}"));
        created
    }
}
