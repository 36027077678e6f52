//! The events on their way to one watcher, bounded in number and in bytes.

use std::sync::Arc;

use quorate_proto::encoded::WatchEvent;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio_stream::wrappers::ReceiverStream;
use tokio_stream::{Stream, StreamExt};
use tonic::Status;

use super::Ended;
use crate::feed::EVENT_BYTES_MAX;

/// Events on their way to one watcher: small ones follow each other without a pause. Beyond them the watcher's cursor
/// waits, at no cost to anyone.
const EVENTS_MAX: usize = 16;

/// Bytes on their way to one watcher: one event of the largest size. A thousand watchers that stopped reading hold on to
/// 2 GiB at worst, if each gets something else and that in the largest size; watchers of the same share its bytes.
const BYTES_MAX: usize = EVENT_BYTES_MAX;

/// Where the events of one watcher are sent.
#[derive(Debug)]
pub struct Outlet {
    sender: mpsc::Sender<OnItsWay>,
    room: Arc<Semaphore>,
}

#[derive(Debug)]
struct OnItsWay {
    event: Result<WatchEvent, Status>,
    /// Given back when the connection takes the event.
    _room: Option<OwnedSemaphorePermit>,
}

pub fn open() -> (Outlet, impl Stream<Item = Result<WatchEvent, Status>> + use<>) {
    let (sender, events) = mpsc::channel(EVENTS_MAX);
    let outlet = Outlet { sender, room: Arc::new(Semaphore::new(BYTES_MAX)) };
    (outlet, ReceiverStream::new(events).map(|sent: OnItsWay| sent.event))
}

impl Outlet {
    /// Waits for room.
    pub async fn send(&self, event: WatchEvent) -> Result<(), Ended> {
        let room = self.room.clone().acquire_many_owned(permits(&event)).await.map_err(|_| Ended)?;
        self.sender.send(OnItsWay { event: Ok(event), _room: Some(room) }).await.map_err(|_| Ended)
    }

    /// Drops the event where there is no room.
    pub fn offer(&self, event: WatchEvent) {
        if let Ok(room) = self.room.clone().try_acquire_many_owned(permits(&event)) {
            // Full or gone: the event is of no use then.
            let _ = self.sender.try_send(OnItsWay { event: Ok(event), _room: Some(room) });
        }
    }

    /// Ends the stream with an error.
    pub async fn refuse(&self, status: Status) {
        // The receiver is the watcher's connection: when it is gone, the error has no addressee.
        let _ = self.sender.send(OnItsWay { event: Err(status), _room: None }).await;
    }

    /// Resolves when the watcher has gone away.
    pub async fn closed(&self) {
        self.sender.closed().await;
    }
}

/// An event larger than the room gets all of it.
fn permits(event: &WatchEvent) -> u32 {
    let contents = [&event.snapshot, &event.records, &event.bookmark];
    let bytes: usize = contents.into_iter().flatten().map(|content| content.len()).sum();
    u32::try_from(bytes.min(BYTES_MAX)).expect("the room is far smaller")
}

#[cfg(test)]
mod tests {
    use std::pin::pin;
    use std::task::Poll;

    use bytes::Bytes;
    use futures::poll;

    use super::*;

    fn event(bytes: usize) -> WatchEvent {
        WatchEvent { records: Some(Bytes::from(vec![0; bytes])), ..WatchEvent::default() }
    }

    /// How many events of so many bytes are taken before one has to wait.
    async fn taken(bytes: usize) -> usize {
        let (outlet, _events) = open();
        let mut taken = 0;
        while let Poll::Ready(sent) = poll!(pin!(outlet.send(event(bytes)))) {
            sent.expect("the watcher is there");
            taken += 1;
        }
        taken
    }

    #[tokio::test]
    async fn events_on_their_way_are_bounded_in_number_and_in_bytes() {
        assert_eq!(taken(10).await, EVENTS_MAX);
        assert_eq!(taken(BYTES_MAX / 3).await, 3);
        assert_eq!(taken(2 * BYTES_MAX).await, 1, "an event larger than the room is alone in it");
    }

    #[tokio::test]
    async fn room_comes_back_when_an_event_is_taken() {
        let (outlet, events) = open();
        let mut events = pin!(events);
        outlet.send(event(BYTES_MAX)).await.expect("there is room");
        let mut waiting = pin!(outlet.send(event(BYTES_MAX)));
        assert!(poll!(&mut waiting).is_pending());
        events.next().await.expect("an event").expect("no error");
        waiting.await.expect("there is room again");
    }

    #[tokio::test]
    async fn a_watcher_that_goes_away_ends_the_wait_for_room() {
        let (outlet, events) = open();
        outlet.send(event(BYTES_MAX)).await.expect("there is room");
        let waiting = outlet.send(event(BYTES_MAX));
        drop(events);
        assert!(waiting.await.is_err());
    }
}
