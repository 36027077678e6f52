//! `quorate broker …`

use clap::Subcommand;
use quorate_client::{ClientError, Freshness};
use quorate_metadata::ErrorName;
use quorate_proto::admin::ListPartitionsRequest;
use serde::Serialize;

use crate::args::{Consent, Planning};
use crate::failure::Outcome;
use crate::output::{cell, judged, optional, table};
use crate::partition::partitions_table;
use crate::plan;
use crate::session::Session;
use crate::strays::{self, Strays};
use crate::view;

#[derive(Debug, Subcommand)]
pub enum Broker {
    /// All registered brokers
    List,
    /// One broker with its partitions
    Describe { id: i32 },
    /// Replicas on brokers that the metadata does not know
    #[command(subcommand)]
    Strays(Strays),
    /// Forget a broker that will not come back; refused while a reassignment waits for it
    Unregister {
        id: i32,
        /// Also one that is not fenced: it registers again by itself, and its replicas leave every ISR until then
        #[arg(long)]
        force: bool,
        #[command(flatten)]
        planning: Planning,
        #[command(flatten)]
        consent: Consent,
    },
}

pub async fn run(session: &Session, command: Broker) -> Outcome {
    match command {
        Broker::List => list(session).await,
        Broker::Describe { id } => describe(session, id).await,
        Broker::Strays(command) => strays::run(session, command).await,
        Broker::Unregister { id, force, planning, consent } => unregister(session, id, force, planning, consent).await,
    }
}

async fn all(session: &Session) -> Outcome<Vec<view::Broker>> {
    let brokers = session.client.list_brokers(Freshness::Linearizable).await?.brokers;
    Ok(brokers.into_iter().map(view::Broker::from).collect())
}

async fn list(session: &Session) -> Outcome {
    session.show(&all(session).await?, |brokers| brokers_table(brokers))
}

fn brokers_table(brokers: &[view::Broker]) -> String {
    let header = ["id", "state", "kind", "endpoint", "rack", "epoch", "leaders", "replicas", "in sync"];
    let rows = brokers.iter().map(|broker| {
        [
            cell(broker.id),
            judged(&broker.state, broker.state == "unfenced"),
            cell(&broker.kind),
            cell(optional(broker.endpoint.as_ref())),
            cell(optional(broker.rack.as_ref())),
            cell(broker.epoch),
            cell(broker.leaders),
            cell(broker.replicas),
            judged(broker.in_sync, broker.in_sync == broker.replicas),
        ]
    });
    table(header, rows)
}

#[derive(Debug, Serialize)]
struct Description {
    #[serde(flatten)]
    broker: view::Broker,
    partitions: Vec<view::Partition>,
}

async fn describe(session: &Session, id: i32) -> Outcome {
    let Some(broker) = all(session).await?.into_iter().find(|broker| broker.id == id) else {
        return Err(
            ClientError::failed(ErrorName::BrokerIdNotRegistered, format!("broker {id} is not registered")).into()
        );
    };
    let request = ListPartitionsRequest { broker: Some(id), ..ListPartitionsRequest::default() };
    let partitions = session.client.list_partitions(request, Freshness::Linearizable).await?.partitions;
    let partitions = partitions.into_iter().map(view::Partition::from).collect();
    session.show(&Description { broker, partitions }, |description| {
        let broker = &description.broker;
        let about = brokers_table(std::slice::from_ref(broker));
        let directories = broker.directories.join(" ");
        let partitions = partitions_table(&description.partitions);
        let probed = broker.probed_endpoint.as_deref().unwrap_or("none");
        let incarnation = &broker.incarnation;
        format!(
            "{about}\nincarnation {incarnation}\ndirectories {directories}\nprobed endpoint {probed}\n\n{partitions}"
        )
    })
}

#[derive(Debug, Serialize)]
struct Unregistered {
    id: i32,
    offset: i64,
}

async fn unregister(session: &Session, id: i32, force: bool, planning: Planning, consent: Consent) -> Outcome {
    session.confirm(&format!("unregister broker {id}"), consent, planning)?;
    let reply = session.client.unregister_broker(id, force, planning.mode()).await?;
    if planning.plan {
        return plan::show(session, [reply.result]).await;
    }
    let offset = reply.result.map_or(0, |result| result.offset);
    session.show(&Unregistered { id, offset }, |broker| format!("broker {} unregistered", broker.id))
}
