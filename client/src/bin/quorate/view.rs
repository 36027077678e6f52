//! The JSON shapes that programs rely on. Add fields, never change or remove one.

use std::collections::BTreeMap;

use quorate_metadata::record::{Kind, authority};
use quorate_proto::admin;
use serde::Serialize;

#[derive(Debug, Serialize)]
pub struct CreatedTopic {
    pub name: String,
    pub id: String,
    pub partitions: i32,
    pub offset: i64,
    /// False when it was there already, and that was welcome.
    pub created: bool,
}

/// A node of an earlier release states no kind: it knows logs alone.
fn kind(stated: String) -> String {
    if stated.is_empty() { Kind::LOG.to_string() } else { stated }
}

#[derive(Debug, Serialize)]
pub struct TopicSummary {
    pub name: String,
    pub id: String,
    pub partitions: i32,
    pub replication_factor: i32,
    pub leaderless: i32,
    pub under_replicated: i32,
    pub kind: String,
}

impl From<admin::TopicSummary> for TopicSummary {
    fn from(topic: admin::TopicSummary) -> Self {
        Self {
            name: topic.name,
            id: topic.id,
            partitions: topic.partitions,
            replication_factor: topic.replication_factor,
            kind: kind(topic.kind),
            leaderless: topic.leaderless,
            under_replicated: topic.under_replicated,
        }
    }
}

#[derive(Debug, Serialize)]
pub struct Topic {
    pub name: String,
    pub id: String,
    pub kind: String,
    pub configs: BTreeMap<String, String>,
    pub partitions: Vec<Partition>,
}

impl From<admin::TopicDescription> for Topic {
    fn from(topic: admin::TopicDescription) -> Self {
        Self {
            name: topic.name,
            id: topic.id,
            kind: kind(topic.kind),
            configs: topic.configs.into_iter().collect(),
            partitions: topic.partitions.into_iter().map(Partition::from).collect(),
        }
    }
}

#[derive(Debug, Clone, Serialize)]
pub struct Partition {
    pub topic: String,
    pub partition: i32,
    pub leader: Option<i32>,
    pub leader_epoch: i32,
    pub partition_epoch: i32,
    pub replicas: Vec<i32>,
    pub isr: Vec<i32>,
    pub elr: Vec<i32>,
    pub last_known_elr: Vec<i32>,
    pub adding: Vec<i32>,
    pub removing: Vec<i32>,
    pub leader_recovery_state: String,
    pub min_insync_replicas: i32,
    pub cause: String,
}

impl From<admin::PartitionDescription> for Partition {
    fn from(partition: admin::PartitionDescription) -> Self {
        Self {
            topic: partition.topic,
            partition: partition.partition,
            leader: partition.leader,
            leader_epoch: partition.leader_epoch,
            partition_epoch: partition.partition_epoch,
            replicas: partition.replicas,
            isr: partition.isr,
            elr: partition.elr,
            last_known_elr: partition.last_known_elr,
            adding: partition.adding,
            removing: partition.removing,
            leader_recovery_state: partition.leader_recovery_state,
            min_insync_replicas: partition.min_insync_replicas,
            cause: partition.cause,
        }
    }
}

#[derive(Debug, Serialize)]
pub struct Broker {
    pub id: i32,
    pub epoch: i64,
    pub state: String,
    pub endpoint: Option<String>,
    pub rack: Option<String>,
    pub leaders: i32,
    pub replicas: i32,
    pub in_sync: i32,
    pub incarnation: String,
    pub directories: Vec<String>,
    pub kind: String,
    pub probed_endpoint: Option<String>,
}

impl From<admin::BrokerDescription> for Broker {
    fn from(broker: admin::BrokerDescription) -> Self {
        Self {
            id: broker.id,
            epoch: broker.epoch,
            state: broker.state,
            endpoint: broker.endpoints.first().map(|endpoint| authority(&endpoint.host, endpoint.port)),
            rack: broker.rack,
            leaders: broker.leaders,
            replicas: broker.replicas,
            in_sync: broker.in_sync,
            incarnation: broker.incarnation,
            directories: broker.directories,
            kind: kind(broker.kind),
            probed_endpoint: broker.probed_endpoint,
        }
    }
}

#[derive(Debug, Serialize)]
pub struct ReplacedVoter {
    pub id: i32,
    pub directory_id: String,
    pub replaced_directory_id: Option<String>,
}

impl ReplacedVoter {
    pub fn of(id: i32, reply: admin::ReplaceVoterReply) -> Self {
        Self { id, directory_id: reply.directory_id, replaced_directory_id: reply.replaced_directory_id }
    }
}

#[derive(Debug, Serialize)]
pub struct Quorum {
    pub cluster_id: String,
    pub leader_id: Option<i32>,
    pub epoch: i32,
    pub high_watermark: i64,
    pub voters: Vec<Voter>,
    pub observers: Vec<Voter>,
    pub metadata_offset: i64,
    pub digest: String,
    /// Who says so.
    pub node_id: i32,
}

#[derive(Debug, Serialize)]
pub struct Voter {
    pub id: i32,
    pub directory_id: String,
    pub endpoint: String,
    pub log_end: Option<i64>,
    pub lag: Option<i64>,
    pub state: String,
    pub raft_endpoint: String,
}

impl From<admin::DescribeQuorumReply> for Quorum {
    fn from(quorum: admin::DescribeQuorumReply) -> Self {
        Self {
            cluster_id: quorum.cluster_id,
            leader_id: quorum.leader_id,
            epoch: quorum.epoch,
            high_watermark: quorum.high_watermark,
            voters: quorum.voters.into_iter().map(Voter::from).collect(),
            observers: quorum.observers.into_iter().map(Voter::from).collect(),
            metadata_offset: quorum.metadata_offset,
            digest: quorum.digest,
            node_id: quorum.node_id,
        }
    }
}

impl From<admin::Voter> for Voter {
    fn from(voter: admin::Voter) -> Self {
        Self {
            id: voter.id,
            directory_id: voter.directory_id,
            endpoint: voter.endpoint,
            log_end: voter.log_end,
            lag: voter.lag,
            state: voter.state,
            raft_endpoint: voter.raft_endpoint,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::output::json;

    #[test]
    fn a_created_topic() {
        let created =
            CreatedTopic { name: "orders".to_owned(), id: "x".to_owned(), partitions: 3, offset: 17, created: true };
        assert_eq!(json(&created), r#"{"name":"orders","id":"x","partitions":3,"offset":17,"created":true}"#);
    }

    #[test]
    fn a_topic_with_a_leaderless_partition() {
        let partition = admin::PartitionDescription {
            topic: "orders".to_owned(),
            replicas: vec![1, 2],
            elr: vec![2],
            leader_epoch: 4,
            partition_epoch: 9,
            leader_recovery_state: "recovered".to_owned(),
            cause: "broker-fenced 2".to_owned(),
            min_insync_replicas: 1,
            ..admin::PartitionDescription::default()
        };
        let topic = Topic::from(admin::TopicDescription {
            name: "orders".to_owned(),
            id: "x".to_owned(),
            configs: [("min.insync.replicas".to_owned(), "1".to_owned())].into(),
            partitions: vec![partition],
            ..admin::TopicDescription::default()
        });
        assert_eq!(
            json(&topic),
            concat!(
                r#"{"name":"orders","id":"x","kind":"log","configs":{"min.insync.replicas":"1"},"partitions":["#,
                r#"{"topic":"orders","partition":0,"leader":null,"leader_epoch":4,"partition_epoch":9,"#,
                r#""replicas":[1,2],"isr":[],"elr":[2],"last_known_elr":[],"adding":[],"removing":[],"#,
                r#""leader_recovery_state":"recovered","min_insync_replicas":1,"cause":"broker-fenced 2"}]}"#
            )
        );
    }

    #[test]
    fn a_quorum_without_a_leader() {
        let voter = admin::Voter {
            id: 1,
            directory_id: "d".to_owned(),
            endpoint: "h:7001".to_owned(),
            log_end: Some(42),
            lag: None,
            state: "unreachable".to_owned(),
            raft_endpoint: "h:7101".to_owned(),
        };
        let quorum = Quorum::from(admin::DescribeQuorumReply {
            cluster_id: "c".to_owned(),
            epoch: 3,
            high_watermark: 42,
            voters: vec![voter],
            ..admin::DescribeQuorumReply::default()
        });
        assert_eq!(
            json(&quorum),
            concat!(
                r#"{"cluster_id":"c","leader_id":null,"epoch":3,"high_watermark":42,"voters":[{"id":1,"directory_id":"d","#,
                r#""endpoint":"h:7001","log_end":42,"lag":null,"state":"unreachable","raft_endpoint":"h:7101"}],"#,
                r#""observers":[],"metadata_offset":0,"digest":"","node_id":0}"#
            )
        );
    }

    #[test]
    fn a_broker() {
        let broker = Broker::from(admin::BrokerDescription {
            id: 2,
            epoch: 7,
            state: "unfenced".to_owned(),
            endpoints: vec![quorate_proto::metadata::Endpoint {
                name: "API".to_owned(),
                host: "127.0.0.1".to_owned(),
                port: 7002,
                security: 0,
            }],
            leaders: 1,
            replicas: 3,
            in_sync: 3,
            probed_endpoint: Some("API".to_owned()),
            ..admin::BrokerDescription::default()
        });
        assert_eq!(
            json(&broker),
            concat!(
                r#"{"id":2,"epoch":7,"state":"unfenced","endpoint":"127.0.0.1:7002","rack":null,"leaders":1,"replicas":3,"#,
                r#""in_sync":3,"incarnation":"","directories":[],"kind":"log","probed_endpoint":"API"}"#
            )
        );
    }
}
