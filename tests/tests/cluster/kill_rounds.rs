//! kill -9 of random nodes under a stream of mutations: what was acknowledged is there, and all nodes agree (P1, P7, P9).

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use quorate_client::{AdminClient, ClientError, Mode, check_item, world};
use quorate_proto::admin::{ConfigAlteration, ConfigChange, ConfigOp, ConfigResource, config_resource};
use quorate_tests::{Cluster, new_topic, topic_named, wait};
use rand::rngs::StdRng;
use rand::seq::SliceRandom;
use rand::{RngExt, SeedableRng};
use tokio::task::JoinHandle;

const NODES: i32 = 3;
const CLIENTS: usize = 3;

/// A client deletes its oldest topics beyond so many, so that a long run does not only grow.
const TOPICS_PER_CLIENT: u64 = 20;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_acknowledged_is_lost_when_nodes_are_killed_again_and_again() {
    let rounds: u64 = number("QUORATE_TEST_ROUNDS").unwrap_or(8);
    let seed = number("QUORATE_TEST_SEED").unwrap_or_else(|| world::chance().random());
    println!("QUORATE_TEST_SEED={seed} QUORATE_TEST_ROUNDS={rounds}");
    let mut random = StdRng::seed_from_u64(seed);
    // Small enough for snapshots to be taken, sent and restarted from on the way.
    let mut cluster = Cluster::start_with(NODES, &[("snapshot_log_bytes", "100000"), ("log_entries_kept", "50")]).await;
    let writers: Vec<Writer> = (0..CLIENTS).map(|id| Writer::start(id, cluster.client())).collect();
    for round in 0..rounds {
        let victims = some_of(cluster.ids(), &mut random);
        println!("round {round}: kill {victims:?}");
        progress(&writers, random.random_range(0..10)).await;
        cluster.assert_alive();
        victims.iter().for_each(|id| cluster.kill(*id));
        if victims.len() == 1 {
            progress(&writers, random.random_range(0..10)).await;
        }
        victims.iter().for_each(|id| cluster.restart(*id));
        progress(&writers, 3).await;
    }
    let mut promised = Promised::default();
    for writer in writers {
        promised.merge(writer.stop().await);
    }
    cluster.ready().await;
    cluster.converged().await;
    println!("{} topics acknowledged, {} in doubt", promised.topics.len(), promised.doubtful.len());
    promised.check(&cluster).await;
}

/// One at least, and now and then all.
fn some_of(mut ids: Vec<i32>, random: &mut StdRng) -> Vec<i32> {
    ids.shuffle(random);
    ids.truncate(random.random_range(1..=ids.len()));
    ids
}

fn number(variable: &str) -> Option<u64> {
    let text = std::env::var(variable).ok()?;
    Some(text.parse().unwrap_or_else(|error| panic!("{variable}={text}: {error}")))
}

/// Waits until so many more mutations are acknowledged.
async fn progress(writers: &[Writer], more: u64) {
    let acknowledged = || writers.iter().map(|writer| writer.acknowledged.load(Ordering::Relaxed)).sum::<u64>();
    let goal = acknowledged() + more;
    wait("mutations to be acknowledged", async || {
        assert!(writers.iter().all(|writer| !writer.task.is_finished()), "a writer was given a wrong answer");
        (acknowledged() >= goal).then_some(())
    })
    .await;
}

/// What the cluster acknowledged, and what it left open.
#[derive(Default)]
struct Promised {
    /// The topics that are there, with the value of their config, where it is known.
    topics: BTreeMap<String, Option<i64>>,
    deleted: BTreeSet<String>,
    refused: BTreeSet<String>,
    /// Created or deleted, or not: nothing can be said.
    doubtful: BTreeSet<String>,
}

impl Promised {
    fn merge(&mut self, other: Self) {
        self.topics.extend(other.topics);
        self.deleted.extend(other.deleted);
        self.refused.extend(other.refused);
        self.doubtful.extend(other.doubtful);
    }

    async fn check(&self, cluster: &Cluster) {
        let there: BTreeSet<String> = cluster.topics().await.into_iter().collect();
        for (name, retention) in &self.topics {
            assert!(there.contains(name), "{name} was acknowledged and is gone");
            if let Some(retention) = retention {
                let topic = cluster.topic(name).await;
                assert_eq!(topic.configs.get("retention.ms"), Some(&retention.to_string()), "the config of {name}");
                assert_eq!(topic.partitions.len(), 2, "{name} is half there");
            }
        }
        for name in self.deleted.iter().chain(&self.refused) {
            assert!(!there.contains(name), "{name} was deleted, or never created, and is there");
        }
        let known = |name: &String| self.topics.contains_key(name) || self.doubtful.contains(name);
        assert!(there.iter().all(known), "topics that nobody asked for");
    }
}

/// One client: creates a topic, changes its config, deletes an old one, and so on.
struct Writer {
    stop: Arc<AtomicBool>,
    acknowledged: Arc<AtomicU64>,
    task: JoinHandle<Promised>,
}

impl Writer {
    fn start(id: usize, client: AdminClient) -> Self {
        let (stop, acknowledged) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let pen = Pen { client, acknowledged: acknowledged.clone(), promised: Promised::default() };
        let task = tokio::spawn(write(id, pen, stop.clone()));
        Self { stop, acknowledged, task }
    }

    async fn stop(self) -> Promised {
        self.stop.store(true, Ordering::Relaxed);
        self.task.await.expect("every answer was right")
    }
}

async fn write(id: usize, mut pen: Pen, stop: Arc<AtomicBool>) -> Promised {
    for number in 0.. {
        if stop.load(Ordering::Relaxed) {
            break;
        }
        let name = |number| format!("writer-{id}-{number}");
        pen.create(name(number)).await;
        pen.configure(name(number), number).await;
        if let Some(old) = number.checked_sub(TOPICS_PER_CLIENT) {
            pen.delete(name(old)).await;
        }
    }
    pen.promised
}

struct Pen {
    client: AdminClient,
    acknowledged: Arc<AtomicU64>,
    promised: Promised,
}

impl Pen {
    async fn create(&mut self, name: String) {
        let reply = self.client.create_topics(vec![new_topic(&name, 2, NODES)], Mode::Apply).await;
        match reply.and_then(|reply| check_item(reply.topics[0].error.as_ref())) {
            Ok(()) => {
                self.acknowledge();
                self.promised.topics.insert(name, None);
            }
            Err(error) => self.not_acknowledged(name, &error),
        }
    }

    async fn configure(&mut self, name: String, value: u64) {
        if !self.promised.topics.contains_key(&name) {
            return;
        }
        let value = i64::try_from(value).expect("a test is short") + 1_000;
        let resource = ConfigResource { resource: Some(config_resource::Resource::Topic(name.clone())) };
        let change = ConfigChange {
            key: "retention.ms".to_owned(),
            op: ConfigOp::Set.into(),
            value: value.to_string(),
            ..ConfigChange::default()
        };
        let alteration = ConfigAlteration { resource: Some(resource), changes: vec![change] };
        let reply = self.client.alter_configs(vec![alteration], Mode::Apply).await;
        match reply.and_then(|reply| check_item(reply.resources[0].error.as_ref())) {
            Ok(()) => {
                self.acknowledge();
                self.promised.topics.insert(name, Some(value));
            }
            Err(error) => println!("config of {name}: {error}"),
        }
    }

    async fn delete(&mut self, name: String) {
        if self.promised.topics.remove(&name).is_none() {
            return;
        }
        let reply = self.client.delete_topics(vec![topic_named(&name)], Mode::Apply).await;
        match reply.and_then(|reply| check_item(reply.topics[0].error.as_ref())) {
            Ok(()) => {
                self.acknowledge();
                self.promised.deleted.insert(name);
            }
            Err(error) => {
                println!("delete {name}: {error}");
                self.promised.doubtful.insert(name);
            }
        }
    }

    fn acknowledge(&self) {
        self.acknowledged.fetch_add(1, Ordering::Relaxed);
    }

    /// No name is asked for twice, so a retry that meets its own first attempt would show here.
    fn not_acknowledged(&mut self, name: String, error: &ClientError) {
        println!("create {name}: {error}");
        assert_ne!(error.name().as_str(), "TOPIC_ALREADY_EXISTS", "a retry of {name} took effect twice");
        if error.is_definite() {
            self.promised.refused.insert(name);
        } else {
            self.promised.doubtful.insert(name);
        }
    }
}
