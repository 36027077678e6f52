//! One byte encoding for each entity, for the digest alone. Fixed for ever: nodes of different releases compare by it.

use xxhash_rust::xxh3::xxh3_128;

use crate::ids::{BrokerId, ClientId, ClusterId, DirectoryId};
use crate::record::{
    BrokerRegistration, ChangeNote, ConfigResource, ControllerRegistration, Endpoint, Partition, VersionRange,
};
use crate::ids::{TopicId, TopicPartition};

/// The hash of one entity.
pub(super) struct Canonical(Vec<u8>);

impl Canonical {
    fn of(tag: u8) -> Self {
        let mut bytes = Vec::with_capacity(128);
        bytes.push(tag);
        Self(bytes)
    }

    fn bytes(mut self, bytes: &[u8]) -> Self {
        self.0.extend_from_slice(&(bytes.len() as u64).to_be_bytes());
        self.0.extend_from_slice(bytes);
        self
    }

    fn number(mut self, number: impl Into<i64>) -> Self {
        self.0.extend_from_slice(&number.into().to_be_bytes());
        self
    }

    fn option(self, number: Option<impl Into<i64>>) -> Self {
        match number {
            Some(number) => self.number(1).number(number),
            None => self.number(0),
        }
    }

    fn list<T>(self, items: &[T], mut each: impl FnMut(Self, &T) -> Self) -> Self {
        let counted = self.number(items.len() as i64);
        items.iter().fold(counted, |bytes, item| each(bytes, item))
    }

    fn brokers(self, brokers: &[BrokerId]) -> Self {
        self.list(brokers, |bytes, broker| bytes.number(broker.get()))
    }

    fn directories(self, directories: &[DirectoryId]) -> Self {
        self.list(directories, |bytes, directory| bytes.bytes(directory.as_bytes()))
    }

    fn endpoints(self, endpoints: &[Endpoint]) -> Self {
        self.list(endpoints, |bytes, endpoint| {
            bytes
                .bytes(endpoint.name.as_bytes())
                .bytes(endpoint.host.as_bytes())
                .number(endpoint.port)
                .number(endpoint.security as i16)
        })
    }

    fn features<'a>(self, features: impl ExactSizeIterator<Item = (&'a String, &'a VersionRange)>) -> Self {
        let counted = self.number(features.len() as i64);
        features.fold(counted, |bytes, (name, range)| bytes.bytes(name.as_bytes()).number(range.min).number(range.max))
    }

    fn hash(self) -> u128 {
        xxh3_128(&self.0)
    }
}

pub(super) fn cluster(id: ClusterId) -> u128 {
    Canonical::of(1).bytes(id.as_bytes()).hash()
}

pub(super) fn feature(name: &str, level: i16) -> u128 {
    Canonical::of(2).bytes(name.as_bytes()).number(level).hash()
}

pub(super) fn controller(registration: &ControllerRegistration) -> u128 {
    Canonical::of(3)
        .number(registration.controller.get())
        .bytes(registration.incarnation.as_bytes())
        .endpoints(&registration.endpoints)
        .features(registration.features.iter())
        .hash()
}

pub(super) fn broker(registration: &BrokerRegistration) -> u128 {
    let bytes = Canonical::of(4)
        .number(registration.broker.get())
        .number(registration.epoch.get())
        .bytes(registration.incarnation.as_bytes())
        .endpoints(&registration.endpoints)
        .features(registration.features.iter())
        .directories(&registration.directories)
        .number(registration.fenced)
        .number(registration.in_controlled_shutdown)
        .option(registration.controlled_shutdown_offset.map(|offset| offset.get()));
    let bytes = match &registration.rack {
        Some(rack) => bytes.number(1).bytes(rack.as_bytes()),
        None => bytes.number(0),
    };
    match &registration.cordoned_directories {
        Some(directories) => bytes.number(1).directories(directories),
        None => bytes.number(0),
    }
    .hash()
}

pub(super) fn topic(id: TopicId, name: &str) -> u128 {
    Canonical::of(5).bytes(id.as_bytes()).bytes(name.as_bytes()).hash()
}

pub(super) fn partition(id: TopicPartition, state: &Partition) -> u128 {
    Canonical::of(6)
        .bytes(id.topic.as_bytes())
        .number(id.partition.get())
        .brokers(&state.replicas)
        .directories(&state.directories)
        .brokers(&state.isr)
        .brokers(&state.elr)
        .brokers(&state.last_known_elr)
        .brokers(&state.adding)
        .brokers(&state.removing)
        .option(state.leader.map(BrokerId::get))
        .number(state.recovery as i8)
        .number(state.leader_epoch.get())
        .number(state.partition_epoch.get())
        .list(&state.history, note)
        .hash()
}

fn note(bytes: Canonical, note: &ChangeNote) -> Canonical {
    bytes
        .bytes(note.cause.name().as_bytes())
        .option(note.cause.broker().map(BrokerId::get))
        .number(note.offset.get())
        .number(note.time_ms)
        .option(note.leader.map(BrokerId::get))
        .number(note.leader_epoch.get())
        .number(note.unclean)
}

pub(super) fn config(resource: &ConfigResource, key: &str, value: &str) -> u128 {
    let bytes = Canonical::of(7);
    match resource {
        ConfigResource::Topic(name) => bytes.number(2).bytes(name.as_bytes()),
        ConfigResource::Broker(id) => bytes.number(4).option(Some(id.get())),
        ConfigResource::BrokerDefault => bytes.number(4).option(None::<i32>),
    }
    .bytes(key.as_bytes())
    .bytes(value.as_bytes())
    .hash()
}

pub(super) fn request(client: ClientId, request: u64, offset: i64, reply: &[u8]) -> u128 {
    Canonical::of(8).bytes(client.as_bytes()).bytes(&request.to_be_bytes()).number(offset).bytes(reply).hash()
}

pub(super) fn forgotten(client: ClientId, up_to: u64) -> u128 {
    Canonical::of(9).bytes(client.as_bytes()).bytes(&up_to.to_be_bytes()).hash()
}
