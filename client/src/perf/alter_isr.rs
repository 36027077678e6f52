//! AlterPartition: many leaders, each shrinking and expanding the ISRs of its own partitions.

use std::time::Duration;

use clap::Args;
use quorate_proto::admin::{PartitionDescription, TopicRef};
use quorate_proto::broker::{AlterPartitionRequest, IsrMember, PartitionAlteration};
use serde_json::json;

use super::brokers::{Behaviour, Fleet};
use super::load::{Limit, Load, Operation};
use super::{PerfError, Report, Routing, Target, after_cleaning, assigned, create, delete, names};
use crate::{AdminClient, Freshness, check_item};

const REPLICAS: i32 = 3;

#[derive(Debug, Clone, Args)]
pub struct AlterIsrArgs {
    /// Clients at once, each with partitions and a connection of its own
    #[arg(long, default_value_t = 32, value_parser = clap::value_parser!(u32).range(1..=1024))]
    clients: u32,
    /// Partitions in one request
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=1000))]
    per_request: u32,
    /// For how long
    #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u64).range(1..=3600))]
    seconds: u64,
    /// The first of three broker ids that are registered for the measurement
    #[arg(long, default_value_t = 1001)]
    first_broker: i32,
    #[command(flatten)]
    routing: Routing,
}

pub async fn run(target: &Target, arguments: &AlterIsrArgs) -> Result<Report, PerfError> {
    let target = target.routed(&arguments.routing).await?;
    let ids: Vec<i32> = (0..REPLICAS).map(|number| arguments.first_broker + number).collect();
    let fleet = Fleet::start(&target, &ids, Behaviour::default()).await?;
    let admin = target.client()?;
    let names = names("alter-isr", 1);
    let measured = measure(&target, &admin, arguments, &fleet, &names[0]).await;
    let cleaned = async {
        delete(&admin, &names).await?;
        fleet.stop().await.map(drop)
    };
    after_cleaning(measured, cleaned.await)
}

async fn measure(
    target: &Target,
    admin: &AdminClient,
    arguments: &AlterIsrArgs,
    fleet: &Fleet,
    name: &str,
) -> Result<Report, PerfError> {
    let topic = create(admin, assigned(name.to_owned(), replicas(arguments))).await?;
    let partitions = describe(admin, name).await?;
    let limit = Limit::For(Duration::from_secs(arguments.seconds));
    let leader = |share: &[PartitionDescription]| {
        Ok::<_, PerfError>((Leader::of(target.client()?, fleet, &topic.id, share)?, limit))
    };
    let leaders = partitions.chunks(arguments.per_request as usize).map(leader).collect::<Result<_, _>>()?;
    let load = Load::run(target, "alter-isr: seconds", leaders).await?;
    let (changes, elapsed) = (load.samples.len() * u64::from(arguments.per_request), load.elapsed);
    let parameters = json!({
        "clients": arguments.clients, "seconds": arguments.seconds, "partitions_per_request": arguments.per_request,
        "any_node": arguments.routing.any_node,
    });
    Ok(load.report("alter-isr", parameters).with_rate_of(changes, elapsed))
}

/// The partitions' replicas, client by client: all partitions of a client have one leader, and the clients spread over
/// the brokers.
fn replicas(arguments: &AlterIsrArgs) -> impl Iterator<Item = Vec<i32>> {
    let first = arguments.first_broker;
    let of_client =
        move |turn: i32| -> Vec<i32> { (0..REPLICAS).map(|number| first + (turn + number) % REPLICAS).collect() };
    let each = arguments.per_request as usize;
    (0..REPLICAS)
        .cycle()
        .take(arguments.clients as usize)
        .flat_map(move |turn| std::iter::repeat_n(of_client(turn), each))
}

async fn describe(admin: &AdminClient, name: &str) -> Result<Vec<PartitionDescription>, PerfError> {
    let wanted = TopicRef { name: Some(name.to_owned()), id: None };
    let described = admin.describe_topics(vec![wanted], Freshness::Linearizable).await?.topics;
    Ok(described.into_iter().flat_map(|topic| topic.partitions).collect())
}

/// The leader of some partitions, all of which it changes in one request.
struct Leader {
    client: AdminClient,
    broker: i32,
    epoch: i64,
    topic: String,
    partitions: Vec<Led>,
    is_whole: bool,
}

struct Led {
    partition: i32,
    replicas: Vec<i32>,
    leader_epoch: i32,
    partition_epoch: i32,
}

impl Leader {
    fn of(
        client: AdminClient,
        fleet: &Fleet,
        topic: &str,
        partitions: &[PartitionDescription],
    ) -> Result<Self, PerfError> {
        let broker = partitions[0].replicas[0];
        if let Some(other) = partitions.iter().find(|partition| partition.leader != Some(broker)) {
            let (name, number) = (&other.topic, other.partition);
            return Err(PerfError::cluster(format!("{name}-{number} is led by {:?}, expected {broker}", other.leader)));
        }
        let led = |partition: &PartitionDescription| Led {
            partition: partition.partition,
            replicas: partition.replicas.clone(),
            leader_epoch: partition.leader_epoch,
            partition_epoch: partition.partition_epoch,
        };
        let partitions = partitions.iter().map(led).collect();
        Ok(Self { client, broker, epoch: fleet.epoch(broker), topic: topic.to_owned(), partitions, is_whole: true })
    }

    /// Each partition without its last follower, or whole again.
    fn request(&self) -> AlterPartitionRequest {
        let alteration = |led: &Led| {
            let members = if self.is_whole { &led.replicas[..led.replicas.len() - 1] } else { &led.replicas[..] };
            PartitionAlteration {
                topic_id: self.topic.clone(),
                partition: led.partition,
                leader_epoch: led.leader_epoch,
                partition_epoch: led.partition_epoch,
                isr: members.iter().map(|id| IsrMember { broker: *id, epoch: None }).collect(),
                recovery: 0,
                supersedes: false,
            }
        };
        let partitions = self.partitions.iter().map(alteration).collect();
        AlterPartitionRequest { broker: self.broker, broker_epoch: self.epoch, partitions }
    }
}

impl Operation for Leader {
    async fn prepare(&mut self) -> Result<(), PerfError> {
        self.client.describe_quorum(Freshness::Stale).await?;
        Ok(())
    }

    async fn run(&mut self) -> Result<(), PerfError> {
        let reply = self.client.alter_partition(self.request()).await?;
        if reply.partitions.len() != self.partitions.len() {
            let (got, expected) = (reply.partitions.len(), self.partitions.len());
            return Err(PerfError::cluster(format!("the reply names {got} partitions, expected {expected}")));
        }
        for (led, altered) in self.partitions.iter_mut().zip(reply.partitions) {
            check_item(altered.error.as_ref())?;
            led.leader_epoch = altered.leader_epoch;
            led.partition_epoch = altered.partition_epoch;
        }
        self.is_whole = !self.is_whole;
        Ok(())
    }
}
