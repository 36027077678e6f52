//! Who has which partition, and the connections to the brokers.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use quorate_metadata::record::authority;
use quorate_metadata::{ApiError, ErrorName};
use quorate_proto::admin::{BrokerDescription, PartitionDescription, TopicDescription, TopicRef};
use quorate_proto::error::{from_item, from_status, is_ours};
use quorate_proto::log::log_client::LogClient;
use tonic::Status;
use tonic::transport::Channel;

use super::super::check_is_log;
use super::Partition;
use super::assigned::{Route, is_passing};
use crate::admin::{AdminClient, Freshness, REPLY_BYTES_MAX};
use crate::error::{ClientError, InvalidAddress};
use crate::nodes::{Nodes, Options};
use crate::retry::{Next, judge};

/// A broker is near or it is gone: another may lead meanwhile.
const CONNECT_TIMEOUT: Duration = Duration::from_millis(500);

/// Of a look at the cluster. A node that is paused or gone must not hold up the search for the leader.
const LOOK_TIMEOUT: Duration = Duration::from_secs(2);
const LOOK_ATTEMPT_TIMEOUT: Duration = Duration::from_millis(400);

/// Who has the partitions, at some offset of the metadata.
#[derive(Debug, Default)]
pub struct Cluster {
    topics: Vec<TopicDescription>,
    /// The addresses of the brokers that are up.
    brokers: BTreeMap<i32, Arc<str>>,
}

impl Cluster {
    pub async fn look(
        mut client: AdminClient,
        topics: &BTreeSet<Arc<str>>,
        freshness: Freshness,
    ) -> Result<Self, ClientError> {
        client.options.timeout = client.options.timeout.min(LOOK_TIMEOUT);
        client.options.attempt_timeout = client.options.attempt_timeout.min(LOOK_ATTEMPT_TIMEOUT);
        let refs = topics.iter().map(|name| TopicRef { name: Some(name.to_string()), id: None }).collect();
        let (topics, brokers) =
            tokio::try_join!(client.describe_topics(refs, freshness), client.list_brokers(Freshness::Stale))?;
        Ok(Self::new(topics.topics, brokers.brokers))
    }

    pub fn new(topics: Vec<TopicDescription>, brokers: Vec<BrokerDescription>) -> Self {
        let up = brokers.iter().filter(|broker| broker.state != "fenced");
        let brokers = up.filter_map(|broker| Some((broker.id, address(broker)?))).collect();
        Self { topics, brokers }
    }

    pub fn route(&self, partition: &Partition) -> Result<Route, ApiError> {
        let unknown = |what: &str| ApiError::new(ErrorName::UnknownTopicOrPartition, what);
        let is_it = |topic: &&TopicDescription| match &topic.topic {
            Some(TopicRef { name: Some(name), .. }) => **name == *partition.topic,
            _ => *topic.name == *partition.topic,
        };
        let topic = self.topics.iter().find(is_it).ok_or_else(|| unknown("there is no such topic"))?;
        if let Some(error) = &topic.error {
            return Err(from_item(error));
        }
        check_is_log(topic)?;
        let found = topic.partitions.iter().find(|found| found.partition == partition.partition);
        let found = found.ok_or_else(|| unknown("the topic has no such partition"))?;
        Ok(Route {
            topic_id: topic.id.clone(),
            leader_epoch: found.leader_epoch,
            leader: found.leader.and_then(|leader| self.brokers.get(&leader).cloned()),
            followers: self.followers(found),
        })
    }

    /// Those in sync: the others may be far behind.
    fn followers(&self, partition: &PartitionDescription) -> Vec<Arc<str>> {
        let followers = partition.isr.iter().filter(|broker| Some(**broker) != partition.leader);
        followers.filter_map(|broker| self.brokers.get(broker).cloned()).collect()
    }
}

fn address(broker: &BrokerDescription) -> Option<Arc<str>> {
    let endpoint = broker.endpoints.first()?;
    Some(authority(&endpoint.host, endpoint.port).into())
}

/// A connection to each broker that was asked, made when it is first needed.
#[derive(Debug)]
pub struct Brokers {
    options: Options,
    open: BTreeMap<Arc<str>, Channel>,
}

impl Brokers {
    pub fn new(options: &Options) -> Self {
        let connect_timeout = options.connect_timeout.min(CONNECT_TIMEOUT);
        Self { options: Options { connect_timeout, ..options.clone() }, open: BTreeMap::new() }
    }

    pub fn client(&mut self, address: &Arc<str>) -> Result<LogClient<Channel>, Unanswered> {
        let channel = match self.open.get(address) {
            Some(channel) => channel.clone(),
            None => {
                let opened = Nodes::open(&[address], &self.options).map_err(|error| Unanswered::unusable(&error))?;
                let channel = opened.current().1.channel.clone();
                self.open.insert(address.clone(), channel.clone());
                channel
            }
        };
        Ok(LogClient::new(channel).max_decoding_message_size(REPLY_BYTES_MAX))
    }

    /// The next call makes a new connection: this one may hang for longer than a new one takes.
    pub fn forget(&mut self, address: &Arc<str>) {
        self.open.remove(address);
    }

    #[cfg(test)]
    pub fn insert(&mut self, address: &str, channel: Channel) {
        self.open.insert(address.into(), channel);
    }
}

/// Why a broker has not answered.
#[derive(Debug)]
pub struct Unanswered {
    pub error: ApiError,
    /// Another attempt may succeed.
    pub is_passing: bool,
    /// The connection is not to be trusted any more.
    pub is_broken: bool,
}

impl Unanswered {
    pub fn new(address: &str, status: &Status) -> Self {
        if is_ours(status) {
            let error = from_status(status);
            return Self { is_passing: is_passing(error.name), is_broken: false, error };
        }
        let failure = judge(address, status);
        let is_passing = failure.next != Next::GiveUp;
        Self { error: failure.error, is_passing, is_broken: is_passing }
    }

    /// The address may be another one when the broker has registered again.
    fn unusable(error: &InvalidAddress) -> Self {
        let error = ApiError::new(ErrorName::ReplicaNotAvailable, error.to_string());
        Self { error, is_passing: true, is_broken: false }
    }

    pub fn incomplete(address: &str) -> Self {
        let message = format!("{address} did not speak of every partition that it was asked about");
        Self { error: ApiError::new(ErrorName::UnknownServerError, message), is_passing: false, is_broken: false }
    }

    pub fn late(address: &str, limit: Duration) -> Self {
        let message = format!("{address} did not answer within {limit:.1?}");
        Self { error: ApiError::new(ErrorName::RequestTimedOut, message), is_passing: true, is_broken: true }
    }
}

#[cfg(test)]
mod tests {
    use quorate_proto::metadata::Endpoint;

    use super::super::fake::partition;
    use super::*;

    fn broker(id: i32, state: &str, host: &str) -> BrokerDescription {
        let endpoints = vec![Endpoint { host: host.to_owned(), port: 7000, ..Endpoint::default() }];
        BrokerDescription { id, state: state.to_owned(), endpoints, ..BrokerDescription::default() }
    }

    fn cluster(partition: i32) -> Cluster {
        let partition = PartitionDescription {
            partition,
            leader: Some(1),
            leader_epoch: 4,
            isr: vec![1, 2, 3],
            ..PartitionDescription::default()
        };
        let topic = TopicDescription {
            name: "orders".to_owned(),
            id: "id".to_owned(),
            partitions: vec![partition],
            ..TopicDescription::default()
        };
        Cluster::new(
            vec![topic],
            vec![broker(1, "unfenced", "::1"), broker(2, "fenced", "b"), broker(3, "unfenced", "c")],
        )
    }

    #[test]
    fn a_route_names_the_leader_and_the_in_sync_replicas_that_are_up() {
        let route = Route {
            topic_id: "id".to_owned(),
            leader_epoch: 4,
            leader: Some("[::1]:7000".into()),
            followers: vec!["c:7000".into()],
        };
        assert_eq!(cluster(0).route(&partition()), Ok(route));
    }

    #[test]
    fn a_partition_that_the_topic_lacks_is_unknown() {
        let missing = cluster(1).route(&partition()).map_err(|error| error.name);
        assert_eq!(missing, Err(ErrorName::UnknownTopicOrPartition));
    }
}
