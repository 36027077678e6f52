//! Clients in the order of their last requests.

use imbl::OrdMap;

use crate::ids::{ClientId, Offset};

/// Where a client stands in the order.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Place {
    /// The offset of its last request.
    pub last: Offset,
    /// Whether a reply to it is remembered.
    pub has_reply: bool,
}

/// The first client of each map has been silent longest.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ClientOrder {
    with_reply: OrdMap<Offset, ClientId>,
    without_reply: OrdMap<Offset, ClientId>,
}

impl ClientOrder {
    pub fn len(&self) -> usize {
        self.with_reply.len() + self.without_reply.len()
    }

    /// The client that has been silent longest.
    pub fn silent_longest(&self) -> Option<ClientId> {
        let firsts = [self.with_reply.get_min(), self.without_reply.get_min()];
        firsts.into_iter().flatten().min().map(|&(_, client)| client)
    }

    /// Of the clients to which a reply is remembered, the one that has been silent longest.
    pub fn silent_longest_with_reply(&self) -> Option<ClientId> {
        self.with_reply.get_min().map(|&(_, client)| client)
    }

    /// Moves a client from one place to another.
    pub fn replace(&mut self, client: ClientId, before: Option<Place>, after: Option<Place>) {
        if before == after {
            return;
        }
        if let Some(before) = before {
            self.clients_at(before).remove(&before.last);
        }
        if let Some(after) = after {
            self.clients_at(after).insert(after.last, client);
        }
    }

    fn clients_at(&mut self, place: Place) -> &mut OrdMap<Offset, ClientId> {
        if place.has_reply { &mut self.with_reply } else { &mut self.without_reply }
    }
}

impl FromIterator<(Place, ClientId)> for ClientOrder {
    fn from_iter<I: IntoIterator<Item = (Place, ClientId)>>(places: I) -> Self {
        let mut order = Self::default();
        places.into_iter().for_each(|(place, client)| order.replace(client, None, Some(place)));
        order
    }
}
