//! Who was heard from when: the session table that RPC tasks stamp and the event loop reads.
//!
//! Soft state. The lock is held for a few map operations and never across an await, so a busy event loop cannot
//! delay a stamp, and so cannot fence a live broker.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use quorate_metadata::MetadataImage;
use quorate_metadata::ids::{BrokerEpoch, BrokerId, Offset};
use quorate_metadata::liveness::{Removal, Sessions};
use tokio::sync::mpsc;
use tokio::time::Instant;

use super::disk_reports::DiskReports;
use super::event_loop::StreamLost;

pub struct SessionTable {
    /// Times in the table count from here.
    origin: Instant,
    sessions: Mutex<Sessions>,
    streams: Mutex<Streams>,
    lost: mpsc::UnboundedSender<StreamLost>,
    /// What brokers say of their disks.
    pub disk_reports: DiskReports,
}

#[derive(Default)]
struct Streams {
    /// The epochs that open streams speak for, by broker.
    open: BTreeMap<BrokerId, Vec<BrokerEpoch>>,
    /// Brokers whose last stream broke without a goodbye.
    broken: BTreeSet<BrokerId>,
}

impl Streams {
    fn remove(&mut self, broker: BrokerId, epoch: BrokerEpoch, closed: bool) {
        let Some(epochs) = self.open.get_mut(&broker) else { return };
        if let Some(at) = epochs.iter().position(|open| *open == epoch) {
            epochs.swap_remove(at);
        }
        if epochs.is_empty() {
            self.open.remove(&broker);
            if !closed {
                self.broken.insert(broker);
            }
        }
    }
}

/// An open heartbeat stream. Dropping it without `close` reports the stream as lost.
pub struct OpenStream {
    table: Arc<SessionTable>,
    broker: BrokerId,
    epoch: BrokerEpoch,
    closed: bool,
}

impl OpenStream {
    /// The broker said that it is leaving.
    pub fn close(mut self) {
        self.closed = true;
    }
}

impl Drop for OpenStream {
    fn drop(&mut self) {
        self.table.streams().remove(self.broker, self.epoch, self.closed);
        if !self.closed {
            // No receiver: the node is stopping, and nobody is to be fenced by it.
            let _ = self.table.lost.send(StreamLost { broker: self.broker, epoch: self.epoch });
        }
    }
}

/// A sign of life from a broker.
#[derive(Debug, Clone, Copy)]
pub struct Contact {
    pub broker: BrokerId,
    pub epoch: BrokerEpoch,
    pub metadata_offset: Offset,
}

impl SessionTable {
    pub fn new(session_timeout: Duration, lost: mpsc::UnboundedSender<StreamLost>) -> Self {
        Self {
            origin: Instant::now(),
            sessions: Mutex::new(Sessions::new(millis(session_timeout))),
            streams: Mutex::default(),
            lost,
            disk_reports: DiskReports::default(),
        }
    }

    pub fn open_stream(self: &Arc<Self>, broker: BrokerId, epoch: BrokerEpoch) -> OpenStream {
        let mut streams = self.streams();
        streams.open.entry(broker).or_default().push(epoch);
        streams.broken.remove(&broker);
        drop(streams);
        OpenStream { table: self.clone(), broker, epoch, closed: false }
    }

    pub fn has_stream(&self, broker: BrokerId) -> bool {
        self.streams().open.contains_key(&broker)
    }

    /// Called by the RPC task as soon as a heartbeat has arrived. Returns what the broker is being taken out of ISRs for:
    /// if it is a fencing, the heartbeat came too late to keep a leader. One lock decides, so that a heartbeat either
    /// extends the session or is late.
    pub fn touch(&self, contact: Contact) -> Option<Removal> {
        let now = self.now_ms();
        let mut sessions = self.lock();
        sessions.touch(contact.broker, contact.epoch, now);
        sessions.report_offset(contact.broker, contact.epoch, contact.metadata_offset);
        sessions.removal(contact.broker, contact.epoch)
    }

    /// Whether this broker's process is there as far as we know: it was heard from within the session timeout, and
    /// its stream has not broken since.
    pub fn has_live(&self, broker: BrokerId) -> bool {
        let now = self.now_ms();
        !self.streams().broken.contains(&broker) && self.lock().has_live(broker, now)
    }

    pub fn silence(&self, broker: BrokerId) -> Option<Duration> {
        let now = self.now_ms();
        self.lock().silence_ms(broker, now).map(Duration::from_millis)
    }

    pub fn lowest_active_offset(&self, image: &MetadataImage, except: BrokerId) -> Option<Offset> {
        self.lock().lowest_active_offset(image, except)
    }

    /// How far the active brokers that have reported an offset have replayed the metadata.
    pub fn offsets(&self, image: &MetadataImage) -> Vec<(BrokerId, Offset)> {
        self.lock().offsets(image)
    }

    pub(super) fn start_all(&self, image: &MetadataImage) {
        let now = self.now_ms();
        self.lock().start_all(image, now);
    }

    pub(super) fn clear(&self) {
        self.disk_reports.clear();
        self.streams().broken.clear();
        self.lock().clear();
    }

    /// The brokers whose sessions have ended. A heartbeat that comes from now on is too late for a lease.
    pub(super) fn take_expired(&self, image: &MetadataImage) -> Vec<BrokerId> {
        let now = self.now_ms();
        let mut sessions = self.lock();
        let expired = sessions.expired(image, now);
        expired.iter().for_each(|broker| sessions.begin_removal(*broker, Removal::Fencing));
        expired
    }

    /// Begins the fencing of a broker that no stream speaks for; returns whether it did. A stream that is opened meanwhile
    /// finds the fencing begun, since it is open before its heartbeat counts.
    pub(super) fn begin_fencing_without_stream(&self, broker: BrokerId) -> bool {
        let streams = self.streams();
        let begins = !streams.open.contains_key(&broker);
        if begins {
            self.lock().begin_removal(broker, Removal::Fencing);
        }
        begins
    }

    /// From now on a heartbeat is answered by what this is, until the broker is unfenced.
    pub fn begin_removal(&self, broker: BrokerId, removal: Removal) {
        self.lock().begin_removal(broker, removal);
    }

    pub(super) fn replace_removal(&self, broker: BrokerId, removal: Removal) {
        self.lock().replace_removal(broker, removal);
    }

    pub(super) fn end_removal(&self, broker: BrokerId) {
        self.lock().end_removal(broker);
    }

    pub(super) fn retain_removals(&self, goes_on: impl Fn(BrokerId, Removal) -> bool) {
        self.lock().retain_removals(goes_on);
    }

    /// Whether the broker is to be in no ISR soon, so that no leader may take it into one.
    pub fn is_leaving(&self, broker: BrokerId) -> bool {
        self.lock().is_leaving(broker)
    }

    pub(super) fn extend_all(&self, stall: Duration) {
        let now = self.now_ms();
        self.lock().extend_all(millis(stall), now);
    }

    fn streams(&self) -> MutexGuard<'_, Streams> {
        self.streams.lock().expect("no one panics while holding the streams")
    }

    fn now_ms(&self) -> u64 {
        millis(self.origin.elapsed())
    }

    fn lock(&self) -> MutexGuard<'_, Sessions> {
        self.sessions.lock().expect("no one panics while holding the sessions")
    }
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}
