//! `quorate config …`

use clap::{Args, Subcommand};
use quorate_client::spec::{ResourceName, key_value, resource};
use quorate_client::{ClientError, Freshness};
use quorate_metadata::ErrorName;
use quorate_proto::admin::{ConfigAlteration, ConfigChange, ConfigOp};
use serde::Serialize;

use crate::args::Planning;
use crate::failure::{Failure, Outcome};
use crate::output::{cell, table};
use crate::plan;
use crate::session::Session;

#[derive(Debug, Subcommand)]
pub enum Config {
    /// Effective configs, and where each value comes from
    Get {
        /// topic/NAME, broker/ID or broker/default
        #[arg(value_parser = resource)]
        resource: ResourceName,
        /// Only these [default: all]
        keys: Vec<String>,
    },
    /// Set values, or amend lists
    Set(Set),
    /// Return to what applies otherwise
    Unset {
        /// topic/NAME, broker/ID or broker/default
        #[arg(value_parser = resource)]
        resource: ResourceName,
        #[arg(required = true)]
        keys: Vec<String>,
        #[command(flatten)]
        planning: Planning,
    },
}

#[derive(Debug, Args)]
#[group(id = "change", required = true, multiple = true, args = ["values", "append", "subtract"])]
pub struct Set {
    /// topic/NAME, broker/ID or broker/default
    #[arg(value_parser = resource)]
    resource: ResourceName,
    #[arg(value_name = "KEY=VALUE", value_parser = key_value)]
    values: Vec<(String, String)>,
    /// Add to a config that is a list
    #[arg(long, value_name = "KEY=VALUE", value_parser = key_value)]
    append: Vec<(String, String)>,
    /// Take from a config that is a list
    #[arg(long, value_name = "KEY=VALUE", value_parser = key_value)]
    subtract: Vec<(String, String)>,
    /// Only if the resource itself has this value now
    #[arg(long, value_name = "KEY=VALUE", value_parser = key_value)]
    expect: Vec<(String, String)>,
    #[command(flatten)]
    planning: Planning,
}

pub async fn run(session: &Session, command: Config) -> Outcome {
    match command {
        Config::Get { resource, keys } => get(session, resource, keys).await,
        Config::Set(set) => {
            let mut changes: Vec<ConfigChange> =
                [(ConfigOp::Set, set.values), (ConfigOp::Append, set.append), (ConfigOp::Subtract, set.subtract)]
                    .into_iter()
                    .flat_map(|(op, values)| values.into_iter().map(move |(key, value)| change(op, key, value)))
                    .collect();
            for (key, value) in set.expect {
                expect(&mut changes, &key, value)?;
            }
            alter(session, set.resource, changes, set.planning).await
        }
        Config::Unset { resource, keys, planning } => {
            let changes = keys.into_iter().map(|key| change(ConfigOp::Delete, key, String::new())).collect();
            alter(session, resource, changes, planning).await
        }
    }
}

fn change(op: ConfigOp, key: String, value: String) -> ConfigChange {
    ConfigChange { key, op: op.into(), value, expected: None }
}

fn expect(changes: &mut [ConfigChange], key: &str, value: String) -> Outcome {
    let Some(change) = changes.iter_mut().find(|change| change.key == key) else {
        let message = format!("--expect {key}: this config is not being changed");
        return Err(ClientError::failed(ErrorName::InvalidRequest, message).into());
    };
    change.expected = Some(value);
    Ok(())
}

#[derive(Debug, Serialize)]
struct Configs {
    resource: String,
    configs: Vec<Entry>,
}

#[derive(Debug, Serialize)]
struct Entry {
    key: String,
    value: String,
    source: String,
    #[serde(rename = "type")]
    kind: String,
    doc: String,
}

async fn get(session: &Session, resource: ResourceName, keys: Vec<String>) -> Outcome {
    let reply = session.client.describe_configs(vec![resource.to_wire()], Freshness::Linearizable).await?;
    let description = reply.resources.into_iter().next().unwrap_or_default();
    Failure::check(description.error.as_ref())?;
    let entries = description.entries;
    if let Some(missing) = keys.iter().find(|key| !entries.iter().any(|entry| entry.key == **key)) {
        let message = format!("{resource} has no config named \"{missing}\"");
        return Err(ClientError::failed(ErrorName::InvalidConfig, message).into());
    }
    let wanted = entries.into_iter().filter(|entry| keys.is_empty() || keys.contains(&entry.key));
    let configs = wanted
        .map(|entry| Entry {
            key: entry.key,
            value: entry.value,
            source: entry.source,
            kind: entry.r#type,
            doc: entry.doc,
        })
        .collect();
    session.show(&Configs { resource: resource.to_string(), configs }, |configs| {
        let rows = configs.configs.iter().map(|entry| {
            [cell(&entry.key), cell(&entry.value), cell(&entry.source), cell(&entry.kind), cell(&entry.doc)]
        });
        table(["key", "value", "source", "type", "meaning"], rows)
    })
}

#[derive(Debug, Serialize)]
struct Altered {
    resource: String,
    offset: i64,
}

async fn alter(session: &Session, resource: ResourceName, changes: Vec<ConfigChange>, planning: Planning) -> Outcome {
    let alteration = ConfigAlteration { resource: Some(resource.to_wire()), changes };
    let reply = session.client.alter_configs(vec![alteration], planning.mode()).await?;
    Failure::check(reply.resources.first().and_then(|resource| resource.error.as_ref()))?;
    if planning.plan {
        return plan::show(session, [reply.result]).await;
    }
    let offset = reply.result.map_or(0, |result| result.offset);
    session.show(&Altered { resource: resource.to_string(), offset }, |altered| {
        format!("configs of {} altered", altered.resource)
    })
}
