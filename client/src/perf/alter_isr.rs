//! AlterPartition: many leaders, each shrinking and expanding the ISR of its own partition, one partition a request.

use std::time::Duration;

use clap::Args;
use quorate_proto::broker::{AlterPartitionRequest, AlteredPartition, IsrMember, PartitionAlteration};
use serde_json::json;
use tokio::task::JoinSet;
use tokio::time::Instant;

use super::brokers::OwnBrokers;
use super::{PerfError, Report, Routing, Samples, Target, after_cleaning, assigned, create, delete, names, progress};
use crate::{AdminClient, ClientError, Freshness, check_item};

const REPLICAS: i32 = 3;

const HEARTBEAT_INTERVAL: Duration = Duration::from_millis(250);

#[derive(Debug, Clone, Args)]
pub struct AlterIsrArgs {
    /// Clients at once, each with a partition and a connection of its own
    #[arg(long, default_value_t = 32, value_parser = clap::value_parser!(u32).range(1..=1024))]
    clients: u32,
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
    let brokers = OwnBrokers::start(&target, &ids, HEARTBEAT_INTERVAL).await?;
    let admin = target.client()?;
    let names = names("alter-isr", 1);
    let measured = measure(&target, &admin, arguments, &brokers, &names[0]).await;
    let cleaned = async {
        delete(&admin, &names).await?;
        brokers.stop().await.map(drop)
    };
    after_cleaning(measured, cleaned.await)
}

async fn measure(
    target: &Target,
    admin: &AdminClient,
    arguments: &AlterIsrArgs,
    brokers: &OwnBrokers,
    name: &str,
) -> Result<Report, PerfError> {
    let topic = create(admin, assigned(name.to_owned(), replicas(arguments))).await?;
    let leaders = leaders(admin, name, &topic.id, brokers).await?;
    let deadline = Instant::now() + Duration::from_secs(arguments.seconds);
    let bar = progress("alter-isr: seconds", arguments.seconds);
    let mut clients = JoinSet::new();
    for leader in leaders {
        clients.spawn(leader.flap(target.client()?, deadline));
    }
    let started = Instant::now();
    let ticker = tokio::spawn(tick(bar.clone(), arguments.seconds));
    let mut samples = Samples::default();
    while let Some(share) = clients.join_next().await {
        samples.merge(&share.expect("a client of ours does not panic")?);
    }
    let elapsed = started.elapsed();
    ticker.abort();
    bar.finish_and_clear();
    let parameters = json!({
        "clients": arguments.clients, "seconds": arguments.seconds, "partitions_per_request": 1,
        "any_node": arguments.routing.any_node,
    });
    Ok(Report::new("alter-isr", &samples, parameters).with_rate(elapsed))
}

async fn tick(bar: indicatif::ProgressBar, seconds: u64) {
    for _ in 0..seconds {
        tokio::time::sleep(Duration::from_secs(1)).await;
        bar.inc(1);
    }
}

/// The partitions' replicas, so that the leaders spread over our brokers.
fn replicas(arguments: &AlterIsrArgs) -> impl Iterator<Item = Vec<i32>> {
    let first = arguments.first_broker;
    (0..REPLICAS)
        .cycle()
        .take(arguments.clients as usize)
        .map(move |turn| (0..REPLICAS).map(|number| first + (turn + number) % REPLICAS).collect())
}

async fn leaders(admin: &AdminClient, name: &str, id: &str, brokers: &OwnBrokers) -> Result<Vec<Leader>, PerfError> {
    let wanted = quorate_proto::admin::TopicRef { name: Some(name.to_owned()), id: None };
    let described = admin.describe_topics(vec![wanted], Freshness::Linearizable).await?.topics;
    let partitions = described.into_iter().flat_map(|topic| topic.partitions);
    partitions
        .map(|partition| {
            let leader = partition
                .leader
                .ok_or_else(|| PerfError::cluster(format!("{name}-{} has no leader", partition.partition)))?;
            Ok(Leader {
                broker: leader,
                epoch: brokers.epoch(leader),
                topic: id.to_owned(),
                partition: partition.partition,
                replicas: partition.replicas,
                leader_epoch: partition.leader_epoch,
                partition_epoch: partition.partition_epoch,
            })
        })
        .collect()
}

/// The leader of one partition.
struct Leader {
    broker: i32,
    epoch: i64,
    topic: String,
    partition: i32,
    replicas: Vec<i32>,
    leader_epoch: i32,
    partition_epoch: i32,
}

impl Leader {
    async fn flap(mut self, client: AdminClient, deadline: Instant) -> Result<Samples, PerfError> {
        let mut samples = Samples::default();
        let mut whole = true;
        while Instant::now() < deadline {
            let isr: Vec<i32> = if whole { self.without_last_follower() } else { self.replicas.clone() };
            let started = Instant::now();
            self.alter(&client, &isr).await?;
            samples.record(started.elapsed());
            whole = !whole;
        }
        Ok(samples)
    }

    fn without_last_follower(&self) -> Vec<i32> {
        let out = self.replicas.iter().rev().find(|id| **id != self.broker);
        self.replicas.iter().filter(|id| Some(*id) != out).copied().collect()
    }

    async fn alter(&mut self, client: &AdminClient, isr: &[i32]) -> Result<(), ClientError> {
        let alteration = PartitionAlteration {
            topic_id: self.topic.clone(),
            partition: self.partition,
            leader_epoch: self.leader_epoch,
            partition_epoch: self.partition_epoch,
            isr: isr.iter().map(|id| IsrMember { broker: *id, epoch: None }).collect(),
            recovery: 0,
            supersedes: false,
        };
        let request =
            AlterPartitionRequest { broker: self.broker, broker_epoch: self.epoch, partitions: vec![alteration] };
        let reply = client.alter_partition(request).await?;
        let altered: AlteredPartition = reply.partitions.into_iter().next().unwrap_or_default();
        check_item(altered.error.as_ref())?;
        self.leader_epoch = altered.leader_epoch;
        self.partition_epoch = altered.partition_epoch;
        Ok(())
    }
}
