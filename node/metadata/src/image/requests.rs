//! The answers given to clients, so that a retry takes effect once (P8).
//!
//! A bounded window: per client its latest requests, and the clients heard from last. A request that left its client's
//! window is recognised as too old, because a client's request ids only grow.

use imbl::OrdMap;

use crate::ids::{ClientId, Offset};
use crate::limits::{CLIENTS_REMEMBERED_MAX, REQUESTS_PER_CLIENT_MAX};
use crate::record::Record;

use super::canonical;

#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Requests {
    clients: OrdMap<ClientId, Client>,
    /// When each client was last heard from: the order in which clients are forgotten.
    by_last_offset: OrdMap<Offset, ClientId>,
}

#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct Client {
    applied: OrdMap<u64, Applied>,
    /// The highest request that is no longer remembered.
    forgotten_up_to: Option<u64>,
    last_offset: Offset,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Applied {
    offset: Offset,
    reply: Vec<u8>,
}

/// What is known of a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RequestOutcome<'a> {
    New,
    Applied { offset: Offset, reply: &'a [u8] },
    /// Older than what is remembered: whether it was applied is no longer known.
    Expired,
}

impl Requests {
    pub fn look_up(&self, client: ClientId, request: u64) -> RequestOutcome<'_> {
        let Some(client) = self.clients.get(&client) else { return RequestOutcome::New };
        if let Some(applied) = client.applied.get(&request) {
            return RequestOutcome::Applied { offset: applied.offset, reply: &applied.reply };
        }
        if client.forgotten_up_to.is_some_and(|forgotten| request <= forgotten) {
            return RequestOutcome::Expired;
        }
        RequestOutcome::New
    }

    pub fn client_count(&self) -> usize {
        self.clients.len()
    }

    /// The most requests that any client has remembered.
    pub fn longest(&self) -> usize {
        self.clients.values().map(|client| client.applied.len()).max().unwrap_or(0)
    }

    /// Remembers an answer; what the digest changes by.
    pub(super) fn apply(
        &mut self,
        id: ClientId,
        request: u64,
        offset: Offset,
        reply: &[u8],
        forgotten_up_to: Option<u64>,
    ) -> u128 {
        let mut client = self.clients.get(&id).cloned().unwrap_or_default();
        let before = hash_of(id, &client);
        self.by_last_offset.remove(&client.last_offset);
        client.applied.insert(request, Applied { offset, reply: reply.to_vec() });
        client.last_offset = client.last_offset.max(offset);
        client.forgotten_up_to = client.forgotten_up_to.max(forgotten_up_to);
        while client.applied.len() > REQUESTS_PER_CLIENT_MAX
            && let Some(oldest) = client.applied.get_min().map(|(request, _)| *request)
        {
            client.applied.remove(&oldest);
            client.forgotten_up_to = client.forgotten_up_to.max(Some(oldest));
        }
        let change = hash_of(id, &client).wrapping_sub(before);
        self.by_last_offset.insert(client.last_offset, id);
        self.clients.insert(id, client);
        change.wrapping_sub(self.forget_surplus())
    }

    /// Forgets the clients that have been silent longest; the hash of what went.
    fn forget_surplus(&mut self) -> u128 {
        let mut gone = 0_u128;
        while self.clients.len() > CLIENTS_REMEMBERED_MAX
            && let Some((at, id)) = self.by_last_offset.get_min().map(|(at, id)| (*at, *id))
        {
            self.by_last_offset.remove(&at);
            let client = self.clients.remove(&id).expect("the order names clients that are there");
            gone = gone.wrapping_add(hash_of(id, &client));
        }
        gone
    }

    pub(super) fn digest(&self) -> u128 {
        self.clients.iter().fold(0, |sum, (id, client)| sum.wrapping_add(hash_of(*id, client)))
    }

    pub(super) fn to_records(&self) -> impl Iterator<Item = Record> + use<> {
        self.clients.clone().into_iter().flat_map(|(id, client)| {
            let forgotten_up_to = client.forgotten_up_to;
            client.applied.into_iter().map(move |(request, applied)| Record::RequestApplied {
                client: id,
                request,
                reply: applied.reply,
                offset: Some(applied.offset),
                forgotten_up_to,
            })
        })
    }
}

fn hash_of(id: ClientId, client: &Client) -> u128 {
    let forgotten = client.forgotten_up_to.map_or(0, |up_to| canonical::forgotten(id, up_to));
    client.applied.iter().fold(forgotten, |sum, (request, applied)| {
        sum.wrapping_add(canonical::request(id, *request, applied.offset.get(), &applied.reply))
    })
}
