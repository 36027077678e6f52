//! The ids under which the cluster remembers the mutations of this client, so that a retry takes effect once.
//!
//! It remembers the last requests of each client id. A request that is overtaken by more than that would be refused as
//! forgotten although it was never carried out. So no request gets a number far beyond one that is still under way: where
//! many are, they are numbered under several client ids.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, MutexGuard};

use quorate_metadata::ids::ClientId;
use quorate_metadata::limits::REQUESTS_PER_CLIENT_MAX;

use crate::world;

/// Numbers from the oldest request under way to the newest. Half of what is remembered: a late attempt of a call that has
/// ended may still be applied.
const SPAN_MAX: u64 = REQUESTS_PER_CLIENT_MAX as u64 / 2;

/// Clones hand out the same ids.
#[derive(Debug, Clone, Default)]
pub(crate) struct Identities {
    windows: Arc<Mutex<Vec<ClientWindow>>>,
}

/// The requests under one client id.
#[derive(Debug)]
struct ClientWindow {
    client: ClientId,
    last: u64,
    under_way: BTreeSet<u64>,
}

/// The id of a request that no other has. It is under way until this is dropped.
#[derive(Debug)]
pub(crate) struct Identity {
    identities: Identities,
    window: usize,
    pub client: ClientId,
    pub request: u64,
}

impl Identities {
    pub fn next(&self) -> Identity {
        let mut windows = self.lock();
        let window = windows.iter().position(ClientWindow::has_room).unwrap_or_else(|| {
            windows.push(ClientWindow { client: ClientId::new(world::uuid()), last: 0, under_way: BTreeSet::new() });
            windows.len() - 1
        });
        let ClientWindow { client, last, under_way } = &mut windows[window];
        *last += 1;
        under_way.insert(*last);
        Identity { identities: self.clone(), window, client: *client, request: *last }
    }

    fn lock(&self) -> MutexGuard<'_, Vec<ClientWindow>> {
        self.windows.lock().expect("no one panics while holding the ids")
    }
}

impl ClientWindow {
    fn has_room(&self) -> bool {
        self.under_way.first().is_none_or(|oldest| self.last + 1 - oldest < SPAN_MAX)
    }
}

impl Drop for Identity {
    fn drop(&mut self) {
        self.identities.lock()[self.window].under_way.remove(&self.request);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_one_after_the_other_have_one_client_id() {
        let identities = Identities::default();
        let first = identities.next();
        let client = first.client;
        drop(first);
        for request in 2..1_000 {
            let next = identities.next();
            assert_eq!((next.client, next.request), (client, request));
        }
    }

    #[test]
    fn no_request_is_overtaken_by_more_than_is_remembered() {
        let identities = Identities::default();
        let oldest = identities.next();
        let others: Vec<Identity> = (0..1_000).map(|_| identities.next()).collect();
        let beyond = others.iter().filter(|other| other.client == oldest.client).map(|other| other.request);
        assert_eq!(beyond.max(), Some(SPAN_MAX));
        drop(others);
        assert!(identities.next().client != oldest.client, "the oldest is still under way");
        let client = oldest.client;
        drop(oldest);
        assert_eq!(identities.next().client, client);
    }
}
