//! A small mutation: one config of a topic set to another value.

use clap::Args;
use quorate_proto::admin::config_resource::Resource;
use quorate_proto::admin::{ConfigAlteration, ConfigChange, ConfigOp, ConfigResource, NewTopic};
use serde_json::json;

use super::load::{Limit, Load, Operation};
use super::{PerfError, Report, Routing, Target, after_cleaning, create, delete, names};
use crate::{AdminClient, ClientError, Mode, check_item};

#[derive(Debug, Clone, Args)]
pub struct MutateArgs {
    /// Clients at once, each with a topic and a connection of its own
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=1024))]
    clients: u32,
    /// Mutations in all
    #[arg(long, default_value_t = 2000, value_parser = clap::value_parser!(u32).range(1..=10_000_000))]
    count: u32,
    #[command(flatten)]
    routing: Routing,
}

pub async fn run(target: &Target, arguments: &MutateArgs) -> Result<Report, PerfError> {
    let target = target.routed(&arguments.routing).await?;
    let admin = target.client()?;
    let names = names("mutate", arguments.clients as usize);
    let measured = prepare_and_measure(&target, &admin, arguments, &names).await;
    let cleaned = delete(&admin, &names).await.map_err(PerfError::from);
    after_cleaning(measured, cleaned)
}

async fn prepare_and_measure(
    target: &Target,
    admin: &AdminClient,
    arguments: &MutateArgs,
    names: &[String],
) -> Result<Report, PerfError> {
    let each = Limit::Times(arguments.count.div_ceil(arguments.clients).into());
    let mut clients = Vec::new();
    for name in names {
        create(admin, NewTopic { name: name.clone(), partitions: Some(1), ..NewTopic::default() }).await?;
        clients.push((Mutation { client: target.client()?, topic: name.clone(), number: 0 }, each));
    }
    let load = Load::run(target, "mutate", clients).await?;
    let parameters = json!({"clients": arguments.clients, "any_node": arguments.routing.any_node});
    Ok(load.report("mutate", parameters))
}

struct Mutation {
    client: AdminClient,
    topic: String,
    number: u64,
}

impl Operation for Mutation {
    async fn prepare(&mut self) -> Result<(), PerfError> {
        self.run().await
    }

    async fn run(&mut self) -> Result<(), PerfError> {
        self.number += 1;
        Ok(set(&self.client, &self.topic, self.number).await?)
    }
}

/// Sets the config to a value that follows from the number: another number writes a record.
pub(super) async fn set(client: &AdminClient, topic: &str, number: u64) -> Result<(), ClientError> {
    let change = ConfigChange {
        key: "retention.ms".to_owned(),
        op: ConfigOp::Set.into(),
        value: (1000 + number).to_string(),
        ..ConfigChange::default()
    };
    let resource = Some(ConfigResource { resource: Some(Resource::Topic(topic.to_owned())) });
    let reply = client.alter_configs(vec![ConfigAlteration { resource, changes: vec![change] }], Mode::Apply).await?;
    check_item(reply.resources.first().and_then(|resource| resource.error.as_ref()))
}
