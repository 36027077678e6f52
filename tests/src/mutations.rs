//! A steady stream of mutations, each of which has to be acknowledged.

use std::panic::resume_unwind;
use std::time::Duration;

use quorate_client::{AdminClient, ClientError, Mode, Options, check_item};
use quorate_proto::admin::{ConfigAlteration, ConfigChange, ConfigOp, ConfigResource, config_resource};
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::{Instant, MissedTickBehavior, interval};

use crate::Cluster;

/// Between two mutations: several in each period of the controller's tasks, and few enough for a debug build.
const PACE: Duration = Duration::from_millis(50);

/// One mutation after the other until it is stopped. The first that is not acknowledged within the ordinary timeout of
/// a client fails the test.
pub struct Mutations {
    stop: watch::Sender<bool>,
    /// When the last one was acknowledged.
    acknowledged: watch::Receiver<Option<Instant>>,
    task: JoinHandle<u64>,
}

impl Mutations {
    /// Sets a config of the topic to another value each time.
    pub fn start(cluster: &Cluster, topic: &str) -> Self {
        let client = cluster.client_with(&cluster.ids(), Options::default());
        let stop = watch::Sender::new(false);
        let (sender, acknowledged) = watch::channel(None);
        let task = tokio::spawn(mutate(client, topic.to_owned(), stop.subscribe(), sender));
        Self { stop, acknowledged, task }
    }

    /// Waits until mutations have been acknowledged for so long from now.
    pub async fn continue_for(&mut self, duration: Duration) {
        let until = Instant::now() + duration;
        let has_ended = self.acknowledged.wait_for(|last| last.is_some_and(|last| last >= until)).await.is_err();
        if has_ended {
            let failure = (&mut self.task).await.expect_err("the task ends early by a failure only");
            resume_unwind(failure.into_panic());
        }
    }

    /// How many were acknowledged, which is all of them.
    pub async fn stop(self) -> u64 {
        self.stop.send_replace(true);
        self.task.await.unwrap_or_else(|failure| resume_unwind(failure.into_panic()))
    }
}

async fn mutate(
    client: AdminClient,
    topic: String,
    stop: watch::Receiver<bool>,
    acknowledged: watch::Sender<Option<Instant>>,
) -> u64 {
    let mut pace = interval(PACE);
    pace.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut count = 0;
    while !*stop.borrow() {
        pace.tick().await;
        let started = Instant::now();
        if let Err(error) = set(&client, &topic, count).await {
            panic!("mutation {count} was not acknowledged within {:?}: {error}", started.elapsed());
        }
        count += 1;
        acknowledged.send_replace(Some(Instant::now()));
    }
    count
}

async fn set(client: &AdminClient, topic: &str, number: u64) -> Result<(), ClientError> {
    let resource = ConfigResource { resource: Some(config_resource::Resource::Topic(topic.to_owned())) };
    let change = ConfigChange {
        key: "retention.ms".to_owned(),
        op: ConfigOp::Set.into(),
        value: (1_000 + number).to_string(),
        ..ConfigChange::default()
    };
    let alteration = ConfigAlteration { resource: Some(resource), changes: vec![change] };
    let reply = client.alter_configs(vec![alteration], Mode::Apply).await?;
    check_item(reply.resources[0].error.as_ref())
}
