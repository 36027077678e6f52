//! What clients were answered, so that a retried mutation takes effect once.
//!
//! A bounded window: of each client the last requests that were applied, of all clients those heard from last. It is
//! part of the image, so it survives a change of controller and a snapshot.
//!
//! A request that leaves the window, be it for their number or for the bytes of their replies, is answered with
//! `Expired`. A client that leaves it with all its requests is not known any more.

mod order;

use std::sync::Arc;

use imbl::{OrdMap, Vector};

use super::canonical::Entity;
use super::digest::Digest;
use super::verify::Violation;
use crate::ids::{ClientId, Offset};
use crate::limits;
use crate::record::Record;
use order::{ClientOrder, Place};

#[cfg(test)]
mod tests;

#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Requests {
    clients: OrdMap<ClientId, Client>,
    order: ClientOrder,
    /// Bytes of all replies.
    bytes: usize,
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
    /// It may have been carried out, but the answer is forgotten.
    Expired,
}

/// Invariant: `applied` is in the order of offsets, and is never empty.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct Client {
    applied: Vector<Applied>,
    /// The highest request whose reply is forgotten.
    forgotten_up_to: Option<u64>,
    /// Bytes of the replies in `applied`.
    bytes: usize,
}

/// The last request of a client stays when its reply is dropped: without a reply, and not above `forgotten_up_to`.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Applied {
    request: u64,
    offset: Offset,
    reply: Arc<[u8]>,
}

impl Requests {
    pub fn look_up(&self, client: ClientId, request: u64) -> RequestOutcome<'_> {
        let Some(known) = self.clients.get(&client) else { return RequestOutcome::New };
        let is_forgotten = known.forgotten_up_to.is_some_and(|up_to| request <= up_to);
        match known.applied.iter().find(|applied| applied.request == request) {
            Some(applied) if !(applied.reply.is_empty() && is_forgotten) => {
                RequestOutcome::Applied { offset: applied.offset, reply: &applied.reply }
            }
            None if !is_forgotten => RequestOutcome::New,
            Some(_) | None => RequestOutcome::Expired,
        }
    }

    pub fn client_count(&self) -> usize {
        self.clients.len()
    }

    /// Bytes of all replies that are remembered.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// Remembers a request that is `New`, at an offset above all others, and forgets what no longer fits in number.
    pub(super) fn apply(&mut self, digest: &mut Digest, client: ClientId, request: u64, offset: Offset, reply: &[u8]) {
        self.change(client, |known| {
            if known.applied.len() >= limits::REQUESTS_PER_CLIENT_MAX {
                known.forget_oldest(digest, client);
            }
            known.push(digest, client, Applied { request, offset, reply: reply.into() });
        });
        if self.clients.len() > limits::CLIENTS_REMEMBERED_MAX {
            self.forget_silent_client(digest);
        }
    }

    /// Forgets replies until the others fit in bytes: those of the client that has been silent longest, oldest first.
    ///
    /// The reply remembered last is never among them: it is the last in this order, and fits alone.
    pub(super) fn fit(&mut self, digest: &mut Digest) {
        while self.bytes > limits::REMEMBERED_BYTES_MAX
            && let Some(client) = self.order.silent_longest_with_reply()
        {
            self.change(client, |known| known.forget_oldest_reply(digest, client));
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
        self.change(client, |known| {
            known.set_forgotten(digest, client, forgotten_up_to);
            known.push(digest, client, Applied { request, offset, reply: reply.into() });
        });
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

    /// Whether the order of clients and the bytes are those of the replies.
    pub(super) fn is_consistent(&self) -> bool {
        let order: ClientOrder =
            self.clients.iter().filter_map(|(&client, known)| Some((known.place()?, client))).collect();
        let bytes = |known: &Client| known.applied.iter().map(|applied| applied.reply.len()).sum::<usize>();
        let are_counted = self.clients.values().all(|known| known.bytes == bytes(known));
        let total: usize = self.clients.values().map(bytes).sum();
        order == self.order && order.len() == self.clients.len() && are_counted && total == self.bytes
    }

    /// Changes what is known of a client, and with it the order and the bytes.
    fn change(&mut self, client: ClientId, change: impl FnOnce(&mut Client)) {
        let known = self.clients.entry(client).or_default();
        let (place, bytes) = (known.place(), known.bytes);
        change(known);
        self.bytes = self.bytes - bytes + known.bytes;
        self.order.replace(client, place, known.place());
    }

    fn forget_silent_client(&mut self, digest: &mut Digest) {
        let Some(client) = self.order.silent_longest() else { return };
        let Some(mut known) = self.clients.remove(&client) else { return };
        self.bytes -= known.bytes;
        self.order.replace(client, known.place(), None);
        known.applied.iter().for_each(|applied| digest.remove(applied.entity(client)));
        known.set_forgotten(digest, client, None);
    }
}

impl Client {
    fn place(&self) -> Option<Place> {
        self.applied.last().map(|last| Place { last: last.offset, has_reply: self.bytes > 0 })
    }

    fn push(&mut self, digest: &mut Digest, client: ClientId, applied: Applied) {
        digest.add(applied.entity(client));
        self.bytes += applied.reply.len();
        self.applied.push_back(applied);
    }

    /// By offset, not by number: a late request with a low number must not be the first to go.
    fn forget_oldest(&mut self, digest: &mut Digest, client: ClientId) {
        let Some(oldest) = self.applied.pop_front() else { return };
        digest.remove(oldest.entity(client));
        self.bytes -= oldest.reply.len();
        self.set_forgotten(digest, client, self.forgotten_up_to.max(Some(oldest.request)));
    }

    /// The last request stays without its reply, so that it is still known to have been applied.
    fn forget_oldest_reply(&mut self, digest: &mut Digest, client: ClientId) {
        let last = (self.applied.len() == 1).then(|| self.applied[0].clone());
        self.forget_oldest(digest, client);
        if let Some(last) = last {
            self.push(digest, client, Applied { reply: Arc::default(), ..last });
        }
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
