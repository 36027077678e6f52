//! A steady stream of records, and the account of what became of each.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use quorate_client::log::{ProducedRecord, Producer, ProducerOptions};
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep};

use crate::Cluster;
use crate::log::Committed;

/// Between two records.
const PACE: Duration = Duration::from_millis(2);

/// Writes numbered records until it is told to stop.
pub struct Load {
    stop: Arc<AtomicBool>,
    task: JoinHandle<Account>,
}

/// What became of the records.
#[derive(Debug, Default)]
pub struct Account {
    /// Value, and where it is said to be.
    pub acknowledged: BTreeMap<String, (i32, Option<i64>)>,
    /// Value, and why it was not.
    pub failed: BTreeMap<String, String>,
    /// The longest time without an acknowledgement.
    pub longest_gap: Duration,
}

impl Load {
    /// An idempotent producer that waits for all in-sync replicas, over all partitions of the topic.
    pub fn start(cluster: &Cluster, topic: &str) -> Self {
        Self::start_with(cluster, topic, "record", ProducerOptions::default())
    }

    /// `name`: what the records' values begin with.
    pub fn start_with(cluster: &Cluster, topic: &str, name: &str, options: ProducerOptions) -> Self {
        let addresses: Vec<String> = cluster.ids().iter().map(|id| cluster.api(*id).to_owned()).collect();
        let producer = Producer::start(&addresses, options).expect("the addresses are well formed");
        let stop = Arc::new(AtomicBool::new(false));
        let task = tokio::spawn(write(producer, topic.to_owned(), name.to_owned(), stop.clone()));
        Self { stop, task }
    }

    /// Waits for what is still under way.
    pub async fn stop(self) -> Account {
        self.stop.store(true, Ordering::Relaxed);
        self.task.await.expect("a producer does not panic")
    }
}

async fn write(producer: Producer, topic: String, name: String, stop: Arc<AtomicBool>) -> Account {
    let mut deliveries = tokio::task::JoinSet::new();
    let mut account = Account::default();
    let mut last = Instant::now();
    for number in 0.. {
        if stop.load(Ordering::Relaxed) {
            break;
        }
        let value = format!("{name} {number}");
        // Keys spread the records over the partitions.
        let record = ProducedRecord {
            key: Some(value.clone().into_bytes().into()),
            value: Some(value.clone().into_bytes().into()),
            ..ProducedRecord::default()
        };
        let delivery = producer.send(&topic, None, record).await.expect("the producer runs");
        deliveries.spawn(async move { (value, delivery.acknowledged().await) });
        sleep(PACE).await;
        while let Some(done) = deliveries.try_join_next() {
            account.take(done.expect("a delivery does not panic"), &mut last);
        }
    }
    while let Some(done) = deliveries.join_next().await {
        account.take(done.expect("a delivery does not panic"), &mut last);
    }
    account
}

type Outcome = Result<quorate_client::log::Acknowledged, quorate_client::ClientError>;

impl Account {
    fn take(&mut self, (value, outcome): (String, Outcome), last: &mut Instant) {
        match outcome {
            Ok(at) => {
                self.longest_gap = self.longest_gap.max(last.elapsed());
                *last = Instant::now();
                self.acknowledged.insert(value, (at.partition, at.offset));
            }
            Err(error) => {
                self.failed.insert(value, error.to_string());
            }
        }
    }

    /// Every acknowledged record is where it is said to be, and none is there twice.
    pub fn check(&self, logs: &[Committed]) {
        assert!(!self.acknowledged.is_empty(), "nothing was acknowledged");
        let mut found: BTreeMap<String, Vec<(i32, i64)>> = BTreeMap::new();
        for (partition, log) in (0..).zip(logs) {
            for (offset, value) in log.values() {
                let value = String::from_utf8(value).expect("the records are texts");
                found.entry(value).or_default().push((partition, offset));
            }
        }
        for (value, (partition, offset)) in &self.acknowledged {
            let places = found.get(value).unwrap_or_else(|| panic!("{value:?} was acknowledged, and is lost"));
            let said = offset.map(|offset| (*partition, offset));
            assert!(said.is_none_or(|said| places.contains(&said)), "{value:?} is at {places:?}, not {said:?}");
        }
        for (value, places) in &found {
            assert_eq!(places.len(), 1, "{value:?} is there more than once: {places:?}");
        }
    }
}
