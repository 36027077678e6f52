//! A partitioned system that is no log: each partition of a topic is a shard with a counter in memory. Only its leader
//! counts, and only while its lease lasts; a shard starts from zero at every leader epoch. Who connects gets the counts.
//!
//! `cargo run -p quorate-client --example sharded_counter -- --bootstrap 127.0.0.1:7001 --broker 11 --cluster-id <id>`

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use clap::Parser;
use quorate_client::agent::{
    AgentConfig, Assignment, BrokerAgent, DeleteReason, LeaderCheck, OfflineReason, PartitionHost, ProbedEndpoint,
    STRAY_GRACE,
};
use quorate_client::network::Network;
use quorate_client::world;
use quorate_metadata::ids::{BrokerId, ClusterId, DirectoryId, IncarnationId, LeaderEpoch, TopicPartition};
use quorate_metadata::plan::features;
use quorate_metadata::record::{Endpoint, Kind, SecurityProtocol};
use tokio::io::AsyncWriteExt;
use tokio::net::TcpListener;

#[derive(Parser)]
struct Arguments {
    #[arg(long, required = true)]
    bootstrap: Vec<String>,
    #[arg(long)]
    broker: BrokerId,
    #[arg(long)]
    cluster_id: ClusterId,
    #[arg(long, default_value = "127.0.0.1:9011")]
    listen: std::net::SocketAddr,
}

/// The shards that this broker leads: the epoch, and what was counted at it.
#[derive(Default)]
struct Counters(Mutex<BTreeMap<TopicPartition, (LeaderEpoch, u64)>>);

#[tonic::async_trait]
impl PartitionHost for Counters {
    fn hosted(&self) -> Vec<TopicPartition> {
        Vec::new() // Nothing outlives the process.
    }

    async fn become_leader(&self, it: Assignment) {
        println!("{}-{}: leader at epoch {}, ISR {:?}", it.topic, it.id.partition, it.leader_epoch(), it.state.isr);
        let mut led = self.0.lock().expect("no holder panics");
        let shard = led.entry(it.id).or_insert((it.leader_epoch(), 0));
        if shard.0 != it.leader_epoch() {
            *shard = (it.leader_epoch(), 0);
        }
    }

    async fn become_follower(&self, it: Assignment) {
        println!("{}-{}: follower of {:?} at epoch {}", it.topic, it.id.partition, it.state.leader, it.leader_epoch());
        self.0.lock().expect("no holder panics").remove(&it.id);
    }

    async fn become_offline(&self, it: Assignment, reason: OfflineReason) {
        println!("{}-{}: offline, {reason:?}", it.topic, it.id.partition);
        self.0.lock().expect("no holder panics").remove(&it.id);
    }

    async fn delete_replica(&self, id: TopicPartition, reason: DeleteReason) {
        println!("{id}: deleted, {reason:?}");
        self.0.lock().expect("no holder panics").remove(&id);
    }
}

async fn count(counters: Arc<Counters>, leaders: LeaderCheck) {
    loop {
        tokio::time::sleep(Duration::from_secs(1)).await;
        for (id, (epoch, count)) in counters.0.lock().expect("no holder panics").iter_mut() {
            // It may have ended while the call that says so is on its way.
            if leaders.may_lead(*id, *epoch) {
                *count += 1;
                println!("{id}: {count} at epoch {epoch}");
            }
        }
    }
}

async fn answer(listener: TcpListener, counters: Arc<Counters>) {
    loop {
        let Ok((mut connection, _)) = listener.accept().await else {
            tokio::time::sleep(Duration::from_millis(100)).await;
            continue;
        };
        let counts = format!("{:?}\n", counters.0.lock().expect("no holder panics"));
        tokio::spawn(async move { connection.write_all(counts.as_bytes()).await });
    }
}

#[tokio::main]
async fn main() {
    let Arguments { bootstrap, broker, cluster_id: cluster, listen } = Arguments::parse();
    // Before it registers: a controller that loses its stream connects here, and fences the broker if that is refused.
    let listener = TcpListener::bind(listen).await.expect("another --listen is free");
    let (name, host, security) = ("COUNTS".to_owned(), listen.ip().to_string(), SecurityProtocol::Plaintext);
    let (incarnation, directory) = (IncarnationId::new(world::uuid()), DirectoryId::new(world::uuid()));
    let (kind, probe) = (Kind::from("counter"), ProbedEndpoint::Named(name.clone()));
    let endpoints = vec![Endpoint { name, host, port: listen.port(), security }];
    let (features, resolve) = (features::supported(), Arc::new(str::to_owned));
    let (directories, registration_timeout) = (vec![directory], Some(Duration::from_secs(60)));
    #[rustfmt::skip]
    let mut agent = BrokerAgent::start(AgentConfig { broker, cluster, incarnation, kind, endpoints, probe, rack: None,
        features, directories, previous_epoch: None, bootstrap, local_metadata: None, resolve, registration_timeout,
        stray_grace: STRAY_GRACE, network: Network::default() });
    let counters = Arc::new(Counters::default());
    agent.drive(counters.clone());
    tokio::spawn(count(counters.clone(), agent.leader_check()));
    tokio::spawn(answer(listener, counters));
    tokio::select! {
        error = agent.failed() => return eprintln!("{error}"),
        _ = tokio::signal::ctrl_c() => println!("stopping: its shards move to other brokers first"),
    }
    println!("stopped cleanly: {}", agent.shut_down(Duration::from_secs(30)).await.is_confirmed);
}
