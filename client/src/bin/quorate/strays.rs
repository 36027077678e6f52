//! `quorate broker strays …`: replicas on brokers that the metadata does not know.

use std::time::Duration;

use clap::Subcommand;
use quorate_client::Freshness;
use quorate_metadata::record::Kind;
use quorate_proto::log::{ListStraysReply, PartitionRef};
use serde::Serialize;
use tokio::task::JoinSet;

use crate::args::{Consent, Planning};
use crate::failure::{Failure, Outcome};
use crate::output::{cell, note, optional, table};
use crate::session::Session;
use crate::view;

/// How long brokers may take to say what they have. One that does not answer must not hold up the rest.
const ASK_TIMEOUT: Duration = Duration::from_secs(1);

/// Replicas in one request to delete them.
const DELETED_AT_ONCE: usize = 1_000;

#[derive(Debug, Subcommand)]
pub enum Strays {
    /// Those of one broker, or of all
    List { broker: Option<i32> },
    /// Delete strays of one broker with all their data
    Delete {
        broker: i32,
        /// As `list` names them
        #[arg(value_name = "TOPIC-ID-PARTITION", value_parser = replica, allow_hyphen_values = true)]
        replicas: Vec<Replica>,
        /// All strays of this broker
        #[arg(long, conflicts_with = "replicas", required_unless_present = "replicas")]
        all: bool,
        #[command(flatten)]
        consent: Consent,
    },
}

/// A replica by the id of its topic: nothing knows its name.
#[derive(Debug, Clone)]
pub struct Replica(PartitionRef);

fn replica(text: &str) -> Result<Replica, String> {
    let expected =
        || format!("{text:?} is no replica: expected TOPIC-ID-PARTITION, as `quorate broker strays list` has it");
    let (topic, partition) = text.rsplit_once('-').ok_or_else(expected)?;
    let partition = partition.parse().map_err(|_| expected())?;
    Ok(Replica(PartitionRef { topic_id: topic.to_owned(), partition }))
}

#[derive(Debug, Serialize)]
struct Stray {
    broker: i32,
    topic_id: String,
    partition: i32,
    bytes: Option<i64>,
    log_end_offset: Option<i64>,
    directory: String,
}

/// What brokers have of strays.
#[derive(Debug, Default)]
pub struct Found {
    replies: Vec<ListStraysReply>,
    /// The brokers that have not answered.
    pub silent: Vec<i32>,
}

impl Found {
    pub fn count(&self) -> usize {
        self.replies.iter().map(|reply| reply.strays.len()).sum()
    }

    pub fn bytes(&self) -> i64 {
        self.replies.iter().flat_map(|reply| &reply.strays).filter_map(|stray| stray.bytes).sum()
    }
}

pub async fn run(session: &Session, command: Strays) -> Outcome {
    match command {
        Strays::List { broker } => list(session, broker).await,
        Strays::Delete { broker, replicas, consent, all: _ } => delete(session, broker, replicas, consent).await,
    }
}

async fn list(session: &Session, broker: Option<i32>) -> Outcome {
    let found = find(session, broker).await?;
    if !found.silent.is_empty() {
        note(&format!("no answer from brokers {:?}: what they have is not listed", found.silent));
    }
    let of_broker = |reply: ListStraysReply| {
        let broker = reply.broker;
        reply.strays.into_iter().map(move |stray| Stray {
            broker,
            topic_id: stray.topic_id,
            partition: stray.partition,
            bytes: stray.bytes,
            log_end_offset: stray.log_end_offset,
            directory: stray.directory,
        })
    };
    let strays: Vec<Stray> = found.replies.into_iter().flat_map(of_broker).collect();
    session.show(&strays, |strays| {
        let rows = strays.iter().map(|stray| {
            [
                cell(stray.broker),
                cell(format!("{}-{}", stray.topic_id, stray.partition)),
                cell(optional(stray.bytes)),
                cell(optional(stray.log_end_offset)),
                cell(&stray.directory),
            ]
        });
        table(["broker", "replica", "bytes", "log end", "directory"], rows)
    })
}

/// Asks the brokers that keep logs, or one of them.
pub async fn find(session: &Session, broker: Option<i32>) -> Outcome<Found> {
    let client = session.client.with_timeout(ASK_TIMEOUT.min(session.options.timeout));
    let brokers = session.client.list_brokers(Freshness::Linearizable).await?.brokers;
    let brokers = brokers.into_iter().map(view::Broker::from);
    let mut asked = JoinSet::new();
    let mut found = Found::default();
    let keeps_logs = |at: &view::Broker| at.kind == Kind::LOG.as_str();
    for at in brokers.filter(|at| broker.map_or_else(|| keeps_logs(at), |id| id == at.id)) {
        if at.state == "fenced" {
            // It would most likely be waited for in vain.
            found.silent.push(at.id);
            continue;
        }
        let (id, client, address) = (at.id, client.clone(), at.endpoint.unwrap_or_default());
        asked.spawn(async move { (id, client.list_strays(&address).await) });
    }
    if let Some(id) = broker.filter(|_| asked.is_empty() && found.silent.is_empty()) {
        return Err(Failure::usage(format!("broker {id} is not registered")));
    }
    for (id, reply) in asked.join_all().await {
        match reply {
            Ok(reply) => found.replies.push(reply),
            Err(_) => found.silent.push(id),
        }
    }
    found.replies.sort_by_key(|reply| reply.broker);
    found.silent.sort_unstable();
    Ok(found)
}

#[derive(Debug, Serialize)]
struct Deleted {
    broker: i32,
    deleted: usize,
}

async fn delete(session: &Session, broker: i32, replicas: Vec<Replica>, consent: Consent) -> Outcome {
    let brokers = session.client.list_brokers(Freshness::Linearizable).await?.brokers;
    let at = brokers.into_iter().map(view::Broker::from).find(|at| at.id == broker);
    let Some(address) = at.and_then(|at| at.endpoint) else {
        return Err(Failure::usage(format!("broker {broker} is not registered")));
    };
    let named: Vec<PartitionRef> = replicas.into_iter().map(|replica| replica.0).collect();
    let wanted = if named.is_empty() {
        let of_stray =
            |stray: quorate_proto::log::Stray| PartitionRef { topic_id: stray.topic_id, partition: stray.partition };
        session.client.list_strays(&address).await?.strays.into_iter().map(of_stray).collect()
    } else {
        named
    };
    let what = format!("delete {} replicas on broker {broker} with all their data", wanted.len());
    session.confirm(&what, consent, Planning { plan: false })?;
    for strays in wanted.chunks(DELETED_AT_ONCE) {
        let reply = session.client.delete_strays(&address, strays.to_vec()).await?;
        reply.strays.iter().try_for_each(|stray| Failure::check(stray.error.as_ref()))?;
    }
    let deleted = Deleted { broker, deleted: wanted.len() };
    session.show(&deleted, |deleted| format!("{} replicas deleted on broker {}", deleted.deleted, deleted.broker))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_replica_is_a_topic_id_and_a_partition() {
        let Replica(found) = replica("AgIC-_ICAgICAgICAgICAg-12").expect("it is well formed");
        assert_eq!((found.topic_id.as_str(), found.partition), ("AgIC-_ICAgICAgICAgICAg", 12));
        for text in ["orders", "orders-", "orders-x"] {
            assert!(replica(text).is_err(), "{text}");
        }
    }
}
