//! A small mutation: one config of a topic set to another value.

use clap::Args;
use indicatif::ProgressBar;
use quorate_proto::admin::config_resource::Resource;
use quorate_proto::admin::{ConfigAlteration, ConfigChange, ConfigOp, ConfigResource, NewTopic};
use serde_json::json;
use tokio::task::JoinSet;
use tokio::time::Instant;

use super::{PerfError, Report, Routing, Samples, Target, after_cleaning, create, delete, names, progress};
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
    for name in names {
        create(admin, NewTopic { name: name.clone(), partitions: Some(1), ..NewTopic::default() }).await?;
    }
    let bar = progress("mutate", arguments.count.into());
    let each = arguments.count.div_ceil(arguments.clients);
    let mut clients = JoinSet::new();
    let started = Instant::now();
    for name in names {
        clients.spawn(mutate(target.client()?, name.clone(), each, bar.clone()));
    }
    let mut samples = Samples::default();
    while let Some(share) = clients.join_next().await {
        samples.merge(&share.expect("a client of ours does not panic")?);
    }
    let elapsed = started.elapsed();
    bar.finish_and_clear();
    let parameters = json!({"clients": arguments.clients, "any_node": arguments.routing.any_node});
    Ok(Report::new("mutate", &samples, parameters).with_rate(elapsed))
}

async fn mutate(client: AdminClient, topic: String, count: u32, bar: ProgressBar) -> Result<Samples, PerfError> {
    set(&client, &topic, 0).await?;
    let mut samples = Samples::default();
    for number in 1..=count {
        let started = Instant::now();
        set(&client, &topic, number).await?;
        samples.record(started.elapsed());
        bar.inc(1);
    }
    Ok(samples)
}

/// Every value differs from the one before, so each call writes a record.
async fn set(client: &AdminClient, topic: &str, number: u32) -> Result<(), ClientError> {
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
