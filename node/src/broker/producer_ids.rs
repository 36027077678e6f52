//! Ids of producers, from blocks that the controller hands out: unique in the cluster for ever.

use std::ops::Range;
use std::time::Duration;

use quorate_client::agent::ControllerCalls;
use quorate_metadata::{ApiError, ErrorName};
use quorate_proto::broker::broker_client::BrokerClient;
use quorate_proto::broker::{AllocateProducerIdsReply, AllocateProducerIdsRequest};
use tokio::sync::Mutex;
use tokio::time::{Instant, sleep, timeout_at};
use tonic::transport::Channel;
use tracing::debug;

const RETRY_PAUSE: Duration = Duration::from_millis(50);

pub struct ProducerIds {
    calls: ControllerCalls,
    /// Not given yet. Locked while a new block is asked for: whoever comes meanwhile needs it too.
    left: Mutex<Range<i64>>,
}

impl ProducerIds {
    pub fn new(calls: ControllerCalls) -> Self {
        Self { calls, left: Mutex::new(0..0) }
    }

    /// The next id of this broker's block, or with `newest` the first of a block that no broker had before.
    pub async fn next(&self, newest: bool, timeout: Duration) -> Result<i64, ApiError> {
        let deadline = Instant::now() + timeout;
        let late = |_| ApiError::new(ErrorName::RequestTimedOut, "no producer ids from the controller in time");
        timeout_at(deadline, self.take(newest)).await.map_err(late)
    }

    async fn take(&self, newest: bool) -> i64 {
        let mut left = self.left.lock().await;
        if newest {
            *left = 0..0;
        }
        loop {
            if let Some(id) = left.next() {
                return id;
            }
            match self.allocate().await {
                Ok(block) => *left = block,
                Err(error) => {
                    // A block that was given and not heard of is lost, which costs nothing.
                    debug!(%error, "no producer ids");
                    sleep(RETRY_PAUSE).await;
                }
            }
        }
    }

    async fn allocate(&self) -> Result<Range<i64>, ApiError> {
        let epoch = self.calls.epoch().await;
        let epoch = epoch.ok_or_else(|| ApiError::new(ErrorName::ReplicaNotAvailable, "the broker is stopping"))?;
        let request = AllocateProducerIdsRequest { broker: self.calls.broker().get(), broker_epoch: epoch.get() };
        let send = async |mut client: BrokerClient<Channel>, request| client.allocate_producer_ids(request).await;
        let block: AllocateProducerIdsReply = self.calls.call(request, send).await?;
        Ok(block.first_id..block.first_id + i64::from(block.length))
    }
}
