//! `quorate topic …`

use std::collections::HashMap;

use clap::{Args, Subcommand};
use quorate_client::spec::{assignments, key_value, replicas};
use quorate_client::{ClientError, Freshness, check_item};
use quorate_metadata::ErrorName;
use quorate_proto::admin::config_resource::Resource;
use quorate_proto::admin::{
    ConfigAlteration, ConfigChange, ConfigOp, ConfigResource, CreateTopicsReply, MorePartitions, NewTopic,
    TopicDescription, TopicRef,
};
use serde::Serialize;

use crate::args::{Consent, Planning};
use crate::failure::{Failure, Outcome};
use crate::output::{cell, note, table, trouble};
use crate::partition::partitions_table;
use crate::plan;
use crate::session::Session;
use crate::view;

#[derive(Debug, Subcommand)]
pub enum Topic {
    /// Create a topic
    Create(Create),
    /// All topics
    List,
    /// One topic with its partitions
    Describe { name: String },
    /// Delete a topic with all its data
    Delete {
        name: String,
        #[command(flatten)]
        planning: Planning,
        #[command(flatten)]
        consent: Consent,
    },
    /// Add partitions, set and delete configs
    Alter(Alter),
}

#[derive(Debug, Args)]
pub struct Create {
    name: String,
    /// The brokers that it is for, by the kind that they registered with [default: log]
    #[arg(long)]
    kind: Option<String>,
    /// How many [default: num.partitions of the cluster]
    #[arg(long, value_name = "N")]
    partitions: Option<i32>,
    /// Replicas of each [default: default.replication.factor of the cluster]
    #[arg(long, value_name = "R")]
    replication_factor: Option<i32>,
    /// A config, such as min.insync.replicas=2
    #[arg(long = "config", value_name = "KEY=VALUE", value_parser = key_value)]
    configs: Vec<(String, String)>,
    /// The replicas of each partition, preferred leader first
    #[arg(
        long,
        value_name = "1:2:3,2:3:1",
        value_delimiter = ',',
        value_parser = replicas_argument,
        conflicts_with_all = ["partitions", "replication_factor"]
    )]
    assignment: Vec<Replicas>,
    /// Be content with a topic that is there already
    #[arg(long)]
    if_not_exists: bool,
    #[command(flatten)]
    planning: Planning,
}

/// A list of its own, so that it counts as one value.
#[derive(Debug, Clone)]
struct Replicas(Vec<i32>);

fn replicas_argument(text: &str) -> Result<Replicas, String> {
    replicas(text).map(Replicas)
}

#[derive(Debug, Args)]
#[group(id = "alteration", required = true, multiple = true, args = ["partitions", "configs", "delete_configs"])]
pub struct Alter {
    name: String,
    /// How many there shall be in all; they can only become more
    #[arg(long, value_name = "N")]
    partitions: Option<i32>,
    /// Set a config
    #[arg(long = "config", value_name = "KEY=VALUE", value_parser = key_value)]
    configs: Vec<(String, String)>,
    /// Return a config to its default
    #[arg(long = "delete-config", value_name = "KEY")]
    delete_configs: Vec<String>,
    #[command(flatten)]
    planning: Planning,
}

pub async fn run(session: &Session, command: Topic) -> Outcome {
    match command {
        Topic::Create(arguments) => create(session, arguments).await,
        Topic::List => list_all(session).await,
        Topic::Describe { name } => describe(session, name).await,
        Topic::Delete { name, planning, consent } => delete(session, name, planning, consent).await,
        Topic::Alter(arguments) => alter(session, arguments).await,
    }
}

async fn create(session: &Session, arguments: Create) -> Outcome {
    let (planning, if_not_exists) = (arguments.planning, arguments.if_not_exists);
    let name = arguments.name.clone();
    let reply = session.client.create_topics(vec![new_topic(arguments)], planning.mode()).await?;
    reply.topics.iter().flat_map(|topic| &topic.warnings).for_each(|warning| note(&format!("warning: {warning}")));
    let created = match created(&reply) {
        Err(error) if if_not_exists && error.name() == ErrorName::TopicAlreadyExists => existing(session, name).await?,
        Ok(_) if planning.plan => return plan::show(session, [reply.result]).await,
        created => created?,
    };
    session.show(&created, |topic| {
        let verb = if topic.created { "created" } else { "was there already" };
        format!("topic {} {verb}: {} partitions, id {}", topic.name, topic.partitions, topic.id)
    })
}

fn new_topic(arguments: Create) -> NewTopic {
    let replicas: Vec<Vec<i32>> = arguments.assignment.into_iter().map(|replicas| replicas.0).collect();
    NewTopic {
        name: arguments.name,
        kind: arguments.kind,
        partitions: arguments.partitions,
        replication_factor: arguments.replication_factor,
        assignment: assignments(&replicas, 0),
        configs: arguments.configs.into_iter().collect::<HashMap<_, _>>(),
    }
}

fn created(reply: &CreateTopicsReply) -> Result<view::CreatedTopic, ClientError> {
    let topic = reply
        .topics
        .first()
        .ok_or_else(|| ClientError::failed(ErrorName::UnknownServerError, "the reply speaks of no topic"))?;
    check_item(topic.error.as_ref())?;
    Ok(view::CreatedTopic {
        name: topic.name.clone(),
        id: topic.id.clone(),
        partitions: topic.partitions,
        offset: reply.result.as_ref().map_or(0, |result| result.offset),
        created: true,
    })
}

async fn existing(session: &Session, name: String) -> Outcome<view::CreatedTopic> {
    let (topic, offset) = find(session, name).await?;
    let partitions = i32::try_from(topic.partitions.len()).expect("partition numbers are i32");
    Ok(view::CreatedTopic { name: topic.name, id: topic.id, partitions, offset, created: false })
}

/// The topic of this name, and the offset at which it was looked at.
pub async fn find(session: &Session, name: String) -> Outcome<(TopicDescription, i64)> {
    let topic = TopicRef { name: Some(name), id: None };
    let reply = session.client.describe_topics(vec![topic], Freshness::Linearizable).await?;
    let offset = reply.offset;
    let topic = reply
        .topics
        .into_iter()
        .next()
        .ok_or_else(|| ClientError::failed(ErrorName::UnknownServerError, "the reply speaks of no topic"))?;
    Failure::check(topic.error.as_ref())?;
    Ok((topic, offset))
}

async fn list_all(session: &Session) -> Outcome {
    let topics = session.client.list_topics(Freshness::Linearizable).await?.topics;
    let topics: Vec<view::TopicSummary> = topics.into_iter().map(view::TopicSummary::from).collect();
    session.show(&topics, |topics| {
        let header = ["name", "id", "kind", "partitions", "replication", "leaderless", "under-replicated"];
        table(
            header,
            topics.iter().map(|topic| {
                [
                    cell(&topic.name),
                    cell(&topic.id),
                    cell(&topic.kind),
                    cell(topic.partitions),
                    cell(topic.replication_factor),
                    trouble(topic.leaderless),
                    trouble(topic.under_replicated),
                ]
            }),
        )
    })
}

async fn describe(session: &Session, name: String) -> Outcome {
    let (topic, _) = find(session, name).await?;
    session.show(&view::Topic::from(topic), |topic| {
        let mut text = format!("topic {} ({}), kind {}\n", topic.name, topic.id, topic.kind);
        for (key, value) in &topic.configs {
            text.push_str(&format!("  {key}={value}\n"));
        }
        text + &partitions_table(&topic.partitions)
    })
}

#[derive(Debug, Serialize)]
struct Deleted {
    name: String,
    id: String,
    offset: i64,
}

async fn delete(session: &Session, name: String, planning: Planning, consent: Consent) -> Outcome {
    session.confirm(&format!("delete topic {name} with all its data"), consent, planning)?;
    let topic = TopicRef { name: Some(name.clone()), id: None };
    let reply = session.client.delete_topics(vec![topic], planning.mode()).await?;
    let id = match reply.topics.first() {
        Some(deleted) => {
            Failure::check(deleted.error.as_ref())?;
            deleted.id.clone()
        }
        None => String::new(),
    };
    if planning.plan {
        return plan::show(session, [reply.result]).await;
    }
    let offset = reply.result.map_or(0, |result| result.offset);
    session.show(&Deleted { name, id, offset }, |topic| format!("topic {} deleted", topic.name))
}

#[derive(Debug, Serialize)]
struct Altered {
    name: String,
    partitions: Option<i32>,
    configs_set: Vec<String>,
    configs_deleted: Vec<String>,
    offset: i64,
}

/// Partitions first: should the configs be refused, a repetition with the configs alone finishes the work.
async fn alter(session: &Session, arguments: Alter) -> Outcome {
    let Alter { name, partitions, configs, delete_configs, planning } = arguments;
    let mut results = Vec::new();
    if let Some(count) = partitions {
        let more = MorePartitions { topic: name.clone(), count, assignment: Vec::new() };
        let reply = session.client.create_partitions(vec![more], planning.mode()).await?;
        Failure::check(reply.topics.first().and_then(|topic| topic.error.as_ref()))?;
        results.push(reply.result);
    }
    let changes = config_changes(&configs, &delete_configs);
    if !changes.is_empty() {
        let resource = Some(ConfigResource { resource: Some(Resource::Topic(name.clone())) });
        let reply = session.client.alter_configs(vec![ConfigAlteration { resource, changes }], planning.mode()).await?;
        Failure::check(reply.resources.first().and_then(|resource| resource.error.as_ref()))?;
        results.push(reply.result);
    }
    if planning.plan {
        return plan::show(session, results).await;
    }
    let offset = results.into_iter().flatten().map(|result| result.offset).max().unwrap_or(0);
    let configs_set = configs.into_iter().map(|(key, _)| key).collect();
    let altered = Altered { name, partitions, configs_set, configs_deleted: delete_configs, offset };
    session.show(&altered, |topic| format!("topic {} altered", topic.name))
}

fn config_changes(set: &[(String, String)], delete: &[String]) -> Vec<ConfigChange> {
    let change = |key: &String, op: ConfigOp, value: &str| ConfigChange {
        key: key.clone(),
        op: op.into(),
        value: value.to_owned(),
        expected: None,
    };
    let set = set.iter().map(|(key, value)| change(key, ConfigOp::Set, value));
    set.chain(delete.iter().map(|key| change(key, ConfigOp::Delete, ""))).collect()
}
