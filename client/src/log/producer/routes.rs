//! Where partitions are led from, as far as this client knows.

use std::collections::HashMap;

use quorate_metadata::ErrorName;
use quorate_metadata::record::authority;
use quorate_proto::admin::TopicRef;
use quorate_proto::log::CurrentLeader;

use super::super::check_is_log;
use crate::error::{ClientError, check_item};
use crate::{AdminClient, Freshness};

#[derive(Debug, Clone, Default)]
pub struct Routes {
    topics: HashMap<String, Route>,
}

#[derive(Debug, Clone)]
pub struct Route {
    pub id: String,
    partitions: Vec<Leader>,
}

#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct Leader {
    epoch: i32,
    endpoint: Option<String>,
}

/// What was looked up, topic by topic.
pub type Found = Vec<(String, Result<Route, ClientError>)>;

impl Routes {
    pub fn topic(&self, name: &str) -> Option<&Route> {
        self.topics.get(name)
    }

    /// The address of the leader; `None` where there is none, or it is not known.
    pub fn leader(&self, topic: &str, partition: i32) -> Option<&str> {
        self.leader_of(topic, partition)?.endpoint.as_deref()
    }

    fn leader_of(&self, topic: &str, partition: i32) -> Option<&Leader> {
        let at = usize::try_from(partition).ok()?;
        self.topics.get(topic)?.partitions.get(at)
    }

    /// What a node knows may be older than what a broker has told.
    pub fn take(&mut self, name: &str, mut found: Route) {
        if let Some(known) = self.topics.get(name).filter(|known| known.id == found.id) {
            for (now, before) in found.partitions.iter_mut().zip(&known.partitions) {
                if before.epoch > now.epoch {
                    now.clone_from(before);
                }
            }
        }
        self.topics.insert(name.to_owned(), found);
    }

    /// What a broker says who is not the leader. Says whether that is news.
    pub fn learn(&mut self, topic: &str, partition: i32, hint: &CurrentLeader) -> bool {
        let at = usize::try_from(partition).unwrap_or(usize::MAX);
        let Some(leader) = self.topics.get_mut(topic).and_then(|route| route.partitions.get_mut(at)) else {
            return false;
        };
        if hint.leader_epoch <= leader.epoch || hint.endpoint.is_empty() {
            return false;
        }
        *leader = Leader { epoch: hint.leader_epoch, endpoint: Some(hint.endpoint.clone()) };
        true
    }
}

impl Route {
    #[cfg(test)]
    pub fn led_by(leaders: &[&str]) -> Self {
        let leader = |endpoint: &&str| Leader { epoch: 0, endpoint: Some((*endpoint).to_owned()) };
        Self { id: String::new(), partitions: leaders.iter().map(leader).collect() }
    }

    pub fn partitions(&self) -> usize {
        self.partitions.len()
    }
}

/// Asks any node for what it has, without asking the quorum: just after a controller's death that would take longer.
pub async fn look_up(admin: AdminClient, names: Vec<String>) -> Result<Found, ClientError> {
    let brokers = admin.list_brokers(Freshness::Stale).await?.brokers;
    let address = |broker: &quorate_proto::admin::BrokerDescription| {
        let endpoint = broker.endpoints.first()?;
        Some((broker.id, authority(&endpoint.host, endpoint.port)))
    };
    let endpoints: HashMap<i32, String> = brokers.iter().filter_map(address).collect();
    let named = |name: &String| TopicRef { name: Some(name.clone()), id: None };
    let topics = admin.describe_topics(names.iter().map(named).collect(), Freshness::Stale).await?.topics;
    let missing = || ClientError::failed(ErrorName::UnknownTopicOrPartition, "the node does not answer for the topic");
    let mut described = topics.into_iter();
    let found = names.into_iter().map(|name| {
        let Some(topic) = described.next() else { return (name, Err(missing())) };
        let checked = check_item(topic.error.as_ref()).and_then(|()| check_is_log(&topic).map_err(ClientError::from));
        let route = checked.map(|()| Route {
            id: topic.id,
            partitions: topic
                .partitions
                .iter()
                .map(|partition| Leader {
                    epoch: partition.leader_epoch,
                    endpoint: partition.leader.and_then(|leader| endpoints.get(&leader).cloned()),
                })
                .collect(),
        });
        (name, route)
    });
    Ok(found.collect())
}
