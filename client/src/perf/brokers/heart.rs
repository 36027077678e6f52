//! One simulated broker's heartbeats.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use quorate_metadata::ErrorName;
use quorate_proto::broker::{HeartbeatReply, HeartbeatRequest};
use quorate_proto::error;
use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, sleep, timeout};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Status, Streaming};

use super::Shared;
use crate::admin::brokers as wire;
use crate::perf::{PerfError, Samples};

/// A heartbeat that takes longer would end the session.
const REPLY_TIMEOUT: Duration = Duration::from_secs(3);

/// Looking for a new active controller.
const RECONNECT_PAUSE: Duration = Duration::from_millis(50);

/// What all hearts of a fleet are to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Order {
    Run,
    /// Ask for the fencing of the broker, from now on.
    Fence,
    /// The broker is being unregistered: a refusal of its epoch is expected.
    Leave,
    Stop,
}

pub(super) struct Heart {
    shared: Arc<Shared>,
    order: watch::Receiver<Order>,
    /// As of the last heartbeat.
    heeded: Order,
    place: usize,
    broker: i32,
    epoch: i64,
    was_unfenced: bool,
    samples: Samples,
}

/// One stream to one controller.
struct Line {
    requests: mpsc::Sender<HeartbeatRequest>,
    replies: Streaming<HeartbeatReply>,
    sequence: u64,
}

impl Heart {
    pub fn new(shared: Arc<Shared>, place: usize, broker: i32, epoch: i64) -> Self {
        let order = shared.order.subscribe();
        Self {
            shared,
            order,
            heeded: Order::Run,
            place,
            broker,
            epoch,
            was_unfenced: false,
            samples: Samples::default(),
        }
    }

    /// Until it is stopped, over any change of the active controller. Fails when the epoch is refused.
    pub async fn beat(mut self) -> Result<Samples, PerfError> {
        while !self.is_over() {
            let line = tokio::select! {
                biased;
                () = stopped(self.shared.order.subscribe()) => break,
                line = self.open() => line,
            };
            let ended = match line {
                Ok(line) => self.beat_on(line).await,
                Err(_) => Ok(()),
            };
            if let Err(status) = ended
                && is_stale(&status)
            {
                return if self.is_leaving() { Ok(self.samples) } else { Err(self.refused(&status)) };
            }
            self.pause(RECONNECT_PAUSE).await;
        }
        Ok(self.samples)
    }

    fn is_leaving(&self) -> bool {
        matches!(*self.order.borrow(), Order::Leave | Order::Stop)
    }

    fn refused(&self, status: &Status) -> PerfError {
        let message = error::from_status(status).message;
        PerfError::cluster(format!("broker {} at epoch {} was refused: {message}", self.broker, self.epoch))
    }

    fn is_over(&self) -> bool {
        *self.order.borrow() == Order::Stop
    }

    /// Until the time is over, or there is another order.
    async fn pause(&mut self, time: Duration) {
        let heeded = self.heeded;
        // Too late means that the time is over, which is what was waited for.
        let _ = timeout(time, self.order.wait_for(|order| *order != heeded)).await;
        self.heeded = *self.order.borrow_and_update();
    }

    async fn beat_on(&mut self, mut line: Line) -> Result<(), Status> {
        while !self.is_over() {
            let started = Instant::now();
            let reply = self.exchange(&mut line).await?;
            if self.shared.recording.load(Ordering::Relaxed) {
                self.samples.record(started.elapsed());
            }
            if !reply.fenced && !self.was_unfenced {
                self.was_unfenced = true;
                self.shared.unfenced.send_modify(|unfenced| *unfenced += 1);
            }
            let rest = self.shared.behaviour.interval.saturating_sub(started.elapsed());
            if !rest.is_zero() {
                self.pause(rest).await;
            }
        }
        Ok(())
    }

    /// A stream to the active controller. The first request travels with it.
    async fn open(&self) -> Result<Line, PerfError> {
        let (requests, queue) = mpsc::channel(1);
        let mut wire = wire(self.shared.heart_connections.controller(self.place).await?);
        match timeout(REPLY_TIMEOUT, wire.heartbeat(ReceiverStream::new(queue))).await {
            Ok(Ok(replies)) => Ok(Line { requests, replies: replies.into_inner(), sequence: 0 }),
            Ok(Err(status)) => Err(PerfError::cluster(status.to_string())),
            Err(_) => Err(PerfError::cluster("the heartbeat stream was not answered")),
        }
    }

    async fn exchange(&mut self, line: &mut Line) -> Result<HeartbeatReply, Status> {
        line.sequence += 1;
        self.heeded = *self.order.borrow();
        let request = HeartbeatRequest {
            broker: self.broker,
            broker_epoch: self.epoch,
            // As one that has replayed everything: no controlled shutdown waits for it.
            metadata_offset: i64::MAX,
            want_fence: self.heeded == Order::Fence,
            sequence: line.sequence,
            ..HeartbeatRequest::default()
        };
        line.requests.send(request).await.map_err(|_| Status::unavailable("the stream ended"))?;
        match timeout(REPLY_TIMEOUT, line.replies.message()).await {
            Ok(reply) => reply?.ok_or_else(|| Status::unavailable("the stream ended")),
            Err(_) => {
                // The controller may be cut off: another one is looked for.
                sleep(RECONNECT_PAUSE).await;
                Err(Status::deadline_exceeded("no reply"))
            }
        }
    }
}

/// An order to stop must not wait for a cluster that does not answer.
async fn stopped(mut order: watch::Receiver<Order>) {
    // The sender is held by the one who waits.
    let _ = order.wait_for(|order| *order == Order::Stop).await;
}

/// Registered anew elsewhere, or unregistered: no stream will be accepted any more.
fn is_stale(status: &Status) -> bool {
    let name = error::from_status(status).name;
    matches!(name, ErrorName::StaleBrokerEpoch | ErrorName::BrokerIdNotRegistered)
}
