//! The one byte form of each thing in an image, for its hash alone: nothing decodes it, nothing stores it.
//!
//! Invariant: two things that differ have different bytes. Each starts with a tag of its kind, every list and text with
//! its length, every option with whether it is there. Numbers are big-endian.
//! Every field takes part: structures are taken apart by name, so that a new field does not compile until it does.
//!
//! What stands here is the form at level 1 of `metadata.version`, and it does not change. A field of a later level comes
//! behind the others of its structure, as a tag of its own and its value, and only where it is set: without it, the bytes
//! are those of level 1. Plans set it only where its level is finalized (`levels.rs`), and so does replay where it derives
//! it. So the finalized level chooses the version of the digest, a node of an earlier release computes the same one until
//! then, and nothing has to be computed again when a level is finalized.

use crate::ids::{BrokerId, ClientId, ClusterId, DirectoryId, Offset, ReassignmentId, TopicId, TopicPartition};
use crate::record::{
    BrokerRegistration, Cause, ChangeNote, ConfigResource, ControllerRegistration, Endpoint, Kind, Partition, Probe,
    Rare, VersionRange,
};

/// The smallest thing that changes as a whole.
#[derive(Debug, Clone, Copy)]
pub(super) enum Entity<'a> {
    Cluster(ClusterId),
    Feature {
        name: &'a str,
        level: i16,
    },
    Controller(&'a ControllerRegistration),
    Broker(&'a BrokerRegistration),
    Topic {
        id: TopicId,
        name: &'a str,
        kind: &'a Kind,
    },
    Partition {
        id: TopicPartition,
        state: &'a Partition,
    },
    Config {
        resource: &'a ConfigResource,
        key: &'a str,
        value: &'a str,
    },
    Request {
        client: ClientId,
        request: u64,
        offset: Offset,
        reply: &'a [u8],
    },
    /// The client's highest request that is no longer remembered.
    Forgotten {
        client: ClientId,
        up_to: u64,
    },
    ProducerIds {
        next: i64,
    },
    /// From level 3 on.
    RemovedTopic {
        id: TopicId,
        offset: Offset,
    },
    /// An operation that moves replicas, without its partitions.
    Reassignment {
        id: ReassignmentId,
        paused: bool,
        throttle_bytes_per_second: Option<u64>,
        started_ms: i64,
    },
    Reassigned {
        id: ReassignmentId,
        partition: TopicPartition,
        original: &'a [BrokerId],
    },
}

impl Entity<'_> {
    pub(super) fn encode(&self) -> Vec<u8> {
        let mut out = Encoder(Vec::with_capacity(256));
        match *self {
            Self::Cluster(cluster) => out.tag(1).raw(cluster.as_bytes()),
            Self::Feature { name, level } => out.tag(2).text(name).raw(&level.to_be_bytes()),
            Self::Controller(controller) => out.tag(3).controller(controller),
            Self::Broker(broker) => out.tag(4).broker(broker),
            Self::Topic { id, name, kind } => out.tag(5).raw(id.as_bytes()).text(name).kind(kind),
            Self::Partition { id, state } => out.tag(6).partition_id(id).partition(state),
            Self::Config { resource, key, value } => out.tag(7).resource(resource).text(key).text(value),
            Self::Request { client, request, offset, reply } => {
                out.tag(8).raw(client.as_bytes()).raw(&request.to_be_bytes()).long(offset.get()).bytes(reply)
            }
            Self::Forgotten { client, up_to } => out.tag(9).raw(client.as_bytes()).raw(&up_to.to_be_bytes()),
            Self::RemovedTopic { id, offset } => out.tag(15).raw(id.as_bytes()).long(offset.get()),
            Self::ProducerIds { next } => out.tag(14).long(next),
            Self::Reassignment { id, paused, throttle_bytes_per_second, started_ms } => {
                out.tag(12).long(id.get()).flag(paused).long(started_ms).option(
                    throttle_bytes_per_second,
                    |out, limit| {
                        out.raw(&limit.to_be_bytes());
                    },
                )
            }
            Self::Reassigned { id, partition, original } => {
                out.tag(13).long(id.get()).partition_id(partition).broker_ids(original)
            }
        };
        out.0
    }
}

struct Encoder(Vec<u8>);

impl Encoder {
    fn raw(&mut self, bytes: &[u8]) -> &mut Self {
        self.0.extend_from_slice(bytes);
        self
    }

    fn tag(&mut self, tag: u8) -> &mut Self {
        self.raw(&[tag])
    }

    fn flag(&mut self, flag: bool) -> &mut Self {
        self.tag(u8::from(flag))
    }

    fn int(&mut self, value: i32) -> &mut Self {
        self.raw(&value.to_be_bytes())
    }

    fn long(&mut self, value: i64) -> &mut Self {
        self.raw(&value.to_be_bytes())
    }

    fn length(&mut self, length: usize) -> &mut Self {
        self.raw(&(length as u64).to_be_bytes())
    }

    fn bytes(&mut self, bytes: &[u8]) -> &mut Self {
        self.length(bytes.len()).raw(bytes)
    }

    fn text(&mut self, text: &str) -> &mut Self {
        self.bytes(text.as_bytes())
    }

    fn option<T>(&mut self, value: Option<T>, encode: impl FnOnce(&mut Self, T)) -> &mut Self {
        self.flag(value.is_some());
        if let Some(value) = value {
            encode(self, value);
        }
        self
    }

    fn list<T>(&mut self, items: impl ExactSizeIterator<Item = T>, mut encode: impl FnMut(&mut Self, T)) -> &mut Self {
        self.length(items.len());
        for item in items {
            encode(self, item);
        }
        self
    }

    fn broker_id(&mut self, broker: Option<BrokerId>) -> &mut Self {
        self.option(broker, |out, broker| {
            out.int(broker.get());
        })
    }

    fn broker_ids(&mut self, brokers: &[BrokerId]) -> &mut Self {
        self.list(brokers.iter(), |out, broker| {
            out.int(broker.get());
        })
    }

    fn directories(&mut self, directories: impl ExactSizeIterator<Item = DirectoryId>) -> &mut Self {
        self.list(directories, |out, directory| {
            out.raw(directory.as_bytes());
        })
    }

    fn partition_id(&mut self, id: TopicPartition) -> &mut Self {
        self.raw(id.topic.as_bytes()).int(id.partition.get())
    }

    fn endpoints(&mut self, endpoints: &[Endpoint]) -> &mut Self {
        self.list(endpoints.iter(), |out, endpoint| {
            let Endpoint { name, host, port, security } = endpoint;
            out.text(name).text(host).raw(&port.to_be_bytes()).raw(&(*security as i16).to_be_bytes());
        })
    }

    fn features<'a>(&mut self, features: impl ExactSizeIterator<Item = (&'a String, &'a VersionRange)>) -> &mut Self {
        self.list(features, |out, (name, range)| {
            let VersionRange { min, max } = range;
            out.text(name).raw(&min.to_be_bytes()).raw(&max.to_be_bytes());
        })
    }

    fn resource(&mut self, resource: &ConfigResource) -> &mut Self {
        match resource {
            ConfigResource::Topic(name) => self.tag(1).text(name),
            ConfigResource::Broker(broker) => self.tag(2).int(broker.get()),
            ConfigResource::BrokerDefault => self.tag(3),
        }
    }

    fn controller(&mut self, registration: &ControllerRegistration) -> &mut Self {
        let ControllerRegistration { controller, incarnation, endpoints, features } = registration;
        self.int(controller.get()).raw(incarnation.as_bytes()).endpoints(endpoints).features(features.iter())
    }

    fn broker(&mut self, registration: &BrokerRegistration) -> &mut Self {
        let BrokerRegistration {
            broker,
            epoch,
            incarnation,
            kind,
            probe,
            endpoints,
            rack,
            features,
            directories,
            cordoned_directories,
            fenced,
            in_controlled_shutdown,
            controlled_shutdown_offset,
        } = registration;
        self.int(broker.get()).long(epoch.get()).raw(incarnation.as_bytes());
        self.endpoints(endpoints).features(features.iter()).directories(directories.iter().copied());
        self.option(rack.as_deref(), |out, rack| {
            out.text(rack);
        });
        self.option(cordoned_directories.as_deref(), |out, directories| {
            out.directories(directories.iter().copied());
        });
        self.flag(*fenced).flag(*in_controlled_shutdown);
        self.option(*controlled_shutdown_offset, |out, offset| {
            out.long(offset.get());
        });
        self.kind(kind).probe(probe)
    }

    /// A field of level 3: logs have none.
    fn kind(&mut self, kind: &Kind) -> &mut Self {
        if kind.is_log() { self } else { self.tag(1).text(kind.as_str()) }
    }

    /// A field of level 4, where it is stated.
    fn probe(&mut self, probe: &Probe) -> &mut Self {
        match probe {
            Probe::Unstated => self,
            Probe::None => self.tag(2).flag(false),
            Probe::Endpoint(name) => self.tag(2).flag(true).text(name),
        }
    }

    fn partition(&mut self, partition: &Partition) -> &mut Self {
        let Rare { elr, last_known_elr, adding, removing, recovery } = partition.rare();
        let Partition { replicas, isr, leader, leader_epoch, partition_epoch, directories, history, .. } = partition;
        for brokers in [replicas, isr, elr, last_known_elr, adding, removing] {
            self.broker_ids(brokers);
        }
        self.directories(directories.iter()).broker_id(*leader).raw(&(*recovery as i8).to_be_bytes());
        self.int(leader_epoch.get()).int(partition_epoch.get()).length(history.len());
        for note in history.iter() {
            self.note(&note);
        }
        self
    }

    fn note(&mut self, note: &ChangeNote) -> &mut Self {
        let ChangeNote { cause, offset, time_ms, leader, leader_epoch, unclean } = note;
        self.cause(*cause).long(offset.get()).long(*time_ms).broker_id(*leader).int(leader_epoch.get()).flag(*unclean)
    }

    fn cause(&mut self, cause: Cause) -> &mut Self {
        self.tag(cause.tag()).broker_id(cause.broker())
    }
}
