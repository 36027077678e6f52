//! Which brokers are alive, as far as their contact with the active controller tells.
//!
//! Sessions are soft state of the active controller: nothing of them is in the log until a broker is fenced. A
//! new controller gives every unfenced broker a fresh one (`start_all`), so every unfenced broker always has one. A
//! session is that of one incarnation: contact under an older epoch is not contact.

use std::collections::BTreeMap;

use crate::ids::{BrokerEpoch, BrokerId, Offset};
use crate::image::MetadataImage;

/// Why a broker is taken out of ISRs, which may take many batches.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Removal {
    Fencing,
    ControlledShutdown,
    DirectoryFailure,
}

#[derive(Debug, Clone)]
pub struct Sessions {
    session_timeout_ms: u64,
    sessions: BTreeMap<BrokerId, Session>,
}

#[derive(Debug, Clone, Copy)]
struct Session {
    epoch: BrokerEpoch,
    /// When the broker was last heard, or was given a fresh session.
    contact_ms: u64,
    /// The next metadata offset that it wants; 0 until it says.
    metadata_offset: Offset,
    /// What the controller is taking it out of ISRs for.
    removal: Option<Removal>,
}

impl Sessions {
    pub fn new(session_timeout_ms: u64) -> Self {
        Self { session_timeout_ms, sessions: BTreeMap::new() }
    }

    /// The broker was heard. A stale epoch never overwrites a newer one.
    pub fn touch(&mut self, broker: BrokerId, epoch: BrokerEpoch, now_ms: u64) {
        let fresh = Session { epoch, contact_ms: now_ms, metadata_offset: Offset::default(), removal: None };
        let session = self.sessions.entry(broker).or_insert(fresh);
        if epoch > session.epoch {
            *session = fresh;
        } else if epoch == session.epoch {
            session.contact_ms = session.contact_ms.max(now_ms);
        }
    }

    /// The broker has replayed everything below `offset`.
    pub fn report_offset(&mut self, broker: BrokerId, epoch: BrokerEpoch, offset: Offset) {
        if let Some(session) = self.sessions.get_mut(&broker).filter(|session| session.epoch == epoch) {
            session.metadata_offset = session.metadata_offset.max(offset);
        }
    }

    /// The broker begins to leave ISRs. Contact during a fencing is too late for a lease, and no leader takes the broker
    /// back into an ISR that it was to leave. A fencing is not overridden.
    pub fn begin_removal(&mut self, broker: BrokerId, removal: Removal) {
        if let Some(session) = self.sessions.get_mut(&broker)
            && session.removal != Some(Removal::Fencing)
        {
            session.removal = Some(removal);
        }
    }

    /// As `begin_removal`, of the operation that began the removal before, whose reason may have changed.
    pub fn replace_removal(&mut self, broker: BrokerId, removal: Removal) {
        if let Some(session) = self.sessions.get_mut(&broker) {
            session.removal = Some(removal);
        }
    }

    /// The broker is unfenced.
    pub fn end_removal(&mut self, broker: BrokerId) {
        if let Some(session) = self.sessions.get_mut(&broker) {
            session.removal = None;
        }
    }

    /// Of the removals that have begun, only those go on that `goes_on` names: the others were refused, or are done.
    pub fn retain_removals(&mut self, goes_on: impl Fn(BrokerId, Removal) -> bool) {
        for (broker, session) in &mut self.sessions {
            session.removal = session.removal.filter(|removal| goes_on(*broker, *removal));
        }
    }

    /// What this incarnation is being taken out of ISRs for.
    pub fn removal(&self, broker: BrokerId, epoch: BrokerEpoch) -> Option<Removal> {
        self.sessions.get(&broker).filter(|session| session.epoch == epoch).and_then(|session| session.removal)
    }

    /// Whether the broker is to be in no ISR soon.
    pub fn is_leaving(&self, broker: BrokerId) -> bool {
        let removal = self.sessions.get(&broker).and_then(|session| session.removal);
        matches!(removal, Some(Removal::Fencing | Removal::ControlledShutdown))
    }

    /// A claim: what was heard before says nothing, and every unfenced broker gets a full session.
    pub fn start_all(&mut self, image: &MetadataImage, now_ms: u64) {
        self.sessions.clear();
        for broker in image.brokers.values().filter(|broker| !broker.fenced) {
            self.touch(broker.broker, broker.epoch, now_ms);
        }
    }

    pub fn clear(&mut self) {
        self.sessions.clear();
    }

    pub fn has_live(&self, broker: BrokerId, now_ms: u64) -> bool {
        self.silence_ms(broker, now_ms).is_some_and(|silence| silence < self.session_timeout_ms)
    }

    /// How long ago the broker was last heard; `None` without a session.
    pub fn silence_ms(&self, broker: BrokerId, now_ms: u64) -> Option<u64> {
        self.sessions.get(&broker).map(|session| now_ms.saturating_sub(session.contact_ms))
    }

    /// The brokers that are not fenced and whose sessions have ended; first the one whose ended first.
    pub fn expired(&self, image: &MetadataImage, now_ms: u64) -> Vec<BrokerId> {
        let ended = |(broker, session): &(&BrokerId, &Session)| {
            let silence_ms = now_ms.saturating_sub(session.contact_ms);
            silence_ms >= self.session_timeout_ms && image.broker(**broker).is_some_and(|broker| !broker.fenced)
        };
        let mut ended: Vec<(u64, BrokerId)> =
            self.sessions.iter().filter(ended).map(|(broker, session)| (session.contact_ms, *broker)).collect();
        ended.sort_unstable();
        ended.into_iter().map(|(_, broker)| broker).collect()
    }

    /// The lowest offset that the active brokers other than `except` reported; `None` if there is no other. One that
    /// has not reported counts as being at the beginning.
    pub fn lowest_active_offset(&self, image: &MetadataImage, except: BrokerId) -> Option<Offset> {
        let others = image.brokers.keys().filter(|&&broker| broker != except && image.is_active(broker));
        others.map(|broker| self.sessions.get(broker).map_or_else(Offset::default, |at| at.metadata_offset)).min()
    }

    /// How far the active brokers that have reported an offset have replayed the metadata.
    pub fn offsets(&self, image: &MetadataImage) -> Vec<(BrokerId, Offset)> {
        let active = self.sessions.iter().filter(|(broker, _)| image.is_active(**broker));
        let reported = active.filter(|(_, session)| session.metadata_offset > Offset::default());
        reported.map(|(broker, session)| (*broker, session.metadata_offset)).collect()
    }

    /// The controller itself stood still: no broker can be blamed for the silence. Whoever was heard meanwhile gets no
    /// more than a full session.
    pub fn extend_all(&mut self, stall_ms: u64, now_ms: u64) {
        for session in self.sessions.values_mut() {
            session.contact_ms = session.contact_ms.saturating_add(stall_ms).min(now_ms);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::IncarnationId;
    use crate::record::{BrokerRegistration, Kind, Probe};
    use std::collections::BTreeMap;
    use std::sync::Arc;

    const TIMEOUT_MS: u64 = 3_000;

    fn broker(id: i32) -> BrokerId {
        BrokerId::new(id)
    }

    fn epoch(value: i64) -> BrokerEpoch {
        BrokerEpoch::new(value)
    }

    /// Brokers 1 to 3: unfenced, unfenced, fenced.
    fn image() -> MetadataImage {
        let mut image = MetadataImage::default();
        for (id, fenced) in [(1, false), (2, false), (3, true)] {
            let registration = BrokerRegistration {
                broker: broker(id),
                epoch: epoch(i64::from(id)),
                incarnation: IncarnationId::default(),
                endpoints: Vec::new(),
                kind: Kind::LOG,
                probe: Probe::Unstated,
                rack: None,
                features: BTreeMap::new(),
                directories: Vec::new(),
                cordoned_directories: None,
                fenced,
                in_controlled_shutdown: false,
                controlled_shutdown_offset: None,
            };
            image.brokers.insert(broker(id), Arc::new(registration));
        }
        image
    }

    fn started(now_ms: u64) -> Sessions {
        let mut sessions = Sessions::new(TIMEOUT_MS);
        sessions.start_all(&image(), now_ms);
        sessions
    }

    #[test]
    fn a_claim_gives_every_unfenced_broker_a_full_session() {
        let sessions = started(10_000);
        assert!(sessions.has_live(broker(1), 12_999) && sessions.has_live(broker(2), 12_999));
        assert!(!sessions.has_live(broker(3), 10_000));
        assert_eq!(sessions.expired(&image(), 12_999), []);
    }

    #[test]
    fn the_session_that_ended_first_is_the_first_to_be_fenced() {
        let mut sessions = started(0);
        sessions.touch(broker(1), epoch(1), 500);
        assert_eq!(sessions.expired(&image(), 3_000), [broker(2)]);
        assert_eq!(sessions.expired(&image(), 4_000), [broker(2), broker(1)]);
    }

    #[test]
    fn a_fenced_broker_does_not_expire() {
        let mut sessions = started(0);
        sessions.touch(broker(1), epoch(1), 9_000);
        sessions.touch(broker(2), epoch(2), 9_000);
        sessions.touch(broker(3), epoch(3), 0);
        assert_eq!(sessions.expired(&image(), 9_000), []);
    }

    #[test]
    fn a_stale_epoch_neither_refreshes_nor_reports() {
        let mut sessions = started(0);
        sessions.touch(broker(1), epoch(7), 1_000);
        sessions.touch(broker(1), epoch(6), 2_000);
        sessions.report_offset(broker(1), epoch(6), Offset::new(50));
        assert_eq!(sessions.silence_ms(broker(1), 3_000), Some(2_000));
        assert_eq!(sessions.lowest_active_offset(&image(), broker(2)), Some(Offset::new(0)));
    }

    #[test]
    fn offsets_are_of_brokers_that_have_reported_one() {
        let mut sessions = started(0);
        assert_eq!(sessions.offsets(&image()), []);
        sessions.report_offset(broker(2), epoch(2), Offset::new(30));
        assert_eq!(sessions.offsets(&image()), [(broker(2), Offset::new(30))]);
    }

    #[test]
    fn a_late_stamp_does_not_shorten_a_session() {
        let mut sessions = started(1_000);
        sessions.touch(broker(1), epoch(1), 500);
        assert_eq!(sessions.silence_ms(broker(1), 1_000), Some(0));
    }

    #[test]
    fn a_stall_of_the_controller_extends_every_session() {
        let mut sessions = started(0);
        sessions.extend_all(5_000, 6_000);
        assert_eq!(sessions.expired(&image(), 7_999), []);
        assert_eq!(sessions.expired(&image(), 8_000), [broker(1), broker(2)]);
    }

    #[test]
    fn who_was_heard_during_a_stall_gets_no_more_than_a_full_session() {
        let mut sessions = started(0);
        sessions.touch(broker(1), epoch(1), 4_900);
        sessions.extend_all(5_000, 5_000);
        assert_eq!(sessions.expired(&image(), 7_999), []);
        assert!(!sessions.has_live(broker(1), 8_000));
    }

    #[test]
    fn contact_during_a_fencing_does_not_end_it() {
        let mut sessions = started(0);
        sessions.begin_removal(broker(1), Removal::Fencing);
        sessions.touch(broker(1), epoch(1), 3_001);
        assert_eq!(sessions.removal(broker(1), epoch(1)), Some(Removal::Fencing));
        assert_eq!(sessions.removal(broker(2), epoch(2)), None);
        sessions.end_removal(broker(1));
        assert_eq!(sessions.removal(broker(1), epoch(1)), None);
    }

    #[test]
    fn a_removal_is_that_of_one_incarnation() {
        let mut sessions = started(0);
        sessions.begin_removal(broker(1), Removal::Fencing);
        assert_eq!(sessions.removal(broker(1), epoch(7)), None);
        sessions.touch(broker(1), epoch(7), 10);
        assert_eq!(sessions.removal(broker(1), epoch(7)), None);
    }

    #[test]
    fn a_refused_removal_ends() {
        let mut sessions = started(0);
        sessions.begin_removal(broker(1), Removal::Fencing);
        sessions.begin_removal(broker(2), Removal::Fencing);
        sessions.retain_removals(|id, _| id == broker(2));
        assert!(!sessions.is_leaving(broker(1)) && sessions.is_leaving(broker(2)));
    }

    #[test]
    fn a_broker_in_shutdown_that_dies_is_fenced_and_not_the_other_way_round() {
        let mut sessions = started(0);
        sessions.begin_removal(broker(1), Removal::ControlledShutdown);
        sessions.begin_removal(broker(1), Removal::Fencing);
        sessions.begin_removal(broker(1), Removal::ControlledShutdown);
        assert_eq!(sessions.removal(broker(1), epoch(1)), Some(Removal::Fencing));
    }

    #[test]
    fn a_broker_with_a_failed_directory_stays_in_the_other_isrs() {
        let mut sessions = started(0);
        sessions.begin_removal(broker(1), Removal::DirectoryFailure);
        assert!(!sessions.is_leaving(broker(1)));
    }

    #[test]
    fn the_barrier_waits_for_the_slowest_active_broker() {
        let mut sessions = started(0);
        sessions.report_offset(broker(1), epoch(1), Offset::new(40));
        assert_eq!(sessions.lowest_active_offset(&image(), broker(3)), Some(Offset::new(0)));
        sessions.report_offset(broker(2), epoch(2), Offset::new(30));
        assert_eq!(sessions.lowest_active_offset(&image(), broker(3)), Some(Offset::new(30)));
        assert_eq!(sessions.lowest_active_offset(&image(), broker(2)), Some(Offset::new(40)));
        assert_eq!(sessions.lowest_active_offset(&MetadataImage::default(), broker(1)), None);
    }
}
