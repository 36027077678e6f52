//! What clients were answered, so that a retried mutation takes effect once.
//!
//! A bounded window: of each client the last requests that were applied, of all clients those heard from last. It is
//! part of the image, so it survives a change of controller and a snapshot.

use std::sync::Arc;

use imbl::{OrdMap, Vector};

use super::canonical::Entity;
use super::digest::Digest;
use super::verify::Violation;
use crate::ids::{ClientId, Offset};
use crate::limits;
use crate::record::Record;

#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Requests {
    clients: OrdMap<ClientId, Client>,
    /// Clients by the offset of their last request: the first one has been silent longest.
    by_last_offset: OrdMap<Offset, ClientId>,
}

/// What is known of a request before it is carried out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RequestOutcome<'a> {
    New,
    /// It was carried out, and this was the answer.
    Applied {
        offset: Offset,
        reply: &'a [u8],
    },
    /// It may have been carried out, so long ago that the answer is forgotten.
    Expired,
}

/// Invariant: `applied` is in the order of offsets, and is never empty.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct Client {
    applied: Vector<Applied>,
    /// The highest request that has left the window.
    forgotten_up_to: Option<u64>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Applied {
    request: u64,
    offset: Offset,
    reply: Arc<[u8]>,
}

impl Requests {
    pub fn look_up(&self, client: ClientId, request: u64) -> RequestOutcome<'_> {
        let Some(known) = self.clients.get(&client) else { return RequestOutcome::New };
        match known.applied.iter().find(|applied| applied.request == request) {
            Some(applied) => RequestOutcome::Applied { offset: applied.offset, reply: &applied.reply },
            None if known.forgotten_up_to.is_some_and(|up_to| request <= up_to) => RequestOutcome::Expired,
            None => RequestOutcome::New,
        }
    }

    pub fn client_count(&self) -> usize {
        self.clients.len()
    }

    /// Remembers a request that is `New`, at an offset above all others, and forgets what no longer fits.
    pub(super) fn apply(&mut self, digest: &mut Digest, client: ClientId, request: u64, offset: Offset, reply: &[u8]) {
        let known = self.clients.entry(client).or_default();
        if known.applied.len() >= limits::REQUESTS_PER_CLIENT_MAX {
            known.forget_oldest(digest, client);
        }
        self.push(digest, client, Applied { request, offset, reply: reply.into() });
        if self.clients.len() > limits::CLIENTS_REMEMBERED_MAX {
            self.forget_silent_client(digest);
        }
    }

    /// Remembers a request from a snapshot, which holds each client's requests in the order of their offsets.
    pub(super) fn restore(
        &mut self,
        digest: &mut Digest,
        client: ClientId,
        request: u64,
        offset: Offset,
        reply: &[u8],
        forgotten_up_to: Option<u64>,
    ) {
        self.clients.entry(client).or_default().set_forgotten(digest, client, forgotten_up_to);
        self.push(digest, client, Applied { request, offset, reply: reply.into() });
    }

    /// How many records `into_records` gives.
    pub(super) fn record_count(&self) -> usize {
        self.clients.values().map(|known| known.applied.len()).sum()
    }

    /// The window as snapshot records, without holding them all at once.
    pub(super) fn into_records(self) -> impl Iterator<Item = Record> + Send {
        self.clients.into_iter().flat_map(|(client, known)| {
            let forgotten_up_to = known.forgotten_up_to;
            known.applied.into_iter().map(move |applied| Record::RequestApplied {
                client,
                request: applied.request,
                reply: applied.reply.to_vec(),
                offset: Some(applied.offset),
                forgotten_up_to,
            })
        })
    }

    pub(super) fn for_each_entity(&self, mut act: impl FnMut(Entity<'_>)) {
        for (&client, known) in &self.clients {
            known.forgotten_up_to.into_iter().for_each(|up_to| act(Entity::Forgotten { client, up_to }));
            known.applied.iter().for_each(|applied| act(applied.entity(client)));
        }
    }

    pub(super) fn verify(&self) -> Option<Violation> {
        let (clients, max) = (self.clients.len(), limits::CLIENTS_REMEMBERED_MAX);
        if clients > max {
            return Some(Violation::TooManyClients { clients, max });
        }
        let too_many = |known: &Client| known.applied.len() > limits::REQUESTS_PER_CLIENT_MAX;
        let (&client, known) = self.clients.iter().find(|(_, known)| too_many(known))?;
        Some(Violation::TooManyRequests { client, requests: known.applied.len(), max: limits::REQUESTS_PER_CLIENT_MAX })
    }

    /// Whether the order by last offset says the same as the clients.
    pub(super) fn is_consistent(&self) -> bool {
        let by_last_offset: OrdMap<_, _> =
            self.clients.iter().filter_map(|(&client, known)| Some((known.last_offset()?, client))).collect();
        by_last_offset == self.by_last_offset && self.by_last_offset.len() == self.clients.len()
    }

    fn push(&mut self, digest: &mut Digest, client: ClientId, applied: Applied) {
        let known = self.clients.entry(client).or_default();
        if let Some(last) = known.last_offset() {
            self.by_last_offset.remove(&last);
        }
        self.by_last_offset.insert(applied.offset, client);
        digest.add(applied.entity(client));
        known.applied.push_back(applied);
    }

    fn forget_silent_client(&mut self, digest: &mut Digest) {
        let Some(&(last, client)) = self.by_last_offset.get_min() else { return };
        self.by_last_offset.remove(&last);
        let Some(mut known) = self.clients.remove(&client) else { return };
        known.applied.iter().for_each(|applied| digest.remove(applied.entity(client)));
        known.set_forgotten(digest, client, None);
    }
}

impl Client {
    fn last_offset(&self) -> Option<Offset> {
        self.applied.last().map(|applied| applied.offset)
    }

    /// By offset, not by number: a late request with a low number must not be the first to go.
    fn forget_oldest(&mut self, digest: &mut Digest, client: ClientId) {
        let Some(oldest) = self.applied.pop_front() else { return };
        digest.remove(oldest.entity(client));
        self.set_forgotten(digest, client, self.forgotten_up_to.max(Some(oldest.request)));
    }

    fn set_forgotten(&mut self, digest: &mut Digest, client: ClientId, forgotten_up_to: Option<u64>) {
        if self.forgotten_up_to == forgotten_up_to {
            return;
        }
        self.forgotten_up_to.into_iter().for_each(|up_to| digest.remove(Entity::Forgotten { client, up_to }));
        forgotten_up_to.into_iter().for_each(|up_to| digest.add(Entity::Forgotten { client, up_to }));
        self.forgotten_up_to = forgotten_up_to;
    }
}

impl Applied {
    fn entity(&self, client: ClientId) -> Entity<'_> {
        Entity::Request { client, request: self.request, offset: self.offset, reply: &self.reply }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::image::fixture::{batch, client};
    use crate::image::{MetadataImage, ReplayError};

    const WINDOW: u64 = limits::REQUESTS_PER_CLIENT_MAX as u64;

    fn apply(image: &mut MetadataImage, from: u128, request: u64) {
        image.replay(&batch(1, &[applied(from, request)])).expect("the request is new");
    }

    fn applied(from: u128, request: u64) -> Record {
        let reply = request.to_be_bytes().to_vec();
        Record::RequestApplied { client: client(from), request, reply, offset: None, forgotten_up_to: None }
    }

    fn outcome(image: &MetadataImage, from: u128, request: u64) -> RequestOutcome<'_> {
        image.requests.look_up(client(from), request)
    }

    #[test]
    fn a_retry_within_the_window_gets_the_first_answer() {
        let mut image = MetadataImage::default();
        (0..=WINDOW).for_each(|request| apply(&mut image, 1, request));
        let reply = 1_u64.to_be_bytes();
        assert_eq!(outcome(&image, 1, 1), RequestOutcome::Applied { offset: Offset::new(1), reply: &reply });
        assert_eq!(outcome(&image, 1, 0), RequestOutcome::Expired);
        assert_eq!(outcome(&image, 1, WINDOW + 1), RequestOutcome::New);
        assert_eq!(outcome(&image, 2, 0), RequestOutcome::New);
        assert_eq!(image.verify(), []);
    }

    #[test]
    fn a_late_request_with_a_low_number_is_not_the_first_to_go() {
        let mut image = MetadataImage::default();
        (100..100 + WINDOW).for_each(|request| apply(&mut image, 1, request));
        apply(&mut image, 1, 50);
        assert!(matches!(outcome(&image, 1, 50), RequestOutcome::Applied { .. }));
        assert_eq!(outcome(&image, 1, 100), RequestOutcome::Expired);
        assert!(matches!(outcome(&image, 1, 101), RequestOutcome::Applied { .. }));
        // It was never seen, but it may as well have been forgotten: that cannot be told any more.
        assert_eq!(outcome(&image, 1, 51), RequestOutcome::Expired);
        assert_eq!(image.verify(), []);
    }

    #[test]
    fn the_client_that_has_been_silent_longest_is_forgotten() {
        let mut image = MetadataImage::default();
        let clients = limits::CLIENTS_REMEMBERED_MAX as u128;
        let first: Vec<Record> = (0..clients).map(|from| applied(from, 0)).collect();
        image.replay(&batch(1, &first)).expect("the requests are new");
        (1..=WINDOW).for_each(|request| apply(&mut image, 0, request));
        apply(&mut image, clients, 0);
        assert_eq!(outcome(&image, 1, 0), RequestOutcome::New);
        assert_eq!(outcome(&image, 0, 0), RequestOutcome::Expired);
        assert!(matches!(outcome(&image, 2, 0), RequestOutcome::Applied { .. }));
        assert_eq!(image.requests.client_count(), limits::CLIENTS_REMEMBERED_MAX);
        assert_eq!(image.verify(), []);

        // Client 0 is next to go, with what it had forgotten.
        let others: Vec<Record> = (2..=clients).map(|from| applied(from, 1)).collect();
        image.replay(&batch(1, &others)).expect("the requests are new");
        apply(&mut image, clients + 1, 0);
        assert_eq!(outcome(&image, 0, 0), RequestOutcome::New);
        assert_eq!(image.verify(), []);
    }

    #[test]
    fn a_request_cannot_be_applied_twice() {
        let mut image = MetadataImage::default();
        apply(&mut image, 1, 7);
        let refused = image.replay(&batch(1, &[applied(1, 7)]));
        assert_eq!(refused, Err(ReplayError::RequestRepeated { client: client(1), request: 7 }));
    }

    #[test]
    fn the_window_survives_a_snapshot() {
        let mut image = MetadataImage::default();
        // Neighbours change places on their way, as requests in flight do.
        (0..WINDOW + 6).for_each(|request| apply(&mut image, 1, request ^ 1));
        apply(&mut image, 2, 1);
        let copy = MetadataImage::from_snapshot(image.header(), image.to_records());
        assert_eq!(copy, Ok(image));
    }
}
