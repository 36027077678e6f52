//! The events on their way to one watcher, bounded in number and in bytes, and those to all watchers in bytes.
//!
//! A watcher that takes nothing is cut off after a while, and what was on its way to it is dropped: its connection holds
//! nothing then.

use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard};
use std::task::{Context, Poll};
use std::time::Duration;

use quorate_proto::encoded::WatchEvent;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio::time::sleep;
use tokio_stream::Stream;
use tonic::Status;

use super::Ended;
use crate::feed::{EVENT_BYTES_MAX, Transit};

/// Events on their way to one watcher: small ones follow each other without a pause. Beyond them the watcher's cursor
/// waits, at no cost to anyone.
const EVENTS_MAX: usize = 16;

/// Bytes on their way to one watcher: one event of the largest size.
const BYTES_MAX: usize = EVENT_BYTES_MAX;

/// Room for most events.
const SOME_ROOM: u32 = (BYTES_MAX / 2) as u32;

/// How often it is looked whether a watcher takes events.
const LOOK_INTERVAL: Duration = Duration::from_secs(1);

/// Looks without an event taken, after which a watcher is cut off: ten seconds, as for the part of a snapshot.
const LOOKS_MAX: u32 = 10;

/// The same while there is no room for the largest event to any watcher: the others wait for it.
const LOOKS_MAX_WITHOUT_ROOM: u32 = 1;

/// Where the events of one watcher are sent.
#[derive(Debug)]
pub struct Outlet {
    sender: mpsc::Sender<OnItsWay>,
    room: Arc<Semaphore>,
    transit: Transit,
    queue: Arc<Queue>,
}

/// The events as the watcher's connection takes them.
#[derive(Debug)]
pub struct Events(Arc<Queue>);

#[derive(Debug)]
struct Queue(Mutex<Waiting>);

#[derive(Debug)]
struct Waiting {
    events: mpsc::Receiver<OnItsWay>,
    /// Events taken so far.
    taken: u64,
}

#[derive(Debug)]
struct OnItsWay {
    event: Result<WatchEvent, Status>,
    /// Given back when the connection takes the event, or the event is dropped.
    _room: Option<(OwnedSemaphorePermit, OwnedSemaphorePermit)>,
}

pub fn open(transit: Transit) -> (Outlet, Events) {
    let (sender, events) = mpsc::channel(EVENTS_MAX);
    let queue = Arc::new(Queue(Mutex::new(Waiting { events, taken: 0 })));
    let outlet = Outlet { sender, room: Arc::new(Semaphore::new(BYTES_MAX)), transit, queue: queue.clone() };
    (outlet, Events(queue))
}

impl Outlet {
    /// Waits for room.
    pub async fn send(&self, event: WatchEvent) -> Result<(), Ended> {
        let bytes = permits(&event);
        let own = self.room.clone().acquire_many_owned(bytes).await.map_err(|_| Ended)?;
        let shared = self.transit.room.clone().acquire_many_owned(bytes).await.map_err(|_| Ended)?;
        self.sender.send(OnItsWay { event: Ok(event), _room: Some((own, shared)) }).await.map_err(|_| Ended)
    }

    /// Drops the event where there is no room.
    pub fn offer(&self, event: WatchEvent) {
        let bytes = permits(&event);
        let own = self.room.clone().try_acquire_many_owned(bytes);
        let shared = self.transit.room.clone().try_acquire_many_owned(bytes);
        if let (Ok(own), Ok(shared)) = (own, shared) {
            // Full or gone: the event is of no use then.
            let _ = self.sender.try_send(OnItsWay { event: Ok(event), _room: Some((own, shared)) });
        }
    }

    /// Ends the stream with an error.
    pub async fn refuse(&self, status: Status) {
        // The receiver is the watcher's connection: when it is gone, the error has no addressee.
        let _ = self.sender.send(OnItsWay { event: Err(status), _room: None }).await;
    }

    /// Waits until there is some room: who waits for it here holds no event.
    pub async fn ready(&self) -> Result<(), Ended> {
        drop(self.sender.reserve().await.map_err(|_| Ended)?);
        drop(self.room.acquire_many(SOME_ROOM).await.map_err(|_| Ended)?);
        drop(self.transit.room.acquire_many(SOME_ROOM).await.map_err(|_| Ended)?);
        Ok(())
    }

    /// Whether the next event may have to wait.
    pub fn is_full(&self) -> bool {
        self.sender.capacity() == 0 || self.room.available_permits() < SOME_ROOM as usize
    }

    /// Resolves when the watcher has gone away.
    pub async fn closed(&self) {
        self.sender.closed().await;
    }

    /// Watches over whether the watcher takes events.
    pub fn guard(&self) -> Guard {
        Guard { queue: self.queue.clone(), transit: self.transit.clone() }
    }
}

/// Cuts a watcher off that takes nothing.
pub struct Guard {
    queue: Arc<Queue>,
    transit: Transit,
}

impl Guard {
    /// Resolves when the watcher has taken nothing for too long, although events wait for it.
    pub async fn stalled(&self) {
        let (mut taken, mut looks) = (0, 0);
        loop {
            sleep(LOOK_INTERVAL).await;
            let (is_waiting, taken_now) = self.queue.look();
            looks = if is_waiting && taken_now == taken { looks + 1 } else { 0 };
            taken = taken_now;
            let max = if self.transit.has_room_for(BYTES_MAX) { LOOKS_MAX } else { LOOKS_MAX_WITHOUT_ROOM };
            // The event may have come a moment before the first look.
            if looks > max {
                return;
            }
        }
    }

    /// Drops what is on its way; nothing can be sent any more, and the stream ends.
    pub fn cut_off(&self) {
        self.queue.close();
    }
}

impl Queue {
    /// Whether an event waits, and how many were taken.
    fn look(&self) -> (bool, u64) {
        let waiting = self.lock();
        (!waiting.events.is_empty(), waiting.taken)
    }

    fn close(&self) {
        let mut waiting = self.lock();
        waiting.events.close();
        while waiting.events.try_recv().is_ok() {}
    }

    fn lock(&self) -> MutexGuard<'_, Waiting> {
        self.0.lock().expect("no one panics while holding the events")
    }
}

impl Stream for Events {
    type Item = Result<WatchEvent, Status>;

    fn poll_next(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let mut waiting = self.0.lock();
        let polled = waiting.events.poll_recv(context);
        if let Poll::Ready(Some(_)) = polled {
            waiting.taken += 1;
        }
        polled.map(|sent| sent.map(|sent| sent.event))
    }
}

impl Drop for Events {
    /// The outlet shares the queue, and would not notice.
    fn drop(&mut self) {
        self.0.close();
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
    use futures::{StreamExt, poll};

    use super::*;

    fn event(bytes: usize) -> WatchEvent {
        WatchEvent { records: Some(Bytes::from(vec![0; bytes])), ..WatchEvent::default() }
    }

    /// How many events of so many bytes are taken before one has to wait.
    async fn taken(bytes: usize) -> usize {
        let (outlet, _events) = open(Transit::default());
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
        let (outlet, events) = open(Transit::default());
        let mut events = pin!(events);
        outlet.send(event(BYTES_MAX)).await.expect("there is room");
        let mut waiting = pin!(outlet.send(event(BYTES_MAX)));
        assert!(poll!(&mut waiting).is_pending());
        events.next().await.expect("an event").expect("no error");
        waiting.await.expect("there is room again");
    }

    #[tokio::test]
    async fn a_watcher_that_goes_away_ends_the_wait_for_room() {
        let (outlet, events) = open(Transit::default());
        outlet.send(event(BYTES_MAX)).await.expect("there is room");
        let waiting = outlet.send(event(BYTES_MAX));
        drop(events);
        assert!(waiting.await.is_err());
    }

    #[tokio::test]
    async fn events_on_their_way_to_all_watchers_are_bounded_in_bytes() {
        let transit = Transit::with_room(3 * BYTES_MAX / 2);
        let (first, mut first_events) = open(transit.clone());
        let (second, _second_events) = open(transit.clone());
        first.send(event(BYTES_MAX)).await.expect("there is room");
        let mut waiting = pin!(second.send(event(BYTES_MAX)));
        assert!(poll!(&mut waiting).is_pending(), "there is room of its own, but not of all");
        first_events.next().await.expect("an event").expect("no error");
        waiting.await.expect("there is room again");
        assert_eq!(transit.bytes(), BYTES_MAX, "of the second watcher alone");
    }

    #[tokio::test(start_paused = true)]
    async fn a_watcher_that_takes_nothing_is_cut_off_and_holds_nothing() {
        let transit = Transit::default();
        let (outlet, mut events) = open(transit.clone());
        let guard = outlet.guard();
        outlet.send(event(BYTES_MAX)).await.expect("there is room");
        guard.stalled().await;
        guard.cut_off();
        assert_eq!(transit.bytes(), 0, "although its connection is open");
        assert!(outlet.send(event(1)).await.is_err());
        assert!(events.next().await.is_none());
    }

    #[tokio::test(start_paused = true)]
    async fn a_watcher_that_reads_or_has_nothing_to_read_is_not_cut_off() {
        let (outlet, mut events) = open(Transit::default());
        let guard = outlet.guard();
        let mut stalled = pin!(guard.stalled());
        for _ in 0..3 {
            let idle = tokio::time::timeout(2 * LOOKS_MAX * LOOK_INTERVAL, &mut stalled).await;
            assert!(idle.is_err(), "there is nothing to take");
            outlet.send(event(BYTES_MAX)).await.expect("there is room");
            let slow = tokio::time::timeout((LOOKS_MAX - 1) * LOOK_INTERVAL, &mut stalled).await;
            assert!(slow.is_err(), "it may yet take the event");
            events.next().await.expect("an event").expect("no error");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_watcher_that_takes_nothing_is_cut_off_sooner_where_others_wait() {
        let (outlet, _events) = open(Transit::with_room(BYTES_MAX));
        outlet.send(event(1)).await.expect("there is room");
        let guard = outlet.guard();
        let within = (LOOKS_MAX_WITHOUT_ROOM + 2) * LOOK_INTERVAL;
        assert!(tokio::time::timeout(within, guard.stalled()).await.is_ok());
    }
}
