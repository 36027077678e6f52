//! Records into the cluster: batched, retried over any change of leader, and, when idempotent, there once.
//!
//! One task owns everything; the handle sends it records and gets a promise for each. A partition has one request under
//! way at a time, so that its batches keep their order over retries; what comes meanwhile makes up the next batch.
//!
//! What is promised: an acknowledged record has the offset that was told, as safely as `acks` asked for. With
//! idempotence a record is in the log at most once, however often it was sent. A record whose delivery fails as unknown
//! may or may not be there.

mod calls;
mod lane;
mod owner;
mod routes;

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use quorate_metadata::{ApiError, ErrorName, limits};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, oneshot, watch};
use tonic::transport::ClientTlsConfig;

use crate::error::{ClientError, InvalidAddress};
use crate::network::Network;
use crate::nodes::Options;
use crate::{AdminClient, Nodes};
use owner::Owner;

/// A request has several batches: together they are no larger than one may be.
const REQUEST_BYTES_MAX: usize = limits::RECORD_BATCH_BYTES_MAX as usize;

/// Records handed over and not yet taken by the task.
const QUEUE_MAX: usize = 4_096;

/// A node that is paused or gone must not hold up the search for the leader.
fn look_up(options: &ProducerOptions) -> Options {
    Options {
        timeout: Duration::from_secs(2),
        attempt_timeout: Duration::from_millis(400),
        connect_timeout: Duration::from_millis(300),
        tls: options.tls.clone(),
        network: options.network.clone(),
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Acks {
    /// The leader is not waited for: an acknowledgement says only that the records were sent to it.
    None,
    /// The leader has the records.
    Leader,
    /// Every in-sync replica has them.
    All,
}

#[derive(Debug, Clone)]
pub struct ProducerOptions {
    pub acks: Acks,
    /// Each record is taken once. Needs `Acks::All`.
    pub idempotent: bool,
    /// How long a batch waits for more records.
    pub linger: Duration,
    pub batch_bytes: usize,
    /// Records not yet acknowledged; `send` waits beyond it.
    pub buffer_bytes: usize,
    /// After so long a record that is not acknowledged fails.
    pub delivery_timeout: Duration,
    /// How long the brokers may take for one request.
    pub request_timeout: Duration,
    /// To the bootstrap nodes and to the leaders alike.
    pub tls: Option<ClientTlsConfig>,
    pub network: Network,
}

impl Default for ProducerOptions {
    fn default() -> Self {
        Self {
            acks: Acks::All,
            idempotent: true,
            linger: Duration::ZERO,
            batch_bytes: 64 * 1024,
            buffer_bytes: 32 * 1024 * 1024,
            delivery_timeout: Duration::from_secs(120),
            request_timeout: Duration::from_secs(30),
            tls: None,
            network: Network::default(),
        }
    }
}

#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ProducedRecord {
    pub key: Option<Bytes>,
    /// `None`: a tombstone.
    pub value: Option<Bytes>,
    /// `None`: now.
    pub timestamp_ms: Option<i64>,
    pub headers: Vec<(String, Bytes)>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Acknowledged {
    pub partition: i32,
    /// `None` with `Acks::None`, and for a duplicate of long ago.
    pub offset: Option<i64>,
    pub leader_epoch: i32,
}

/// A handle; clones share the task. When the last one is gone, what was sent is still delivered.
#[derive(Clone)]
pub struct Producer {
    queue: mpsc::Sender<Message>,
    room: Arc<Semaphore>,
    buffer_bytes: usize,
    trouble: watch::Receiver<Option<ApiError>>,
}

/// The promise of an acknowledgement.
pub struct Delivery {
    outcome: oneshot::Receiver<Result<Acknowledged, ClientError>>,
}

pub(crate) enum Message {
    Send(Sent),
    Flush(oneshot::Sender<()>),
}

pub(crate) struct Sent {
    pub topic: String,
    pub partition: Option<i32>,
    pub record: ProducedRecord,
    pub promise: Promise,
}

/// Whoever waits for a record, and the room that it takes until then.
pub(crate) struct Promise {
    reply: oneshot::Sender<Result<Acknowledged, ClientError>>,
    _room: OwnedSemaphorePermit,
}

impl Promise {
    /// Who waited may have gone.
    pub fn keep(self, outcome: Result<Acknowledged, ClientError>) {
        let _ = self.reply.send(outcome);
    }
}

impl Producer {
    /// To be called within a tokio runtime.
    pub fn start(bootstrap: &[impl AsRef<str>], options: ProducerOptions) -> Result<Self, InvalidAddress> {
        // Without the answers of all in-sync replicas a lost batch would go unnoticed, and every later one be refused.
        let idempotent = options.idempotent && options.acks == Acks::All;
        let batch_bytes = options.batch_bytes.min(REQUEST_BYTES_MAX);
        let options = ProducerOptions { idempotent, batch_bytes, ..options };
        let look_up = look_up(&options);
        let admin = AdminClient::over(Nodes::open(bootstrap, &look_up)?, look_up);
        let (queue, messages) = mpsc::channel(QUEUE_MAX);
        let buffer_bytes = options.buffer_bytes.clamp(1, Semaphore::MAX_PERMITS);
        let (teller, trouble) = watch::channel(None);
        tokio::spawn(Owner::new(admin, options, teller).run(messages));
        Ok(Self { queue, room: Arc::new(Semaphore::new(buffer_bytes)), buffer_bytes, trouble })
    }

    /// Why records are not acknowledged, one reason of those there are at the moment.
    pub fn trouble(&self) -> Option<ApiError> {
        self.trouble.borrow().clone()
    }

    /// Hands a record over, and waits for that only while the buffer is full.
    pub async fn send(
        &self,
        topic: &str,
        partition: Option<i32>,
        record: ProducedRecord,
    ) -> Result<Delivery, ClientError> {
        let bytes = bytes_of(&record);
        if bytes > REQUEST_BYTES_MAX {
            let message = format!("a record of {bytes} bytes fits into no request: {REQUEST_BYTES_MAX} is the limit");
            return Err(ClientError::failed(ErrorName::MessageTooLarge, message));
        }
        let bytes = bytes.min(self.buffer_bytes);
        let permits = u32::try_from(bytes).unwrap_or(u32::MAX);
        let room = self.room.clone().acquire_many_owned(permits).await.expect("it is never closed");
        let (reply, outcome) = oneshot::channel();
        let promise = Promise { reply, _room: room };
        let sent = Sent { topic: topic.to_owned(), partition, record, promise };
        self.queue.send(Message::Send(sent)).await.map_err(|_| stopped())?;
        Ok(Delivery { outcome })
    }

    /// Waits until everything that was sent before is acknowledged, or has failed.
    pub async fn flush(&self) {
        let (done, flushed) = oneshot::channel();
        if self.queue.send(Message::Flush(done)).await.is_ok() {
            // A task that has ended has nothing left.
            let _ = flushed.await;
        }
    }
}

impl Delivery {
    pub async fn acknowledged(self) -> Result<Acknowledged, ClientError> {
        self.outcome.await.unwrap_or_else(|_| Err(stopped()))
    }
}

fn stopped() -> ClientError {
    ClientError::failed(ErrorName::OutcomeUnknown, "the producer has stopped")
}

/// About what the record takes on its way.
pub(crate) fn bytes_of(record: &ProducedRecord) -> usize {
    const FRAME: usize = 32;
    let headers: usize = record.headers.iter().map(|(key, value)| key.len() + value.len() + 8).sum();
    FRAME + record.key.as_ref().map_or(0, Bytes::len) + record.value.as_ref().map_or(0, Bytes::len) + headers
}

#[cfg(test)]
mod tests;
