//! The broker service as a node serves it: the events of the feed are encoded already, so that watchers of the same share
//! its bytes. On the wire it is `quorate.broker.v1.Broker`.

use bytes::Bytes;

#[expect(clippy::too_many_lines, reason = "generated")]
mod generated {
    include!(concat!(env!("OUT_DIR"), "/encoded/quorate.broker.v1.rs"));
}

pub use generated::broker_server;

/// A `broker::WatchEvent` of encoded messages. One of the fields is set.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct WatchEvent {
    /// A `broker::SnapshotPart`.
    #[prost(bytes = "bytes", optional, tag = "1")]
    pub snapshot: Option<Bytes>,
    /// A `broker::CommittedRecords`.
    #[prost(bytes = "bytes", optional, tag = "2")]
    pub records: Option<Bytes>,
    /// A `broker::Bookmark`.
    #[prost(bytes = "bytes", optional, tag = "3")]
    pub bookmark: Option<Bytes>,
}

#[cfg(test)]
mod tests {
    use prost::Message;

    use super::*;
    use crate::broker;
    use crate::broker::watch_event::Event;

    #[test]
    fn an_encoded_event_is_the_event_on_the_wire() {
        let snapshot = broker::SnapshotPart { next_offset: 7, last: true, ..Default::default() };
        let records = broker::CommittedRecords { next_offset: 8, time_ms: 9, ..Default::default() };
        let bookmark = broker::Bookmark { next_offset: 10 };
        let encoded = |message: Vec<u8>| Some(Bytes::from(message));
        let none = WatchEvent::default();
        let events = [
            (WatchEvent { snapshot: encoded(snapshot.encode_to_vec()), ..none.clone() }, Event::Snapshot(snapshot)),
            (WatchEvent { records: encoded(records.encode_to_vec()), ..none.clone() }, Event::Records(records)),
            (WatchEvent { bookmark: encoded(bookmark.encode_to_vec()), ..none }, Event::Bookmark(bookmark)),
        ];
        for (encoded, event) in events {
            let received = broker::WatchEvent::decode(encoded.encode_to_vec().as_slice());
            assert_eq!(received, Ok(broker::WatchEvent { event: Some(event) }));
        }
    }
}
