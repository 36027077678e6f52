//! Operations that wait for the event loop: those of clients in one queue and those of brokers in another, which are taken
//! from in turn. A thousand brokers that return do not hold up a client, nor do a thousand clients hold up a broker, unless
//! as many large operations as may wait for their turns: then nothing is taken until one of them ends.
//! Each queue is bounded in operations and in bytes; what finds it full is refused at once.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use quorate_metadata::{ApiError, ErrorName};
use tokio::sync::mpsc;
use tokio::sync::mpsc::error::TrySendError;

use super::operation::{Operation, Origin};

/// Operations of each origin that wait.
pub const QUEUE_MAX: usize = 4_096;

/// Requests of each origin that wait, in bytes. A request of the largest size is below 8 MiB; several of them may wait.
const QUEUE_BYTES_MAX: usize = 32 * 1024 * 1024;

/// Bytes of the requests that wait, as both ends count them.
#[derive(Debug, Clone, Default)]
pub struct QueuedBytes(Arc<[AtomicUsize; Origin::COUNT]>);

impl QueuedBytes {
    /// Counts a request, unless its queue has too many bytes already. An empty queue takes any request.
    fn try_add(&self, origin: Origin, bytes: usize) -> bool {
        let room = |queued: usize| (queued == 0 || queued + bytes <= QUEUE_BYTES_MAX).then_some(queued + bytes);
        self.0[origin as usize].fetch_update(Ordering::Relaxed, Ordering::Relaxed, room).is_ok()
    }

    pub fn remove(&self, origin: Origin, bytes: usize) {
        self.0[origin as usize].fetch_sub(bytes, Ordering::Relaxed);
    }

    /// Of all origins.
    pub fn total(&self) -> usize {
        self.0.iter().map(|bytes| bytes.load(Ordering::Relaxed)).sum()
    }
}

#[derive(Clone)]
pub struct QueueSender {
    queues: [mpsc::Sender<Operation>; Origin::COUNT],
    bytes: QueuedBytes,
}

pub struct QueueReceiver {
    clients: mpsc::Receiver<Operation>,
    brokers: mpsc::Receiver<Operation>,
    /// Where the next operation comes from, if there is one.
    next: Origin,
    bytes: QueuedBytes,
}

pub fn queue() -> (QueueSender, QueueReceiver) {
    let ((to_clients, clients), (to_brokers, brokers)) = (mpsc::channel(QUEUE_MAX), mpsc::channel(QUEUE_MAX));
    let bytes = QueuedBytes::default();
    let sender = QueueSender { queues: [to_clients, to_brokers], bytes: bytes.clone() };
    (sender, QueueReceiver { clients, brokers, next: Origin::Client, bytes })
}

impl QueueSender {
    /// Queues an operation, or says at once that its queue is full.
    pub fn submit(&self, operation: Operation) -> Result<(), ApiError> {
        let full = || ApiError::new(ErrorName::Throttled, "the controller's queue is full; nothing was done");
        let (origin, bytes) = (operation.origin, operation.weight.bytes);
        if !self.bytes.try_add(origin, bytes) {
            return Err(full());
        }
        self.queues[origin as usize].try_send(operation).map_err(|error| {
            self.bytes.remove(origin, bytes);
            match error {
                TrySendError::Full(_) => full(),
                TrySendError::Closed(_) => ApiError::new(ErrorName::ControllerUnavailable, "the node is stopping"),
            }
        })
    }
}

impl QueueReceiver {
    /// None when all senders are gone and nothing waits.
    pub async fn recv(&mut self) -> Option<Operation> {
        if let Some(operation) = self.try_recv() {
            return Some(operation);
        }
        tokio::select! {
            Some(operation) = self.clients.recv() => Some(operation),
            Some(operation) = self.brokers.recv() => Some(operation),
            else => None,
        }
    }

    /// The next operation that waits, of clients and of brokers in turn.
    pub fn try_recv(&mut self) -> Option<Operation> {
        let first = self.next;
        self.next = first.other();
        [first, first.other()].into_iter().find_map(|origin| self.of(origin).try_recv().ok())
    }

    /// Bytes of what was taken stay counted until they are removed from here.
    pub fn bytes(&self) -> &QueuedBytes {
        &self.bytes
    }

    fn of(&mut self, origin: Origin) -> &mut mpsc::Receiver<Operation> {
        match origin {
            Origin::Client => &mut self.clients,
            Origin::Broker => &mut self.brokers,
        }
    }
}

#[cfg(test)]
mod tests {
    use quorate_metadata::Plan;

    use super::super::operation::Weight;
    use super::*;

    fn of(origin: Origin, bytes: usize) -> Operation {
        let weight = Weight { bytes, ..Weight::default() };
        Operation { origin, weight, ..Operation::internal("test", |_, _| Ok(Plan::new(Vec::new(), ()))) }
    }

    #[tokio::test]
    async fn clients_and_brokers_take_turns() {
        let (sender, mut receiver) = queue();
        for origin in [Origin::Broker, Origin::Broker, Origin::Broker, Origin::Client, Origin::Client] {
            sender.submit(of(origin, 0)).expect("there is room");
        }
        drop(sender);
        let mut taken = Vec::new();
        while let Some(operation) = receiver.recv().await {
            taken.push(operation.origin);
        }
        assert_eq!(taken, [Origin::Client, Origin::Broker, Origin::Client, Origin::Broker, Origin::Broker]);
    }

    #[test]
    fn a_full_queue_refuses_only_operations_of_its_origin() {
        for (full, other) in [(Origin::Client, Origin::Broker), (Origin::Broker, Origin::Client)] {
            let (sender, receiver) = queue();
            (0..QUEUE_MAX).for_each(|_| sender.submit(of(full, 1)).expect("there is room"));
            assert_eq!(sender.submit(of(full, 1)).expect_err("it is full").name, ErrorName::Throttled);
            sender.submit(of(other, QUEUE_BYTES_MAX)).expect("the other queue is empty");
            assert_eq!(sender.submit(of(other, 1)).expect_err("it has its bytes").name, ErrorName::Throttled);
            assert_eq!(receiver.bytes().total(), QUEUE_MAX + QUEUE_BYTES_MAX);
        }
    }
}
